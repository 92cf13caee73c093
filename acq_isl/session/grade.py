"""Asks a simulated specimen for the truth about a run, and has the run graded."""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from acq_isl.errors import AcqIslError
from acq_isl.experiment.experiment import Experiment, measurements
from acq_isl.record import RunRecord
from acq_isl.rules.measurements import Measurement, measure
from acq_isl.scorecard import Scorecard, Spread
from acq_isl.session.grading import scores as grading
from acq_isl.session.grading import targeting as aiming
from acq_isl.session.grading.scores import KnownCell, KnownField
from acq_isl.session.grading.targeting import Imaged, Lit
from acq_isl.session.session import Field, Session
from acq_isl.session.summary import Stored
from acq_isl.sim import KnowsCells, Rectangle, SimulatedScope, Taken, View
from acq_isl.stack import Float32Image, Prediction, StackKey, StackRequest

_MOST_FIELDS = 64  # whose pictures are held against the truth: each costs up to a second
_DRIFT_UM = 40.0
_NO_CELLS = (
    "Choices, triggers and cells: the recording does not say which cells there are, and its stains have no "
    "absolute scale. Labels are held against the recorded stains, each from its 1st to its 99.8th percentile."
)
_DARK = "Everything else: no light reached the specimen in the overview."
_TOO_MANY = f"Labels and choices beyond the first {_MOST_FIELDS} fields."


def marked(
    record: RunRecord, experiment: Experiment, session: Session, stored: Stored, scope: SimulatedScope | None
) -> RunRecord:
    """The record with its scorecard; unchanged after a run on a real microscope, or without any image."""
    if scope is None or not session.acquired:
        return record
    try:
        return replace(
            record, scorecard=_scorecard(_Run(experiment, session, stored, scope), record.decisions)
        )
    except AcqIslError as error:
        return replace(record, warnings=(*record.warnings, f"this run is not graded: {error}"))


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    experiment: Experiment
    session: Session
    stored: Stored
    scope: SimulatedScope

    @property
    def knows_cells(self) -> bool:
        return isinstance(self.scope.specimen, KnowsCells)


def match_light(
    acquired: Sequence[StackRequest], taken: Sequence[Taken], decisions: Sequence[Mapping[str, Any]]
) -> dict[StackKey, tuple[Taken, ...]]:
    """Exposures of every stack: those in its channel between two entries of the ledger's book of light.

    Parameters
    ----------
    acquired : sequence of StackRequest
        In the order of acquisition.
    taken : sequence of Taken
    decisions : sequence of mapping
        Lines of the ledger; it books the light of each stack once it is acquired.
    """
    booked = [line for line in decisions if line.get("kind") == "dose"]
    found, began_s = {}, -math.inf
    for request, line in zip(acquired, booked, strict=False):
        ended_s = datetime.datetime.fromisoformat(str(line["time"])).timestamp()
        found[request.key] = tuple(
            one for one in taken if began_s < one.unix_s <= ended_s and one.light.channel == request.preset
        )
        began_s = ended_s
    return found


def _scorecard(run: _Run, decisions: Sequence[Mapping[str, Any]]) -> Scorecard:
    experiment, session = run.experiment, run.session
    taken = match_light(session.acquired, run.scope.timeline.taken, decisions)
    imaged = [_imaged(run, one, taken[one.key]) for one in session.acquired if taken.get(one.key)]
    seen = [field for field in session.fields.values() if taken.get(field.request.key)]
    fields = [_field(run, one, taken[one.request.key], number) for number, one in enumerate(seen)]
    overview, rules = {one.request.key for one in seen}, measurements(experiment)
    label = session.labels.name_in_model(rules[0].label) if rules else None  # as the specimen names it
    stained = {
        (one.request.key.time, one.request.key.position) for one in imaged if one.request.key not in overview
    }
    revisited = {key for key in overview if (key.time, key.position) in stained}
    aside, height = aiming.score_targeting(label, fields, imaged)
    triggers = (grading.score_trigger(one, fields) for one in experiment.triggers)
    models = {one.name: one.model for one in session.labels.styles}
    notes = ((not seen, _DARK), (not run.knows_cells, _NO_CELLS), (len(seen) > _MOST_FIELDS, _TOO_MANY))
    return Scorecard(
        labels=tuple(replace(one, model=models.get(one.label, "")) for one in grading.score_labels(fields)),
        choice=grading.score_choice(experiment.choose, fields) if experiment.choose else None,
        triggers=tuple(one for one in triggers if one is not None),
        cells=grading.score_cells(label, fields, revisited) if label and revisited else None,
        light=aiming.score_light(imaged, overview),
        aside_um=aside,
        out_of_focus_um=height,
        decision_s=Spread.of([field.decided_s for field in fields]),
        action_s=aiming.score_action(fields, imaged),
        ungraded=tuple(note for applies, note in notes if applies),
    )


