"""A plan that the runtime has taken: its inputs, outputs and profile, and contexts to run it in."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from acq_isl.engines.plans import write_whole
from acq_isl.engines.trt_api import Flavour, Messages
from acq_isl.errors import EngineError
from acq_isl.manifest import Manifest

_log = logging.getLogger(__name__)

Shape = tuple[int, ...]
_HASH_BYTES = 32


class PlanRefused(EngineError):
    """The runtime does not take this plan: another version, another GPU, or damaged. Build it again."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a plan.

    Parameters
    ----------
    name : str
    is_input : bool
    dtype : numpy.dtype
    shapes : tuple of three shapes
        Smallest, optimal and largest of an input; empty for outputs.
    """

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    shapes: tuple[Shape, ...] = ()


@dataclass(frozen=True, slots=True)
class KernelFile:
    """Kernels that TensorRT for RTX compiled on this machine, kept for the next start.

    Parameters
    ----------
    path : pathlib.Path
        Named after plan, GPU and driver: a file of other ones is never looked at.
    """

    path: Path

    def load(self) -> bytes | None:
        """What was kept; None if there is nothing whole."""
        try:
            stored = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("kept kernels cannot be read, they will be compiled again: %s", error)
            return None
        content = stored[_HASH_BYTES:]
        if hashlib.sha256(content).digest() != stored[:_HASH_BYTES]:
            _log.warning("kept kernels in %s are damaged, they will be compiled again", self.path)
            return None
        return content

    def save(self, content: bytes) -> None:
        """Keep kernels; not being able to costs only time at the next start."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, hashlib.sha256(content).digest() + content)
        except OSError as error:
            _log.warning("compiled kernels cannot be kept in %s: %s", self.path, error)


