"""A finished run's outcomes, shown to rules again in their order: to check a run, or to try other rules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from acq_isl.errors import AcqIslError, StorageError
from acq_isl.experiment.experiment import Experiment, measurements
from acq_isl.manifest import Manifest
from acq_isl.processing.display import preview
from acq_isl.rules import Choice, Measured
from acq_isl.rules.cache import MeasurementCache
from acq_isl.rules.deciding import Decider, Verdict
from acq_isl.rules.label_names import Labels, RunModel
from acq_isl.rules.user import PythonFunction
from acq_isl.session.evidence import LEDGERS, STORE
from acq_isl.session.fields import Field, choose_fields
from acq_isl.session.saved_plan import SavedPlan
from acq_isl.stack import Outcome, Prediction, Refusal, StackInfo, StackKey, StackRequest, Unpredicted
from acq_isl.storage.decision_log import read_intact
from acq_isl.storage.prediction_store import load

Line = Mapping[str, Any]
_KEY = TypeAdapter(StackKey)


def key_of(line: Line) -> StackKey:
    return _KEY.validate_python(line["key"])


@dataclass(frozen=True, slots=True)
class Logged:
    """The ledgers of a run, as far as they hold; ``broken`` says where they do not."""

    lines: tuple[Line, ...]
    recovered: tuple[Line, ...]
    broken: tuple[StorageError, ...]

    @classmethod
    def read(cls, folder: Path) -> Logged:
        lines, error = read_intact(folder / LEDGERS[0])
        recovered, later = read_intact(folder / LEDGERS[1]) if (folder / LEDGERS[1]).exists() else ((), None)
        return cls(lines, recovered, tuple(each for each in (error, later) if each is not None))

    def of(self, *kinds: str) -> Iterator[Line]:
        """Lines of some kinds, of the run and then of what finished it."""
        return (line for line in (*self.lines, *self.recovered) if line["kind"] in kinds)


@dataclass(frozen=True, slots=True)
class AsRun:
    """What a ``run`` line says: the experiment with all defaults, and who predicts."""

    experiment: Experiment
    labels: Labels

    @classmethod
    def of(cls, line: Line) -> AsRun:
        """ExperimentError if this version does not understand the experiment any more."""
        experiment = Experiment.from_text(yaml.safe_dump(line["experiment"]), "the experiment in the ledger")
        models = [
            RunModel(
                model["asked_as"],
                Manifest.model_validate(model["manifest"]) if model["manifest"] else None,
                model["model_sha256"],
            )
            for model in line["models"]
        ]
        return cls(experiment, Labels(models))


class StoredOutcomes:
    """Outcomes of a run as its ledger lists them, with predictions read from the store; by line."""

    def __init__(self, folder: Path, logged: Logged, requests: Mapping[StackKey, StackRequest]) -> None:
        self._store, self._requests = folder / STORE, requests
        self.names: dict[tuple[StackKey, str], str] = {}
        for line in logged.of("stored"):
            self.names.setdefault((key_of(line), line["model"]), line["name"])

    def get(self, line: Line) -> Outcome:
        """StorageError if the prediction was not kept, or cannot be read."""
        key, model = key_of(line), str(line["model"])
        if line["state"] == "predicted":
            return self.prediction(key, model)
        info = info_of(self._requests.get(key), key)
        if line["state"] == "refused":
            return Refusal(info, line["reason"], line["fix"], model)
        return Unpredicted(info, line["reason"], line["where"], model)

    def prediction(self, key: StackKey, model: str) -> Prediction:
        """As `get`."""
        name = self.names.get((key, model))
        if name is None:
            raise StorageError(
                f"the prediction of {key} was not kept", fix="look for a full disk in the report"
            )
        return self.load(name)

    def load(self, name: str) -> Prediction:
        """A stored prediction by its name in the store; StorageError if it cannot be read."""
        return load(self._store, name)


def info_of(request: StackRequest | None, key: StackKey) -> StackInfo:
    """As much of a stack's announcement as rules need of one that was not predicted."""
    if request is None:
        return StackInfo(key, (0.0,), (1, 1), 0.0)
    return StackInfo(key, request.z_um, (1, 1), 0.0, request.x_um, request.y_um)


