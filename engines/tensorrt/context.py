"""One batch on the GPU: copied up, computed, copied down, on three streams, beside other batches."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.tensorrt.cuda import Device
from acq_isl.engines.tensorrt.program import Port, Program, Shape
from acq_isl.errors import EngineError

_log = logging.getLogger(__name__)
_POISON = 0xFF  # in every byte it is a NaN that no computation gives
_FIRST_RUN_S = 120.0  # TensorRT for RTX compiles its kernels in the first run


@dataclass(frozen=True, slots=True)
class Streams:
    """The three queues: copies up, computation, copies down."""

    up: Any
    compute: Any
    down: Any

    @classmethod
    def open(cls, device: Device) -> Streams:
        return cls(device.stream(), device.stream(), device.stream())


class ExecutionContext:
    """TensorRT's execution context for batches of one shape, with buffers on both sides, events and graph.

    Used by one caller at a time, start to end; `Streams` are shared, so `start` needs the caller's lock.
    ``shape`` is that of the stack input, (tile, z, h, w, 2).
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
            raise self._failure(f"take the address of {port.name}")

    def _failure(self, what: str) -> EngineError:
        fix = "load the engine again; if it stays, build the plan again with acq-isl build"
        return self._program.failure(what, fix)

    def prepare(self, scratch: int) -> None:
        """Lend scratch memory, run once, and capture the graph, so that no stack has to wait for it.

        EngineError if a run leaves outputs as they were, as an empty graph does.
        """
        if self.scratch_bytes:
            self._context.set_device_memory(scratch, self.scratch_bytes)
        self.host["inv_sd"][:] = 1
        self.start()
        self.finish(_FIRST_RUN_S)
        if self._program.flavour.graphs and not self._program.flavour.native_graphs:
            try:
                with self._device.capture(self._streams.compute, self._graphs):
                    self._execute()
            except EngineError as error:
                _log.warning("no CUDA graph for this plan, its kernels are launched one by one: %s", error)
        outputs = [port.name for port in self._program.ports if not port.is_input]
        for name in outputs:
            self.host[name].view(np.uint8).fill(_POISON)
            self._device.copy_up(self._address[name], self.host[name], self._streams.up)
        self.start()  # the first launch brings the graph to the GPU
        self.finish(_FIRST_RUN_S)
        for name in outputs:
            values = self.host[name]
            if (values.view(f"u{values.itemsize}") == np.iinfo(f"u{values.itemsize}").max).any():
                raise self._failure(f"write all of {name}")

    def start(self) -> None:
        """Queue one run of what is in ``host``, which must stay as it is until `finish`."""
        device, streams, events = self._device, self._streams, self._events
        device.record(events[0], streams.up)
        for name in ("stack", "inv_sd"):
            device.copy_up(self._address[name], self.host[name], streams.up)
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
            raise self._failure("run the plan")

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
            self._freeing.callback(self._drop_context)

    def _drop_context(self) -> None:
        self._context = None
