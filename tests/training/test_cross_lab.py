"""The cross-lab card on small made-up sets: what is refused, what is scored, and beside what."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

from acq_isl.engines.model_file import read_model
from acq_isl.training.looks import read_looks
from doubles import tiny_model as tiny

SIDE = 160


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import cross_lab

    return cross_lab


def write_set(folder, planes, names=("one", "two", "three")):
    """Cells that are seen where the stain is, in images of so many planes."""
    folder.mkdir(parents=True)
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        cells = ndimage.gaussian_filter((rng.random((SIDE, SIDE)) > 0.997).astype(float), 4)
        cells /= cells.max()
        focus = np.linspace(-1, 1.4, planes)[:, None, None] if planes > 1 else -np.ones((1, 1, 1))
        light = 20000 + 6000 * cells * focus + rng.normal(0, 40, (planes, SIDE, SIDE))
        about = {"axes": "ZYX", "PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3, "PhysicalSizeZ": 1.5}
        tifffile.imwrite(folder / f"{name}_light.ome.tif", light.astype(np.uint16), ome=True, metadata=about)
        stain = 500 + 9000 * cells + rng.normal(0, 50, (SIDE, SIDE))
        tifffile.imwrite(folder / f"{name}_nuclei.ome.tif", stain.astype(np.uint16))


def lab_set(bench, folder, **changes):
    pair = {"stack": "{field}_light.ome.tif", "labels": {"nuclei": "{field}_nuclei.ome.tif"}}
    one = {key: json.loads(json.dumps(value).replace("{field}", "one")) for key, value in pair.items()}
    others = [json.loads(json.dumps(pair).replace("{field}", name)) for name in ("two", "three")]
    values = {"light": "phase contrast", "learned": one, "judged": others, "pixel_size_um": 0.3} | changes
    return bench.LabSet("made up", "made-up cells", folder, **values)


@pytest.fixture
def made(bench, tmp_path):
    """The benchmark, and one made-up set in it, of so many planes."""

    def make(planes, **changes):
        write_set(tmp_path / "data" / "set", planes)
        one = bench.Bench(lab_set(bench, "set", **changes), tmp_path / "data", tmp_path / "work", 10)
        one.write()
        return bench, one

    return make


@pytest.fixture
def model(bench, tmp_path):
    info = read_model(tiny.write(tmp_path)).info
    return bench.Model(str(tmp_path / "tiny.onnx"), info.sha256, info.manifest)


@pytest.mark.parametrize(
    ("planes", "changes", "says", "right"),
    [
        (tiny.PLANES, {"light": "brightfield"}, "refused: the stack is brightfield", {True}),
        (1, {}, "refused: the stack has 1 plane", {True}),
        (tiny.PLANES, {"pixel_size_um": 4.3}, "refused: pixels are 4.3 um", {True}),
        (tiny.PLANES, {"pixel_size_um": None, "nominal_um": 0.3}, "pixel size is not known", {True, False}),
        # The tiny model has random weights: whatever it takes it should have refused.
        (tiny.PLANES, {}, "taken", {False}),
    ],
)
def test_a_model_takes_or_refuses_a_set_rightly_or_not(made, model, planes, changes, says, right):
    bench, one = made(planes, **changes)
    cell, _ = bench.as_it_is(one, model)
    assert says in cell.says
    assert cell.right in right


def test_a_ridge_learns_from_one_image_and_is_scored_on_the_others(made, model):
    bench, one = made(tiny.PLANES)
    report = one.evaluated(model.path)
    ridge = bench.ridge_cell(one, "nuclei")
    floor, guess = bench.floor_cell(one, "nuclei"), bench.of_report(one, report, "nuclei")
    assert ridge.score > 0.9
    assert floor.score > guess.score
    assert ridge.low <= ridge.score <= ridge.high and ridge.of == "2 images"
    table = bench.as_table([bench.Row("s", "w", "nuclei", 2, "pixels", {"floor": floor, "ridge": ridge})])
    assert f"| {floor.score:.2f} (" in table
    assert "taken, **wrongly**; 0.10" in bench.as_text(bench.Cell(0.1, says="taken", right=False))


def test_totals_of_cells_are_what_counts_in_flow(bench):
    rng = np.random.default_rng(0)
    per_cell = rng.random((4, 5))
    truth = np.kron(per_cell, np.ones((40, 40))).astype(np.float32)
    elsewhere = truth.reshape(4, 40, 5, 40)[:, ::-1, :, ::-1].reshape(160, 200) + rng.normal(
        0, 0.01, (160, 200)
    )
    cell = bench.of_totals([(truth, elsewhere.astype(np.float32))])
    assert cell.score > 0.999 and cell.of == "20 cells" and cell.low <= cell.score


def test_sets_that_are_not_here_are_told_and_left_out(bench, tmp_path, capsys):
    assert bench.make_card(tmp_path, tmp_path / "out", bench.SETS, [str(tiny.write(tmp_path))]) == []
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(bench.SETS) and all(line.startswith("skipped ") for line in said)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_card(bench, tmp_path):
    """Trains and adapts for real, a few steps."""
    write_set(tmp_path / "data" / "set", tiny.PLANES)
    sets = [lab_set(bench, "set"), lab_set(bench, "nowhere")]
    out = tmp_path / "out"
    (row,) = bench.make_card(tmp_path / "data", out, sets, [str(tiny.write(tmp_path))], steps=10)
    assert math.isfinite(row.cells["from scratch"].score) and row.cells["tiny 1 as it is"].right is False
    card = json.loads((out / "cross_lab.json").read_text())
    assert card["rows"][0]["cells"]["ridge"]["score"] == pytest.approx(row.cells["ridge"].score)
    assert (out / "cross_lab.png").stat().st_size > 1000 and "made up" in (out / "cross_lab.md").read_text()
    assert [look.dataset for look in read_looks(out / "looks.jsonl")] == ["made up"]
