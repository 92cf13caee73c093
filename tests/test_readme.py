"""The README's promises, executed."""

from __future__ import annotations

import re
from pathlib import Path

import pycromanager
import pytest

import acq_isl
from acq_isl.experiment.experiment import Experiment
from acq_isl.sim import ScopeSettings, SimulatedScope, SyntheticSpecimen
from acq_isl.stack import Prediction
from acq_isl.stream.process import EngineProcess
from acq_isl.training.config import load_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOTEBOOK, TWO_LINES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_it_opens_with_a_picture_a_sentence_and_two_commands() -> None:
    picture, sentence, *_ = (block for block in README.split("\n\n") if block.strip())
    (path,) = re.findall(r"^!\[.+\]\((.+)\)$", picture.replace("\n", " "))
    assert (ROOT / path).is_file()
    assert sentence.startswith("**") and sentence.endswith("**")
    commands = re.findall(r"```\n(.*?)\n```", README, re.DOTALL)
    assert commands[0] == 'python -m pip install -e ".[sim]" && acq-isl demo'
    assert commands[1] == 'python -m pip install -e ".[test]" && pytest'


def test_every_file_it_names_is_there() -> None:
    for path in re.findall(r"\]\(((?:docs|examples)/[^)]+)\)", README):
        assert (ROOT / path).exists(), path


def test_the_notebook_runs_in_ten_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(NOTEBOOK.strip().splitlines()) <= 10
    (tmp_path / "examples").mkdir()
    text = (ROOT / "examples" / "my_scope.yaml").read_text(encoding="utf-8")
    (tmp_path / "examples" / "my_scope.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(NOTEBOOK, names)
    result = names["result"]
    assert isinstance(result, acq_isl.RunResult)
    assert len(result.chosen) == 2 and result.report.is_file()
    assert str(result.report) in capsys.readouterr().out


def test_two_lines_predict_inside_somebodys_own_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    events = pycromanager.multi_d_acquisition_events(z_start=-9, z_end=9, z_step=1.5)
    scope = SimulatedScope(SyntheticSpecimen(seed=3), settings=ScopeSettings(shape=(160, 160)))
    with scope, EngineProcess("demo", threads=1) as engine:
        names = {
            "acq_isl": acq_isl,
            "Acquisition": pycromanager.Acquisition,
            "directory": str(tmp_path),
            "name": "mine",
            "events": events,
        }
        exec(TWO_LINES.replace("tcp://127.0.0.1:5599", engine.endpoint), names)
    (prediction,) = names["predictions"]  # type: ignore[misc]
    assert isinstance(prediction, Prediction)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_understood(path: Path) -> None:
    read = load_config if path.name.startswith("train") else Experiment.from_yaml
    assert read(path).name
