"""Decisions become actions, one after another: between two stacks, or between two slices of one."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from acq_isl.errors import AcqIslError, ActionRefused, FocusFailed, SliceLost
from acq_isl.protocols import FocusingMicroscope, Microscope
from acq_isl.rules import Decision, Limits, Occasion, check_request
from acq_isl.rules.actions import Message, PlanChange, check_place, check_preset, check_property
from acq_isl.rules.deciding import Verdict
from acq_isl.rules.pixels import PixelToStage
from acq_isl.rules.reaction import AfterSlice, React, Then
from acq_isl.session.changes import ChangedPlan
from acq_isl.session.operator import Operator, Stopped
from acq_isl.stack import Autofocus, Prediction, StackRequest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Due:
    """A decision that is to be carried out: its outcome's line in the ledger, on which field, how soon."""

    verdict: Verdict
    outcome: int
    field: StackRequest
    prediction: Prediction
    react: React
    until_s: float = math.inf  # on the session's clock: later it is not carried out any more


@dataclass(frozen=True, slots=True)
class Hands:
    """What actions are carried out with, within the limits."""

    microscope: Microscope
    limits: Limits
    operator: Operator
    plan: ChangedPlan
    pixel_to_stage: PixelToStage | None
    expose: Callable[[StackRequest], object]
    """Images a stack, unless it was imaged before."""
    call: Callable[[str, Decision, Prediction], str]
    """Runs a user's function by its name; what became of it, in words."""
    wait: Callable[[float], None]
    notify: Callable[[Message], str]
    now: Callable[[], float] = time.monotonic


class Actor:
    """Carries out decisions; what it does is never interrupted by another decision.

    ``note`` writes down a decision and what became of it, ``warn`` what a person should know.
    """

    def __init__(
        self, hands: Hands, note: Callable[[Verdict, int, str], None], warn: Callable[[str], None]
    ) -> None:
        self._hands, self._note, self._warn = hands, note, warn
        self._due: deque[Due] = deque()
        self.busy = False

    def add(self, due: Due) -> None:
        """Something is to be done at the next occasion."""
        self._due.append(due)

    @property
    def interrupts(self) -> bool:
        """Whether something is to be done as soon as the present slice is there."""
        return any(isinstance(due.react, AfterSlice) for due in self._due)

    def carry_out(self, stopping: bool) -> Then:
        """Do all that is due; what then becomes of the stack that was interrupted for it, if any was."""
        then: Then = "finish"
        if self.busy:
            return then
        self.busy = True
        try:
            while self._due:
                due = self._due.popleft()
                if isinstance(due.react, AfterSlice) and due.react.then == "repeat":
                    then = "repeat"
                self._act(due, stopping)
        finally:
            self.busy = False
        return then

    def _act(self, due: Due, stopping: bool) -> None:
        """Carry out a decision; one that is refused or fails never stops the run."""
        decision = due.verdict.decision
        action = decision.action
        if action is None:
            return
        if stopping:
            self._note(due.verdict, due.outcome, "not done: the operator stopped the run")
            return
        if self._hands.now() > due.until_s:
            self._warn(f"{decision.rule} at {due.field.key.position}: its deadline passed before its turn")
            self._note(due.verdict, due.outcome, "not done: too late, its deadline passed before its turn")
            return
        # Camera, shutter and autofocus are of the overview only.
        field = replace(due.field, camera="", keep_shutter_open=False, autofocus=None, attempt=0)
        occasion = Occasion(field, due.prediction, decision)
        try:
            action.check(due.prediction.info, self._hands.limits)
            done = action.carry_out(occasion, _ActionTools(self._hands, occasion))
        except (SliceLost, Stopped):
            raise
        except Exception as error:  # a plug-in may fail in any way
            done = f"{'refused' if isinstance(error, ActionRefused) else 'failed'}: {error}"
            self._warn(f"{decision.rule} at {field.key.position}: {error}")
            if not isinstance(error, AcqIslError):
                log.warning("the action %s failed", action.kind, exc_info=True)
        self._note(due.verdict, due.outcome, done)


@dataclass(frozen=True, slots=True)
class _ActionTools:
    """What an action may do, within the limits of the experiment; see `acq_isl.rules.ActionTools`."""

    hands: Hands
    occasion: Occasion

    @property
    def pixel_to_stage(self) -> PixelToStage:
        if self.hands.pixel_to_stage is None:
            raise ActionRefused(
                "nobody has measured where pixels lie on the stage",
                fix="acq-isl affine EXPERIMENT measures it; write the result into the experiment",
            )
        return self.hands.pixel_to_stage

    def set_preset(self, group: str, preset: str) -> None:
        check_preset(f"set {group} to {preset}", group, preset, self.hands.limits)
        self.hands.microscope.set_preset(group, preset)

    def set_property(self, device: str, name: str, value: str) -> None:
        check_property(f"set {name} of {device} to {value}", device, name, value, self.hands.limits)
        self.hands.microscope.set_property(device, name, value)

    def move(self, x_um: float, y_um: float, z_um: float | None) -> None:
        check_place("move the stage", x_um, y_um, () if z_um is None else (z_um,), self.hands.limits)
        self.hands.microscope.move(x_um, y_um, z_um)

    def focus(self, field: StackRequest, device: str) -> float:
        if not isinstance(self.hands.microscope, FocusingMicroscope):
            raise FocusFailed("this microscope has no autofocus")
        thought_um = (min(field.z_um) + max(field.z_um)) / 2
        focus = Autofocus(site=field.key.position, z_um=thought_um, device=device)
        moved_um = self.hands.microscope.focus(replace(field, autofocus=focus)) - thought_um
        self.hands.plan.refocus(field.key.position, moved_um)
        return moved_um

    def wait(self, seconds: float) -> None:
        self.hands.wait(seconds)

    def pause(self, why: str) -> None:
        self.hands.operator.pause(why)

    def stop(self, why: str) -> None:
        self.hands.operator.stop(why)

    def change(self, change: PlanChange) -> str:
        return self.hands.plan.change(change)

    def notify(self, message: Message) -> str:
        return self.hands.notify(message)

    def acquire(self, request: StackRequest) -> None:
        check_request(request, self.hands.limits)
        self.hands.expose(request)

    def call(self, function: str) -> str:
        return self.hands.call(function, self.occasion.decision, self.occasion.prediction)
