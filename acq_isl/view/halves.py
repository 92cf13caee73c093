"""What several models say of a field, one after the other, becomes one message of all that is known. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import numpy as np

from acq_isl.rules.label_names import slowest
from acq_isl.stack import StackKey
from acq_isl.view.feed.messages import Answered, NotPredicted, Parcel, Predicted

_MOST_FIELDS = 64
_NAME, _TEXT, _LINES = 256, 8192, 64


class Halves:
    """What each model said of the newest fields; owned by the translator.

    A viewer knows one outcome of a field: the last one. So each message repeats the labels of the models that
    have answered before. Of fields for which an answer is missing the newest 64 are remembered, about 1 MiB
    each; a later answer about an older one tells of that model alone.

    Parameters
    ----------
    models : int
        How many are asked about each field; with one, messages pass as they are.
    """

    def __init__(self, models: int = 1) -> None:
        self._models = models
        self._open: OrderedDict[StackKey, dict[str, Parcel]] = OrderedDict()

    def put(self, model: str, parcel: Parcel) -> Parcel:
        """The message to send for one that tells what ``model`` said (PREDICTED or NOT_PREDICTED)."""
        message = parcel.message
        if self._models < 2 or not isinstance(message, Answered):
            return parcel
        answers = self._open.setdefault(message.key, {})
        answers[model] = parcel
        predicted = [one for one in answers.values() if isinstance(one.message, Predicted)]
        if len(predicted) == self._models:
            del self._open[message.key]
        while len(self._open) > _MOST_FIELDS:
            self._open.popitem(last=False)
        return _predicted(answers, parcel) if predicted else _not_predicted(answers, message)


def _predicted(answers: dict[str, Parcel], last: Parcel) -> Parcel:
    said: list[tuple[str, Predicted]] = []
    pictures = []
    warnings = []
    for model, parcel in answers.items():
        match parcel.message:
            case Predicted() as message:
                said.append((model, message))
                pictures.append(parcel.pictures)
            case NotPredicted(state=state, reason=reason):
                word = "refused this stack" if state == "refused" else "did not predict this stack"
                warnings.append(f"{model} {word}: {reason}"[:_TEXT])
    warnings += [f"{model}: {words}"[:_TEXT] for model, one in said for words in one.warnings]
    newest = said[-1][1]
    message = newest.model_copy(
        update={
            "seq": last.message.seq,
            "labels": tuple(label for _, one in said for label in one.labels),
            "measured": tuple(number for _, one in said for number in one.measured)[:_LINES],
            "warnings": tuple(warnings[:_LINES]),
            "engine": ", ".join(dict.fromkeys(one.engine for _, one in said))[:_NAME],
            "times": slowest([one.times for _, one in said]),
        }
    )
    mean = np.concatenate([one[0] for one in pictures])
    return replace(last, message=message, pictures=(mean, np.maximum.reduce([one[1] for one in pictures])))


def _not_predicted(answers: dict[str, Parcel], newest: Predicted | NotPredicted) -> Parcel:
    said = [(model, one.message) for model, one in answers.items() if isinstance(one.message, NotPredicted)]
    refused = all(one.state == "refused" for _, one in said)
    message = NotPredicted(
        run=newest.run,
        seq=newest.seq,
        key=newest.key,
        state="refused" if refused else "waits",
        reason="; ".join(f"{model}: {one.reason}" for model, one in said)[:_TEXT],
        fix="; ".join(dict.fromkeys(one.fix for _, one in said))[:_TEXT],
    )
    return Parcel(message)
