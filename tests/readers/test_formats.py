"""What other programs write, as they mean it, or why it is refused."""

from __future__ import annotations

import json
import logging
import struct
import tomllib
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from acq_isl.errors import PairRefused, StackRefused, StorageError
from acq_isl.readers.ndtiff import INDEX, NdtiffReader
from acq_isl.readers.read import read_data_set, read_field, read_stack, readers
from acq_isl.readers.recording import Reader, as_counts
from acq_isl.readers.tiff import TiffReader
from acq_isl.sim import RecordedSpecimen
from acq_isl.training.data.geometry import Geometry, bring_to_model
from acq_isl.training.data.pairs import Nominal
from acq_isl.training.data.sources import Source
from doubles import tiny_model

# ndstorage leaves the file handle of its own writer to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*NDTiffStack:pytest.PytestUnraisableExceptionWarning"
)

RNG = np.random.default_rng(3)
STACK = RNG.integers(100, 4000, (5, 24, 32), dtype=np.uint16)
DAPI = RNG.integers(100, 4000, (24, 32), dtype=np.uint16)
BOTH = np.stack([STACK, np.repeat(DAPI[None], 5, axis=0)])  # (c, z, y, x)
Z_UM = (-3.0, -1.5, 0.0, 1.5, 3.0)


def items(**source: Any) -> dict[str, Any]:
    """The items of a training source by name."""
    nominal = Nominal(5, 0.3, 1.5)
    return {item.name: item for item in TypeAdapter(Source).validate_python(source).items(nominal)}


# --- lengths --------------------------------------------------------------------------------------

UNITS = {
    "µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "nm": 1e-3, "nanometer": 1e-3,
    "mm": 1e3, "cm": 1e4, "inch": 25400.0, "Å": 1e-4,
    "Micrometers": 1.0, "inches": 25400.0,
}  # fmt: skip
NO_LENGTHS = ("pixel", "reference frame", "foot", " ")


def ome(folder: Path, unit: str, um: float) -> Path:
    path = folder / "a.ome.tif"
    sizes = {f"PhysicalSize{axis}": size / um for axis, size in (("X", 0.3), ("Y", 0.3), ("Z", 1.5))}
    units = {f"PhysicalSize{axis}Unit": unit for axis in "XYZ"}
    tifffile.imwrite(path, STACK, ome=True, metadata={"axes": "ZYX"} | sizes | units)
    return path


def imagej(folder: Path, unit: str, um: float) -> Path:
    path = folder / "a.tif"
    about = {
        "axes": "ZYX",
        "unit": unit.replace("µ", "\\u00B5").replace("Å", "angstrom"),
        "spacing": 1.5 / um,
    }
    tifffile.imwrite(path, STACK, imagej=True, resolution=(um / 0.3, um / 0.3), metadata=about)
    return path


