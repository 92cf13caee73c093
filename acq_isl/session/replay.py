"""What other rules or another model would have done in a run: decisions gained, lost, moved; light; recall.

The rules see the outcomes of the run in their order, and nothing else: what the new rules would have caused,
such as a cell that they would have bleached, or a stack taken later, is not known.
"""

from __future__ import annotations

import datetime
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import yaml

from acq_isl.errors import AcqIslError, ActionRefused, ExperimentError
from acq_isl.experiment.experiment import Experiment, measurements
from acq_isl.experiment.planning import visits
from acq_isl.files import load_yaml, read_text
from acq_isl.rules import Decision, Limits, Occasion, check_request
from acq_isl.rules.actions import Message, PlanChange, check_preset
from acq_isl.rules.deciding import Verdict
from acq_isl.rules.label_names import Labels, RunModel
from acq_isl.rules.light import LightLedger
from acq_isl.rules.pixels import PixelToStage
from acq_isl.session.evidence import STORE
from acq_isl.session.measured import MeasuredRun
from acq_isl.session.predict_spool import Models
from acq_isl.session.recover import run_labels
from acq_isl.session.rerun import (
    AsRun,
    Line,
    Logged,
    Rerun,
    StoredOutcomes,
    info_of,
    key_of,
    number,
    planned_requests,
)
from acq_isl.session.truth import read_truth, recall
from acq_isl.stack import Outcome, Prediction, StackKey, StackRequest
from acq_isl.storage.prediction_store import load, stored

CHOICE = "choice"
_UNDONE = ("refused", "failed", "not done")
_RULES = ("choose", "revisit", "triggers", "limits", "plugins")
ChangeKind = Literal["kept", "gained", "lost", "moved"]


@dataclass(frozen=True, slots=True)
class Act:
    """Something done at a field: by which rule (`CHOICE` for a revisit), and the stacks it takes."""

    key: StackKey
    rule: str
    what: str
    stacks: tuple[StackRequest, ...]


@dataclass(frozen=True, slots=True)
class Course:
    """All that rules do in a run."""

    acts: tuple[Act, ...]
    proposed: int
    light_ms: float
    """Exposures of all stacks that the rules take."""
    time_s: float
    """Those, and what a stack took beside its light in this run; NaN if that cannot be told."""
    recall: float
    """Share of the wanted cells in the fields imaged by the rules; NaN where no truth is known."""


