"""Memory for stacks that wait and travel: one arena, shared with a server on the same host if possible.

The camera image is copied into the arena once, and a same-host server predicts from that memory. The
owner is the only writer; the server maps it read-only. Each block carries a generation number, so a
reader notices when a block was given to another stack.

``multiprocessing.shared_memory`` is not used: before Python 3.13 the process that merely attaches
destroys the segment when it ends. Instead the arena is

* Linux: a sealed memfd, reached by the server as ``/proc/PID/fd/N``; it has no name, so nothing can
  leak even on kill -9, a restarted server can still open it, and it cannot shrink under the reader;
* Windows: a named mapping of the page file, which ends with its last handle and has one size for life;
* elsewhere: not shared. A file could be truncated under the server, which would end it by SIGBUS; slices
  go through the socket.

Each side proves to the other that it is the same memory: the client by a hash of the nonce in it, which
follows its name, so that nobody has a server predict from another process's memory; the server by the
nonce.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import secrets
import struct
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acq_isl.errors import StorageError, WireError
from acq_isl.stack import StackInfo, Uint16Image
from acq_isl.stream.messages import MemoryOffer, MemoryRef

_MAGIC = b"acq-isl ring 1\0\0"
_NONCE_BYTES = 16
_HEAD_BYTES = len(_MAGIC) + _NONCE_BYTES
_PAGE = 4096
_BLOCK_HEADER = 64
_FILE_PREFIX = "acq-isl-ring-"


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Memory of one stack: its place with its header, its number from 1, a writable (z, y, x) uint16 view."""

    home: SharedMemory
    offset: int
    nbytes: int
    generation: int
    pixels: Uint16Image

    @property
    def ref(self) -> MemoryRef:
        return MemoryRef(offset=self.offset, generation=self.generation)