def ome_zarr(
    folder: Path, unit: str, um: float, dataset: Sequence[float] | None = None, whole: Sequence[float] = ()
) -> Path:
    path = folder / "a.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    group.create_array("0", shape=STACK.shape, dtype="uint16")[:] = STACK
    scale = [1.5 / um, 0.3 / um, 0.3 / um] if dataset is None else list(dataset)
    axes = [{"name": name, "type": "space"} | ({"unit": unit} if unit else {}) for name in "zyx"]
    scales: dict[str, Any] = {"version": "0.4", "axes": axes, "datasets": [
        {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]}  # fmt: skip
    if whole:
        scales["coordinateTransformations"] = [{"type": "scale", "scale": list(whole)}]
    group.attrs["multiscales"] = [scales]
    return path


FORMATS = (ome, imagej, ome_zarr)


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("unit", UNITS)
def test_a_length_is_the_same_in_every_unit_and_format(
    write: Callable[[Path, str, float], Path], unit: str, tmp_path: Path
) -> None:
    lengths = read_field(write(tmp_path, unit, UNITS[unit])).channel().lengths
    assert lengths.pixel_size_um == pytest.approx(0.3, rel=1e-3)
    assert lengths.z_step_um == pytest.approx(1.5, rel=1e-3)


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("unit", NO_LENGTHS)
def test_what_the_user_states_counts_where_a_unit_is_no_length(
    write: Callable[[Path, str, float], Path], unit: str, tmp_path: Path
) -> None:
    path = write(tmp_path, unit, 1.0)
    specimen = RecordedSpecimen.from_path(path, pixel_size_um=0.65, z_step_um=2.0)
    assert (specimen.pixel_size_um, specimen.z_step_um) == (0.65, 2.0)
    if unit == " " and write is ome_zarr:
        return  # a scale without a unit is taken for micrometres
    with pytest.raises(StorageError, match=r"pixel size and the z step .* not known"):
        RecordedSpecimen.from_path(path)


@pytest.mark.parametrize(
    "dataset, whole",
    [
        ((1.5, 0.3, 0.3), ()),
        ((1, 1, 1), (1.5, 0.3, 0.3)),
        ((1.5, 1, 1), (1, 0.3, 0.3)),
        ((0.75, 0.1, 0.1), (2, 3, 3)),
    ],
)
def test_the_scale_may_be_on_the_dataset_or_on_the_multiscale(
    dataset: Sequence[float], whole: Sequence[float], tmp_path: Path
) -> None:
    path = ome_zarr(tmp_path, "micrometer", 1.0, dataset, whole)
    assert RecordedSpecimen.from_path(path).pixel_size_um == pytest.approx(0.3)
    (item,) = items(kind="ome_zarr", path=path, stack=0, labels={"nuclei": 0}).values()
    recording = item.load()
    assert (recording.pixel_size_um, recording.z_step_um) == pytest.approx((0.3, 1.5))


def test_a_unit_without_a_scale_is_no_length(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path, "micrometer", 1.0)
    about = json.loads((path / ".zattrs").read_text())
    about["multiscales"][0]["datasets"][0]["coordinateTransformations"] = [{"type": "identity"}]
    (path / ".zattrs").write_text(json.dumps(about))
    with pytest.raises(StorageError, match=r"the pixel size and the z step of .* are not known"):
        RecordedSpecimen.from_path(path)
    assert RecordedSpecimen.from_path(path, pixel_size_um=0.3, z_step_um=1.5).pixel_size_um == 0.3


@pytest.mark.parametrize("zarr_format, shards", [(2, None), (3, None), (3, (1, 5, 32, 32))])
def test_a_chunk_that_was_never_copied_is_not_black(zarr_format: Any, shards: Any, tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=zarr_format)
    array = group.create_array(
        "0",
        shape=BOTH.shape,
        dtype=BOTH.dtype,
        chunks=(1, 1, 16, 32),
        shards=shards,
    )
    array[:] = BOTH
    scales = {"axes": list("czyx"), "datasets": [{"path": "0"}]}
    about = {"multiscales": [scales], "omero": {"channels": [{"label": "Phase"}, {"label": "DAPI"}]}}
    group.attrs.update({"ome": about} if zarr_format == 3 else about)
    field = read_field(tmp_path / "a.zarr")
    np.testing.assert_array_equal(field.channel("Phase").read(), STACK)
    (tmp_path / "a.zarr" / "0" / array.metadata.encode_chunk_key((0,) * 4)).unlink()
    with pytest.raises(StorageError, match="parts of a stack are missing"):
        field.channel("Phase").read()
    np.testing.assert_array_equal(field.channel("DAPI").read(), BOTH[1])


def test_pixels_that_are_not_square_are_what_the_user_states(tmp_path: Path) -> None:
    path = ome_zarr(tmp_path, "micrometer", 1.0, (1.5, 0.3, 0.4))
    with pytest.raises(StorageError, match=r"pixel size .* not known.*not square: 0.4 x 0.3 um"):
        RecordedSpecimen.from_path(path)
    assert RecordedSpecimen.from_path(path, pixel_size_um=0.35).pixel_size_um == 0.35


# --- counts ---------------------------------------------------------------------------------------


@given(kind=st.sampled_from([np.int8, np.int16, np.int32, np.int64, np.uint32, np.uint64]), data=st.data())
def test_integers_of_every_type_keep_their_differences(kind: type[Any], data: st.DataObject) -> None:
    limits = np.iinfo(kind)
    low = data.draw(st.integers(int(limits.min), int(limits.max)))
    low = max(low, int(limits.min), -(2**40))
    high = min(int(limits.max), low + 65535 if low < 0 else 65535)
    values = np.array(data.draw(st.lists(st.integers(min(low, high), high), min_size=1)), kind)
    counts = as_counts(values, "a")
    wanted = [int(value) - min(int(values.min()), 0) for value in values]
    np.testing.assert_array_equal(counts, wanted)


@pytest.mark.parametrize("kind", [np.int8, np.int16])
def test_signed_counts_wider_than_half_their_type(kind: type[Any], tmp_path: Path) -> None:
    limits = np.iinfo(kind)
    stack = np.linspace(limits.min, limits.max, STACK.size).astype(kind).reshape(STACK.shape)
    tifffile.imwrite(tmp_path / "A1.tif", stack, photometric="minisblack", metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "A1_d.tif", stack[0], photometric="minisblack")
    (item,) = items(kind="tiff", folder=tmp_path, stack="A1.tif", labels={"nuclei": "A1_d.tif"},
                    pixel_size_um=0.3, z_step_um=1.5).values()  # fmt: skip
    np.testing.assert_array_equal(item.load().stack, stack.astype(int) - limits.min)


# --- TIFF -----------------------------------------------------------------------------------------


def mmstudio(folder: Path) -> Path:
    """A file for each position, each of which lists them all."""
    names = [f"mm_MMStack_Pos{number}.ome.tif" for number in range(3)]
    marks = [uuid.uuid4().urn for _ in names]

    def image(number: int) -> str:
        planes = "".join(
            f'<TiffData FirstC="{k % 2}" FirstT="0" FirstZ="{k // 2}" IFD="{k}" PlaneCount="1">'
            f'<UUID FileName="{names[number]}">{marks[number]}</UUID></TiffData>' for k in range(10)
        )  # fmt: skip
        return announced(planes, f"Pos{number}", channels=("Phase", "DAPI"))

    for number, name in enumerate(names):
        pages = np.swapaxes(BOTH + number, 0, 1).reshape(10, 24, 32)
        images = "".join(image(each) for each in range(3))
        write_ome(folder / name, pages, images, f' UUID="{marks[number]}"')
    return folder


def announced(planes: str, name: str, channels: Sequence[str] = ("Phase",)) -> str:
    """OME's description of a stack of five planes."""
    about = "".join(f'<Channel ID="Channel:{c}" Name="{c}" SamplesPerPixel="1"/>' for c in channels)
    lengths = " ".join(
        f'PhysicalSize{a}="{s}" PhysicalSize{a}Unit="µm"' for a, s in (("X", 0.3), ("Y", 0.3), ("Z", 1.5))
    )
    return (
        f'<Image ID="Image:{name}" Name="{name}"><Pixels ID="Pixels:{name}" DimensionOrder="XYCZT" '
        f'Type="uint16" SizeX="32" SizeY="24" SizeC="{len(channels)}" SizeZ="5" SizeT="1" {lengths}>'
        f"{about}{planes}</Pixels></Image>"
    )


def write_ome(path: Path, pages: np.ndarray, images: str, mark: str = "") -> None:
    schema = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    text = f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{schema}"{mark}>{images}</OME>'
    tifffile.imwrite(path, pages, photometric="minisblack", metadata=None, description=text.encode())


def test_a_file_of_mmstudio_is_its_own_position_and_no_other(tmp_path: Path) -> None:
    mmstudio(tmp_path)
    for number in range(3):
        path = tmp_path / f"mm_MMStack_Pos{number}.ome.tif"
        (field,) = TiffReader().read(path).fields
        assert field.channels == ("Phase", "DAPI")
        np.testing.assert_array_equal(field.channel("Phase").read(), STACK + number)
    with pytest.raises(StorageError, match=r"several images.*mm_MMStack_Pos0, mm_MMStack_Pos1"):
        RecordedSpecimen.from_path(tmp_path)
    chosen = RecordedSpecimen.from_path(tmp_path, place=("mm_MMStack_Pos2", None))
    np.testing.assert_array_equal(chosen.transmitted, STACK + 2)


def test_a_file_of_mmstudio_is_read_without_the_others(tmp_path: Path) -> None:
    mmstudio(tmp_path)
    (tmp_path / "mm_MMStack_Pos0.ome.tif").unlink()
    field = read_field(tmp_path / "mm_MMStack_Pos1.ome.tif")
    np.testing.assert_array_equal(field.channel("Phase").read(), STACK + 1)


def test_a_position_that_goes_on_in_a_second_file_is_one_field(tmp_path: Path) -> None:
    names, marks = ("a_MMStack_Pos0.ome.tif", "a_MMStack_Pos0_1.ome.tif"), ("urn:uuid:0", "urn:uuid:1")
    planes = "".join(
        f'<TiffData FirstC="{k % 2}" FirstZ="{k // 2}" IFD="{k % 6}" PlaneCount="1">'
        f'<UUID FileName="{names[k // 6]}">{marks[k // 6]}</UUID></TiffData>' for k in range(10)
    )  # fmt: skip
    pages = np.swapaxes(BOTH, 0, 1).reshape(10, 24, 32)
    image = announced(planes, "Pos0", channels=("Phase", "DAPI"))
    for name, mark, part in zip(names, marks, (pages[:6], pages[6:]), strict=True):
        write_ome(tmp_path / name, part, image, f' UUID="{mark}"')
    (field,) = read_data_set(tmp_path).fields
    np.testing.assert_array_equal(field.channel("Phase").read(), STACK)
    with pytest.raises(StorageError, match="no image of its own"):
        read_data_set(tmp_path / names[1])
    (tmp_path / names[1]).unlink()
    with pytest.raises(StorageError, match="planes are missing"):
        read_field(tmp_path).channel("Phase").read()


@pytest.mark.parametrize("type_", [np.int8, np.int16, np.int32, np.uint32, np.int64, np.uint64])
def test_a_specimen_may_be_of_any_integer_type(type_: type[np.integer], tmp_path: Path) -> None:
    low = max(int(np.iinfo(type_).min), -2000)
    counts = STACK // 32 if type_ is np.int8 else STACK
    stored = (counts.astype(np.int64) + low).astype(type_)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", metadata={"axes": "ZYX"})
    specimen = RecordedSpecimen.from_path(tmp_path / "a.tif", pixel_size_um=0.3, z_step_um=1.5)
    np.testing.assert_array_equal(specimen.transmitted, counts - (counts.min() if low < 0 else 0))


def test_what_macos_leaves_beside_files_is_no_file(tmp_path: Path) -> None:
    for name in ("phase", "dapi"):
        tifffile.imwrite(tmp_path / f"{name}.tif", STACK, photometric="minisblack")
        (tmp_path / f"._{name}.tif").write_bytes(b"\x00\x05\x16\x07")
    assert read_field(tmp_path).channels == ("dapi", "phase")


def test_positions_of_mmstudio_are_fields_each_once(tmp_path: Path) -> None:
    both = {"file": "mm_MMStack_{field}.ome.tif"}
    found = items(kind="tiff", folder=mmstudio(tmp_path), stack=both | {"channel": "Phase"},
                  labels={"nuclei": both | {"channel": "DAPI"}})  # fmt: skip
    assert list(found) == ["Pos0", "Pos1", "Pos2"]
    np.testing.assert_array_equal(found["Pos1"].load().labels["nuclei"], DAPI + 1)


@pytest.mark.parametrize("written", [1, 3, 4])
def test_planes_that_were_announced_and_never_written_are_not_black(written: int, tmp_path: Path) -> None:
    planes = "".join(f'<TiffData FirstZ="{k}" IFD="{k}" PlaneCount="1"/>' for k in range(written))
    write_ome(tmp_path / "a.ome.tif", STACK[:written], announced(planes, "a"))
    tifffile.imwrite(tmp_path / "a_d.tif", DAPI)
    with pytest.raises(StorageError, match=rf"planes are missing.*5 planes.*got: {written}"):
        RecordedSpecimen.from_path(tmp_path / "a.ome.tif")
    (item,) = items(kind="tiff", folder=tmp_path, stack="a.ome.tif", labels={"nuclei": "a_d.tif"}).values()
    with pytest.raises(StorageError, match="planes are missing"):
        item.load()


def test_heights_in_ome_metadata_order_the_planes(tmp_path: Path) -> None:
    order = [2, 3, 1, 4, 0]
    about = {"axes": "ZYX", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3, "Plane": {
        "PositionZ": [Z_UM[plane] for plane in order], "PositionZUnit": ["µm"] * 5}}  # fmt: skip
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK[order], ome=True, metadata=about)
    channel = read_field(tmp_path / "a.ome.tif").channel()
    assert channel.z_um == tuple(Z_UM[plane] for plane in order)
    np.testing.assert_array_equal(channel.read(), STACK)