@dataclass(frozen=True, slots=True)
class Change:
    """A decision in both courses, or in one; ``moved`` is the same rule's decision on another field."""

    kind: ChangeKind
    rule: str
    what: str
    before: StackKey | None
    after: StackKey | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A run as it was, and as it would have been."""

    before: Course
    after: Course
    changes: tuple[Change, ...]
    fields: Mapping[StackKey, StackRequest]
    label: str
    """Whose cells the recall is about."""
    notes: tuple[str, ...]


def read_rules(path: Path, as_run: Experiment) -> Experiment:
    """The run's experiment with the rules of a file, which may be an experiment or hold nothing but rules.

    ExperimentError if it cannot be read, or says something that cannot be done.
    """
    try:
        new = load_yaml(read_text(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ExperimentError(
            f"the rules in {path} cannot be read", got=str(error), fix="check it"
        ) from error
    if not isinstance(new, dict) or not set(new) & set(_RULES):
        raise ExperimentError(f"{path} holds no rules", wanted=f"at least one of {', '.join(_RULES[:3])}")
    base = {key: value for key, value in yaml.safe_load(as_run.to_yaml()).items() if key not in _RULES}
    known = Experiment.model_fields.keys() - set(_RULES)
    rules = {key: value for key, value in new.items() if key not in known}  # and what nobody knows
    experiment = Experiment.from_text(yaml.safe_dump({**base, **rules}), str(path))
    experiment._folder = path.resolve().parent
    return experiment


def compare_rules(
    folder: Path, rules: Path, models: Models | None = None, tell: Callable[[str], object] = str
) -> Comparison:
    """Show a run's outcomes to the rules of a file.

    With ``models`` the measured stacks are predicted anew. ExperimentError, ModelError or StorageError if the
    run or the rules cannot be read.
    """
    logged, requests = Logged.read(folder), planned_requests(folder)
    was = _as_run(folder, logged)
    experiment = read_rules(rules, was.experiment)
    labels = was.labels if models is None else run_labels(experiment, models)
    _check_labels(experiment, labels)
    outcomes = _Outcomes(folder, logged, requests, labels)
    shown = outcomes.stored() if models is None else outcomes.predicted(models, tell)
    cost = _Cost(logged)
    before = _acts_as_run(logged, was.experiment, requests)
    rerun = Rerun(AsRun(experiment, labels), requests, logged)
    demoted_after = outcomes.demoted_after if models is None else lambda time: {}
    after, proposed = _acts_of(rerun, requests, shown, demoted_after)
    label = next((labels.name_in_model(r.first_label) for r in measurements(experiment) if r.labels), "")
    truth = read_truth(folder)

    def course(acts: Sequence[Act], undone: int) -> Course:
        imaged = {(act.key.time, act.key.position) for act in acts if act.stacks}
        stacks = [stack for act in acts for stack in act.stacks]
        return Course(tuple(acts), undone, *cost.of(stacks), recall(label, truth, imaged))

    undone = sum(1 for _ in logged.of("proposed"))
    notes = outcomes.notes + (() if truth else ("the run kept no truth, so recall is not known",))
    return Comparison(
        course(before, undone), course(after, proposed), compare(before, after), requests, label, notes
    )


def _as_run(folder: Path, logged: Logged) -> AsRun:
    lines = list(logged.of("run"))
    if lines:
        return AsRun.of(lines[-1])
    return AsRun(Experiment.from_yaml(folder / "experiment.yaml"), Labels([RunModel()]))


def _check_labels(experiment: Experiment, labels: Labels) -> None:
    for rule in measurements(experiment):
        for label in set(rule.labels) - set(labels.names) if labels.names else ():
            raise ExperimentError(
                f"the model does not predict {label!r}",
                wanted=f"one of {', '.join(labels.names)}",
                fix="correct the label in the rules, or name a model that predicts it",
            )


Shown = tuple[Outcome, float, Mapping[str, str]]
"""An outcome, the age of its field in s, and why labels were only proposed then."""


class _Outcomes:
    """What the rules are shown, in the order in which the run saw it."""

    def __init__(
        self, folder: Path, logged: Logged, requests: Mapping[StackKey, StackRequest], labels: Labels
    ) -> None:
        self._folder, self._logged, self._requests, self._labels = folder, logged, requests, labels
        self._seen = [line for line in logged.of("outcome") if line["state"] != "not predicted"]
        self.notes: tuple[str, ...] = ()

    def stored(self) -> Iterable[Shown]:
        known = StoredOutcomes(self._folder, self._logged, self._requests)
        if self._seen:
            return (
                (known.get(line), number(line["age_s"]), _demoted(self._logged, line["n"]))
                for line in self._seen
            )
        path = self._folder / STORE
        names = stored(path) if path.exists() else ()
        self.notes = ("an older version made this run: outcomes are shown in the order of the store",)
        return ((load(path, name), math.nan, {}) for name in names)

    def demoted_after(self, time: int) -> Mapping[str, str]:
        """Why labels were only proposed when the fields of a time point were ranked."""
        later = (line["n"] for line in self._seen if key_of(line).time > time)
        return _demoted(self._logged, min(later, default=math.inf))

    def predicted(self, models: Models, tell: Callable[[str], object]) -> Iterable[Shown]:
        """Every stack again, by other models, which spot checks said nothing of; what was not measured to its
        end is left out."""
        measured = MeasuredRun(self._folder)
        ages: dict[StackKey, float] = {key_of(line): number(line["age_s"]) for line in self._seen}
        keys = [*ages, *(key for key in self._requests if key not in ages)]
        for place, key in enumerate(keys, start=1):
            tell(f"predicting {place} of {len(keys)}")
            try:
                stack = measured.stack(self._requests[key])
            except (AcqIslError, KeyError):
                continue
            for outcome in models.predict(stack, self._labels.models):
                yield outcome, ages.get(key, math.nan), {}


def _demoted(logged: Logged, before: float) -> dict[str, str]:
    """Why labels were only proposed, as spot checks had found before a line of the ledger."""
    lines = (line for line in logged.of("trust") if line["n"] < before)
    return {line["label"]: line["why"] for line in lines if line["state"] == "propose only"}


def _acts_as_run(
    logged: Logged, experiment: Experiment, requests: Mapping[StackKey, StackRequest]
) -> list[Act]:
    """What was done, as the ledger says: actions that were carried out, and fields that were revisited."""
    triggers = {trigger.name: trigger for trigger in experiment.triggers}
    plan, found = PlannedStacks(experiment, requests), list[Act]()
    chosen: dict[StackKey, Line] = {}
    for line in logged.of("decision", "choice"):
        if line["kind"] == "choice":
            chosen[key_of(line)] = line
        elif line["what"] != "nothing" and not str(line["done"]).startswith(_UNDONE):
            trigger = triggers.get(line["rule"])
            action = trigger.do if trigger else None
            value = number(line["value"])
            decision = Decision(key_of(line), line["rule"], line["what"], line["why"], value, 0.0, action)
            found.append(plan.act(decision))
    revisited = [key for key, line in chosen.items() if line["chosen"] and experiment.revisit is not None]
    return found + [plan.revisit(key) for key in revisited]


def _acts_of(
    rerun: Rerun,
    requests: Mapping[StackKey, StackRequest],
    shown: Iterable[Shown],
    demoted_after: Callable[[int], Mapping[str, str]],
) -> tuple[list[Act], int]:
    """What rules do about outcomes, and how much they only propose.

    ``demoted_after`` says why labels were only proposed once a time point was over.
    """
    plan = PlannedStacks(rerun.experiment, requests)
    verdicts, seen = list[Verdict](), dict[StackKey, None]()
    rerun.expect(list(requests))
    for outcome, age_s, demoted in shown:
        seen[outcome.info.key] = None
        rerun.take(outcome)
        verdicts += rerun.decide(outcome.info.key, outcome.model, age_s, demoted)
    for time in sorted({key.time for key in seen}):
        verdicts += rerun.close(time)
    found = [plan.act(verdict.decision) for verdict in verdicts if verdict.kind == "act"]
    proposed = sum(verdict.kind == "proposed" for verdict in verdicts)
    order = [key for key in requests if key in seen] or list(seen)
    for time in dict.fromkeys(key.time for key in order):
        why = rerun.why_propose(demoted_after(time))
        for choice in rerun.choose([key for key in order if key.time == time]):
            if choice.chosen and why:
                proposed += 1
            elif choice.chosen and rerun.experiment.revisit is not None:
                found.append(plan.revisit(choice.key))
    return found, proposed


class PlannedStacks:
    """The stacks that actions and revisits would take; each is imaged once, as in a run."""

    def __init__(self, experiment: Experiment, requests: Mapping[StackKey, StackRequest]) -> None:
        self._experiment, self._requests = experiment, requests
        self._taken: set[StackKey] = set(requests)
        self._light = LightLedger(experiment.limits.light)

    def act(self, decision: Decision) -> Act:
        recorder = _Recorder(self._experiment.limits, self._light)
        request = self._requests.get(decision.key)
        what = decision.what
        if request is not None and decision.action is not None:
            try:
                decision.action.carry_out(_occasion(request, decision), recorder)
            except ActionRefused as refused:
                what += f" (would be refused: {refused.what})"
            except Exception as error:  # noqa: BLE001  a plug-in may need more than a plan
                what += f" (its light is not known: {error})"
        return Act(decision.key, decision.rule, what, self._new(recorder.asked))

    def revisit(self, key: StackKey) -> Act:
        sequence, request = self._experiment.revisit, self._requests.get(key)
        stacks = visits(sequence, request, key.time) if sequence is not None and request is not None else ()
        presets = ", ".join(dict.fromkeys(stack.preset for stack in stacks))
        return Act(key, CHOICE, f"revisit in {presets}" if presets else "revisit", self._new(stacks))

    def _new(self, stacks: Iterable[StackRequest]) -> tuple[StackRequest, ...]:
        found = tuple(stack for stack in stacks if stack.key not in self._taken)
        self._taken |= {stack.key for stack in found}
        return found


def _occasion(request: StackRequest, decision: Decision) -> Occasion:
    """An occasion without pictures: only where and why."""
    plain = replace(request, camera="", keep_shutter_open=False, autofocus=None)
    nothing = np.zeros((0, 1, 1), np.float32)
    prediction = Prediction(info_of(request, request.key), (), nothing, nothing, "", "", "")
    return Occasion(plain, prediction, decision)


@dataclass(slots=True)
class _Recorder:
    """`ActionTools` that note what would be imaged, and touch nothing and nobody."""

    limits: Limits
    light: LightLedger
    asked: list[StackRequest] = field(default_factory=list)

    @property
    def pixel_to_stage(self) -> PixelToStage:
        raise ActionRefused("where pixels lie on the stage is not known afterwards")

    def set_preset(self, group: str, preset: str) -> None:
        check_preset(f"set {group} to {preset}", group, preset, self.limits)

    def set_property(self, device: str, name: str, value: str) -> None: ...

    def move(self, x_um: float, y_um: float, z_um: float | None) -> None: ...

    def acquire(self, request: StackRequest) -> None:
        check_request(request, self.limits)
        self.light.check(request)
        self.light.book(request, len(request.z_um))
        self.asked.append(request)

    def focus(self, field: StackRequest, device: str) -> float:
        return 0.0

    def wait(self, seconds: float) -> None: ...

    def pause(self, why: str) -> None: ...

    def stop(self, why: str) -> None: ...

    def change(self, change: PlanChange) -> str:
        return "not changed"

    def notify(self, message: Message) -> str:
        return "nobody was told"

    def call(self, function: str) -> str:
        return "not called"


class _Cost:
    """Light and time of stacks; what a stack takes beside its light is the median of the run's own."""

    def __init__(self, logged: Logged) -> None:
        doses = [line for line in logged.lines if line["kind"] == "dose"]
        spans = []
        for earlier, later in itertools.pairwise(doses):
            gap_s = _unix_s(later) - _unix_s(earlier) - later["exposure_ms"] / 1000
            spans.append(max(gap_s, 0.0))
        self._beside_s = statistics.median(spans) if spans else math.nan

    def of(self, stacks: Sequence[StackRequest]) -> tuple[float, float]:
        """Milliseconds of light, and seconds."""
        light_ms = sum(stack.exposure_ms * len(stack.z_um) for stack in stacks)
        return light_ms, light_ms / 1000 + len(stacks) * self._beside_s if stacks else 0.0


