"""Viewers see all models' labels of a field, whichever answers first, and who gave none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from acq_isl import events
from acq_isl.rules.measurements import Measured
from acq_isl.stack import Prediction, Refusal, StackInfo, StackKey, StageTimes, Unpredicted
from acq_isl.view.feed.encode import MOST_FIELDS, MessageMaker
from acq_isl.view.feed.messages import Message, decode, encode


def info(name: str = "p0") -> StackInfo:
    return StackInfo(StackKey(0, name, "Phase"), (0.0,), (8, 8), 0.5)


def predicted(model: str, *labels: str, value: float = 0.2, name: str = "p0") -> events.Predicted:
    mean = np.full((len(labels), 8, 8), value, np.float32)
    times = StageTimes(infer_ms=value)
    one = Prediction(
        info(name), labels, mean, mean, "0", model, f"cpu {model}", ("dim",), times=times, model=model
    )
    return events.Predicted.of(one, (Measured(model, value, "1", 0.0),), 0.0)


def refused(model: str) -> events.NotPredicted:
    return events.NotPredicted.of(Refusal(info(), "reversed", "turn", model))


def late(model: str) -> events.NotPredicted:
    return events.NotPredicted.of(Unpredicted(info(), "too late", "spool", model))


def maker(models: int) -> MessageMaker:
    made = MessageMaker("0" * 32)
    made.messages(events.RunStarted("n", "now", "f", "s", "m", (), (), (1.0, 1.0), models=models), 0)
    return made


def last(*answers: events.Predicted | events.NotPredicted, models: int) -> Message:
    made = maker(models)
    messages = [message for seq, one in enumerate(answers, 1) for message in made.messages(one, seq)]
    assert [message.seq for message in messages] == list(range(1, len(answers) + 1))
    return decode([bytes(frame) for frame in encode(messages[-1])])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_last_message_tells_of_all_models(order: tuple[int, ...]) -> None:
    answers = [predicted("a", "x", value=0.2), refused("b"), predicted("c", "y", "z", value=0.4)]
    message = last(*(answers[n] for n in order), models=3)
    event = message.event
    assert isinstance(event, events.Predicted)
    shown = {name: int(plane[0, 0]) for name, plane in zip(event.labels, message.images[0], strict=True)}
    assert shown == {"x": 51, "y": 102, "z": 102}
    assert int(message.images[1].max()) == 102, "the least sure label decides"
    assert set(event.warnings) == {"b refused this stack: reversed", "a: dim", "c: dim"}
    assert {one.name for one in event.measured} == {"a", "c"} and event.times.infer_ms == 0.4


def test_without_a_prediction_all_reasons_are_told() -> None:
    event = last(refused("a"), late("b"), models=2).event
    assert isinstance(event, events.NotPredicted) and event.state == "waits"
    assert event.reason == "a: reversed; b: too late" and event.fix == "turn; it waits in spool"


def test_what_came_late_replaces_the_reason() -> None:
    event = last(predicted("a", "x"), late("b"), predicted("b", "y"), models=2).event
    assert isinstance(event, events.Predicted) and event.labels == ("x", "y")
    assert not any("did not" in one for one in event.warnings)


def test_one_model_passes_as_it_is() -> None:
    event = last(predicted("", "x"), models=1).event
    assert isinstance(event, events.Predicted) and event.warnings == ("dim",)


def test_only_so_many_answers_are_remembered() -> None:
    made = maker(2)
    for n in range(MOST_FIELDS + 1):
        made.messages(predicted("a", "x", name=f"p{n}"), n)
    labels = {}
    for name in ("p0", f"p{MOST_FIELDS}"):
        (message,) = made.messages(predicted("b", "y", name=name), 999)
        assert isinstance(message.event, events.Predicted)
        labels[name] = message.event.labels
    assert labels == {"p0": ("y",), f"p{MOST_FIELDS}": ("x", "y")}
