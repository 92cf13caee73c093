"""Draws are as likely as they say, and a label falls below its bar when its checks do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from acq_isl.rules.trusted import SpotJudge, SpotScore, is_drawn
from acq_isl.stack import StackKey


def key(n: int, time: int = 0) -> StackKey:
    return StackKey(time, f"A1_{n:03d}", "Phase")


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_a_field_is_drawn_with_its_probability_and_independently(share: float) -> None:
    drawn = np.array([[is_drawn("x", 1, share, key(n, time)) for n in range(500)] for time in range(8)])
    assert abs(drawn.mean() - share) < 4 * math.sqrt(share * (1 - share) / drawn.size) + 1e-12
    if share < 1:
        assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.2
    again = [is_drawn("x", 1, share, key(n)) for n in range(500)]
    assert again == list(drawn[0])
    assert share == 1 or again != [is_drawn("x", 2, share, key(n)) for n in range(500)]
    assert share == 1 or again != [is_drawn("y", 1, share, key(n)) for n in range(500)]


GOOD, POOR, EMPTY = (
    SpotScore("a", 0.8, 10, 10, 9),
    SpotScore("a", 0.1, 10, 10, 1),
    SpotScore("a", math.nan, 0, 0, 0),
)


@pytest.mark.parametrize(
    "r, f1, scores, falls_at",
    [
        (0.5, None, [GOOD] * 6, None),
        (0.5, None, [POOR] * 3, 2),
        (0.5, None, [POOR] * 2, None),  # too few to tell
        (None, 0.5, [POOR] * 3, 2),
        (0.5, None, [GOOD, GOOD, GOOD, POOR, POOR, POOR, POOR], 4),  # of the last four
        (None, 0.5, [EMPTY] * 5, None),  # nothing there, and nothing said
        (0.5, None, [EMPTY, EMPTY, POOR], 2),
    ],
)
def test_a_label_falls_below_its_bar(
    r: float | None, f1: float | None, scores: list[SpotScore], falls_at: int | None
) -> None:
    judge = SpotJudge(r, f1, least=3, over=4)
    told = [judge.add(score) for score in scores]
    assert [n for n, why in enumerate(told) if why] == ([] if falls_at is None else [falls_at])
    assert ("a" in judge.propose_only) == (falls_at is not None)


def test_a_label_that_fell_stays_down_and_others_do_not_fall_with_it() -> None:
    judge = SpotJudge(0.5, None, least=1, over=1)
    assert judge.add(POOR) and not judge.add(GOOD)
    assert judge.add(SpotScore("b", 0.9, 0, 0, 0)) == "" and list(judge.propose_only) == ["a"]


def test_a_blank_prediction_of_stained_cells_is_below_the_bar() -> None:
    judge = SpotJudge(0.5, None, least=2, over=4)
    blank = SpotScore("nuclei", math.nan, 0, 7, 0)
    assert judge.add(blank) == "" and "r = 0.00, below 0.5" in judge.add(blank)
    # Without cells nothing can be said.
    judge = SpotJudge(0.5, None, least=2, over=4)
    empty = SpotScore("nuclei", math.nan, 0, 0, 0)
    assert judge.add(empty) == judge.add(empty) == ""
