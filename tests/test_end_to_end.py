"""The whole way: microscope, capture, wire, engine, prediction, chosen field, report. Real parts only."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import acq_isl
from acq_isl.cli import app as cli
from acq_isl.cli import serve
from acq_isl.commands import Stop
from acq_isl.errors import ExperimentError
from acq_isl.events import Event, RunStatus
from acq_isl.hooks import open_measured, read_slices
from acq_isl.readers.ndtiff_headers import all_images
from acq_isl.session.predict_spool import LocalModels
from acq_isl.session.verify import verify_run
from acq_isl.stack import Prediction, Unpredicted
from acq_isl.storage.decision_log import verify
from acq_isl.storage.prediction_store import load, stored
from acq_isl.stream.model_registry import ModelRegistry
from acq_isl.view.feed.address import read_address
from acq_isl.view.feed.reader import FeedReader

SMALL = """
name: small
microscope: {kind: simulated, specimen: {kind: synthetic, seed: 1}, camera_px: [192, 192]}
optics: {modality: phase contrast, polarity: dark}
overview:
  grid_plan: {rows: 1, columns: 3}
  z_plan: {range: 18, step: 1.5}
  channels: [{config: Phase, exposure: 5}]
engine: {kind: local, threads: 1}
choose: {k: 1, measurement: {kind: mean_intensity, label: dendrites}}
revisit: {channels: [{config: DAPI, exposure: 20}, {config: MAP2, exposure: 20}]}
triggers:
  - name: any cell
    when: {measurement: {kind: mean_intensity, label: nuclei}, above: -1}
    do: {kind: image, channels: [NFH], exposure_ms: 20}
truth: {nuclei: DAPI, dendrites: MAP2, axons: NFH}
limits: {exposure_ms: 100}
"""


class Watcher:
    """A view that notes what happens."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()

    def setup(self) -> None:
        self.kinds["setup"] += 1

    def handle(self, event: Event) -> None:
        self.kinds[event.kind] += 1

    def close(self) -> None:
        self.kinds["close"] += 1


@pytest.fixture(scope="module")
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, watcher: Watcher) -> acq_isl.RunResult:
    folder = tmp_path_factory.mktemp("runs")
    experiment = acq_isl.Experiment.from_text(SMALL + f"output: {folder.as_posix()}\n")
    return acq_isl.run(experiment, views=[watcher])


def test_a_view_sees_the_whole_run(result: acq_isl.RunResult, watcher: Watcher) -> None:
    # 3 overview stacks, one field in two channels, one triggered channel.
    once = ("setup", "run_started", "fields_ranked", "run_ended", "close")
    assert [watcher.kinds[kind] for kind in once] == [1] * 5
    assert (watcher.kinds["field_imaged"], watcher.kinds["predicted"], watcher.kinds["seen"]) == (6, 3, 6)


def test_every_slice_is_accounted_for(result: acq_isl.RunResult) -> None:
    counts = result.record.counts
    # 3 stacks of 13, one field in two channels, one triggered channel.
    assert (counts.requested, counts.captured, counts.predicted) == (42, 42, 39)
    assert (counts.refused, counts.spooled, counts.not_for_prediction, counts.lost) == (0, 0, 3, 0)


def test_one_field_is_chosen_and_compared(result: acq_isl.RunResult) -> None:
    assert len(result.chosen) == 1
    compared = {(one.info.key.position, one.label) for one in result.record.comparisons}
    assert {(result.chosen[0], "nuclei"), (result.chosen[0], "dendrites")} <= compared
    best = max(result.record.fields, key=lambda field: field.measured.value if field.measured else -1)
    assert best.chosen and best.rank == 1


def test_the_prediction_shows_what_the_stain_shows(result: acq_isl.RunResult) -> None:
    scores = [one.pearson for one in result.record.comparisons if one.label in ("nuclei", "dendrites")]
    assert min(scores) > 0.3


def test_latencies_are_measured(result: acq_isl.RunResult) -> None:
    stages = {latency.stage: latency for latency in result.record.latencies}
    assert list(stages) == ["expose", "transfer", "wait", "infer", "decode", "turn", "decide"]
    # 13 slices of 5 ms cannot take less than 60 ms from the first to the last.
    assert stages["expose"].p50_ms >= 60
    assert stages["infer"].p50_ms > 0


def test_the_run_folder_is_complete(result: acq_isl.RunResult) -> None:
    assert (result.folder / "experiment.yaml").is_file()
    again = acq_isl.Experiment.from_yaml(result.folder / "experiment.yaml")
    assert again.name == "small"
    assert verify(result.folder / "decisions.jsonl").closed
    kinds = [
        json.loads(line)["kind"] for line in (result.folder / "decisions.jsonl").read_text().splitlines()
    ]
    assert kinds.count("choice") == 3 and kinds.count("decision") == 3 and kinds.count("dose") == 6
    names = stored(result.folder / "predictions.ome.zarr")
    assert len(names) == 3
    prediction = load(result.folder / "predictions.ome.zarr", names[0])
    assert prediction.display_names[0] == "nuclei (predicted)"
    assert len(prediction.model_sha256) == 64


