"""From light to counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from acq_isl.sim.scope.camera import Camera, CameraSettings, compute_flux
from acq_isl.sim.view import View

QUIET = CameraSettings.noiseless()


def flat(value: float, side: int = 128) -> np.ndarray:
    return np.full((side, side), value, np.float32)


@pytest.mark.parametrize(
    "light, flux, bit_depth, counts",
    [
        (0.5, 1.0, 16, 32768),
        (0.5, 0.5, 16, 16384),
        (1.0, 1.0, 16, 65535),
        (2.0, 1.0, 16, 65535),
        (0.5, 4.0, 16, 65535),
        (0.5, 1.0, 12, 2048),
        (3.0, 1.0, 12, 4095),
        (0.5, 1.0, 8, 128),
        (3.0, 1.0, 8, 255),
        (0.7, 0.0, 16, 0),
        (-0.5, 1.0, 16, 0),
    ],
)
def test_counts_without_noise(light: float, flux: float, bit_depth: int, counts: int) -> None:
    image = Camera(QUIET).read(flat(light), flux=flux, bit_depth=bit_depth, frame=(0, 0))
    assert image.dtype == (np.uint8 if bit_depth == 8 else np.uint16)
    assert np.all(image == counts)


@pytest.mark.parametrize(
    "arguments, flux",
    [
        ({"exposure_ms": 10, "nominal_ms": 10}, 1.0),
        ({"exposure_ms": 40, "nominal_ms": 10}, 4.0),
        ({"exposure_ms": 10, "nominal_ms": 10, "binning": 2}, 4.0),
        ({"exposure_ms": 5, "nominal_ms": 10, "brightness": 0.5, "binning": 4}, 4.0),
    ],
)
def test_flux(arguments: dict[str, float], flux: float) -> None:
    assert compute_flux(**arguments) == pytest.approx(flux)  # type: ignore[arg-type]


@given(hnp.arrays(np.uint16, (7, 9)))
def test_what_was_recorded_comes_back_unchanged(recorded: np.ndarray) -> None:
    light = recorded.astype(np.float32) / np.float32(65535)
    counts = Camera(QUIET).read(light, flux=1.0, bit_depth=16, frame=(0, 0))
    np.testing.assert_array_equal(counts, recorded)


@pytest.mark.parametrize("light", [0.002, 0.05, 0.5])
def test_noise_has_the_variance_of_photons_and_readout(light: float) -> None:
    camera = CameraSettings(full_well_e=30_000, offset_e=100, read_noise_e=2.0)
    counts = Camera(camera, seed=3).read(flat(light, 400), flux=1.0, bit_depth=16, frame=(1, 2))
    electrons = counts * (camera.full_well_e / 65535) - camera.offset_e
    expected = light * camera.full_well_e
    assert electrons.mean() == pytest.approx(expected, rel=0.01)
    assert electrons.var() == pytest.approx(expected + 4.0, rel=0.03)


def test_a_dark_frame_shows_offset_and_read_noise() -> None:
    camera = CameraSettings(full_well_e=65535, offset_e=100, read_noise_e=3.0)
    counts = Camera(camera).read(flat(0.0, 400), flux=0.0, bit_depth=16, frame=(0, 0))
    assert counts.mean() == pytest.approx(100, abs=0.1)
    assert counts.std() == pytest.approx(3.0, rel=0.02)


def test_read_noise_alone() -> None:
    camera = CameraSettings(full_well_e=65535, offset_e=100, read_noise_e=3.0, shot_noise=False)
    counts = Camera(camera).read(flat(0.5, 400), flux=1.0, bit_depth=16, frame=(0, 0))
    assert counts.std() == pytest.approx(3.0, rel=0.02)


@settings(max_examples=20, deadline=None)  # each draws two banks of noise
@given(seed=st.integers(0, 2**31), frame=st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)))
def test_the_same_seed_and_frame_give_the_same_noise(seed: int, frame: tuple[int, int]) -> None:
    light = flat(0.3, 8)
    images = [
        Camera(CameraSettings(), seed=seed).read(light, flux=1.0, bit_depth=16, frame=frame) for _ in range(2)
    ]
    np.testing.assert_array_equal(*images)


def test_frames_and_seeds_differ_in_noise_only() -> None:
    light = flat(0.3)
    camera = Camera(CameraSettings(), seed=1)
    first = camera.read(light, flux=1.0, bit_depth=16, frame=(0, 0)).astype(float)
    second = camera.read(light, flux=1.0, bit_depth=16, frame=(0, 1)).astype(float)
    other = Camera(CameraSettings(), seed=2).read(light, flux=1.0, bit_depth=16, frame=(0, 0)).astype(float)
    for image in (second, other):
        assert np.mean(first == image) < 0.1
        assert abs(np.corrcoef(first.ravel(), image.ravel())[0, 1]) < 0.05


def test_a_frame_larger_than_expected_draws_a_larger_bank() -> None:
    camera = Camera(CameraSettings(), pixels=10)
    image = camera.read(np.full((1100, 1000), 0.5, np.float32), flux=1.0, bit_depth=16, frame=(0, 0))
    assert image.std() > 0


@pytest.mark.parametrize(
    "wrong", [{"full_well_e": 0}, {"read_noise_e": -1}, {"offset_e": -1}, {"gain": 2}, {"full_well": 10}]
)
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        CameraSettings(**wrong)  # type: ignore[arg-type]


def test_reading_leaves_the_light_alone() -> None:
    light = flat(0.5)
    Camera(CameraSettings()).read(light, flux=2.0, bit_depth=16, frame=(0, 0))
    assert np.all(light == 0.5)


@pytest.mark.parametrize("binning", [1, 2])
def test_hot_pixels_stay_on_the_sensor_and_fill_with_time(binning: int) -> None:
    camera = Camera(CameraSettings(hot_pixels=1e-3), seed=4)
    whole = View(0.0, 0.0, 0.0, "Phase", 0.3, (128 // binning, 160 // binning), (1990, 0), binning)
    part = replace(whole, shape=(40 // binning, 60 // binning), sensor_origin_px=(2030, 40))
    glow, cut, longer = camera.glow(whole, 100.0), camera.glow(part, 100.0), camera.glow(whole, 300.0)
    assert glow is not None and cut is not None and longer is not None
    rows, columns = (slice(at // binning, (at + side) // binning) for at, side in ((40, 40), (40, 60)))
    np.testing.assert_allclose(glow[rows, columns], cut)
    np.testing.assert_allclose(longer, 3 * glow, rtol=1e-5)
    assert 8 <= np.count_nonzero(glow) <= 40
    dark = np.zeros(whole.shape, np.float32)
    counts = camera.read(dark, flux=0.0, bit_depth=16, frame=(0, 0), glow=glow).astype(float)
    counts -= camera.read(dark, flux=0.0, bit_depth=16, frame=(0, 0))
    assert np.corrcoef(counts.ravel(), glow.ravel())[0, 1] > 0.9


def test_a_camera_without_hot_pixels_has_no_glow() -> None:
    assert Camera(CameraSettings()).glow(View(0.0, 0.0, 0.0, "Phase", 0.3, (8, 8)), 100.0) is None
