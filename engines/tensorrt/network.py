"""A plan on the GPU as a `Network`: batches in flight, shapes kept ready, memory that may run out."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.tensorrt.cuda import Device, OutOfDeviceMemory
from acq_isl.engines.tensorrt.program import Port, Program, Shape
from acq_isl.errors import EngineError
from acq_isl.stack import Float32Image

_log = logging.getLogger(__name__)
_FIRST_RUN_S = 120.0  # TensorRT for RTX compiles its kernels in the first run


@dataclass(frozen=True, slots=True)
class Streams:
    """The three queues: copies up, computation, copies down."""

    up: Any
    compute: Any
    down: Any

    @classmethod
    def of(cls, device: Device) -> Streams:
        return cls(device.stream(), device.stream(), device.stream())


class Lane:
    """What one batch of tiles in flight needs: context, buffers on both sides, events, graph.

    Used by one caller at a time, start to end; `Streams` are shared, so `start` needs the caller's lock.

    Parameters
    ----------
    device : Device
    program : Program
    streams : Streams
    shape : tuple of int
        Of the stack input, (tile, z, h, w, 2).
    """

    def __init__(self, device: Device, program: Program, streams: Streams, shape: Shape) -> None:
        self._device, self._program, self._streams = device, program, streams
        self._address: dict[str, int] = {}
        self._graphs: list[Any] = []
        self._freeing = ExitStack()
        self.host: dict[str, NDArray[Any]] = {}
        shapes = {"stack": shape, "inv_sd": shape[:1]}
        self._context, outputs, self.scratch_bytes = program.context(shapes)
        with ExitStack() as unwinding:
            unwinding.callback(self.close)
            for port in program.ports:
                self._add_buffer(port, (shapes | outputs)[port.name])
            self._events = [self._event() for _ in range(4)]
            unwinding.pop_all()

    def _event(self) -> Any:
        event = self._device.event()
        self._freeing.callback(self._device.free_event, event)
        return event

    def _add_buffer(self, port: Port, shape: Shape) -> None:
        nbytes = prod(shape) * port.dtype.itemsize
        memory = self._device.pinned(nbytes)
        self._freeing.callback(self._device.free_pinned, memory)
        memory[:] = 0
        self.host[port.name] = memory[:nbytes].view(port.dtype).reshape(shape)
        self._address[port.name] = address = self._device.allocate(nbytes)
        self._freeing.callback(self._device.free, address)
        if not self._context.set_tensor_address(port.name, address):
            raise self._failed(f"take the address of {port.name}")

    def _failed(self, what: str) -> EngineError:
        fix = "load the engine again; if it stays, build the plan again with acq-isl build"
        return self._program.failure(what, fix)

    def prepare(self, scratch: int) -> None:
        """Lend scratch memory, run once, and capture the graph, so that stacks meet no first time."""
        if self.scratch_bytes:
            self._context.set_device_memory(scratch, self.scratch_bytes)
        self.host["inv_sd"][:] = 1
        self.start(self.host["stack"])
        self.finish(_FIRST_RUN_S)
        if self._program.flavour.native_graphs:
            return
        try:
            with self._device.capture(self._streams.compute, self._graphs):
                self._execute()
        except EngineError as error:
            _log.warning("no CUDA graph for this plan, its kernels are launched one by one: %s", error)
        else:
            self.start(self.host["stack"])  # the first launch brings the graph to the GPU
            self.finish(_FIRST_RUN_S)

    def start(self, stack: NDArray[np.uint8]) -> None:
        """Queue one run; ``stack`` and ``host["inv_sd"]`` must stay as they are until `finish`."""
        device, streams, events = self._device, self._streams, self._events
        device.record(events[0], streams.up)
        device.copy_up(self._address["stack"], stack, streams.up)
        device.copy_up(self._address["inv_sd"], self.host["inv_sd"], streams.up)
        device.record(events[1], streams.up)
        device.hold(streams.compute, events[1])
        if self._graphs:
            device.launch(self._graphs[0], streams.compute)
        else:
            self._execute()
        device.record(events[2], streams.compute)
        device.hold(streams.down, events[2])
        for port in self._program.ports:
            if not port.is_input:
                device.copy_down(self.host[port.name], self._address[port.name], streams.down)
        device.record(events[3], streams.down)

    def _execute(self) -> None:
        if not self._context.execute_async_v3(int(self._streams.compute)):
            raise self._failed("run the plan")

    def finish(self, timeout_s: float) -> tuple[float, float, float]:
        """Wait for the run; milliseconds of upload, computation (waiting for its turn included), download."""
        self._device.wait(self._events[3], timeout_s)
        first, second, third, last = self._events
        return (
            self._device.elapsed_ms(first, second),
            self._device.elapsed_ms(second, third),
            self._device.elapsed_ms(third, last),
        )

    def close(self) -> None:
        """Free everything, as far as the GPU lets it; nothing of it may be in flight."""
        self.host.clear()
        with self._freeing:
            while self._graphs:
                self._freeing.callback(self._device.free_graph, self._graphs.pop())
            self._freeing.callback(self._forget)

    def _forget(self) -> None:
        self._context = None


_VALUES_IN_CACHE = 1 << 17
_MANTISSA_SHIFT = 13
# Sign, exponent and mantissa of a half, where a float has them; the bits between are copies of the sign.
_KEPT = np.uint32(0x8FFFE000).view(np.int32)
_REBIAS = np.float32(2.0**112)  # from the float's zero of exponents, 127, to the half's, 15
_INFINITE = 65536.0  # what exponents of 31 come out as, which stand for infinity and NaN


def widened(values: NDArray[np.float16]) -> Float32Image:
    """A copy as float32, the same numbers exactly; infinities and NaN stay what they are.

    Parameters
    ----------
    values : float16 array
        C-contiguous.
    """
    out = np.empty(values.shape, np.float32)
    halves, floats = values.reshape(-1), out.reshape(-1)
    for first in range(0, halves.size, _VALUES_IN_CACHE):
        source = halves[first : first + _VALUES_IN_CACHE]
        target = floats[first : first + _VALUES_IN_CACHE]
        bits = target.view(np.int32)
        bits[:] = source.view(np.int16)
        bits <<= _MANTISSA_SHIFT
        bits &= _KEPT
        target *= _REBIAS  # exact: a power of two, and what was below normal is not any more
        if target.max() >= _INFINITE or target.min() <= -_INFINITE:
            target[:] = source
    return out


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


class GpuPending:
    """A batch in flight. Call `result` once; until then what went up must stay as it is."""

    def __init__(self, network: TensorRTNetwork, lane: Lane, tiles: NDArray[np.uint8]) -> None:
        self._network, self._lane, self._tiles = network, lane, tiles
        self.ended_s = 0.0

    def result(self) -> tuple[Float32Image, ...]:
        """The network's `TensorRTNetwork.outputs`, float32 each; raises `EngineError`."""
        answers = self._network.finish(self._lane)
        self.ended_s = time.perf_counter()
        return answers


class GpuSlot:
    """A lane that is the caller's until it was dropped, or started and its result fetched."""

    def __init__(self, network: TensorRTNetwork, lane: Lane) -> None:
        self._network, self._lane = network, lane

    @property
    def tiles(self) -> NDArray[np.uint8]:
        """Page-locked memory, (tile, z, h, w, 2) uint8: what is written here goes up as it is."""
        memory: NDArray[np.uint8] = self._lane.host["stack"]
        return memory

    def start(self, inv_sd: Float32Image, source: NDArray[np.uint8] | None = None) -> GpuPending:
        """Queue what was written to `tiles`, or ``source``: registered memory of the same shape."""
        tiles = self.tiles if source is None else source
        self._network.start(self._lane, tiles, inv_sd)
        return GpuPending(self._network, self._lane, tiles)

    def drop(self) -> None:
        self._network.give_back(self._lane)
