"""A stack is imaged, in one go or interrupted for an action, and all its light is booked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from acq_isl.errors import AcquisitionFailed, ActionRefused, SliceLost
from acq_isl.events import Decided, EventHandler
from acq_isl.protocols import InterruptibleMicroscope, Microscope, RecoverableMicroscope
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
    discard: Callable[[StackKey, bool], None]

    def image(self, request: StackRequest, interruption: Interruption | None) -> StackRequest:
        """Image a stack; as it was imaged in the end, which may be another attempt."""
        if interruption is not None and isinstance(self.microscope, InterruptibleMicroscope):
            return self._in_parts(self.microscope, request, interruption)
        with self._booked_if_it_fails(request, 0):
            self.microscope.acquire(request)
        self._book(request, len(request.z_um))
        return request

    @contextmanager
    def _booked_if_it_fails(self, request: StackRequest, first: int) -> Iterator[None]:
        """Book the slices that came, and one more, which may have been exposed in vain."""
        scope = self.microscope
        before = scope.captured if isinstance(scope, RecoverableMicroscope) else 0
        try:
            yield
        except (AcquisitionFailed, SliceLost):
            if isinstance(scope, RecoverableMicroscope):
                self._book(request, min(scope.captured - before + 1, len(request.z_um) - first))
            raise

    def _in_parts(
        self, microscope: InterruptibleMicroscope, request: StackRequest, interruption: Interruption
    ) -> StackRequest:
        planes, done = len(request.z_um), 0
        while (taken := self._part(microscope, request, interruption.wanted, done)) < planes:
            self._book(request, taken - done, sync=False)  # an action is due: the disk has time
            then = interruption.act()
            if then == "repeat" and not self._is_allowed(replace(request, attempt=request.attempt + 1)):
                then = "finish"
            self._note(request, taken, then)
            done = taken
            if then == "repeat" and taken:
                self.discard(request.key, True)
                request, done = replace(request, attempt=request.attempt + 1), 0
                taken = self._part(microscope, request, None, 0)
                break
        self._book(request, taken - done)
        return request

    def _part(
        self,
        microscope: InterruptibleMicroscope,
        request: StackRequest,
        stop: Callable[[], bool] | None,
        first: int,
    ) -> int:
        with self._booked_if_it_fails(request, first):
            return microscope.acquire_until(request, stop, first)

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
