"""An experiment in plain words: every rule, what is odd in it, what it may cost. Nothing is moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from acq_isl.experiment.experiment import Experiment, measurements
from acq_isl.experiment.planning import Cycle, Optics, Place, cycles, visits
from acq_isl.rules import Decision, Trigger
from acq_isl.rules.conditions import describe
from acq_isl.rules.label_names import Labels
from acq_isl.rules.lint import Lint, lint_action, lint_model, lint_ranking, lint_schedule, lint_trigger
from acq_isl.rules.series import ALL_FIELDS, well_name
from acq_isl.session.checks import NO_CAMERA, Camera, find_odd
from acq_isl.session.replay import Act, PlannedStacks
from acq_isl.session.trust import GUARD, check_stacks, drawn_fields, explain_trust
from acq_isl.stack import StackRequest

_FIELD_UM = (200.0, 200.0)  # where nobody says: it counts for grids only that are given by their extent
_UNUSED = "names fields, and nothing is done at them"
_SCOPES = {
    "object": "an object of a field",
    "field": "a field",
    "well": "the {statistic} of the fields of a well",
    "run": "the {statistic} of all fields of a time point",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """Light of one rule in one channel, at worst."""

    rule: str
    channel: str
    ms_per_field: float
    times: int
    """How many fields, or how often in the run."""

    @property
    def total_s(self) -> float:
        return self.ms_per_field * self.times / 1e3


@dataclass(frozen=True, slots=True)
class Explained:
    """What `acq-isl explain` says: sentences, worst costs, and remarks."""

    sentences: tuple[str, ...]
    costs: tuple[Cost, ...]
    lints: tuple[Lint, ...]


def plan_without_scope(experiment: Experiment) -> tuple[Cycle, ...]:
    """The overview as if the stage stood at 0; errors as of `acq_isl.experiment.planning.cycles`."""
    optics = Optics(experiment.optics.modality, experiment.optics.polarity)
    return cycles(experiment.overview, Place(0.0, 0.0, 0.0, _FIELD_UM), optics)


def explain(experiment: Experiment, plan: Sequence[Cycle], labels: Labels | None) -> Explained:
    """Everything there is to say of an experiment; ``labels`` are those of its models, if they are known."""
    return Explained(
        tuple(_sentences(experiment, plan)), tuple(_costs(experiment, plan)), lint(experiment, plan, labels)
    )


def lint(
    experiment: Experiment, plan: Sequence[Cycle], labels: Labels | None = None, camera: Camera = NO_CAMERA
) -> tuple[Lint, ...]:
    """What is odd in an experiment, errors first."""
    found = [*_lint_rules(experiment, plan), *find_odd(experiment, plan, camera)]
    found += () if labels is None else lint_labels(experiment, labels)
    return tuple(dict.fromkeys(sorted(found, key=lambda remark: remark.level != "error")))


def _at(key: str, part: str, remarks: Iterable[Lint]) -> list[Lint]:
    """Remarks with their keys as they stand in the file; one that names none is about ``part``."""
    return [replace(each, key=".".join(filter(None, (key, each.key or part)))) for each in remarks]


def lint_labels(experiment: Experiment, labels: Labels) -> Iterator[Lint]:
    """What rules and actions look for that the models of an experiment do not have."""
    for number, trigger in enumerate(experiment.triggers):
        key, where = f"triggers.{number}", f"the trigger {trigger.name!r}"
        yield from _at(key, "when", lint_model(where, trigger.measurements, labels))
        yield from _at(key, "do.label", lint_action(where, trigger.do, labels))
    if experiment.choose is not None:
        yield from _at("choose", "", lint_model("choose", experiment.choose.measurements, labels))
    if experiment.schedule is not None:
        yield from _at("schedule", "", lint_model("schedule", experiment.schedule.measurements, labels))


def _lint_rules(experiment: Experiment, plan: Sequence[Cycle]) -> Iterator[Lint]:
    requests = [request for cycle in plan for request in cycle.requests]
    visited = Counter(position for position, _ in {(r.key.position, r.key.time) for r in requests})
    most = max(visited.values(), default=0)
    times = len({cycle.time for cycle in plan})
    starts_s = [cycle.start_s for cycle in plan if not cycle.restarts] or [0.0]
    wells = {well_name(request.key.position) for cycle in plan for request in cycle.requests} - {ALL_FIELDS}
    for number, trigger in enumerate(experiment.triggers):
        key, where = f"triggers.{number}", f"the trigger {trigger.name!r}"
        visits_of_one = times if trigger.scope in ("well", "run") else most
        yield from _at(key, "when", lint_trigger(trigger, visits_of_one, len(wells)))
        if requests and (said := _act_at(requests[0], experiment, trigger).what):
            text, fix = said.strip(" ()"), "change what it does, or the limits"
            yield Lint("warning", where, text, fix, f"{key}.do")
    if experiment.choose is not None:
        yield from _at("choose", "", lint_ranking(experiment.choose, times, len(wells)))
        if experiment.revisit is None:
            yield Lint("warning", "choose", _UNUSED, "write a revisit", "revisit")
    if experiment.schedule is not None:
        lasts_s = max(starts_s) - min(starts_s)
        yield from _at("schedule", "", lint_schedule(experiment.schedule, times, len(visited), lasts_s))


def _sentences(experiment: Experiment, plan: Sequence[Cycle]) -> Iterator[str]:
    fields = {request.key.position for cycle in plan for request in cycle.requests}
    times = {cycle.time for cycle in plan}
    yield (
        f"{experiment.name}: {len(fields)} fields at {len(times)} time point{'s' * (len(times) > 1)}, "
        f"predicted by {', '.join(experiment.model_files)}"
    )
    for each in measurements(experiment):
        yield f"measured on each field: {each.title}, in {each.measured_in.name}"
    if experiment.schedule is not None:
        yield f"schedule: {experiment.schedule.title}"
    for trigger in experiment.triggers:
        yield _sentence(trigger)
    rule = experiment.choose
    if rule is not None:
        there = f"; if at least {rule.require:.0%} of the fields can be ranked" if rule.require < 1 else ""
        done = "imaged again as revisit says" if experiment.revisit is not None else "named, and no more"
        yield f"choose: at each time point {rule.title}{there}; they are {done}"
    yield from explain_trust(experiment, [request.key for cycle in plan for request in cycle.requests])
    if not experiment.triggers and rule is None and experiment.schedule is None:
        yield "no rules: everything is imaged and predicted, nothing is decided"


def _sentence(trigger: Trigger) -> str:
    about = _SCOPES[trigger.scope].format(statistic=trigger.statistic)
    words = f"trigger {trigger.name!r}: when, for {about}, {describe(trigger.when)}: {trigger.do.title}"
    words += f"; at most {trigger.at_most} x"
    if trigger.deadline_s is not None:
        words += f"; not later than {trigger.deadline_s:g} s after the field's last slice"
    return words + f"; it acts between two {'slices' if trigger.react.within == 'slice' else 'stacks'}"


def _costs(experiment: Experiment, plan: Sequence[Cycle]) -> Iterator[Cost]:
    overview = [request for cycle in plan for request in cycle.requests]
    for channel, requests in _by_channel(overview).items():
        yield Cost("overview", channel, max(map(_light_ms, requests)), len(requests))
    if not overview:
        return
    first = overview[0]
    for trigger in experiment.triggers:
        stacks = _act_at(first, experiment, trigger).stacks
        for channel, asked in _by_channel(stacks).items():
            name = f"trigger {trigger.name!r}"
            yield Cost(name, channel, sum(map(_light_ms, asked)), min(trigger.at_most, len(overview)))
    if experiment.choose is not None and experiment.revisit is not None:
        chosen = 0
        for cycle in plan:
            positions = [request.key.position for request in cycle.requests]
            chosen += experiment.choose.most(len(positions), len(set(map(well_name, positions))))
        for channel, asked in _by_channel(visits(experiment.revisit, first, 0)).items():
            yield Cost("choose", channel, sum(map(_light_ms, asked)), chosen)
    drawn = drawn_fields(experiment, [request.key for request in overview])
    for what, fields in drawn.items():
        stacks = check_stacks(experiment, first)
        if what == GUARD:
            stacks = () if experiment.revisit is None else visits(experiment.revisit, first, 0)
        for channel, asked in _by_channel(stacks).items():
            yield Cost(what, channel, sum(map(_light_ms, asked)), len(fields))


def _act_at(field: StackRequest, experiment: Experiment, trigger: Trigger) -> Act:
    """What a trigger does at a field; its ``what`` is empty unless something is in its way."""
    decision = Decision(field.key, trigger.name, "", "", 0.0, 0.0, trigger.do)
    return PlannedStacks(experiment, {field.key: field}).act(decision)


def _light_ms(request: StackRequest) -> float:
    return request.exposure_ms * len(request.z_um)


def _by_channel(requests: Sequence[StackRequest]) -> dict[str, list[StackRequest]]:
    found: dict[str, list[StackRequest]] = {}
    for request in requests:
        found.setdefault(request.preset, []).append(request)
    return found
