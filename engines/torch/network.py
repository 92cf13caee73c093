"""A model in torch: on a GPU with a CUDA graph for every shape of tiles, or on the processor for tests."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from acq_isl.engines import fp16
from acq_isl.engines.model_file import ModelFile, output_names
from acq_isl.engines.torch.graph import TorchGraph
from acq_isl.errors import EngineError
from acq_isl.stack import Float32Image

_log = logging.getLogger(__name__)

Precision = Literal["fp16", "fp32"]
_SHAPES_KEPT = 4
_WARM_RUNS = 2  # cuDNN chooses its kernels in the first one


class TorchNetwork:
    """A `Network` on a device of torch's. Threads may share it, and take turns.

    ModelError if the model has no such form or operators beyond `TorchGraph`, EngineError without the device.
    """

    def __init__(
        self, model: ModelFile, precision: Precision = "fp16", *, device: str = "cuda", graphs: bool = True
    ) -> None:
        self.outputs = output_names(model.info.manifest)
        make = fp16.mixed if precision == "fp16" else fp16.full
        content = make(model.content, self.outputs)
        self._device = _open(device)
        self._graph: TorchGraph | None = TorchGraph(content, self._device)
        self._captures = graphs and self._device.type == "cuda"
        self._captured: OrderedDict[tuple[int, ...], _Captured] = OrderedDict()
        self._copies_ms = 0.0, 0.0
        self._ended: EngineError | None = None
        self._turn = threading.Lock()
        called = torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"
        self.name = f"torch {torch.__version__} {called} {precision}"

    @property
    def copies_ms(self) -> tuple[float, float]:
        """Milliseconds of all copies to the GPU and from it so far."""
        return self._copies_ms

    def run(self, tiles: NDArray[np.uint8], inv_sd: Float32Image) -> tuple[Float32Image, ...]:
        """Infer a batch of tiles; see `acq_isl.engines.backend.Network`."""
        with self._turn, self._guarded(tiles.shape), torch.inference_mode(), _settings():
            graph = self._graph
            if graph is None or self._ended is not None:
                raise self._ended or EngineError("the engine is closed", fix="load the engine again")
            inputs = {"stack": torch.from_numpy(tiles), "inv_sd": torch.from_numpy(inv_sd)}
            if self._device.type == "cpu":
                found = graph.run(inputs)
                return tuple(found[name].float().numpy() for name in self.outputs)
            with torch.cuda.device(self._device):  # a graph captured under another device would be empty
                return self._run_on_gpu(graph, inputs)

    def _run_on_gpu(self, graph: TorchGraph, inputs: dict[str, Tensor]) -> tuple[Float32Image, ...]:
        shape = tuple(inputs["stack"].shape)
        if shape not in self._captured:
            while len(self._captured) >= _SHAPES_KEPT:
                self._captured.popitem(last=False)
            self._captured[shape] = _Captured(graph, inputs, self._device, captures=self._captures)
        self._captured.move_to_end(shape)
        found, up_ms, down_ms = self._captured[shape].run(inputs)
        self._copies_ms = self._copies_ms[0] + up_ms, self._copies_ms[1] + down_ms
        return tuple(found[name] for name in self.outputs)

    @contextmanager
    def _guarded(self, shape: tuple[int, ...]) -> Iterator[None]:
        """What torch raises becomes an EngineError; after an error of the GPU nothing more is asked of it."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._captured.clear()
            torch.cuda.empty_cache()
            raise EngineError(
                f"the GPU has no memory left for tiles of {shape}",
                got=str(error).partition("\n")[0],
                fix="close other programs that use the GPU, or use smaller tiles",
            ) from error
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            self._ended = EngineError(f"torch failed before: {reason}", fix="load the engine again")
            raise EngineError(
                f"torch failed on tiles of {shape}: {reason}",
                fix="update the NVIDIA driver, or use another engine",
            ) from error

    def close(self) -> None:
        with self._turn:
            self._graph = None
            self._captured.clear()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()


class _Captured:
    """Buffers and CUDA graph of one shape. EngineError if a run leaves outputs as they were."""

    def __init__(
        self, graph: TorchGraph, example: dict[str, Tensor], device: torch.device, *, captures: bool
    ) -> None:
        self._graph = graph
        self._up = {name: torch.empty_like(value, pin_memory=True) for name, value in example.items()}
        self._inputs = {name: value.to(device) for name, value in example.items()}
        make_event: Callable[..., torch.cuda.Event] = torch.cuda.Event
        self._events = [make_event(enable_timing=True) for _ in range(4)]
        self._replayed: torch.cuda.CUDAGraph | None = None
        self._outputs = graph.run(self._inputs)
        if captures:
            self._capture()
        self._down = {
            name: torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            for name, value in self._outputs.items()
        }

    def _capture(self) -> None:
        """Replay a graph from now on, once it was seen to write all outputs; warns if there can be none."""
        make_stream: Callable[[], torch.cuda.Stream] = torch.cuda.Stream
        beside = make_stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_RUNS):
                self._graph.run(self._inputs)
        torch.cuda.current_stream().wait_stream(beside)
        captured = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(captured, capture_error_mode="thread_local"):
                outputs = self._graph.run(self._inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _log.warning("no CUDA graph, kernels are launched one by one: %s", str(error).partition("\n")[0])
            return
        for values in outputs.values():
            values.fill_(torch.nan)
        captured.replay()
        for name, values in outputs.items():
            if bool(values.isnan().all()):
                raise EngineError(
                    f"the captured CUDA graph does not write {name}", fix="update torch and the NVIDIA driver"
                )
        self._replayed, self._outputs = captured, outputs

    def run(self, inputs: dict[str, Tensor]) -> tuple[dict[str, Float32Image], float, float]:
        """Outputs, and milliseconds up and down."""
        begun, up, computed, down = self._events
        for name, value in inputs.items():
            self._up[name].copy_(value)
        begun.record()
        for name, value in self._up.items():
            self._inputs[name].copy_(value, non_blocking=True)
        up.record()
        if self._replayed is None:
            self._outputs = self._graph.run(self._inputs)
        else:
            self._replayed.replay()
        computed.record()
        for name, value in self._outputs.items():
            self._down[name].copy_(value, non_blocking=True)
        down.record()
        down.synchronize()
        found = {name: value.float().numpy().copy() for name, value in self._down.items()}
        return found, begun.elapsed_time(up), computed.elapsed_time(down)


def _open(device: str) -> torch.device:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EngineError(
            "torch sees no GPU",
            wanted="an NVIDIA GPU with its driver, and torch built for it",
            got=f"torch {torch.__version__}, built for {torch.version.cuda or 'the processor only'}",
            fix="install torch for CUDA (https://pytorch.org/get-started), or update the NVIDIA driver",
        )
    return torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)


@contextmanager
def _settings() -> Iterator[None]:
    """Kernels are chosen by timing, and fp32 is fp32: TF32 keeps 10 bits of it."""
    cudnn = torch.backends.cudnn
    flags = cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False)
    with flags if torch.cuda.is_available() else nullcontext():
        yield
