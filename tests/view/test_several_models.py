"""Viewers see all models' labels of a field, whichever answers first, and who gave none."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from acq_isl import events
from acq_isl.record import Measured
from acq_isl.stack import Prediction, Refusal, StackInfo, StackKey, StageTimes, Unpredicted
from acq_isl.view.feed.encode import _MOST_FIELDS, Translator
from acq_isl.view.feed.messages import NotPredicted, Parcel, Predicted, decode, encode


def info(name: str = "p0") -> StackInfo:
    return StackInfo(StackKey(0, name, "Phase"), (0.0,), (8, 8), 0.5)


def predicted(model: str, *labels: str, value: float = 0.2, name: str = "p0") -> events.Predicted:
    mean = np.full((len(labels), 8, 8), value, np.float32)
    times = StageTimes(infer_ms=value)
    one = Prediction(
        info(name), labels, mean, mean, "0", model, f"cpu {model}", ("dim",), times=times, model=model
    )
    return events.Predicted(one, (Measured(model, value, "1", 0.0),), 0.0)


def refused(model: str) -> events.NotPredicted:
    return events.NotPredicted(Refusal(info(), "reversed", "turn", model))


def late(model: str) -> events.NotPredicted:
    return events.NotPredicted(Unpredicted(info(), "too late", "spool", model))


def translator(models: int) -> Translator:
    made = Translator("0" * 32)
    made.parcels(events.RunStarted("n", "now", "f", "s", "m", (), (), (1.0, 1.0), models=models), 0)
    return made


def last(*news: events.Predicted | events.NotPredicted, models: int) -> Parcel:
    made = translator(models)
    parcels = [parcel for seq, one in enumerate(news, 1) for parcel in made.parcels(one, seq)]
    assert [parcel.message.seq for parcel in parcels] == list(range(1, len(news) + 1))
    return decode([bytes(frame) for frame in encode(parcels[-1])])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_last_message_tells_of_all_models(order: tuple[int, ...]) -> None:
    news = [predicted("a", "x", value=0.2), refused("b"), predicted("c", "y", "z", value=0.4)]
    parcel = last(*(news[n] for n in order), models=3)
    message = parcel.message
    assert isinstance(message, Predicted)
    shown = {name: int(plane[0, 0]) for name, plane in zip(message.labels, parcel.pictures[0], strict=True)}
    assert shown == {"x": 51, "y": 102, "z": 102}
    assert int(parcel.pictures[1].max()) == 102, "the least sure label decides"
    assert set(message.warnings) == {"b refused this stack: reversed", "a: dim", "c: dim"}
    assert {one.name for one in message.measured} == {"a", "c"} and message.times.infer_ms == 0.4


def test_without_a_prediction_all_reasons_are_told() -> None:
    message = last(refused("a"), late("b"), models=2).message
    assert isinstance(message, NotPredicted) and message.state == "waits"
    assert message.reason == "a: reversed; b: too late" and message.fix == "turn; it waits in spool"


def test_what_came_late_replaces_the_reason() -> None:
    message = last(predicted("a", "x"), late("b"), predicted("b", "y"), models=2).message
    assert isinstance(message, Predicted) and message.labels == ("x", "y")
    assert not any("did not" in one for one in message.warnings)


def test_one_model_passes_as_it_is() -> None:
    message = last(predicted("", "x"), models=1).message
    assert isinstance(message, Predicted) and message.warnings == ("dim",)


def test_only_so_many_halves_are_remembered() -> None:
    made = translator(2)
    for n in range(_MOST_FIELDS + 1):
        made.parcels(predicted("a", "x", name=f"p{n}"), n)
    labels = {}
    for name in ("p0", f"p{_MOST_FIELDS}"):
        (parcel,) = made.parcels(predicted("b", "y", name=name), 999)
        assert isinstance(parcel.message, Predicted)
        labels[name] = parcel.message.labels
    assert labels == {"p0": ("y",), f"p{_MOST_FIELDS}": ("x", "y")}
