"""The labels of several models under names that differ, and what models say of a field together. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, assert_never

import numpy as np

from acq_isl.errors import ModelError
from acq_isl.manifest import Manifest
from acq_isl.processing.display import PALETTE
from acq_isl.stack import Counting, Outcome, Prediction, Refusal, StageTimes, Unpredicted

Status = Literal["predicted", "refused", "spooled"]
MAX_LABELS = 32


@dataclass(frozen=True, slots=True)
class LabelStyle:
    """A label that is predicted, its colour as ``#rrggbb``, and its model if the name leaves that open."""

    name: str
    color: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class RunModel:
    """A model of a run: its name, empty for the first of its engine, and what is known of it."""

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

    A label that only one model predicts keeps its name. One that several predict is called ``model/label``,
    and so is every label while it is not known what the models predict. ModelError for more than 32 labels,
    or two that cannot be told apart.
    """

    def __init__(self, models: Sequence[RunModel] = (RunModel(),)) -> None:
        self._models = {model.asked_as: model for model in models}
        self.several = len(self._models) > 1
        self._run_names: dict[tuple[str, str], str] = {}
        styles: list[LabelStyle] = []
        predicted = [(model, label) for model in models if model.manifest for label in model.manifest.labels]
        uses = Counter(label.name for _, label in predicted)
        for model, label in predicted:
            name = label.name if uses[label.name] == 1 else f"{model.name}/{label.name}"
            self._run_names[model.asked_as, label.name] = name
            by = model.name if self.several and name == label.name else ""  # else the name says it
            styles.append(LabelStyle(name, _free_hue(label.color, [style.color for style in styles]), by))
        self.styles = tuple(styles)
        if len(set(self.names)) < len(styles) or (self.several and len(styles) > MAX_LABELS):
            raise ModelError(
                "the labels of these models cannot be shown together",
                wanted=f"up to {MAX_LABELS} names that differ",
                got=", ".join(self.names),
                fix="take fewer models, or give others of their names: models: [mine=FILE, theirs=FILE]",
            )

    @property
    def models(self) -> tuple[str, ...]:
        """Names by which the models are asked for."""
        return tuple(self._models)

    @property
    def run_models(self) -> tuple[RunModel, ...]:
        """The models, in the order in which they are asked."""
        return tuple(self._models.values())

    @property
    def manifests(self) -> dict[str, Manifest]:
        """What is known of the models, by their names for people."""
        return {model.name: model.manifest for model in self._models.values() if model.manifest}

    @property
    def names(self) -> tuple[str, ...]:
        """What the labels are called; empty while it is not known what the models predict."""
        return tuple(style.name for style in self.styles)

    @property
    def titles(self) -> str:
        """The models, for people."""
        return ", ".join(model.title for model in self._models.values() if model.title)

    @property
    def by_model(self) -> dict[str, str]:
        """Model of each label, for people; empty with one model only."""
        named = {name: self._models[model].name for (model, _), name in self._run_names.items()}
        return named if self.several else {}

    @property
    def colors(self) -> dict[str, str]:
        """Hue of each label."""
        return {style.name: style.color for style in self.styles}

    @property
    def store_colors(self) -> dict[str, str]:
        """As `colors`, and by ``model/label``, as the store knows the labels of several models."""
        stored = {f"{model}/{label}": self.colors[name] for (model, label), name in self._run_names.items()}
        return {**self.colors, **stored}

    @property
    def counting(self) -> tuple[Counting, ...]:
        """How objects of the labels are counted, by their names in this run."""
        known = ((name, model.manifest) for name, model in self._models.items() if model.manifest)
        return tuple(c for name, manifest in known for c in self._rename_counting(name, manifest.counting))

    def owner(self, label: str) -> str | None:
        """The model, as it is asked for, whose label this is; the first without one, None if nobody's."""
        if not self.several or not label:
            return self.models[0]
        for (model, _), name in self._run_names.items():
            if name == label:
                return model
        named = (model for model in self._models if label.startswith(f"{model}/"))
        return None if self.styles else next(named, None)

    def name_in_model(self, label: str) -> str:
        """The label's name in its own model."""
        return next((own for (_, own), name in self._run_names.items() if name == label), label)

    def rename(self, prediction: Prediction) -> Prediction:
        """A prediction with its labels called as in this run."""
        if not self.several:
            return prediction
        names = tuple(self._run_name(prediction.model, label) for label in prediction.labels)
        counting = self._rename_counting(prediction.model, prediction.counting)
        return replace(prediction, labels=names, counting=counting)

    def _run_name(self, model: str, label: str) -> str:
        return self._run_names.get((model, label), f"{model}/{label}")

    def _rename_counting(self, model: str, counting: Iterable[Counting]) -> tuple[Counting, ...]:
        return tuple(replace(each, label=self._run_name(model, each.label)) for each in counting)


