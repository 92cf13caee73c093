"""Laws of the wave model: limits with a known answer, and a reference that is finer in every respect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import fft, ndimage

from acq_isl.sim.optics.illumination import DIC, LIVE_PHASE_CONTRAST, Brightfield, Oblique, PhaseContrast
from acq_isl.sim.optics.source import Spectrum
from acq_isl.sim.optics.wave_optics import Imaging
from acq_isl.sim.specimen.cells import LAYER_HEIGHTS_UM
from doubles.weak_phase import weak_phase_transfer

SIDE_UM = 96.0
OPTICS = [PhaseContrast(), PhaseContrast(dense_is_dark=False), Oblique()]
MODALITIES = {
    "phase contrast": PhaseContrast(),
    "bright": PhaseContrast(dense_is_dark=False),
    "oblique": Oblique(),
    "live": LIVE_PHASE_CONTRAST,
    "white lamp": replace(
        LIVE_PHASE_CONTRAST,
        lamp=Spectrum.band(0.55, 0.06),
    ),
    "bright field": Brightfield(),
    "DIC": DIC(),
    "DIC, small bias": DIC(bias_rad=-0.5, direction_rad=2.0),
}
NAMED = [pytest.param(optics, id=name) for name, optics in MODALITIES.items()]


def imaging(optics=None, grid_um=0.4, heights=LAYER_HEIGHTS_UM, side_um=SIDE_UM):
    side = round(side_um / grid_um)
    return Imaging(optics or PhaseContrast(), (side, side), grid_um, tuple(heights))


def grid(side_um, grid_um):
    at = np.arange(round(side_um / grid_um)) * grid_um - side_um / 2
    return at[:, None], at[None, :]


def correlation(a, b):
    return float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


@pytest.mark.parametrize("optics", NAMED)
@pytest.mark.parametrize("z_um", [-8.0, 0.0, 11.0])
def test_empty_medium_is_one_at_any_focus(optics, z_um):
    scope = imaging(optics, side_um=38.4)
    fields = scope.exit_fields(np.zeros((3, *scope.shape), np.float32))
    np.testing.assert_allclose(scope.image(fields, z_um), 1.0, atol=1e-4)


# Not at focus, where bright field shows no phase at all.
@pytest.mark.parametrize("optics", NAMED)
@pytest.mark.parametrize("z_um", [-6.0, 1.0, 4.0])
def test_weak_phase_images_as_the_analytic_transfer_says(optics, z_um):
    scope = imaging(optics, heights=(0.0,), side_um=57.6)
    noise = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(scope.shape), 1.5, mode="wrap")
    phase = (0.004 * noise / noise.std()).astype(np.float32)
    path = (phase * optics.wavelength_um / (2 * np.pi)).astype(np.float32)
    got = scope.image(scope.exit_fields(path[None]), z_um) - 1
    wanted = fft.ifft2(weak_phase_transfer(scope, z_um) * fft.fft2(phase)).real
    assert correlation(got, wanted) > 0.999
    assert np.std(got) == pytest.approx(np.std(wanted), rel=0.02)


def layered_object(grid_um, slices):
    """A soma of two radians across several layers, thin fibres above and below; (slice, y, x) um."""
    y, x = grid(SIDE_UM, grid_um)
    middle = (np.arange(slices) + 0.5) * 8.0 / slices
    height = np.array([0.0, *((middle[1:] + middle[:-1]) / 2), 8.0])
    path = np.zeros((slices, *np.broadcast_shapes(y.shape, x.shape)))
    for x0, y0, z0, radius, index in ((-8.0, 5.0, 4.0, 3.8, 0.02), (10.0, -12.0, 2.5, 2.0, 0.03)):
        half = np.sqrt(np.clip(radius**2 - (x - x0) ** 2 - (y - y0) ** 2, 0, None))
        for at in range(slices):
            inside = np.minimum(z0 + half, height[at + 1]) - np.maximum(z0 - half, height[at])
            path[at] += index * np.clip(inside, 0, None)
    for offset, angle, z0 in ((0.0, 0.4, 1.33), (9.0, 2.0, 6.67), (-14.0, 1.2, 4.0)):
        distance = np.cos(angle) * x + np.sin(angle) * y - offset
        chord = 2 * np.sqrt(np.clip(0.55**2 - distance**2, 0, None))
        path[int(np.argmin(np.abs(middle - z0)))] += 0.02 * chord
    # Band-limited alike, so that only the optics differ between the two grids.
    sigma = 0.3 / grid_um
    return ndimage.gaussian_filter(path, (0, sigma, sigma), mode="wrap").astype(np.float32), tuple(middle)


GOLDEN = {
    "live": (LIVE_PHASE_CONTRAST, 0.99),
    "live, white lamp": (replace(LIVE_PHASE_CONTRAST, lamp=Spectrum.band(0.55, 0.06)), 0.99),
    "centred": (replace(LIVE_PHASE_CONTRAST, decentre_na=(0.0, 0.0)), 0.993),
    "oblique": (Oblique(points=12, coarse_points=60), 0.99),
    "bright field": (Brightfield(), 0.988),
    "DIC": (DIC(), 0.99),
    # What networks are trained on: few points and no correction.
    "training": (PhaseContrast(), 0.94),
    "training, oblique": (Oblique(), 0.985),
}


@pytest.fixture(scope="module")
def sliced():
    return {slices: layered_object(grid, slices) for grid, slices in ((0.4, 3), (0.3, 16))}


SEVERAL = [
    pytest.param(*case, id=name, marks=() if name == "live" else pytest.mark.slow)
    for name, case in GOLDEN.items()
]


@pytest.mark.parametrize(("optics", "agreement"), SEVERAL)
def test_three_layers_and_few_points_agree_with_a_finer_reference(sliced, optics, agreement):
    """Against 16 slices and 96 points that fill the source evenly, of each wavelength."""
    path, heights = sliced[3]
    fast = imaging(optics, 0.4, heights)
    fields = fast.exit_fields(path)
    path, heights = sliced[16]
    lamp = optics.lamp or Spectrum((optics.wavelength_um,), (1.0,))
    wanted = np.zeros((3, 320, 320))
    for colour, weight in zip(lamp.wavelengths_um, lamp.weights, strict=True):
        fine = Filled(replace(optics, lamp=Spectrum((colour,), (1.0,))), (320, 320), 0.3, heights)
        reference = fine.exit_fields(path)
        wanted += weight * np.array([fine.image(reference, z_um) for z_um in (-3.0, 4.0, 9.0)])
    for z_um, image in zip((-3.0, 4.0, 9.0), wanted, strict=True):
        # Points both grids have in common: every third of one, every fourth of the other.
        assert correlation(fast.image(fields, z_um)[::3, ::3], image[::4, ::4]) > agreement, z_um


class Filled(Imaging):
    """With a full source instead of few points and their correction."""

    @property
    def beams(self):
        if "filled" not in self.__dict__:
            self.__dict__["filled"] = self._beams(self.optics.colour(*self.optics.fill(96)))
        return self.__dict__["filled"]

    many_beams = ()


def fibre_image(optics, z_um):
    y, _ = grid(38.4, 0.4)
    path = np.broadcast_to(0.01 * np.exp(-0.5 * (y / 0.5) ** 2), (96, 96)).astype(np.float32)
    scope = imaging(optics, heights=(0.0,), side_um=38.4)
    return scope.image(scope.exit_fields(path[None]), z_um)


def test_dense_matter_is_dark_in_focus_and_bright_with_the_other_ring():
    centred = PhaseContrast(decentre_na=(0.0, 0.0))
    dark, bright = fibre_image(centred, 0.0), fibre_image(replace(centred, dense_is_dark=False), 0.0)
    assert dark[48, 48] < 0.9
    assert bright[48, 48] > 1.1


def test_contrast_of_fine_structure_reverses_through_focus():
    wave = np.cos(2 * np.pi * np.arange(100) * 0.4 * 0.3)  # 0.3 cycles per um on a grid of 0.4 um
    scope = imaging(PhaseContrast(decentre_na=(0.0, 0.0)), heights=(0.0,), side_um=40.0)
    path = np.broadcast_to(0.002 * wave[:, None], (100, 100)).astype(np.float32)
    fields = scope.exit_fields(path[None])
    contrast = [float(np.mean((scope.image(fields, z) - 1) * wave[:, None])) for z in np.arange(-12.0, 13.0)]
    assert np.argmin(contrast) == 12
    assert max(contrast[:12]) > -0.15 * contrast[12]
    assert max(contrast[13:]) > -0.15 * contrast[12]


def test_a_decentred_annulus_gives_relief_and_a_centred_one_does_not():
    def lean(decentre):
        image = fibre_image(PhaseContrast(decentre_na=(0.0, decentre), points=16), 0.0)[:, 48]
        return float(np.abs(image[44:48] - image[52:48:-1]).max())

    assert lean(0.08) > 5 * max(lean(0.0), 0.005)


@pytest.mark.parametrize("optics", NAMED)
def test_scaling_changes_apertures_together(optics):
    scaled = optics.scaled(0.5)
    assert np.abs(scaled.source()[0]).max() == pytest.approx(0.5 * np.abs(optics.source()[0]).max(), rel=0.1)
    assert scaled.numerical_aperture == pytest.approx(0.5 * optics.numerical_aperture)
