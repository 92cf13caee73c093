"""The GPU through ``cuda.bindings.driver``: memory, streams, events, graphs. Needs the driver only."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from acq_isl.errors import EngineError

_log = logging.getLogger(__name__)
_OLDEST_DRIVER = 12_000  # what the wheels of TensorRT for CUDA 12 need, as the driver counts versions
_SPIN_S = 0.002  # polls this long before it sleeps between polls: live predictions take milliseconds
_PAUSE_S = 0.0002


class OutOfDeviceMemory(EngineError):
    """The GPU has no room for what was asked; smaller tiles may fit."""


@dataclass(frozen=True, slots=True)
class GpuInfo:
    """A GPU, as plans are keyed by it."""

    name: str
    """Such as ``"NVIDIA GeForce RTX 4090"``."""
    capability: str
    """In the form of build targets, such as ``"sm89"``."""
    memory_bytes: int
    driver: int
    """Newest CUDA version the driver can run, 1000 * major + 10 * minor."""


class Device:
    """One GPU by its number, opened. Every thread that uses it calls `make_current` first.

    ``driver`` is ``cuda.bindings.driver`` or something with its functions. Raises EngineError without
    cuda-bindings, without a driver or with one too old, and where there is no such GPU.
    """

    def __init__(self, ordinal: int = 0, *, driver: Any = None) -> None:
        self._cu: Any = load_driver() if driver is None else driver
        cu = self._cu
        self._context: Any = None
        self._freeing = ExitStack()
        self._do("start the NVIDIA driver", cu.cuInit, 0)
        version = int(self._do("read the driver's version", cu.cuDriverGetVersion))
        if version < _OLDEST_DRIVER:
            raise EngineError(
                "the NVIDIA driver is too old",
                wanted=f"CUDA {_OLDEST_DRIVER // 1000}.0 or newer",
                got=f"a driver for CUDA {version // 1000}.{version % 1000 // 10}",
                fix="update the NVIDIA display driver; the CUDA toolkit is not needed",
            )
        count = int(self._do("count GPUs", cu.cuDeviceGetCount))
        if not 0 <= ordinal < count:
            raise EngineError(
                f"there is no GPU {ordinal}",
                wanted="a number below the count of NVIDIA GPUs",
                got=f"{count} GPUs",
                fix="choose another GPU; nvidia-smi lists those that the driver sees",
            )
        self._device = self._do("open the GPU", cu.cuDeviceGet, ordinal)
        self._context = self._do("open the GPU", cu.cuDevicePrimaryCtxRetain, self._device)
        self._freeing.callback(self._do, "close the GPU", cu.cuDevicePrimaryCtxRelease, self._device)
        self.make_current()
        self.info = self._describe(version)

    def _describe(self, version: int) -> GpuInfo:
        cu, kinds = self._cu, self._cu.CUdevice_attribute
        name = self._do("read the GPU's name", cu.cuDeviceGetName, 256, self._device)
        major, minor = (
            int(self._do("read the GPU's capability", cu.cuDeviceGetAttribute, kind, self._device))
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        memory = int(self._do("read the GPU's memory", cu.cuDeviceTotalMem, self._device))
        text = bytes(name).split(b"\0")[0].decode("ascii", "replace")
        return GpuInfo(text, f"sm{major}{minor}", memory, version)

    def _call(self, what: str, function: Callable[..., Any], *args: Any) -> tuple[Any, ...]:
        """Call the driver: its error code, and its results."""
        try:
            returned: tuple[Any, ...] = function(*args)
        except RuntimeError as missing:  # how cuda-bindings says that library or function is not there
            _log.debug("%s", missing)
            raise EngineError(
                f"cannot {what}: no NVIDIA driver was found, or one that lacks what is needed",
                wanted="an NVIDIA GPU with its display driver",
                fix="install or update the NVIDIA driver, or predict on the processor with onnxruntime",
            ) from missing
        return returned

    def _do(self, what: str, function: Callable[..., Any], *args: Any) -> Any:
        """Call the driver; its one result, or None."""
        error, *results = self._call(what, function, *args)
        self._check(error, what)
        return results[0] if results else None

    def _check(self, error: Any, what: str) -> None:
        codes = self._cu.CUresult
        if error == codes.CUDA_ERROR_OUT_OF_MEMORY:
            raise OutOfDeviceMemory(
                f"no GPU memory left to {what}",
                fix="use smaller tiles, or close other programs that use the GPU",
            )
        if error != codes.CUDA_SUCCESS:
            raise EngineError(
                f"the GPU could not {what}",
                got=error.name,
                fix="start the engine again; if it stays, restart the machine or update the NVIDIA driver",
            )

    @property
    def closed(self) -> bool:
        return self._context is None

    def make_current(self) -> None:
        """Make the calling thread use this GPU; cheap."""
        if self._context is None:
            raise EngineError("the GPU is closed", fix="load the engine again")
        self._do("select the GPU", self._cu.cuCtxSetCurrent, self._context)

    def stream(self) -> Any:
        """A queue of work that runs beside all others."""
        flags = int(self._cu.CUstream_flags.CU_STREAM_NON_BLOCKING)
        stream = self._do("make a stream", self._cu.cuStreamCreate, flags)
        self._freeing.callback(self._do, "free a stream", self._cu.cuStreamDestroy, stream)
        return stream

    def event(self) -> Any:
        """A mark that one stream sets and others wait for; it remembers when it was passed."""
        return self._do("make an event", self._cu.cuEventCreate, 0)

    def free_event(self, event: Any) -> None:
        self._do("free an event", self._cu.cuEventDestroy, event)

    def allocate(self, nbytes: int) -> int:
        """Device memory; its address. Raises `OutOfDeviceMemory`."""
        what = f"reserve {nbytes / 2**20:.0f} MiB on the GPU"
        return int(self._do(what, self._cu.cuMemAlloc, max(nbytes, 1)))

    def free(self, address: int) -> None:
        self._do("free GPU memory", self._cu.cuMemFree, address)

    def memory_bytes(self) -> tuple[int, int]:
        """What is free, and all there is."""
        error, *found = self._call("read the GPU's memory", self._cu.cuMemGetInfo)
        self._check(error, "read its memory")
        return int(found[0]), int(found[1])

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Page-locked host memory, (nbytes,) uint8; give it back with `free_pinned`."""
        what = f"page-lock {nbytes / 2**20:.0f} MiB of host memory"
        address = int(self._do(what, self._cu.cuMemHostAlloc, max(nbytes, 1), 0))
        return np.ctypeslib.as_array((ctypes.c_uint8 * max(nbytes, 1)).from_address(address))

    def free_pinned(self, memory: NDArray[np.uint8]) -> None:
        self._do("free host memory", self._cu.cuMemFreeHost, memory.ctypes.data)

    def copy_up(self, target: int, source: NDArray[Any], stream: Any) -> None:
        """Queue a copy from host to device; ``source`` stays untouched until the stream has passed it."""
        address, size = source.ctypes.data, source.nbytes
        self._do("copy to the GPU", self._cu.cuMemcpyHtoDAsync, target, address, size, stream)

    def copy_down(self, target: NDArray[Any], source: int, stream: Any) -> None:
        """Queue a copy from device to host."""
        address, size = target.ctypes.data, target.nbytes
        self._do("copy from the GPU", self._cu.cuMemcpyDtoHAsync, address, source, size, stream)

    def copy_within(self, target: int, source: int, nbytes: int, stream: Any) -> None:
        """Queue a copy from device to device."""
        self._do("copy on the GPU", self._cu.cuMemcpyDtoDAsync, target, source, nbytes, stream)

    @property
    def count(self) -> int:
        """GPUs in this machine."""
        return int(self._do("count GPUs", self._cu.cuDeviceGetCount))

    def record(self, event: Any, stream: Any) -> None:
        self._do("set an event", self._cu.cuEventRecord, event, stream)

    def hold(self, stream: Any, event: Any) -> None:
        """Have a stream wait for an event, on the GPU."""
        self._do("wait for an event", self._cu.cuStreamWaitEvent, stream, event, 0)

    def passed(self, event: Any) -> bool:
        """Whether the work before an event is done."""
        error = self._call("ask the GPU", self._cu.cuEventQuery, event)[0]
        if error == self._cu.CUresult.CUDA_ERROR_NOT_READY:
            return False
        self._check(error, "finish its work")
        return True

    def wait(self, event: Any, timeout_s: float) -> None:
        """Wait until the work before an event is done; EngineError after ``timeout_s``."""
        started_s = time.monotonic()
        while not self.passed(event):
            waited_s = time.monotonic() - started_s
            if waited_s > timeout_s:
                raise EngineError(
                    f"the GPU did not finish within {timeout_s:g} s",
                    fix="close other programs that use the GPU; if it stays, restart the engine",
                )
            time.sleep(0 if waited_s < _SPIN_S else _PAUSE_S)

    def elapsed_ms(self, first: Any, last: Any) -> float:
        """Time on the GPU between two events that have passed."""
        return float(self._do("read a time", self._cu.cuEventElapsedTime, first, last))

    @contextmanager
    def capture(self, stream: Any, graphs: list[Any]) -> Iterator[None]:
        """Record what is queued on a stream instead of running it; appends the launchable graph."""
        mode = self._cu.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._do("record a graph", self._cu.cuStreamBeginCapture, stream, mode)
        try:
            yield
        except BaseException:
            self._drop_capture(stream)
            raise
        graph = self._do("record a graph", self._cu.cuStreamEndCapture, stream)
        try:
            graphs.append(self._do("make a graph", self._cu.cuGraphInstantiate, graph, 0))
        finally:
            self._do("free a graph", self._cu.cuGraphDestroy, graph)

    def _drop_capture(self, stream: Any) -> None:
        """Have a stream leave capture mode whatever happened; what was recorded is of no use."""
        try:
            graph = self._do("drop a graph", self._cu.cuStreamEndCapture, stream)
            self._do("free a graph", self._cu.cuGraphDestroy, graph)
        except EngineError as error:  # the driver has dropped it by itself
            _log.debug("%s", error)

    def launch(self, graph: Any, stream: Any) -> None:
        self._do("launch a graph", self._cu.cuGraphLaunch, graph, stream)

    def free_graph(self, graph: Any) -> None:
        self._do("free a graph", self._cu.cuGraphExecDestroy, graph)

    def close(self) -> None:
        """Free streams and let go of the GPU. Buffers, events and graphs are their owners' to free."""
        if self._context is None:
            return
        self.make_current()
        self._context = None
        self._freeing.close()  # in reverse, and each even if another fails

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load_driver() -> Any:
    """``cuda.bindings.driver``; EngineError if cuda-bindings is not installed."""
    try:
        import cuda.bindings.driver
    except ImportError as error:
        raise EngineError(
            f"the GPU cannot be reached: {error}",
            wanted="the package cuda-bindings",
            fix='pip install "acq-isl[rtx]", or "acq-isl[tensorrt]" on a data-centre GPU',
        ) from error
    return cuda.bindings.driver
