"""A stack is imaged, in one go or interrupted for an action, and all its light is booked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from acq_isl.errors import ActionRefused
from acq_isl.events import Decided, EventHandler
from acq_isl.protocols import InterruptibleMicroscope, Microscope
from acq_isl.rules.light import LightLedger
from acq_isl.rules.reaction import Then
from acq_isl.stack import StackKey, StackRequest
from acq_isl.storage.decision_log import Ledger


@dataclass(frozen=True, slots=True)
class Interruption:
    """Who may interrupt a stack: whether it is wanted now, and what is done then."""

    wanted: Callable[[], bool]
    act: Callable[[], Then]


@dataclass(frozen=True, slots=True)
class Exposer:
    """Images stacks; ``discard`` is told of one whose slices nobody wants, as it is imaged again."""

    microscope: Microscope
    ledger: Ledger
    light: LightLedger
    emit: EventHandler
    discard: Callable[[StackKey], None]

    def image(self, request: StackRequest, interruption: Interruption | None) -> StackRequest:
        """Image a stack; as it was imaged in the end, which may be another attempt."""
        if interruption is not None and isinstance(self.microscope, InterruptibleMicroscope):
            return self._in_parts(self.microscope, request, interruption)
        self.microscope.acquire(request)
        self._book(request, len(request.z_um))
        return request

    def _in_parts(
        self, microscope: InterruptibleMicroscope, request: StackRequest, interruption: Interruption
    ) -> StackRequest:
        planes, done = len(request.z_um), 0
        while (taken := microscope.acquire_until(request, interruption.wanted, done)) < planes:
            self._book(request, taken - done, sync=False)  # an action is due: the disk has time
            then = interruption.act()
            if then == "repeat" and not self._is_allowed(replace(request, attempt=request.attempt + 1)):
                then = "finish"
            self._note(request, taken, then)
            done = taken
            if then == "repeat" and taken:
                self.discard(request.key)
                request, done = replace(request, attempt=request.attempt + 1), 0
                taken = microscope.acquire_until(request, None)
                break
        self._book(request, taken - done)
        return request

    def _is_allowed(self, request: StackRequest) -> bool:
        """Whether the budgets of light leave room for a stack."""
        try:
            self.light.check(request)
        except ActionRefused:
            return False
        return True

    def _book(self, request: StackRequest, slices: int, sync: bool = True) -> None:
        """Write down the light of so many slices."""
        key = request.key
        if slices:
            self.light.book(request, slices)
            about = self.light.entries_of(request)
            self.ledger.dose(key.position, key.channel, request.exposure_ms, slices, about, sync)

    def _note(self, request: StackRequest, taken: int, then: Then) -> None:
        what = f"interrupt this stack after {taken} of {len(request.z_um)} slices"
        ends: dict[Then, str] = {"finish": "the others follow", "repeat": "all of them are taken again"}
        why, key = "an action was due", asdict(request.key)
        self.ledger.write("order", key=key, rule="react", what=what, why=why, done=ends[then])
        self.emit(Decided(request.key, "react", what, why, ends[then]))
