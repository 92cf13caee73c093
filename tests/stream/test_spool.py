"""Stacks on disk: whole or not at all, readable by others, and damage is named."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile

from acq_isl.errors import StorageError
from acq_isl.stack import StackInfo, StackKey
from acq_isl.stream.spool import Spool, SpooledStack, SpoolThread

KEY = StackKey(2, "A1/003 µ", "Phase")
INFO = StackInfo(KEY, (0.0, 1.5, 3.0), (16, 24), 0.325, 10.0, -4.0, 8.0, "phase contrast", "dark")


def stack(number: int = 7, present: tuple[int, ...] = (0, 1, 2), info: StackInfo = INFO) -> SpooledStack:
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 65536, (len(present), *info.shape), dtype=np.uint16)
    return SpooledStack(number, info, present, tuple(1.75e9 + z for z in present), pixels, "no engine")


@pytest.mark.parametrize("present", [(0, 1, 2), (1,), (0, 2)])
def test_a_stack_comes_back_equal(tmp_path: Path, present: tuple[int, ...]) -> None:
    spool, written = Spool(tmp_path / "run" / "spool"), stack(present=present)
    back = spool.read(spool.write(written))
    for name in ("stack", "info", "present", "captured_s", "reason"):
        assert getattr(back, name) == getattr(written, name)
    assert np.array_equal(back.pixels, written.pixels)
    assert back.complete == (present == (0, 1, 2))


def test_an_unknown_pixel_size_survives(tmp_path: Path) -> None:
    unknown = StackInfo(KEY, (0.0,), (4, 4), float("nan"))
    spool = Spool(tmp_path)
    back = spool.read(spool.write(stack(present=(0,), info=unknown)))
    assert np.isnan(back.info.pixel_size_um)


def test_others_can_open_it(tmp_path: Path) -> None:
    with tifffile.TiffFile(Spool(tmp_path).write(stack())) as tiff:
        assert tiff.is_ome
        assert tiff.series[0].axes == "ZYX"
        assert np.array_equal(tiff.asarray(), stack().pixels)
        assert tiff.ome_metadata is not None and 'PhysicalSizeX="0.325"' in tiff.ome_metadata


def test_listed_oldest_first_and_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    assert spool.list() == ()
    late, early = spool.write(stack(12)), spool.write(stack(3))
    assert spool.list() == (early, late)
    spool.remove(early)
    spool.remove(early)
    assert spool.list() == (late,)


def test_only_files_of_our_own_are_stacks_that_wait(tmp_path: Path) -> None:
    ours = Spool(tmp_path).write(stack(1))
    damaged = Spool(tmp_path).write(stack(2))
    damaged.write_bytes(damaged.read_bytes()[:100])
    for name in ("A1_phase.ome.tif", "20261128_A1.ome.tif"):
        tifffile.imwrite(tmp_path / name, np.zeros((3, 8, 8), np.uint16), ome=True, photometric="minisblack")
    (tmp_path / "empty.ome.tif").touch()
    assert Spool(tmp_path).list() == (ours, damaged)


def test_a_half_written_file_is_not_listed(tmp_path: Path) -> None:
    path = Spool(tmp_path).write(stack())
    path.rename(path.with_name(path.name + ".part"))
    assert Spool(tmp_path).list() == ()


def test_disk_full_is_a_storage_error_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *args: object, **kwargs: object) -> None:
        path.write_bytes(b"half a file")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    with pytest.raises(StorageError, match=r"No space left.*free disk space"):
        Spool(tmp_path).write(stack())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        Spool(tmp_path / "file" / "spool").write(stack())


@pytest.mark.parametrize("keep", [0, 4, 100, 900, 2500])
def test_a_damaged_file_is_named(tmp_path: Path, keep: int) -> None:
    spool = Spool(tmp_path)
    path = spool.write(stack())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StorageError, match=path.name[:6]):
        spool.read(path)


def test_a_changed_pixel_is_noticed(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    path = spool.write(stack())
    raw = bytearray(path.read_bytes())
    raw[1500] ^= 1
    path.write_bytes(raw)
    with pytest.raises(StorageError, match="not those that were written"):
        spool.read(path)


def test_a_tiff_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "000001_x.ome.tif"
    tifffile.imwrite(path, np.zeros((4, 4), np.uint16))
    with pytest.raises(StorageError, match="no acq-isl record"):
        Spool(tmp_path).read(path)


def test_a_file_that_is_gone_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Spool(tmp_path).read(tmp_path / "gone.ome.tif")


def test_the_worker_does_jobs_in_order_and_refuses_too_many() -> None:
    gate, done = threading.Event(), []
    with SpoolThread(limit=2) as worker:
        started = threading.Event()

        def first() -> None:
            started.set()
            gate.wait(10)

        assert worker.submit(first)
        assert started.wait(10)
        assert worker.submit(lambda: done.append(1))
        assert worker.submit(lambda: done.append(2))
        assert not worker.submit(lambda: done.append(3))
        gate.set()
    assert done == [1, 2]


def test_a_failing_job_does_not_stop_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    with SpoolThread() as worker:
        worker.submit(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        worker.submit(done.set)
    assert done.is_set()
    assert "ZeroDivisionError" in caplog.text


def test_a_file_that_announces_more_than_it_holds_takes_no_memory(tmp_path: Path) -> None:
    """Found by libFuzzer: the sizes in its metadata were believed, and gigabytes taken."""
    path = Spool(tmp_path).write(stack())
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tag = tiff.pages.first.tags["ImageDescription"]
        announced = re.sub('SizeZ="[0-9]+"', 'SizeZ="300000000"', tag.value)
        assert announced != tag.value
        tag.overwrite(announced.encode("utf-8"))
    assert np.array_equal(Spool(tmp_path).read(path).pixels, stack().pixels)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages.first.tags["ImageLength"].overwrite(60_000)
    with pytest.raises(StorageError, match="announces more"):
        Spool(tmp_path).read(path)