def test_heights_that_contradict_the_z_step_are_asked_about(tmp_path: Path) -> None:
    heights = {"PositionZ": list(Z_UM), "PositionZUnit": ["µm"] * 5}
    about = {
        "axes": "ZYX",
        "PhysicalSizeX": 0.3,
        "PhysicalSizeY": 0.3,
        "PhysicalSizeZ": 1.0,
        "Plane": heights,
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, ome=True, metadata=about)
    channel = read_field(tmp_path / "a.ome.tif").channel()
    with pytest.raises(StorageError, match=r"1.5 um apart by their heights, but 1 um by the z step"):
        channel.lengths_um()
    assert channel.lengths_um(z_step_um=1.0)[1] == tuple(z / 1.5 for z in Z_UM)


@pytest.mark.parametrize(
    "labels, names",
    [
        (lambda c, z: f"{c} z{z}", ("Phase", "DAPI")),
        (lambda c, z: f"c:{1 + (c == 'DAPI')}/2 z:{z + 1}/5 - {c}", ("Phase", "DAPI")),
        (lambda c, z: f"c:{1 + (c == 'DAPI')}/2 z:{z + 1}/5 - a.tif", ("channel 0", "channel 1")),
        (lambda c, z: f"{z}", ("channel 0", "channel 1")),
    ],
)
def test_imagejs_labels_are_of_images_not_of_channels(
    labels: Callable[[str, int], str], names: tuple[str, ...], tmp_path: Path
) -> None:
    about = {"axes": "ZCYX", "unit": "um", "spacing": 1.5, "mode": "composite",
             "Labels": [labels(c, z) for z in range(5) for c in ("Phase", "DAPI")]}  # fmt: skip
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, np.swapaxes(BOTH, 0, 1), imagej=True, resolution=(1 / 0.3, 1 / 0.3), metadata=about
    )
    field = read_field(path)
    assert field.channels == names
    np.testing.assert_array_equal(field.channel(0).read(), STACK)
    np.testing.assert_array_equal(field.channel(1).read(), BOTH[1])


