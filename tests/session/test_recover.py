"""A run that was killed is finished from what it measured, which is never touched."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import acq_isl
from acq_isl.errors import ExperimentError, ModelError, StackRefused, StorageError
from acq_isl.events import Event, FieldImaged
from acq_isl.experiment.planning import Cycle
from acq_isl.hooks.measured_data import INDEX, GuardedStorage
from acq_isl.readers.ndtiff_headers import all_images
from acq_isl.session.evidence import STORE
from acq_isl.session.predict_spool import LocalModels
from acq_isl.session.recover import recover
from acq_isl.session.saved_plan import SavedPlan
from acq_isl.stack import Prediction, StackKey, StackRequest, ZStack
from acq_isl.storage.decision_log import Ledger, read, verify
from acq_isl.storage.prediction_store import PredictionStore, find, load, stored
from acq_isl.stream.model_registry import ModelRegistry, ServedModel
from acq_isl.stream.spool import Spool, SpooledStack
from doubles import serving as fake

PLANES = 3
EXPERIMENT = """
name: killed
overview:
  stage_positions: [{x: 0, y: 0, z: 0}]
  z_plan: {range: 2, step: 1}
  channels: [{config: Phase, exposure: 10}]
choose: {k: 1, measurement: {kind: mean_intensity, label: nuclei}}
"""


def request(position: str, channel: str = "Phase") -> StackRequest:
    return StackRequest(
        StackKey(0, position, channel), 1.0, 2.0, (-1.0, 0.0, 1.0), "Channel", channel, 10.0,
        "phase contrast", "dark",
    )  # fmt: skip


PLAN = tuple(request(position) for position in ("A1", "A2", "A3", "A4"))


def plane(number: int) -> np.ndarray[Any, Any]:
    return np.full((32, 40), 100 + number, np.uint16)


class Run:
    """A run folder as a killed process leaves it: two stacks whole, one cut off, one not begun."""

    def __init__(self, folder: Path, blank: bool = False) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "experiment.yaml").write_text(EXPERIMENT)
        SavedPlan(started="2026-11-28T12:00:00+01:00", scope="a fake", cycles=(Cycle(0, 0.0, PLAN),)).write(
            folder
        )
        with Ledger(folder / "decisions.jsonl") as ledger:
            ledger.dose("A1", "Phase", 10.0, 3)
        self._measure(blank)

    def _measure(self, blank: bool) -> None:
        from ndstorage.ndtiff_dataset import NDTiffDataset

        dataset = NDTiffDataset(str(self.folder), name="measured", writable=True)
        dataset.initialize({})
        storage = GuardedStorage(dataset, lambda error: pytest.fail(str(error)))
        slices = [(one, z) for one in PLAN[:2] for z in range(PLANES)] + [(PLAN[2], 0)]
        for number, (one, z) in enumerate(slices):
            key = one.key
            axes = {"time": key.time, "position": key.position, "channel": key.channel, "z": z}
            about = {"Axes": axes, "PixelSize_um": 0.3, "Exposure": 10.0}
            storage.put_image(axes, plane(number) * (not (blank and number == 1)), about)
        storage.finish()
        dataset.close()

    @property
    def measured(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((self.folder / "measured_1").iterdir())}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def models(engine: fake.MeanEngine) -> LocalModels:
    return LocalModels(ModelRegistry([ServedModel(engine, "mean", engine.sha256)]))


def leave(folder: Path) -> None:
    """The index as it was written."""


def remove(folder: Path) -> None:
    (folder / INDEX).unlink()


def empty(folder: Path) -> None:
    (folder / INDEX).write_bytes(b"")


def cut(folder: Path) -> None:
    whole = (folder / INDEX).read_bytes()
    (folder / INDEX).write_bytes(whole[: len(whole) // 2])


def spoil(folder: Path) -> None:
    (folder / INDEX).write_bytes(bytes(range(256)))


@pytest.mark.parametrize("index", [leave, remove, empty, cut, spoil])
def test_what_is_missing_is_predicted_once_and_nothing_measured_is_touched(
    run: Run, index: Callable[[Path], None]
) -> None:
    index(run.folder / "measured_1")
    before, engine, told = run.measured, fake.MeanEngine(sha256="new"), list[str]()
    with PredictionStore(run.folder / STORE) as store:
        store.put(
            engine.predict(ZStack(fake.info(0), np.stack([plane(0)] * 3), (0.0,) * 3))
        )  # A1, before the end
    done = recover(run.folder, models(engine), tell=told.append)
    assert len(told) == 1
    assert (done.predicted, done.refused, done.left, done.not_imaged) == (1, 0, 0, 2)
    (name,) = find(run.folder / STORE, PLAN[1].key)
    found = load(run.folder / STORE, name)
    assert np.all(found.mean == 104.0) and found.info.z_um == (-1.0, 0.0, 1.0)
    assert (found.info.pixel_size_um, found.info.x_um, found.info.modality) == (0.3, 1.0, "phase contrast")
    assert run.measured == before
    report = done.report.read_text(encoding="utf-8") if done.report else ""
    assert "A3 t0 Phase was cut off: 1 of 3 slices" in report and "--resume" in report
    assert re.search(r"7\D{0,40}captured", report), "all that is on disk is counted"
    assert verify(run.folder / "recovery.jsonl").closed
    files = {path: path.stat().st_mtime_ns for path in run.folder.iterdir() if path.is_file()}
    engine.asked.clear()
    again = recover(run.folder, models(engine))
    assert (again.predicted, again.report, engine.asked) == (0, None, [])
    assert {path: path.stat().st_mtime_ns for path in run.folder.iterdir() if path.is_file()} == files


def test_fields_are_ranked_when_that_is_asked_for(run: Run) -> None:
    recover(run.folder, models(fake.MeanEngine()))
    told: list[str] = []
    done = recover(run.folder, models(fake.MeanEngine()), choose=True, tell=told.append)
    assert (done.predicted, done.chosen) == (0, 1)
    assert "2 of 4 fields were not ranked" in told[0] and "--resume" in told[0]
    chosen = [line["key"]["position"] for line in read(run.folder / "recovery.jsonl") if line.get("chosen")]
    assert chosen == ["A2"] and done.report is not None
    assert (run.folder / "report_before_recovery.html").exists()
    assert recover(run.folder, models(fake.MeanEngine()), choose=True).report is None


@pytest.mark.parametrize("left", [None, b"", b"{"], ids=["gone", "empty", "cut"])
def test_a_stored_prediction_that_power_loss_spoilt_is_predicted_again(run: Run, left: bytes | None) -> None:
    recover(run.folder, models(fake.MeanEngine()))
    name = find(run.folder / STORE, PLAN[0].key)[-1]
    about = run.folder / STORE / name / "zarr.json"
    about.unlink() if left is None else about.write_bytes(left)
    assert recover(run.folder, models(fake.MeanEngine())).predicted == 1
    again = find(run.folder / STORE, PLAN[0].key)[-1]
    assert load(run.folder / STORE, again).info.key == PLAN[0].key
    assert recover(run.folder, models(fake.MeanEngine())).predicted == 0


def test_a_run_whose_engine_died_is_chosen_from_once_its_spool_is_predicted(run: Run) -> None:
    """It ended with a report and a choice in which no field could be ranked."""
    (run.folder / "report.html").write_text("no field was predicted")
    with Ledger(run.folder / "decisions.jsonl") as ledger:
        for one in PLAN[:2]:
            key = {"time": 0, "position": one.key.position, "channel": "Phase"}
            ledger.write("choice", key=key, rank=None, chosen=False, measured=None, reason="not predicted")
    for number, one in enumerate(PLAN[:2]):
        info = replace(fake.info(0), key=one.key, z_um=one.z_um, x_um=one.x_um, y_um=one.y_um)
        pixels = np.stack([plane(3 * number + z) for z in range(PLANES)])
        whole = SpooledStack(number, info, (0, 1, 2), (0.0, 0.0, 0.0), pixels, "no engine", ())
        Spool(run.folder / "spool").write(whole)
    done = recover(run.folder, models(fake.MeanEngine(sha256="new")), choose=True)
    assert (done.predicted, done.chosen) == (2, 1) and done.report is not None
    assert "no field was predicted" not in done.report.read_text(encoding="utf-8")
    chosen = [line["key"]["position"] for line in read(run.folder / "recovery.jsonl") if line.get("chosen")]
    assert chosen == ["A2"]
    again = recover(run.folder, models(fake.MeanEngine(sha256="new")), choose=True)
    assert (again.predicted, again.chosen, again.report) == (0, 0, None)


class Refuses(fake.MeanEngine):  # type: ignore[misc]
    def predict(self, stack: ZStack) -> Prediction:
        self.asked.append(stack.info.key.time)
        raise StackRefused("not my kind", fix="another kind")


def test_what_is_refused_is_not_asked_again(run: Run) -> None:
    engine = Refuses()
    assert recover(run.folder, models(engine)).refused == 2
    again = recover(run.folder, models(engine))
    assert (again.refused, again.left, again.report) == (0, 0, None) and len(engine.asked) == 2
    assert recover(run.folder, models(fake.MeanEngine(sha256="other"))).predicted == 2


def test_a_slice_that_never_reached_the_disk_is_no_image(tmp_path: Path) -> None:
    run, told = Run(tmp_path / "run", blank=True), list[str]()
    done = recover(run.folder, models(fake.MeanEngine()), tell=told.append)
    assert (done.predicted, done.left) == (1, 1)
    assert "without z 1" in told[0]


def test_a_run_that_goes_on_is_left_alone(run: Run) -> None:
    (run.folder / "live.json").write_text("{}")
    with PredictionStore(run.folder / STORE), pytest.raises(StorageError, match="another process"):
        recover(run.folder, models(fake.MeanEngine()))
    assert (run.folder / "live.json").exists()


def test_another_model_than_the_runs_is_an_error(run: Run) -> None:
    (run.folder / "experiment.yaml").write_text(EXPERIMENT + "models: [one=a.onnx, two=b.onnx]\n")
    with pytest.raises(ModelError, match="one"):
        recover(run.folder, models(fake.MeanEngine()))


SIMULATED = """
name: killed
microscope: {kind: simulated, specimen: {kind: synthetic, seed: 1}, camera_px: [64, 64]}
overview:
  grid_plan: {rows: 1, columns: 3}
  z_plan: {range: 2, step: 1}
  channels: [{config: Phase, exposure: 5}]
