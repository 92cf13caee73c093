"""Where a run stands, in numbers: worked out from its events, on the way to whoever watches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

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
from acq_isl.record import Counts
from acq_isl.rules.label_names import Status, combine_status
from acq_isl.session.summary import latencies
from acq_isl.stack import StackKey, StageTimes

_RECENT = 256
_LEAST_S = 0.2


class ProgressMeter:
    """Hands events on, and adds `Progress` after those that change a number, at most five times a second.

    ``counters`` say how many slices were captured and lost so far, ``engine`` the engine's state for people;
    ``slices`` are those for prediction, and those measured only, that the whole run is expected to take;
    ``models`` is how many predict each stack. ``last_start_s`` may be set to when the last time point begins.
    """

    def __init__(
        self,
        emit: EventHandler,
        counters: tuple[Callable[[], int], Callable[[], int]],
        engine: Callable[[], str],
        slices: tuple[int, int],
        monotonic: Callable[[], float] = time.monotonic,
        *,
        models: int = 1,
    ) -> None:
        self._emit = emit
        self._captured, self._lost = counters
        self._engine, self._slices, self._monotonic = engine, slices, monotonic
        self._counts = Counts()
        self._recent: deque[StageTimes] = deque(maxlen=_RECENT)
        self._decide_ms: deque[float] = deque(maxlen=_RECENT)
        self._models = models
        self._planes: dict[StackKey, int] = {}
        self._waiting: dict[StackKey, int] = {}
        self._answers: dict[StackKey, dict[str, Status]] = {}
        self._began_s = self._emitted_s = monotonic()
        self._rested_s = self.last_start_s = 0.0
        self._paused_s: float | None = None

    def handle(self, event: Event) -> None:
        """Hand an event on; from the session's thread."""
        self._emit(event)
        match event:
            case FieldImaged(request=request):
                planes = len(request.z_um)
                self._count(requested=planes, not_for_prediction=0 if request.predict else planes)
                if request.predict:
                    self._waiting[request.key] = self._planes[request.key] = planes
            case Predicted():
                self._recent.append(event.times)
                self._decide_ms.append(event.decide_ms)
                self._count_answer(event.key, event.model, "predicted")
            case NotPredicted(state=state):
                self._count_answer(event.key, event.model, "refused" if state == "refused" else "spooled")
            case StateChanged(state=state):
                self._clock_pauses(paused=state == "paused")
            case Step() | TimePointBegan():
                pass
            case RunStarted() | Seen() | FieldRanked() | FieldsRanked() | Decided() | FieldFailed():
                return
            case Progress() | CurveChanged() | RunEnded() | RunStatus():
                return
            case _:
                assert_never(event)
        now = self._monotonic()
        if now - self._emitted_s >= _LEAST_S or isinstance(event, StateChanged):
            self._emitted_s = now
            self._emit(self.progress())

    def progress(self) -> Progress:
        """Where the run stands now."""
        counts = replace(self._counts, captured=self._captured(), lost=self._lost())
        stages = latencies(list(self._recent), list(self._decide_ms))
        return Progress(counts, sum(self._waiting.values()), stages, self._engine(), self._remaining_s())

    def _count_answer(self, key: StackKey, model: str, status: Status) -> None:
        """Count a stack once all models have answered, and otherwise once more has become known of it."""
        answers = self._answers.setdefault(key, {})
        before = combine_status(answers.values(), self._models)
        answers[model] = status
        after = combine_status(answers.values(), self._models)
        if after is None or after == before:
            return
        self._waiting.pop(key, None)
        planes = self._planes.get(key, 0)
        if before is not None:
            self._count(**{before: -planes})
        self._count(**{after: planes})

    def _count(self, **more: int) -> None:
        changes = {name: getattr(self._counts, name) + number for name, number in more.items()}
        self._counts = replace(self._counts, **changes)

    def _clock_pauses(self, *, paused: bool) -> None:
        now = self._monotonic()
        if paused and self._paused_s is None:
            self._paused_s = now
        elif not paused and self._paused_s is not None:
            self._rested_s += now - self._paused_s
            self._paused_s = None

    def _remaining_s(self) -> float | None:
        """As fast as so far, pauses left out, but not before the last time point has begun."""
        counts = self._counts
        for_prediction = counts.requested - counts.not_for_prediction
        if not counts.requested:
            return None
        until = self._paused_s if self._paused_s is not None else self._monotonic()
        spent_s = until - self._began_s - self._rested_s
        overview, measured = self._slices
        # Imaging and predicting go on side by side; the slower one decides.
        left_s = max(overview - for_prediction, 0) * spent_s / counts.requested
        answered = counts.predicted + counts.refused + counts.spooled
        if answered:
            left_s = max(left_s, max(overview - answered, 0) * spent_s / answered)
        left_s += max(measured - counts.not_for_prediction, 0) * spent_s / counts.requested
        return max(left_s, self.last_start_s - (until - self._began_s))
