"""First slices of stacks whose z step is not known yet: some in memory, further ones in a temporary file."""

from __future__ import annotations

import math
import tempfile
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, replace
from typing import IO

import numpy as np

from acq_isl.hooks.metadata import SliceMetadata
from acq_isl.stack import StackKey, Uint16Image

_NO_PIXELS = np.zeros((0, 0), np.uint16)


@dataclass(frozen=True, slots=True, eq=False)
class CapturedSlice:
    """An image as the camera delivered it, (y, x) uint16, and when, in Unix seconds."""

    metadata: SliceMetadata
    pixels: Uint16Image
    captured_s: float


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    slice: CapturedSlice
    shape: tuple[int, ...]
    offset: int | None = None  # in the file; None in memory


class HeldSlices:
    """At most one slice of each stack, in the order they came. Not thread-safe.

    Parameters
    ----------
    memory_bytes, file_bytes : int
        Pixels kept in memory, and in the file.
    """

    def __init__(self, memory_bytes: int = 256 << 20, file_bytes: int = 16 << 30) -> None:
        self._memory_bytes, self._file_bytes = memory_bytes, file_bytes
        self._held: OrderedDict[StackKey, _Held] = OrderedDict()
        self._in_memory = self._in_file = self._end = 0  # bytes
        self._free: defaultdict[int, list[int]] = defaultdict(list)  # places in the file by their size
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._held)

    @property
    def full(self) -> bool:
        """Whether the oldest should go."""
        return self._in_file > self._file_bytes

    def add(self, slice_: CapturedSlice) -> None:
        """Hold the slice of a stack that has none here; OSError if the disk is full."""
        size = slice_.pixels.nbytes
        if self._in_memory + size <= self._memory_bytes:
            self._in_memory += size
            held = _Held(slice_, slice_.pixels.shape)
        else:
            held = self._write(slice_)
            self._in_file += size
        self._held[slice_.metadata.key] = held

    def get(self, key: StackKey) -> CapturedSlice | None:
        """The slice of a stack, which stays."""
        held = self._held.get(key)
        return None if held is None else self._read(held)

    def remove(self, key: StackKey) -> None:
        """Hold the slice of this stack no longer, if there is one."""
        held = self._held.pop(key, None)
        if held is None:
            return
        size = 2 * math.prod(held.shape)
        if held.offset is None:
            self._in_memory -= size
            return
        self._in_file -= size
        self._free[size].append(held.offset)
        if self._in_file == 0 and self._file is not None:
            self._file.close()
            self._file, self._end = None, 0
            self._free.clear()

    def pop_oldest(self) -> CapturedSlice | None:
        """The slice that was held for longest, which goes; None if there is none."""
        if not self._held:
            return None
        key, held = next(iter(self._held.items()))
        slice_ = self._read(held)
        self.remove(key)
        return slice_

    def _write(self, slice_: CapturedSlice) -> _Held:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="acq-isl-")  # noqa: SIM115 - closed when empty
        free = self._free[slice_.pixels.nbytes]
        offset = free.pop() if free else self._end
        self._file.seek(offset)
        self._file.write(slice_.pixels.tobytes())
        self._end = max(self._end, self._file.tell())
        return _Held(replace(slice_, pixels=_NO_PIXELS), slice_.pixels.shape, offset)

    def _read(self, held: _Held) -> CapturedSlice:
        if held.offset is None or self._file is None:
            return held.slice
        self._file.seek(held.offset)
        pixels = np.frombuffer(self._file.read(2 * math.prod(held.shape)), np.uint16)
        return replace(held.slice, pixels=pixels.reshape(held.shape))
