"""The epithelial-like culture: the same from every side, as dense as asked, true to what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from acq_isl.sim import EpithelialSpecimen, KnowsCells, Monolayer, Rectangle, View
from acq_isl.sim.optics.illumination import DIC, Brightfield, PhaseContrast
from acq_isl.sim.specimen.cells import REGION_UM, regions_around
from acq_isl.sim.specimen.epithelial_raster import draw_epithelium
from acq_isl.sim.specimen.epithelium import REACH_UM, AdherentCell, grow_patch
from acq_isl.sim.specimen.raster import GRID_UM, Window
from acq_isl.sim.specimen.sensor import Sensor

CLEAN = Sensor(0, 0.0, 0.0)
VIEW = View(150.0, 90.0, 3.0, "Phase", 0.45, (192, 192))
BUSY = Monolayer(confluency=0.8, mitotic=0.15, rounded=0.1, dead=0.15)


def draw(window, culture=BUSY, seed=5):
    patches = [grow_patch(seed, *place, culture) for place in regions_around(window.edges_um, REACH_UM)]
    return draw_epithelium(patches, window, seed, culture)


@pytest.fixture(scope="module")
def specimen():
    return EpithelialSpecimen(5, sensor=CLEAN, culture=BUSY)


def test_it_can_be_seen_in_transmitted_light_and_in_its_stains(specimen):
    assert specimen.channels == ("Phase", "DAPI", "CellMask", "PI") and isinstance(specimen, KnowsCells)
    for channel in specimen.channels:
        image = specimen.render(replace(VIEW, channel=channel))
        assert image.shape == VIEW.shape and image.dtype == np.float32 and image.min() >= 0
    bright = specimen.render(replace(VIEW, channel="DAPI"))[specimen.truth(VIEW)["nuclei"] > 0.3]
    assert bright.mean() > 2 * specimen.render(replace(VIEW, channel="DAPI")).mean()


def test_the_same_seed_is_the_same_culture_and_another_one_is_not(specimen):
    again = EpithelialSpecimen(5, sensor=CLEAN, culture=BUSY)
    again.truth(replace(VIEW, x_um=-400.0))  # looked elsewhere before
    np.testing.assert_array_equal(specimen.render(VIEW), again.render(VIEW))
    other = EpithelialSpecimen(6, sensor=CLEAN, culture=BUSY).truth(VIEW)
    assert np.abs(other["nuclei"] - specimen.truth(VIEW)["nuclei"]).max() > 0.3


def test_windows_agree_where_they_overlap():
    one, two = draw(Window(-150, -120, 260, 300)), draw(Window(-50, 0, 200, 260))
    both = (slice(100, 260), slice(120, 300)), (slice(0, 160), slice(0, 180))
    np.testing.assert_allclose(one.path_um[:, *both[0]], two.path_um[:, *both[1]], atol=1e-6)
    for name, label in one.labels.items():
        np.testing.assert_allclose(label[both[0]], two.labels[name][both[1]], atol=1e-6)


def test_nuclei_lie_in_cells_and_there_are_as_many_as_cells():
    """Save for those of the dead, which lie anywhere; where cells crowd, nuclei may touch."""
    culture = replace(BUSY, mitotic=0.0, rounded=0.05, dead=0.0)
    patch = grow_patch(5, 0, 0, culture)
    raster = draw(Window(0, 0, *(int(REGION_UM / GRID_UM),) * 2), culture)
    nuclei, cells = raster.labels["nuclei"] > 0.2, raster.labels["cells"] > 0.5
    assert (nuclei & cells).sum() > 0.995 * nuclei.sum()
    found = [raster.labels["nuclei"][int(cell.y / GRID_UM), int(cell.x / GRID_UM)] for cell in patch.cells]
    assert len(patch.cells) > 100 and np.mean(np.array(found) > 0.2) > 0.99
    objects, count = ndimage.label(nuclei)
    whole = [i for i in range(1, count + 1) if (objects == i).sum() * GRID_UM**2 > 20]
    assert len(whole) == pytest.approx(len(patch.cells), rel=0.1)


@pytest.mark.parametrize("confluency", [0.0, 0.2, 0.6, 1.0])
def test_as_much_glass_is_covered_as_asked(confluency):
    # Small cells, so that one window holds many of their islands.
    raster = draw(Window(0, 0, 800, 800), Monolayer(confluency=confluency, cell_um=12.0), seed=2)
    assert (raster.labels["cells"] > 0.5).mean() == pytest.approx(confluency, abs=0.1)


def test_shares_of_mitoses_and_dead_are_those_asked():
    cells: list[AdherentCell] = []
    dead = 0
    culture = Monolayer(confluency=1.0, cell_um=15.0, mitotic=0.1, rounded=0.05, dead=0.2)
    for column in range(3):
        patch = grow_patch(3, column, 0, culture)
        cells, dead = [*cells, *patch.cells], dead + len(patch.remains)
    assert len(cells) == pytest.approx(3 * REGION_UM**2 / 15.0**2, rel=0.1)
    assert np.mean([cell.divides for cell in cells]) == pytest.approx(0.1, abs=0.03)
    assert np.mean([cell.state == "rounded" for cell in cells]) == pytest.approx(0.05, abs=0.02)
    assert dead / len(cells) == pytest.approx(0.2, abs=0.05)


def test_every_cell_is_known_with_its_nucleus_and_every_dead_one_shines_in_its_label(specimen):
    known = specimen.cells(Rectangle.around(VIEW.x_um, VIEW.y_um, (84.0, 84.0)))
    truth = specimen.truth(VIEW)
    assert len({cell.id for cell in known}) == len(known) > 3
    for cell in (cell for cell in known if cell.state == "dead"):
        row, column = (
            int((at - middle) / VIEW.pixel_size_um + 96)
            for at, middle in ((cell.y_um, VIEW.y_um), (cell.x_um, VIEW.x_um))
        )
        assert truth["dead"][row - 4 : row + 5, column - 4 : column + 5].max() > 0.4


def test_each_kind_of_light_shows_another_picture_and_bright_field_least_in_focus(specimen):
    pictures = {}
    for optics in (Brightfield(), PhaseContrast(), DIC()):
        seen = EpithelialSpecimen(5, optics, BUSY, CLEAN)
        pictures[type(optics)] = [seen.render(replace(VIEW, z_um=z)) for z in (-6.0, 0.0, 6.0)]
    below, focus, above = (image.std() for image in pictures[Brightfield])
    assert focus < below and focus < above
    flat = [images[1].ravel() for images in pictures.values()]
    assert np.abs(np.corrcoef(flat)[np.triu_indices(3, 1)]).max() < 0.9
