"""A plan that the runtime has taken: its inputs, outputs and profile, and contexts to run it in."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from acq_isl.engines.model_file import output_names
from acq_isl.engines.sealed_file import SealedFile
from acq_isl.engines.tensorrt.api import Flavour, Messages
from acq_isl.engines.tensorrt.cuda import OutOfDeviceMemory
from acq_isl.errors import EngineError
from acq_isl.manifest import Manifest

_log = logging.getLogger(__name__)

Shape = tuple[int, ...]

_NO_MEMORY = ("out of memory", "outofmemory", "could not be allocated")  # in TensorRT's words


def tells_of_memory(message: str) -> bool:
    """Whether the GPU's memory is what TensorRT lacked."""
    return any(words in message.lower() for words in _NO_MEMORY)


class PlanRefused(EngineError):
    """The runtime does not take this plan: another version, another GPU, or damaged. Build it again."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a plan."""

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    shapes: tuple[Shape, ...] = ()
    """Smallest, optimal and largest of an input; empty for outputs."""


class Program:
    """A plan the runtime has taken, whose inputs and outputs are the manifest's.

    The plan is trusted: its hash was checked. Kernels compiled here are kept in the runtime cache. Raises
    PlanRefused if the runtime does not take it or it is another model's, EngineError if it cannot start.
    """

    def __init__(
        self, flavour: Flavour, plan: bytes, manifest: Manifest, runtime_cache: SealedFile | None = None
    ) -> None:
        self.flavour, self._cache_file = flavour, runtime_cache
        self._manifest = manifest
        self.outputs = output_names(manifest)
        """Outputs in the order in which they are handed out."""
        self._messages = Messages(flavour)
        self._runtime: Any = self._start_runtime()
        self._engine: Any = self._load(plan)
        self.ports = self._read_ports()
        self._check_ports()
        self._cache: Any = None
        self.kept_kernels = False
        """Whether kernels that were compiled before are used."""
        self._config: Any = self._configure()

    def _start_runtime(self) -> Any:
        try:
            return self.flavour.trt.Runtime(self._messages.logger)
        except TypeError as error:  # how pybind11 says that the C++ side made no object
            raise EngineError(
                f"{self.flavour.name} {self.flavour.version} cannot start: {self._messages.take() or error}",
                wanted="an NVIDIA GPU with a driver for its CUDA version",
                fix="update the NVIDIA driver, or predict on the processor with onnxruntime",
            ) from error

    def _load(self, plan: bytes) -> Any:
        trt, runtime = self.flavour.trt, self._runtime
        if self.flavour.checks_plans:
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

    def _check_ports(self) -> None:
        fp16, fp32 = np.dtype(np.float16), np.dtype(np.float32)
        wanted: dict[str, tuple[bool, tuple[np.dtype[Any], ...]]]
        wanted = {"stack": (True, (np.dtype(np.uint8),)), "inv_sd": (True, (fp32,))}
        wanted |= {name: (False, (fp16, fp32)) for name in self.outputs}
        fits = {port.name for port in self.ports} == wanted.keys() and all(
            port.is_input == wanted[port.name][0] and port.dtype in wanted[port.name][1]
            for port in self.ports
        )
        planes = self.port("stack").shapes[0][1] if fits else None
        if planes != self._manifest.planes:
            raise PlanRefused(
                "the plan is of another model",
                wanted=f"stack of {self._manifest.planes} planes, inv_sd; {', '.join(self.outputs)} out",
                got=", ".join(f"{p.name} {p.dtype} {p.shapes[0] if p.shapes else ''}" for p in self.ports),
                fix="build it again with acq-isl build",
            )

    def _configure(self) -> Any:
        trt = self.flavour.trt
        config = self._engine.create_runtime_config()
        # We lend the memory for intermediate results, so that running out of it is ours to handle.
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.flavour.native_graphs:
            graphs = trt.CudaGraphStrategy
            config.cuda_graph_strategy = (
                graphs.WHOLE_GRAPH_CAPTURE if self.flavour.graphs else graphs.DISABLED
            )
            # Kernels for the very shape are compiled at warm-up, not while stacks are waiting.
            strategies = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        if self.flavour.has_runtime_cache:
            self._cache = config.create_runtime_cache()
            content = self._cache_file.load() if self._cache_file else None
            self.kept_kernels = content is not None and bool(self._cache.deserialize(content))
            if content is not None and not self.kept_kernels:
                _log.warning("kept kernels do not fit any more, they will be compiled again")
            config.set_runtime_cache(self._cache)
        return config

    @property
    def specialises_early(self) -> bool:
        """Whether kernels for a shape are compiled before its graph is captured, which would go stale."""
        if not self.flavour.native_graphs:
            return True
        strategies = self.flavour.trt.DynamicShapesKernelSpecializationStrategy
        found: bool = self._config.dynamic_shapes_kernel_specialization_strategy == strategies.EAGER
        return found

    def layers(self) -> str:
        """What TensorRT tells of every layer as built, types included, as JSON; empty if it tells nothing."""
        inspector = self._engine.create_engine_inspector()
        kind = self.flavour.trt.LayerInformationFormat.JSON
        return str(inspector.get_engine_information(kind) or "")

    def port(self, name: str) -> Port:
        return next(port for port in self.ports if port.name == name)

    def context(self, shapes: dict[str, Shape]) -> tuple[Any, dict[str, Shape], int]:
        """TensorRT's context to run inputs of these shapes, the outputs' shapes, and bytes of scratch memory.

        Raises OutOfDeviceMemory where smaller tiles may fit, EngineError for shapes outside of the profile.
        """
        context = self._engine.create_execution_context(self._config)
        if context is None:
            raise self.failure(
                "prepare the plan", "close other programs that use the GPU, or use smaller tiles"
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
        return context, outputs, int(context.update_device_memory_size_for_shapes())

    def save_runtime_cache(self) -> None:
        """Keep the kernels that were compiled so far."""
        if self._cache is not None and self._cache_file is not None:
            serialized = self._cache.serialize()
            if serialized is not None:
                self._cache_file.save(bytes(serialized))

    def failure(self, what: str, fix: str) -> EngineError:
        """What TensorRT complained about since the last time; `OutOfDeviceMemory` if it was memory."""
        reason = self._messages.take() or "no reason given"
        kind = OutOfDeviceMemory if tells_of_memory(reason) else EngineError
        return kind(f"{self.flavour.name} could not {what}", got=reason, fix=fix)

    def close(self) -> None:
        # TensorRT asks that what was made last goes first.
        self._cache = self._config = self._engine = self._runtime = None
