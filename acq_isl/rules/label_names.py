"""The labels of several models under names that differ, and what models say of a field together. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from acq_isl.errors import ModelError
from acq_isl.manifest import Manifest
from acq_isl.processing.display import PALETTE
from acq_isl.stack import Outcome, Prediction, Refusal, StageTimes, Unpredicted

Standing = Literal["predicted", "refused", "spooled"]
MAX_LABELS = 32


@dataclass(frozen=True, slots=True)
class LabelStyle:
    """A label that is predicted, its colour as ``#rrggbb``, and its model if the name leaves that open."""

    name: str
    color: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class RunModel:
    """A model of a run.

    Parameters
    ----------
    asked_as : str
        Name by which it is asked for; empty for the first of its engine.
    manifest : Manifest or None
        None where no engine has told it yet.
    sha256 : str
    """

    asked_as: str = ""
    manifest: Manifest | None = None
    sha256: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return self.asked_as or (self.manifest.name if self.manifest else "the model")

    @property
    def title(self) -> str:
        """Name, version and first digits of the hash; empty if nothing is known."""
        if self.manifest is None:
            return self.asked_as
        named = f" as {self.asked_as}" if self.asked_as not in ("", self.manifest.name) else ""
        return f"{self.manifest.name} {self.manifest.version} ({self.sha256[:12]}){named}"


class Labels:
    """Which model predicts which label, and what the label is called in a run.

    A label that one model alone predicts keeps its name. One that several predict is called ``model/label``,
    and so is every label while it is not known what the models predict.

    Parameters
    ----------
    models : sequence of RunModel
        At least one; each has another ``asked_as``.

    Raises
    ------
    ModelError
        More than 32 labels, or two that cannot be told apart.
    """

    def __init__(self, models: Sequence[RunModel] = (RunModel(),)) -> None:
        self._models = {one.asked_as: one for one in models}
        bare = [(one, label) for one in models if one.manifest for label in one.manifest.labels]
        often = Counter(label.name for _, label in bare)
        self._called: dict[tuple[str, str], str] = {}
        styles: list[LabelStyle] = []
        for model, label in bare:
            name = label.name if often[label.name] == 1 else f"{model.name}/{label.name}"
            self._called[model.asked_as, label.name] = name
            by = model.name if self.several and name == label.name else ""  # else the name says it
            styles.append(LabelStyle(name, _hue(label.color, [one.color for one in styles]), by))
        self.styles = tuple(styles)
        names = [one.name for one in styles]
        if len(set(names)) < len(names) or (self.several and len(names) > MAX_LABELS):
            raise ModelError(
                "the labels of these models cannot be shown together",
                wanted=f"up to {MAX_LABELS} names that differ",
                got=", ".join(names),
                fix="take fewer models, or give others of their names: models: [mine=FILE, theirs=FILE]",
            )

    @property
    def several(self) -> bool:
        return len(self._models) > 1

    @property
    def models(self) -> tuple[str, ...]:
        """Names by which the models are asked for."""
        return tuple(self._models)

    @property
    def names(self) -> tuple[str, ...]:
        """What the labels are called; empty while that is not known."""
        return tuple(one.name for one in self.styles)

    @property
    def known(self) -> bool:
        """Whether it is known what the models predict."""
        return bool(self.styles)

    @property
    def titles(self) -> str:
        """The models, for people."""
        return ", ".join(one.title for one in self._models.values() if one.title)

    @property
    def by_model(self) -> dict[str, str]:
        """Model of each label, for people; empty with one model only."""
        named = {name: self._models[model].name for (model, _), name in self._called.items()}
        return named if self.several else {}

    @property
    def colors(self) -> dict[str, str]:
        """Hue of each label."""
        return {one.name: one.color for one in self.styles}

    @property
    def store_colors(self) -> dict[str, str]:
        """As `colors`, and by ``model/label``, as the store knows the labels of several models."""
        called = {f"{model}/{bare}": self.colors[name] for (model, bare), name in self._called.items()}
        return {**self.colors, **called}

    def owner(self, label: str) -> str | None:
        """The model, as it is asked for, whose label this is; None if it is nobody's."""
        if not self.several:
            return next(iter(self._models))
        for (model, _), name in self._called.items():
            if name == label:
                return model
        called = (model for model in self._models if label.startswith(f"{model}/"))
        return None if self.known else next(called, None)

    def bare(self, label: str) -> str:
        """The label's name in its own model."""
        return next((bare for (_, bare), name in self._called.items() if name == label), label)

    def shown(self, prediction: Prediction) -> Prediction:
        """A prediction with its labels called as in this run."""
        if not self.several:
            return prediction
        model = prediction.model
        names = (self._called.get((model, one), f"{model}/{one}") for one in prediction.labels)
        return replace(prediction, labels=tuple(names))