def _imaged(run: _Run, request: StackRequest, taken: tuple[Taken, ...]) -> Imaged:
    cells = _cells(run, taken[0], around_um=_DRIFT_UM) or () if request.key not in run.session.fields else ()
    return Imaged(request, tuple(map(_lit, taken)), cells)


def _lit(taken: Taken) -> Lit:
    light = taken.light
    return Lit(taken.unix_s, light.x_um, light.y_um, light.z_um, light.dose_ms)


def _field(run: _Run, field: Field, taken: tuple[Taken, ...], number: int) -> KnownField:
    chosen = field.choice is not None and field.choice.chosen
    known = KnownField(field.request.key, chosen, math.nan, (), {}, {}, _cells(run, taken[-1]))
    if not field.predictions:
        return known
    times = [one.times for one in field.predictions]
    engine_ms = max(one.transfer_ms + one.wait_ms + one.infer_ms + one.decode_ms for one in times)
    decide_ms = statistics.median(run.session.decide_ms or [0.0])
    known = replace(known, decided_s=(engine_ms + decide_ms) / 1000)
    if number < _MOST_FIELDS:
        # Not through the scope: after a planted fault its core may not answer, and the truth needs none.
        true = run.scope.specimen.truth(_view(run, field.predictions[0], taken[-1]))
        for one in field.predictions:
            known = _compared(run, known, run.stored.prediction(known.key, one.model), true)
    return known


def _compared(run: _Run, known: KnownField, full: Prediction, true: Mapping[str, Float32Image]) -> KnownField:
    """With what a model's pictures say: labels, and what the rules measure on prediction and truth."""
    rules = [one for one in measurements(run.experiment) if one.label in full.labels]
    bare = {label: run.session.labels.name_in_model(label) for label in full.labels}
    truth = {label: true[name] for label, name in bare.items() if name in true}
    if not run.knows_cells:
        scaled: dict[str, Float32Image] = {name: grading.to_bright_end(one) for name, one in truth.items()}
        return replace(known, labels=known.labels + grading.pair_labels(full, scaled, rules))
    predicted: dict[Measurement, float] = {one: measure(full, one).value for one in rules}
    return replace(
        known,
        labels=known.labels + grading.pair_labels(full, truth, rules),
        predicted={**known.predicted, **predicted},
        true={**known.true, **grading.measure_truth(full, truth, rules)},
    )


def _view(run: _Run, prediction: Prediction, last: Taken) -> View:
    info, light = prediction.info, last.light
    return View(
        x_um=light.x_um,
        y_um=light.y_um,
        z_um=light.z_um,
        channel=light.channel,
        pixel_size_um=info.pixel_size_um,
        shape=info.shape,
        time_s=light.time_s,
        history=run.scope.timeline.history,
    )


def _cells(run: _Run, at: Taken, around_um: float = 0.0) -> tuple[KnownCell, ...] | None:
    """Cells in an exposure and around it; None where they are not known."""
    specimen, light = run.scope.specimen, at.light
    if not isinstance(specimen, KnowsCells):
        return None
    area = Rectangle.around(light.x_um, light.y_um, (light.height_um + around_um, light.width_um + around_um))
    cells = specimen.cells(area, light.time_s, run.scope.timeline.history)
    return tuple(KnownCell(cell.id, cell.x_um, cell.y_um, cell.z_um, cell.markers) for cell in cells)