def test_the_run_verifies_down_to_its_pixels_and_a_pixel_that_was_changed_is_found(
    result: acq_isl.RunResult, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(result.folder, tmp_path / "run"))
    served = serve.load("demo", threads=1)
    models = LocalModels(ModelRegistry([served]))
    findings = verify_run(folder, (), models)
    assert {one.state for one in findings} == {"holds"}
    assert any("3 stacks predicted again as they were stored" in one.text for one in findings)
    (image, *_) = (one for one in all_images(folder / "measured_1") if one.axes["channel"] == "Phase")
    pixels = image.read()
    planted = pixels.copy()
    planted[80:120, 80:120] = planted.mean()
    data = bytearray(image.file.read_bytes())
    place = data.find(pixels.tobytes())
    data[place : place + planted.nbytes] = planted.tobytes()
    image.file.write_bytes(data)
    again = verify_run(folder, (), models)
    served.engine.close()
    (found,) = (one for one in again if one.state == "differs")
    assert found.part == "measured pixels" and str(image.axes["position"]) in found.text


def test_the_measured_data_is_what_pycromanager_wrote(result: acq_isl.RunResult) -> None:
    axes = [{"time": 0, "position": "p00_000", "channel": "Phase", "z": index} for index in range(13)]
    with open_measured(result.folder / "measured_1") as dataset:
        stack = read_slices(dataset, axes)
    assert stack.shape == (13, 192, 192) and stack.dtype == np.uint16
    assert 0.2 < stack.mean() / 65535 < 0.8


def test_the_report_stands_alone(result: acq_isl.RunResult) -> None:
    html = result.report.read_text(encoding="utf-8")
    assert "nuclei (predicted)" in html
    assert not re.search(r"(src|href)=\"?https?:", html)


