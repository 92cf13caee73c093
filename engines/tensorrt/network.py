"""A plan on the GPU as an `AsyncNetwork`: batches at once, shapes kept ready, memory that may run out."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.tensorrt.context import ExecutionContext, Streams
from acq_isl.engines.tensorrt.cuda import Device, OutOfDeviceMemory
from acq_isl.engines.tensorrt.fp16_values import to_float32
from acq_isl.engines.tensorrt.program import Program, Shape
from acq_isl.errors import EngineError
from acq_isl.stack import Float32Image

_log = logging.getLogger(__name__)

CONTEXTS = 2  # a shape; while one batch is computed, the next is on its way up and the last on its way down
_SHAPES_KEPT = 4
_WAIT_S = 60.0


@dataclass(slots=True, eq=False)
class _Pool:
    """Contexts of one shape, which share one piece of scratch memory, since computation is one queue."""

    scratch: int = 0
    contexts: list[ExecutionContext] = field(default_factory=list)
    idle: list[ExecutionContext] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class GpuTimes:
    """Milliseconds on the GPU, summed over all batches so far."""

    batches: int = 0
    upload_ms: float = 0.0
    compute_ms: float = 0.0
    download_ms: float = 0.0


class TensorRTNetwork:
    """A plan on a GPU. Threads may share it. Device and program are owned: closed with the network."""

    def __init__(self, device: Device, program: Program, name: str, *, timeout_s: float = _WAIT_S) -> None:
        self._device, self._program, self._timeout_s = device, program, timeout_s
        self.name, self.outputs = name, program.outputs
        self._streams = Streams.open(device)
        self._pools: OrderedDict[Shape, _Pool] = OrderedDict()
        self._changed = threading.Condition()  # guards the pools and the queues of the GPU
        self.times = GpuTimes()
        """Where the time on the GPU went."""
        self._ended: EngineError | None = None  # why nothing more can be run

    @property
    def copies_ms(self) -> tuple[float, float]:
        return self.times.upload_ms, self.times.download_ms

    @property
    def kept_kernels(self) -> bool:
        """See `Program.kept_kernels`."""
        return self._program.kept_kernels

    @property
    def specialises_early(self) -> bool:
        """See `Program.specialises_early`."""
        return self._program.specialises_early

    def run(self, tiles: NDArray[np.uint8], inv_sd: Float32Image) -> tuple[Float32Image, ...]:
        """Infer a batch of tiles; see `acq_isl.engines.backend.Network`."""
        request = GpuRequest(self, self._wait_for_context(tiles.shape))
        np.copyto(request.tiles, tiles)
        request.start(inv_sd)
        return request.result()

    def request(self, shape: Shape, *, wait: bool = True) -> GpuRequest | None:
        """See `AsyncNetwork`; waits only if `CONTEXTS` batches are at work. OutOfDeviceMemory if not even one
        fits.
        """
        context = self._wait_for_context(shape) if wait else self._idle_context(shape)
        return None if context is None else GpuRequest(self, context)

    def start(self, context: ExecutionContext, inv_sd: Float32Image) -> None:
        """Queue what was written to a context. If that fails, the context is not the caller's any more."""
        try:
            context.host["inv_sd"][:] = inv_sd
            with self._changed:
                self._device.make_current()
                context.start()
        except BaseException as error:
            if isinstance(error, EngineError):
                self._fail(error)
            self.give_back(context)
            raise

    def finish(self, context: ExecutionContext) -> tuple[Float32Image, ...]:
        """Wait for a context, copy its outputs as float32 and free it for the next batch."""
        try:
            self._device.make_current()
            took_ms = context.finish(self._timeout_s)
            values = [context.host[name] for name in self.outputs]
            outputs = tuple(to_float32(v) if v.dtype == np.float16 else v.astype(np.float32) for v in values)
        except EngineError as error:
            self._fail(error)
            raise
        finally:
            self.give_back(context)
        with self._changed:
            self.times = GpuTimes(*map(sum, zip(astuple(self.times), (1, *took_ms), strict=True)))
        return outputs

    def _fail(self, error: EngineError) -> None:
        """Run nothing more: after most errors of a GPU, every later call fails as well."""
        with self._changed:
            self._ended = self._ended or EngineError(
                f"the GPU failed before: {error.what}", fix="load the engine again"
            )
            self._changed.notify_all()

    def warm_up(self, shape: Shape) -> None:
        """Make ready for a shape of tiles, (tile, z, h, w, 2), and keep the kernels compiled for it."""
        self.give_back(self._wait_for_context(shape))
        self._program.save_runtime_cache()

    def _idle_context(self, shape: Shape) -> ExecutionContext | None:
        """One that is ready and free, if there is one: nothing is made, and nobody waited for."""
        with self._changed:
            if self._ended is not None:
                raise self._ended
            pool = self._pools.get(shape)
            return pool.idle.pop() if pool is not None and pool.idle else None

    def _wait_for_context(self, shape: Shape) -> ExecutionContext:
        deadline_s = time.monotonic() + self._timeout_s
        with self._changed:
            while True:
                if self._ended is not None:
                    raise self._ended
                self._device.make_current()
                if shape not in self._pools:
                    self._make_room(_SHAPES_KEPT - 1)
                    self._pools[shape] = self._new_pool(shape)
                self._pools.move_to_end(shape)
                if self._pools[shape].idle:
                    return self._pools[shape].idle.pop()
                if not self._changed.wait(deadline_s - time.monotonic()):
                    raise EngineError(
                        f"no place in the GPU's queue within {self._timeout_s:g} s",
                        fix="send stacks more slowly; if the GPU is idle, restart the engine",
                    )

    def give_back(self, context: ExecutionContext) -> None:
        """Take back a context that has nothing at work."""
        with self._changed:
            for pool in self._pools.values():
                if context in pool.contexts:
                    pool.idle.append(context)
            self._changed.notify_all()

    def _new_pool(self, shape: Shape) -> _Pool:
        try:
            return self._filled(_Pool(), shape)
        except OutOfDeviceMemory:
            self._make_room(0)
            return self._filled(_Pool(), shape)

    def _filled(self, pool: _Pool, shape: Shape) -> _Pool:
        try:
            for _ in range(CONTEXTS):
                pool.contexts.append(ExecutionContext(self._device, self._program, self._streams, shape))
            pool.scratch = self._device.allocate(max(context.scratch_bytes for context in pool.contexts))
            for context in pool.contexts:
                context.prepare(pool.scratch)
        except BaseException:
            self._free(pool)
            raise
        pool.idle.extend(pool.contexts)
        return pool

    def _make_room(self, keep: int) -> None:
        """Free the pools that were not used for longest, as far as nothing of theirs is at work."""
        for shape, pool in tuple(self._pools.items()):
            if len(self._pools) > keep and len(pool.idle) == len(pool.contexts):
                self._free(self._pools.pop(shape))

    def _free(self, pool: _Pool) -> None:
        with ExitStack() as freeing:
            if pool.scratch:
                freeing.callback(self._device.free, pool.scratch)
            for context in pool.contexts:
                freeing.callback(context.close)
        pool.contexts.clear()
        pool.idle.clear()
        pool.scratch = 0

    def close(self) -> None:
        """Wait for what is at work, keep compiled kernels, free the GPU."""
        deadline_s = time.monotonic() + self._timeout_s
        with self._changed:
            if self._device.closed:
                return
            self._ended = self._ended or EngineError("the engine is closed", fix="load the engine again")
            self._changed.notify_all()
            # Even after a failure: memory must not be freed under a thread that writes to it or reads it.
            while any(len(pool.idle) < len(pool.contexts) for pool in self._pools.values()):
                if not self._changed.wait(deadline_s - time.monotonic()):
                    _log.warning("closing the engine with a batch still at work")
                    break
            self._device.make_current()
            with ExitStack() as freeing:  # in reverse, and each even if another fails
                freeing.callback(self._device.close)
                freeing.callback(self._program.close)
                for pool in self._pools.values():
                    freeing.callback(self._free, pool)
                self._pools.clear()
                self._program.save_runtime_cache()


class GpuRequest:
    """A context that is the caller's until it was released, or started and its result fetched."""

    def __init__(self, network: TensorRTNetwork, context: ExecutionContext) -> None:
        self._network, self._context = network, context
        self.tiles: NDArray[np.uint8] = context.host["stack"]  # page-locked, so it goes up as it is
        self.ended_s = 0.0

    def start(self, inv_sd: Float32Image) -> None:
        self._network.start(self._context, inv_sd)

    def result(self) -> tuple[Float32Image, ...]:
        outputs = self._network.finish(self._context)
        self.ended_s = time.perf_counter()
        return outputs

    def release(self) -> None:
        self._network.give_back(self._context)
