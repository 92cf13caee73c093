"""Scores, floor and ceiling, and the nine perturbations: laws and tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acq_isl.evaluation import baselines
from acq_isl.evaluation.perturbations import AS_TRAINED, PERTURBATIONS, zoom
from acq_isl.evaluation.scores import (
    add_objects,
    auroc,
    find_objects,
    foreground_threshold,
    otsu_threshold,
    score_objects,
    score_pixels,
    score_std,
)
from acq_isl.processing.display import additive_error
from acq_isl.processing.segmentation import ObjectScore
from acq_isl.training.data.registration import structure

RNG = np.random.default_rng(0)


def image(seed: int, shape: tuple[int, int] = (40, 50)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def test_pixel_scores_are_what_their_names_say() -> None:
    a, b = image(1), image(2)
    score = score_pixels(a, b)
    assert score.pearson == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    assert score.mae == pytest.approx(np.abs(a - b).mean(), rel=1e-5)
    same = score_pixels(a, a)
    assert (same.pearson, same.ssim, same.mae) == (pytest.approx(1), pytest.approx(1), 0)


def test_structural_similarity_has_a_fixed_range() -> None:
    """A single brighter pixel far away changes nothing where the windows do not hold it."""
    a, b = 0.1 * image(1, (64, 64)), 0.1 * image(2, (64, 64))
    inner = np.zeros((64, 64), bool)
    inner[16:, 16:] = True
    before = score_pixels(a, b, inner).ssim
    b[0, 0] = 1.0
    assert score_pixels(a, b, inner).ssim == before


@given(st.integers(0, 10**6), st.integers(8, 30), st.integers(8, 30))
@settings(max_examples=25, deadline=None)
def test_fields_add_up_to_their_pixels_together(seed: int, rows: int, more: int) -> None:
    a, b = image(seed, (rows + more, 20)), image(seed + 1, (rows + more, 20))
    together = score_pixels(a, b)
    parts = score_pixels(a[:rows], b[:rows]) + score_pixels(a[rows:], b[rows:])
    assert parts.n == together.n
    assert parts.pearson == pytest.approx(together.pearson, abs=1e-9)
    assert parts.mae == pytest.approx(together.mae)


@given(st.floats(-5, 5), st.floats(0.1, 10))
@settings(max_examples=25, deadline=None)
def test_gain_and_offset_do_not_change_a_correlation(offset: float, gain: float) -> None:
    a, b = image(3), image(4)
    moved = np.float32(gain) * a + np.float32(offset)
    assert score_pixels(moved, b).pearson == pytest.approx(score_pixels(a, b).pearson, abs=1e-4)


def test_a_constant_image_has_no_correlation() -> None:
    assert np.isnan(score_pixels(np.full((20, 20), 0.3, np.float32), image(1, (20, 20))).pearson)


def test_where_the_truth_cannot_be_trusted_it_does_not_count() -> None:
    a, b = image(1), image(1)
    valid = np.ones(a.shape, bool)
    b[:, :10], valid[:, :10] = 1 - b[:, :10], False
    assert score_pixels(a, b).pearson < 0.9
    assert score_pixels(a, b, valid).pearson == pytest.approx(1)
    assert score_pixels(a, b, valid).n == valid.sum()


@pytest.mark.parametrize(("factor", "covered"), [(1.0, 0.683), (0.5, 0.383), (2.0, 0.954)])
def test_coverage_finds_an_sd_that_is_too_wide_or_too_narrow(factor: float, covered: float) -> None:
    sd = 0.05 + 0.2 * image(5, (300, 300))
    truth = image(6, (300, 300))
    mean = (truth + sd * RNG.standard_normal(sd.shape)).astype(np.float32)
    score = score_std(mean, factor * sd, truth, truth > 0.5)
    assert score.coverage == pytest.approx(covered, abs=0.01)
    assert score.coverage_foreground == pytest.approx(covered, abs=0.015)
    assert score.rank_correlation > 0.3
    assert (score + score).coverage == score.coverage


def test_an_sd_that_says_nothing_has_no_rank_correlation() -> None:
    flat = np.full((20, 20), 0.1, np.float32)
    score = score_std(image(1, (20, 20)), flat, image(2, (20, 20)), np.zeros((20, 20), bool))
    assert score.rank_correlation == 0
    assert np.isnan(score.coverage_foreground)


@pytest.mark.parametrize(
    ("normal", "strange", "wanted"),
    [([1, 2, 3], [4, 5], 1.0), ([4, 5], [1, 2], 0.0), ([1, 2], [1, 2], 0.5), ([2], [2], 0.5)],
)
def test_auroc(normal: list[float], strange: list[float], wanted: float) -> None:
    assert auroc(np.array(normal, float), np.array(strange, float)) == wanted


def test_auroc_of_nothing_is_no_number() -> None:
    assert np.isnan(auroc(np.zeros(0), np.ones(3)))


def test_otsu_parts_two_heaps_over_all_images() -> None:
    dark, bright = 0.1 + 0.02 * image(1), 0.8 + 0.02 * image(2)
    assert 0.12 < otsu_threshold([dark, bright]) < 0.8
    assert otsu_threshold([np.full((5, 5), 0.4, np.float32)]) == 0.0


def disks(centres: list[tuple[int, int]], radius: int = 10) -> np.ndarray:
    rows, columns = np.ogrid[:120, :160]
    out = np.zeros((120, 160), np.float32)
    for row, column in centres:
        out[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = 1
    return out


def test_objects_are_counted_and_matched() -> None:
    true, found = disks([(30, 30), (30, 90), (90, 60)]), disks([(30, 33), (90, 60), (90, 130)])
    above = foreground_threshold([true], 0.3)
    scores = score_objects(*(find_objects(image, above, 0.3) for image in (found, true)))
    assert {iou: (s.found, s.true, s.matched) for iou, s in scores.items()} == {
        0.5: (3, 3, 2),
        0.3: (3, 3, 2),
    }
    both = add_objects([scores[0.5], ObjectScore(0.0, 1, 0, 0)])
    assert (both.found, both.true, both.matched, both.f1) == (4, 3, 2, 4 / 7)


def test_the_floor_is_the_best_line_through_its_guess() -> None:
    truth = image(1)
    guess = 3 * image(1) + image(2) - 7
    fit = baselines.fit_line(guess, truth)
    assert fit.mean() == pytest.approx(truth.mean(), abs=1e-4)
    left = (truth - fit).ravel()
    assert abs(np.mean(left * (guess - guess.mean()).ravel())) < 1e-4
    constant = baselines.fit_line(np.zeros_like(truth), truth)
    np.testing.assert_allclose(constant, truth.mean(), atol=1e-5)


def test_the_floor_sees_where_planes_differ() -> None:
    stack = np.full((5, 60, 60), 30000.0)
    stack[:, 20:40, 20:40] += np.arange(5)[:, None, None] * 500
    shown = structure(stack.astype(np.uint16), 4.0)
    assert shown[30, 30] > shown[5, 5] + 1


def test_the_ceiling_has_the_stains_own_noise_and_its_displacement() -> None:
    clean = disks([(40, 40), (80, 110)], 20)
    noisy = clean + np.float32(0.05) * np.random.default_rng(1).standard_normal(clean.shape, np.float32)
    again = baselines.expose_again(noisy, 0.0, seed=2)
    assert (again - noisy).std() == pytest.approx(0.05, rel=0.3)
    still, moved = (score_pixels(baselines.expose_again(noisy, px, 2), noisy).pearson for px in (0, 4))
    assert moved < still < 1


STACK = np.random.default_rng(7).integers(1000, 60000, (13, 64, 48)).astype(np.uint16)
SAME_PLANES = {
    "z reversed": list(range(12, -1, -1)),
    "z shifted 6 planes": [*range(6, 13), *[12] * 6],
    "one plane repeated": [6] * 13,
    "z step x2": [0, 0, 0, 0, 2, 4, 6, 8, 10, 12, 12, 12, 12],
    AS_TRAINED: list(range(13)),
}


def test_there_are_nine_perturbations() -> None:
    assert len(PERTURBATIONS) == 9
    for name, change in PERTURBATIONS.items():
        changed = change(STACK)
        assert changed.dtype == np.uint16, name
        assert changed.shape[0] == 13, name


@pytest.mark.parametrize("name", SAME_PLANES)
def test_perturbations_of_z_only_choose_planes(name: str) -> None:
    np.testing.assert_array_equal(PERTURBATIONS[name](STACK), STACK[SAME_PLANES[name]])


def test_contrast_inverted_twice_is_none_the_worse() -> None:
    invert = PERTURBATIONS["contrast inverted"]
    assert np.corrcoef(invert(STACK)[0].ravel(), STACK[0].ravel())[0, 1] == pytest.approx(-1)
    np.testing.assert_array_equal(invert(invert(STACK)), STACK)


def test_magnification_and_blur() -> None:
    assert PERTURBATIONS["magnification x.5"](STACK).shape == (13, 32, 24)
    assert PERTURBATIONS["magnification x2"](STACK).shape == STACK.shape
    assert PERTURBATIONS["blur 2 px"](STACK).std() < 0.3 * STACK.std()
    step = np.zeros((1, 40, 40), np.float32)
    step[:, :, 20:] = 1
    np.testing.assert_allclose(zoom(step, 2.0)[0, 20, [5, 35]], [0, 1])


def test_errors_have_the_colours_of_the_paper() -> None:
    predicted = np.array([[1, 1, 0, 0.5]], np.float32)
    truth = np.array([[1, 0, 1, 0.5]], np.float32)
    colours = additive_error(predicted, truth)[0].tolist()
    assert colours == [[255, 255, 255], [255, 128, 0], [0, 128, 255], [128, 128, 128]]
