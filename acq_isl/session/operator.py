"""An operator's commands, carried out between two stacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, assert_never

from acq_isl.commands import Command, CommandSource, GoTo, Pause, Resume, Stop, describe
from acq_isl.events import EventHandler, StateChanged

_LOOK_S = 0.1


_BY_OPERATOR = "stopped by the operator"


class Stopped(Exception):
    """The operator or a rule, as its text says, ended the run; it is wound up in order."""


class Operator:
    """Whether the run goes on, waits, or ends.

    ``commands`` are those since the last call; ``visit`` goes to a point and returns what became of it;
    ``note`` writes down a command and what became of it; ``emit`` gets the changes of state.
    """

    def __init__(
        self,
        commands: CommandSource,
        visit: Callable[[GoTo], str],
        note: Callable[[str, str], None],
        emit: EventHandler,
    ) -> None:
        self._commands, self._visit, self._note, self._emit = commands, visit, note, emit
        self._state: Literal["running", "paused", "stopping"] = "running"
        self._why = ""

    @property
    def paused(self) -> bool:
        return self._state == "paused"

    @property
    def stopping(self) -> bool:
        return self._state == "stopping"

    @property
    def stopped_it(self) -> bool:
        """Whether the operator ended the run, not a rule."""
        return self.stopping and self._why == _BY_OPERATOR

    def pause(self, why: str) -> None:
        """Wait, from the next stack on, until the operator goes on; ``why`` is for people."""
        if self._state == "running":
            self._change("paused", why)

    def stop(self, why: str) -> None:
        """End the run in order before the next stack; ``why`` is for people."""
        self._change("stopping", why)

    def listen(self, wait: Callable[[float], None]) -> None:
        """Carry out the commands; returns when the run may go on, or raises `Stopped`, once.

        Call it between two stacks only. ``wait`` lets so many seconds pass while the run is paused.
        """
        self._look()
        while self.paused:
            wait(_LOOK_S)
            self._look()

    def _look(self) -> None:
        for command in self._commands():
            self._note(describe(command), self._carry_out(command))
        if self._state == "stopping":
            raise Stopped(self._why)

    def _carry_out(self, command: Command) -> str:
        if self._state == "stopping":
            return "too late: the run is stopping"
        match command:
            case Pause():
                self._change("paused", "paused by the operator")
            case Resume():
                self._change("running", "")
            case Stop():
                self._change("stopping", _BY_OPERATOR)
            case GoTo():
                done = self._visit(command)
                # Going on at once would drive away again before anybody has looked.
                self._change("paused", "paused by the operator, who went to another place")
                return done
            case _:
                assert_never(command)
        return "done"

    def _change(self, state: Literal["running", "paused", "stopping"], why: str) -> None:
        self._state, self._why = state, why
        self._emit(StateChanged(state, why))