def _hue(stated: str, taken: Collection[str]) -> str:
    """A hue that no other label has; two models know nothing of each other's."""
    used = {one.lower() for one in taken}
    if stated.lower() not in used:
        return stated
    return next((one for one in PALETTE if one.lower() not in used), stated)


def standing(outcome: Outcome) -> Standing:
    """What became of a stack with one model."""
    match outcome:
        case Prediction():
            return "predicted"
        case Refusal():
            return "refused"
        case Unpredicted():
            return "spooled"


def together(each: Collection[Standing], models: int) -> Standing | None:
    """What became of a stack with all models: predicted only by all; None while an answer is missing."""
    if len(each) < models:
        return None
    order: tuple[Standing, ...] = ("spooled", "refused", "predicted")
    return next(one for one in order if one in each)


def joined(answers: Iterable[Outcome]) -> Outcome | None:
    """What models say of one field, as one outcome; None without any.

    Labels of one model are there whatever another says: who refused it or is late stands in the warnings.
    Only where nobody predicted it, it is a `Refusal`, or `Unpredicted` if one may still come.
    """
    found = tuple(answers)
    if len(found) < 2:
        return found[0] if found else None
    predictions = [one for one in found if isinstance(one, Prediction)]
    if not predictions:
        return _nothing([one for one in found if not isinstance(one, Prediction)])
    said = (f"{one.model}: {words}" for one in predictions for words in one.warnings)
    missing = (told(one) for one in found if not isinstance(one, Prediction))
    return Prediction(
        info=predictions[0].info,
        labels=tuple(label for one in predictions for label in one.labels),
        mean=np.concatenate([one.mean for one in predictions]),
        spread=np.concatenate([one.spread for one in predictions]),
        model_sha256=", ".join(one.model_sha256 for one in predictions),
        model_name=", ".join(one.model_name for one in predictions),
        engine=", ".join(dict.fromkeys(one.engine for one in predictions)),
        warnings=(*missing, *said),
        border_px=max(one.border_px for one in predictions),
        times=slowest([one.times for one in predictions]),
        distances=tuple(
            replace(distance, name=f"{one.model}: {distance.name}")
            for one in predictions
            for distance in one.distances
        ),
    )


def told(outcome: Refusal | Unpredicted) -> str:
    """Why a model gave no labels, in words, with the model's name."""
    if isinstance(outcome, Refusal):
        return f"{outcome.model} refused this stack: {outcome.reason}"
    return f"{outcome.model} did not predict this stack: {outcome.reason}"


def slowest(times: Sequence[StageTimes]) -> StageTimes:
    """Of each stage the longest."""
    return StageTimes(**{one.name: max(getattr(t, one.name) for t in times) for one in fields(StageTimes)})


def _nothing(answers: Sequence[Refusal | Unpredicted]) -> Refusal | Unpredicted:
    reason = "; ".join(f"{one.model}: {one.reason}" for one in answers)
    waits = [one for one in answers if isinstance(one, Unpredicted)]
    if waits:
        return Unpredicted(waits[0].info, reason, waits[0].where)
    fixes = dict.fromkeys(one.fix for one in answers if isinstance(one, Refusal))
    return Refusal(answers[0].info, reason, "; ".join(fixes))
