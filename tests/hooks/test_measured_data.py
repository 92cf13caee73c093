"""Measured data on disk: written whatever happens, and read back."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from acq_isl.errors import AcqIslError, SliceLost, StorageError
from acq_isl.hooks import open_measured, read_slices
from acq_isl.hooks.measured_data import INDEX, GuardedStorage, free_bytes, require_space, sort_index


def pixels(value: int) -> np.ndarray[Any, Any]:
    return np.full((16, 16), value, np.uint16)


def axes(z: int, position: str = "A1") -> dict[str, int | str]:
    return {"time": 0, "position": position, "channel": "Phase", "z": z}


class Storage:
    """A guarded NDTiff dataset and what it reported."""

    def __init__(self, folder: Path) -> None:
        from ndstorage.ndtiff_dataset import NDTiffDataset

        self.dataset = NDTiffDataset(str(folder), name="m", writable=True)
        self.dataset.initialize({})
        self.failures: list[AcqIslError] = []
        self.guarded = GuardedStorage(self.dataset, self.failures.append)

    def put(self, z: int, value: int | None = None) -> None:
        self.guarded.put_image(axes(z), pixels(z if value is None else value), {"Axes": axes(z)})

    @property
    def path(self) -> Path:
        return Path(self.dataset.path)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(tmp_path)


def read(folder: Path, planes: int) -> list[int]:
    with open_measured(folder) as dataset:
        return [int(one[0, 0]) for one in read_slices(dataset, [axes(z) for z in range(planes)])]


def test_what_is_put_is_read(storage: Storage) -> None:
    for z in range(3):
        storage.put(z)
    storage.guarded.finish()
    storage.dataset.close()
    assert read(storage.path, 3) == [0, 1, 2]
    with pytest.raises(SliceLost, match=r"1 of 4 .*z=3"):
        read(storage.path, 4)
    assert storage.failures == []


def test_nothing_is_overwritten(storage: Storage) -> None:
    storage.put(0, 1)
    storage.put(0, 2)
    storage.guarded.finish()
    storage.dataset.close()
    assert read(storage.path, 1) == [1]
    assert "was stored before" in str(storage.failures[0])


@pytest.mark.parametrize("who, kept", [("plain", [1]), ("guarded", [0])])
def test_an_image_after_the_end(tmp_path: Path, who: str, kept: list[int]) -> None:
    """Plain ndstorage opens a new writer with the same file name and overwrites the whole dataset."""
    storage = Storage(tmp_path)
    storage.put(0)
    storage.guarded.finish()
    if who == "plain":
        storage.dataset.put_image(axes(1), pixels(1), {"Axes": axes(1)})
        storage.dataset.current_writer.reader.close()
        storage.dataset.finish()
    else:
        storage.put(1)
    storage.dataset.close()
    with open_measured(storage.path) as dataset:
        assert [one["z"] for one in dataset.get_image_coordinates_list()] == kept


def test_tifffile_reads_the_series_right(storage: Storage) -> None:
    """Its series used to be shuffled (issue 311); with a sorted index it neither shuffles nor warns."""
    for position in ("B", "A"):
        for z in range(3):
            storage.guarded.put_image(axes(z, position), pixels(z + 10 * (position == "A")), {})
    storage.guarded.finish()
    storage.dataset.close()
    with tifffile.TiffFile(next(storage.path.glob("*.tif"))) as tiff:
        series = tiff.series[0].asarray()
    assert sorted(series[..., 0, 0].ravel()) == [0, 1, 2, 10, 11, 12]
    assert [0, 1, 2] in series[..., 0, 0].reshape(-1, 3).tolist()


class FullDisk:
    """A file on a disk that is full after some writes."""

    def __init__(self, file: Any, writes: int) -> None:
        self._file = file
        self._left = writes

    def write(self, data: Any) -> int:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("writes", [0, 1, 2])
@pytest.mark.parametrize("images", [1, 3])
def test_a_full_disk_keeps_what_was_stored(storage: Storage, images: int, writes: int) -> None:
    for z in range(images):
        storage.put(z)
    writer = storage.dataset.current_writer
    writer.file = FullDisk(writer.file, writes)
    storage.put(images)
    storage.put(images + 1)  # not even tried
    assert [type(one) for one in storage.failures] == [StorageError]
    assert "No space left" in str(storage.failures[0])
    storage.guarded.finish()
    storage.dataset.close()
    assert read(storage.path, images) == list(range(images))
    [file] = storage.path.glob("*.tif")
    assert file.stat().st_size < 1e6  # not the 4 GiB it began with
    with tifffile.TiffFile(file) as tiff:
        assert len(tiff.pages) == images


def test_an_image_that_cannot_be_written_at_all(storage: Storage) -> None:
    storage.guarded.put_image(axes(0), np.zeros((4, 4), np.float32), {"Axes": axes(0)})
    storage.guarded.finish()
    storage.dataset.close()
    assert "could not be stored" in str(storage.failures[0])
    assert storage.guarded.is_finished()
    assert not storage.dataset.has_image(**axes(0))


def test_the_index_names_axes_in_one_order(storage: Storage) -> None:
    for z in range(3):
        storage.put(z)
    storage.guarded.finish()
    storage.dataset.close()
    index = (storage.path / INDEX).read_bytes()
    assert index.count(b'{"channel": "Phase", "position": "A1", "time": 0, "z": ') == 3
    scrambled = index.replace(
        b'{"channel": "Phase", "position": "A1"', b'{"position": "A1", "channel": "Phase"', 1
    )
    (storage.path / INDEX).write_bytes(scrambled)
    assert read(storage.path, 3) == [0, 1, 2]
    sort_index(storage.path)
    assert (storage.path / INDEX).read_bytes() == index


@pytest.mark.parametrize("cut", [1, 20, 40])
def test_an_index_that_was_cut_off(storage: Storage, cut: int) -> None:
    for z in range(3):
        storage.put(z)
    storage.guarded.finish()
    storage.dataset.close()
    index = storage.path / INDEX
    index.write_bytes(index.read_bytes()[:-cut])
    assert read(storage.path, 2) == [0, 1]


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"is not an NDTiff dataset"), open_measured(tmp_path):
        pass
    (tmp_path / INDEX).write_bytes(b"\x05\x00\x00\x00rubbish and more of it, enough for an entry, surely")
    with pytest.raises(StorageError, match=r"cannot be read"), open_measured(tmp_path):
        pass


KILLED = """
import os, sys
from mm_test_adapters import device_adapter_path
from pycromanager import Acquisition, Core, start_headless
start_headless(str(device_adapter_path()), "MMConfig_demo.cfg", python_backend=True, buffer_size_mb=16)
Core().set_property("Camera", "FastImage", "1")
Core().set_exposure(1)
folder = sys.argv[1]
events = [{"axes": {"time": 0, "position": "A1", "channel": "DAPI", "z": z}} for z in range(5)]
if sys.argv[2] == "plain":
    acquisition = Acquisition(folder, "m")
    acquisition.acquire(events).await_image_saved([event["axes"] for event in events])
else:
    from acq_isl.hooks import GuardedAcquisition
    from acq_isl.rules import Limits
    acquisition = GuardedAcquisition(folder, "m", limits=Limits()).__enter__()
    acquisition.run_events(events)
    acquisition._open.watchdog.wait_stored(acquisition._progress.unsaved)
os._exit(0)
"""


@pytest.mark.parametrize("who, kept", [("plain", 0), ("guarded", 5)])
def test_a_killed_process(tmp_path: Path, who: str, kept: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), who], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    with open_measured(tmp_path / "m_1") as dataset:
        assert len(dataset.get_image_coordinates_list()) == kept


def test_space(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "there" / "yet") > 0
    require_space(tmp_path, 10, 2_000_000, lambda folder: 200_000_000)
    with pytest.raises(StorageError, match=r"too full for 100 more images; wanted: 268 MB free; got: 200 MB"):
        require_space(tmp_path, 100, 2_000_000, lambda folder: 200_000_000)
