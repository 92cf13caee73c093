from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from acq_isl.processing.statistics import Amplitude, pearson, pearson_of_sums

IMAGES = arrays(np.float32, (6, 5), elements=st.floats(-100, 100, width=32))


@given(IMAGES, IMAGES)
def test_correlation_is_symmetric_and_bounded(a: Any, b: Any) -> None:
    r = pearson(a, b)
    assert np.isnan(r) or -1 <= r <= 1
    assert np.array_equal(r, pearson(b, a), equal_nan=True)


@given(arrays(np.uint16, (6, 5)), st.integers(1, 50), st.integers(0, 1000))
def test_correlation_ignores_gain_and_offset(image: Any, gain: int, offset: int) -> None:
    r = pearson(image, image.astype(float) * gain + offset)
    assert np.isnan(r) if np.ptp(image) == 0 else r == pytest.approx(1)


@pytest.mark.parametrize(
    "a, b",
    [
        (np.ones((4, 4)), np.arange(16.0).reshape(4, 4)),
        (np.zeros((0, 4)), np.zeros((0, 4))),
        (np.array([1.0, 2.0, np.nan]), np.array([1.0, 2.0, 3.0])),
        (np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, np.inf])),
    ],
    ids=["constant", "empty", "not a number", "infinite"],
)
def test_correlation_that_is_not_defined_is_not_a_number(a: Any, b: Any) -> None:
    assert np.isnan(pearson(a, b))


def test_arrays_of_another_shape_are_not_correlated() -> None:
    with pytest.raises(ValueError, match="cannot be correlated"):
        pearson(np.ones((4, 4)), np.ones((2, 2)))


@given(st.integers(0, 2**32 - 1))
def test_sums_give_the_same_correlation(seed: int) -> None:
    a, b = np.random.default_rng(seed).normal(size=(2, 40))
    sums = a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()
    assert pearson_of_sums(a.size, *sums) == pytest.approx(pearson(a, b))


@pytest.mark.parametrize("sums", [(0, 0, 0, 0, 0, 0), (3, 3, 6, 3, 14, 6)], ids=["nothing", "constant"])
def test_sums_without_variance_give_no_number(sums: tuple[float, ...]) -> None:
    assert np.isnan(pearson_of_sums(*sums))


@pytest.mark.parametrize("share", [0.4, 1.0, 2.5])
def test_a_pale_prediction_correlates_and_is_told_by_slope_and_bright_end(share: float) -> None:
    truth = np.random.default_rng(0).beta(0.5, 3, (64, 64))
    found = Amplitude.of(share * truth, truth)
    assert pearson(share * truth, truth) == pytest.approx(1)
    assert (found.slope, found.top) == pytest.approx((1 / share, share))


def test_amplitudes_that_are_not_defined_are_left_out_of_a_mean() -> None:
    nothing = Amplitude.of(np.zeros((8, 8)), np.zeros((8, 8)))
    assert np.isnan(nothing.slope) and np.isnan(nothing.top)
    assert Amplitude.mean([nothing, Amplitude(2.0, 0.5)]) == Amplitude(2.0, 0.5)
    assert np.isnan(Amplitude.mean([nothing]).top)
