"""Events of a session become the messages of the feed. No socket, no thread; owned by the feed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, assert_never

import numpy as np

from acq_isl import events
from acq_isl.experiment.planning import interval_kept
from acq_isl.rules.label_names import slowest_times
from acq_isl.stack import StackKey
from acq_isl.view.feed.messages import Images, Message
from acq_isl.view.feed.previews import reduce_plane, reduce_prediction

MOST_FIELDS = 64
Answer = tuple[events.Predicted | events.NotPredicted, Images]


class MessageMaker:
    """Makes the messages of one run, which is named by 32 hexadecimal digits."""

    def __init__(
        self,
        run: str,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.run = run
        self._monotonic, self._clock = monotonic, clock
        self._began_s = monotonic()
        self._answers = ModelAnswers()
        self.state = events.RunStatus()

    def messages(self, event: events.Event, seq: int) -> list[Message]:
        """Messages of an event, with its number; none if it only changes the status."""
        found: list[tuple[events.Event, Images]] = []
        match event:
            case events.RunStarted():
                self._began_s = self._monotonic()
                self._answers = ModelAnswers(event.models)
                found = [(replace(event, fields=event.fields[: events.MAX_FIELDS]), ())]
            case events.Seen():
                found = [reduce_plane(event)]
            case events.Predicted():
                found = [self._answers.add(event.model, reduce_prediction(event))]
            case events.NotPredicted():
                found = [self._answers.add(event.model, (event, ()))]
            case events.FieldsRanked(fields=fields):
                found = [(events.FieldRanked.of(choice), ()) for choice in fields]
            case events.Decided():
                found = [(event if event.time_s else replace(event, time_s=self._clock()), ())]
            case events.FieldFailed() | events.CurveChanged() | events.RunStatus():
                found = [(event, ())]
            case (
                events.Step()
                | events.TimePointBegan()
                | events.Progress()
                | events.StateChanged()
                | events.RunEnded()
            ):
                self.state = next_status(self.state, event)
            case events.FieldImaged() | events.FieldRanked():
                pass  # no viewer needs the first; the other is made here
            case _:
                assert_never(event)
        return [Message(self.run, seq, sent, images) for sent, images in found]

    def status(self, dropped: int, seq: int) -> Message:
        """Where the run stands now."""
        elapsed_s = self._monotonic() - self._began_s
        status = replace(self.state, elapsed_s=elapsed_s, dropped=dropped, sent_s=self._clock())
        return Message(self.run, seq, status)


StatusEvent = events.Step | events.TimePointBegan | events.Progress | events.StateChanged | events.RunEnded


def next_status(status: events.RunStatus, event: StatusEvent) -> events.RunStatus:
    """Where a run stands after an event."""
    match event:
        case events.Step():
            return replace(status, step=event)
        case events.TimePointBegan():
            late = status.late_time_points + _came_late(status.time_point, event)
            return replace(status, time_point=event, late_time_points=late)
        case events.Progress():
            return replace(status, progress=event)
        case events.StateChanged(state=state, why=why):
            return replace(status, state=state, why=why)
        case events.RunEnded(failure=failure, report=report):
            why = failure or status.why * (status.state == "stopping")
            ending: events.RunState = "failed" if failure else "ended"
            return replace(status, state=ending, why=why, report=report)
        case _:
            assert_never(event)


def _came_late(before: events.TimePointBegan | None, now: events.TimePointBegan) -> bool:
    if before is None or now.number <= before.number:
        return False
    return not interval_kept(now.planned_s - before.planned_s, now.began_s - before.began_s)


class ModelAnswers:
    """What each of ``models`` models said of the newest fields; with one model, answers pass as they are.

    A viewer knows one outcome of a field: the last one. So each message repeats the labels of the models that
    have answered before. Of fields for which an answer is missing the newest 64 are remembered, about 1 MiB
    each; a later answer about an older one tells of that model alone.
    """

    def __init__(self, models: int = 1) -> None:
        self._models = models
        self._open: OrderedDict[StackKey, dict[str, Answer]] = OrderedDict()

    def add(self, model: str, answer: Answer) -> Answer:
        """All that models have said of a field until now, as one answer."""
        if self._models < 2:
            return answer
        key = answer[0].key
        answers = self._open.setdefault(key, {})
        answers[model] = answer
        if sum(isinstance(event, events.Predicted) for event, _ in answers.values()) == self._models:
            del self._open[key]
        while len(self._open) > MOST_FIELDS:
            self._open.popitem(last=False)
        return merge_models(list(answers.values()))


def merge_models(answers: Sequence[Answer]) -> Answer:
    """Several models' answers about one field: labels of those that predicted, reasons of the others."""
    predicted = [(event, images) for event, images in answers if isinstance(event, events.Predicted)]
    refused = [event for event, _ in answers if isinstance(event, events.NotPredicted)]
    if not predicted:
        state: Literal["refused", "waits"] = "waits"
        if all(event.state == "refused" for event in refused):
            state = "refused"
        reason = "; ".join(f"{event.model}: {event.reason}" for event in refused)[: events.MAX_TEXT]
        fix = "; ".join(dict.fromkeys(event.fix for event in refused))[: events.MAX_TEXT]
        return events.NotPredicted(refused[0].key, state, reason, fix), ()
    answered = [event for event, _ in predicted]
    words = {"refused": "refused this stack", "waits": "did not predict this stack"}
    warnings = [f"{event.model} {words[event.state]}: {event.reason}" for event in refused]
    warnings += [f"{event.model}: {warning}" for event in answered for warning in event.warnings]
    merged = replace(
        answered[-1],
        labels=tuple(label for event in answered for label in event.labels),
        measured=tuple(number for event in answered for number in event.measured)[: events.MAX_LINES],
        warnings=tuple(warning[: events.MAX_TEXT] for warning in warnings[: events.MAX_LINES]),
        engine=", ".join(dict.fromkeys(event.engine for event in answered))[: events.MAX_NAME],
        times=slowest_times([event.times for event in answered]),
        model="",
    )
    mean = np.concatenate([images[0] for _, images in predicted])
    return merged, (mean, np.maximum.reduce([images[1] for _, images in predicted]))
