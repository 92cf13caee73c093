"""Event of a session become messages of the feed. No socket, no thread; owned by the feed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from acq_isl import events
from acq_isl.record import Counts
from acq_isl.rules.label_names import slowest_times
from acq_isl.stack import Refusal, StackKey
from acq_isl.view.feed import messages as sent
from acq_isl.view.feed.messages import Answered, NotPredicted, Parcel, Predicted
from acq_isl.view.feed.previews import averaged, eight_bit, factor, middle

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
            "times": slowest_times([one.times for _, one in said]),
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


_NO_STEP = events.Step("overview", 0, 0, "")
_NO_FIGURES = events.Figures(Counts(), 0, (), "", None)


@dataclass(frozen=True, slots=True)
class Standing:
    """What the status says; every news changes a part of it."""

    state: events.RunState = "running"
    why: str = ""
    step: events.Step = _NO_STEP
    figures: events.Figures = _NO_FIGURES
    report: str = ""


class Translator:
    """Makes the messages of one run.

    Parameters
    ----------
    run : str
        32 hexadecimal digits.
    monotonic, clock : callable
        Seconds since whenever, and Unix time in seconds.
    """

    def __init__(
        self,
        run: str,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.run = run
        self._monotonic, self._clock = monotonic, clock
        self._began_s = monotonic()
        self._seq = 0
        self._halves = Halves()
        self.standing = Standing()

    def parcels(self, news: events.Event, seq: int) -> list[Parcel]:
        """Messages of a news, with its number; none if it only changes the status."""
        self._seq = seq
        found: list[Parcel] = []
        match news:
            case events.RunStarted():
                self._began_s = self._monotonic()
                self._halves = Halves(news.models)
                found = [self._plan(news)]
            case events.Seen():
                found = [self._light(news)]
            case events.Predicted():
                found = [self._halves.put(news.prediction.model, self._predicted(news))]
            case events.NotPredicted():
                found = [self._halves.put(news.outcome.model, self._not_predicted(news))]
            case events.FieldsRanked(fields=fields):
                found = [self._ranked(field) for field in fields]
            case events.Decided():
                found = [self._decided(news)]
            case _:
                self._stand(news)
        return found

    def status(self, dropped: int, seq: int) -> Parcel:
        """Where the run stands now."""
        now = self.standing
        ended = now.state in ("ended", "failed")
        return Parcel(
            sent.Status(
                run=self.run,
                seq=seq,
                state=now.state,
                why=now.why,
                phase=now.step.phase,
                done=now.step.done,
                total=now.step.total,
                text=now.step.text,
                counts=now.figures.counts,
                late=now.figures.late,
                latencies=now.figures.latencies,
                engine=now.figures.engine,
                elapsed_s=self._monotonic() - self._began_s,
                remaining_s=0.0 if ended else now.figures.remaining_s,
                dropped=dropped,
                report=now.report,
                sent_s=self._clock(),
            )
        )

    def _stand(self, news: events.Event) -> None:
        match news:
            case events.Step():
                self.standing = replace(self.standing, step=news)
            case events.Figures():
                self.standing = replace(self.standing, figures=news)
            case events.StateChanged(state=state, why=why):
                self.standing = replace(self.standing, state=state, why=why)
            case events.RunEnded(failure=failure, report=report):
                state = "failed" if failure else "ended"
                why = failure or self.standing.why * (self.standing.state == "stopping")
                self.standing = replace(self.standing, state=state, why=why, report=report)

    def _plan(self, news: events.RunStarted) -> Parcel:
        fields = tuple(
            sent.PlannedField(
                key=one.key,
                x_um=one.x_um,
                y_um=one.y_um,
                z_um=(one.z_um[0] + one.z_um[-1]) / 2,
                planes=len(one.z_um),
            )
            for one in news.fields[: sent.MAX_FIELDS]
        )
        return Parcel(
            sent.Plan(
                run=self.run,
                seq=self._seq,
                name=news.name,
                started=news.started,
                folder=news.folder,
                scope=news.scope,
                model=news.model,
                labels=news.labels,
                fields=fields,
                fov_um=news.fov_um,
                limits=news.limits,
                choice=news.choice,
            )
        )

    def _light(self, news: events.Seen) -> Parcel:
        rows, columns = news.pixels.shape
        # Fluorescence is sparse: the 99th percentile would hide it, a single hot pixel darken it.
        low, high = np.percentile(news.pixels[::2, ::2], (0.5, 99.8 if news.predict else 99.95))
        x_um, y_um = middle(news.info, factor(news.info.shape))
        message = sent.Light(
            run=self.run,
            seq=self._seq,
            key=news.info.key,
            predict=news.predict,
            x_um=x_um,
            y_um=y_um,
            z_um=news.z_um,
            pixel_size_um=news.pixel_size_um,
            shape=(rows, columns),
            low=float(low),
            high=float(high),
            captured_s=self._clock(),
        )
        return Parcel(message, (news.pixels,))

    def _predicted(self, news: events.Predicted) -> Parcel:
        one = news.prediction
        step = factor(one.info.shape)
        mean = eight_bit(averaged(one.mean))
        # One haze for all labels: the label that is least sure decides.
        doubt = eight_bit(averaged(one.spread.max(axis=0)))
        x_um, y_um = middle(one.info, step)
        message = sent.Predicted(
            run=self.run,
            seq=self._seq,
            key=one.info.key,
            x_um=x_um,
            y_um=y_um,
            pixel_size_um=one.info.pixel_size_um * step,
            shape=(mean.shape[1], mean.shape[2]),
            labels=one.labels,
            measured=news.measured,
            warnings=one.warnings,
            engine=one.engine,
            times=one.times,
        )
        return Parcel(message, (mean, doubt))

    def _not_predicted(self, news: events.NotPredicted) -> Parcel:
        outcome = news.outcome
        refused = isinstance(outcome, Refusal)
        message = sent.NotPredicted(
            run=self.run,
            seq=self._seq,
            key=outcome.info.key,
            state="refused" if refused else "waits",
            reason=outcome.reason,
            fix=outcome.fix if isinstance(outcome, Refusal) else f"it waits in {outcome.where}",
        )
        return Parcel(message)

    def _ranked(self, field: events.FieldRanked) -> Parcel:
        message = sent.Ranked(
            run=self.run,
            seq=self._seq,
            key=field.key,
            rank=field.rank,
            chosen=field.chosen,
            measured=field.measured,
            reason=field.reason,
        )
        return Parcel(message)

    def _decided(self, news: events.Decided) -> Parcel:
        message = sent.Decided(
            run=self.run,
            seq=self._seq,
            time_s=self._clock(),
            key=news.key,
            rule=news.rule,
            what=news.what,
            why=news.why,
            done=news.done,
        )
        return Parcel(message)