# --- Micro-Manager's image files ------------------------------------------------------------------


def mm_images(folder: Path, planes: Sequence[int] = range(5), old: bool = False) -> Path:
    """One plane a file, and the metadata of all beside them."""
    (folder / "Pos0").mkdir(parents=True)
    about: dict[str, Any] = {"Summary": {
        "PixelSize_um": 0.3, "z-step_um": 1.5, "ChNames": ["Phase", "DAPI"], "Slices": 5}}  # fmt: skip
    for c, channel in enumerate(("Phase", "DAPI")):
        for z in planes:
            name = f"img_channel{c:03d}_position000_time000000000_z{z:03d}.tif"
            if old:
                name = f"img_000000000_{channel}_{z:03d}.tif"
            about[f"FrameKey-0-{c}-{z}" if old else f"Metadata-Pos0/{name}"] = {
                "ZPositionUm": Z_UM[z]} | ({"FileName": name} if old else {})  # fmt: skip
            tifffile.imwrite(folder / "Pos0" / name, BOTH[c, z])
    (folder / "Pos0" / "metadata.txt").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("old", [False, True], ids=["2.0", "1.4"])
@pytest.mark.parametrize("inner", ["", "Pos0"])
def test_micromanagers_image_files_are_planes_of_one_field(old: bool, inner: str, tmp_path: Path) -> None:
    specimen = RecordedSpecimen.from_path(mm_images(tmp_path, old=old) / inner)
    np.testing.assert_array_equal(specimen.transmitted, STACK)
    assert list(specimen.labels) == ["nuclei"]
    assert specimen.pixel_size_um == 0.3 and specimen.planes_z_um == Z_UM


