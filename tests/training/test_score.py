"""How wide the SD must be: right where much is predicted and where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from acq_isl.training.score import _LEVELS, PixelSums, _score_label, calibrate, calibrate_bright


def drawn(scale, slope, pixels=200_000):
    rng = np.random.default_rng(0)
    p = rng.beta(0.4, 3, pixels)
    std = rng.uniform(0.5, 2, pixels) * 0.05
    return p, p + rng.normal(size=pixels) * std * scale * (1 + slope * p), std


def scored(p, t, std):
    sums = PixelSums()
    sums.add(p, t, std)
    return _score_label("nuclei", [sums])


@pytest.mark.parametrize(("scale", "slope"), [(0.5, 0.0), (0.5, 5.0), (2.0, 1.0)])
def test_what_was_put_in_is_found(scale, slope):
    found = scored(*drawn(scale, slope))
    assert found.scale == pytest.approx(scale, rel=0.02)
    assert found.slope == pytest.approx(slope, rel=0.05, abs=0.03)
    assert found.coverage == pytest.approx(0.683, abs=0.01)


def test_bright_pixels_are_covered_too():
    p, t, std = drawn(0.5, 5.0)
    found = scored(p, t, std)
    one_factor = np.sqrt(np.mean(((p - t) / std) ** 2))
    bright = p > 0.5
    inside = np.abs(p - t) < std * found.scale * (1 + found.slope * p)
    assert inside[bright].mean() == pytest.approx(0.683, abs=0.02)
    assert (np.abs(p - t) < std * one_factor)[bright].mean() < 0.55
    assert np.sqrt(np.mean(((p - t) / (std * found.scale * (1 + found.slope * p))) ** 2)) == pytest.approx(
        1, abs=0.01
    )


def test_a_network_that_is_always_right_has_a_scale():
    levels = np.zeros((3, len(_LEVELS) - 1))
    levels[0, 0] = 10
    assert calibrate(levels) == (1e-6, 0.0)


def test_without_bright_pixels_nothing_is_said_of_them():
    p = np.full(100, 0.1)
    assert scored(p, p + 0.01, np.full(100, 0.02)).bright_coverage is None


def test_one_sd_holds_for_two_thirds_of_what_is_truly_bright():
    """Most pixels are dark and well known; the bright ones are missed by half and more."""
    rng, sums = np.random.default_rng(0), PixelSums()
    truth = np.where(rng.random(200_000) < 0.03, rng.uniform(0.4, 1.0, 200_000), 0.0)
    mean = np.clip(0.4 * truth + rng.normal(0, 0.02, truth.size), 0, None)
    std = np.full(truth.size, 0.02)
    sums.add(mean, truth, std)
    fit = calibrate_bright([sums])
    inside = np.abs(truth - mean) <= std * fit.scale * (1 + fit.slope * mean)
    assert inside[truth > 0.3].mean() == pytest.approx(0.68, abs=0.02)
    assert fit.bright_covered == pytest.approx(0.68, abs=0.01)
    assert inside.mean() == pytest.approx(fit.covered, abs=0.02) and fit.covered > 0.9
    assert fit.slope > 0  # wide where something is, not everywhere


def test_without_anything_bright_the_sd_is_that_of_all_pixels():
    sums = PixelSums()
    sums.add(np.zeros(1000), np.full(1000, 0.1), np.full(1000, 0.05))
    fit = calibrate_bright([sums])
    assert fit.scale == pytest.approx(2.0, rel=0.02) and fit.bright_covered is None


def test_an_sd_that_was_learned_where_it_is_bright_gets_one_factor():
    rng, sums = np.random.default_rng(0), PixelSums()
    truth = np.where(rng.random(50_000) < 0.03, rng.uniform(0.4, 1.0, 50_000), 0.0)
    mean = np.clip(0.4 * truth + rng.normal(0, 0.02, truth.size), 0, None)
    std = np.where(truth > 0, 0.2, 0.02)
    sums.add(mean, truth, std)
    fit = calibrate_bright([sums], sloped=False)
    assert fit.slope == 0 and fit.bright_covered == pytest.approx(0.68, abs=0.01)
    dark = PixelSums()
    dark.add(np.linspace(0, 1, 1000), np.full(1000, 0.1), np.full(1000, 0.05))
    assert calibrate_bright([dark], sloped=False).slope == 0
