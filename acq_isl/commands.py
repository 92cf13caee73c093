"""What an operator may ask of a run. A session looks for orders between two stacks, never inside one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

_Um = Annotated[float, Field(allow_inf_nan=False)]


class _Order(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pause(_Order):
    """Acquire nothing more until `Resume` or `Stop`."""

    kind: Literal["pause"] = "pause"


class Resume(_Order):
    """Go on after `Pause` or `GoTo`."""

    kind: Literal["resume"] = "resume"


class Stop(_Order):
    """End the run in order: what was captured is predicted, kept and reported; nothing more is acquired."""

    kind: Literal["stop"] = "stop"


class GoTo(_Order):
    """Move the stage to a point, take one plane in transmitted light there, and pause.

    Checked against the limits, dosed and written down as every other stack.
    """

    kind: Literal["go_to"] = "go_to"
    x_um: _Um
    y_um: _Um
    z_um: _Um | None = None
    """The middle of the overview stacks if not given."""


Order = Annotated[Pause | Resume | Stop | GoTo, Field(discriminator="kind")]
Orders = Callable[[], tuple[Order, ...]]


def no_orders() -> tuple[Order, ...]:
    """Nobody asks for anything."""
    return ()


def describe(order: Order) -> str:
    """An order, for people."""
    match order:
        case Pause():
            return "pause"
        case Resume():
            return "go on"
        case Stop():
            return "stop"
        case GoTo(x_um=x, y_um=y, z_um=z):
            height = "" if z is None else f", z {z:g} um"
            return f"go to x {x:g} um, y {y:g} um{height}"