engine: {kind: none}
"""


def cut_off(folder: Path) -> Path:
    """A run that ended hard after its second field."""
    imaged = []

    def watch(event: Event) -> None:
        imaged.extend([event] * isinstance(event, FieldImaged))
        if len(imaged) == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        acq_isl.run(acq_isl.Experiment.from_text(SIMULATED + f"output: {folder.as_posix()}\n"), watch=watch)
    (run,) = folder.iterdir()
    return run


def test_a_run_is_gone_on_with_in_its_own_folder(tmp_path: Path) -> None:
    folder = cut_off(tmp_path / "runs")
    (folder / "decisions.jsonl").write_bytes((folder / "decisions.jsonl").read_bytes()[:-7])  # no power
    before = {path: path.read_bytes() for path in (folder / "measured_1").iterdir()}
    experiment = acq_isl.Experiment.from_yaml(folder / "experiment.yaml")
    events: list[Event] = []
    result = acq_isl.run(experiment, resume=folder, watch=events.append)
    assert result.folder == folder
    imaged = [event.request.key.position for event in events if isinstance(event, FieldImaged)]
    assert imaged[-1] == "p00_002" and set(imaged[:-1]) == {"p00_000", "p00_001"}
    assert [image.axes["position"] for image in all_images(folder / "measured_2")] == ["p00_002"] * 3
    assert {path: path.read_bytes() for path in before} == before
    assert len(result.record.fields) == 3 and all(
        one.thumbnail.shape == (64, 64) for one in result.record.fields
    )
    assert result.record.counts.captured == 9 and result.record.counts.open == 0
    assert any("2 of 3 fields had been imaged" in words for words in result.record.warnings)
    assert verify(folder / "decisions.jsonl").closed and (folder / "decisions_damaged_1.jsonl").exists()
    booked = {line["position"] for line in read(folder / "decisions.jsonl") if line["kind"] == "dose"}
    assert booked == {"p00_000", "p00_001", "p00_002"}, "light that was spent before is not forgotten"
    assert "measured_2" in result.report.read_text(encoding="utf-8")
    card = result.record.scorecard  # of what this process imaged
    assert card is not None and sum(card.light.overview_ms.values()) == 3 * 5
    assert any("before the run was cut off" in note for note in card.ungraded)


def test_another_experiment_is_not_gone_on_with(tmp_path: Path) -> None:
    folder = cut_off(tmp_path / "runs")
    other = acq_isl.Experiment.from_text(SIMULATED.replace("columns: 3", "columns: 4"))
    with pytest.raises(ExperimentError, match="not the one of the run"):
        acq_isl.run(other, resume=folder)
    with pytest.raises(StorageError, match="set out to do"):
        acq_isl.run(other, resume=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_program_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    text = SIMULATED.replace("columns: 3", "columns: 8").replace("{kind: none}", "{kind: local, threads: 1}")
    text = text.replace("range: 2, step: 1", "range: 18, step: 1.5").replace("[64, 64]", "[192, 192]")
    text += "optics: {modality: phase contrast, polarity: dark}\n"
    path.write_text(text + "choose: {k: 1, measurement: {kind: mean_intensity, label: dendrites}}\n")

    def program(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "acq_isl", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "acq_isl", "run", path, "--output", runs]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 500
        while len(list(runs.glob("*/predictions.ome.zarr/*/*/p*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
    (folder,) = runs.iterdir()
    before = {
        tuple(sorted(image.axes.items())): image.read().tobytes()
        for image in all_images(folder / "measured_1")
    }
    for index in (folder / "measured_1").glob(INDEX):
        index.write_bytes(index.read_bytes()[:50])  # as if the power had failed
    done = program("recover", folder, "--choose")
    assert done.returncode == 0 and "1 field chosen" in done.stdout and "--resume" in done.stdout, done
    assert "nothing to recover" in program("recover", folder, "--choose").stdout
    done = program("run", path, "--resume", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(stored(folder / STORE)) == 8
    after = {
        tuple(sorted(image.axes.items())): image.read().tobytes()
        for image in all_images(folder / "measured_1")
    }
    assert after == before
    assert "gone on with" in (folder / "report.html").read_text(encoding="utf-8")
