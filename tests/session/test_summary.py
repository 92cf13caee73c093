"""Pictures and numbers of the record."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from acq_isl.errors import ExperimentError
from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.planning import Cycle
from acq_isl.record import Comparison
from acq_isl.session.fields import Field
from acq_isl.session.summary import compare, late_intervals, latencies, shortfall, thumbnail, versions, weigh
from acq_isl.stack import Prediction, StackInfo, StackKey, StackRequest, StageTimes


def test_the_sharpest_plane_is_shown() -> None:
    stack = np.full((3, 64, 64), 1000, np.uint16)
    stack[1, ::4] = 2000  # stripes in the middle plane only
    shown = thumbnail(stack)
    assert shown.dtype == np.uint8 and shown.shape == (64, 64)
    assert shown[0].min() == 255 and shown[1].max() == 0


@pytest.mark.parametrize(
    "shape, expected", [((1024, 512), (384, 192)), ((100, 50), (100, 50)), ((2000, 1), (384, 1))]
)
def test_pictures_stay_small(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 60000, (2, *shape), dtype=np.uint16)
    assert thumbnail(noise).shape == expected


def prediction(infer_ms: float) -> Prediction:
    info = StackInfo(StackKey(0, "a", "Phase"), (0.0,), (4, 4), 0.3)
    empty = np.zeros((1, 4, 4), np.float32)
    return Prediction(info, ("nuclei",), empty, empty, "", "", "", times=StageTimes(infer_ms=infer_ms))


def test_latency_percentiles() -> None:
    found = {one.stage: one for one in latencies([prediction(ms).times for ms in range(101)], [3.0])}
    assert (found["infer"].p50_ms, found["infer"].p95_ms) == (50, 95)
    assert found["decide"].p50_ms == 3
    assert latencies([], [1.0]) == ()


def test_a_comparison_gets_its_floor_and_its_ceiling() -> None:
    rng = np.random.default_rng(4)
    stain = ndimage.gaussian_filter(rng.random((96, 96)), 3) * 40000
    measured = (stain + rng.normal(0, 50, stain.shape)).astype(np.uint16)
    info = StackInfo(StackKey(0, "a", "Phase"), (0.0,), stain.shape, 0.3)
    compared = Comparison(info, "nuclei", "DAPI", stain.astype(np.float32), measured, 1.0)
    nothing = weigh(compared, rng.random(stain.shape).astype(np.float32))
    assert abs(nothing.floor) < 0.1 and 0.5 < nothing.ceiling < 1.0
    everything = weigh(compared, stain.astype(np.float32))
    assert everything.floor > 0.99 and everything.ceiling == nothing.ceiling


@pytest.mark.parametrize(
    "planned, real, told",
    [
        ((0, 30, 60), (0, 30.2, 60.4), []),
        (
            (0, 30, 60),
            (0, 44, 74),
            ["1 of 2 intervals between time points could not be kept: planned 30 s, really 44 s"],
        ),
        (
            (0, 30, 90),
            (0, 44, 120),
            ["2 of 2 intervals between time points could not be kept: planned 30 to 60 s, really 44 to 76 s"],
        ),
        ((0, 0, 0), (0, 5, 9), []),
        ((0, 30, 60), (0,), []),
        ((0,), (0,), []),
    ],
)
def test_intervals_that_were_not_kept_are_told_as_planned_and_real(planned, real, told) -> None:  # fmt: skip
    began = [(Cycle(time, planned[time], ()), real_s) for time, real_s in enumerate(real)]
    assert late_intervals(began) == told
    # The next position's own times begin anew: what lies between is no interval.
    again = [(replace(cycle, restarts=cycle.time == 0), began_s) for cycle, began_s in began]
    twice = late_intervals([*began, *again])
    assert [text.partition(":")[2] for text in twice] == [text.partition(":")[2] for text in told]


class Ended:
    """A run that has ended: its planned fields, of which some were imaged, and some of these predicted."""

    def __init__(self, planned: int, imaged: int, predicted: int) -> None:
        light = ("Channel", "Phase", 10.0)
        requests = [StackRequest(StackKey(0, f"p{n}", "Phase"), 0, 0, (0.0,), *light) for n in range(planned)]
        self.cycles = (Cycle(0, 0.0, tuple(requests)),)
        self.fields = {request.key: Field(request) for request in requests[:imaged]}
        self.dropped: set[StackKey] = set()
        for request in requests[:predicted]:
            self.fields[request.key].answers[""] = prediction(1.0)


@pytest.mark.parametrize(
    "planned, imaged, predicted, keys, told",
    [
        (4, 4, 4, "", ""),
        (4, 4, 3, "", "only 3 of 4 fields were predicted; the experiment requires all of them (require)"),
        (4, 2, 1, "", "only 1 of 4 fields was predicted; the experiment requires all of them (require)"),
        (4, 4, 3, "require: 0.75", ""),
        (10, 10, 7, "require: 0.7", ""),
        (
            4,
            4,
            2,
            "require: 0.75",
            "only 2 of 4 fields were predicted; the experiment requires 75% of them (require)",
        ),
        (4, 4, 0, "require: 0", "no field was predicted"),
        (4, 4, 0, "engine: {kind: none}", ""),
    ],
)
def test_what_is_missing_of_the_predictions_that_are_required(planned, imaged, predicted, keys, told) -> None:
    text = "name: a\noverview: {channels: [{config: Phase, exposure: 1}]}\n"
    assert shortfall(Experiment.from_text(text + keys), Ended(planned, imaged, predicted)) == told


def test_versions_name_what_a_prediction_depends_on() -> None:
    assert {"python", "acq-isl", "pycromanager", "onnxruntime"} <= set(versions())


def test_images_of_another_size_are_not_compared() -> None:
    with pytest.raises(ExperimentError, match="binning"):
        compare(prediction(1.0), "nuclei", np.ones((3, 2, 2), np.uint16), "DAPI", ())
