"""A run that is over, as a viewer gets it from its folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from acq_isl import events
from acq_isl.commands import Pause
from acq_isl.errors import ExperimentError
from acq_isl.experiment.planning import Cycle
from acq_isl.hooks.measured_data import GuardedStorage
from acq_isl.session.finished import finished_events, newest_run
from acq_isl.session.saved_plan import SavedPlan
from acq_isl.stack import Prediction, StackInfo, StackKey, StackRequest
from acq_isl.storage.decision_log import Ledger
from acq_isl.storage.measurement_table import FILE, MeasurementTable, TableRow
from acq_isl.storage.prediction_store import PredictionStore
from acq_isl.view.feed.source import FinishedRun

TITLE = "mean intensity of nuclei (predicted)"
EXPERIMENT = """
name: over
overview:
  stage_positions: [{x: 1, y: 2, z: 0}]
  z_plan: {range: 2, step: 1}
  time_plan: {interval: 60, loops: 3}
  channels: [{config: Phase, exposure: 10}]
choose: {k: 1, measurement: {kind: mean_intensity, label: nuclei}}
"""
PLAN = tuple(
    StackRequest(StackKey(time, "p1", "Phase"), 1.0, 2.0, (-1.0, 0.0, 1.0), "Channel", "Phase", 10.0)
    for time in range(3)
)


def measure(folder: Path) -> None:
    from ndstorage.ndtiff_dataset import NDTiffDataset

    dataset = NDTiffDataset(str(folder), name="measured", writable=True)
    dataset.initialize({})
    storage = GuardedStorage(dataset, lambda error: pytest.fail(str(error)))
    for one in PLAN:
        for z in range(3):
            key = one.key
            axes = {"time": key.time, "position": key.position, "channel": key.channel, "z": z}
            pixels = np.full((24, 32), 100 + key.time, np.uint16)
            storage.put_image(axes, pixels, {"Axes": axes, "PixelSize_um": 0.5, "Exposure": 10.0})
    storage.finish()
    dataset.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three time points: two predicted, the last refused."""
    folder = tmp_path_factory.mktemp("runs") / "over"
    folder.mkdir()
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    cycles = tuple(Cycle(one.key.time, 60.0 * one.key.time, (one,)) for one in PLAN)
    SavedPlan(started="2026-11-28T12:00:00+01:00", scope="a fake", cycles=cycles).write(folder)
    measure(folder)
    mean = np.full((1, 24, 32), 0.5, np.float32)
    rows = []
    with PredictionStore(folder / "predictions.ome.zarr", {"nuclei": "#56b4e9"}) as store:
        for one in PLAN:
            row = TableRow("predicted", one.key.time, "p1", "", "Phase", elapsed_s=61.0 * one.key.time)
            rows.append(TableRow("time point", one.key.time, elapsed_s=70.0 * one.key.time))
            if one.key.time < 2:
                info = StackInfo(one.key, one.z_um, (24, 32), 0.5, 1.0, 2.0)
                store.put(Prediction(info, ("nuclei",), mean, mean * 0, "0" * 64, "m", "e"))
                rows.append(TableRow(*_cells(row), TITLE, 0.5, 0.1, "relative intensity"))
            else:
                rows.append(TableRow("refused", *_cells(row)[1:], TITLE, note="too dark"))
    with MeasurementTable(folder / FILE) as table:
        table.add(rows)
    with Ledger(folder / "decisions.jsonl") as ledger:
        ledger.write("choice", key=PLAN[1].key, rank=1, chosen=True, measured=None, reason="the only one")
        ledger.write("decision", key=PLAN[0].key, rule="r", what="image", why="bright", done="done")
    return folder


def _cells(row: TableRow) -> tuple[object, ...]:
    return astuple(row)[:9]


def test_everything_a_viewer_shows_comes_from_the_folder(folder: Path) -> None:
    told = list(finished_events(folder))
    kinds = Counter(one.kind for one in told)
    assert (kinds["seen"], kinds["predicted"], kinds["decided"], kinds["not_predicted"]) == (3, 2, 1, 1)
    started, status = told[0], told[1]
    assert isinstance(started, events.RunStarted) and isinstance(status, events.RunStatus)
    assert started.labels[0].name == "nuclei" and started.fov_um == (16.0, 12.0)
    assert len(started.fields) == 3 and started.choice
    assert status.state == "ended" and status.time_point == events.TimePointBegan(3, 3, 0.0, 0.0)
    assert status.late_time_points == 2
    counts = status.progress.counts
    assert (counts.captured, counts.predicted, counts.refused, counts.open) == (9, 6, 3, 0)
    (curve,) = (one for one in told if isinstance(one, events.CurveChanged))
    assert [point.why for point in curve.points] == ["", "", "refused: too dark"]
    predicted = [one for one in told if isinstance(one, events.Predicted)]
    assert [one.key.time for one in predicted] == [1, 0], "newest first"
    assert predicted[0].measured[0].value == 0.5
    (ranked,) = (one for one in told if isinstance(one, events.FieldsRanked))
    assert ranked.fields[0].chosen


def test_a_viewer_takes_it_as_from_a_run_that_goes_on(folder: Path) -> None:
    kinds: Counter[str] = Counter()
    newest: dict[str, int] = {}
    with FinishedRun(finished_events(folder)) as source:
        while kinds["seen"] < 3:
            assert source.wait(10.0)
            for message in source.take():
                kinds[message.event.kind] += 1
                if isinstance(message.event, events.Seen):
                    newest[str(message.event.key.time)] = message.seq
        assert not source.send(Pause()).taken
    assert kinds["run_status"] == 1 and max(newest, key=lambda time: newest[time]) == "2"


def test_what_cannot_be_read_is_told_and_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Iterator[events.Event]:
        yield events.Decided(None, "r", "w", "y", "done", 1.0)
        raise ExperimentError("this folder is damaged")

    with FinishedRun(broken()) as source:
        assert source.wait(10.0)
        source._thread.join()
    assert len(source.take()) == 1 and "damaged" in caplog.text


def test_the_newest_run_of_a_folder_is_found(folder: Path, tmp_path: Path) -> None:
    assert newest_run(folder) == newest_run(folder.parent) == folder
    with pytest.raises(ExperimentError, match="no run"):
        newest_run(tmp_path)


def test_a_run_that_was_cut_off_says_how_to_finish_it(folder: Path) -> None:
    log = folder / "decisions.jsonl"
    whole = log.read_bytes()
    try:
        log.write_bytes(b"".join(whole.splitlines(keepends=True)[:-1]))
        status = next(one for one in finished_events(folder) if isinstance(one, events.RunStatus))
    finally:
        log.write_bytes(whole)
    assert status.state == "failed" and "acq-isl recover" in status.why
