"""Every line of the doctor comes with its fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from acq_isl.cli import app as cli
from acq_isl.engines import LoadOptions, Unavailable, backends
from acq_isl.engines.model_file import read_model
from acq_isl.experiment.experiment import HeadlessMicroManager, RunningMicroManager, SimulatedMicroscope
from acq_isl.session.doctor import Finding, examine


def test_a_good_machine_is_told_so(tmp_path: Path) -> None:
    findings = {one.part: one for one in examine(SimulatedMicroscope(), "demo", tmp_path)}
    parts = {
        "versions",
        "microscope",
        "devices",
        "camera",
        "focus",
        "stage",
        "pixel size",
        "disk",
        "engine",
        "GPU",
    }
    assert parts <= set(findings)
    assert findings["pixel size"].found == "0.3 um"
    assert findings["engine"].state == "ok" and " cpu " in findings["engine"].found
    assert not [one for one in findings.values() if one.state == "missing"]


BAD = {
    "no Micro-Manager": (RunningMicroManager(port=9), "demo", "microscope", "Run server"),
    "no folder": (
        HeadlessMicroManager(folder=Path("/nowhere"), config=Path("/nowhere/a.cfg")),
        "demo",
        "microscope",
        "experiment",
    ),
    "no model": (SimulatedMicroscope(), "/nowhere/model.onnx", "engine", ""),
}


@pytest.mark.parametrize("settings, model, part, fix", BAD.values(), ids=BAD.keys())
def test_what_is_missing_comes_with_its_fix(
    settings: RunningMicroManager | HeadlessMicroManager | SimulatedMicroscope,
    model: str,
    part: str,
    fix: str,
    tmp_path: Path,
) -> None:
    missing = [one for one in examine(settings, model, tmp_path) if one.state == "missing"]
    assert [one.part for one in missing] == [part]
    assert missing[0].fix and fix in missing[0].fix


def test_it_says_why_this_engine_and_not_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Unavailable("tensorrt", "the NVIDIA driver is too old", "update it", broken=True)
    absent = Unavailable("openvino", "not installed", "pip install it")
    reference = tuple(backends.OnnxBackend().candidates(read_model("demo"), LoadOptions(gate="warn")))
    monkeypatch.setattr(backends, "find_engines", lambda *_: backends.Found(reference, (broken, absent)))
    found = {one.part: one for one in examine(SimulatedMicroscope(), "demo", tmp_path)}
    assert "onnxruntime fp32" in found["why this one"].found
    assert "tensorrt is not used: the NVIDIA driver is too old" in found["why this one"].found
    assert found["tensorrt"] == Finding(
        "tensorrt", "warning", "not used: the NVIDIA driver is too old", "update it"
    )
    assert found["openvino"] == Finding("openvino", "ok", "not used: not installed", "pip install it")


def test_the_command_fails_when_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["acq-isl", "doctor", "--model", "/nowhere/x.onnx", "--output", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert "missing" in capsys.readouterr().out
