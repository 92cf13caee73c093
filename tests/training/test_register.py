"""Stains that are shifted are moved where the structure is, if that is asked; holes are left out always."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image
from pydantic import TypeAdapter
from scipy import ndimage

from acq_isl.errors import StorageError
from acq_isl.training.data.dataset import prepare
from acq_isl.training.data.geometry import Geometry
from acq_isl.training.data.pairs import Checks, Item, Nominal, Recording
from acq_isl.training.data.register import find_hole, load_checked, register
from acq_isl.training.data.registration import find_shift_in
from acq_isl.training.data.sources import Source


def bacteria(shift, seed=0, side=192, grey=4000):
    """Dark spots in one plane, and their stain, shifted."""
    rng = np.random.default_rng(seed)
    cells = ndimage.gaussian_filter((rng.random((side + 40, side + 40)) > 0.996).astype(float), 3)
    cells /= cells.max()
    seen = cells[20 : 20 + side, 20 : 20 + side]
    rows, columns = (20 - px for px in shift)
    moved = cells[rows : rows + side, columns : columns + side]
    stack = grey - 2500 * seen + rng.normal(0, 40, (side, side))
    label = 640 + 6000 * moved + rng.normal(0, 25, (side, side))
    return Recording(stack.astype(np.uint16)[None], {"dna": label.astype(np.uint16)}, 0.1, (0.0,))


@pytest.mark.parametrize("shift", [(1, 6), (-5, 3), (9, -12)])
def test_a_stain_is_moved_back_and_what_comes_in_is_not_known(shift):
    recording = bacteria(shift)
    moved, (said,) = register(recording, "A1", Checks())
    rows, columns = (-int(px) for px in shift)
    assert f"dna was moved by {rows} rows and {columns} columns" in said
    there = bacteria((0, 0))
    valid = moved.valid["dna"]
    where = ndimage.binary_erosion(valid, iterations=12)
    same = np.corrcoef(moved.labels["dna"][where], there.labels["dna"][where])[0, 1]
    assert same > 0.98
    assert valid.sum() == (192 - abs(rows)) * (192 - abs(columns))
    assert register(moved, "A1", Checks())[1] == []


def test_what_fits_is_left_alone():
    recording = bacteria((0, 0))
    same, said = register(recording, "A1", Checks())
    assert said == [] and same.valid == {}
    np.testing.assert_array_equal(same.labels["dna"], recording.labels["dna"])


def test_what_resembles_nothing_is_not_moved():
    other = bacteria((0, 0), seed=7).labels
    recording = bacteria((0, 0))
    mixed = Recording(recording.stack, other, 0.1, (0.0,))
    same, (said,) = register(mixed, "A1", Checks())
    assert "resembles nothing" in said
    np.testing.assert_array_equal(same.labels["dna"], other["dna"])


def test_relief_is_no_shift():
    """Light from one side shows cells bright on one flank and dark on the other."""
    rng = np.random.default_rng(0)
    cells = ndimage.gaussian_filter((rng.random((256, 256)) > 0.997).astype(float), 4)
    relief = np.gradient(cells / cells.max(), axis=0)
    stack = (20000 + 60000 * relief + rng.normal(0, 100, (256, 256))).astype(np.uint16)[None]
    label = (500 + 5000 * cells / cells.max() + rng.normal(0, 20, (256, 256))).astype(np.uint16)
    assert find_shift_in(stack, label).length_px <= 2


def test_a_hole_is_a_rectangle_far_below_the_rest():
    image = bacteria((0, 0)).labels["dna"]
    holed = image.copy()
    holed[40:90, 100:180] = 0
    np.testing.assert_array_equal(find_hole(holed), holed == 0)
    cells = (ndimage.gaussian_filter(np.random.default_rng(0).random((256, 256)), 5) > 0.505) * np.uint8(255)
    clipped = np.maximum(image, int(np.percentile(image, 30)))
    for harmless in (image, cells, clipped, image * np.float32(1), np.zeros((9, 9), np.uint8)):
        assert find_hole(harmless) is None


def test_training_leaves_holes_out_and_moves_only_if_asked(tmp_path):
    recording = bacteria((1, 6))
    recording.labels["dna"][40:90, 100:180] = 0
    item = Item("A1", None, "", lambda: recording)
    geometry = Geometry(Nominal(1, 0.1, 1.5), 8.0, ("dna",), 8)
    valid = {}
    for asked in (False, True):
        made = prepare(item, geometry, Checks(register_labels=asked), tmp_path)
        valid[asked] = np.load(made.folder / "valid.npy")[0]
        assert any("has a hole of 10.9%" in text for text in made.warnings)
        assert any(("moved by -1 rows" if asked else "see --register") in text for text in made.warnings)
    assert not valid[False][40:90, 100:180].any() and valid[False].sum() == 192 * 192 - 50 * 80
    assert not valid[True][39:89, 94:174].any() and not valid[True][:, -6:].any()


def test_the_misregistered_set_is_found_and_corrected(shared_data):
    folder = shared_data / "cross_lab" / "saureus_misregistered"
    phase, dna = (tifffile.imread(folder / f"{name}.tif")[:512, :800] for name in ("phase", "dna"))
    item = Item("one", None, "", lambda: Recording(phase[None], {"dna": dna}, 0.1, (0.0,)))
    _, said = load_checked(item, Checks(register_labels=True))
    # The set's own notes say (1, 6), measured in another way.
    assert any("dna has a hole" in text for text in said)
    assert any("dna was moved by 2 rows and 6 columns onto the structure" in text for text in said)
    assert not any("seems to be shifted" in text for text in said)


def test_png_pairs_and_pages_that_are_channels(tmp_path):
    pages = np.stack([np.full((8, 9), 7, np.uint16), np.arange(72, dtype=np.uint16).reshape(8, 9)])
    tifffile.imwrite(tmp_path / "both.tif", pages, photometric="minisblack")
    for name, page in zip(("A1_light", "A1_stain"), pages, strict=True):
        Image.fromarray(page.astype(np.uint8)).save(tmp_path / f"{name}.png")
    nominal = Nominal(1, 0.3, 1.5)

    def load(stack, stain):
        values = {"kind": "tiff", "folder": tmp_path, "pixel_size_um": 0.3, "stack": stack}
        source = TypeAdapter(Source).validate_python(values | {"labels": {"stain": stain}})
        (item,) = source.items(nominal)
        return item.load()

    of_png = load("{well}_light.png", "{well}_stain.png")
    of_pages = load({"file": "both.tif", "plane": 0}, {"file": "both.tif", "plane": 1})
    for found in (of_png, of_pages):
        np.testing.assert_array_equal(found.stack[0], pages[0])
        np.testing.assert_array_equal(found.labels["stain"], pages[1])
    with pytest.raises(StorageError, match="no plane 2"):
        load({"file": "both.tif", "plane": 0}, {"file": "both.tif", "plane": 2})
