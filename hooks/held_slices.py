"""First slices of stacks whose z step is not known yet: some in memory, further ones in a temporary file."""

from __future__ import annotations

import math
import tempfile
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import IO

import numpy as np

from acq_isl.errors import StorageError
from acq_isl.hooks.metadata import SliceMetadata
from acq_isl.stack import StackKey, Uint16Image


@dataclass(frozen=True, slots=True, eq=False)
class CapturedSlice:
    """An image as the camera delivered it, (y, x) uint16, and when, in Unix seconds."""

    metadata: SliceMetadata
    pixels: Uint16Image
    captured_s: float


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    metadata: SliceMetadata
    captured_s: float
    shape: tuple[int, ...]
    content: bytes
    offset: int | None  # in the file; None in memory

    @property
    def size(self) -> int:
        return 2 * math.prod(self.shape)


class HeldSlices:
    """At most one slice of each stack, copied, in the order they came. Not thread-safe.

    Pixels beyond ``memory_bytes`` lie in a file, of ``file_bytes`` at most.
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
            content, offset = slice_.pixels.tobytes(), None
            self._in_memory += size
        else:
            content, offset = b"", self._write(slice_.pixels.tobytes())
            self._in_file += size
        self._held[slice_.metadata.key] = _Held(
            slice_.metadata, slice_.captured_s, slice_.pixels.shape, content, offset
        )

    def get(self, key: StackKey) -> CapturedSlice | None:
        """The slice of a stack, which stays."""
        held = self._held.get(key)
        if held is None:
            return None
        content = held.content
        if held.offset is not None and self._file is not None:
            self._file.seek(held.offset)
            content = self._file.read(held.size)
        pixels = np.frombuffer(content, np.uint16).reshape(held.shape)
        return CapturedSlice(held.metadata, pixels, held.captured_s)

    def remove(self, key: StackKey) -> None:
        """Hold the slice of this stack no longer, if there is one."""
        held = self._held.pop(key, None)
        if held is None:
            return
        if held.offset is None:
            self._in_memory -= held.size
            return
        self._in_file -= held.size
        self._free[held.size].append(held.offset)
        if self._in_file == 0 and self._file is not None:
            self._file.close()
            self._file, self._end = None, 0
            self._free.clear()

    def pop_oldest(self) -> CapturedSlice:
        """The slice that was held for longest, which goes; StorageError if it cannot be read back."""
        key = next(iter(self._held))
        try:
            slice_ = self.get(key)
        finally:
            self.remove(key)
        if slice_ is None:
            raise StorageError(f"the held slice of {key} cannot be read back")
        return slice_

    def _write(self, content: bytes) -> int:
        """Append to the file, or fill a gap of this size in it; returns the place."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="acq-isl-")  # noqa: SIM115 - closed when empty
        free = self._free[len(content)]
        offset = free.pop() if free else self._end
        self._file.seek(offset)
        self._file.write(content)
        self._end = max(self._end, self._file.tell())
        return offset
