from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from acq_isl.processing.focus import contrast_at_scale, focus_offset


@given(st.floats(-5, 5), st.floats(-100, 100), st.permutations(range(13)))
def test_the_top_of_a_parabola_is_found_in_any_order_of_planes(
    focus: float, middle: float, order: list[int]
) -> None:
    z = middle + np.linspace(-9, 9, 13)[order]
    assert focus_offset(z, 1000 - (z - middle - focus) ** 2) == pytest.approx(focus, abs=1e-3)


@pytest.mark.parametrize(
    "z, contrasts",
    [
        ([0.0, 1.0], [1.0, 2.0]),
        ([0.0, 1.0, 2.0], [1.0, 1.0, 1.0]),
        ([0.0, 1.0, 2.0], [3.0, 2.0, 1.0]),
        ([0.0, 1.0, 2.0], [1.0, 2.0, 3.0]),
        ([0.0, 0.0, 0.0], [1.0, 2.0, 1.0]),
        ([0.0, 1.0, 2.0], [1.0, math.nan, 1.0]),
    ],
)
def test_a_focus_that_cannot_be_known_is_not_made_up(z: list[float], contrasts: list[float]) -> None:
    assert focus_offset(z, contrasts) is None


@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_a_blurred_picture_has_less_contrast_whatever_the_exposure(gain: float) -> None:
    rng = np.random.default_rng(1)
    sharp = ndimage.gaussian_filter(rng.normal(0, 1, (128, 128)), 4)  # 2 um at 0.5 um a pixel
    planes = [ndimage.gaussian_filter(sharp, sigma) / sharp.std() * 100 + 1000 for sigma in (0, 2, 4, 8)]
    found = [contrast_at_scale((plane * gain).astype(np.uint16), 0.5) for plane in planes]
    assert found == sorted(found, reverse=True)
    assert found[0] == pytest.approx(contrast_at_scale(planes[0].astype(np.uint16), 0.5), rel=0.02)


def test_a_picture_of_few_pixels_has_none() -> None:
    assert math.isnan(contrast_at_scale(np.ones((2, 100), np.uint16), 0.3))
