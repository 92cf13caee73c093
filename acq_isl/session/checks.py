"""What in an experiment can never come true, or is odd, by its key: known before anything is opened. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from acq_isl.errors import AcqIslError, ActionRefused, ExperimentError, suggest
from acq_isl.experiment.experiment import Experiment, NoEngine
from acq_isl.experiment.planning import Cycle, visits
from acq_isl.rules import Area, AreaFraction, Confluency, Measurement, Trigger, Watershed
from acq_isl.rules.actions import check_request
from acq_isl.rules.doing import ACTIONS as DOING
from acq_isl.rules.doing import ChangePlan
from acq_isl.rules.imaging import ImageAround, ImageStack, Imaging
from acq_isl.rules.light import LightLedger
from acq_isl.rules.lint import Lint
from acq_isl.rules.measurements import LineMeasurement, ObjectMeasurement
from acq_isl.rules.over_time import innermost
from acq_isl.rules.rankings import Quota
from acq_isl.rules.series import well_name
from acq_isl.session.needs import check_light
from acq_isl.session.trust import CHECK, GUARD, check_settings, check_stacks, drawn_fields
from acq_isl.stack import StackInfo, StackRequest

_BRIGHTEST = 1.5
"""No predicted pixel lies this far above the bright end of the training truth, which is 1."""
_MOST_FIELDS = 300
"""Of a plan that are asked whether a budget of light leaves room there."""


@dataclass(frozen=True, slots=True)
class Camera:
    """Rows and columns of an image, and its pixel size in um."""

    shape: tuple[int, int]
    pixel_size_um: float

    @property
    def fov_um(self) -> tuple[float, float]:
        """Width and height of the field of view."""
        rows, columns = (side * self.pixel_size_um for side in self.shape)
        return columns, rows


NO_CAMERA = Camera((1, 1), 0.0)
"""Nobody knows how large a field is: what depends on it is not found."""


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


def find_odd(experiment: Experiment, plan: Sequence[Cycle], camera: Camera = NO_CAMERA) -> Iterator[Lint]:
    """What is odd in an experiment beside its conditions, its errors first of each key."""
    stacks = _Stacks(experiment, [request for cycle in plan for request in cycle.requests], camera)
    yield from stacks.lints
    yield from _lint_trust(experiment, stacks)
    try:
        check_light(experiment, plan)
    except ExperimentError as error:
        yield told("limits.light.budgets", error)
    else:
        yield from _lint_budgets(stacks)
    for number, trigger in enumerate(experiment.triggers):
        key = f"triggers.{number}"
        for measurement in trigger.measurements:
            yield from _lint_levels(f"{key}.when", innermost(measurement), camera)
        yield from _lint_action(key, trigger, stacks)
        yield from _lint_idle(key, trigger)
    yield from _lint_choice(experiment, plan)
    for key, rule in (("choose", experiment.choose), ("schedule", experiment.schedule)):
        for measurement in rule.measurements if rule is not None else ():
            yield from _lint_levels(key, innermost(measurement), camera)
    yield from _lint_truth(experiment, stacks)
    rules = [name for name in ("triggers", "choose", "schedule") if getattr(experiment, name)]
    if isinstance(experiment.engine, NoEngine) and rules:
        text = (
            f"{' and '.join(rules)} never decide in this run: nothing is predicted (engine: {{kind: none}})"
        )
        yield Lint(
            "warning",
            "",
            text,
            "leave out engine, or choose afterwards: acq-isl recover RUN --choose",
            "engine",
        )


def told(key: str, error: AcqIslError) -> Lint:
    """An error as a remark on a key."""
    parts = {"wanted": error.wanted, "got": error.got}
    text = "; ".join([error.what, *(f"{name}: {part}" for name, part in parts.items() if part is not None)])
    return Lint("error", "", text, error.fix or "", key)


class _Stacks:
    """All stacks that may be acquired but for those of triggers; what cannot be is remarked."""

    def __init__(self, experiment: Experiment, fields: Sequence[StackRequest], camera: Camera) -> None:
        self.experiment, self.fields, self.camera = experiment, fields, camera
        self.lints: list[Lint] = []
        self._check("overview", fields)
        self.checks = self._others("spot_checks", lambda field: check_stacks(experiment, field))
        self.revisits = self._others("revisit", self._visits)

    @property
    def presets(self) -> set[str]:
        """Of everything that is imaged, by whomever."""
        stacks = (*self.fields, *self.checks, *self.revisits)
        actions = (t.do for t in self.experiment.triggers if isinstance(t.do, Imaging))
        return {each.preset for each in stacks} | {name for action in actions for name in action.channels}

    def _visits(self, field: StackRequest) -> tuple[StackRequest, ...]:
        sequence = self.experiment.revisit
        found = () if sequence is None else visits(sequence, field, field.key.time)
        for visit in found:
            if visit.key == field.key:
                raise ExperimentError(
                    f"the revisit images {visit.preset} again, which would overwrite the overview",
                    fix=f"leave {visit.preset} out of revisit, or make a second preset for it",
                )
        return found

    def _others(
        self, key: str, ask: Callable[[StackRequest], tuple[StackRequest, ...]]
    ) -> tuple[StackRequest, ...]:
        try:
            found = tuple(stack for field in self.fields for stack in ask(field))
        except AcqIslError as error:
            self.lints.append(told(key, error))
            return ()
        self._check(key, found)
        return found

    def _check(self, key: str, stacks: Iterable[StackRequest]) -> None:
        for stack in stacks:
            try:
                check_request(stack, self.experiment.limits)
            except ActionRefused as error:
                self.lints.append(told(key, error))
                return

    def room(self, ask: Callable[[StackRequest], Sequence[StackRequest]]) -> AcqIslError | None:
        """Why budgets of light leave no room for the first stack of what is asked for, on any field."""
        limits, refused = self.experiment.limits.light, None
        if not limits.budgets:
            return None
        ledger = LightLedger(limits, self.camera.fov_um)
        for field in self.fields[:_MOST_FIELDS]:
            ledger.book(field, len(field.z_um))
            for stack in ask(field)[:1]:
                try:
                    ledger.check(stack)
                except ActionRefused as error:
                    refused = refused or error
                else:
                    return None
        return refused


def _lint_trust(experiment: Experiment, stacks: _Stacks) -> Iterator[Lint]:
    """Spot checks and bias guard that ask for what is not said, or that chance never draws."""
    try:
        check_settings(experiment)
    except ExperimentError as error:
        yield told("bias_guard" if "bias guard" in error.what else "spot_checks", error)
        return
    drawn = drawn_fields(experiment, [field.key for field in stacks.fields])
    for what, key in ((CHECK, "spot_checks"), (GUARD, "bias_guard")):
        if what in drawn and not drawn[what]:
            text = f"{key} never draw any of the {len(stacks.fields)} stacks, with this share and seed"
            yield Lint("warning", "", text, "raise the share, or take another seed", f"{key}.share")
    settings = experiment.spot_checks
    if settings is not None and 0 < len(drawn[CHECK]) < settings.least:
        text = (
            f"spot_checks can never judge a label: {len(drawn[CHECK])} stacks drawn, {settings.least} wanted"
        )
        yield Lint("warning", "", text, "lower 'least', or raise the share", "spot_checks.least")


def _lint_budgets(stacks: _Stacks) -> Iterator[Lint]:
    for key, others in (("spot_checks", stacks.checks), ("revisit", stacks.revisits)):
        first: dict[str, StackRequest] = {}
        for stack in others:
            first.setdefault(stack.key.position, stack)
        if first and (error := stacks.room(partial(_of_position, first))) is not None:
            yield told(key, error)
    for number, budget in enumerate(stacks.experiment.limits.light.budgets):
        if not stacks.presets & set(budget.presets):
            text = f"a budget of {' and '.join(budget.presets)} never holds: nothing is imaged through it"
            yield Lint("warning", "", text, "correct its presets", f"limits.light.budgets.{number}.presets")


def _of_position(stacks: Mapping[str, StackRequest], field: StackRequest) -> list[StackRequest]:
    found = stacks.get(field.key.position)
    return [] if found is None else [found]


def _lint_action(key: str, trigger: Trigger, stacks: _Stacks) -> Iterator[Lint]:
    """What a trigger would do, held to plan, limits and budgets on every field."""
    fields, limits, action = stacks.fields, stacks.experiment.limits, trigger.do
    where, do = f"the trigger {trigger.name!r}", f"{key}.do"
    there = {request.key.channel for request in fields}
    if isinstance(action, Imaging):
        if again := there & set(action.channels):
            text = f"images {', '.join(sorted(again))}, which the overview has imaged"
            yield Lint("error", where, text, "leave it out, or make a second preset for it", f"{do}.channels")
        if error := stacks.room(lambda field: [_first_plane(field, action)]):
            yield told(do, error)
    yield from _lint_shape(where, do, trigger)
    if isinstance(action, ChangePlan):
        yield from _lint_change(where, do, action, fields)
    refused: list[ActionRefused] = []
    for request in fields:
        try:
            action.check(announce(request, stacks.camera), limits)
        except ActionRefused as refusal:
            refused.append(refusal)
    if refused and len(refused) == len(fields):
        yield told(do, refused[0])
    elif refused:
        some = f"{len(refused)} of {len(fields)} fields"
        yield Lint("warning", where, f"would leave the limits on {some}: {refused[0]}", "", do)


def _first_plane(field: StackRequest, action: Imaging) -> StackRequest:
    """The least that an action images."""
    key = replace(field.key, channel=action.channels[0])
    middle_um = (min(field.z_um) + max(field.z_um)) / 2
    plane = replace(field, key=key, preset=action.channels[0], exposure_ms=action.exposure_ms)
    return replace(plane, z_um=(middle_um,))


def _lint_shape(where: str, do: str, trigger: Trigger) -> Iterator[Lint]:
    action = trigger.do
    if isinstance(action, ImageAround) and action.rows == action.columns == 1:
        text = "images nothing around the field: 1 row x 1 column is the field itself"
        yield Lint("warning", where, text, "raise rows or columns, or take kind: image", f"{do}.rows")
    if isinstance(action, ImageStack) and action.step_um > 2 * action.range_um:
        text = f"takes no stack: {action.range_um:g} um in steps of {action.step_um:g} um are one plane"
        yield Lint("warning", where, text, "lower step_um", f"{do}.step_um")


def _lint_change(where: str, do: str, action: ChangePlan, fields: Sequence[StackRequest]) -> Iterator[Lint]:
    there, times = {request.key.channel for request in fields}, {request.key.time for request in fields}
    alone = action.exposure_ms is None and action.channels is None
    if action.interval_s is not None and len(times) < 2:
        text = "can never change the interval: the overview has one time point"
        yield Lint(
            "error" if alone else "warning", where, text, "give the overview a time_plan", f"{do}.interval_s"
        )
    if not alone and len(fields) < 2:
        text = "can never change anything: no stack of the overview follows"
        yield Lint("error", where, text, "leave it out, or give the overview a time_plan", do)
    if action.channels is None:
        return
    if unknown := sorted(set(action.channels) - there):
        text = (
            f"would leave only channels that the overview has not; wanted: some of {', '.join(sorted(there))}"
        )
        fix = "name channels of the overview; 'image' takes others"
        yield Lint("error", where, f"{text}; got: {', '.join(unknown)}", fix, f"{do}.channels")
    elif there == set(action.channels) and action.interval_s is None and action.exposure_ms is None:
        yield Lint(
            "warning", where, "changes nothing: these are all channels", "leave one out", f"{do}.channels"
        )


def _lint_idle(key: str, trigger: Trigger) -> Iterator[Lint]:
    """Keys that have no effect beside the others."""
    if trigger.scope in ("object", "field"):
        for name in sorted({"statistic", "require"} & trigger.model_fields_set):
            text = f"has {name!r}, which has no effect with scope: {trigger.scope}"
            yield Lint(
                "warning", f"the trigger {trigger.name!r}", text, "take scope: well or run", f"{key}.{name}"
            )


def _lint_levels(key: str, rule: Measurement, camera: Camera) -> Iterator[Lint]:
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
        text = f"nothing in {rule.label} (predicted) is brighter than {above:g}"
        wanted = "a level between 0 (background) and 1 (the bright end of the training truth)"
        fix = "correct 'above' of the measurement"
        yield Lint("error", "", f"{text}; wanted: {wanted}; got: above: {above:g}", fix, key)
    elif above >= 1 or above < 0:
        some = "hardly any pixel" if above >= 1 else "every pixel"
        text = f"{some} of {rule.label} (predicted) is brighter than {above:g}: labels go from 0 to 1"
        yield Lint("warning", "", text, "", key)
    if 0 < field_um2 <= least_um2:
        text = f"no object of {rule.label} (predicted) can be as large as the field"
        wanted = f"wanted: min_area_um2 below {field_um2:.3g}; got: {least_um2:g}"
        yield Lint("error", "", f"{text}; {wanted}", "correct 'min_area_um2' of the measurement", key)


def _lint_choice(experiment: Experiment, plan: Sequence[Cycle]) -> Iterator[Lint]:
    rule = experiment.choose
    if rule is None:
        if experiment.revisit is not None and experiment.bias_guard is None:
            yield Lint("warning", "", "revisit is never used: nothing is chosen (choose)", "", "revisit")
        return
    fields = min(len(cycle.requests) for cycle in plan)
    wells = min(len({well_name(request.key.position) for request in cycle.requests}) for cycle in plan)
    if not isinstance(rule, Quota) and rule.k > fields:
        text = f"more fields are to be chosen than there are; wanted: choose.k of at most {fields}"
        fix = "choose fewer, or plan more fields in the overview"
        yield Lint("error", "", f"{text}; got: k: {rule.k}", fix, "choose.k")
    elif isinstance(rule, Quota) and rule.k is not None and rule.k < wells:
        text = f"choose leaves out wells: k: {rule.k} in all, of {wells} wells"
        yield Lint("warning", "", text, f"k: {wells * rule.each} for {rule.each} of each well", "choose.k")
    if rule.most(fields, wells) == fields > 1:
        text = f"every field is chosen: choose takes {fields}, and so many fields are there"
        yield Lint("warning", "", text, "", "choose")


def _lint_truth(experiment: Experiment, stacks: _Stacks) -> Iterator[Lint]:
    requests = (*stacks.fields, *stacks.checks, *stacks.revisits)
    imaged = {request.key.channel for request in requests}
    actions = [trigger.do for trigger in experiment.triggers]
    imaged |= set(itertools.chain.from_iterable(a.channels for a in actions if isinstance(a, Imaging)))
    foreign = [action.kind for action in actions if not isinstance(action, (Imaging, *DOING))]
    for label, channel in experiment.truth.items():
        if channel in imaged:
            continue
        what = f"truth compares {label} with {channel}, a channel that this experiment never images"
        key = f"truth.{label}"
        if foreign:
            yield Lint("warning", "", f"{what}, unless {' or '.join(foreign)} does", "", key)
            continue
        fix = f"{suggest(channel, imaged, 'imaged are')}; or add {channel} to revisit"
        yield Lint(
            "error", "", f"{what}; wanted: one of {', '.join(sorted(imaged))}; got: {channel}", fix, key
        )