class Program:
    """A plan the runtime has taken, and what it says of its inputs and outputs.

    Parameters
    ----------
    flavour : Flavour
    plan : bytes
        Trusted: its hash was checked.
    manifest : Manifest
        What inputs and outputs are held against.
    kernels : KernelFile, optional
        Where compiled kernels are kept, if the flavour compiles any.

    Raises
    ------
    PlanRefused
        The runtime does not take the plan, or it is another model's.
    EngineError
        The runtime cannot start.
    """

    def __init__(
        self, flavour: Flavour, plan: bytes, manifest: Manifest, kernels: KernelFile | None = None
    ) -> None:
        self.flavour, self._kernels = flavour, kernels
        self._labels = len(manifest.labels)
        self._messages = Messages(flavour)
        self._runtime: Any = flavour.trt.Runtime(self._messages.logger)
        self._engine: Any = self._loaded(plan)
        self.ports = self._read_ports()
        self._check_ports(manifest)
        self._cache: Any = None
        self._config: Any = self._configured()

    def _loaded(self, plan: bytes) -> Any:
        trt, runtime = self.flavour.trt, self._runtime
        if hasattr(runtime, "get_engine_validity"):
            validity = runtime.get_engine_validity(plan[: runtime.engine_header_size])[0]
            if validity == trt.EngineValidity.SUBOPTIMAL:
                _log.warning("the plan runs on this GPU, but one built for it would be faster")
            if validity == trt.EngineValidity.INVALID:
                raise self._refused()
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._refused()
        return engine

    def _refused(self) -> PlanRefused:
        return PlanRefused(
            f"{self.flavour.name} {self.flavour.version} does not take the plan",
            wanted="a plan built by this version for this GPU",
            got=self._messages.take() or "another plan, no reason given",
            fix="build it again with acq-isl build; if that does not help, update the NVIDIA driver",
        )

    def _read_ports(self) -> tuple[Port, ...]:
        trt, engine = self.flavour.trt, self._engine
        kinds = trt.DataType
        dtypes: dict[Any, DTypeLike] = {
            kinds.UINT8: np.uint8,
            kinds.FLOAT: np.float32,
            kinds.HALF: np.float16,
        }
        ports = []
        for index in range(engine.num_io_tensors):
            name = engine.get_tensor_name(index)
            is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            shapes = engine.get_tensor_profile_shape(name, 0) if is_input else ()
            dtype = np.dtype(dtypes.get(engine.get_tensor_dtype(name), np.void))
            ports.append(Port(name, is_input, dtype, tuple(tuple(shape) for shape in shapes)))
        return tuple(ports)

    def _check_ports(self, manifest: Manifest) -> None:
        half_or_full = (np.dtype(np.float16), np.dtype(np.float32))
        wanted = {
            "stack": (True, (np.dtype(np.uint8),)),
            "inv_sd": (True, (np.dtype(np.float32),)),
            "mean": (False, half_or_full),
            "spread": (False, half_or_full),
        }
        fits = {port.name for port in self.ports} == wanted.keys() and all(
            port.is_input == wanted[port.name][0] and port.dtype in wanted[port.name][1]
            for port in self.ports
        )
        planes = self.port("stack").shapes[0][1] if fits else None
        if planes != manifest.planes:
            raise PlanRefused(
                "the plan is of another model",
                wanted=f"stack of {manifest.planes} planes and inv_sd in, mean and spread out",
                got=", ".join(f"{p.name} {p.dtype} {p.shapes[0] if p.shapes else ''}" for p in self.ports),
                fix="build it again with acq-isl build",
            )

    def _configured(self) -> Any:
        trt = self.flavour.trt
        config = self._engine.create_runtime_config()
        # We lend the memory for intermediate results, so that running out of it is ours to handle.
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.flavour.native_graphs:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            # Kernels for the very shape are compiled at warm-up, not while stacks are waiting.
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        if self.flavour.keeps_kernels:
            self._cache = config.create_runtime_cache()
            kept = self._kernels.load() if self._kernels else None
            if kept is not None and not self._cache.deserialize(kept):
                _log.warning("kept kernels do not fit any more, they will be compiled again")
            config.set_runtime_cache(self._cache)
        return config

    def port(self, name: str) -> Port:
        return next(port for port in self.ports if port.name == name)

    def context(self, shapes: dict[str, Shape]) -> tuple[Any, dict[str, Shape], int]:
        """Make ready to run inputs of these shapes.

        Parameters
        ----------
        shapes : dict of str to tuple of int
            Of every input.

        Returns
        -------
        context
            TensorRT's execution context; wants the address of its scratch memory.
        outputs : dict of str to tuple of int
            Shape of every output.
        scratch_bytes : int

        Raises
        ------
        EngineError
            A shape is outside of the plan's profile.
        """
        context = self._engine.create_execution_context(self._config)
        if context is None:
            raise EngineError(
                f"{self.flavour.name} could not prepare the plan",
                got=self._messages.take() or "no reason given",
                fix="close other programs that use the GPU, or use smaller tiles",
            )
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                least, _, most = self.port(name).shapes
                raise EngineError(
                    f"tiles of this shape are outside of the plan's profile: {name} {shape}",
                    wanted=f"from {least} to {most}",
                    fix="build a plan for this field with acq-isl build --field, or use smaller tiles",
                )
        context.infer_shapes()
        outputs = {p.name: tuple(context.get_tensor_shape(p.name)) for p in self.ports if not p.is_input}
        tiles, _, height, width, _ = shapes["stack"]
        wanted = (tiles, self._labels, height, width)
        if any(shape != wanted for shape in outputs.values()):
            raise PlanRefused(
                "the plan answers with other shapes than its model's manifest says",
                wanted=f"{wanted} for tiles of {shapes['stack']}",
                got=", ".join(f"{name} {shape}" for name, shape in outputs.items()),
                fix="export the model again with this version of acq-isl",
            )
        return context, outputs, int(context.update_device_memory_size_for_shapes())

    def keep_kernels(self) -> None:
        """Write down the kernels that were compiled so far."""
        if self._cache is not None and self._kernels is not None:
            serialized = self._cache.serialize()
            if serialized is not None:
                self._kernels.save(bytes(serialized))

    def errors(self) -> str:
        """What TensorRT complained about since the last time it was asked."""
        return self._messages.take()

    def close(self) -> None:
        # TensorRT asks that what was made last goes first.
        self._cache = self._config = self._engine = self._runtime = None
