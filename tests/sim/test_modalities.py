"""Bright field, DIC, coloured lamps, stains: what each shows that the others do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acq_isl.sim.optics.fluorescence import StainedField, Widefield
from acq_isl.sim.optics.illumination import DIC, Brightfield, Oblique, PhaseContrast
from acq_isl.sim.optics.source import Spectrum, sample_annulus, sample_disc
from acq_isl.sim.optics.wave_optics import Imaging
from acq_isl.sim.specimen.dose import DoseMap
from acq_isl.sim.specimen.sensor import Sensor
from acq_isl.sim.specimen.synthetic import SyntheticSpecimen
from acq_isl.sim.view import History, Light, View

VIEW = View(200.0, 210.0, 0.0, "Phase", 0.3, (96, 112))
SIDE = 96
Y = (np.arange(SIDE) - SIDE / 2) * 0.4


def blob(optics, z_um):
    """Picture of a weak, round, thin thing of 1 um in the middle, less the medium."""
    path = 0.004 * np.exp(-0.5 * (Y[:, None] ** 2 + Y[None] ** 2))
    scope = Imaging(optics, (SIDE, SIDE), 0.4, (0.0,))
    return scope.image(scope.exit_fields(path[None].astype(np.float32)), z_um) - 1


def test_bright_field_shows_no_thin_phase_in_focus_and_reverses_there():
    above, focus, below = (blob(Brightfield(), z)[SIDE // 2, SIDE // 2] for z in (4.0, 0.0, -4.0))
    assert above * below < 0
    assert abs(focus) < 0.15 * min(abs(above), abs(below))


@pytest.mark.parametrize("direction", [0.0, 0.7, np.pi / 2])
def test_dic_shows_the_slope_along_its_shear(direction):
    image = blob(DIC(direction_rad=direction), 0.0)
    slope = np.cos(direction) * Y[None] + np.sin(direction) * Y[:, None]
    slope = slope * np.exp(-0.5 * (Y[:, None] ** 2 + Y[None] ** 2))
    assert abs(np.corrcoef(image.ravel(), slope.ravel())[0, 1]) > 0.9
    turned = blob(DIC(direction_rad=direction + np.pi), 0.0)
    # Against the shear light and shadow change places.
    assert np.corrcoef(image.ravel(), turned.ravel())[0, 1] < -0.9


def test_dic_without_bias_is_refused():
    with pytest.raises(ValueError, match="bias"):
        DIC(bias_rad=0.0)


def test_a_small_bias_shows_more_contrast():
    assert blob(DIC(bias_rad=0.4), 0.0).std() > 2 * blob(DIC(bias_rad=2.0), 0.0).std()


@pytest.mark.parametrize("kind", [PhaseContrast, Oblique, Brightfield, DIC])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_random_microscopes_are_sound_and_the_same_again(kind, seed):
    optics = kind.sample(np.random.default_rng(seed))
    assert optics == kind.sample(np.random.default_rng(seed))
    spread = optics.colour(*optics.fill(24))
    assert np.hypot(*spread.place_na.T).max() < optics.numerical_aperture
    assert spread.weights.min() > 0


def test_a_lamp_keeps_its_middle_and_width():
    lamp = Spectrum.band(0.55, 0.06)
    weights = np.array(lamp.weights) / sum(lamp.weights)
    middle = weights @ lamp.wavelengths_um
    assert middle == pytest.approx(0.55)
    spread = np.sqrt(weights @ (np.array(lamp.wavelengths_um) - middle) ** 2)
    assert spread * np.sqrt(8 * np.log(2)) == pytest.approx(0.06)


@pytest.mark.parametrize("lamp", [((0.5,), (1.0, 1.0)), ((), ()), ((0.5,), (0.0,)), ((-0.5,), (1.0,))])
def test_an_impossible_lamp_is_refused(lamp):
    with pytest.raises(ValueError):
        Spectrum(*lamp)


@pytest.mark.parametrize("points", [12, 60, 144])
def test_sources_are_filled_evenly(points):
    for place, weights in (sample_disc(0.3, points), sample_annulus(0.2, 0.24, points)):
        np.testing.assert_allclose(weights @ place, 0, atol=3e-3)
    place, weights = sample_disc(0.3, points)
    assert weights @ np.sum(place**2, axis=1) == pytest.approx(0.3**2 / 2, rel=0.05)


def test_stain_in_focus_follows_the_transfer_of_an_open_aperture():
    microscope = Widefield(0.8, 1.33)
    v = np.linspace(0.02, 0.95, 40)
    wanted = 2 / np.pi * (np.arccos(v) - v * np.sqrt(1 - v**2))
    got = microscope.transfer(0.52, 0.0, v * 2 * 0.8 / 0.52)
    np.testing.assert_allclose(got, wanted, atol=0.02)


@pytest.mark.parametrize("z_um", [0.0, 3.0, -9.0])
def test_defocus_keeps_the_light_and_loses_detail(z_um):
    rng = np.random.default_rng(0)
    label = np.zeros((128, 128), np.float32)
    label[tuple(rng.integers(40, 88, (2, 12)))] = 1
    field = StainedField.of(label, np.ones((1, 128, 128), np.float32), 0.3, (0.0,))
    sharp = field.image(Widefield(), 0.52, 0.0)
    seen = field.image(Widefield(), 0.52, z_um)
    assert seen.sum() == pytest.approx(label.sum(), rel=0.02)
    assert seen.std() <= sharp.std() * 1.0001
    if z_um:
        np.testing.assert_allclose(seen, field.image(Widefield(), 0.52, -z_um), atol=1e-5)


def test_light_out_of_focus_is_that_of_other_layers():
    label = np.zeros((64, 64), np.float32)
    label[32, 32] = 1
    path = np.zeros((2, 64, 64), np.float32)
    path[1] = 1
    field = StainedField.of(label, path, 0.3, (0.0, 6.0))
    assert field.image(Widefield(), 0.52, 6.0).max() > 5 * field.image(Widefield(), 0.52, 0.0).max()


def light(x_um=200.0, y_um=210.0, channel="NFH", dose_ms=30_000.0):
    return Light(0.0, x_um, y_um, 0.0, 20.0, 16.8, channel, dose_ms)


def test_a_stain_bleaches_where_and_how_it_was_lit():
    specimen = SyntheticSpecimen(3, sensor=Sensor(0, 0.0, 0.0))
    fresh = replace(VIEW, channel="NFH")
    lit = History((light(), light(channel="DAPI"), light(x_um=900.0)))
    before = specimen.render(fresh) - 0.02
    after = specimen.render(replace(fresh, history=lit)) - 0.02
    inside, outside = (slice(20, 76), slice(32, 80)), (slice(0, 12), slice(None))
    np.testing.assert_allclose(after[inside], before[inside] * np.exp(-0.5), rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(after[outside], before[outside])


def test_doses_add_up_where_areas_overlap():
    dose = DoseMap.of(
        [light(dose_ms=5.0), light(dose_ms=2.0), light(x_um=210.0, channel="DAPI", dose_ms=1.0)]
    )
    assert len(dose.areas) == 2
    for x_um, dose_ms in ((195.0, 7.0), (205.0, 8.0), (215.0, 1.0), (300.0, None)):
        place = dose.project(replace(VIEW, x_um=x_um, y_um=210.0, shape=(1, 1)))
        assert dose_ms == (None if place is None else place.item())
    seen = dose.project(VIEW)
    assert seen is not None
    assert seen.max() == pytest.approx(8.0)
    # All of the first area, 20 by 16.8 um, is in the view, and 15.2 um of the other one.
    assert seen.sum() * 0.3**2 == pytest.approx(7 * 20 * 16.8 + 20 * 15.2, rel=1e-3)
    assert dose.project(replace(VIEW, x_um=-5000.0)) is None
    assert DoseMap.of([light()], "DAPI").project(VIEW) is None