def test_of_a_stopped_acquisitions_metadata_the_beginning_counts(tmp_path: Path) -> None:
    about = mm_images(tmp_path) / "Pos0" / "metadata.txt"
    about.write_text(about.read_text()[:150])
    field = read_field(tmp_path)
    assert field.channels == ("Phase", "DAPI") and field.channel("Phase").lengths.pixel_size_um == 0.3
    about.write_text('{"Summary": {"ChNa')
    assert read_field(tmp_path).channels == ("channel 0", "channel 1")


def test_a_missing_image_file_is_named(tmp_path: Path) -> None:
    for planes in ([0, 1, 3, 4], [0, 1, 2]):
        folder = mm_images(tmp_path / str(len(planes)), planes)
        with pytest.raises(
            StorageError, match=r"planes are missing.*planes of (Phase|DAPI) 0 to 4.*got: 0, 1"
        ):
            RecordedSpecimen.from_path(folder)


def test_a_folder_of_image_files_is_a_field_to_train_on(tmp_path: Path) -> None:
    folder = mm_images(tmp_path)
    part = {"file": "{field}"}
    found = items(kind="tiff", folder=folder, stack=part | {"channel": "Phase"},
                  labels={"nuclei": part | {"channel": "DAPI"}})  # fmt: skip
    recording = found["Pos0"].load()
    np.testing.assert_array_equal(recording.stack, STACK)
    np.testing.assert_array_equal(recording.labels["nuclei"], DAPI)
    planes = {"file": "{field}/img_channel000_*.tif"}
    with pytest.raises(PairRefused, match=r"is one plane of a z-stack.*the folder"):
        items(kind="tiff", folder=folder, stack=planes, labels={"nuclei": "x"})


