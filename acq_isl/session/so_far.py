"""How far a run came, as its folder tells: to finish it, and to write its report again."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from acq_isl.errors import StorageError
from acq_isl.experiment.experiment import Experiment, measurements
from acq_isl.experiment.planning import Cycle
from acq_isl.processing.display import preview
from acq_isl.rules import Choice
from acq_isl.rules.cache import Ask, MeasurementCache
from acq_isl.rules.label_names import Labels
from acq_isl.rules.light import LightLedger
from acq_isl.session.evidence import LEDGERS, STORE
from acq_isl.session.fields import Field
from acq_isl.session.measured import MeasuredRun
from acq_isl.session.saved_plan import SavedPlan
from acq_isl.stack import Outcome, Prediction, StackKey, StackRequest
from acq_isl.storage.decision_log import read as read_ledger
from acq_isl.storage.prediction_store import find, load
from acq_isl.stream.accounts import INTERRUPTED, SliceAccounts

_CHOICE = TypeAdapter(Choice)


@dataclass(slots=True, eq=False)
class SoFar:
    """A run that was cut off; has what a `Session` has at its end."""

    experiment: Experiment
    plan: SavedPlan
    labels: Labels
    measured: MeasuredRun
    decisions: tuple[dict[str, Any], ...]
    fields: dict[StackKey, Field] = field(default_factory=dict)
    """Overview stacks of which all slices are there."""
    cut_off: list[StackRequest] = field(default_factory=list)
    """Overview stacks of which some are."""
    asked: list[StackRequest] = field(default_factory=list)
    acquired: list[StackRequest] = field(default_factory=list)
    decide_ms: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    began: list[tuple[Cycle, float]] = field(default_factory=list)
    cache: MeasurementCache = field(default_factory=MeasurementCache)

    @property
    def cycles(self) -> tuple[Cycle, ...]:
        return self.plan.cycles

    @property
    def dropped(self) -> set[StackKey]:
        """What an action left out of the plan is not known any more."""
        return set()

    @property
    def light(self) -> LightLedger:
        """All light of the run, as its ledger has it."""
        ledger = LightLedger(self.experiment.limits.light)
        ledger.take_up(self.decisions)
        return ledger

    @property
    def left(self) -> int:
        """Overview stacks that were not imaged, or not to their end."""
        return sum(len(cycle.requests) for cycle in self.plan.cycles) - len(self.fields)

    @property
    def fired(self) -> Counter[str]:
        """How often each trigger has acted."""
        lines = (line for line in self.decisions if line["kind"] == "decision" and line["what"] != "nothing")
        return Counter(str(line["rule"]) for line in lines)

    @property
    def visits(self) -> int:
        """Places that an operator went to."""
        return len({key.position for key in self.measured.keys if key.position.startswith("visit_")})

    def take(self, outcome: Outcome) -> None:
        """Keep an outcome, measured and reduced as a session does."""
        if isinstance(outcome, Prediction):
            outcome = self.labels.rename(outcome)
            for rule in measurements(self.experiment):
                if self.labels.owner(rule.label) == outcome.model:
                    self.cache.measure(outcome, rule)
            outcome = preview(outcome)
        self.fields[outcome.info.key].answers[outcome.model] = outcome

    def book(self, accounts: SliceAccounts, without: Collection[StackKey] = ()) -> SliceAccounts:
        """Count every slice on disk, but those of stacks that somebody else counts."""
        for _ in range(self.measured.captured - sum(map(self.measured.planes, without))):
            accounts.capture()
        for key, one in self.fields.items():
            if key not in without:
                status = one.status or "spooled"
                why = "in the measured data: it was not predicted" if status == "spooled" else ""
                accounts.end(status, why, self.measured.planes(key))
        for request in self.cut_off:
            why = "in the measured data: the stack was cut off"
            accounts.end("spooled", why, self.measured.planes(request.key))
        for request in self.acquired:
            if request.key not in self.fields:
                accounts.end("not wanted", "measured only", len(request.z_um))
        if self.measured.replaced:
            accounts.end("not wanted", INTERRUPTED, self.measured.replaced)
        return accounts


def without_skipped(plan: SavedPlan, lines: Sequence[dict[str, Any]]) -> SavedPlan:
    """A plan without the fields that the schedule of the run left out."""
    skipped = {
        (line["time_point"], field["position"])
        for line in lines
        if line["kind"] == "schedule"
        for field in line["fields"]
        if not field["due"]
    }
    kept = [
        replace(
            cycle, requests=tuple(r for r in cycle.requests if (r.key.time, r.key.position) not in skipped)
        )
        for cycle in plan.cycles
    ]
    return plan.model_copy(update={"cycles": tuple(cycle for cycle in kept if cycle.requests)})


def read_so_far(folder: Path, experiment: Experiment, labels: Labels, ask: Ask | None = None) -> SoFar:
    """What was measured, predicted and chosen in a run; StorageError if that cannot be read."""
    decisions, problems = read_decisions(folder)
    cache = MeasurementCache(ask)
    found = SoFar(experiment, SavedPlan.read(folder), labels, MeasuredRun(folder), decisions, cache=cache)
    found.warnings += problems
    found.plan = without_skipped(found.plan, decisions)
    planned = [request for cycle in found.plan.cycles for request in cycle.requests]
    for request in planned:
        planes = found.measured.planes(request.key)
        if planes == len(request.z_um):
            found.fields[request.key] = Field(request, labels.models)
            _take_stored(found, folder, request.key)
        elif planes:
            found.cut_off.append(request)
            told = f"{request.key} was cut off: {planes} of {len(request.z_um)} slices were captured"
            found.warnings.append(told)
    others = found.measured.keys - {request.key: None for request in planned}.keys()
    found.acquired = [one.request for one in found.fields.values()] + [
        _other(key, found.measured.planes(key)) for key in found.measured.keys if key in others
    ]
    found.asked = [*found.acquired, *found.cut_off]
    for choice in choices_of(decisions):
        if choice.key in found.fields:
            found.fields[choice.key].choice = choice
    return found


def _take_stored(found: SoFar, folder: Path, key: StackKey) -> None:
    if not (folder / STORE).exists():
        return
    for model in found.labels.models:
        for name in find(folder / STORE, key, model)[-1:]:
            found.take(load(folder / STORE, name))


def _other(key: StackKey, planes: int) -> StackRequest:
    """A stack that was imaged beside the overview, as far as reading it back needs."""
    return StackRequest(key, 0.0, 0.0, tuple(map(float, range(planes))), "", key.channel, 0.0, predict=False)


def read_decisions(folder: Path) -> tuple[tuple[dict[str, Any], ...], list[str]]:
    """The lines of a run's ledgers, and what is wrong with them."""
    lines: list[dict[str, Any]] = []
    problems = []
    for name in LEDGERS:
        if name == LEDGERS[0] or (folder / name).exists():
            try:
                lines += read_ledger(folder / name)
            except StorageError as error:
                problems.append(str(error))
    return tuple(lines), problems


def choices_of(lines: Sequence[dict[str, Any]]) -> list[Choice]:
    names = {one.name for one in fields(Choice)}
    found = []
    for line in lines:
        if line["kind"] == "choice":
            try:
                found.append(_CHOICE.validate_python({name: line[name] for name in names}))
            except (ValidationError, KeyError):  # not finite, or of another version
                continue
    return found


def duration_s(lines: Sequence[dict[str, Any]]) -> float:
    """From the first line of a ledger to the last."""
    times = [datetime.datetime.fromisoformat(str(line["time"])).timestamp() for line in lines]
    return max(times) - min(times) if times else 0.0
