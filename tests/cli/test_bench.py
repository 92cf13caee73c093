"""The benchmark: rows that add up, JSON that parses, a picture, and failures that are told."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from acq_isl.cli import app as cli
from acq_isl.cli import bench
from acq_isl.cli.bench import REFERENCE, Row, as_json, plot
from acq_isl.engines.model_file import read_model
from acq_isl.engines.roofline import (
    GPUS,
    PUBLISHED,
    Gpu,
    Work,
    error_of_published,
    estimate_ms,
    report,
    work,
)
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
        assert found.largest_difference < 0.05  # of labels without contrast, too


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


GEFORCE = "tensorrt_rtx 1.7.1.116 NVIDIA GeForce RTX 4090 fp16"


def on_gpu(device, **changes):
    return asdict(row(backend="tensorrt fp16", device=device, **changes))


def cells(text, name):
    """The row of a GPU, by name, as its cells."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.split("|")[2:-1]]


@pytest.mark.parametrize(
    ("device", "name"),
    [
        (GEFORCE, "RTX 4090"),
        ("tensorrt_rtx 1.7 NVIDIA RTX 6000 Ada Generation fp16", "RTX 6000 Ada"),
        ("tensorrt 11.4 NVIDIA A100-SXM4-80GB fp16", "A100 80G"),
        ("tensorrt 11.4 NVIDIA H100 80GB HBM3 fp16", "H100 SXM"),
        ("tensorrt 11.4 NVIDIA H100 PCIe fp16", "H100 PCIe"),
    ],
)
def test_what_a_gpu_took_stands_in_its_own_row_beside_the_estimate(device, name):
    text = report([on_gpu(device), asdict(row())])
    estimate, measured = cells(text, name)
    assert measured == "90 (+ 3 copies)" and " to " in estimate and "ESTIMATE" in text
    empty = [line for line in text.splitlines() if line.endswith("|  |")]
    assert len(empty) == len(GPUS) - 1


def test_a_gpu_without_an_estimate_has_a_row_too():
    text = report([on_gpu("tensorrt_rtx 1.7 NVIDIA GeForce RTX 3090 Ti fp16", side_px=256)])
    assert cells(text, "tensorrt_rtx 1.7 NVIDIA GeForce RTX 3090 Ti fp16") == [
        "none: not in the list",
        "90 (+ 3 copies)",
    ]
    assert cells(text, "RTX 3090")[1] == ""


@pytest.mark.parametrize("changes", [{"backend": "tensorrt fp32"}, {"shares_ms": {}}, {"backend": REFERENCE}])
def test_only_fp16_on_a_gpu_is_held_against_the_estimate(changes):
    assert report([on_gpu(GEFORCE) | changes]) == ""


def test_estimates_grow_with_the_field_and_shrink_with_the_gpu():
    model = read_model("demo")
    # Large, since weights and the gate's windows do not grow with the field.
    small, large = (work(model, side) for side in (1024, 2048))
    assert large.macs == pytest.approx(4 * small.macs, rel=0.01)
    assert large.traffic_bytes == pytest.approx(4 * small.traffic_bytes, rel=0.01)
    by_name = {gpu.name: estimate_ms(large, gpu) for gpu in GPUS}
    assert by_name["H100 SXM"] < by_name["RTX 4090"] < by_name["RTX 3090"]
    assert all(low < high for low, high, _ in by_name.values())


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda one: one.what)
def test_what_others_measured_lies_within_the_estimates(published):
    """Convolutions of 64 channels are bound by arithmetic: time is work / (efficiency x peak)."""
    short, long = error_of_published(published)
    assert short <= 1 <= long <= 2  # within the range, and the range within 2x of it
    macs = 10**12
    card = Gpu(published.what, published.peak, 1e9, 1.0, "")
    low, high, _ = estimate_ms(Work(macs, 0, 0, 0), card)
    took_ms = 2 * macs / (published.reached * 1e12) * 1e3
    assert low == pytest.approx(short * took_ms) and high == pytest.approx(long * took_ms)


def test_the_command_writes_the_estimates_where_a_gpu_was_measured(monkeypatch, tmp_path, capsys):
    measured = [row(backend="tensorrt fp16", device=GEFORCE)]
    for rows, said in ((measured, "estimates, and what was measured here"), ([row()], "no GPU was measured")):
        monkeypatch.setattr(bench, "bench", lambda *given, rows=rows, **options: rows)
        monkeypatch.setattr("sys.argv", ["acq-isl", "bench", "demo", "--estimates", str(tmp_path / "e.md")])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code and said in capsys.readouterr().out
    assert "| RTX 4090 |" in (tmp_path / "e.md").read_text("utf-8")


def test_nothing_to_plot_is_said(tmp_path):
    with pytest.raises(EngineError, match="nothing to plot"):
        plot([row(p50_ms=float("nan"))], tmp_path / "bench.png")


def test_a_model_that_is_none_is_an_error(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        bench.bench([tmp_path / "none.onnx"], [128])
