"""A GPU one can read: the driver functions we call, over host memory, in the worst order they allow.

Streams are queues. Nothing runs when it is queued; whenever somebody asks for an event, a few operations of
streams picked at random are run, later streams first as often as not. So a missing event shows: computation
overtakes its upload, and a download its computation. Memory is real memory: a wrong address, a size too
large, a use after free, pageable memory or a thread without a context is an error, as on a strict GPU.
Fresh memory holds rubbish.
"""

from __future__ import annotations

import ctypes
import enum
import random
import threading
from collections import deque
from types import SimpleNamespace


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_NOT_READY = 600
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_NOT_SUPPORTED = 801
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class CUdevice_attribute(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUstream_flags(enum.IntEnum):
    CU_STREAM_NON_BLOCKING = 1


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1


OK = CUresult.CUDA_SUCCESS
BAD = CUresult.CUDA_ERROR_INVALID_VALUE
UNKNOWN = CUresult.CUDA_ERROR_INVALID_HANDLE


class Fault(Exception):
    """An operation that ran touched memory it must not touch."""


class Driver:
    """The module ``cuda.bindings.driver``, as far as we use it; every function returns a tuple, as there."""

    CUresult, CUdevice_attribute = CUresult, CUdevice_attribute
    CUstream_flags, CUstreamCaptureMode = CUstream_flags, CUstreamCaptureMode

    def __init__(self, *, memory_bytes=1 << 32, name="Readable GPU", seed=0):
        self.memory_bytes, self.name = memory_bytes, name
        self.capability, self.version, self.devices = (8, 9), 12_080, 1
        self.device: dict[int, ctypes.Array] = {}
        self.host: dict[int, ctypes.Array] = {}
        self.streams: dict[int, SimpleNamespace] = {}
        self.events: dict[int, SimpleNamespace] = {}
        self.graphs: dict[int, list] = {}
        self.contexts = 0
        self.broken: CUresult | None = None
        self.stuck = False
        self.copied_up = self.launched = 0
        self._random = random.Random(seed)
        self._handles = iter(range(1000, 1_000_000_000))
        self._lock = threading.RLock()
        self._current = threading.local()

    # -- what a test asks

    def leaks(self) -> dict[str, int]:
        counted = {
            "device memory": len(self.device),
            "host memory": len(self.host),
            "streams": len(self.streams),
            "events": len(self.events),
            "graphs": len(self.graphs),
            "contexts": self.contexts,
        }
        return {what: count for what, count in counted.items() if count}

    def view(self, address: int, nbytes: int) -> memoryview:
        """Device memory that operations may touch; Fault if it is not all of it ours."""
        for base, block in self.device.items():
            if base <= address and address + nbytes <= base + ctypes.sizeof(block):
                return memoryview(block).cast("B")[address - base : address - base + nbytes]
        raise Fault(f"{nbytes} bytes at {address:#x} are no device memory")

    def queue(self, stream: int, operation) -> None:
        """Queue work on a stream, as TensorRT does."""
        with self._lock:
            queue = self.streams[stream]
            (queue.captured if queue.captured is not None else queue.work).append(("run", operation))

    # -- how work gets done

    def _step(self) -> bool:
        ready = [q for q in self.streams.values() if q.work and self._runnable(q.work[0])]
        if not ready or self.stuck:
            return False
        queue = ready[-1] if self._random.random() < 0.5 else self._random.choice(ready)
        kind, what = queue.work.popleft()
        if kind == "run":
            try:
                what()
            except Fault:
                self.broken = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        elif kind == "mark":
            event, count = what
            event.passed = max(event.passed, count)
        return True

    @staticmethod
    def _runnable(entry) -> bool:
        kind, what = entry
        return kind != "hold" or what[0].passed >= what[1]

    def _guarded(self, *handles) -> CUresult:
        if self.broken is not None:
            return self.broken
        if not getattr(self._current, "set", False):
            return CUresult.CUDA_ERROR_INVALID_CONTEXT
        return OK if all(handles) else UNKNOWN

    def _push(self, stream, kind, what) -> tuple:
        with self._lock:
            queue = self.streams.get(int(stream))
            error = self._guarded(queue is not None)
            if error == OK:
                (queue.captured if queue.captured is not None else queue.work).append((kind, what))
            return (error,)

    # -- device and context

    def cuInit(self, Flags):
        return (OK,)

    def cuDriverGetVersion(self):
        return OK, self.version

    def cuDeviceGetCount(self):
        return OK, self.devices

    def cuDeviceGet(self, ordinal):
        return OK, ordinal

    def cuDevicePrimaryCtxRetain(self, dev):
        self.contexts += 1
        return OK, 77

    def cuDevicePrimaryCtxRelease(self, dev):
        self.contexts -= 1
        return (OK,)

    def cuCtxSetCurrent(self, ctx):
        self._current.set = ctx == 77
        return (OK,)

    def cuDeviceGetName(self, length, dev):
        return OK, self.name.encode() + b"\0" * 10

    def cuDeviceGetAttribute(self, attrib, dev):
        kind = CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        return OK, self.capability[attrib == kind]

    def cuDeviceTotalMem(self, dev):
        return OK, self.memory_bytes

    # -- memory

    def cuMemGetInfo(self):
        with self._lock:
            used = sum(ctypes.sizeof(block) for block in self.device.values())
            return self._guarded(), self.memory_bytes - used, self.memory_bytes

    def cuMemAlloc(self, bytesize):
        with self._lock:
            used = sum(ctypes.sizeof(block) for block in self.device.values())
            if self._guarded() != OK:
                return self._guarded(), None
            if used + bytesize > self.memory_bytes:
                return CUresult.CUDA_ERROR_OUT_OF_MEMORY, None
            return OK, self._block(self.device, bytesize)

    def cuMemHostAlloc(self, bytesize, Flags):
        with self._lock:
            return OK, self._block(self.host, bytesize)

    def _block(self, where, nbytes) -> int:
        block = (ctypes.c_uint8 * nbytes)()
        ctypes.memset(block, 0xAB, nbytes)
        where[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def cuMemFree(self, dptr):
        with self._lock:
            while self._step():  # as the real one, which waits for all work
                pass
            return (OK if self.device.pop(int(dptr), None) else BAD,)

    def cuMemFreeHost(self, p):
        return (OK if self.host.pop(int(p), None) else BAD,)

    def _page_locked(self, address, nbytes) -> bool:
        blocks = self.host.items()
        return any(base <= address and address + nbytes <= base + ctypes.sizeof(b) for base, b in blocks)

    def cuMemcpyHtoDAsync(self, dstDevice, srcHost, ByteCount, hStream):
        if not self._page_locked(srcHost, ByteCount):
            return (BAD,)

        def copy():
            self.view(dstDevice, ByteCount)[:] = ctypes.string_at(srcHost, ByteCount)
            self.copied_up += ByteCount

        return self._push(hStream, "run", copy)

    def cuMemcpyDtoHAsync(self, dstHost, srcDevice, ByteCount, hStream):
        if not self._page_locked(dstHost, ByteCount):
            return (BAD,)
        return self._push(
            hStream,
            "run",
            lambda: ctypes.memmove(dstHost, bytes(self.view(srcDevice, ByteCount)), ByteCount),
        )

    def cuMemcpyDtoDAsync(self, dstDevice, srcDevice, ByteCount, hStream):
        def copy():
            self.view(dstDevice, ByteCount)[:] = bytes(self.view(srcDevice, ByteCount))

        return self._push(hStream, "run", copy)

    # -- streams and events

    def cuStreamCreate(self, Flags):
        handle = next(self._handles)
        self.streams[handle] = SimpleNamespace(work=deque(), captured=None)
        return self._guarded(), handle

    def cuStreamDestroy(self, hStream):
        return (OK if self.streams.pop(int(hStream), None) else UNKNOWN,)

    def cuEventCreate(self, Flags):
        handle = next(self._handles)
        self.events[handle] = SimpleNamespace(recorded=0, passed=0)
        return self._guarded(), handle

    def cuEventDestroy(self, hEvent):
        return (OK if self.events.pop(int(hEvent), None) else UNKNOWN,)

    def cuEventRecord(self, hEvent, hStream):
        event = self.events[int(hEvent)]
        event.recorded += 1
        return self._push(hStream, "mark", (event, event.recorded))

    def cuStreamWaitEvent(self, hStream, hEvent, Flags):
        event = self.events[int(hEvent)]
        return self._push(hStream, "hold", (event, event.recorded))

    def cuEventQuery(self, hEvent):
        with self._lock:
            for _ in range(self._random.randint(1, 3)):
                self._step()
            if self._guarded() != OK:
                return (self._guarded(),)
            event = self.events[int(hEvent)]
            return (OK if event.passed >= event.recorded else CUresult.CUDA_ERROR_NOT_READY,)

    def cuEventElapsedTime(self, hStart, hEnd):
        return OK, 1.5

    # -- graphs

    def cuStreamBeginCapture(self, hStream, mode):
        self.streams[int(hStream)].captured = []
        return (self._guarded(),)

    def cuStreamEndCapture(self, hStream):
        queue = self.streams[int(hStream)]
        recorded, queue.captured = queue.captured, None
        handle = next(self._handles)
        self.graphs[handle] = recorded
        return OK, handle

    def cuGraphInstantiate(self, hGraph, flags):
        handle = next(self._handles)
        self.graphs[handle] = list(self.graphs[int(hGraph)])
        return OK, handle

    def cuGraphDestroy(self, hGraph):
        return (OK if self.graphs.pop(int(hGraph), None) is not None else UNKNOWN,)

    def cuGraphExecDestroy(self, hGraphExec):
        return (OK if self.graphs.pop(int(hGraphExec), None) is not None else UNKNOWN,)

    def cuGraphLaunch(self, hGraphExec, hStream):
        self.launched += 1
        for kind, what in self.graphs[int(hGraphExec)]:
            error = self._push(hStream, kind, what)[0]
            if error != OK:
                return (error,)
        return (OK,)
