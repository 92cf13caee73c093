"""An operator's orders, carried out between two stacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from acq_isl.commands import GoTo, Order, Orders, Pause, Resume, Stop, describe
from acq_isl.events import StateChanged, Tell

_LOOK_S = 0.1


class Stopped(Exception):
    """The operator ended the run; it is wound up in order."""


class Control:
    """Whether the run goes on, waits, or ends.

    Parameters
    ----------
    orders : callable
        Orders given since the last call.
    visit : callable
        Goes to a point and returns what became of it, in words.
    note : callable
        Writes down an order and what became of it.
    tell : callable
    """

    def __init__(
        self, orders: Orders, visit: Callable[[GoTo], str], note: Callable[[str, str], None], tell: Tell
    ) -> None:
        self._orders, self._visit, self._note, self._tell = orders, visit, note, tell
        self._state: Literal["running", "paused", "stopping"] = "running"

    @property
    def paused(self) -> bool:
        return self._state == "paused"

    @property
    def stopping(self) -> bool:
        return self._state == "stopping"

    def listen(self, wait: Callable[[float], None]) -> None:
        """Carry out what was ordered; returns when the run may go on. Call it between two stacks only.

        Parameters
        ----------
        wait : callable
            Lets so many seconds pass while the run is paused.

        Raises
        ------
        Stopped
            After a `Stop`, once.
        """
        self._obey()
        while self.paused:
            wait(_LOOK_S)
            self._obey()

    def _obey(self) -> None:
        for order in self._orders():
            self._note(describe(order), self._done(order))
        if self._state == "stopping":
            raise Stopped

    def _done(self, order: Order) -> str:
        if self._state == "stopping":
            return "too late: the run is stopping"
        match order:
            case Pause():
                self._become("paused", "paused by the operator")
            case Resume():
                self._become("running", "")
            case Stop():
                self._become("stopping", "stopped by the operator")
            case GoTo():
                done = self._visit(order)
                # Going on at once would drive away again before anybody has looked.
                self._become("paused", "paused by the operator, who went to another place")
                return done
        return "done"

    def _become(self, state: Literal["running", "paused", "stopping"], why: str) -> None:
        self._state = state
        self._tell(StateChanged(state, why))
