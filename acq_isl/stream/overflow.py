"""Memory on disk, for stacks that begin while the memory is full, as when z is the outermost axis.

A stack can leave the memory for the spool only when it is whole. So what there is no memory for is copied
into mapped files: the system writes them when it has time, and the camera's thread waits for no disk.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from acq_isl.errors import StorageError
from acq_isl.stack import StackInfo
from acq_isl.stream.shared_memory import Block, SharedMemory, nbytes_of

log = logging.getLogger(__name__)

_FILE_BYTES = 1 << 30
_LEAVE_FREE_BYTES = 2 << 30


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


class OverflowMemory:
    """Files in a folder, if there is one, made when needed and removed when empty. Not thread-safe.

    The measured data may lie on the same disk: some of it is left free.
    """

    def __init__(
        self, folder: Path | None, file_bytes: int = _FILE_BYTES, free: Callable[[Path], int] | None = None
    ) -> None:
        self._folder, self._file_bytes, self._free = folder, file_bytes, free or free_bytes
        self._files: list[SharedMemory] = []

    def allocate(self, info: StackInfo) -> Block | None:
        """Memory for a stack; None if the disk has no room."""
        if self._folder is None:
            return None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._free(self._folder) < nbytes_of(info) + _LEAVE_FREE_BYTES:
                return None
            for file in self._files:
                if (block := file.allocate(info)) is not None:
                    return block
            nbytes = max(self._file_bytes, nbytes_of(info) + (64 << 10))
            file = SharedMemory(nbytes, shared=False, folder=self._folder)
        except (OSError, StorageError) as error:
            log.warning("stacks cannot be captured to disk while the memory is full: %s", error)
            return None
        self._files.append(file)
        log.info("the memory is full; stacks are captured to %s", self._folder)
        return file.allocate(info)

    def release(self, block: Block) -> None:
        """Give a block back."""
        block.home.release(block)
        if block.home.empty and block.home in self._files:
            self._files.remove(block.home)
            block.home.close()

    def close(self) -> None:
        """Remove all files."""
        for file in self._files:
            file.close()
        self._files.clear()
