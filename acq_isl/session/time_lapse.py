"""What a run measures over time: a table as it goes, curves for whoever watches, and how fields drift."""

from __future__ import annotations

import datetime
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import assert_never

from acq_isl.errors import StorageError
from acq_isl.events import (
    CurveChanged,
    Decided,
    Event,
    EventHandler,
    FieldFailed,
    FieldImaged,
    FieldRanked,
    FieldsRanked,
    NotPredicted,
    Predicted,
    Progress,
    RunEnded,
    RunStarted,
    RunStatus,
    Seen,
    StateChanged,
    Step,
    TimePointBegan,
)
from acq_isl.experiment.planning import Cycle
from acq_isl.rules import Measurement
from acq_isl.rules.series import Curve, CurveBook, Point, well_of
from acq_isl.session.drift_meter import Drift, DriftMeter
from acq_isl.stack import StackKey, StackRequest
from acq_isl.storage.measurement_table import FILE, MeasurementTable, TableRow, read_table

log = logging.getLogger(__name__)

DRIFT, FOCUS = "drift of the image", "focus above the plan"
_CURVES_EVERY_S = 0.5
_TOLD_DRIFT = 0.05  # of the shorter side of a field


class TimeLapse:
    """Hands the events of a run on, and keeps what they measure.

    ``rules`` come with the model of their label. `see` is called by the acquisition's image thread, all else
    by the session's. A table that cannot be written is told once, and the run goes on. ``clock``: Unix time.
    """

    def __init__(
        self,
        emit: EventHandler,
        folder: Path,
        plan: Sequence[Cycle],
        rules: Sequence[tuple[Measurement, str | None]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._emit, self._table, self._rules, self._clock = (
            emit,
            MeasurementTable(folder / FILE),
            rules,
            clock,
        )
        self._planned = {request.key: request for cycle in plan for request in cycle.requests}
        self._several = len({cycle.time for cycle in plan}) > 1
        self._rows = read_table(folder / FILE)
        self._began_s: float | None = began_s(self._rows)
        self._imaged_s = {key_of(row): row.elapsed_s for row in self._rows if row.state == "imaged"}
        self._book = book_of(self._rows)
        self._drift = DriftMeter()
        self._curves_s = -math.inf
        self._failed = self._writable = False
        self.warnings: list[str] = []

    def __enter__(self) -> TimeLapse:
        try:
            self._table.__enter__()
            self._writable = True
        except StorageError as error:
            self._give_up(error)
        return self

    def __exit__(self, *_: object) -> None:
        if self._writable:
            self._table.__exit__(*_)

    @property
    def curves(self) -> tuple[Curve, ...]:
        """All measurements over time; none of a run with one time point."""
        return self._book.curves() if self._several else ()

    def see(self, event: Event) -> None:
        """A picture, on the image thread: kept until its stack is complete, and handed on."""
        if self._several and isinstance(event, Seen) and event.predict:
            self._drift.see(event)
        self._emit(event)

    def handle(self, event: Event) -> None:
        """Hand an event on, and keep what it says; never raises."""
        self._emit(event)
        if self._failed:
            return
        try:
            self._keep(event)
            self.show_curves(after_s=_CURVES_EVERY_S)
        except Exception as error:
            self._failed = True
            log.warning("measurements over time are not kept any more", exc_info=True)
            self.warnings.append(f"measurements over time are not kept from here on: {error}")

    def _keep(self, event: Event) -> None:
        match event:
            case TimePointBegan():
                if self._began_s is None:
                    self._began_s = self._clock() - event.began_s
                words = f"{event.number} of {event.total}, planned {event.planned_s:.1f} s after the first"
                row = replace(self._now("time point", event.number - 1), note=words)
                self._add([row])
            case FieldImaged(request=request):
                if request.predict:
                    self._imaged(request)
            case Predicted():
                self._predicted(event)
            case NotPredicted(key=key, state=state, reason=reason, model=model):
                self._without(key, state, reason, model)
            case FieldFailed(key=key, what=what, why=why):
                self._without(key, "failed", f"{what}: {why}", None)
            case RunStarted() | Step() | Seen() | FieldRanked() | FieldsRanked() | Decided() | Progress():
                pass
            case CurveChanged() | StateChanged() | RunEnded() | RunStatus():
                pass
            case _:
                assert_never(event)

    def show_curves(self, after_s: float = 0.0) -> None:
        """Hand on the curves that have changed, if the last ones were handed on so long ago."""
        now = self._clock()
        if self._several and not now - self._curves_s < after_s:
            self._curves_s = now
            for curve in self._book.changed():
                self._emit(CurveChanged.of(curve))

    def _imaged(self, request: StackRequest) -> None:
        key, plan = request.key, self._planned.get(request.key)
        if key in self._imaged_s:  # in an earlier process
            return
        self._imaged_s[key] = self._now("", 0).elapsed_s
        row = self._row(key, "imaged", request)
        rows = [row]
        if plan is not None and plan.autofocus is not None:
            above_um = _middle_um(request) - _middle_um(plan)
            rows.append(replace(row, state="measured", measurement=FOCUS, value=above_um, unit="um"))
        if (drift := self._drift.measure(request)) is not None:
            away = math.hypot(*drift.um)
            note = f"x {drift.um[0]:.2f} um, y {drift.um[1]:.2f} um" if math.isfinite(away) else drift.why
            rows.append(replace(row, state="measured", measurement=DRIFT, value=away, unit="um", note=note))
            self._tell_drift(key, drift)
        self._add(rows)

    def _tell_drift(self, key: StackKey, drift: Drift) -> None:
        if math.hypot(*drift.um) > _TOLD_DRIFT * drift.field_um and not drift.told:
            drift.told = True
            where = f"{math.hypot(*drift.um):.1f} um from where it was at first"
            self.warnings.append(f"{key.position} drifts: at time point {key.time + 1} its image lay {where}")

    def _predicted(self, event: Predicted) -> None:
        row = self._row(event.key, "predicted")
        rows = [
            replace(row, measurement=found.name, value=found.value, sd=found.doubt, unit=found.unit)
            for found in event.measured
        ]
        self._add(rows or [row])

    def _without(self, key: StackKey, state: str, why: str, model: str | None) -> None:
        row = replace(self._row(key, state), note=why)
        asked = [rule for rule, owner in self._rules if model is None or owner == model]
        rows = [replace(row, measurement=rule.title, unit=rule.unit.name) for rule in asked]
        self._add(rows or [row])

    def _row(self, key: StackKey, state: str, request: StackRequest | None = None) -> TableRow:
        row = replace(self._now(state, key.time), position=key.position, channel=key.channel)
        row = replace(row, well="".join(well_of(key.position) or ()))
        row = replace(row, elapsed_s=self._imaged_s.get(key, row.elapsed_s))
        stack = request or self._planned.get(key)
        if stack is None:
            return row
        return replace(row, x_um=stack.x_um, y_um=stack.y_um, z_um=_middle_um(stack))

    def _now(self, state: str, time_point: int) -> TableRow:
        now_s = self._clock()
        began_s = now_s if self._began_s is None else self._began_s
        return TableRow(state, time_point, elapsed_s=now_s - began_s, written=_iso(now_s))

    def _add(self, rows: Sequence[TableRow]) -> None:
        for row in rows:
            add_to(self._book, row)
        if self._writable:
            try:
                self._table.add(rows)
            except StorageError as error:
                self._give_up(error)

    def _give_up(self, error: StorageError) -> None:
        self._writable = False
        self.warnings.append(str(error))
        log.warning("%s", error)


def began_s(rows: Sequence[TableRow]) -> float | None:
    """Unix time from which a table counts; None of an empty one."""
    for row in rows:
        if row.state == "time point" and row.written:
            return datetime.datetime.fromisoformat(row.written).timestamp() - row.elapsed_s
    return None


def _iso(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s).astimezone().isoformat(timespec="milliseconds")


def key_of(row: TableRow) -> StackKey:
    return StackKey(row.time_point, row.position, row.channel)


def book_of(rows: Sequence[TableRow]) -> CurveBook:
    """The curves of a table."""
    book = CurveBook()
    for row in rows:
        add_to(book, row)
    return book


def add_to(book: CurveBook, row: TableRow) -> None:
    if row.measurement:
        point = Point(row.time_point, row.elapsed_s, row.value, row.sd, why=_why(row))
        book.add(row.position, row.measurement, row.unit, point)


def _why(row: TableRow) -> str:
    if math.isfinite(row.value):
        return ""
    return f"{row.state}: {row.note}"[:1024] if row.note else row.state


def _middle_um(request: StackRequest) -> float:
    return (min(request.z_um) + max(request.z_um)) / 2
