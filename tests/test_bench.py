"""The benchmark: rows that add up, JSON that parses, a picture, and failures that are told."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from acq_isl import bench
from acq_isl.bench import REFERENCE, Row, as_json, plot
from acq_isl.errors import EngineError, ModelError

SHARES = {"prepare": 5.0, "tiling": 1.0, "upload": 2.0, "compute": 90.0, "download": 1.0, "decode": 1.0}


def row(**changes):
    fields = {
        "model": "demo", "backend": "openvino bf16", "device": "openvino cpu bf16", "side_px": 512,
        "p50_ms": 50.0, "p95_ms": 60.0, "megapixels_per_s": 5.2, "peak_mib": 340.0,
        "ratio": 2.0, "least_pearson": 0.9999,
        "largest_difference": 0.004, "shares_ms": SHARES,
    }  # fmt: skip
    return Row(**(fields | changes))


@pytest.fixture(scope="module")
def rows():
    told = []
    found = bench.bench(["demo"], [128], rounds=2, threads=1, tell=told.append)
    assert told and "neurons-demo, 128x128" in told[0]
    return found


def test_the_reference_is_equal_to_itself(rows):
    (reference,) = [found for found in rows if found.backend == REFERENCE]
    assert reference.ratio == 1 and reference.largest_difference == 0
    assert reference.least_pearson == pytest.approx(1)


def test_every_row_adds_up(rows):
    for found in rows:
        assert found.side_px == 128 and 0 < found.p50_ms <= found.p95_ms
        assert found.megapixels_per_s == pytest.approx(128**2 / 1e3 / found.p50_ms)
        assert set(found.shares_ms) == set(SHARES) and min(found.shares_ms.values()) >= 0
        assert found.peak_mib > 50  # an interpreter with numpy is not smaller
        assert found.least_pearson > 0.99


def test_work_on_the_host_is_told_from_work_inside():
    assert row().host_share == pytest.approx(7 / 93)
    assert math.isnan(row(shares_ms={}).host_share)


def test_json_has_no_numbers_that_are_none(rows):
    nan = float("nan")
    text = as_json([*rows, row(p50_ms=nan, note="failed: no GPU")])
    parsed = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert parsed["format"] == "acq-isl-bench/1" and parsed["machine"]["cores"]
    assert parsed["rows"][-1]["p50_ms"] is None and parsed["rows"][-1]["note"] == "failed: no GPU"
    assert parsed["rows"][0]["backend"] == rows[0].backend


def test_longer_times_are_longer_bars(tmp_path):
    path = tmp_path / "bench.png"
    plot([row(p50_ms=50.0), row(backend=REFERENCE, p50_ms=100.0)], path)
    picture = np.asarray(Image.open(path))
    blue, orange = (
        np.all(picture == color, axis=2).sum(axis=1).max() for color in ((0, 114, 178), (230, 159, 0))
    )
    assert 1.9 < orange / blue < 2.1


def test_nothing_to_plot_is_said(tmp_path):
    with pytest.raises(EngineError, match="nothing to plot"):
        plot([row(p50_ms=float("nan"))], tmp_path / "bench.png")


def test_a_model_that_is_none_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        bench.bench([tmp_path / "none.onnx"], [128])
