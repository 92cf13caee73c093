"""Grades of a run on a simulated specimen: right where the answer is known, and readable."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acq_isl.record import Comparison
from acq_isl.report.report import describe_objects
from acq_isl.rules import Best, SetPreset, Threshold, Trigger
from acq_isl.rules.measurements import ObjectCount
from acq_isl.scorecard import Scorecard, Spread, sentences
from acq_isl.session.grade import match_light
from acq_isl.session.grading import scores as grading
from acq_isl.session.grading import targeting
from acq_isl.session.grading.scores import KnownField
from acq_isl.session.grading.targeting import Imaged
from acq_isl.sim import CellTruth
from acq_isl.sim.scope.timeline import Taken
from acq_isl.sim.view import Light
from acq_isl.stack import Prediction, StackInfo, StackKey, StackRequest

NUCLEI = ObjectCount(label="nuclei", above=0.2, min_area_um2=4.0)
SIDE = 96


def key(name: str, channel: str = "Phase", time: int = 0) -> StackKey:
    return StackKey(time, name, channel)


def cell(name: str, x: float, y: float, z: float, nuclei: float = 0.0) -> CellTruth:
    return CellTruth(name, "neuron", x, y, z, 5.0, 3.0, "alive", {"nuclei": nuclei})


def lit(unix_s: float, x: float, y: float, z: float, dose_ms: float) -> Taken:
    return Taken(Light(0.0, x, y, z, 1.0, 1.0, "any", dose_ms), unix_s)


def cells(*wanted: str, others: str = "", z_um: float = 1.0) -> tuple[CellTruth, ...]:
    marked = [cell(name, 0.0, 0.0, z_um, 0.6) for name in wanted]
    return (*marked, *(cell(name, 0.0, 0.0, z_um, 0.1) for name in others))


def field(
    name: str, true: float, *, predicted: float = 0.0, chosen: bool = False, time: int = 0
) -> KnownField:
    return KnownField(key(name, time=time), chosen, 0.5, (), {NUCLEI: predicted}, {NUCLEI: true}, cells())


def imaged(name: str, channel: str, *taken: Taken, exposure_ms: float = 10.0) -> Imaged:
    z_um = tuple(one.light.z_um for one in taken)
    x_um = 50.0 if name == "b" else 0.0
    return Imaged(StackRequest(key(name, channel), x_um, 0.0, z_um, "Channel", channel, exposure_ms), taken)


def discs(centres: list[tuple[int, int]], bright: float = 1.0) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    image = np.zeros((SIDE, SIDE), np.float32)
    for row, column in centres:
        image[np.hypot(rows - row, columns - column) < 8] = bright
    return image


def prediction(image: np.ndarray) -> Prediction:
    info = StackInfo(key("a"), (0.0,), (SIDE, SIDE), 0.3)
    spread = np.zeros((2, SIDE, SIDE), np.float32)
    return Prediction(info, ("nuclei", "spines"), np.stack([image, image]), spread, "", "m", "e")


# choices

CHOICES = [
    ("all right", {"a": 9, "b": 5, "c": 1}, "ab", 2, (), ()),
    ("one wrong", {"a": 9, "b": 5, "c": 1}, "ac", 1, (("c", 3),), ("b",)),
    ("all wrong", {"a": 9, "b": 5, "c": 1, "d": 0}, "cd", 0, (("c", 3), ("d", 4)), ("a", "b")),
    ("equal fields are as good as each other", {"a": 5, "b": 5, "c": 5}, "c", 1, (), ()),
]


@pytest.mark.parametrize(
    ("why", "true", "chosen", "right", "wrong", "missed"), CHOICES, ids=lambda v: str(v)[:20]
)
def test_choices_are_held_against_the_true_ranking(why, true, chosen, right, wrong, missed) -> None:
    fields = [field(name, value, chosen=name in chosen) for name, value in true.items()]
    score = grading.score_choice(Best(k=len(chosen), measurement=NUCLEI), fields)
    assert score is not None
    assert (score.right, score.wrong, score.missed) == (right, wrong, missed)
    assert (score.chosen, score.ranked) == (len(chosen), len(true))


def test_the_lowest_can_be_wanted_and_time_points_are_ranked_apart() -> None:
    lowest = Best(k=1, measurement=NUCLEI, descending=False)
    score = grading.score_choice(lowest, [field("a", 9), field("b", 5, chosen=True)])
    assert score is not None and score.right == 1
    later = [
        field("a", 1, chosen=True),
        field("b", 0),
        field("a", 9, time=1),
        field("b", 99, chosen=True, time=1),
    ]
    both = grading.score_choice(Best(k=1, measurement=NUCLEI), later)
    assert both is not None and (both.right, both.chosen, both.rounds) == (2, 2, 2)


def test_a_run_without_choice_or_truth_has_no_score() -> None:
    rule = Best(k=1, measurement=NUCLEI)
    assert grading.score_choice(rule, [field("a", 3)]) is None
    assert grading.score_choice(rule, [replace(field("a", 3, chosen=True), true={})]) is None


# cells


def known(**fields: tuple[CellTruth, ...]) -> list[KnownField]:
    return [replace(field(name, 0), cells=some) for name, some in fields.items()]


def test_cells_found_are_compared_with_chance_and_with_the_best() -> None:
    fields = known(a=cells(*"uvwx", others="12"), b=cells(*"y"), c=cells(*"z"), d=cells())
    score = grading.score_cells("nuclei", fields, {key("a"), key("c")})
    assert score is not None
    assert (score.wanted, score.imaged, score.there, score.fields, score.of_fields) == (6, 5, 7, 2, 4)
    assert score.recall == pytest.approx(5 / 6) and score.precision == pytest.approx(5 / 7)
    assert score.at_random == pytest.approx(3) and score.at_best == 5
    assert grading.score_cells("nuclei", [replace(fields[0], cells=None)], {key("a")}) is None


def test_only_fields_of_the_same_time_point_are_compared() -> None:
    early = known(a=cells(*"uvwx"), b=cells(*"y"))
    late = [replace(some, key=key(some.key.position, time=1)) for some in early]
    unseen = [replace(some, key=key(some.key.position, time=2)) for some in early]
    chosen = {key("a"), key("b", time=1)}
    score = grading.score_cells("nuclei", [*early, *late, *unseen], chosen)
    assert score is not None
    # One field of two at each of two times; the third time had no fluorescence, and says nothing.
    assert (score.wanted, score.imaged, score.fields, score.of_fields, score.rounds) == (10, 5, 2, 4, 2)
    assert (score.at_random, score.at_best) == (5, 8)


@given(
    places=st.lists(st.frozensets(st.sampled_from("abcdef"), max_size=4), min_size=2, max_size=5),
    draws=st.integers(1, 2),
)
def test_chance_is_the_mean_over_all_draws_and_never_above_the_best(places, draws) -> None:
    fields = known(**{f"f{number}": cells(*sorted(some)) for number, some in enumerate(places)})
    score = grading.score_cells("nuclei", fields, {one.key for one in fields[:draws]})
    assert score is not None
    drawn = [len(frozenset().union(*some)) for some in itertools.combinations(places, draws)]
    assert score.at_random == pytest.approx(np.mean(drawn))
    assert score.at_random - 1e-9 <= score.at_best <= score.wanted
    assert score.imaged == len(frozenset().union(*places[:draws]))


# triggers, light, place, time


def test_triggers_are_asked_what_they_would_have_done() -> None:
    trigger = Trigger(
        name="many", when=Threshold(measurement=NUCLEI, above=3), do=SetPreset(group="g", preset="p")
    )
    cases = {
        "right": (5, "done"),
        "alarm": (1, "done: 3"),
        "missed": (5, "nothing"),
        "rightly idle": (1, "nothing"),
        "against the limits": (5, "refused: not done"),
        "after its last": (1, "spent"),
        "too late": (5, "spent"),
    }
    fields = [field(name, true) for name, (true, _) in cases.items()]
    judged = {key(name): did for name, (_, did) in cases.items()}
    score = grading.score_trigger(trigger, fields, judged)
    assert score == grading.TriggerScore(
        "many", 2, ("alarm",), ("missed",), acted=2, hindered=("against the limits",), spent=2, fields=7
    )
    assert grading.score_trigger(trigger, [replace(fields[0], true={})], judged) is None
    assert grading.score_trigger(trigger, fields, {}) is None


STACKS = [
    imaged("a", "Phase", lit(100.0, 0, 0, -2, 10), lit(100.1, 0, 0, 2, 10)),
    imaged("b", "Phase", lit(101.0, 50, 0, -2, 10), lit(101.1, 50, 0, 2, 10)),
    imaged("b", "DAPI", lit(103.0, 53, 4, 0, 40)),
    imaged("b", "MAP2", lit(104.0, 50, 0, 2, 20)),
]
FIELDS = [field("a", 1), replace(field("b", 1), cells=cells("x", "y", others="z", z_um=1.5))]


def test_light_is_summed_by_channel_and_all_fields_are_extrapolated() -> None:
    light = targeting.score_light(STACKS, {key("a"), key("b")})
    assert dict(light.overview_ms) == {"Phase": 40}
    assert dict(light.fluorescence_ms) == {"DAPI": 40, "MAP2": 20}
    assert (light.stain_s, light.all_fields_ms, light.duration_s) == (0.06, 120, 4.0)
    # DAPI was imaged in both fields, MAP2 in one of them: two fields take 80 ms and 40 ms.
    also = imaged("a", "DAPI", lit(105.0, 0, 0, 0, 40))
    assert targeting.score_light([*STACKS, also], {key("a"), key("b")}).all_fields_ms == 120
    # A look elsewhere in transmitted light is no fluorescence.
    visit = imaged("visit_001", "Phase", lit(106.0, 0, 0, 0, 10))
    seen = targeting.score_light([*STACKS, visit], {key("a"), key("b")})
    assert dict(seen.overview_ms) == {"Phase": 50} and seen.all_fields_ms == 120


def test_targeting_is_measured_from_where_the_choice_was_made() -> None:
    aside, height = targeting.score_targeting("nuclei", FIELDS, STACKS)
    assert (aside.median, aside.worst) == (2.5, 5.0)
    assert math.isnan(height.median)
    # The stage missed by 3 and 4 um; of the wanted cells, one went along with it and one lies 6 um higher up.
    moved = (
        cell("x", 3.0, 4.0, 1.0),
        cell("y", 3.0, 10.0, 2.0),
        cell("z", 90.0, 0, 9),
    )
    found, height = targeting.score_targeting(
        "nuclei", FIELDS, [*STACKS[:2], replace(STACKS[2], cells=moved)]
    )
    assert found.median == pytest.approx(3.0) and height.median == pytest.approx(1.5)
    nowhere = targeting.score_targeting("nuclei", FIELDS, STACKS[:2])
    assert all(math.isnan(one.median) for one in nowhere)


def test_action_begins_with_the_first_fluorescence() -> None:
    wait = targeting.score_action(FIELDS, STACKS)
    assert wait.median == wait.worst == pytest.approx(103.0 - 101.1 - 0.01)


def test_light_is_matched_to_stacks_between_entries_of_the_ledger() -> None:
    requests = [one.request for one in STACKS[1:3]]
    times = ["2026-11-22T10:00:01.000+00:00", "2026-11-22T10:00:02.000+00:00"]
    began_s = 1795341600.0
    taken = [
        Taken(Light(0, 0, 0, 0, 1, 1, channel, 5.0), began_s + after_s)
        for channel, after_s in (("Phase", 0.1), ("DAPI", 0.2), ("Phase", 0.9), ("DAPI", 1.5), ("DAPI", 2.5))
    ]
    places = [{"position": one.key.position, "channel": one.key.channel} for one in requests]
    doses = [{"kind": "dose", "time": time, **place} for time, place in zip(times, places, strict=True)]
    lines = [{"kind": "decision"}, *doses]
    found = match_light(requests, taken, lines)
    assert found == {key("b"): (taken[0], taken[2]), key("b", "DAPI"): (taken[3],)}


# labels


def test_labels_are_compared_pixel_by_pixel_and_object_by_object() -> None:
    true = {"nuclei": discs([(20, 20), (20, 70), (70, 20)])}
    found = prediction(discs([(20, 20), (22, 71), (70, 70), (45, 45)], bright=0.5))
    (pair,) = grading.pair_labels(found, true, (NUCLEI,))
    assert (pair.label, pair.found, pair.true, pair.matched) == ("nuclei", 4, 3, 2)
    field_ = replace(field("a", 1), labels=(pair,))
    (score,) = grading.score_labels([field_, field_, field("c", 1)])
    assert (
        score.f1 == pytest.approx(4 / 7)
        and score.pearson == pytest.approx(pair.pearson)
        and score.fields == 2
    )
    assert grading.measure_truth(found, true, (NUCLEI,)) == {NUCLEI: 3.0}
    assert grading.measure_truth(found, {}, (NUCLEI,)) == {}


def test_a_stain_in_counts_is_brought_to_the_scale_of_labels() -> None:
    counts = (300 + 5000 * discs([(20, 20), (70, 60)])).astype(np.uint16)
    (pair,) = grading.pair_labels(
        prediction(discs([(20, 20)])), {"nuclei": grading.to_bright_end(counts)}, ()
    )
    assert (pair.found, pair.true, pair.matched) == (1, 2, 1)
    flat = grading.to_bright_end(np.full((8, 8), 7, np.uint16))
    assert not flat.any()


def test_objects_of_a_comparison_in_words() -> None:
    compared = Comparison(
        prediction(discs([])).info, "nuclei", "DAPI", discs([]), discs([]).astype(np.uint16), 0.5
    )
    assert describe_objects(compared) == ""
    assert describe_objects(replace(compared, f1=0.5, found=3, true=1)) == (
        "Bright spots that overlap: F1 = 0.50 "
        "(cut from both pictures alike: 3 in the prediction, 1 in the stain)."
    )


# words


def card() -> Scorecard:
    fields = known(a=cells(*"uvwx", others="12"), b=cells(*"y"))
    ranked = [field("a", 9), field("b", 5, chosen=True)]
    pair = grading.LabelPair("nuclei", 0.7, 4, 3, 2)
    return Scorecard(
        labels=grading.score_labels([replace(ranked[0], labels=(pair,))]),
        choice=grading.score_choice(Best(k=1, measurement=NUCLEI), ranked),
        triggers=(grading.TriggerScore("many", 2, ("a",), ("b",), acted=1, spent=3, fields=7),),
        cells=grading.score_cells("nuclei", fields, {key("b")}),
        light=targeting.score_light(STACKS, {key("a"), key("b")}),
        aside_um=Spread(0.5, 2.0),
        out_of_focus_um=Spread(1.0, 1.0),
        decision_s=Spread(0.123, 12.3),
        action_s=Spread(1.0, 30.0),
        ungraded=("Nothing else.",),
    )


def test_the_card_reads_like_a_report() -> None:
    assert dict(sentences(card())) == {
        "choice": "The chosen field is not truly the best of 2 (number of objects in nuclei (predicted)). "
        "Wrong: b (truly rank 2); better would have been a.",
        "cells": "1 of the 5 cells with nuclei that the simulator knows (20 %) lie in the 1 of 2 fields "
        "imaged in fluorescence; as many fields drawn at random would hold 50 %, the best 80 %. Of the 1 "
        "cells imaged there, 100 % were wanted.",
        "triggers": "'many' acted 1 time and was right about 2 of 4 fields, acted without cause at a, should "
        "have acted at b; 3 more came after it had acted as often as it may.",
        "light": "0.04 s of transmitted light and 0.06 s of fluorescence light, where all fields would have "
        "taken 0.12 s: 17 wanted cells per second of fluorescence light, 15 per minute of the run.",
        "targeting": "In fluorescence the wanted cells lay 0.5 µm (at most 2.0 µm) from where the overview "
        "had them, and 1.0 µm (at most 1.0 µm) in z from the focus.",
        "speed": "0.1 s (at most 12 s) from the last slice of a field to the decision, 1.0 s (at most 30 s) "
        "to its first fluorescence light.",
        "labels": "Predicted against true labels: nuclei r = 0.70, objects F1 0.57.",
        "not graded": "Nothing else.",
    }


def test_a_run_that_imaged_nothing_but_an_overview_says_what_it_can() -> None:
    bare = replace(
        card(), labels=(), choice=None, triggers=(), cells=None, ungraded=(),
        light=targeting.score_light(STACKS[:2], {key("a"), key("b")}),
        aside_um=Spread.of([]), out_of_focus_um=Spread.of([]), decision_s=Spread.of([math.nan]),
    )  # fmt: skip
    assert sentences(bare) == (("light", "0.04 s of transmitted light and 0.00 s of fluorescence light."),)
