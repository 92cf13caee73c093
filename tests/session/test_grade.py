"""A real run on the simulated microscope, graded: what the scorecard says is what the specimen knows."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tifffile

import acq_isl
from acq_isl.scorecard import Scorecard, sentences
from acq_isl.sim import Rectangle, SyntheticSpecimen
from acq_isl.sim.specimen.sensor import Sensor
from acq_isl.sim.view import View

RUN = """
name: graded
microscope:
  kind: simulated
  camera_px: [160, 160]
  specimen: SPECIMEN
  faults: ["stage-backlash:4"]
overview:
  grid_plan: {rows: 1, columns: 3}
  z_plan: {range: 18, step: 1.5}
  channels: [{config: Phase, exposure: 5}]
engine: {kind: ENGINE}
choose: {k: 1, measurement: {kind: mean_intensity, label: nuclei}}
revisit: {channels: [{config: DAPI, exposure: 20}]}
triggers:
  - name: never
    when: {measurement: {kind: area_fraction, label: nuclei, above: 0.2}, above: 0.99}
    do: {kind: image, channels: [PI], exposure_ms: 20}
truth: {nuclei: DAPI}
"""


def graded(folder: Path, specimen: str, engine: str, fault: str = "stage-backlash:4") -> acq_isl.RunResult:
    text = RUN.replace("SPECIMEN", specimen).replace("ENGINE", engine).replace("stage-backlash:4", fault)
    if "recorded" in specimen:
        text = text.replace("[PI]", "[NFH]")  # it has these stains only
    text += f"output: {folder.as_posix()}\n"
    return acq_isl.run(acq_isl.Experiment.from_text(text))


def card(result: acq_isl.RunResult) -> Scorecard:
    assert result.record.scorecard is not None, result.record.warnings
    return result.record.scorecard


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> acq_isl.RunResult:
    return graded(tmp_path_factory.mktemp("runs"), "{kind: synthetic, seed: 2}", "local")


def test_cells_are_those_of_the_specimen(result: acq_isl.RunResult) -> None:
    cells, specimen, seen = card(result).cells, SyntheticSpecimen(2), {}
    for field in result.record.fields:
        area = Rectangle.around(field.info.x_um, field.info.y_um, (48.0, 48.0))
        seen[field.chosen] = seen.get(field.chosen, 0) + sum(
            cell.markers["nuclei"] >= 0.25 for cell in specimen.cells(area)
        )
    assert cells is not None
    # The stage lags behind by up to 4 um, so a cell at the rim may be in or out.
    assert cells.wanted == pytest.approx(sum(seen.values()), abs=4)
    assert cells.imaged == pytest.approx(seen[True], abs=3)
    assert (cells.fields, cells.of_fields) == (1, 3)


def test_light_is_what_was_exposed(result: acq_isl.RunResult) -> None:
    light = card(result).light
    assert light.overview_ms == pytest.approx({"Phase": 3 * 13 * 5})
    assert light.fluorescence_ms == pytest.approx({"DAPI": 20})
    assert light.all_fields_ms == pytest.approx(60) and light.duration_s > 0.1


def test_labels_and_choice_are_held_against_the_truth(result: acq_isl.RunResult) -> None:
    scores = {one.label: one for one in card(result).labels}
    assert scores["dendrites"].pearson > 0.5 and scores["nuclei"].fields == 3
    choice = card(result).choice
    assert choice is not None and choice.chosen == 1 and choice.right == 1 - len(choice.wrong)
    (trigger,) = card(result).triggers
    assert (trigger.name, trigger.right, trigger.false_alarms, trigger.missed) == ("never", 3, (), ())
    wait = card(result).action_s
    assert card(result).decision_s.median > 0 and 0 < wait.median <= card(result).light.duration_s


def test_backlash_shows_as_a_miss(result: acq_isl.RunResult) -> None:
    # The overview went to the right, and back to the field in the middle the stage goes to the left.
    assert result.chosen == ("p00_001",)
    assert card(result).aside_um.median == pytest.approx(4.0, abs=0.1)


def test_the_report_shows_the_same(result: acq_isl.RunResult) -> None:
    html = result.report.read_text(encoding="utf-8")
    assert "Scorecard: held against the truth" in html
    assert dict(sentences(card(result)))["speed"] in html


def test_without_an_engine_light_and_time_are_still_graded(tmp_path: Path) -> None:
    bare = card(graded(tmp_path, "{kind: synthetic, seed: 1}", "none"))
    assert bare.labels == () and bare.choice is None and bare.cells is None
    assert bare.light.overview_ms == pytest.approx({"Phase": 3 * 13 * 5})
    assert math.isnan(bare.decision_s.median)


def test_of_a_recording_the_labels_are_graded_and_the_rest_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    folder = tmp_path / "recorded"
    folder.mkdir()
    metadata = {"axes": "ZYX", "PhysicalSizeX": 0.3, "PhysicalSizeXUnit": "µm", "PhysicalSizeZ": 1.5}
    # Neurons, since the model refuses what it does not know; the stains have nothing to do with them.
    views = [View(160.0, 0.0, 1.5 * (z - 6), "Phase", 0.3, (320, 320)) for z in range(13)]
    specimen = SyntheticSpecimen(5, sensor=Sensor(5))
    light = np.stack([specimen.render(view) for view in views])
    noisy = light + rng.normal(0, 0.012, light.shape)
    stack = np.clip(noisy * 40000 + 100, 0, 65535).astype(np.uint16)
    tifffile.imwrite(folder / "phase_contrast.ome.tif", stack, metadata=metadata)
    for name in ("dapi", "map2", "nfh"):
        stain = rng.integers(0, 3000, (320, 320)).astype(np.uint16)
        tifffile.imwrite(folder / f"{name}.ome.tif", stain, metadata={"axes": "YX", "PhysicalSizeX": 0.3})
    graded_run = card(graded(tmp_path, f"{{kind: recorded, folder: {folder.as_posix()}}}", "local"))
    assert {one.label for one in graded_run.labels} == {"nuclei", "dendrites", "axons"}
    assert all(abs(one.pearson) < 0.3 for one in graded_run.labels)
    assert graded_run.choice is None and graded_run.cells is None and graded_run.triggers == ()
    assert any("does not say which cells" in note for note in graded_run.ungraded)


def test_a_run_in_the_dark_says_so(tmp_path: Path) -> None:
    dark = card(graded(tmp_path, "{kind: synthetic, seed: 1}", "none", "stuck-shutter:closed"))
    assert dict(sentences(dark)) == {
        "light": "0.00 s of transmitted light and 0.00 s of fluorescence light.",
        "not graded": "Everything else: no light reached the specimen in the overview.",
    }