def run_cli(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["acq-isl", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


BAD = {
    "unknown preset": (("config: DAPI", "config: DAPY"), "DAPI"),
    "outside the limits": (("exposure_ms: 100}", "x_um: [-10, 10]}"), "widen limits.x_um"),
    "beyond the stage": (
        ("grid_plan: {rows: 1, columns: 3}", "stage_positions: [{x: 9999999, y: 0, z: 0}]"),
        "um",
    ),
    "too long an exposure": (("config: MAP2, exposure: 20", "config: MAP2, exposure: 500"), "exposure"),
    "unknown label": (("label: dendrites", "label: dendrits"), "did you mean 'dendrites'"),
    "no recording": (("kind: synthetic, seed: 1", "kind: recorded, folder: /nowhere"), "nowhere"),
    "no model": (("engine:", "model: /nowhere/model.onnx\nengine:"), "nowhere"),
    "overview again": (("config: DAPI", "config: Phase"), "overwrite"),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD.keys())
def test_bad_input_is_a_clear_error_before_anything_is_exposed(
    change: tuple[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "experiment.yaml"
    assert change[0] in SMALL
    path.write_text(SMALL.replace(*change), encoding="utf-8")
    assert run_cli(monkeypatch, "run", path, "--output", tmp_path) == 1
    told = capsys.readouterr().err
    assert message in told.replace("\n", " ")
    assert "Traceback" not in told


def test_a_damaged_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    assert run_cli(monkeypatch, "info", tmp_path / "broken.onnx") == 1
    assert "broken.onnx" in capsys.readouterr().err


def test_an_unreadable_recording_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "phase_contrast.ome.tif").write_bytes(b"II*\0garbage")
    assert run_cli(monkeypatch, "demo", "--specimen", tmp_path, "--output", tmp_path / "out") == 1
    assert "phase_contrast.ome.tif" in capsys.readouterr().err.replace("\n", "")


ENGINELESS = {"none": "none", "not there": "tcp://127.0.0.1:9"}


@pytest.mark.parametrize("engine", ENGINELESS.values(), ids=ENGINELESS.keys())
def test_without_an_engine_everything_is_acquired(engine: str, tmp_path: Path) -> None:
    short = (
        SMALL.replace("columns: 3", "columns: 1")
        + f"output: {tmp_path.as_posix()}\nprediction_timeout_s: 0.5\n"
    )
    kind = "{kind: none}" if engine == "none" else f"{{kind: remote, address: '{engine}'}}"
    experiment = acq_isl.Experiment.from_text(short.replace("{kind: local, threads: 1}", kind))
    result = acq_isl.run(experiment)
    counts = result.record.counts
    assert (counts.captured, counts.predicted, counts.spooled, counts.lost) == (13, 0, 13, 0)
    (field,) = result.record.fields
    assert isinstance(field.outcome, Unpredicted)
    assert "not predicted" in result.report.read_text(encoding="utf-8")


def test_a_plan_that_does_not_fit_is_refused_before_anything_moves(tmp_path: Path) -> None:
    text = SMALL.replace("columns: 3", "columns: 1").replace("phase contrast", "DIC")
    with pytest.raises(ExperimentError, match=r"the stack is DIC, the model was trained on phase contrast"):
        acq_isl.run(acq_isl.Experiment.from_text(text + f"output: {tmp_path.as_posix()}\n"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_in_which_nothing_is_predicted_says_so_first_and_ends_with_code_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dark = SMALL.replace("columns: 3", "columns: 1").replace("seed: 1}", "seed: 1}, faults: [stuck-shutter]")
    (tmp_path / "dark.yaml").write_text(dark, encoding="utf-8")
    assert run_cli(monkeypatch, "run", tmp_path / "dark.yaml", "--output", tmp_path / "runs") == 3
    told = capsys.readouterr().out
    assert told.strip().splitlines()[-1].startswith("report")
    first = next(line for line in told.splitlines() if "predicted" in line and "━" not in line)
    assert first.startswith("No field was predicted. 1 field was imaged without stain.")
    (report,) = tmp_path.glob("runs/*/report.html")
    html = report.read_text(encoding="utf-8")
    assert html.index("Not everything was predicted") < html.index("What became of every slice")
    # Who allows it gets 0.
    (tmp_path / "dark.yaml").write_text(dark + "require: 0\n", encoding="utf-8")
    assert run_cli(monkeypatch, "run", tmp_path / "dark.yaml", "--output", tmp_path / "runs") == 3, (
        "nothing at all"
    )


class Stopper:
    """Watches a run as the page does, and ends it in one of the ways there are."""

    def __init__(self, folder: Path) -> None:
        self._reader = FeedReader(read_address(folder))
        self.states: list[str] = []

    def __enter__(self) -> Stopper:
        self._reader.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.__exit__()

    def stop(self, process: subprocess.Popen[str], how: int | Stop) -> None:
        if isinstance(how, int):
            process.send_signal(how)
        else:
            assert self._reader.send(how, by="test").taken
        while process.poll() is None:
            self._reader.wait(0.1)
            for message in self._reader.take():
                if isinstance(message.event, RunStatus):
                    self.states.append(message.event.state)


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent to one process on Windows")
@pytest.mark.parametrize(
    "how, code, words",
    [
        (signal.SIGINT, 130, "ended early: stopped by Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, "ended early: stopped by SIGTERM", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, "ended early: stopped by SIGHUP", marks=pytest.mark.slow),
        (Stop(), 130, "stopped by the operator after"),
    ],
)
def test_a_run_is_stopped_cleanly_and_keeps_what_was_captured(
    tmp_path: Path, how: int | Stop, code: int, words: str
) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(
        SMALL.replace("columns: 3", "columns: 40").replace("exposure: 5}", "exposure: 10}"), encoding="utf-8"
    )
    command = [sys.executable, "-m", "acq_isl", "run", str(path), "--output", str(tmp_path)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*_small/predictions.ome.zarr/*/*/p00*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    (folder,) = tmp_path.glob("*_small")
    with Stopper(folder) as stopper:
        stopper.stop(process, how)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert "stopping" in stopper.states
    assert str(folder) in told.replace("\n", "") or isinstance(how, Stop)
    assert words in (folder / "report.html").read_text(encoding="utf-8")
    assert verify(folder / "decisions.jsonl").closed and not (folder / "live.json").exists()
    axes = [{"time": 0, "position": "p00_000", "channel": "Phase", "z": index} for index in range(13)]
    with open_measured(folder / "measured_1") as dataset:
        assert read_slices(dataset, axes).shape == (13, 192, 192)


def test_the_real_recorded_field(shared_data: Path, tmp_path: Path) -> None:
    text = SMALL.replace("kind: synthetic, seed: 1", f"kind: recorded, folder: {shared_data}/isl_condition_b")
    text = text.replace("columns: 3", "columns: 1").replace("camera_px: [192, 192]", "camera_px: [512, 512]")
    result = acq_isl.run(acq_isl.Experiment.from_text(text + f"output: {tmp_path.as_posix()}\n"))
    (field,) = result.record.fields
    assert isinstance(field.outcome, Prediction)
    scores = {one.label: one.pearson for one in result.record.comparisons}
    # What log z-variance, smoothed, gives on the whole field is .57/.67/.45; this is a part of it.
    assert scores["nuclei"] > 0.4 and scores["dendrites"] > 0.5 and scores["axons"] > 0.3
