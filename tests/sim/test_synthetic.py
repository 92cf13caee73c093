"""The endless culture: the same from every side, seamless, and true to what it says of itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from acq_isl.sim.optics.illumination import Oblique
from acq_isl.sim.specimen.cells import REACH_UM, REGION_UM, Culture
from acq_isl.sim.specimen.neurons import grow_region
from acq_isl.sim.specimen.raster import Window, draw_raster
from acq_isl.sim.specimen.sensor import Sensor, on_sensor
from acq_isl.sim.specimen.synthetic import SyntheticSpecimen
from acq_isl.sim.view import Specimen, View

CLEAN = Sensor(0, 0.0, 0.0)
VIEW = View(200.0, 210.0, 0.0, "Phase", 0.3, (128, 160))


@pytest.fixture(scope="module")
def specimen():
    return SyntheticSpecimen(seed=11, sensor=CLEAN)


def count(nuclei):
    return int(ndimage.label(nuclei > 0.3)[1])


def test_it_is_a_specimen(specimen):
    named: Specimen = specimen
    assert named.channels == ("Phase", "DAPI", "MAP2", "NFH", "PI")
    for channel in named.channels:
        image = named.render(replace(VIEW, channel=channel))
        assert image.shape == VIEW.shape
        assert image.dtype == np.float32
        assert image.min() >= 0
    assert not named.render(replace(VIEW, channel="Empty")).any()


def test_the_order_of_visits_does_not_matter():
    views = [replace(VIEW, x_um=x, z_um=z) for x, z in ((0.0, -3.0), (-280.0, 4.0), (900.0, 0.0))]
    first, second = SyntheticSpecimen(5), SyntheticSpecimen(5)
    there = [(first.render(view), first.truth(view)) for view in views]
    back = [(second.render(view), second.truth(view)) for view in reversed(views)][::-1]
    for (light, labels), (same_light, same_labels) in zip(there, back, strict=True):
        np.testing.assert_array_equal(light, same_light)
        for name, label in labels.items():
            np.testing.assert_array_equal(label, same_labels[name])


def test_another_seed_is_another_culture(specimen):
    other = SyntheticSpecimen(12, sensor=CLEAN)
    assert np.abs(specimen.truth(VIEW)["axons"] - other.truth(VIEW)["axons"]).max() > 0.2


def test_threads_see_the_same_as_one():
    views = [replace(VIEW, x_um=x, z_um=z) for x in (0.0, 40.0) for z in (0.0, 3.0)]
    alone = SyntheticSpecimen(8)
    wanted = [alone.render(view) for view in views]
    shared = SyntheticSpecimen(8)
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(shared.render, views, timeout=60))
    for a, b in zip(wanted, got, strict=True):
        np.testing.assert_array_equal(a, b)


def test_overlapping_views_agree(specimen):
    """Truth to rounding; light up to the far halo of a narrow ring, which wraps round the simulated grid."""
    step = 64
    here, there = VIEW, replace(VIEW, x_um=VIEW.x_um + 0.3 * step)
    for label, image in specimen.truth(here).items():
        np.testing.assert_allclose(image[:, step:], specimen.truth(there)[label][:, :-step], atol=1e-4)
    a, b = specimen.render(here)[:, step:], specimen.render(there)[:, :-step]
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.985
    assert np.abs(a - b).mean() < 0.15 * a.std()


def test_windows_agree_where_they_overlap_and_across_region_borders():
    culture = Culture()
    regions = [grow_region(3, column, row, culture) for column in (-1, 0) for row in (0, 1)]
    whole = draw_raster(regions, Window(960, -60, 128, 128), 3, culture)
    part = draw_raster(regions, Window(992, -20, 64, 72), 3, culture)
    np.testing.assert_allclose(whole.path_um[:, 32:96, 40:112], part.path_um, atol=2e-5)
    np.testing.assert_allclose(whole.labels["nuclei"][32:96, 40:112], part.labels["nuclei"], atol=1e-5)


@pytest.mark.parametrize(("column", "row"), [(0, 0), (-3, 2)])
def test_nothing_reaches_further_than_promised(column, row):
    region = grow_region(1, column, row, Culture(density=2.0))
    low, high = -REACH_UM, REGION_UM + REACH_UM
    assert region.strokes.x.size > 1000
    for along in (region.strokes.x, region.strokes.y):
        assert low <= along.min() <= along.max() <= high
    for cell in region.cells:
        assert low < cell.x - region.x - 1.4 * cell.long
        assert cell.x - region.x + 1.4 * cell.long < high


def test_background_is_half_of_the_well(specimen):
    light = specimen.render(replace(VIEW, shape=(256, 256)))
    assert np.median(light) == pytest.approx(0.5, abs=0.02)
    assert np.mean(light > 1.0) < 0.01


def test_light_changes_with_focus_and_stain_fades_with_it(specimen):
    light = {z: specimen.render(replace(VIEW, z_um=z)) for z in (-6.0, 0.0, 6.0)}
    near = np.corrcoef(light[0.0].ravel(), specimen.render(replace(VIEW, z_um=1.0)).ravel())[0, 1]
    far = np.corrcoef(light[0.0].ravel(), light[6.0].ravel())[0, 1]
    assert far < near < 1
    stain = replace(VIEW, channel="NFH")
    # Wide field: the light stays, as haze, and what goes is detail.
    sharp, hazy = specimen.render(stain), specimen.render(replace(stain, z_um=8.0))
    assert hazy.mean() == pytest.approx(sharp.mean(), rel=0.25)
    assert np.diff(hazy).std() < 0.4 * np.diff(sharp).std()


@pytest.mark.parametrize(
    ("channel", "label"), [("DAPI", "nuclei"), ("MAP2", "dendrites"), ("NFH", "axons"), ("PI", "dead")]
)
def test_stain_shows_its_label(specimen, channel, label):
    view = replace(VIEW, channel=channel, shape=(256, 256), x_um=230.0)
    stain, truth = specimen.render(view), specimen.truth(view)[label]
    assert truth.min() >= 0
    assert truth.max() <= 1
    assert np.corrcoef(stain.ravel(), truth.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(("pixel_um", "binning"), [(0.6, 1), (0.6, 2), (0.15, 1), (0.337, 1)])
def test_other_objectives_and_binning_see_the_same_place(specimen, pixel_um, binning):
    fine = replace(VIEW, shape=(128, 128))
    side = round(128 * 0.3 / pixel_um)
    other = replace(fine, pixel_size_um=pixel_um, binning=binning, shape=(side, side))
    assert specimen.render(other).shape == (side, side)
    factor = 128 / side
    for label, image in specimen.truth(fine).items():
        if label == "dead":  # too rare for a small field
            continue
        seen = ndimage.zoom(specimen.truth(other)[label], factor, order=1, grid_mode=True, mode="nearest")
        blurred = ndimage.gaussian_filter(image, 2.5), ndimage.gaussian_filter(seen[:128, :128], 2.5)
        assert np.corrcoef(blurred[0].ravel(), blurred[1].ravel())[0, 1] > 0.98, label


def test_dust_stays_on_the_sensor():
    dusty = SyntheticSpecimen(11, sensor=Sensor(2, 0.02, 200))
    clean = SyntheticSpecimen(11, sensor=CLEAN)
    for origin, binning in (((0, 0), 1), ((40, 900), 1), ((8, 16), 2)):
        view = replace(VIEW, sensor_origin_px=origin, binning=binning)
        ratio = dusty.render(view) / np.maximum(clean.render(view), 1e-6)
        wanted = 1 + on_sensor(Sensor(2, 0.02, 200).pattern(), origin, view.shape, binning)
        np.testing.assert_allclose(ratio, wanted, atol=1e-3)


def test_other_optics_can_be_chosen():
    assert SyntheticSpecimen(1, Oblique()).render(VIEW).std() > 0.01


def test_fields_differ_enough_for_a_best_one_to_exist():
    side = REGION_UM / 2
    counts = []
    for column in range(4):
        region = grow_region(11, column, 0, Culture())
        at = np.array([(c.x - region.x, c.y - region.y) for c in region.cells if c.long < 7])
        counts += [int(np.sum(np.all(at // side == (i, j), axis=1))) for i in (0, 1) for j in (0, 1)]
    assert 8 <= np.mean(counts) <= 40
    assert max(counts) >= 3 * np.median(sorted(counts)[:4])


def test_nuclei_are_separate_discs(specimen):
    nuclei = specimen.truth(replace(VIEW, shape=(300, 300)))["nuclei"]
    areas = np.bincount(ndimage.label(nuclei > 0.3)[0].ravel())[1:] * 0.09
    assert count(nuclei) >= 5
    assert 8 < np.median(areas) < 60  # um^2: 3 to 9 um across
