"""Whether the numbers and names of an experiment can mean what they say, before anything moves. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import assert_never

from acq_isl.compatibility import Refuse, Resample, Sort, Use, check
from acq_isl.errors import ActionRefused, ExperimentError, suggest
from acq_isl.experiment.experiment import Experiment, measurements
from acq_isl.experiment.planning import Cycle
from acq_isl.rules import (
    Area,
    AreaFraction,
    Best,
    Confluency,
    Diverse,
    Limits,
    Measurement,
    Pareto,
    Trigger,
    Watershed,
    Weighted,
)
from acq_isl.rules.doing import ACTIONS as DOING
from acq_isl.rules.doing import ChangePlan
from acq_isl.rules.imaging import Imaging
from acq_isl.rules.label_names import Labels
from acq_isl.rules.measurements import LineMeasurement, ObjectMeasurement
from acq_isl.rules.over_time import innermost
from acq_isl.rules.series import well_name
from acq_isl.session.explain import lint
from acq_isl.stack import StackInfo, StackRequest

_BRIGHTEST = 1.5
"""No predicted pixel lies this far above the bright end of the training truth, which is 1."""


@dataclasses.dataclass(frozen=True, slots=True)
class Camera:
    """Rows and columns of an image, and its pixel size in um."""

    shape: tuple[int, int]
    pixel_size_um: float

    @property
    def fov_um(self) -> tuple[float, float]:
        """Width and height of the field of view."""
        rows, columns = (side * self.pixel_size_um for side in self.shape)
        return columns, rows


def find_doubts(
    experiment: Experiment, plan: Sequence[Cycle], planned: Sequence[StackRequest], camera: Camera
) -> tuple[str, ...]:
    """What is odd in an experiment, for people; ExperimentError for what can never come true.

    ``planned`` are all stacks that may be acquired, but for those that triggers ask for.
    """
    doubts = [doubt for rule in measurements(experiment) for doubt in _check_levels(innermost(rule), camera)]
    for remark in lint(experiment, plan):
        if remark.level == "error":
            raise ExperimentError(f"{remark.where} {remark.text}", fix=remark.fix or None)
        doubts.append(str(remark))
    for trigger in experiment.triggers:
        doubts += _check_action(trigger, plan, experiment.limits, camera)
    doubts += _check_choice(experiment, plan)
    doubts += _check_truth(experiment, planned)
    return tuple(dict.fromkeys(doubts))


def check_fit(labels: Labels, plan: Iterable[Cycle], camera: Camera) -> tuple[str, ...]:
    """What models would remark on the planned stacks; ExperimentError for one that all would refuse."""
    asked: dict[object, StackRequest] = {}  # fields of a run are many, their stacks alike
    for request in (request for cycle in plan for request in cycle.requests if request.predict):
        heights = tuple(round(z - request.z_um[0], 4) for z in request.z_um)
        asked.setdefault((heights, request.modality, request.polarity), request)
    doubts: dict[str, None] = {}
    for request in asked.values():
        refused: dict[str, Refuse] = {}
        for name, manifest in labels.manifests.items():
            verdict = check(manifest, announce(request, camera))
            match verdict:
                case Refuse(reason=reason):
                    refused[f"{name} would refuse {request.key}: {reason}"] = verdict
                case Resample(warnings=notes) | Use(notes=notes) | Sort(notes=notes):
                    doubts |= dict.fromkeys(f"{name}: {note}" for note in notes)
                case _:
                    assert_never(verdict)
        if refused and len(refused) == len(labels.manifests):
            fixes = " or ".join(dict.fromkeys(refusal.fix for refusal in refused.values()))
            fix = f"{fixes}; or engine: {{kind: none}} to acquire without predictions"
            raise ExperimentError("; ".join(refused), fix=fix)
        doubts |= dict.fromkeys(refused)
    return tuple(doubts)


def announce(request: StackRequest, camera: Camera) -> StackInfo:
    """What is known of a stack before it is acquired."""
    return StackInfo(
        key=request.key,
        z_um=request.z_um,
        shape=camera.shape,
        pixel_size_um=camera.pixel_size_um,
        x_um=request.x_um,
        y_um=request.y_um,
        exposure_ms=request.exposure_ms,
        modality=request.modality,
        polarity=request.polarity,
    )


def _check_action(trigger: Trigger, plan: Sequence[Cycle], limits: Limits, camera: Camera) -> Iterator[str]:
    """What a trigger would do, held to the limits on every field before it is decided on any."""
    fields = [request for cycle in plan for request in cycle.requests]
    if isinstance(trigger.do, Imaging):
        again = {request.key.channel for request in fields} & set(trigger.do.channels)
        if again:
            named = ", ".join(sorted(again))
            what = f"the trigger {trigger.name!r} images {named}, which the overview has imaged"
            raise ExperimentError(what, fix="leave it out, or make a second preset for it")
    if isinstance(trigger.do, ChangePlan) and trigger.do.channels is not None:
        there = {request.key.channel for request in fields}
        if unknown := sorted(set(trigger.do.channels) - there):
            raise ExperimentError(
                f"the trigger {trigger.name!r} would leave only channels that the overview has not",
                wanted=f"some of {', '.join(sorted(there))}",
                got=", ".join(unknown),
                fix="name channels of the overview; 'image' takes others",
            )
    refused: list[ActionRefused] = []
    for request in fields:
        try:
            trigger.do.check(announce(request, camera), limits)
        except ActionRefused as error:
            refused.append(error)
    if refused and len(refused) == len(fields):
        raise refused[0]
    if refused:
        some = f"{len(refused)} of {len(fields)} fields"
        yield f"the trigger {trigger.name!r} would leave the limits on {some}: {refused[0]}"


def _check_levels(rule: Measurement, camera: Camera) -> Iterator[str]:
    """Levels of predicted brightness and sizes that a rule looks for."""
    match rule:
        case AreaFraction(above=above) | Area(above=above) | Confluency(above=above):
            least_um2 = 0.0
        case LineMeasurement(above=above):
            least_um2 = 0.0
        case ObjectMeasurement(objects_by=Watershed(above=above, min_area_um2=least_um2)):
            pass
        case _:
            return  # of what other packages measure nothing is known
    field_um2 = math.prod(camera.shape) * camera.pixel_size_um**2
    if above >= _BRIGHTEST:
        raise ExperimentError(
            f"nothing in {rule.label} (predicted) is brighter than {above:g}",
            wanted="a level between 0 (background) and 1 (the bright end of the training truth)",
            got=f"above: {above:g}",
            fix="correct 'above' of the measurement",
        )
    if 0 < field_um2 <= least_um2:
        raise ExperimentError(
            f"no object of {rule.label} (predicted) can be as large as the field",
            wanted=f"min_area_um2 below {field_um2:.3g}",
            got=f"{least_um2:g}",
            fix="correct 'min_area_um2' of the measurement",
        )
    if above >= 1 or above < 0:
        some = "hardly any pixel" if above >= 1 else "every pixel"
        yield f"{some} of {rule.label} (predicted) is brighter than {above:g}: labels go from 0 to 1"


def _check_choice(experiment: Experiment, plan: Sequence[Cycle]) -> Iterator[str]:
    rule = experiment.choose
    if rule is None:
        if experiment.revisit is not None:
            yield "revisit is never used: nothing is chosen (choose)"
        return
    fields = min(len(cycle.requests) for cycle in plan)
    wells = min(len({well_name(request.key.position) for request in cycle.requests}) for cycle in plan)
    if isinstance(rule, Best | Weighted | Diverse | Pareto) and rule.k > fields:
        raise ExperimentError(
            "more fields are to be chosen than there are",
            wanted=f"choose.k of at most {fields}",
            got=f"k: {rule.k}",
            fix="choose fewer, or plan more fields in the overview",
        )
    if rule.most(fields, wells) == fields > 1:
        yield f"every field is chosen: choose takes {fields}, and so many fields are there"


def _check_truth(experiment: Experiment, planned: Sequence[StackRequest]) -> Iterator[str]:
    imaged = {request.key.channel for request in planned}
    actions = [trigger.do for trigger in experiment.triggers]
    imaged |= {channel for action in actions if isinstance(action, Imaging) for channel in action.channels}
    foreign = [action.kind for action in actions if not isinstance(action, (Imaging, *DOING))]
    for label, channel in experiment.truth.items():
        if channel in imaged:
            continue
        what = f"truth compares {label} with {channel}, a channel that this experiment never images"
        if foreign:
            yield f"{what}, unless {' or '.join(foreign)} does"
            continue
        fix = f"{suggest(channel, imaged, 'imaged are')}; or add {channel} to revisit"
        raise ExperimentError(what, wanted=f"one of {', '.join(sorted(imaged))}", got=channel, fix=fix)
