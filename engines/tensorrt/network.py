"""A plan on the GPU as a `Network`: batches in flight, shapes kept ready, memory that may run out."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.half import widened
from acq_isl.engines.tensorrt.cuda import Device, OutOfDeviceMemory
from acq_isl.engines.tensorrt.program import Program, Shape
from acq_isl.engines.trt_lane import Lane, Streams
from acq_isl.engines.trt_slot import GpuPending, GpuSlot
from acq_isl.errors import EngineError
from acq_isl.stack import Float32Image

_log = logging.getLogger(__name__)

LANES = 2  # while one batch is computed, the next is on its way up and the last on its way down
_SHAPES_KEPT = 4
_WAIT_S = 60.0


@dataclass(slots=True, eq=False)
class _Group:
    """Lanes of one shape, which take turns on one piece of scratch memory: computation is one queue."""

    scratch: int = 0
    lanes: list[Lane] = field(default_factory=list)
    idle: list[Lane] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class GpuTimes:
    """Milliseconds on the GPU, summed over all batches so far."""

    batches: int = 0
    upload_ms: float = 0.0
    compute_ms: float = 0.0
    download_ms: float = 0.0


class TensorRTNetwork:
    """A plan on a GPU. Threads may share it.

    Parameters
    ----------
    device : Device
        Owned from now on: closed with the network.
    program : Program
        Owned from now on.
    name : str
        Back end, device and precision.
    timeout_s : float
        Longest wait for the GPU.
    """

    def __init__(self, device: Device, program: Program, name: str, *, timeout_s: float = _WAIT_S) -> None:
        self._device, self._program, self._name, self._timeout_s = device, program, name, timeout_s
        self._streams = Streams.of(device)
        self._groups: OrderedDict[Shape, _Group] = OrderedDict()
        self._changed = threading.Condition()  # guards the groups and the queues of the GPU
        self._times = GpuTimes()
        self._ended: EngineError | None = None  # why nothing more can be run

    @property
    def name(self) -> str:
        return self._name

    @property
    def outputs(self) -> tuple[str, ...]:
        """What `run` returns, in this order: mean, spread, and with a gate the distance."""
        return self._program.answers

    @property
    def times(self) -> GpuTimes:
        """Where the time on the GPU went."""
        return self._times

    def run(self, tiles: NDArray[np.uint8], inv_sd: Float32Image) -> tuple[Float32Image, ...]:
        """Infer a batch of tiles; see `acq_isl.engines.predictor.Network`."""
        return self.submit(tiles, inv_sd).result()

    def submit(self, tiles: NDArray[np.uint8], inv_sd: Float32Image) -> GpuPending:
        """Start a batch without waiting for it; waits only if `LANES` batches are in flight already.

        While one batch is computed, the next is on its way up and the last on its way down, so cutting and
        blending tiles between `submit` and `result` costs no time of the GPU.

        Parameters
        ----------
        tiles : (tile, z, h, w, 2) uint8
        inv_sd : (tile,) float32

        Returns
        -------
        GpuPending

        Raises
        ------
        EngineError
            The shape is outside of the plan's profile, or the GPU does not answer.
        OutOfDeviceMemory
            This shape does not fit even alone.
        """
        slot = GpuSlot(self, self._waited_for(tiles.shape))
        if tiles.flags.c_contiguous and self._device.is_registered(tiles):
            return slot.start(inv_sd, tiles)
        np.copyto(slot.tiles, tiles)
        return slot.start(inv_sd)

    def slot(self, shape: Shape, *, wait: bool = True) -> GpuSlot | None:
        """A place for a batch of (tile, z, h, w, 2), to write it to; see `acq_isl.engines.pipeline.Slotted`.

        Raises as `submit`.
        """
        lane = self._waited_for(shape) if wait else self._idle(shape)
        return None if lane is None else GpuSlot(self, lane)

    def start(self, lane: Lane, tiles: NDArray[np.uint8], inv_sd: Float32Image) -> None:
        """Queue a lane; ``tiles`` are page-locked. If that fails, the lane is not the caller's any more."""
        try:
            lane.host["inv_sd"][:] = inv_sd
            with self._changed:
                self._device.make_current()
                lane.start(tiles)
        except BaseException as error:
            if isinstance(error, EngineError):
                self._fail(error)
            self.give_back(lane)
            raise

    def finish(self, lane: Lane) -> tuple[Float32Image, ...]:
        """Wait for a lane, copy its results and free it for the next batch."""
        try:
            self._device.make_current()
            upload_ms, compute_ms, download_ms = lane.finish(self._timeout_s)
            answers = tuple(_full(lane.host[name]) for name in self.outputs)
        except EngineError as error:
            self._fail(error)
            raise
        finally:
            self.give_back(lane)
        with self._changed:
            past = self._times
            self._times = GpuTimes(
                past.batches + 1,
                past.upload_ms + upload_ms,
                past.compute_ms + compute_ms,
                past.download_ms + download_ms,
            )
        return answers

    def _fail(self, error: EngineError) -> None:
        """Run nothing more: after most errors of a GPU, every later call fails as well."""
        with self._changed:
            self._ended = self._ended or EngineError(
                f"the GPU failed before: {error.what}", fix="load the engine again"
            )
            self._changed.notify_all()

    def warm_up(self, shape: Shape) -> None:
        """Make ready for a shape of tiles, (tile, z, h, w, 2), and keep the kernels compiled for it."""
        self.give_back(self._waited_for(shape))
        self._program.keep_kernels()

    def register_host(self, memory: NDArray[np.uint8]) -> bool:
        """Page-lock memory that batches are submitted from, such as a shared ring: no copy on the host then.

        The caller keeps it alive until `unregister_host` or `close`.

        Returns
        -------
        bool
            False, with a warning, if the driver does not do so; batches are then copied as ever.
        """
        self._device.make_current()
        try:
            self._device.register(memory)
        except EngineError as error:
            _log.warning("memory is not page-locked, stacks are copied once more: %s", error)
            return False
        return True

    def unregister_host(self, memory: NDArray[np.uint8]) -> None:
        self._device.make_current()
        self._device.unregister(memory)

    def _idle(self, shape: Shape) -> Lane | None:
        """A lane that is ready and free, if there is one: nothing is made, and nobody waited for."""
        with self._changed:
            if self._ended is not None:
                raise self._ended
            group = self._groups.get(shape)
            return group.idle.pop() if group is not None and group.idle else None

    def _waited_for(self, shape: Shape) -> Lane:
        deadline_s = time.monotonic() + self._timeout_s
        with self._changed:
            while True:
                if self._ended is not None:
                    raise self._ended
                self._device.make_current()
                if shape not in self._groups:
                    self._make_room(_SHAPES_KEPT - 1)
                    self._groups[shape] = self._new_group(shape)
                self._groups.move_to_end(shape)
                if self._groups[shape].idle:
                    return self._groups[shape].idle.pop()
                if not self._changed.wait(deadline_s - time.monotonic()):
                    raise EngineError(
                        f"no place in the GPU's queue within {self._timeout_s:g} s",
                        fix="send stacks more slowly; if the GPU is idle, restart the engine",
                    )

    def give_back(self, lane: Lane) -> None:
        """Take back a lane nothing of which is in flight."""
        with self._changed:
            for group in self._groups.values():
                if lane in group.lanes:
                    group.idle.append(lane)
            self._changed.notify_all()

    def _new_group(self, shape: Shape) -> _Group:
        try:
            return self._filled(_Group(), shape)
        except OutOfDeviceMemory:
            self._make_room(0)
            return self._filled(_Group(), shape)

    def _filled(self, group: _Group, shape: Shape) -> _Group:
        try:
            for _ in range(LANES):
                group.lanes.append(Lane(self._device, self._program, self._streams, shape))
            group.scratch = self._device.allocate(max(lane.scratch_bytes for lane in group.lanes))
            for lane in group.lanes:
                lane.prepare(group.scratch)
        except BaseException:
            self._free(group)
            raise
        group.idle.extend(group.lanes)
        return group

    def _make_room(self, keep: int) -> None:
        """Free the groups that were not used for longest, as far as nothing of theirs is in flight."""
        for shape, group in tuple(self._groups.items()):
            if len(self._groups) > keep and len(group.idle) == len(group.lanes):
                self._free(self._groups.pop(shape))

    def _free(self, group: _Group) -> None:
        with ExitStack() as freeing:
            if group.scratch:
                freeing.callback(self._device.free, group.scratch)
            for lane in group.lanes:
                freeing.callback(lane.close)
        group.lanes.clear()
        group.idle.clear()
        group.scratch = 0

    def close(self) -> None:
        """Wait for what is in flight, keep compiled kernels, free the GPU."""
        deadline_s = time.monotonic() + self._timeout_s
        with self._changed:
            if self._device.closed:
                return
            self._ended = self._ended or EngineError("the engine is closed", fix="load the engine again")
            self._changed.notify_all()
            # Even after a failure: memory must not be freed under a thread that writes to it or reads it.
            while any(len(g.idle) < len(g.lanes) for g in self._groups.values()):
                if not self._changed.wait(deadline_s - time.monotonic()):
                    _log.warning("closing the engine with a batch still in flight")
                    break
            self._device.make_current()
            with ExitStack() as freeing:  # in reverse, and each even if another fails
                freeing.callback(self._device.close)
                freeing.callback(self._program.close)
                for group in self._groups.values():
                    freeing.callback(self._free, group)
                self._groups.clear()
                self._program.keep_kernels()


def _full(values: NDArray[Any]) -> Float32Image:
    """A copy in float32: the lane is given to the next batch."""
    return widened(values) if values.dtype == np.float16 else values.astype(np.float32)
