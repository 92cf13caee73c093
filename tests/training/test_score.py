"""How wide the SD must be: right where much is predicted and where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from acq_isl.training.score import _LEVELS, _score_label, _Sums, calibrate


def drawn(scale, slope, pixels=200_000):
    rng = np.random.default_rng(0)
    p = rng.beta(0.4, 3, pixels)
    std = rng.uniform(0.5, 2, pixels) * 0.05
    return p, p + rng.normal(size=pixels) * std * scale * (1 + slope * p), std


def scored(p, t, std):
    sums = _Sums()
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
