"""What an operator may ask of a run. A session looks for commands between two stacks, never inside one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, assert_never

from pydantic import Field

from acq_isl.base import StrictModel


class Pause(StrictModel):
    """Acquire nothing more until `Resume` or `Stop`."""

    kind: Literal["pause"] = "pause"


class Resume(StrictModel):
    """Go on after `Pause` or `GoTo`."""

    kind: Literal["resume"] = "resume"


class Stop(StrictModel):
    """End the run in order: what was captured is predicted, kept and reported; nothing more is acquired."""

    kind: Literal["stop"] = "stop"


class GoTo(StrictModel):
    """Move the stage to a point, take one plane in transmitted light there, and pause.

    Checked against the limits, dosed and written down as every other stack.
    """

    kind: Literal["go_to"] = "go_to"
    x_um: float
    y_um: float
    z_um: float | None = None
    """The middle of the overview stacks if not given."""


Command = Annotated[Pause | Resume | Stop | GoTo, Field(discriminator="kind")]
CommandSource = Callable[[], tuple[Command, ...]]


def no_commands() -> tuple[Command, ...]:
    """Nobody asks for anything."""
    return ()


def describe(command: Command) -> str:
    """A command, for people."""
    match command:
        case Pause():
            return "pause"
        case Resume():
            return "go on"
        case Stop():
            return "stop"
        case GoTo(x_um=x, y_um=y, z_um=z):
            height = "" if z is None else f", z {z:g} um"
            return f"go to x {x:g} um, y {y:g} um{height}"
        case _:
            assert_never(command)


# Names that these had before.
Order = Command
Orders = CommandSource
no_orders = no_commands
