"""First slices of stacks whose z step is not known yet: some in memory, further ones in mapped files."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acq_isl.errors import StorageError
from acq_isl.hooks.metadata import SliceMetadata
from acq_isl.stack import StackInfo, StackKey, Uint16Image
from acq_isl.stream.overflow import OverflowMemory
from acq_isl.stream.shared_memory import Block


@dataclass(frozen=True, slots=True, eq=False)
class CapturedSlice:
    """An image as the camera delivered it, (y, x) uint16, and when, in Unix seconds."""

    metadata: SliceMetadata
    pixels: Uint16Image
    captured_s: float


class HeldSlices:
    """At most one slice of each stack, copied, in the order they came. Not thread-safe.

    Pixels beyond ``memory_bytes`` lie in files, of ``file_bytes`` at most.
    """

    def __init__(self, memory_bytes: int = 256 << 20, file_bytes: int = 16 << 30) -> None:
        self._memory_bytes, self._file_bytes = memory_bytes, file_bytes
        self._held: OrderedDict[StackKey, tuple[CapturedSlice, Block | None]] = OrderedDict()
        self._in_memory = self._in_files = 0
        self._files = OverflowMemory(Path(tempfile.gettempdir()))

    def __len__(self) -> int:
        return len(self._held)

    @property
    def full(self) -> bool:
        """Whether the oldest should go."""
        return self._in_files > self._file_bytes

    def add(self, slice_: CapturedSlice) -> None:
        """Hold the slice of a stack that has none here; StorageError if the disk is full."""
        key, pixels, block = slice_.metadata.key, slice_.pixels, None
        if self._in_memory + pixels.nbytes <= self._memory_bytes:
            copy = pixels.copy()
            self._in_memory += pixels.nbytes
        else:
            block = self._files.allocate(StackInfo(key, (0.0,), (pixels.shape[0], pixels.shape[1]), 0.0))
            if block is None:
                raise StorageError(f"slice z={slice_.metadata.z_index} of {key} could not be held on disk")
            copy = block.pixels[0]
            np.copyto(copy, pixels)
            self._in_files += pixels.nbytes
        self._held[key] = CapturedSlice(slice_.metadata, copy, slice_.captured_s), block

    def get(self, key: StackKey) -> CapturedSlice | None:
        """The slice of a stack, which stays."""
        held = self._held.get(key)
        return None if held is None else held[0]

    def take(self, key: StackKey) -> CapturedSlice:
        """The slice of a stack, which goes; its pixels are its own."""
        slice_, block = self._held.pop(key)
        if block is None:
            self._in_memory -= slice_.pixels.nbytes
            return slice_
        self._in_files -= slice_.pixels.nbytes
        slice_ = CapturedSlice(slice_.metadata, slice_.pixels.copy(), slice_.captured_s)
        self._files.release(block)
        return slice_

    def take_oldest(self) -> CapturedSlice:
        """The slice that was held for longest, which goes."""
        return self.take(next(iter(self._held)))
