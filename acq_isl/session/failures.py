"""A stack that the microscope fails to image is left out, taken again, or ends the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import assert_never

from acq_isl.errors import AcqIslError, AcquisitionFailed, SliceLost, StackSkipped
from acq_isl.experiment.failures import OnFailure, RetryStack, SkipStack, StopRun
from acq_isl.protocols import Microscope, RecoverableMicroscope
from acq_isl.stack import StackKey, StackRequest

log = logging.getLogger(__name__)

OF_MICROSCOPE = (AcquisitionFailed, SliceLost)

Tell = Callable[[StackRequest, str, str], None]
Discard = Callable[[StackKey, bool], None]


@dataclass(slots=True)
class FailureKeeper:
    """Carries out what the experiment wants of failures; used by a session.

    ``discard`` is told of a stack that misses slices, and whether it is taken again; ``tell`` of the stack,
    what is done about it, and why.
    """

    microscope: Microscope
    policy: OnFailure
    discard: Discard
    tell: Tell
    _in_a_row: int = field(default=0, init=False)

    def image(self, request: StackRequest, take: Callable[[StackRequest], bool]) -> bool:
        """What ``take`` returns of a stack, or of its last attempt.

        StackSkipped if it failed and the run goes on without it; AcquisitionFailed or SliceLost if not.
        """
        first = request.attempt
        while True:
            try:
                done = take(request)
            except OF_MICROSCOPE as error:
                request = self._after(request, request.attempt - first, error)
            else:
                self._in_a_row = 0
                return done

    def _after(self, request: StackRequest, retries: int, error: AcqIslError) -> StackRequest:
        """The attempt that follows a failed one."""
        match self.policy:
            case StopRun():
                self.tell(request, "the run ends", str(error))
                raise error
            case RetryStack(times=times, in_a_row=most):
                again = retries < times
            case SkipStack(in_a_row=most):
                again = False
            case _:
                assert_never(self.policy)
        if not again and self._in_a_row + 1 >= most:
            self.tell(request, "the run ends", f"{error}; that was failed stack {most} in a row")
            raise error
        self._recover(request, error)
        self.discard(request.key, again)
        if again:
            self.tell(request, "take this stack again", str(error))
            return replace(request, attempt=request.attempt + 1)
        self._in_a_row += 1
        self.tell(request, "skip this stack", str(error))
        raise StackSkipped(f"{request.key} was left out", got=error.what) from error

    def _recover(self, request: StackRequest, error: AcqIslError) -> None:
        """Make the microscope ready again; what failed first ends the run if that cannot be done."""
        why = ""
        if not isinstance(self.microscope, RecoverableMicroscope):
            why = "this microscope cannot go on after a failure"
        else:
            try:
                self.microscope.recover()
            except AcqIslError as second:
                why = str(second)
        if why:
            self.tell(request, "the run ends", f"{error}; and {why}")
            raise error
