"""Pictures and numbers of the record."""

from __future__ import annotations

import numpy as np
import pytest

from acq_isl.errors import ExperimentError
from acq_isl.session.summary import compare, latencies, thumbnail, versions
from acq_isl.stack import Prediction, StackInfo, StackKey, StageTimes


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


def test_versions_name_what_a_prediction_depends_on() -> None:
    assert {"python", "acq-isl", "pycromanager", "onnxruntime"} <= set(versions())


def test_images_of_another_size_are_not_compared() -> None:
    with pytest.raises(ExperimentError, match="binning"):
        compare(prediction(1.0), "nuclei", np.ones((3, 2, 2), np.uint16), "DAPI", ())
