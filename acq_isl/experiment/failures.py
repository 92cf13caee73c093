"""What becomes of a run whose stage, camera or another device fails at a stack."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from acq_isl.base import StrictModel

InARow = Annotated[int, Field(ge=1)]


class SkipStack(StrictModel):
    """The stack is left out and told, and the run goes on with the next one."""

    kind: Literal["skip"] = "skip"
    in_a_row: InARow = 3
    """After so many failed stacks, one after the other, the run ends."""


class RetryStack(StrictModel):
    """The stack is taken again, all of it; then it is left out as with ``skip``."""

    kind: Literal["retry"] = "retry"
    times: int = Field(default=1, ge=1, le=10)
    """How often it is taken again."""
    in_a_row: InARow = 3
    """After so many failed stacks, one after the other, the run ends."""


class StopRun(StrictModel):
    """The run ends; what was captured is kept, and `--resume` goes on."""

    kind: Literal["stop"] = "stop"


OnFailure = Annotated[SkipStack | RetryStack | StopRun, Field(discriminator="kind")]
