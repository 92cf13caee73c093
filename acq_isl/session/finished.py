"""A run that is over becomes the events that a viewer would have got of it, from its folder alone."""

from __future__ import annotations

import datetime
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from acq_isl import events
from acq_isl.errors import AcqIslError, ExperimentError
from acq_isl.experiment.experiment import Experiment, measurements
from acq_isl.experiment.planning import interval_kept
from acq_isl.record import Counts
from acq_isl.rules.label_names import Labels, LabelStyle
from acq_isl.rules.measurements import Measured
from acq_isl.session.evidence import STORE
from acq_isl.session.measured import MeasuredRun
from acq_isl.session.rerun import AsRun
from acq_isl.session.saved_plan import SavedPlan
from acq_isl.session.so_far import choices_of, duration_s, read_decisions
from acq_isl.session.summary import describe_bounds, describe_choice
from acq_isl.session.time_lapse import book_of, key_of
from acq_isl.stack import Prediction, Slice, StackKey, StackRequest
from acq_isl.storage.measurement_table import FILE as TABLE
from acq_isl.storage.measurement_table import TableRow, read_table
from acq_isl.storage.prediction_store import load, load_info, stored
from acq_isl.view.feed.previews import preview_of

_MOST_STACKS = 160
"""Whose pictures are read, the newest: a viewer keeps no more."""
_KEY = TypeAdapter(StackKey)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run which kept its plan."""
    return (folder / "plan.json").is_file() and (folder / "experiment.yaml").is_file()


def newest_run(output: Path) -> Path:
    """The run in a folder, or itself; ExperimentError without any."""
    found = [output] if is_run(output) else [path for path in output.glob("*") if is_run(path)]
    if not found:
        raise ExperimentError(
            f"there is no run in {output}",
            wanted="the folder of a run, with plan.json and experiment.yaml in it, or of several runs",
            fix="give the folder that 'acq-isl run' printed as its results",
        )
    return max(found, key=lambda path: (path / "plan.json").stat().st_mtime)


def finished_events(folder: Path) -> Iterator[events.Event]:
    """Events of the run in a folder: words and numbers first, then pictures, newest first.

    StorageError or ExperimentError, with the first, if it cannot be read.
    """
    run = _FinishedFolder(folder)
    yield run.started()
    yield run.status()
    yield from run.notes()
    yield from run.pictures()


class _FinishedFolder:
    """What is on disk of a run; only ever read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._plan = SavedPlan.read(folder)
        self._lines, self._problems = read_decisions(folder)
        self._rows = read_table(folder / TABLE)
        self._measured = MeasuredRun(folder)
        there = (folder / STORE).exists()
        self._names = stored(folder / STORE) if there else ()
        self._infos = {name: load_info(folder / STORE, name) for name in self._names}
        as_run = next((AsRun.of(line) for line in self._lines if line["kind"] == "run"), None)
        self._experiment = as_run.experiment if as_run else Experiment.from_yaml(folder / "experiment.yaml")
        self._labels = as_run.labels if as_run else Labels()
        self._requests = {one.key: one for cycle in self._plan.cycles for one in cycle.requests}

    def started(self) -> events.RunStarted:
        """The plan, with labels and field of view as they are in the predictions."""
        info, labels, colors, model = next(reversed(self._infos.values()), (None, (), (), ""))
        styles = tuple(LabelStyle(name, hue) for name, hue in zip(labels, colors, strict=True))
        rows, columns = (100, 100) if info is None else (side * info.pixel_size_um for side in info.shape)
        return events.RunStarted(
            name=self._experiment.name,
            started=self._plan.started,
            folder=str(self._folder),
            scope=self._plan.scope,
            model=self._labels.titles or model,
            labels=self._labels.styles or styles,
            fields=tuple(events.PlannedField.of(one) for one in self._requests.values()),
            fov_um=(columns, rows),
            limits=describe_bounds(self._experiment.limits),
            choice=describe_choice(self._experiment),
            models=len(self._labels.models),
        )

    def status(self) -> events.RunStatus:
        """How it ended."""
        last = self._lines[-1] if self._lines else {"kind": "", "time": self._plan.started}
        in_order = last["kind"] == "closed" and last.get("ended") == "in order"
        why = "this is a run of before; nothing moves"
        if last["kind"] != "closed":
            why = f"this run was cut off; acq-isl recover {self._folder} finishes it"
        elif not in_order:
            why = str(last.get("why") or last.get("ended", ""))
        times = [row for row in self._rows if row.state == "time point"]
        cycles = self._plan.cycles
        total = len({cycle.time for cycle in cycles})
        began = max((info.key.time for info, *_ in self._infos.values()), default=0)
        began = max((row.time_point for row in times), default=began)
        report = self._folder / "report.html"
        return events.RunStatus(
            state="ended" if in_order else "failed",
            why="; ".join([why, *self._problems]),
            progress=events.Progress(self._counts(), 0, (), "", None),
            report=str(report) if report.is_file() else "",
            elapsed_s=duration_s(self._lines),
            sent_s=datetime.datetime.fromisoformat(str(last["time"])).timestamp(),
            time_point=events.TimePointBegan(began + 1, total, 0.0, 0.0),
            late_time_points=_late(times, {cycle.time: cycle.start_s for cycle in cycles}),
        )

    def notes(self) -> Iterator[events.Event]:
        """Curves, choices, decisions, and stacks that failed or were refused."""
        if len({cycle.time for cycle in self._plan.cycles}) > 1:
            for curve in book_of(self._rows).curves():
                yield events.CurveChanged.of(curve)
        yield events.FieldsRanked(tuple(choices_of(self._lines)))
        for line in self._lines:
            if line["kind"] in ("decision", "order", "engine"):
                yield _decided(line)
        ends = ("refused", "waits", "failed", "predicted")
        latest = {key_of(row): row for row in self._rows if row.state in ends}
        for key, row in latest.items():
            if row.state == "failed":
                yield events.FieldFailed(key, row.note, "")
            elif row.state != "predicted":
                state: Literal["refused", "waits"] = "refused" if row.state == "refused" else "waits"
                yield events.NotPredicted(key, state, row.note, "see the report")

    def pictures(self) -> Iterator[events.Event]:
        """The middle plane of each stack, and its predictions."""
        predicted: dict[StackKey, list[str]] = {}
        for name, (info, *_) in self._infos.items():
            predicted.setdefault(info.key, []).append(name)
        for key in list(reversed(self._measured.keys))[:_MOST_STACKS]:
            try:
                yield self._seen(key)
                for name in predicted.get(key, ()):
                    prediction = self._labels.rename(load(self._folder / STORE, name))
                    yield events.Predicted.of(prediction, self._found(prediction), 0.0)
            except AcqIslError:
                continue  # the report names what is damaged

    def _seen(self, key: StackKey) -> events.Seen:
        planes = self._measured.planes(key)
        place = self._requests.get(key) or self._beside(key)
        request = replace(place, key=key, z_um=place.z_um if key in self._requests else (0.0,) * planes)
        stack = self._measured.stack(request)
        middle = stack.info.planes // 2
        return preview_of(Slice(stack.info, middle, stack.pixels[middle], 0.0), key in self._requests)

    def _beside(self, key: StackKey) -> StackRequest:
        """An overview stack of the same place, for one that is none."""
        same = (one for one in self._requests.values() if one.key.position == key.position)
        return next(same, next(iter(self._requests.values())))

    def _found(self, prediction: Prediction) -> tuple[Measured, ...]:
        rows = [row for row in self._rows if row.state == "predicted" and row.measurement]
        here = {row.measurement: row for row in rows if key_of(row) == prediction.info.key}
        rules = measurements(self._experiment)
        titles = {rule.title for rule in rules if rule.first_label in prediction.labels}
        return tuple(
            Measured(row.measurement, row.value, row.unit, row.sd)
            for name, row in here.items()
            if name in titles
        )

    def _counts(self) -> Counts:
        """Slices on disk, by what became of their stacks."""
        keys, planes = self._measured.keys, self._measured.planes
        predicted = {info.key for info, *_ in self._infos.values()}
        refused = {key_of(row) for row in self._rows if row.state == "refused"} - predicted
        ended = Counter[str]()
        for key in keys:
            fate = "predicted" if key in predicted else "refused" if key in refused else "spooled"
            ended[fate if key in self._requests else "beside"] += planes(key)
        return Counts(
            requested=sum(len(one.z_um) for one in self._requests.values()),
            captured=self._measured.captured,
            predicted=ended["predicted"],
            refused=ended["refused"],
            spooled=ended["spooled"],
            not_for_prediction=ended["beside"],
        )


def _decided(line: Mapping[str, Any]) -> events.Decided:
    key = _KEY.validate_python(line["key"]) if line.get("key") else None
    rule, what, why, done = (str(line.get(name) or "") for name in ("rule", "what", "why", "done"))
    time_s = datetime.datetime.fromisoformat(str(line["time"])).timestamp()
    return events.Decided(key, rule, what, why, done, time_s)


def _late(rows: list[TableRow], planned_s: Mapping[int, float]) -> int:
    """Time points whose interval was not kept."""
    pairs = itertools.pairwise(rows)
    return sum(
        not interval_kept(
            planned_s.get(b.time_point, 0.0) - planned_s.get(a.time_point, 0.0), b.elapsed_s - a.elapsed_s
        )
        for a, b in pairs
    )
