"""The main loop: overview, predict, choose, revisit. It reads as the data flows.

Nothing here waits for the engine while fields are being acquired: outcomes are taken as they come in
between two stacks, and after the last one the session waits no longer than the experiment allows.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

from acq_isl.commands import GoTo
from acq_isl.errors import AcqIslError, ActionRefused, SliceLost, StackSkipped, StorageError
from acq_isl.events import (
    Decided,
    FieldFailed,
    FieldImaged,
    FieldsRanked,
    NotPredicted,
    Phase,
    Predicted,
    Step,
    TimePointBegan,
)
from acq_isl.experiment.experiment import Experiment, measurements
from acq_isl.experiment.planning import Cycle, visits
from acq_isl.processing.display import preview
from acq_isl.protocols import WaitingSource
from acq_isl.rules import Measured, check_request
from acq_isl.rules.cache import MeasurementCache
from acq_isl.rules.deciding import Decider, Verdict
from acq_isl.rules.light import LightLedger
from acq_isl.rules.reaction import AfterSlice, Then
from acq_isl.rules.schedules import Rota
from acq_isl.rules.trusted import propose
from acq_isl.session.acting import Actor, Due, Hands
from acq_isl.session.changes import ChangedPlan
from acq_isl.session.evidence import note_fields, note_outcome, note_schedule, note_verdict
from acq_isl.session.exposing import Exposer, Interruption
from acq_isl.session.failures import OF_MICROSCOPE, FailureKeeper
from acq_isl.session.fields import Field, choose_fields, warn_unranked
from acq_isl.session.focus import FocusKeeper
from acq_isl.session.operator import Operator, Stopped
from acq_isl.session.tools import SessionTools
from acq_isl.session.trust import CHECK, GUARD, RULE, Trust
from acq_isl.stack import Outcome, Prediction, StackKey, StackRequest, Unpredicted

_WAIT_S = 0.5


class Session:
    """One run of an experiment; ``plan`` holds its overview stacks by time point."""

    def __init__(self, experiment: Experiment, plan: Sequence[Cycle], tools: SessionTools) -> None:
        self._experiment = experiment
        self.name = experiment.name
        self.cycles = plan
        self._tools = tools
        self.labels = tools.labels
        self.fields: dict[StackKey, Field] = {}
        self.asked: list[StackRequest] = []
        self.acquired: list[StackRequest] = []
        self._asked: set[StackKey] = set()  # keys of the two: runs have tens of thousands
        self._imaged: set[StackKey] = set()
        self.decide_ms: list[float] = []
        self.judged: dict[tuple[int, StackKey], str] = {}
        """What became of the decision of a trigger, by its number, on a field; ``spent``: it may not."""
        self.began: list[tuple[Cycle, float]] = []
        """Every cycle with the second at which it began, on the clock of its ``start_s``."""
        self.warnings: list[str] = []
        self._lost: SliceLost | None = None
        self._look_with(MeasurementCache(tools.ask))
        self._undecided: list[Prediction] = []
        self._visits, self._start_s = 0, 0.0
        self._in_full: list[Prediction] = []
        tell = partial(self._note_failure, "autofocus")
        self._focus = FocusKeeper(tools.microscope, experiment.when_focus_fails, tell)
        tell = partial(self._note_failure, "on_failure")
        self._failures = FailureKeeper(tools.microscope, experiment.on_failure, tools.discard, tell)
        self._operator = Operator(tools.commands, self._visit, self._note_command, tools.emit)
        self.trust = Trust(experiment, tools.microscope, tools.ledger, tools.emit, self.warnings.append)
        self._plan = ChangedPlan(plan)
        self.dropped: set[StackKey] = set()
        """Stacks of the plan that an action decided to leave out."""
        self.light = LightLedger(experiment.limits.light, tools.fov_um)
        own = self._operator, self._plan, tools.pixel_to_stage, self._acquire
        asked = tools.call, self._wait, tools.notify, tools.now
        hands = Hands(tools.microscope, experiment.limits, *own, *asked)
        self._actor = Actor(hands, self._note, self.warnings.append)
        about = tools.emit, tools.discard
        self._exposer = Exposer(tools.microscope, tools.ledger, self.light, *about)
        self._interruption = Interruption(self._is_interrupted, self._decide)
        self._reacts = any(isinstance(trigger.react, AfterSlice) for trigger in experiment.triggers)

    def _look_with(self, cache: MeasurementCache) -> None:
        self._measured = cache
        self._decider = Decider(self._experiment.triggers, self.labels.owner, cache)
        self._rota = Rota(self._experiment.schedule, cache)

    @property
    def stopped(self) -> bool:
        """Whether an operator has ended it."""
        return self._operator.stopped_it

    def take_up(
        self,
        fields: Mapping[StackKey, Field],
        acquired: Sequence[StackRequest],
        cache: MeasurementCache,
        fired: Sequence[int],
        visits: int,
    ) -> None:
        """Go on where an earlier run of the same plan was cut off: what is there is not imaged again."""
        self.fields |= fields
        self.asked += acquired
        self.acquired += acquired
        self._asked |= {request.key for request in acquired}
        self._imaged |= {request.key for request in acquired}
        self._look_with(cache)
        self._visits = visits
        self._decider.expect([request.key for cycle in self.cycles for request in cycle.requests])
        for key in sorted(fields):
            self._rota.visited(key)
            for outcome in fields[key].outcomes:  # decided on before, and remembered by conditions
                self._decider.decide(outcome, 0.0, {})
        self._decider.fired = Counter(dict(enumerate(fired)))

    def run(self) -> None:
        """Acquire, predict, choose and revisit, one time point after the other.

        AcquisitionFailed, SliceLost and StorageError end it; what was captured until then is kept, and
        `fields` and `acquired` say how far it came.
        """
        start = self._start_s = self._tools.now()
        try:
            for number, cycle in enumerate(self.cycles):
                start = self._tools.now() if cycle.restarts else start
                self._wait_for_start(start, number)
                self._plan.at = number
                self._begin(cycle, self._tools.now() - start)
                due = self._due(cycle)
                self._overview(due)
                visited = [(field, RULE) for field in self._choose(due)]
                guarded = self.trust.guard(self._imaged_of(due))
                self._revisit([*visited, *((self.fields[key], GUARD) for key in guarded)])
        except Stopped as stopped:
            n = len(self.acquired)
            self.warnings.append(f"{stopped} after {n} stack{'s' * (n != 1)}")
            self._take_all()
        finally:
            self.warnings += self._measured.warnings
        if self._lost is not None:
            raise self._lost

    def _begin(self, cycle: Cycle, began_s: float) -> None:
        self.began.append((cycle, began_s))
        times = sorted({other.time for other in self.cycles})
        number = times.index(cycle.time) + 1
        self._tools.emit(TimePointBegan(number, len(times), cycle.start_s, began_s))

    def _due(self, cycle: Cycle) -> Cycle:
        """The time point with those of its stacks that the schedule wants."""
        requests, said = self._rota.pick(cycle.requests, self._tools.now() - self._start_s)
        if said:
            note_schedule(self._tools.ledger, cycle, said)
            due = sum(each.due for each in said)
            why = "; ".join(f"{each.position}: {each.why}" for each in said)
            what = f"image {due} of {len(said)} fields"
            self._tools.emit(Decided(None, "schedule", what, why, f"at time point {cycle.time}"))
        return replace(cycle, requests=requests)

    def _overview(self, cycle: Cycle) -> None:
        for request in cycle.requests:
            self.fields.setdefault(request.key, Field(request, self.labels.models))
        self._decider.expect(note_fields(self._tools.ledger, cycle))
        for done, planned in enumerate(cycle.requests, start=1):
            imaged = self._acquire_planned(planned)
            for stack in self.trust.stacks(self.fields[planned.key].request) if imaged else ():
                self._acquire_if_lit(stack, CHECK)
            what = "imaged" if imaged else "skipped"
            self._step("overview", done, len(cycle.requests), f"{what} {planned.key.position}")
            self._take_ready()
            self.trust.score()
        self._step("predict", self._predicted(cycle), len(cycle.requests), "waiting for the engine")
        self._take_all()
        self.trust.score()
        self._close(cycle)
        self._step("predict", self._predicted(cycle), len(cycle.requests), "")

    def _take_ready(self) -> None:
        for outcome in self._tools.predictions.poll():
            self._take(outcome)
        self._decide()

    def _take_all(self) -> None:
        self._take_as_they_come()
        try:
            outcomes = self._tools.predictions.drain(self._experiment.prediction_timeout_s)
        except SliceLost as error:
            # The measured data is complete, so the run is finished first, and then fails.
            self._lost = error
            outcomes = self._tools.predictions.poll()
        for outcome in outcomes:
            self._take(outcome)
        self._decide()

    def _take_as_they_come(self) -> None:
        """A field is not to wait for its action until the last one is predicted."""
        source, began_s = self._tools.predictions, self._tools.now()
        if not isinstance(source, WaitingSource):
            return
        while (left_s := began_s + self._experiment.prediction_timeout_s - self._tools.now()) > 0:
            if not source.wait(min(left_s, _WAIT_S)):
                return
            self._take_ready()

    def _take(self, outcome: Outcome) -> None:
        """Keep an outcome, for the triggers to look at."""
        began = time.perf_counter()
        field = self.fields[outcome.info.key]
        # A stack that waited in the spool is reported again once an engine has predicted it.
        if isinstance(field.answers.get(outcome.model), Prediction):
            return
        if not isinstance(outcome, Prediction):
            field.answers[outcome.model] = outcome
            field.decided_s = self._tools.now()
            self._decisions(outcome)
            self._tools.emit(NotPredicted.of(outcome))
            return
        times = outcome.times
        turn_ms = max((self._tools.now() - field.imaged_s) * 1e3 - times.engine_ms, 0.0)
        outcome = replace(outcome, times=replace(times, turn_ms=turn_ms))
        self._store(outcome)  # with the labels as its model names them
        renamed = self.labels.rename(outcome)
        field.answers[outcome.model] = renamed
        self.trust.keep(renamed)
        measured = self._measured_of(renamed)
        spent_ms = (time.perf_counter() - began) * 1e3
        self._tools.emit(Predicted.of(renamed, measured, spent_ms))
        self.decide_ms.append(spent_ms)
        self._undecided.append(renamed)
        self._in_full.append(renamed)

    def _decide(self) -> Then:
        """Act on what was predicted, but never while the operator has the microscope."""
        if self._operator.paused:
            return "finish"
        self._judge()
        then = self._actor.carry_out(self._operator.stopping)
        while self._in_full and not self._actor.busy:  # an action does not wait for what is for display
            prediction = self._in_full.pop()
            self.fields[prediction.info.key].answers[prediction.model] = preview(prediction)
        return then

    def _judge(self) -> None:
        """Let the triggers look at what was predicted."""
        while self._undecided and not self._operator.paused:
            prediction = self._undecided.pop(0)
            field = self.fields[prediction.info.key]
            field.decided_s = self._tools.now()
            line, verdicts = self._decisions(prediction)
            self._plan_acts(line, verdicts, prediction)

    def _plan_acts(self, line: int, verdicts: Iterable[Verdict], newest: Prediction | None = None) -> None:
        for verdict in verdicts:
            field = self.fields[verdict.decision.key]  # of a well or run it may be another than the newest
            same = newest is not None and newest.info.key == verdict.decision.key
            prediction = newest if newest is not None and same else field.predictions[0]
            trigger = self._experiment.triggers[verdict.index]
            until_s = field.imaged_s + (trigger.deadline_s or math.inf)
            self._actor.add(Due(verdict, line, field.request, prediction, trigger.react, until_s))

    def _close(self, cycle: Cycle) -> None:
        """Let triggers decide on wells and runs of which some fields were not predicted."""
        if not (verdicts := self._decider.close(cycle.time)):
            return
        line = int(self._tools.ledger.write("time_point_over", time_point=cycle.time)["n"])
        for verdict in verdicts:
            if verdict.kind != "act":
                self._note(verdict, line, verdict.done)
        self._plan_acts(line, (verdict for verdict in verdicts if verdict.kind == "act"))
        self._decide()

    def _is_interrupted(self) -> bool:
        """Whether something is to be done before the next slice; asked while a stack is acquired."""
        for outcome in self._tools.predictions.poll():
            self._take(outcome)
        self._judge()
        return self._actor.interrupts

    def _store(self, prediction: Prediction) -> None:
        try:
            self._tools.store.put(prediction)
        except StorageError as error:
            # Predictions can be made again from the measured data; a run cannot.
            self.warnings.append(f"predictions are not kept: {error}")

    def _decisions(self, outcome: Outcome) -> tuple[int, list[Verdict]]:
        """What triggers want done about an outcome, and its line in the ledger; noted if it is nothing."""
        field = self.fields[outcome.info.key]
        age_s = round(field.decided_s - field.imaged_s, 3)
        imaged_s = self._measured.imaged_s(outcome.info.key)
        line = note_outcome(self._tools.ledger, outcome, self._measured_of(outcome), age_s, imaged_s)
        if isinstance(outcome, Unpredicted):  # it may still come
            return line, []
        found = []
        for verdict in self._decider.decide(outcome, age_s, self.trust.propose_only):
            if verdict.kind == "act":
                found.append(verdict)
            else:
                self._note(verdict, line, verdict.done)
        return line, found

    def _measured_of(self, outcome: Outcome) -> tuple[Measured, ...]:
        """What rules look at, measured on what its model predicted."""
        owner = self.labels.owner
        rules = [rule for rule in measurements(self._experiment) if owner(rule.first_label) == outcome.model]
        found = (self._measured.measure(outcome, rule) for rule in rules)
        return tuple(each for each in found if each is not None)

    def _choose(self, cycle: Cycle) -> list[Field]:
        rule = self._experiment.choose
        if rule is None:
            return []
        began = time.perf_counter()
        fields = [self.fields[key] for key in self._imaged_of(cycle)]
        choices = choose_fields(rule, self.labels, fields, self._measured)
        if why := self.trust.why_propose(rule.measurements):
            choices = tuple(propose(choice, why) for choice in choices)
        self.decide_ms.append((time.perf_counter() - began) * 1e3)
        for choice in choices:
            self.fields[choice.key].choice = choice
            self._tools.ledger.write("choice", **asdict(choice))
        self._tools.emit(FieldsRanked(choices))
        at = cycle.time if len(self.cycles) > 1 else None
        self.warnings += warn_unranked(choices, self.fields, at)
        return [self.fields[choice.key] for choice in choices if choice.chosen]

    def _imaged_of(self, cycle: Cycle) -> list[StackKey]:
        """Fields of a time point, without those whose focus was not found."""
        return [request.key for request in cycle.requests if request.key in self._imaged]

    def _revisit(self, fields: Sequence[tuple[Field, str]]) -> None:
        """Image fields in fluorescence, each with the reason why."""
        sequence = self._experiment.revisit
        if sequence is None:
            return
        requests = [
            (request, why)
            for field, why in fields
            for request in visits(sequence, field.request, field.request.key.time)
        ]
        for done, (request, why) in enumerate(requests, start=1):
            self._acquire_if_lit(request, why)
            self._step("revisit", done, len(requests), f"{request.preset} at {request.key.position}")

    def _acquire_if_lit(self, request: StackRequest, why: str) -> None:
        """Image a stack, unless a budget of light does not allow it, or it fails, which is told."""
        try:
            self._acquire(request, why)
        except StackSkipped:  # told already
            return
        except ActionRefused as error:
            self.warnings.append(str(error))

    def _acquire_planned(self, planned: StackRequest) -> bool:
        """Image a stack of the plan as actions have changed it; False if it is left out."""
        request = self._plan.request(planned)
        if request is None:
            self.dropped.add(planned.key)
            return False
        if planned.key not in self._imaged:
            self.fields[planned.key].request = request
        try:
            return self._acquire(request)
        except StackSkipped:  # told already
            return False

    def _acquire(self, request: StackRequest, why: str = RULE) -> bool:
        """Image a stack that was not imaged before, once operator and triggers have had their turn.

        ``why`` it is, if it is fluorescence. False if it is skipped, because its focus was not found;
        StackSkipped if the microscope failed.
        """
        planned = request.key in self.fields
        if request.key not in self._imaged:
            self._operator.listen(self._rest)
            self._decide()
            if not self._failures.image(request, self._focus_and_expose):
                return False
        if not planned:
            self.trust.note_visit(request, why)
        return True

    def _focus_and_expose(self, request: StackRequest) -> bool:
        planned = request.key in self.fields
        if not planned:
            self.light.check(request)
        focused = self._focus.find(request)
        if focused is None:
            return False
        if planned:
            self.fields[request.key].request = focused
        return self._expose(focused)

    def _expose(self, request: StackRequest) -> bool:
        if request.key not in self._asked:  # else it is another attempt
            self._asked.add(request.key)
            self.asked.append(request)
        may = self._reacts and not self._actor.busy
        try:
            request = self._exposer.image(request, self._interruption if may else None)
        except AcqIslError as error:
            if not isinstance(error, OF_MICROSCOPE):  # which the keeper of failures tells
                self._tools.emit(FieldFailed(request.key, "the run ends", str(error)))
            raise
        self._imaged.add(request.key)
        self.acquired.append(request)
        if request.key in self.fields:
            self.fields[request.key].request = request
            self.fields[request.key].imaged_s = self._tools.now()
            self._measured.imaged(request.key, self._tools.now() - self._start_s)
            self._rota.visited(request.key)
        self._tools.emit(FieldImaged(request))
        return True

    def _rest(self, seconds: float) -> None:
        if isinstance(self._tools.predictions, WaitingSource):
            self._wait_for_outcome(self._tools.predictions, seconds)
        else:
            self._tools.sleep(seconds)
        self._take_ready()

    def _wait_for_outcome(self, source: WaitingSource, seconds: float) -> None:
        """Let time pass, less if there is something to act on."""
        began_s = self._tools.now()
        if not source.wait(seconds):  # nothing is to come: it returned at once
            self._tools.sleep(max(began_s + seconds - self._tools.now(), 0.0))

    def _visit(self, command: GoTo) -> str:
        """Go where the operator wants and take one plane there: checked, dosed and kept like any other."""
        self._visits += 1
        like = self.cycles[0].requests[0]
        z_um = (min(like.z_um) + max(like.z_um)) / 2 if command.z_um is None else command.z_um
        key = replace(like.key, position=f"visit_{self._visits:03d}")
        like = replace(like, autofocus=None, keep_shutter_open=False)
        place = replace(like, key=key, x_um=command.x_um, y_um=command.y_um, z_um=(z_um,), predict=False)
        try:
            check_request(place, self._experiment.limits)
            self.light.check(place)
            self._failures.image(place, self._expose)
        except ActionRefused as error:
            return f"refused: {error}"
        except StackSkipped as error:
            return f"failed: {error}"
        return "done"

    def _note_failure(self, rule: str, request: StackRequest, what: str, why: str) -> None:
        line = {"key": asdict(request.key), "rule": rule, "what": what, "why": why, "done": "done"}
        self._tools.ledger.write("order", **line)
        reason = ", as its focus was not found" if rule == "autofocus" else ""
        self.warnings.append(f"{request.key}: {what}{reason}: {why}")
        self._tools.emit(Decided(request.key, rule, what, why, "done"))
        self._tools.emit(FieldFailed(request.key, what, why))

    def _note_command(self, what: str, done: str) -> None:
        why = "the operator wants it"
        self._tools.ledger.write("order", rule="operator", what=what, why=why, done=done)
        self._tools.emit(Decided(None, "operator", what, why, done))

    def _note(self, verdict: Verdict, line: int, done: str) -> None:
        """Write down what a trigger decided, what became of it, and how long after the field's last slice."""
        decision, index = verdict.decision, verdict.index
        field, at_most = self.fields[decision.key], self._experiment.triggers[index].at_most
        spent = decision.action is None and self._decider.fired[index] >= at_most
        self.judged[index, decision.key] = "spent" if spent else done
        note_verdict(self._tools.ledger, verdict, line, done, round(field.decided_s - field.imaged_s, 3))
        self._tools.emit(Decided(decision.key, decision.rule, decision.what, decision.why, done))

    def _predicted(self, cycle: Cycle) -> int:
        return sum(self.fields[request.key].status == "predicted" for request in cycle.requests)

    def _wait(self, seconds: float) -> None:
        until_s = self._tools.now() + seconds
        while (left_s := until_s - self._tools.now()) > 0:
            self._operator.listen(self._rest)
            self._rest(min(left_s, _WAIT_S))

    def _wait_for_start(self, began_s: float, number: int) -> None:
        """Wait until it is a cycle's turn, which an action may change meanwhile."""
        while (left_s := began_s + self._plan.start_s(number) - self._tools.now()) > 0:
            self._operator.listen(self._rest)
            self._rest(min(left_s, 0.5))

    def _step(self, phase: Phase, done: int, total: int, text: str) -> None:
        self._tools.emit(Step(phase, done, total, text))
