"""Contrast, resampling and mapping back: what normalisation must keep and what it must not invent."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from acq_isl.compatibility import Resample
from acq_isl.errors import StackRefused
from acq_isl.processing.normalize import (
    ContrastMeter,
    all_finite,
    contrast_sd,
    inverse_contrast,
    map_back,
    resample,
    resize,
)
from acq_isl.stack import StackInfo, StackKey, ZStack


def stack_of(pixels, z_um=None):
    pixels = np.asarray(pixels, np.uint16)
    z = tuple(float(i) for i in range(len(pixels))) if z_um is None else z_um
    info = StackInfo(StackKey(0, "A1", "Phase"), z, pixels.shape[1:], 0.3)
    return ZStack(info, pixels, (0.0,) * len(pixels))


def picture(shape=(5, 97, 130), seed=0, sd=800.0):
    noise = np.random.default_rng(seed).normal(0, 1, shape)
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2))
    return np.clip(20000 + sd * smooth / smooth.std(), 0, 65535).astype(np.uint16)


def contrast_by_definition(pixels, high_pass_px):
    """The formula as one would write it down: residual of each plane around its Gaussian of block means."""
    picks = np.unique(np.linspace(0, len(pixels) - 1, 4).round().astype(int))
    variances = []
    for plane in pixels[picks].astype(np.float64):
        if high_pass_px <= 0 or min(plane.shape) < 4:
            variances.append(plane.var())
            continue
        cut = plane[: plane.shape[0] // 4 * 4, : plane.shape[1] // 4 * 4]
        blocks = cut.reshape(cut.shape[0] // 4, 4, cut.shape[1] // 4, 4).mean(axis=(1, 3))
        background = ndimage.gaussian_filter(blocks, high_pass_px / 4, mode="reflect")
        variances.append(np.mean((cut - background.repeat(4, 0).repeat(4, 1)) ** 2))
    return float(np.sqrt(np.mean(variances)))


@given(
    shape=st.tuples(st.integers(1, 7), st.integers(1, 60), st.integers(1, 60)),
    high_pass_px=st.sampled_from([0.0, 1.0, 8.0, 40.0]),
    low=st.integers(0, 60000),
    span=st.integers(1, 5000),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_contrast_is_what_its_definition_says(shape, high_pass_px, low, span, seed):
    pixels = np.random.default_rng(seed).integers(low, low + span, shape).astype(np.uint16)
    wanted = contrast_by_definition(pixels, high_pass_px)
    assert contrast_sd(pixels, high_pass_px) == pytest.approx(wanted, rel=1e-6, abs=1e-6)


@given(gain=st.integers(1, 3), offset=st.integers(0, 900))
@settings(max_examples=20, deadline=None)
def test_gain_scales_contrast_and_offset_leaves_it(gain, offset):
    pixels = picture(sd=300.0)
    changed = pixels.astype(np.int64) * gain + offset
    assert changed.max() <= 65535
    assert contrast_sd(changed.astype(np.uint16), 20) == pytest.approx(
        gain * contrast_sd(pixels, 20), rel=1e-6
    )


def test_uneven_illumination_is_not_contrast():
    pixels = picture()
    tilted = (pixels + np.linspace(0, 20000, pixels.shape[2])).astype(np.uint16)
    assert contrast_sd(tilted, 8) == pytest.approx(contrast_sd(pixels, 8), rel=0.3)
    assert contrast_sd(tilted, 0) > 5 * contrast_sd(pixels, 0)


@pytest.mark.parametrize("counts", [0, 100, 65535])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 3), (13, 64, 50)])
@pytest.mark.parametrize("high_pass_px", [0.0, 3.0, 20.0])
def test_a_constant_stack_has_exactly_no_contrast_and_is_refused(counts, shape, high_pass_px):
    pixels = np.full(shape, counts, np.uint16)
    assert contrast_sd(pixels, high_pass_px) == 0
    with pytest.raises(StackRefused, match=r"no contrast.*to fix: check that the shutter opens"):
        inverse_contrast(pixels, high_pass_px)


def test_a_large_constant_stack_has_exactly_no_contrast_either():
    assert contrast_sd(np.full((1, 4096, 4096), 65533, np.uint16), 20) == 0


@given(shape=st.sampled_from([(5, 40, 44), (1, 64, 64), (13, 3, 90)]), order=st.randoms())
@settings(max_examples=15, deadline=None)
def test_planes_may_come_in_any_order(shape, order):
    pixels = picture(shape)
    meter = ContrastMeter(len(pixels), pixels.shape[1:], 20)
    places = list(range(len(pixels)))
    order.shuffle(places)
    for z in places:
        meter.add(z, pixels[z])
    assert meter.sd == contrast_sd(pixels, 20) and meter.inverse == inverse_contrast(pixels, 20)


def test_a_plane_that_was_not_seen_is_missed():
    meter = ContrastMeter(4, (16, 16), 2)
    meter.add(0, picture((1, 16, 16))[0])
    with pytest.raises(ValueError, match=r"planes \[1, 2, 3\] have not been seen"):
        meter.sd  # noqa: B018


def test_the_reciprocal_is_what_networks_take():
    pixels = picture()
    inverse = inverse_contrast(pixels, 20)
    assert inverse.dtype == np.float32
    assert float(inverse) == pytest.approx(1 / contrast_sd(pixels, 20))


def test_planes_that_exist_are_taken_as_they_are():
    pixels = picture()
    taken = resample(stack_of(pixels), Resample(1.0, (1.0, 3.0), ()))
    assert taken.dtype == np.uint16
    np.testing.assert_array_equal(taken, pixels[[1, 3]])


Z_CASES = [
    # z wanted, planes and shares that make it
    (0.0, {0: 1.0}),
    (0.5, {0: 0.5, 1: 0.5}),
    (1.25, {1: 0.75, 2: 0.25}),
    (4.0, {4: 1.0}),
    (-3.0, {0: 1.0}),
    (9.0, {4: 1.0}),
]


@pytest.mark.parametrize(("z_um", "shares"), Z_CASES)
def test_planes_in_between_are_interpolated_linearly(z_um, shares):
    pixels = picture()
    wanted = np.rint(sum(share * pixels[z].astype(float) for z, share in shares.items()))
    got = resample(stack_of(pixels), Resample(1.0, (z_um,), ()))[0]
    np.testing.assert_allclose(got, wanted, atol=1)


def test_stage_z_need_not_start_at_zero_nor_step_by_one():
    pixels = picture()
    stack = stack_of(pixels, z_um=(100.0, 101.5, 103.0, 104.5, 106.0))
    got = resample(stack, Resample(1.0, (102.25,), ()))[0]
    np.testing.assert_allclose(got, (pixels[1].astype(float) + pixels[2]) / 2, atol=1)


@given(
    scale=st.floats(0.6, 1.6),
    shape=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    counts=st.integers(0, 65535),
)
@settings(max_examples=40, deadline=None)
def test_resampling_keeps_the_field_of_view_and_flat_stays_flat(scale, shape, counts):
    stack = stack_of(np.full((2, *shape), counts))
    got = resample(stack, Resample(scale, (0.5,), ()))
    assert got.shape == (1, *(max(round(side * scale), 1) for side in shape))
    assert np.abs(got.astype(int) - counts).max() <= 1
    back = map_back(got.astype(np.float32), shape)
    assert back.shape == (1, *shape) and back.dtype == np.float32


def test_bright_counts_do_not_wrap_around():
    pixels = np.zeros((1, 40, 40), np.uint16)
    pixels[:, 10:30, 10:30] = 65535
    for scale in (0.6, 1.6):
        got = resample(stack_of(pixels), Resample(scale, (0.0,), ()))[0]
        middle = slice(int(14 * scale), int(25 * scale))
        assert got[middle, middle].min() >= 65534


def test_what_is_too_fine_for_the_new_pixels_averages_out():
    """A checkerboard of single pixels must turn grey, not into stripes a network could take for cells."""
    board = np.where(np.indices((120, 120)).sum(axis=0) % 2, 40000, 20000)[np.newaxis]
    got = resample(stack_of(board), Resample(0.6, (0.0,), ()))[0].astype(float)
    assert got.mean() == pytest.approx(30000, rel=0.01)
    assert got.std() < 0.15 * board.std()
    plain = ndimage.zoom(board[0].astype(float), 0.6, order=1, grid_mode=True, mode="nearest")
    assert plain.std() > 2 * got.std()


@pytest.mark.parametrize("scale", [0.6, 0.8, 1.25, 1.6])
def test_structure_stays_in_its_place_there_and_back(scale):
    y, x = np.mgrid[:128, :160]
    spot = 1000 + 40000 * np.exp(-((y - 40) ** 2 + (x - 110) ** 2) / (2 * 6**2))
    there = resample(stack_of(spot[np.newaxis]), Resample(scale, (0.0,), ()))
    back = map_back(there.astype(np.float32), (128, 160))[0]
    light = back - 1000
    assert (light * y).sum() / light.sum() == pytest.approx(40, abs=0.2)
    assert (light * x).sum() / light.sum() == pytest.approx(110, abs=0.2)
    assert np.corrcoef(back.ravel(), spot.ravel())[0, 1] > 0.995


def test_nothing_is_done_when_nothing_needs_doing():
    values = np.zeros((2, 8, 9), np.float32)
    assert map_back(values, (8, 9)) is values
    assert resize(values[0], (8, 9)).shape == (8, 9)


FINITE = [
    ("numbers", np.ones((2, 3, 5)), True),
    ("numbers too large to square", np.full((2, 3, 5), 1e30), True),
    ("nothing", np.ones((0, 3, 5)), True),
    ("NaN", np.where(np.arange(30).reshape(2, 3, 5) == 17, np.nan, 1), False),
    ("infinity", np.where(np.arange(30).reshape(2, 3, 5) == 29, np.inf, 1), False),
    ("minus infinity among the largest", np.where(np.arange(30).reshape(2, 3, 5) == 0, -np.inf, 1e38), False),
]


@pytest.mark.parametrize(("values", "wanted"), [c[1:] for c in FINITE], ids=[c[0] for c in FINITE])
def test_numbers_are_told_from_what_is_none(values, wanted):
    assert all_finite(values.astype(np.float32)) is wanted


def test_statistics_leave_the_cores_alone(monkeypatch):
    """BLAS shares dot products above ten thousand numbers among threads, which spin while they wait."""
    lengths = []
    vecdot = np.vecdot
    monkeypatch.setattr(np, "vecdot", lambda a, b: lengths.append(a.shape[-1]) or vecdot(a, b))
    for name in ("vdot", "dot", "matmul", "inner"):
        monkeypatch.setattr(np, name, lambda *_, **__: pytest.fail("a product of whole images"))
    contrast_sd(picture((2, 300, 400)), 20)
    all_finite(np.ones((2, 300, 400), np.float32))
    assert lengths and max(lengths) <= 10_000
