"""Asks a simulated specimen for the truth about a run, and has the run graded."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from acq_isl.errors import AcqIslError
from acq_isl.experiment.experiment import Experiment, measurements
from acq_isl.record import RunRecord
from acq_isl.rules.measurements import measure
from acq_isl.scorecard import Scorecard, Spread
from acq_isl.session.fields import Field
from acq_isl.session.grading import scores, targeting
from acq_isl.session.grading.scores import KnownField
from acq_isl.session.grading.targeting import Imaged
from acq_isl.session.session import Session
from acq_isl.session.summary import Stored
from acq_isl.sim import CellTruth, KnowsCells, Rectangle, SimulatedScope, Taken, View
from acq_isl.stack import Float32Image, Prediction, StackKey, StackRequest

_MOST_FIELDS = 64  # whose pictures are held against the truth: each costs up to a second
_DRIFT_UM = 40.0
_NO_CELLS = (
    "Choices, triggers and cells: the recording does not say which cells there are, and its stains have no "
    "absolute scale. Labels are held against the recorded stains, each from its 1st to its 99.8th percentile."
)
_DARK = "Everything else: no light reached the specimen in the overview."
_EARLIER = "Fields imaged before the run was cut off: which light they got, only that process knew."
_TOO_MANY = f"Labels and choices beyond the first {_MOST_FIELDS} fields."


def grade(
    record: RunRecord, experiment: Experiment, session: Session, stored: Stored, scope: SimulatedScope | None
) -> RunRecord:
    """The record with its scorecard; unchanged after a run on a real microscope, or without any image."""
    if scope is None or not session.acquired:
        return record
    taken = match_light(session.acquired, scope.timeline.taken, record.decisions)
    try:
        return replace(record, scorecard=_Grading(experiment, session, stored, scope, taken).score())
    except AcqIslError as error:
        return replace(record, warnings=(*record.warnings, f"this run is not graded: {error}"))


def true_cells(
    session: Session, scope: SimulatedScope | None, decisions: Sequence[Mapping[str, Any]]
) -> dict[StackKey, tuple[CellTruth, ...]]:
    """The cells that were truly in each overview stack; none where they are not known."""
    if scope is None or not session.acquired:
        return {}
    taken = match_light(session.acquired, scope.timeline.taken, decisions)
    lit = {key: taken[key][-1] for key in session.fields if taken.get(key)}
    found = {key: _cells_in(scope, last) for key, last in lit.items()}
    return {key: cells for key, cells in found.items() if cells is not None}


def _cells_in(scope: SimulatedScope, at: Taken, around_um: float = 0.0) -> tuple[CellTruth, ...] | None:
    """Cells in an exposure and around it; None where they are not known."""
    specimen, light = scope.specimen, at.light
    if not isinstance(specimen, KnowsCells):
        return None
    size_um = (light.height_um + around_um, light.width_um + around_um)
    area = Rectangle.around(light.x_um, light.y_um, size_um)
    return specimen.cells(area, light.time_s, scope.timeline.history)


def match_light(
    acquired: Sequence[StackRequest], taken: Sequence[Taken], decisions: Sequence[Mapping[str, Any]]
) -> dict[StackKey, tuple[Taken, ...]]:
    """Exposures of every stack: those in its channel between two doses in the ledger.

    The ledger's lines, ``decisions``, book the light of each stack, or of a part of it, once it is acquired.
    """
    booked = [line for line in decisions if line.get("kind") == "dose"]
    presets = {request.key: request.preset for request in acquired}
    found: dict[StackKey, tuple[Taken, ...]] = {}
    began_s = -math.inf
    for line in booked:
        key = StackKey(line.get("time_point", 0), line["position"], line["channel"])
        ended_s = datetime.datetime.fromisoformat(str(line["time"])).timestamp()
        if key in presets:
            found[key] = found.get(key, ()) + tuple(
                exposure
                for exposure in taken
                if began_s < exposure.unix_s <= ended_s and exposure.light.channel == presets[key]
            )
        began_s = ended_s
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Grading:
    """A run, what is on disk of it, and the microscope that knows the truth; exposures by stack."""

    experiment: Experiment
    session: Session
    stored: Stored
    scope: SimulatedScope
    taken: Mapping[StackKey, tuple[Taken, ...]]

    def score(self) -> Scorecard:
        session, experiment = self.session, self.experiment
        imaged = [self._imaged(request) for request in session.acquired if self.taken.get(request.key)]
        lit = [field for field in session.fields.values() if self.taken.get(field.request.key)]
        fields = [self._known(field, number) for number, field in enumerate(lit)]
        overview, rules = {field.key for field in fields}, measurements(experiment)
        looked_at = next((rule.first_label for rule in rules if rule.first_label), None)
        label = looked_at and session.labels.name_in_model(looked_at)  # as the specimen names it
        keys = [stack.request.key for stack in imaged if stack.request.key not in overview]
        stained = {(key.time, key.position) for key in keys}
        revisited = {key for key in overview if (key.time, key.position) in stained}
        aside, height = targeting.score_targeting(label, fields, imaged)
        triggers = (
            scores.score_trigger(trigger, fields, self._judged(number))
            for number, trigger in enumerate(experiment.triggers)
        )
        models = {style.name: style.model for style in session.labels.styles}
        labels = scores.score_labels(fields)
        earlier = any(field.answers and field not in lit for field in session.fields.values())
        notes = (
            (not lit, _DARK),
            (bool(lit) and earlier, _EARLIER),
            (not self._knows_cells, _NO_CELLS),
            (len(lit) > _MOST_FIELDS, _TOO_MANY),
        )
        return Scorecard(
            counts=scores.score_counts(fields),
            labels=tuple(replace(score, model=models.get(score.label, "")) for score in labels),
            choice=scores.score_choice(experiment.choose, fields) if experiment.choose else None,
            triggers=tuple(score for score in triggers if score is not None),
            cells=scores.score_cells(label, fields, revisited) if label and revisited else None,
            light=targeting.score_light(imaged, overview),
            aside_um=aside,
            out_of_focus_um=height,
            decision_s=Spread.of([field.decided_s for field in fields]),
            action_s=targeting.score_action(fields, imaged),
            ungraded=tuple(note for applies, note in notes if applies),
        )

    def _judged(self, trigger: int) -> dict[StackKey, str]:
        return {key: did for (number, key), did in self.session.judged.items() if number == trigger}

    @property
    def _knows_cells(self) -> bool:
        return isinstance(self.scope.specimen, KnowsCells)

    def _imaged(self, request: StackRequest) -> Imaged:
        taken, overview = self.taken[request.key], request.key in self.session.fields
        return Imaged(request, taken, () if overview else _cells_in(self.scope, taken[0], _DRIFT_UM) or ())

    def _known(self, field: Field, number: int) -> KnownField:
        key, last = field.request.key, self.taken[field.request.key][-1]
        chosen = field.choice is not None and field.choice.chosen
        known = KnownField(key, chosen, math.nan, (), {}, {}, _cells_in(self.scope, last))
        if not field.predictions:
            return known
        known = replace(known, decided_s=field.response_ms / 1000)
        if number < _MOST_FIELDS:
            # Not through the scope: after a planted fault its core may not answer, and the truth needs none.
            true = self.scope.specimen.truth(self._view(field.predictions[0], last))
            for prediction in field.predictions:
                known = self._compare(known, self.stored.prediction(key, prediction.model), true)
        return known

    def _compare(self, known: KnownField, full: Prediction, true: Mapping[str, Float32Image]) -> KnownField:
        """With what a model's pictures say: labels, and what the rules measure on prediction and truth."""
        rules = [rule for rule in measurements(self.experiment) if set(rule.labels) <= set(full.labels)]
        own = {label: self.session.labels.name_in_model(label) for label in full.labels}
        truth = {label: true[name] for label, name in own.items() if name in true}
        if not self._knows_cells:
            truth = {label: scores.to_bright_end(image) for label, image in truth.items()}
        known = replace(known, labels=known.labels + scores.pair_labels(full, truth, rules))
        if not self._knows_cells:
            return known
        found = {rule: measure(full, rule) for rule in rules}
        return replace(
            known,
            predicted={**known.predicted, **{rule: each.value for rule, each in found.items()}},
            doubts={**known.doubts, **{rule: each.doubt for rule, each in found.items()}},
            true={**known.true, **scores.measure_truth(full, truth, rules)},
        )

    def _view(self, prediction: Prediction, last: Taken) -> View:
        info, light = prediction.info, last.light
        return View(
            x_um=light.x_um,
            y_um=light.y_um,
            z_um=light.z_um,
            channel=light.channel,
            pixel_size_um=info.pixel_size_um,
            shape=info.shape,
            time_s=light.time_s,
            history=self.scope.timeline.history,
        )
