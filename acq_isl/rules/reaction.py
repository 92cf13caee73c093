"""How soon a trigger's action is carried out. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from acq_isl.base import StrictModel

Then = Literal["finish", "repeat"]


class AfterStack(StrictModel):
    """When the stack that is being acquired is complete."""

    within: Literal["stack"] = "stack"


class AfterSlice(StrictModel):
    """When the slice that is being exposed is there; the stack is interrupted."""

    within: Literal["slice"] = "slice"
    then: Then = "finish"
    """What becomes of the interrupted stack after the action: take the slices that are missing (``finish``),
    or all of them anew (``repeat``), where the specimen may have moved meanwhile."""


React = Annotated[AfterStack | AfterSlice, Field(discriminator="within")]
