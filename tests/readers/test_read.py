"""What somebody recorded, in the formats there are, as a specimen; and what is said when it cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr

from acq_isl.errors import StorageError
from acq_isl.hooks import GuardedAcquisition
from acq_isl.readers.recording import Lengths, RecordedChannel, RecordedField, label_of
from acq_isl.rules import Limits
from acq_isl.sim import RecordedSpecimen, ScopeSettings, SimulatedScope
from acq_isl.stack import StackKey, StackRequest

# ndstorage leaves the file handle of its own writer to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*NDTiffStack:pytest.PytestUnraisableExceptionWarning"
)

RNG = np.random.default_rng(11)
STACK = RNG.integers(0, 65536, (5, 40, 60), dtype=np.uint16)
NUCLEI = RNG.integers(0, 65536, (40, 60), dtype=np.uint16)
PIXEL_UM, STEP_UM = 0.3, 0.8


def is_right(specimen: RecordedSpecimen) -> None:
    np.testing.assert_array_equal(specimen.transmitted, STACK)
    assert list(specimen.labels) == ["nuclei"] and specimen.channels == ("Phase", "DAPI")
    np.testing.assert_array_equal(specimen.labels["nuclei"].pixels, NUCLEI)
    assert specimen.pixel_size_um == pytest.approx(PIXEL_UM)
    assert specimen.z_step_um == pytest.approx(STEP_UM)


# TIFF


def both_channels() -> np.ndarray:
    """(z, c, y, x): the nuclei in the middle plane, and nothing that is brighter elsewhere."""
    return np.stack([np.stack([plane, NUCLEI if z == 2 else NUCLEI // 2]) for z, plane in enumerate(STACK)])


def ome_tiff(folder: Path) -> Path:
    path = folder / "field.ome.tif"
    lengths = {"PhysicalSizeX": PIXEL_UM, "PhysicalSizeY": PIXEL_UM, "PhysicalSizeZ": STEP_UM}
    metadata = {"axes": "ZCYX", "Channel": {"Name": ["Phase contrast", "DAPI"]}, **lengths}
    tifffile.imwrite(path, both_channels(), ome=True, photometric="minisblack", metadata=metadata)
    return path


def imagej_tiff(folder: Path) -> Path:
    """Two files, as ImageJ saves them: pixels per micrometre, and the spacing of the planes."""
    for name, pixels in (("brightfield", STACK), ("DAPI", NUCLEI[None])):
        tifffile.imwrite(
            folder / f"{name}.tif",
            pixels,
            imagej=True,
            resolution=(1 / PIXEL_UM, 1 / PIXEL_UM),
            metadata={"axes": "ZYX", "spacing": STEP_UM, "unit": "um"},
        )
    return folder


# OME-Zarr


def multiscales(version: str) -> dict[str, Any]:
    axes: list[dict[str, str]] = [{"name": "t", "type": "time"}, {"name": "c", "type": "channel"}]
    axes += [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]
    scale = [1.0, 1.0, STEP_UM, PIXEL_UM, PIXEL_UM]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]
    scales: dict[str, Any] = {"axes": axes, "datasets": datasets, "name": "field"}
    omero = {"channels": [{"label": "DIC"}, {"label": "DAPI"}]}
    if version == "0.4":
        return {"multiscales": [scales | {"version": "0.4"}], "omero": omero}
    return {"ome": {"version": version, "multiscales": [scales], "omero": omero}}


def write_image(folder: Path, version: str) -> Path:
    pixels = np.transpose(both_channels(), (1, 0, 2, 3))
    group = zarr.open_group(str(folder), mode="w", zarr_format=2 if version == "0.4" else 3)
    # The first time point is another field.
    array = group.create_array("0", shape=(2, *pixels.shape), dtype="uint16", chunks=(1, 1, 1, 40, 60))
    array[0], array[1] = pixels, pixels[:, :, ::-1]
    group.attrs.update(multiscales(version))
    return folder


def zarr_v04(folder: Path) -> Path:
    return write_image(folder / "field.ome.zarr", "0.4")


def zarr_v05(folder: Path) -> Path:
    return write_image(folder / "field.ome.zarr", "0.5")


def plate(folder: Path, fields: int = 1) -> Path:
    """A plate of one well."""
    root = zarr.open_group(str(folder / "plate.ome.zarr"), mode="w", zarr_format=3)
    wells = [{"path": "A/1", "rowIndex": 0, "columnIndex": 0}]
    names = {"columns": [{"name": "1"}], "rows": [{"name": "A"}], "wells": wells}
    root.attrs["ome"] = {"version": "0.5", "plate": names}
    well = root.create_group("A/1")
    well.attrs["ome"] = {"version": "0.5", "well": {"images": [{"path": str(n)} for n in range(fields)]}}
    for number in range(fields):
        write_image(folder / "plate.ome.zarr" / "A" / "1" / str(number), "0.5")
    return folder / "plate.ome.zarr"


# NDTiff, from a real acquisition


def request(position: str, preset: str, z_um: tuple[float, ...]) -> StackRequest:
    return StackRequest(StackKey(0, position, preset), 0.0, 0.0, z_um, "Channel", preset, 10.0)


def ndtiff(folder: Path) -> Path:
    """Two positions, the first without DAPI; the planes of the second from the top down."""
    from acq_isl.sim.specimen.recorded import RecordedLabel

    specimen = RecordedSpecimen(STACK, {"nuclei": RecordedLabel("DAPI", NUCLEI)}, PIXEL_UM, STEP_UM)
    settings = ScopeSettings(shape=(40, 60), pixel_size_um=PIXEL_UM, buffer_size_mb=16)
    with (
        SimulatedScope(specimen, settings=settings),
        GuardedAcquisition(folder, "m", limits=Limits()) as open_,
    ):
        open_.acquire(request("A", "Phase", specimen.planes_z_um[:2]))
        open_.acquire(request("B", "Phase", specimen.planes_z_um[::-1]))
        dapi = request("B", "DAPI", (0.0,))
        open_.acquire(StackRequest(**{**_fields(dapi), "exposure_ms": 50.0}))
    return folder / "m_1"


def _fields(one: StackRequest) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


WRITERS = {one.__name__: one for one in (ome_tiff, imagej_tiff, zarr_v04, zarr_v05, plate, ndtiff)}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_format_gives_the_same_specimen(write: Callable[[Path], Path], tmp_path: Path) -> None:
    is_right(RecordedSpecimen.from_path(write(tmp_path)))


def test_a_run_folder_is_its_measured_data(tmp_path: Path) -> None:
    ndtiff(tmp_path)
    (tmp_path / "experiment.yaml").write_text("name: run")
    is_right(RecordedSpecimen.from_path(tmp_path))


def test_position_and_time_can_be_chosen(tmp_path: Path) -> None:
    first = RecordedSpecimen.from_path(ndtiff(tmp_path / "n"), place=("A", 0))
    np.testing.assert_array_equal(first.transmitted, STACK[:2])
    later = RecordedSpecimen.from_path(zarr_v05(tmp_path), place=(None, 1))
    np.testing.assert_array_equal(later.transmitted, STACK[:, ::-1])


def test_the_transmitted_channel_can_be_named(tmp_path: Path) -> None:
    swapped = RecordedSpecimen.from_path(ome_tiff(tmp_path), transmitted="DAPI")
    np.testing.assert_array_equal(swapped.transmitted[2], NUCLEI)
    assert list(swapped.labels) == ["Phase contrast"]


def test_one_channel_alone_is_transmitted_light(tmp_path: Path) -> None:
    path = tmp_path / "anything.tif"
    tifffile.imwrite(path, STACK, photometric="minisblack")
    specimen = RecordedSpecimen.from_path(path, pixel_size_um=0.65, z_step_um=2)
    np.testing.assert_array_equal(specimen.transmitted, STACK)
    assert not specimen.labels


def recorded_field(names: tuple[str, ...]) -> RecordedField:
    """Stacks of three empty planes."""

    def open_channel(number: int) -> RecordedChannel:
        pixels = np.zeros((3, 4, 4), np.uint16)
        return RecordedChannel(
            "x", names[number], (3, 4, 4), pixels.dtype, Lengths(), None, lambda planes: pixels[list(planes)]
        )

    return RecordedField(Path("x"), "x", names, open_channel, ())


NAMES = {
    ("Phase", "DAPI"): "Phase",
    ("DAPI", "Brightfield LED"): "Brightfield LED",
    ("TL", "GFP"): "TL",
    ("PH2", "Cy5"): "PH2",
    ("DIC", "DAPI"): "DIC",
    ("trans_BF", "DAPI"): "trans_BF",
    ("488", "561"): None,
    ("TLR4", "PCNA"): None,
}


@pytest.mark.parametrize("names, transmitted", NAMES.items())
def test_transmitted_light_is_known_by_its_name(names: tuple[str, ...], transmitted: str | None) -> None:
    field = recorded_field(names)
    if transmitted is not None:
        assert field.transmitted(None) == transmitted
        return
    with pytest.raises(StorageError, match="cannot be told from the names"):
        field.transmitted(None)
    with pytest.raises(StorageError, match=f"did you mean '{names[0]}'"):
        field.transmitted(names[0] + "x")


@pytest.mark.parametrize(
    "channel, label",
    [
        ("DAPI", "nuclei"),
        ("Hoechst 33342", "nuclei"),
        ("MAP2-488", "dendrites"),
        ("NFH", "axons"),
        ("Cy5", "Cy5"),
    ],
)
def test_stains_show_the_labels_of_the_model(channel: str, label: str) -> None:
    assert label_of(channel, ()) == label
    assert label_of(channel, [label]) == channel


# wrong input


def without_pixel_size(folder: Path) -> Path:
    path = zarr_v04(folder)
    attributes = json.loads((path / ".zattrs").read_text())
    attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] = [1.0] * 5
    for axis in attributes["multiscales"][0]["axes"]:
        axis.pop("unit", None)
    (path / ".zattrs").write_text(json.dumps(attributes))
    return path


def changed(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = zarr_v04(folder)
        attributes = json.loads((path / ".zattrs").read_text())
        change(attributes)
        (path / ".zattrs").write_text(json.dumps(attributes))
        return path

    write.__name__ = name
    return write


def other_file(folder: Path) -> Path:
    (folder / "notes.txt").write_text("hello")
    return folder / "notes.txt"


def other_folder(folder: Path) -> Path:
    return other_file(folder).parent


def two_data_sets(folder: Path) -> Path:
    path = ndtiff(folder)
    shutil.copytree(path, folder / "m_2")
    return folder


def cut_index(folder: Path) -> Path:
    path = ndtiff(folder)
    index = path / "NDTiff.index"
    index.write_bytes(index.read_bytes()[:-20])
    return path


def damaged_index(folder: Path) -> Path:
    path = folder / "m_1"
    path.mkdir()
    (path / "NDTiff.index").write_bytes(b"\xff" * 100)
    return path


def damaged_chunk(folder: Path) -> Path:
    path = zarr_v04(folder)
    for chunk in (path / "0").rglob("[0-9]*"):
        if chunk.is_file():
            chunk.write_bytes(b"junk")
    return path


def colour(folder: Path) -> Path:
    path = folder / "photo.tif"
    tifffile.imwrite(path, np.zeros((10, 10, 3), np.uint8), photometric="rgb")
    return path


def twice_dapi(folder: Path) -> Path:
    imagej_tiff(folder)
    shutil.copy(folder / "DAPI.tif", folder / "DAPI.again.tif")
    return folder


def floats(folder: Path) -> Path:
    path = folder / "stack.tif"
    metadata = {"axes": "ZYX", "spacing": STEP_UM, "unit": "um"}
    tifffile.imwrite(path, STACK.astype(np.float32), imagej=True, resolution=(3, 3), metadata=metadata)
    return path


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "nothing there": (lambda folder: folder / "gone", "no recording at .*gone"),
    "no image file": (other_file, "another kind of file"),
    "no images": (other_folder, "holds no recording.*notes.txt"),
    "two data sets": (two_data_sets, "several recordings.*m_1, m_2.*m_1"),
    "no pixel size": (
        without_pixel_size,
        "pixel size and the z step .* are not known.*--pixel-size and --z-step",
    ),
    "several fields": (
        lambda folder: plate(folder, 3),
        r"plate of several images.*A/1/0, A/1/1, A/1/2.*A/1/0",
    ),
    "no metadata": (changed("none", dict.clear), "no OME-Zarr image"),
    "half the metadata": (changed("half", lambda a: a["multiscales"][0].pop("datasets")), "incomplete"),
    "odd unit": (
        changed("odd", lambda a: a["multiscales"][0]["axes"][4].update(unit="foot")),
        "unknown unit",
    ),
    "odd axes": (
        changed("axes", lambda a: a["multiscales"][0]["axes"][0].update(name="q")),
        "axes t, c, z, y, x",
    ),
    "same names": (
        changed("same", lambda a: a["omero"]["channels"][0].update(label="DAPI")),
        "the same name",
    ),
    "damaged pixels": (damaged_chunk, "cannot be read"),
    "damaged index": (damaged_index, "cannot be read as NDTiff"),
    "cut index": (cut_index, "cannot be read as NDTiff"),
    "colour": (colour, "not a z-stack"),
    "one channel twice": (twice_dapi, "two files .* channel DAPI"),
    "not camera counts": (floats, "wrong pixel type"),
}


@pytest.mark.parametrize("write, said", WRONG.values(), ids=WRONG)
def test_wrong_input_is_a_clear_error(write: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"(?s){said}"):
        RecordedSpecimen.from_path(write(tmp_path))


@pytest.mark.parametrize("place", [("Z9", None), (None, 7)])
def test_a_place_that_is_not_there_is_named(place: tuple[str | None, int | None], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="has no position 'Z9'" if place[0] else "has no time 7"):
        RecordedSpecimen.from_path(ndtiff(tmp_path), place=place)
    if place[1] is not None:
        for path in (zarr_v05(tmp_path), ome_tiff(tmp_path)):
            if path.suffix == ".zarr":
                with pytest.raises(StorageError, match="has no time 7"):
                    RecordedSpecimen.from_path(path, place=place)