# --- NDTiff ---------------------------------------------------------------------------------------


def put(
    folder: Path, images: Sequence[tuple[dict[str, Any], np.ndarray, dict[str, Any]]], **summary: Any
) -> Path:
    """Write a data set of version 3."""
    from ndstorage.ndtiff_dataset import NDTiffDataset

    folder.mkdir(parents=True, exist_ok=True)
    data = NDTiffDataset(str(folder), summary_metadata=summary, writable=True)
    for axes, pixels, about in images:
        data.put_image(axes, pixels, about)
    data.finish()
    data.close()
    return folder


def ndtiff(
    folder: Path, heights: Sequence[float], planes: Sequence[int] = range(5), key: str = "ZPosition_um"
) -> Path:
    """One position, whose planes are numbered as they come."""
    images = [({"channel": "Phase", "position": "A1_0", "z": z}, STACK[Z_UM.index(height)] if height in Z_UM
               else STACK[0], {"PixelSize_um": 0.3, key: height})
              for z, height in zip(planes, heights, strict=True)]  # fmt: skip
    images.append(({"channel": "DAPI", "position": "A1_0", "z": 0}, DAPI, {"PixelSize_um": 0.3, key: 0.0}))
    return put(folder, images)


def the_item(folder: Path, **more: Any) -> Any:
    (item,) = items(kind="ndtiff", folder=folder, stack="Phase", labels={"nuclei": "DAPI"}, **more).values()
    return item


def test_planes_acquired_from_the_middle_out_are_sorted_by_height(tmp_path: Path) -> None:
    folder = ndtiff(tmp_path, [0.0, 1.5, -1.5, 3.0, -3.0])
    channel = read_field(folder).channel("Phase")
    assert channel.z_um == (0.0, 1.5, -1.5, 3.0, -3.0)
    np.testing.assert_array_equal(channel.read(), STACK)
    assert the_item(folder).load().z_um == Z_UM
    assert RecordedSpecimen.from_path(folder).planes_z_um == Z_UM


@pytest.mark.parametrize("stated", [{}, {"z_step_um": 3.0}])
def test_a_gap_in_z_stays_a_gap(stated: dict[str, float], tmp_path: Path) -> None:
    folder = ndtiff(tmp_path, [-3.0, -1.5, 1.5, 3.0], [0, 1, 3, 4])
    recording = the_item(folder, **stated).load()
    scale = 2 if stated else 1
    assert recording.z_um == tuple(scale * height for height in (-3.0, -1.5, 1.5, 3.0))
    with pytest.raises(PairRefused, match=r"planes are missing: z steps vary from"):
        bring_to_model(recording, Geometry(Nominal(4, 0.3, 2.0), 8.0, ("nuclei",), 8), "a")
    with pytest.raises(StorageError, match="planes are missing"):
        RecordedSpecimen.from_path(folder, **stated)


def test_heights_that_jitter_are_kept(tmp_path: Path) -> None:
    heights = (-3.1, -1.5, 0.1, 1.5, 3.0)
    images = [({"channel": "Phase", "z": z}, STACK[z], {"PixelSize_um": 0.3, "ZPositionUm": height})
              for z, height in enumerate(heights)]  # fmt: skip
    specimen = RecordedSpecimen.from_path(put(tmp_path, images))
    np.testing.assert_allclose(np.diff(specimen.planes_z_um), np.diff(heights))


def test_a_missing_number_is_a_missing_plane_where_heights_are_not_known(tmp_path: Path) -> None:
    folder = ndtiff(tmp_path, [-3.0, -1.5, 1.5, 3.0], [0, 1, 3, 4], key="somewhere")
    with pytest.raises(StorageError, match=r"planes of Phase are missing.*0, 1, 3, 4"):
        read_field(folder).channel("Phase")


