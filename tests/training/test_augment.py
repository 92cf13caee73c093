"""Patches are changed as told, and truth follows what changes the place only."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage

from acq_isl.training.data.augment import Augmentation, augment

NONE = {"flips": False, "gamma": (1, 1), "gain": (1, 1), "noise": (0, 0), "blur": 0.0}


def patch(side=48, planes=7, seed=0):
    rng = np.random.default_rng(seed)
    x = ndimage.gaussian_filter(rng.standard_normal((planes, side, side)), (0, 2, 2)).astype(np.float32)
    x /= x.std()
    return x, np.concatenate([x[:1] * 0.1, np.ones((1, side, side), np.float32)])


def change(x, y, seed=0, side=32, **more):
    return augment(x, y, side, Augmentation(**(NONE | more)), np.random.default_rng(seed))


def middle(x, side=32):
    start = (x.shape[-1] - side) // 2
    return x[..., start : start + side, start : start + side]


@given(seed=st.integers(0, 999))
@settings(deadline=None, max_examples=30)
def test_everything_at_once_keeps_shape_and_stays_finite(seed):
    x, y = patch(60)
    everything = Augmentation(
        xy_scale=(0.7, 1.4), z_shift=(-2, 2), z_scale=(0.8, 1.2), invert=0.5, offset=(-0.2, 0.2),
        plane_dropout=0.3, blur=0.5, optics=0.5, spoilt=0.5,
    )  # fmt: skip
    got, truth = augment(x, y, 40, everything, np.random.default_rng(seed))
    assert got.shape == (7, 40, 40)
    assert truth.shape == (2, 40, 40)
    assert got.dtype == truth.dtype == np.float32
    assert np.isfinite(got).all()
    assert np.abs(got).max(axis=(1, 2)).max() > 0
    np.testing.assert_allclose(truth[1], 1, atol=1e-5)


def test_nothing_is_changed_if_nothing_is_wanted():
    x, y = patch(32)
    got, truth = change(x, y)
    np.testing.assert_allclose(got, x + 1e-3 * np.sign(x), atol=1e-5)
    np.testing.assert_array_equal(truth, y)


@pytest.mark.parametrize("seed", range(6))
def test_truth_is_turned_with_the_stack(seed):
    x, y = patch(32)
    got, truth = change(x, y, seed, flips=True)
    assert np.corrcoef(got[0].ravel(), truth[0].ravel())[0, 1] > 0.99


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_truth_is_scaled_with_the_stack(factor):
    x, y = patch(60)
    got, truth = change(x, y, 0, xy_scale=(factor, factor))
    assert np.corrcoef(got[0].ravel(), truth[0].ravel())[0, 1] > 0.99
    wanted = middle(ndimage.zoom(x[0], factor, order=1, grid_mode=True, mode="nearest"))
    assert np.corrcoef(got[0].ravel(), wanted.ravel())[0, 1] > (0.97 if factor > 1 else 0.9)


def test_scaling_needs_a_larger_cut():
    assert Augmentation(xy_scale=(0.7, 1.4)).reach == pytest.approx(1 / 0.7)
    assert Augmentation(xy_scale=(1.1, 1.4)).reach == 1
    assert Augmentation().reach == 1


def test_planes_move_and_truth_does_not():
    x, y = patch(32)
    got, truth = change(x, y, z_shift=(2, 2))
    np.testing.assert_allclose(got[:5], x[2:], atol=2e-3)
    np.testing.assert_allclose(got[6], x[6], atol=2e-3)
    np.testing.assert_array_equal(truth, y)


def test_the_distance_of_planes_changes_about_the_middle():
    x, y = patch(32)
    got, _ = change(x, y, z_scale=(0.5, 0.5))
    np.testing.assert_allclose(got[3], x[3], atol=2e-3)
    np.testing.assert_allclose(got[5], x[4], atol=2e-3)
    np.testing.assert_allclose(got[4], (x[3] + x[4]) / 2, atol=2e-3)


@pytest.mark.parametrize(
    ("more", "wanted"),
    [({"invert": 1.0}, lambda x: -x), ({"gain": (2, 2)}, lambda x: 2 * x),
     ({"offset": (0.5, 0.5)}, lambda x: x + 0.5),
     ({"gamma": (2, 2)}, lambda x: np.sign(x) * x**2)],
)  # fmt: skip
def test_light_changes_the_stack_only(more, wanted):
    x, y = patch(32)
    got, truth = change(x, y, **more)
    np.testing.assert_allclose(got, wanted(x), atol=0.02)
    np.testing.assert_array_equal(truth, y)


def test_dropped_planes_are_blank_and_never_all():
    x, y = patch(32)
    counts = []
    for seed in range(60):
        got, _ = change(x, y, seed, plane_dropout=0.9)
        counts.append(int((np.abs(got).max(axis=(1, 2)) > 0).sum()))
    assert min(counts) >= 1
    assert 1 < np.mean(counts) < 2.5


def test_blur_softens():
    x, y = patch(32)
    sharp = np.random.default_rng(0).standard_normal(x.shape).astype(np.float32)
    got, _ = change(sharp, y, blur=1.0, blur_px=(0.7, 0.7))
    assert got.std() < 0.7 * sharp.std()


def test_a_range_that_falls_is_refused():
    with pytest.raises(ValidationError, match="must not be below"):
        Augmentation(gamma=(1.2, 0.8))


def test_other_optics_change_the_stack_and_neither_its_contrast_nor_the_truth():
    x, y = patch(32)
    for seed in range(5):
        got, truth = change(x, y, seed, optics=1.0)
        np.testing.assert_array_equal(truth, y)
        assert got.std() == pytest.approx(x.std(), rel=0.01)
        assert np.abs(got - x).max() > 0.02


def test_what_is_spoilt_says_less_and_the_truth_follows_what_is_enlarged():
    x, y = patch(32)
    enlarged, repeated, changed = 0, 0, []
    for seed in range(24):
        got, truth = change(x, y, seed, spoilt=1.0)
        changed.append(np.abs(got - x).max() > 0.1)
        enlarged += not np.array_equal(truth, y)
        repeated += np.corrcoef(got.reshape(7, -1)).min() > 0.8
        if not np.array_equal(truth, y):
            assert np.corrcoef(got[0].ravel(), truth[0].ravel())[0, 1] > 0.99
    assert all(changed)
    assert 1 <= enlarged <= 12
    assert 1 <= repeated <= 12
