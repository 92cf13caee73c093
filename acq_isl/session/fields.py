"""What is known so far of the fields of a run, and which of them are chosen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from acq_isl.rules import Choice, Ranking, rank
from acq_isl.rules.cache import MeasurementCache
from acq_isl.rules.deciding import unlike_training
from acq_isl.rules.label_names import Labels, Status, combine_status, merge_outcomes, status_of
from acq_isl.rules.rankings import explain_unranked
from acq_isl.rules.trusted import propose
from acq_isl.stack import Outcome, Prediction, Refusal, StackInfo, StackKey, StackRequest, Unpredicted


@dataclass(slots=True)
class Field:
    """What is known so far of one overview field; owned by the session."""

    request: StackRequest
    models: tuple[str, ...] = ("",)
    """Who is asked about it, by name; their answers stand in this order, whichever comes first."""
    answers: dict[str, Outcome] = dataclasses.field(default_factory=dict)
    """What each model said, with labels called as in the run. The images of a prediction are reduced, for
    display: a run of a thousand fields must fit into memory."""
    choice: Choice | None = None
    imaged_s: float = math.nan  # when its last slice had been captured and handed to storage, monotonic
    decided_s: float = math.nan  # when the triggers had looked at its (last) prediction, on the same clock

    @property
    def response_ms(self) -> float:
        """From the last slice to the decision, as a person with one clock would measure it."""
        return (self.decided_s - self.imaged_s) * 1e3

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """What models have said until now."""
        return tuple(self.answers[model] for model in self.models if model in self.answers)

    @property
    def outcome(self) -> Outcome | None:
        """What all models have said until now, as one; None before any has."""
        return merge_outcomes(self.outcomes)

    @property
    def status(self) -> Status | None:
        """What became of the stack; None until every model has answered."""
        return combine_status([status_of(outcome) for outcome in self.outcomes], len(self.models))

    @property
    def predictions(self) -> tuple[Prediction, ...]:
        return tuple(outcome for outcome in self.outcomes if isinstance(outcome, Prediction))

    @property
    def without(self) -> tuple[Refusal | Unpredicted, ...]:
        """What models said that did not predict it."""
        return tuple(outcome for outcome in self.outcomes if not isinstance(outcome, Prediction))


def choose_fields(
    rule: Ranking, labels: Labels, fields: Sequence[Field], cache: MeasurementCache
) -> tuple[Choice, ...]:
    """Rank fields by what the models said of them whose labels the rule looks at.

    One that would be chosen and looks unlike a model's training set is only proposed.
    """
    owners = [labels.owner(measurement.first_label) or "" for measurement in rule.measurements]
    ranked, doubts = [], dict[StackKey, str]()
    for field in fields:
        answers = [field.answers.get(model) or _unanswered(field.request, model) for model in owners]
        doubts[field.request.key] = next(filter(None, map(unlike_training, answers)), "")
        found = [cache.measure(each, m) for each, m in zip(answers, rule.measurements, strict=True)]
        ranked.append((next((a for a in answers if not isinstance(a, Prediction)), answers[0]), found))
    return tuple(
        propose(choice, doubts[choice.key]) if doubts[choice.key] else choice for choice in rank(rule, ranked)
    )


def warn_unranked(
    choices: Sequence[Choice], fields: Mapping[StackKey, Field], time: int | None
) -> tuple[str, ...]:
    """What to say of fields that could not be ranked, of one time point of several; nothing if all could."""
    missing = [choice for choice in choices if choice.rank is None]
    if not missing:
        return ()
    when = "" if time is None else f" at time point {time}"
    text = f"{explain_unranked(len(missing), len(choices))}{when}"
    if any(choice.chosen for choice in choices):
        text += "; the choice was made among the others (choose.require)"
    else:
        text += "; no choice was made. To allow one among the others, lower choose.require"
    if any(fields[each.key].status not in ("predicted", "refused") for each in missing):
        text += ". To finish: 'acq-isl recover RUN --choose' predicts them and chooses again"
    return (text,)


def _unanswered(request: StackRequest, model: str) -> Unpredicted:
    info = StackInfo(request.key, request.z_um, (1, 1), 0.0, request.x_um, request.y_um)
    return Unpredicted(info, "no answer of the engine", "the measured data", model)