def test_a_stage_that_reports_one_height_for_all_tells_none(tmp_path: Path) -> None:
    folder = ndtiff(tmp_path, [0.0] * 5)
    with pytest.raises(StorageError, match=r"the z step .* is not known"):
        the_item(folder).load()
    assert the_item(folder, z_step_um=1.5).load().z_step_um == 1.5


def test_an_empty_file_in_a_data_set_is_no_part_of_it(tmp_path: Path) -> None:
    folder = ndtiff(tmp_path, Z_UM)
    (folder / "NDTiffStack_1.tif").touch()
    np.testing.assert_array_equal(read_field(folder).channel("Phase").read(), STACK)


@pytest.mark.parametrize("suffix", ["", "_1"])
def test_a_data_set_without_its_index_is_no_folder_of_planes(suffix: str, tmp_path: Path) -> None:
    folder = ndtiff(tmp_path, Z_UM)
    (folder / INDEX).unlink()
    (folder / "NDTiffStack.tif").rename(folder / f"mine_NDTiffStack{suffix}.tif")
    with pytest.raises(StorageError, match=rf"wanted: a file {INDEX}.*acq-isl recover"):
        read_data_set(folder)


def test_a_file_that_was_cut_is_an_error(tmp_path: Path) -> None:
    folder = ndtiff(tmp_path, Z_UM)
    path = folder / "NDTiffStack.tif"
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(StorageError, match="ends too early"):
        read_field(folder).channel("Phase").read()


def pyramid(folder: Path) -> Path:
    """Two tiles that share four columns, and half of them in size."""
    for name, step in (("Full resolution", 1), ("Downsampled_x2", 2)):
        images = [({"row": 0, "column": column, "channel": channel, "z": z},
                   np.ascontiguousarray((BOTH[c, z] + column)[::step, ::step]),
                   {"PixelSize_um": 0.3, "ZPosition_um_Intended": Z_UM[z]})
                  for column in range(2) for c, channel in enumerate(("Phase", "DAPI"))
                  for z in range(5)]  # fmt: skip
        put(folder / name, images, GridPixelOverlapX=4, GridPixelOverlapY=0)
    return folder


def test_tiles_of_a_pyramid_are_fields_at_full_resolution(tmp_path: Path) -> None:
    folder = pyramid(tmp_path / "set")
    data = read_data_set(folder)
    assert [field.name for field in data.fields] == ["row 0 column 0", "row 0 column 1"]
    # What two tiles share is in neither.
    np.testing.assert_array_equal(data.fields[1].channel("Phase").read(), STACK[:, :, 2:-2] + 1)
    found = items(kind="ndtiff", folder=tmp_path, stack="Phase", labels={"nuclei": "DAPI"})
    assert list(found) == ["row 0 column 0", "row 0 column 1"]
    assert found["row 0 column 0"].load().stack.shape == (5, 24, 28)


def version_2(folder: Path) -> Path:
    """Channels have numbers, and the header is four bytes shorter."""
    full = folder / "Full resolution"
    full.mkdir(parents=True)
    summary = json.dumps({"ChNames": ["Phase", "DAPI"]}).encode()
    content = bytearray(struct.pack("<HHIIIII", 0x4949, 42, 0, 483729, 2, 2355492, len(summary)) + summary)
    index = b""
    for c, z in [(0, z) for z in range(5)] + [(1, 0)]:
        about = json.dumps({"PixelSizeUm": 0.3, "ZPositionUm": Z_UM[z]}).encode()
        axes = json.dumps({"channel": c, "position": 0, "z": z}).encode()
        place, pixels = len(content), BOTH[c, z].tobytes()
        content += pixels + about
        name = b"x_NDTiffStack.tif"
        index += struct.pack("<I", len(axes)) + axes + struct.pack("<I", len(name)) + name
        index += struct.pack("<8I", place, 32, 24, 1, 0, place + len(pixels), len(about), 0)
    (full / "x_NDTiffStack.tif").write_bytes(content)
    (full / INDEX).write_bytes(index)
    return folder


def test_version_2_is_read_as_well(tmp_path: Path) -> None:
    specimen = RecordedSpecimen.from_path(version_2(tmp_path))
    np.testing.assert_array_equal(specimen.transmitted, STACK)
    np.testing.assert_array_equal(specimen.labels["nuclei"].pixels, DAPI)
    assert specimen.pixel_size_um == 0.3


