"""A weighted mean is right on average, its interval as often as it says; a plain one is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from acq_isl.processing.sampling import MeanEstimate, horvitz_thompson, naive_mean

N, SHARE, TOP, RUNS = 120, 0.2, 12, 1000


@pytest.fixture(scope="module")
def simulated() -> tuple[float, dict[str, list[MeanEstimate]]]:
    """A rule visits where a prediction is highest, chance a share of all fields; the fields stay the same."""
    rng = np.random.default_rng(3)
    predicted = rng.gamma(3, 3, N)
    true = 0.6 * predicted + rng.gamma(2, 1, N)
    certain = np.isin(np.arange(N), np.argsort(-predicted)[:TOP])
    found: dict[str, list[MeanEstimate]] = {"weighted": [], "with predictions": [], "naive": []}
    for _ in range(RUNS):
        seen = certain | (rng.random(N) < SHARE)
        pi, values = np.where(certain, 1.0, SHARE)[seen], true[seen]
        found["weighted"].append(horvitz_thompson(values, pi, N))
        more = (predicted[seen], float(predicted.mean()))
        found["with predictions"].append(horvitz_thompson(values, pi, N, *more))
        found["naive"].append(naive_mean(values))
    return float(true.mean()), found


def coverage(truth: float, estimates: list[MeanEstimate]) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in estimates]))


@pytest.mark.parametrize("way", ["weighted", "with predictions"])
def test_it_is_unbiased_and_its_interval_holds_the_truth(
    simulated: tuple[float, dict[str, list[MeanEstimate]]], way: str
) -> None:
    truth, found = simulated
    means = np.array([one.mean for one in found[way]])
    assert abs(means.mean() - truth) < 4 * means.std() / math.sqrt(RUNS)
    assert 0.93 < coverage(truth, found[way]) <= 0.99


def test_the_plain_mean_is_biased_and_sure_of_it(
    simulated: tuple[float, dict[str, list[MeanEstimate]]],
) -> None:
    truth, found = simulated
    assert np.mean([one.mean for one in found["naive"]]) > 1.2 * truth
    assert coverage(truth, found["naive"]) < 0.5


def test_predictions_narrow_the_interval(simulated: tuple[float, dict[str, list[MeanEstimate]]]) -> None:
    widths = {way: np.median([one.high - one.low for one in some]) for way, some in simulated[1].items()}
    assert widths["with predictions"] < 0.6 * widths["weighted"]


def test_what_cannot_be_known_is_not_said() -> None:
    assert horvitz_thompson([2.0, 4.0], [1.0, 1.0], 2) == MeanEstimate(3.0, 3.0, 3.0)
    one = horvitz_thompson([2.0, 4.0], [1.0, 0.1], 20)
    assert one.mean == 2.1 and math.isnan(one.low)
    none = naive_mean([])
    assert math.isnan(none.mean)