def _unix_s(line: Line) -> float:
    return datetime.datetime.fromisoformat(str(line["time"])).timestamp()


def compare(before: Sequence[Act], after: Sequence[Act]) -> tuple[Change, ...]:
    """Decisions in both courses and in one; one on another field of the same time point moved."""
    old, new = ({(act.rule, act.key): act for act in acts} for acts in (before, after))
    changes = [Change("kept", *_names(new[at]), at[1], at[1]) for at in old if at in new]
    lost = [act for at, act in old.items() if at not in new]
    for act in (act for at, act in new.items() if at not in old):
        twin = next((one for one in lost if (one.rule, one.key.time) == (act.rule, act.key.time)), None)
        if twin is None:
            changes.append(Change("gained", *_names(act), None, act.key))
        else:
            lost.remove(twin)
            changes.append(Change("moved", *_names(act), twin.key, act.key))
    return (*changes, *(Change("lost", *_names(act), act.key, None) for act in lost))


def _names(act: Act) -> tuple[str, str]:
    return act.rule, act.what


def count(changes: Iterable[Change]) -> dict[ChangeKind, int]:
    """How many of each kind."""
    found = Counter(change.kind for change in changes)
    kinds: tuple[ChangeKind, ...] = ("kept", "gained", "lost", "moved")
    return {kind: found[kind] for kind in kinds}