@pytest.mark.parametrize("axes", [{"filter": 1}, {"z": 0, "round": "a"}])
def test_axes_that_nobody_knows_are_named(axes: dict[str, Any], tmp_path: Path) -> None:
    folder = put(tmp_path, [(axes, DAPI, {})])
    with pytest.raises(StorageError, match=r"not a set of z-stacks.*got: (filter|round)"):
        NdtiffReader().read(folder)


# --- stacks for a model ---------------------------------------------------------------------------


MANIFEST = tiny_model.MANIFEST.model_copy(update={"z_offsets_um": Z_UM, "pixel_size_um": 0.5})


def test_a_stack_says_itself_where_its_planes_lie(tmp_path: Path) -> None:
    stack = read_stack(ndtiff(tmp_path / "a", [2 * z for z in Z_UM]), MANIFEST)
    assert stack.info.z_um == tuple(2 * z for z in Z_UM) and stack.info.pixel_size_um == 0.3
    assert read_stack(tmp_path / "a", MANIFEST, 0.65).info.pixel_size_um == 0.65


def test_a_stack_that_says_nothing_lies_where_the_model_expects_it(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK.astype(np.int16) - 2000, metadata={"axes": "ZYX"})
    stack = read_stack(tmp_path / "a.tif", MANIFEST)
    assert (stack.info.z_um, stack.info.pixel_size_um) == (Z_UM, 0.5)
    np.testing.assert_array_equal(stack.pixels, STACK - int(STACK.min()))


def test_what_is_no_stack_for_the_model_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", STACK[:3], photometric="minisblack", metadata={"axes": "ZYX"})
    with pytest.raises(StackRefused, match=r"wanted: \(5 planes, rows, columns\); got: \(3, 24, 32\)"):
        read_stack(tmp_path / "a.tif", MANIFEST)
    with pytest.raises(StackRefused, match="no recording at"):
        read_stack(tmp_path / "gone.tif", MANIFEST)


# --- readers of other packages --------------------------------------------------------------------

PLUGIN = """
from pathlib import Path
import numpy as np
from acq_isl.readers import DataSet, Lengths, RecordedChannel, RecordedField

class NpyReader:
    def recognises(self, path: Path) -> bool:
        return path.suffix == ".npy"

    def read(self, path: Path) -> DataSet:
        pixels = np.load(path)
        names = ("Phase", "DAPI")
        def open_channel(number: int) -> RecordedChannel:
            return RecordedChannel(
                str(path), names[number], pixels[number].shape, pixels.dtype, Lengths(0.3, 1.5), None,
                lambda planes: pixels[number][list(planes)])
        return DataSet(path, "an array", (RecordedField(path, path.stem, names, open_channel, (path,)),))

class NoReader:
    pass
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Put a package with entry points on the path."""
    (folder / "npy_reader.py").write_text(PLUGIN)
    about = folder / "npy_reader-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: npy-reader\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (about / "entry_points.txt").write_text(f"[acq_isl.readers]\n{lines}")
    monkeypatch.syspath_prepend(str(folder))


def test_another_package_adds_a_format_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, npy="npy_reader:NpyReader")
    path = tmp_path / "a.npy"
    np.save(path, BOTH)
    specimen = RecordedSpecimen.from_path(path)
    np.testing.assert_array_equal(specimen.transmitted, STACK)
    (item,) = items(kind="recording", path=path, stack="Phase", labels={"nuclei": "DAPI"}).values()
    np.testing.assert_array_equal(item.load().labels["nuclei"], DAPI)
    assert item.labels == ("nuclei",)


@pytest.mark.parametrize("value", ["npy_reader:NoReader", "npy_reader:Gone", "not_there:Reader"])
def test_a_broken_reader_is_told_and_no_more(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, monkeypatch, broken=value)
    with caplog.at_level(logging.WARNING):
        found = readers()
    assert f"the reader 'broken' of {value} cannot be used" in caplog.text
    assert len(found) == 5 and all(isinstance(reader, Reader) for reader in found)


def test_our_own_readers_are_entry_points_as_well() -> None:
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(settings["project"]["entry-points"]["acq_isl.readers"].values())
    assert listed == {f"{type(reader).__module__}:{type(reader).__name__}" for reader in readers()}
