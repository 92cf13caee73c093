"""``acq-isl calibrate``, from the microscope to the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from acq_isl.cli.app import cli
from acq_isl.engines.model_file import read_model
from acq_isl.errors import ExperimentError

pytest.importorskip("torch", reason="pip install acq-isl[train] to calibrate")
from acq_isl.training import cross_fit

TEXT = """
name: small
microscope: {kind: simulated, camera_px: [224, 224]}
optics: {modality: phase contrast, polarity: dark}
overview:
  grid_plan: {rows: 1, columns: 2}
  z_plan: {range: 18, step: 1.5}
  channels: [{config: Phase, exposure: 10}]
revisit: {channels: [{config: DAPI, exposure: 50}, {config: MAP2, exposure: 50}]}
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_is_calibrated_from_the_microscope_to_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_fit, "_LEAST_STEPS", 4)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(TEXT, encoding="utf-8")
    words = ["calibrate", "small.yaml", "--truth", "nuclei=DAPI", "--truth", "dendrites=MAP2"]
    words += ["--fields", "4", "--minutes", "0.1"]
    refused = CliRunner().invoke(cli, words, input="n\n")
    assert refused.exit_code == 1 and not (tmp_path / "small-calibrated").exists()
    assert "4 fields, each exposed 13 x 10 ms Phase, 1 x 50 ms DAPI, 1 x 50 ms MAP2" in refused.output
    done = CliRunner().invoke(cli, [*words, "--yes"], catch_exceptions=False)
    folder = tmp_path / "small-calibrated"
    assert done.exit_code == 0 and "use it for" not in done.output
    manifest = read_model(folder / "model.onnx").info.manifest
    assert manifest.label_names == ("nuclei", "dendrites") and "Kept: " in manifest.description
    assert {found.label for found in manifest.evaluations} == {"nuclei", "dendrites"}
    assert (folder / "calibration.html").stat().st_size > 10_000 and (folder / "card.md").exists()
    images = {path: path.stat().st_mtime_ns for path in folder.rglob("*.tif")}
    again = CliRunner().invoke(cli, [*words, "--yes"], catch_exceptions=False)
    assert again.exit_code == 0 and images == {p: p.stat().st_mtime_ns for p in folder.rglob("*.tif")}


@pytest.mark.parametrize("truth", [[], ["--truth", "nuclei"], ["--truth", "=DAPI"]])
def test_a_stain_must_be_named(tmp_path: Path, truth: list[str]) -> None:
    (tmp_path / "small.yaml").write_text(TEXT, encoding="utf-8")
    with pytest.raises(ExperimentError, match=r"which label|names no label"):
        CliRunner().invoke(cli, ["calibrate", str(tmp_path / "small.yaml"), *truth], catch_exceptions=False)
