"""The main loop: overview, predict, choose, revisit. It reads as the data flows.

Nothing here waits for the engine while fields are being acquired: outcomes are taken as they come in
between two stacks, and after the last one the session waits no longer than the experiment allows.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, Protocol

from acq_isl.actions import Call, ImageField, SetPreset, check_action
from acq_isl.errors import AcqIslError, ActionRefused, SliceLost, StorageError
from acq_isl.experiment import Experiment
from acq_isl.ledger import Ledger
from acq_isl.measure import Measurement, measure
from acq_isl.plan import Cycle, visits
from acq_isl.protocols import Microscope, PredictionSource
from acq_isl.record import Measured
from acq_isl.rules import Choice, Decision, decide, rank
from acq_isl.stack import Outcome, Prediction, StackKey, StackRequest, Unpredicted

Phase = Literal["overview", "predict", "revisit"]


@dataclass(frozen=True, slots=True)
class Step:
    """How far the run is, for whoever shows it.

    Parameters
    ----------
    phase : str
    done, total : int
        Stacks.
    text : str
        What has just happened, for people.
    """

    phase: Phase
    done: int
    total: int
    text: str


class PredictionStore(Protocol):
    """Where predictions are kept."""

    def put(self, prediction: Prediction) -> None:
        """Keep a prediction; StorageError if that is not possible."""


@dataclass(frozen=True, slots=True)
class Instruments:
    """What a session works with; opened and closed by whoever starts it.

    Parameters
    ----------
    microscope : Microscope
    predictions : PredictionSource
    store : PredictionStore
    ledger : Ledger
    call : callable
        Runs a user's function by its name with the decision and the prediction, guarded, and returns
        what became of it in words.
    progress : callable
        Told of every `Step`; must return quickly.
    now, sleep : callable
        Monotonic clock in seconds, and how to wait for it.
    """

    microscope: Microscope
    predictions: PredictionSource
    store: PredictionStore
    ledger: Ledger
    call: Callable[[str, Decision, Prediction], str]
    progress: Callable[[Step], None]
    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass(slots=True)
class Field:
    """What is known so far of one overview field; owned by the session."""

    request: StackRequest
    outcome: Outcome | None = None
    choice: Choice | None = None


class Session:
    """One run of an experiment on instruments that are open.

    Parameters
    ----------
    experiment : Experiment
    plan : sequence of Cycle
        Overview stacks by time point.
    instruments : Instruments
    """

    def __init__(self, experiment: Experiment, plan: Sequence[Cycle], instruments: Instruments) -> None:
        self._experiment = experiment
        self._plan = plan
        self._tools = instruments
        self._fired: Counter[int] = Counter()
        self.fields: dict[StackKey, Field] = {}
        self.asked: list[StackRequest] = []
        self.acquired: list[StackRequest] = []
        self.decide_ms: list[float] = []
        self.warnings: list[str] = []
        self._lost: SliceLost | None = None

    def run(self) -> None:
        """Acquire, predict, choose and revisit, one time point after the other.

        Raises
        ------
        AcquisitionFailed, SliceLost, StorageError
            What was captured until then is kept; `fields` and `acquired` say how far it came.
        """
        start = self._tools.now()
        for cycle in self._plan:
            self._wait_until(start + cycle.start_s)
            self._overview(cycle)
            for field in self._choose(cycle):
                self._revisit(field)
        if self._lost is not None:
            raise self._lost

    def _overview(self, cycle: Cycle) -> None:
        for request in cycle.requests:
            self.fields[request.key] = Field(request)
        for done, request in enumerate(cycle.requests, start=1):
            self._acquire(request)
            self._step("overview", done, len(cycle.requests), f"imaged {request.key.position}")
            for outcome in self._tools.predictions.poll():
                self._take(outcome)
        self._step("predict", self._predicted(cycle), len(cycle.requests), "waiting for the engine")
        for outcome in self._drained():
            self._take(outcome)
        self._step("predict", self._predicted(cycle), len(cycle.requests), "")

    def _drained(self) -> list[Outcome]:
        try:
            return self._tools.predictions.drain(self._experiment.prediction_timeout_s)
        except SliceLost as error:
            # The measured data is complete, so the run is finished first, and then fails.
            self._lost = error
            return self._tools.predictions.poll()

    def _take(self, outcome: Outcome) -> None:
        """Keep an outcome and let the triggers look at it."""
        began = time.perf_counter()
        field = self.fields[outcome.info.key]
        # A stack that waited in the spool is reported again once an engine has predicted it.
        if isinstance(field.outcome, Prediction):
            return
        field.outcome = outcome
        decisions = [] if isinstance(outcome, Unpredicted) else self._decisions(outcome)
        self.decide_ms.append((time.perf_counter() - began) * 1e3)
        if isinstance(outcome, Prediction):
            self._keep(outcome)
            for decision in decisions:
                self._act(decision, field.request, outcome)

    def _keep(self, prediction: Prediction) -> None:
        try:
            self._tools.store.put(prediction)
        except StorageError as error:
            # Predictions can be made again from the measured data; a run cannot.
            self.warnings.append(f"predictions are not kept: {error}")

    def _decisions(self, outcome: Outcome) -> list[Decision]:
        found = []
        for index, trigger in enumerate(self._experiment.triggers):
            decision = decide(
                trigger, outcome, self._measured(outcome, trigger.when.measurement), self._fired[index]
            )
            if decision.action is not None:
                self._fired[index] += 1
                found.append(decision)
            else:
                self._note(decision, "nothing")
        return found

    def _act(self, decision: Decision, field: StackRequest, prediction: Prediction) -> None:
        """Carry out a decision between two events; a refused or failed action never stops the run."""
        action = decision.action
        if action is None:
            return
        try:
            check_action(action, prediction.info, self._experiment.limits)
            match action:
                case SetPreset(group=group, preset=preset):
                    self._tools.microscope.set_preset(group, preset)
                    done = "done"
                case ImageField():
                    done = self._image(action, field)
                case Call(function=function):
                    done = self._tools.call(function, decision, prediction)
        except ActionRefused as error:
            done = f"refused: {error}"
            self.warnings.append(f"{decision.rule} at {field.key.position}: {error}")
        except SliceLost:
            raise
        except AcqIslError as error:
            done = f"failed: {error}"
            self.warnings.append(f"{decision.rule} at {field.key.position}: {error}")
        self._note(decision, done)

    def _image(self, action: ImageField, field: StackRequest) -> str:
        middle_um = (field.z_um[0] + field.z_um[-1]) / 2
        imaged = {request.key for request in self.acquired}
        for channel in action.channels:
            key = StackKey(field.key.time, field.key.position, channel)
            if key in imaged:
                continue
            z_um = tuple(middle_um + offset for offset in action.z_offsets_um)
            image = replace(field, key=key, z_um=z_um, group=action.group, preset=channel, predict=False)
            image = replace(image, modality="fluorescence", polarity="unknown")
            self._acquire(replace(image, exposure_ms=action.exposure_ms))
        return "done"

    def _choose(self, cycle: Cycle) -> list[Field]:
        rule = self._experiment.choose
        if rule is None:
            return []
        began = time.perf_counter()
        fields = [self.fields[request.key] for request in cycle.requests]
        outcomes = [field.outcome for field in fields if field.outcome is not None]
        choices = rank(rule, [(one, self._measured(one, rule.measurement)) for one in outcomes])
        self.decide_ms.append((time.perf_counter() - began) * 1e3)
        for choice in choices:
            self.fields[choice.key].choice = choice
            self._tools.ledger.write("choice", **asdict(choice))
        return [self.fields[choice.key] for choice in choices if choice.chosen]

    def _revisit(self, field: Field) -> None:
        sequence = self._experiment.revisit
        if sequence is None:
            return
        imaged = {request.key for request in self.acquired}
        requests = visits(sequence, field.request, field.request.key.time)
        for done, request in enumerate(requests, start=1):
            if request.key not in imaged:
                self._acquire(request)
            self._step("revisit", done, len(requests), f"{request.preset} at {request.key.position}")

    def _acquire(self, request: StackRequest) -> None:
        self.asked.append(request)
        self._tools.microscope.acquire(request)
        self.acquired.append(request)
        key = request.key
        self._tools.ledger.dose(key.position, key.channel, request.exposure_ms, len(request.z_um))

    def _note(self, decision: Decision, done: str) -> None:
        self._tools.ledger.write("decision", **asdict(replace(decision, action=None)), done=done)

    def _measured(self, outcome: Outcome, measurement: Measurement) -> Measured | None:
        return measure(outcome, measurement) if isinstance(outcome, Prediction) else None

    def _predicted(self, cycle: Cycle) -> int:
        return sum(isinstance(self.fields[r.key].outcome, Prediction) for r in cycle.requests)

    def _wait_until(self, moment_s: float) -> None:
        while (left_s := moment_s - self._tools.now()) > 0:
            self._tools.sleep(min(left_s, 0.5))
            for outcome in self._tools.predictions.poll():
                self._take(outcome)

    def _step(self, phase: Phase, done: int, total: int, text: str) -> None:
        self._tools.progress(Step(phase, done, total, text))