class SharedMemory:
    """The owner's side: at most ``nbytes``, of which pages are reserved when first needed.

    With a ``folder`` it is a file there, and nobody else's. Not thread-safe: callers take turns under their
    own lock. StorageError if there is no memory.
    """

    def __init__(self, nbytes: int, *, shared: bool, folder: Path | None = None) -> None:
        size = _pages(nbytes) + _PAGE
        self._fd: int | None = None
        self._file: Path | None = None
        try:
            if folder is not None:
                self._memory, name = self._make_file(size, folder), ""
            else:
                self._memory, name = self._make(size) if shared else (mmap.mmap(-1, size), "")
        except (OSError, ValueError, OverflowError) as error:
            self._release_file()
            raise StorageError(
                f"no memory for stacks that wait or travel: {error}",
                wanted=f"{size >> 20} MiB",
                fix="give the client less memory_bytes, or free memory",
            ) from error
        self._size = size
        self._blocks: list[Block] = []
        self._generation = 0
        self._reserved = self._top = _PAGE
        self.nonce = secrets.token_hex(_NONCE_BYTES)
        """What a server that sees this memory can read in it."""
        self._memory[:_HEAD_BYTES] = _MAGIC + bytes.fromhex(self.nonce)
        self.offer = MemoryOffer(name=f"{name}#{_proof(self.nonce)}", nbytes=size) if name else None

    def __enter__(self) -> SharedMemory:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def empty(self) -> bool:
        return not self._blocks

    @property
    def free_bytes(self) -> int:
        return self._size - _PAGE - sum(block.nbytes for block in self._blocks)

    def allocate(self, info: StackInfo) -> Block | None:
        """Memory for a stack, at the lowest free place; None if there is no room."""
        wanted = _pages(_BLOCK_HEADER + nbytes_of(info))
        offset, at = _PAGE, 0
        for block in self._blocks:
            if block.offset - offset >= wanted:
                break
            offset, at = block.offset + block.nbytes, at + 1
        if offset + wanted > self._size or not self._reserve(offset + wanted):
            return None
        self._top = max(self._top, offset + wanted)
        self._generation += 1
        self._memory[offset : offset + 8] = struct.pack("<Q", self._generation)
        pixels = _pixels(self._memory, offset, info)
        block = Block(self, offset, wanted, self._generation, pixels)
        self._blocks.insert(at, block)
        return block

    def reserve_ahead(self, nbytes: int) -> None:
        """Have pages ready beyond all that was ever used, so that the camera's thread need not wait.

        The one method that may run beside the others: reserving twice does no harm.
        """
        if hasattr(os, "posix_fallocate"):
            self._reserve(min(self._top + nbytes, self._size))

    def release(self, block: Block) -> None:
        """Give a block back; whoever still reads it sees that its generation is gone."""
        self._blocks.remove(block)
        self._memory[block.offset : block.offset + 8] = bytes(8)

    def close(self) -> None:
        """Give the memory back once the last view of it is gone."""
        self._blocks.clear()
        # Views of blocks may be alive in a caller's hands; the mapping ends with the last of them.
        with suppress(BufferError):
            self._memory.close()
        self._release_file()

    def _make(self, size: int) -> tuple[mmap.mmap, str]:
        if sys.platform == "linux":
            import fcntl

            self._fd = os.memfd_create("acq-isl-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self._fd, size)
            fcntl.fcntl(
                self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            )
            return mmap.mmap(self._fd, size), f"/proc/{os.getpid()}/fd/{self._fd}"
        if sys.platform == "win32":
            name = f"{_FILE_PREFIX}{secrets.token_hex(16)}"
            return mmap.mmap(-1, size, tagname=name), name
        return mmap.mmap(-1, size), ""

    def _make_file(self, size: int, folder: Path) -> mmap.mmap:
        self._fd, name = tempfile.mkstemp(prefix=_FILE_PREFIX, dir=folder)
        self._file = Path(name)
        os.ftruncate(self._fd, size)
        memory = mmap.mmap(self._fd, size)
        if sys.platform != "win32":  # nothing is left after a kill -9
            self._file.unlink()
            self._file = None
        return memory

    def _reserve(self, end: int) -> bool:
        """Have pages behind the sparse file before they are written: without, a full disk is a SIGBUS."""
        if end > self._reserved and self._fd is not None:
            try:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(self._fd, self._reserved, end - self._reserved)
                else:  # pragma: no cover - macOS
                    self._memory[self._reserved : end] = bytes(end - self._reserved)
            except OSError:
                return False
        self._reserved = max(self._reserved, end)
        return True

    def _release_file(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None


class SharedMemoryView:
    """The server's side: a read-only map of a client's arena; WireError if it is not what was offered."""

    def __init__(self, offer: MemoryOffer) -> None:
        name, _, proof = offer.name.partition("#")
        try:
            self._memory = _map_read_only(name, offer.nbytes)
        except (OSError, ValueError) as error:
            raise WireError(f"the client's shared memory cannot be mapped here: {error}") from error
        head = self._memory[:_HEAD_BYTES]
        if not head.startswith(_MAGIC):
            raise WireError("the client's shared memory does not belong to acq-isl")
        self._size = offer.nbytes
        self.nonce = head.removeprefix(_MAGIC).hex()
        if not secrets.compare_digest(proof, _proof(self.nonce)):
            raise WireError("the client did not prove that the shared memory is its own")

    def view(self, ref: MemoryRef, info: StackInfo) -> Uint16Image:
        """The stack at a place, (z, y, x) uint16, read-only and not copied; WireError if it is not there."""
        end = ref.offset + _BLOCK_HEADER + nbytes_of(info)
        if ref.offset < _PAGE or ref.offset % _PAGE or end > self._size:
            raise WireError(
                "a stack lies outside of the shared memory", wanted=f"<= {self._size}", got=f"{end}"
            )
        if not self.holds(ref):
            raise WireError("the shared memory of a stack was given to another one")
        return _pixels(self._memory, ref.offset, info)

    def holds(self, ref: MemoryRef) -> bool:
        """Whether the place still belongs to the same stack."""
        (generation,) = struct.unpack("<Q", self._memory[ref.offset : ref.offset + 8])
        return bool(generation == ref.generation)


def _proof(nonce: str) -> str:
    return hashlib.sha256(bytes.fromhex(nonce)).hexdigest()


def _map_read_only(name: str, nbytes: int) -> mmap.mmap:
    if sys.platform == "win32":
        if not re.fullmatch(rf"{_FILE_PREFIX}[0-9a-f]{{32}}", name):
            raise ValueError("not the name of shared memory")
        return mmap.mmap(-1, nbytes, tagname=name, access=mmap.ACCESS_READ)
    if sys.platform != "linux" or not re.fullmatch(r"/proc/\d+/fd/\d+", name):
        raise ValueError("not the name of shared memory")
    import fcntl

    # O_NONBLOCK: a name that turns out to be a pipe must not stop the server.
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise ValueError("it belongs to another user")
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        if not seals & fcntl.F_SEAL_SHRINK or not seals & fcntl.F_SEAL_SEAL:
            raise ValueError("it could shrink while it is read")
        if os.fstat(fd).st_size != nbytes:
            raise ValueError(f"it has {os.fstat(fd).st_size} B, {nbytes} were offered")
        return mmap.mmap(fd, nbytes, access=mmap.ACCESS_READ)
    finally:
        os.close(fd)


def _pixels(memory: mmap.mmap, offset: int, info: StackInfo) -> Uint16Image:
    flat = np.frombuffer(memory, "<u2", nbytes_of(info) // 2, offset + _BLOCK_HEADER)
    return flat.reshape(info.planes, *info.shape)


def nbytes_of(info: StackInfo) -> int:
    """Size of a stack's pixels."""
    return info.planes * info.shape[0] * info.shape[1] * 2


def _pages(nbytes: int) -> int:
    return -(-nbytes // _PAGE) * _PAGE
