"""Vendors' formats through BioIO: with a readable stand-in for its image, and with BioIO where it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from acq_isl.errors import StorageError
from acq_isl.readers.bioio import BioioReader
from acq_isl.readers.read import find_reader, read_data_set
from doubles.stored_plate import write_image

STACKS = np.random.default_rng(5).integers(100, 4000, (2, 2, 5, 24, 32), dtype=np.uint16)  # t, c, z, y, x


class FakeDask:
    def __init__(self, stack: np.ndarray) -> None:
        self._stack = stack

    def __getitem__(self, planes: list[int]) -> np.ndarray:
        return self._stack[planes]


class FakeImage:
    """As `bioio.BioImage` behaves: a scene is a state, scenes may differ."""

    scenes = ("Image:A1-Site_0", "Image:B2-Site_0")
    channel_names = ("TL Phase", "DAPI")
    physical_pixel_sizes = SimpleNamespace(Z=1.5, Y=0.3, X=0.3)
    dims = SimpleNamespace(T=2, C=2, Z=5, Y=24, X=32)
    dtype = np.uint16
    scene = 0

    def set_scene(self, number: int) -> None:
        self.scene = number

    def get_image_dask_data(self, axes: str, *, T: int, C: int) -> FakeDask:
        assert axes == "ZYX"
        if self.scene == 1 and T == 1:
            raise ValueError("the file ends in the middle of a plane")
        return FakeDask(STACKS[T, C] + self.scene)


def test_scenes_and_times_are_fields_of_wells(tmp_path: Path) -> None:
    path = tmp_path / "screen.nd2"
    path.write_bytes(b"")
    fields = BioioReader(lambda path: FakeImage()).read(path).fields
    assert [(field.name, field.well, field.time) for field in fields] == [
        ("A1-Site_0", "A1", 0), ("A1-Site_0", "A1", 1), ("B2-Site_0", "B2", 0), ("B2-Site_0", "B2", 1)
    ]  # fmt: skip
    channel = fields[2].channel(fields[2].transmitted())
    np.testing.assert_array_equal(channel.read(), STACKS[0, 0] + 1)
    assert channel.lengths_um() == (pytest.approx(0.3), (0.0, 1.5, 3.0, 4.5, 6.0))
    with pytest.raises(StorageError, match="ends in the middle"):
        fields[3].channel("DAPI").read()


@pytest.mark.parametrize("ending", ["nd2", "czi", "lif"])
def test_without_the_plug_in_it_says_what_to_install(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"no such file")
    assert isinstance(find_reader(path), BioioReader)
    with pytest.raises(StorageError, match=f"pip install .*bioio-{ending}"):
        read_data_set(path)


def write_tiff(folder: Path) -> Path:
    pytest.importorskip("bioio_ome_tiff", reason="needs bioio and bioio-ome-tiff")
    path = folder / "a.ome.tif"
    about = {"PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3, "PhysicalSizeZ": 1.5}
    names = {"Channel": {"Name": ["Phase", "DAPI"]}}
    tifffile.imwrite(path, STACKS, ome=True, metadata={"axes": "TCZYX"} | about | names)
    return path


def write_zarr(folder: Path) -> Path:
    pytest.importorskip("bioio_ome_zarr", reason="needs bioio and bioio-ome-zarr")
    write_image(folder / "a.ome.zarr", STACKS[0, 0])
    return folder / "a.ome.zarr"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", [write_tiff, write_zarr], ids=lambda write: write.__name__)
def test_bioio_itself_reads_what_our_own_reader_reads(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    for ours, theirs in zip(read_data_set(path).fields, BioioReader().read(path).fields, strict=True):
        assert (ours.channels, ours.time) == (theirs.channels, theirs.time)
        for name in ours.channels:
            mine, other = ours.channel(name), theirs.channel(name)
            np.testing.assert_array_equal(mine.read(), other.read())
            assert mine.lengths_um() == other.lengths_um()