def _free_hue(stated: str, taken: Collection[str]) -> str:
    """A hue that no other label has: two models know nothing of each other's."""
    used = {hue.lower() for hue in taken}
    return next((hue for hue in (stated, *PALETTE) if hue.lower() not in used), stated)


def status_of(outcome: Outcome) -> Status:
    """What became of a stack with one model."""
    match outcome:
        case Prediction():
            return "predicted"
        case Refusal():
            return "refused"
        case Unpredicted():
            return "spooled"
        case _:
            assert_never(outcome)


def combine_status(answers: Collection[Status], models: int) -> Status | None:
    """What became of a stack with all models: predicted only by all; None while an answer is missing."""
    if len(answers) < models:
        return None
    order: tuple[Status, ...] = ("spooled", "refused", "predicted")
    return next(status for status in order if status in answers)


def merge_outcomes(answers: Iterable[Outcome]) -> Outcome | None:
    """What models say of one field, as one outcome; None without any.

    Labels of one model are there whatever another says: who refused it or is late stands in the warnings.
    Only where nobody predicted it, it is a `Refusal`, or `Unpredicted` if one may still come.
    """
    found = tuple(answers)
    if len(found) < 2:
        return found[0] if found else None
    predictions = [outcome for outcome in found if isinstance(outcome, Prediction)]
    missing = [outcome for outcome in found if not isinstance(outcome, Prediction)]
    if not predictions:
        return _merge_missing(missing)
    warnings = (f"{each.model}: {warning}" for each in predictions for warning in each.warnings)
    return Prediction(
        info=predictions[0].info,
        labels=tuple(label for each in predictions for label in each.labels),
        mean=np.concatenate([each.mean for each in predictions]),
        spread=np.concatenate([each.spread for each in predictions]),
        model_sha256=", ".join(each.model_sha256 for each in predictions),
        model_name=", ".join(each.model_name for each in predictions),
        engine=", ".join(dict.fromkeys(each.engine for each in predictions)),
        warnings=(*map(explain, missing), *warnings),
        border_px=max(each.border_px for each in predictions),
        times=slowest_times([each.times for each in predictions]),
        distances=tuple(
            replace(distance, name=f"{each.model}: {distance.name}")
            for each in predictions
            for distance in each.distances
        ),
        counting=tuple(counting for each in predictions for counting in each.counting),
    )


def _merge_missing(answers: Sequence[Refusal | Unpredicted]) -> Refusal | Unpredicted:
    reason = "; ".join(f"{answer.model}: {answer.reason}" for answer in answers)
    for answer in answers:
        if isinstance(answer, Unpredicted):
            return Unpredicted(answer.info, reason, answer.where)
    fixes = dict.fromkeys(answer.fix for answer in answers if isinstance(answer, Refusal))
    return Refusal(answers[0].info, reason, "; ".join(fixes))


def explain(outcome: Refusal | Unpredicted) -> str:
    """Why a model gave no labels, in words, with the model's name."""
    what = "refused" if isinstance(outcome, Refusal) else "did not predict"
    return f"{outcome.model} {what} this stack: {outcome.reason}"


def slowest_times(times: Sequence[StageTimes]) -> StageTimes:
    """Of each stage the longest."""
    stages = (field.name for field in fields(StageTimes))
    return StageTimes(**{stage: max(getattr(each, stage) for each in times) for stage in stages})
