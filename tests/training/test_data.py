"""Pairs from every kind of file, brought to one model; what is wrong with them is said."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter
from scipy import ndimage

from acq_isl.errors import PairRefused, StorageError
from acq_isl.readers.image_folder import ImageFolderReader, parse
from acq_isl.readers.recording import as_counts
from acq_isl.readers.tiff import TiffReader
from acq_isl.training.data.dataset import open_field, prepare, truth_ranges
from acq_isl.training.data.geometry import Geometry, bring_to_model
from acq_isl.training.data.pairs import Checks, Item, Nominal, Recording, examine
from acq_isl.training.data.registration import find_shift, structure
from acq_isl.training.data.sources import Source

NOMINAL = Nominal(3, 0.3, 1.5)
GEOMETRY = Geometry(NOMINAL, 8.0, ("nuclei", "axons"), 8)
STACK = np.random.default_rng(0).integers(90, 4000, (3, 40, 48)).astype(np.uint16)
LABEL = np.random.default_rng(1).integers(0, 4000, (40, 48)).astype(np.uint16)


def source(**values):
    return TypeAdapter(Source).validate_python(values)


def read(one, nominal=NOMINAL):
    return {item.name: (item, item.load()) for item in one.items(nominal)}


# --- TIFF -----------------------------------------------------------------------------------------


def write_ome(path, pixels, axes="ZYX", **more):
    about = {"axes": axes, "PhysicalSizeX": 300.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.3,
             "PhysicalSizeZ": 1.5} | more  # fmt: skip
    tifffile.imwrite(path, pixels, metadata=about, ome=True)


def tiff(folder, **more):
    values = {"stack": "{well}_{field}_phase.ome.tif", "labels": {"nuclei": "{well}_{field}_dapi.tif"}}
    return source(kind="tiff", folder=folder, **(values | more))


def test_tiff_fields_are_named_by_a_pattern_and_lengths_read(tmp_path):
    for well, field in (("A1", 1), ("A1", 2), ("B3", 1)):
        write_ome(tmp_path / f"{well}_{field}_phase.ome.tif", STACK + field)
        if (well, field) != ("B3", 1):
            tifffile.imwrite(tmp_path / f"{well}_{field}_dapi.tif", LABEL)
    (tmp_path / "notes.txt").write_text("nothing")
    found = read(tiff(tmp_path, plate="p"))
    assert [(name, item.well) for name, (item, _) in found.items()] == [
        ("p/A1/1", "p/A1"), ("p/A1/2", "p/A1"), ("p/B3/1", "p/B3")]  # fmt: skip
    recording = found["p/A1/2"][1]
    np.testing.assert_array_equal(recording.stack, STACK + 2)
    np.testing.assert_array_equal(recording.labels["nuclei"], LABEL)
    assert (recording.pixel_size_um, recording.z_step_um) == (0.3, 1.5)
    assert found["p/B3/1"][1].labels == {}


def test_channels_of_one_file(tmp_path):
    both = np.stack([STACK, STACK[::-1]], axis=1)
    write_ome(tmp_path / "A1.ome.tif", both, "ZCYX", Channel={"Name": ["Phase", "DAPI"]})
    one = tiff(
        tmp_path,
        stack={"file": "{well}.ome.tif", "channel": "Phase"},
        labels={"nuclei": {"file": "{well}.ome.tif", "channel": 1}},
    )
    recording = read(one)["A1"][1]
    np.testing.assert_array_equal(recording.stack, STACK)
    np.testing.assert_array_equal(recording.labels["nuclei"], STACK.max(axis=0))
    wrong = tiff(
        tmp_path, stack={"file": "{well}.ome.tif", "channel": "DIC"}, labels={"nuclei": "{well}.tif"}
    )
    with pytest.raises(StorageError, match=r"no channel DIC.*Phase, DAPI"):
        read(wrong)


def test_several_images_of_a_file_are_fields(tmp_path):
    with tifffile.TiffWriter(tmp_path / "A1.ome.tif", ome=True) as file:
        for number in range(2):
            file.write(STACK + number, metadata={"axes": "ZYX", "PhysicalSizeX": 0.3, "PhysicalSizeZ": 1.5})
    with tifffile.TiffWriter(tmp_path / "A1_dapi.tif", ome=True) as file:
        for _ in range(2):
            file.write(LABEL, metadata={"axes": "YX"})
    one = tiff(tmp_path, stack="{well}.ome.tif", labels={"nuclei": "{well}_dapi.tif"})
    items = list(one.items(NOMINAL))
    assert [item.name for item in items] == ["A1/#0", "A1/#1"]
    assert items[1].labels == ("nuclei",)
    np.testing.assert_array_equal(items[1].load().stack, STACK + 1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "pixel size and the z step"),
        ({"pixel_size_um": 0.3}, "z step"),
        ({"pixel_size_um": 0.3, "z_step_um": 1.5}, None),
    ],
)
def test_lengths_nobody_knows_are_asked_for(tmp_path, given, says):
    tifffile.imwrite(tmp_path / "A1_1_phase.ome.tif", STACK, ome=False, photometric="minisblack")
    one = tiff(tmp_path, **given)
    if says is None:
        assert read(one)["A1/1"][1].pixel_size_um == 0.3
        return
    with pytest.raises(StorageError, match=f"the {says} of .* not known.*say "):
        read(one)


def test_imagej_metadata(tmp_path):
    tifffile.imwrite(
        tmp_path / "A1_1_phase.ome.tif", STACK, imagej=True, resolution=(1 / 0.3, 1 / 0.3),
        metadata={"axes": "ZYX", "spacing": 1.5, "unit": "um"},
    )  # fmt: skip
    recording = read(tiff(tmp_path))["A1/1"][1]
    assert recording.pixel_size_um == pytest.approx(0.3)
    assert recording.z_step_um == 1.5


@pytest.mark.parametrize("harm", ["cut", "none", "text"])
def test_a_damaged_tiff_is_explained(tmp_path, harm):
    path = tmp_path / "A1_1_phase.ome.tif"
    write_ome(path, np.tile(STACK, (1, 8, 8)))
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "none": b"", "text": b"hello"}[harm])
    with pytest.raises(StorageError):
        read(tiff(tmp_path))


def test_nothing_found_is_explained(tmp_path):
    with pytest.raises(StorageError, match="is called like"):
        list(tiff(tmp_path).items(NOMINAL))


# --- NDTiff ---------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[("PixelSize_um", "ZPosition_um_Intended"), ("PixelSizeUm", "ZPosition_um_Intended"),
            ("PixelSize_um", "ZPosition_um"), ("PixelSizeUm", "ZPositionUm")],
    ids="-".join,
)  # fmt: skip
def ndtiff(request, tmp_path_factory):
    """As the Python and the Java backend of Pycro-Manager, and their older versions, name lengths."""
    from ndstorage.ndtiff_dataset import NDTiffDataset

    size, place = request.param
    folder = tmp_path_factory.mktemp("ndtiff")
    data = NDTiffDataset(str(folder), name="run", summary_metadata={}, writable=True)
    data.initialize({})
    for position in ("A1_0", "A1_1", "B2_0"):
        for z in (2, 0, 1):
            about = {size: 0.3, place: 10 + 1.5 * z}
            data.put_image({"position": position, "channel": "Phase", "z": z}, STACK[z], about)
        if position != "B2_0":
            data.put_image({"position": position, "channel": "DAPI", "z": 0}, LABEL, {size: 0.3})
    data.finish()
    data.close()
    return folder


def test_ndtiff(ndtiff, capsys):
    found = read(source(kind="ndtiff", folder=ndtiff, stack="Phase", labels={"nuclei": "DAPI"}))
    assert {name: (item.well, item.labels) for name, (item, _) in found.items()} == {
        "A1_0": ("A1", ("nuclei",)), "A1_1": ("A1", ("nuclei",))}, "B2_0 was not stained"  # fmt: skip
    recording = found["A1_1"][1]
    np.testing.assert_array_equal(recording.stack, STACK)
    np.testing.assert_array_equal(recording.labels["nuclei"], LABEL)
    assert (recording.pixel_size_um, recording.z_step_um) == (0.3, 1.5)
    assert capsys.readouterr().out == ""


def test_a_channel_that_an_ndtiff_has_not(ndtiff):
    one = source(kind="ndtiff", folder=ndtiff, stack="DIC", labels={"nuclei": "DAPI"})
    with pytest.raises(PairRefused, match=r"no channel DIC.*DAPI, Phase"):
        list(one.items(NOMINAL))


# --- OME-Zarr -------------------------------------------------------------------------------------


def write_zarr(path, version, pixels, channels=("Phase", "DAPI")):
    image = {
        "multiscales": [{
            "name": "a",
            "axes": [{"name": "c", "type": "channel"},
                     *({"name": n, "type": "space", "unit": "micrometer"} for n in "zyx")],
            "datasets": [{"path": "0", "coordinateTransformations": [
                {"type": "scale", "scale": [1.0, 1.5, 0.3, 0.3]}]}],
        }],
        "omero": {"channels": [{"label": c, "color": "FFFFFF",
                                "window": {"start": 0, "end": 1, "min": 0, "max": 1}} for c in channels]},
    }  # fmt: skip
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    if version == "0.4":
        image["multiscales"][0]["version"] = "0.4"
        group.attrs.update(image)
    else:
        group.attrs["ome"] = {"version": "0.5", **image}
    array = group.create_array("0", shape=pixels.shape, chunks=pixels.shape, dtype=pixels.dtype)
    array[:] = pixels


PIXELS = np.stack([STACK, np.repeat(LABEL[None], 3, axis=0)])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint8, np.float32])
def test_ome_zarr(tmp_path, version, dtype):
    pixels = (PIXELS >> 4).astype(dtype)
    write_zarr(tmp_path / "A1.ome.zarr", version, pixels)
    one = source(kind="ome_zarr", path=tmp_path, stack="Phase", labels={"nuclei": "DAPI", "axons": "NFH"})
    ((item, recording),) = read(one).values()
    assert item.labels == ("nuclei",)
    assert (recording.pixel_size_um, recording.z_step_um) == (0.3, 1.5)
    assert np.corrcoef(recording.stack.ravel(), pixels[0].ravel())[0, 1] > 0.999999
    np.testing.assert_array_equal(recording.labels["nuclei"], pixels[1].max(axis=0))


def test_an_ome_zarr_plate_knows_its_wells(tmp_path):
    plate = zarr.open_group(tmp_path / "p.zarr", mode="w")
    wells = [
        {"path": "A/1", "rowIndex": 0, "columnIndex": 0},
        {"path": "B/1", "rowIndex": 1, "columnIndex": 0},
    ]
    plate.attrs["ome"] = {"version": "0.5", "plate": {
        "rows": [{"name": "A"}, {"name": "B"}], "columns": [{"name": "1"}], "wells": wells}}  # fmt: skip
    for well in wells:
        images = [{"path": "0"}, {"path": "1"}]
        group = zarr.open_group(tmp_path / "p.zarr" / well["path"], mode="w")
        group.attrs["ome"] = {"version": "0.5", "well": {"images": images}}
        for image in images:
            write_zarr(tmp_path / "p.zarr" / well["path"] / image["path"], "0.5", PIXELS)
    one = source(kind="ome_zarr", path=tmp_path / "p.zarr", stack=0, labels={"nuclei": 1})
    assert [(item.name, item.well) for item in one.items(NOMINAL)] == [
        ("A/1/0", "A1"), ("A/1/1", "A1"), ("B/1/0", "B1"), ("B/1/1", "B1")]  # fmt: skip


# --- the published PNG folders --------------------------------------------------------------------

REPOSITORY = (
    "lab-FINKBEINER,condition-KEVAN_0_8,acquisition_date,year-2015,month-10,day-5,minute-0,well-{well},"
    "tile_computation-STITCHED,{place},channel-{channel},is_mask-{mask}.png"
)
PUBLISHED = (
    "lab-Finkbeiner,condition-kevan_0_8,acquisition_date,year-2015,month-9,day-28,well-{well},{place},"
    "channel,value-{channel},is_mask-{mask},kind,value-ORIGINAL.png"
)
DIALECTS = {REPOSITORY: "depth_computation-MAXPROJECT", PUBLISHED: "depth_computation,value-MAXPROJECT"}


def write_png(folder, dialect, well="A4", dtype=np.uint16, skip=(), masks=()):
    def save(pixels, **parts):
        name = dialect.format(well=well, **({"mask": "false"} | parts))
        Image.fromarray(pixels.astype(dtype)).save(folder / name)

    for z, plane in enumerate(STACK):
        if z not in skip:
            save(plane >> 4, place=f"z_depth-{z}", channel="PHASE_CONTRAST")
    save(LABEL >> 4, place=DIALECTS[dialect], channel="DAPI_CONFOCAL")
    for mask in masks:
        save(mask, place=DIALECTS[dialect], channel="DAPI_CONFOCAL", mask="true")


def google(folder, **more):
    return source(kind="google_png", folder=folder, **({"z_step_um": 1.5} | more))


@pytest.mark.parametrize("dialect", list(DIALECTS), ids=["repository", "published"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_google_png_in_both_dialects(tmp_path, dialect, dtype):
    for well in ("A4", "B2"):
        write_png(tmp_path, dialect, well, dtype)
    predicted = PUBLISHED.format(well="A4", place=DIALECTS[PUBLISHED], channel="DAPI_CONFOCAL", mask="false")
    Image.fromarray(LABEL).save(tmp_path / predicted.replace("ORIGINAL", "PREDICTED"))
    found = read(google(tmp_path))
    assert [item.well.partition("/")[2] for item, _ in found.values()] == ["A4", "B2"]
    item, recording = next(iter(found.values()))
    assert item.labels == ("nuclei",)
    np.testing.assert_array_equal(recording.stack, (STACK >> 4).astype(dtype))
    np.testing.assert_array_equal(recording.labels["nuclei"], (LABEL >> 4).astype(dtype))
    assert (recording.pixel_size_um, recording.z_step_um) == (0.3, 1.5)


def test_masks_say_where_a_label_holds(tmp_path):
    mask = np.zeros((40, 48))
    mask[:20] = 255
    write_png(tmp_path, REPOSITORY, masks=[mask])
    ((_, recording),) = read(google(tmp_path)).values()
    np.testing.assert_array_equal(recording.valid["nuclei"], mask > 0)


def test_a_missing_plane_is_named(tmp_path):
    write_png(tmp_path, PUBLISHED, skip=(1,))
    (field,) = ImageFolderReader().read(tmp_path).fields
    with pytest.raises(StorageError, match=r"planes are missing.*0 to 2.*got: 0, 2"):
        field.channel(0)


def test_a_damaged_png_is_explained(tmp_path):
    write_png(tmp_path, PUBLISHED)
    path = next(tmp_path.glob("*z_depth-0*"))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(StorageError, match="cannot be read"):
        read(google(tmp_path))


@given(st.text(alphabet="abz_-,0123", max_size=40))
def test_any_name_is_read_or_left_alone(tmp_path_factory, text):
    name = parse(tmp_path_factory.getbasetemp() / f"{text or 'x'}.png")
    assert name is None or name.channel


# --- brought to one model -------------------------------------------------------------------------


def item_of(recording, name="a", **more):
    return Item(name, "w", name, lambda: recording, labels=tuple(recording.labels), **more)


def heights(planes, step_um=1.5):
    return tuple(step_um * plane for plane in range(planes))


def blobs(side=96, planes=3, seed=0, shift=(0, 0)):
    rng = np.random.default_rng(seed)
    cells = ndimage.gaussian_filter((rng.random((side + 160, side + 160)) > 0.9985).astype(float), 4)
    cells /= cells.max()
    at = 80
    seen = cells[at : at + side, at : at + side]
    moved = cells[at - shift[0] : at - shift[0] + side, at - shift[1] : at - shift[1] + side]
    focus = np.linspace(-1, 1, planes)[:, None, None]
    stack = 20000 + 9000 * seen * focus + rng.normal(0, 300, (planes, side, side))
    label = 1000 + 20000 * moved + rng.normal(0, 100, (side, side))
    return Recording(stack.astype(np.uint16), {"nuclei": label.astype(np.uint16)}, 0.3, heights(planes))


@pytest.mark.parametrize(
    ("planes", "step_um", "pixel_um", "shape"),
    [(3, 1.5, 0.3, (3, 96, 96)), (3, 1.7, 0.31, (3, 96, 96)), (9, 0.75, 0.3, (3, 96, 96)),
     (3, 1.5, 0.2, (3, 64, 64)), (5, 1.0, 0.45, (3, 144, 144)), (3, -1.5, 0.3, (3, 96, 96))],
)  # fmt: skip
def test_other_pixel_sizes_and_steps_are_resampled(planes, step_um, pixel_um, shape):
    recording = blobs(planes=planes)
    recording = Recording(recording.stack, recording.labels, pixel_um, heights(planes, step_um))
    fitted = bring_to_model(recording, GEOMETRY, "a")
    assert fitted.stack.shape == shape and fitted.labels["nuclei"].shape == shape[1:]
    if step_um < 0:
        np.testing.assert_array_equal(fitted.stack, recording.stack[::-1])


def test_too_few_planes_are_refused():
    recording = blobs(planes=2)
    with pytest.raises(PairRefused, match=r"a: the stack has 2 planes.*needs 3 over 5 um.*leave it out"):
        bring_to_model(recording, Geometry(Nominal(3, 0.3, 2.5), 8.0, ("nuclei",), 8), "a")


def test_prepared_fields_come_back_and_are_made_once(tmp_path):
    calls = []
    recording = blobs()

    def load():
        calls.append(1)
        return recording

    one = Item("a", "w", "stamp", load)
    first = prepare(one, GEOMETRY, Checks(), tmp_path)
    again = prepare(one, GEOMETRY, Checks(), tmp_path)
    assert first == again
    assert len(calls) == 1
    assert first.present == (True, False)
    field = open_field(first, [(1000.0, 21000.0), (0.0, 1.0)])
    wanted = np.clip((recording.labels["nuclei"].astype(float) - 1000) / 20000, 0, 1)
    np.testing.assert_allclose(field.y[0] / 255, wanted, atol=0.003)
    assert field.present == (True, False)
    # More fields than the memory holds: all that is large stays on disk.
    assert all(isinstance(part, np.memmap) for part in (field.x, field.y, field.foreground, field.valid))
    assert abs(float(np.std(field.x.astype(float))) - 1) < 0.2


def test_truth_is_scaled_by_the_training_set_never_by_the_field(tmp_path):
    dim, bright = blobs(seed=1), blobs(seed=2)
    dim = Recording(dim.stack, {"nuclei": (dim.labels["nuclei"] // 4)}, 0.3, dim.z_um)
    prepared = [
        prepare(item_of(r, name), Geometry(NOMINAL, 8.0, ("nuclei",), 8), Checks(), tmp_path)
        for r, name in ((dim, "dim"), (bright, "bright"))
    ]
    ranges = truth_ranges(prepared, ["nuclei"])
    pooled = np.concatenate([dim.labels["nuclei"].ravel(), bright.labels["nuclei"].ravel()])
    np.testing.assert_allclose(ranges[0], np.percentile(pooled, (1, 99.8)), rtol=0.02)
    fields = [open_field(one, ranges) for one in prepared]
    assert fields[0].y.max() < 0.5 * fields[1].y.max()


# --- what is wrong with pairs ---------------------------------------------------------------------


def changed(recording, **more):
    return Recording(
        **({n: getattr(recording, n) for n in ("stack", "labels", "pixel_size_um", "z_um")} | more)
    )


def black_plane():
    recording = blobs()
    stack = recording.stack.copy()
    stack[1] = 0
    return replace(recording, stack=stack)


def constant():
    return changed(blobs(), stack=np.full((3, 96, 96), 500, np.uint16))


def blank_label():
    return changed(blobs(), labels={"nuclei": np.full((96, 96), 7, np.uint16)})


def wrong_size():
    return changed(blobs(), labels={"nuclei": np.zeros((96, 90), np.uint16)})


def with_nan():
    label = blobs().labels["nuclei"].astype(np.float32)
    label[3, 3] = np.nan
    return changed(blobs(), labels={"nuclei": label})


def overexposed():
    return changed(blobs(), stack=np.minimum(blobs().stack, 20000))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (constant, PairRefused, "the stack is constant"),
        (black_plane, PairRefused, "plane 1 of the stack is constant"),
        (blank_label, PairRefused, "nuclei is constant"),
        (wrong_size, PairRefused, r"same size.*96 x 96 pixels.*got: 96 x 90"),
        (with_nan, StorageError, "NaN or infinite"),
        (overexposed, PairRefused, "is saturated"),
    ],
)
def test_useless_pairs_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        examine(make(), "plate/A1", Checks())


def test_a_little_saturation_is_a_warning():
    stack = blobs().stack.copy()
    stack[stack > np.percentile(stack, 97)] = 65535
    (text,) = examine(changed(blobs(), stack=stack), "A1", Checks())
    assert "partly saturated: 3.0%" in text


@pytest.mark.parametrize("shift", [(0, 0), (14, -9), (-30, 22)])
def test_a_shift_is_measured(shift):
    pair = blobs(side=400, shift=shift)
    found = find_shift(structure(pair.stack), pair.labels["nuclei"])
    assert np.hypot(*np.subtract(found.shift_px, shift)) <= 2
    assert found.peak > 6


def test_a_shifted_pair_is_warned_of_or_refused():
    assert examine(blobs(side=400), "A1", Checks()) == []
    (text,) = examine(blobs(side=400, shift=(12, 5)), "A1", Checks())
    assert "shifted against the stack by 3." in text
    with pytest.raises(PairRefused, match=r"not registered.*10\.\d um \(3\d rows, 1\d columns\)"):
        examine(blobs(side=400, shift=(33, 10)), "A1", Checks())


def test_a_label_of_few_cells_is_not_taken_for_a_shifted_one():
    """One cell of many is stained; its shape fits best to a stronger neighbour."""
    rows, columns = np.mgrid[:400, :400]
    rng = np.random.default_rng(0)

    def cell(row, column):
        return np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 50)

    others = sum(0.3 * cell(*place) for place in rng.uniform(20, 380, (12, 2)))
    seen = 0.15 * cell(200, 200) + cell(240, 170) + others
    stack = 20000 + 9000 * seen * np.array([-1, 0, 1])[:, None, None] + rng.normal(0, 300, (3, 400, 400))
    label = 1000 + 20000 * cell(200, 200) + rng.normal(0, 100, (400, 400))
    found = find_shift(structure(stack.astype(np.uint16)), label)
    assert found.peak > 6
    assert found.length_px > 40
    assert not found.widespread
    pair = Recording(stack.astype(np.uint16), {"dead": label.astype(np.uint16)}, 0.3, heights(3))
    assert examine(pair, "A1", Checks()) == []


def test_a_label_of_another_field_is_warned_of():
    other = blobs(side=420, seed=5).labels["nuclei"][:400, :400]
    texts = examine(changed(blobs(side=400), labels={"nuclei": other}), "A1", Checks())
    assert any("resembles" in text for text in texts)


def test_the_recorded_field_is_registered(shared_data):
    folder = shared_data / "isl_condition_b"
    one = source(
        kind="tiff", folder=folder, stack="phase_contrast.ome.tif", z_step_um=1.5,
        labels={n: f"{f}.ome.tif" for n, f in (("nuclei", "dapi"), ("axons", "nfh"))},
    )  # fmt: skip
    ((_, recording),) = read(one).values()
    assert recording.pixel_size_um == pytest.approx(0.3)
    assert examine(recording, "A4", Checks()) == []
    moved = {n: np.roll(image, (25, 18), (0, 1)) for n, image in recording.labels.items()}
    with pytest.raises(PairRefused, match="not registered"):
        examine(changed(recording, labels=moved), "A4", Checks())


# --- small parts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "shape"),
    [("ZYX", (3, 4, 5)), ("YX", (4, 5)), ("TZCYX", (1, 3, 1, 4, 5)), ("IYX", (3, 4, 5)), ("XYZ", (5, 4, 3))],
)
def test_axes_are_put_in_order(tmp_path, axes, shape):
    order = [axes.index(axis) for axis in "IZYX" if axis in axes]
    pixels = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", metadata={"axes": axes})
    wanted = pixels.reshape([side for side, axis in zip(shape, axes, strict=True) if axis not in "TC"])
    squeezed = [axis for axis in axes if axis not in "TC"]
    wanted = np.transpose(wanted, [squeezed.index(axes[at]) for at in order])
    (field,) = TiffReader().read(tmp_path / "a.tif").fields
    np.testing.assert_array_equal(field.channel().read(), wanted if wanted.ndim == 3 else wanted[None])


def test_times_of_a_stack_need_those_of_its_labels(tmp_path):
    """Time points are fields of the same place; a label that was recorded once is no label of them all."""
    about = {"stack": "{well}_phase.tif", "labels": {"nuclei": "{well}_dapi.tif"}, "pixel_size_um": 1.0}
    write_ome(tmp_path / "A1_phase.tif", np.stack([STACK, STACK + 1]), "TZYX")
    write_ome(tmp_path / "A1_dapi.tif", LABEL, "YX")
    one = tiff(tmp_path, **about)
    with pytest.raises(PairRefused, match="fewer images than its stack"):
        read(one)
    write_ome(tmp_path / "A1_dapi.tif", np.stack([LABEL, LABEL + 1]), "TYX")
    found = read(one)
    assert [(name, item.place) for name, (item, _) in found.items()] == [("A1", "A1"), ("A1/t1", "A1")]
    np.testing.assert_array_equal(found["A1/t1"][1].stack, STACK + 1)
    np.testing.assert_array_equal(found["A1/t1"][1].labels["nuclei"], LABEL + 1)


def test_colours_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "A1_1_phase.ome.tif", np.zeros((8, 9, 3), np.uint8), photometric="rgb")
    with pytest.raises(StorageError, match=r"not a z-stack.*YXS"):
        read(tiff(tmp_path))


@pytest.mark.parametrize("pixels", [np.array([0.5, 1.5, 3.5]), np.array([-3, 5, 9]), np.array([1, 2, 70000])])
def test_other_numbers_become_counts_linearly(pixels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = as_counts(pixels, "a")
    assert counts.dtype == np.uint16
    assert np.corrcoef(counts, pixels)[0, 1] > 0.99999
