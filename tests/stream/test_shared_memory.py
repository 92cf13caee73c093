"""Shared memory: what the server sees is what the camera wrote, and nothing is left behind."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acq_isl.errors import StorageError, WireError
from acq_isl.stack import StackInfo, StackKey
from acq_isl.stream import shared_memory as ring_module
from acq_isl.stream.messages import MemoryOffer, MemoryRef
from acq_isl.stream.shared_memory import Block, SharedMemory, SharedMemoryView

MIB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="memfd and /proc are Linux")
posix = pytest.mark.skipif(sys.platform == "win32", reason="ring files are not used on Windows")


def info(planes: int = 3, rows: int = 64, columns: int = 32) -> StackInfo:
    key = StackKey(0, "A", "Phase")
    return StackInfo(key, tuple(float(z) for z in range(planes)), (rows, columns), 0.3)


def offer_of(ring: SharedMemory) -> MemoryOffer:
    assert ring.offer is not None
    return ring.offer


def test_the_reader_sees_the_writers_pixels_without_a_copy() -> None:
    with SharedMemory(MIB, shared=True) as ring:
        block = ring.allocate(info())
        view = SharedMemoryView(offer_of(ring))
        assert block is not None
        seen = view.view(block.ref, info())
        block.pixels[1, 2, 3] = 4711
        assert seen[1, 2, 3] == 4711
        assert view.nonce == ring.nonce
        assert not seen.flags.writeable


def test_a_block_given_to_another_stack_is_noticed() -> None:
    with SharedMemory(MIB, shared=True) as ring:
        block, view = ring.allocate(info()), SharedMemoryView(offer_of(ring))
        assert block is not None
        assert view.holds(block.ref)
        ring.release(block)
        assert not view.holds(block.ref)
        again = ring.allocate(info())
        assert again is not None and again.offset == block.offset
        assert not view.holds(block.ref)
        with pytest.raises(WireError, match="another"):
            view.view(block.ref, info())


@pytest.mark.parametrize(
    "ref",
    [
        MemoryRef(offset=0, generation=1),
        MemoryRef(offset=4097, generation=1),
        MemoryRef(offset=1 << 40, generation=1),
        MemoryRef(offset=MIB, generation=1),
    ],
)
def test_a_place_outside_of_the_ring_is_refused(ref: MemoryRef) -> None:
    with SharedMemory(MIB, shared=True) as ring:
        ring.allocate(info())
        with pytest.raises(WireError):
            SharedMemoryView(offer_of(ring)).view(ref, info())


def test_a_stack_that_would_reach_past_the_end_is_refused() -> None:
    with SharedMemory(MIB, shared=True) as ring:
        block = ring.allocate(info())
        assert block is not None
        with pytest.raises(WireError, match="outside"):
            SharedMemoryView(offer_of(ring)).view(block.ref, info(rows=16384, columns=16384))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "/proc/self/mem", "../x", "", "/proc/1/fd/../../self/environ"]
)
def test_a_name_that_no_ring_has_is_refused(name: str) -> None:
    with pytest.raises(WireError):
        SharedMemoryView(MemoryOffer(name=name, nbytes=4096))


@linux
def test_a_descriptor_that_is_no_sealed_ring_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(8192))
    with path.open("rb") as file, pytest.raises(WireError):
        SharedMemoryView(MemoryOffer(name=f"/proc/{os.getpid()}/fd/{file.fileno()}", nbytes=8192))


@linux
def test_another_size_than_offered_is_refused() -> None:
    with SharedMemory(MIB, shared=True) as ring, pytest.raises(WireError, match="offered"):
        SharedMemoryView(offer_of(ring).model_copy(update={"nbytes": MIB}))


@linux
def test_a_ring_cannot_shrink_under_its_reader() -> None:
    with SharedMemory(MIB, shared=True) as ring:
        fd = os.open(offer_of(ring).name.partition("#")[0], os.O_RDWR)
        try:
            with pytest.raises(PermissionError):
                os.ftruncate(fd, 0)
        finally:
            os.close(fd)


def test_memory_that_is_not_there_is_a_storage_error() -> None:
    with pytest.raises(StorageError, match="memory_bytes"):
        SharedMemory(1 << 62, shared=False)


def test_without_sharing_there_is_nothing_to_offer() -> None:
    with SharedMemory(MIB, shared=False) as ring:
        assert ring.offer is None
        assert ring.allocate(info()) is not None


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), max_size=30))
def test_blocks_never_overlap_and_freed_memory_comes_back(steps: list[tuple[int, int]]) -> None:
    with SharedMemory(MIB // 4, shared=False) as ring:
        everything = ring.free_bytes
        blocks: list[Block] = []
        for planes, release in steps:
            block = ring.allocate(info(planes))
            if block is not None:
                block.pixels[:] = block.generation
                blocks.append(block)
            elif not blocks:
                pytest.fail("an empty ring has room for a stack")
            if blocks and release < len(blocks):
                ring.release(blocks.pop(release))
            assert all(np.all(b.pixels == b.generation) for b in blocks)
            assert ring.free_bytes == everything - sum(b.nbytes for b in blocks)
        for block in blocks:
            ring.release(block)
        assert ring.free_bytes == everything


def test_memory_that_could_shrink_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of systems without sealed memory: slices go through the socket."""
    monkeypatch.setattr(ring_module.sys, "platform", "darwin")
    with SharedMemory(MIB, shared=True) as ring:
        assert ring.offer is None
        assert ring.allocate(info()) is not None


@linux
def test_a_file_that_looks_like_a_ring_is_refused(tmp_path: Path) -> None:
    """Its owner could truncate it while the server reads, which would end the server by SIGBUS."""
    path = Path(tempfile.gettempdir()) / f"acq-isl-ring-{os.getpid()}"
    path.write_bytes(b"acq-isl ring 1\0\0" + bytes(16) + bytes(MIB))
    try:
        with pytest.raises(WireError, match="not the name"):
            SharedMemoryView(MemoryOffer(name=str(path), nbytes=path.stat().st_size))
    finally:
        path.unlink()


@linux
def test_memory_of_another_client_is_refused() -> None:
    """Who names it without knowing what is in it did not make it."""
    with SharedMemory(MIB, shared=True) as victim, SharedMemory(MIB, shared=True) as thief:
        name = offer_of(victim).name.partition("#")[0]
        own_proof = offer_of(thief).name.partition("#")[2]
        for guess in (name, f"{name}#", f"{name}#{own_proof}", f"{name}#{'0' * 64}"):
            with pytest.raises(WireError, match="did not prove"):
                SharedMemoryView(MemoryOffer(name=guess, nbytes=offer_of(victim).nbytes))
        assert SharedMemoryView(offer_of(victim)).nonce == victim.nonce


@posix
def test_a_full_disk_gives_no_block_instead_of_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, count: int) -> None:
        raise OSError(28, "No space left on device")

    with SharedMemory(MIB, shared=True) as ring:
        monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
        assert ring.allocate(info()) is None
