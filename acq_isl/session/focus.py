"""Stacks are imaged about the focus that was found last at their site, or not, as the experiment wants it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from acq_isl.errors import FocusFailed
from acq_isl.experiment.experiment import FocusPolicy
from acq_isl.protocols import FocusingMicroscope, Microscope
from acq_isl.stack import StackRequest

Tell = Callable[[StackRequest, str, str], None]


class FocusKeeper:
    """What is known of the focus of each site, by how much it lies above the plan, in um; used by a session.

    ``tell`` is given the stack, what is done about it, and why, where the focus was not found.
    """

    def __init__(self, microscope: Microscope, policy: FocusPolicy, tell: Tell) -> None:
        self._microscope, self._policy, self._tell = microscope, policy, tell
        self._moved_um: dict[str, float] = {}
        self._lost: dict[str, str] = {}

    def find(self, request: StackRequest) -> StackRequest | None:
        """A stack about the focus of its site, which is looked for if due; None if it is not to be imaged.

        FocusFailed if the focus is not found and the experiment stops then.
        """
        focus = request.autofocus
        if focus is None:
            return request
        # A run that is resumed has not been at the stack that its focus was found before.
        if focus.due or not (focus.site in self._moved_um or focus.site in self._lost):
            self._look(request)
        if (reason := self._lost.get(focus.site)) is not None:
            self._tell(request, "skip this stack", reason)
            return None
        return replace(_moved(request, self._moved_um.get(focus.site, 0.0)), autofocus=None)

    def _look(self, request: StackRequest) -> None:
        focus = request.autofocus
        if focus is None:
            return
        self._lost.pop(focus.site, None)
        about = _moved(request, self._moved_um.get(focus.site, 0.0))
        try:
            if not isinstance(self._microscope, FocusingMicroscope):
                raise FocusFailed("this microscope has no autofocus")
            self._moved_um[focus.site] = self._microscope.focus(about) - focus.z_um
        except FocusFailed as error:
            match self._policy:
                case "skip":
                    self._lost[focus.site] = str(error)
                case "go_on":
                    self._moved_um.setdefault(focus.site, 0.0)
                    self._tell(request, "image it all the same", str(error))
                case "stop":
                    self._tell(request, "stop the run", str(error))
                    raise
                case _:
                    assert_never(self._policy)


def _moved(request: StackRequest, um: float) -> StackRequest:
    focus = request.autofocus and replace(request.autofocus, z_um=request.autofocus.z_um + um)
    return replace(request, z_um=tuple(round(z_um + um, 4) for z_um in request.z_um), autofocus=focus)