class Rerun:
    """Rules with nothing but a run's outcomes to look at."""

    def __init__(self, as_run: AsRun, requests: Mapping[StackKey, StackRequest], logged: Logged) -> None:
        self.experiment, self.labels = as_run.experiment, as_run.labels
        self._requests, self._logged = requests, logged
        self._cache = MeasurementCache(self._as_logged)
        self._decider = Decider(self.experiment.triggers, self.labels.owner, self._cache)
        self._fields: dict[StackKey, Field] = {}
        for line in logged.of("outcome"):
            self._cache.imaged(key_of(line), number(line.get("imaged_s")))

    def take_fired(self, fired: Mapping[str, int]) -> None:
        """How often each trigger had acted before, by name."""
        self._decider.fired.update(
            {index: fired.get(each.name, 0) for index, each in enumerate(self.experiment.triggers)}
        )

    def take(self, outcome: Outcome) -> tuple[Measured, ...]:
        """Keep an outcome, and measure on it what the rules look at."""
        if isinstance(outcome, Prediction):
            outcome = self.labels.rename(outcome)
        owner = self.labels.owner
        rules = [rule for rule in measurements(self.experiment) if owner(rule.first_label) == outcome.model]
        found = tuple(self._cache.measure(outcome, rule) for rule in rules)
        kept = preview(outcome) if isinstance(outcome, Prediction) else outcome
        self._field(outcome.info.key).answers[outcome.model] = kept
        return tuple(each for each in found if each is not None)

    def decide(
        self, key: StackKey, model: str, age_s: float, propose_only: Mapping[str, str]
    ) -> tuple[Verdict, ...]:
        """What the triggers make of an outcome that was taken."""
        outcome = self._fields[key].answers[model]
        if isinstance(outcome, Unpredicted):
            return ()
        return self._decider.decide(outcome, age_s, propose_only)

    def _as_logged(self, measurement: PythonFunction, prediction: Prediction) -> tuple[float, float]:
        """What a function of the user's measured is not measured again."""
        for line in self._logged.of("outcome"):
            if key_of(line) == prediction.info.key and line["model"] == prediction.model:
                for told in line.get("measured", ()):
                    if told["name"] == measurement.title:
                        return number(told["value"]), number(told["doubt"])
        return math.nan, math.nan

    def expect(self, keys: Sequence[StackKey]) -> None:
        """As `Decider.expect`."""
        self._decider.expect(keys)

    def close(self, time: int) -> tuple[Verdict, ...]:
        """As `Decider.close`."""
        return self._decider.close(time)

    @property
    def ranked_by(self) -> tuple[str, ...]:
        """Labels by which fields are ranked."""
        rule = self.experiment.choose
        return tuple(label for each in rule.measurements for label in each.labels) if rule else ()

    def choose(self, keys: Sequence[StackKey]) -> tuple[Choice, ...]:
        """Rank fields of one time point, in the order of the plan."""
        rule = self.experiment.choose
        return (
            choose_fields(rule, self.labels, [self._field(key) for key in keys], self._cache) if rule else ()
        )

    def why_propose(self, demoted: Mapping[str, str]) -> str:
        """Why fields are not revisited by what the choice measures; empty if they are."""
        return next(filter(None, (demoted.get(label, "") for label in self.ranked_by)), "")

    def _field(self, key: StackKey) -> Field:
        if key not in self._fields:
            request = self._requests.get(key) or StackRequest(key, 0.0, 0.0, (0.0,), "", key.channel, 0.0)
            self._fields[key] = Field(request, self.labels.models)
        return self._fields[key]


def planned_requests(folder: Path) -> dict[StackKey, StackRequest]:
    """The overview stacks of a run in the order of its plan; none if it kept no plan."""
    try:
        plan = SavedPlan.read(folder)
    except AcqIslError:
        return {}
    return {request.key: request for cycle in plan.cycles for request in cycle.requests}


def number(value: Any) -> float:
    """A number of a ledger line, in which null stands for none."""
    return math.nan if value is None else float(value)
