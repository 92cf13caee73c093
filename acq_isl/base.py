"""The base of everything that is read from a file, a command line or a socket."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Frozen; a key nobody knows is an error, and so is a number that is none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class WireModel(StrictModel):
    """Between programs that both write exact types: nothing is converted, and NaN is told as such."""

    model_config = ConfigDict(strict=True, allow_inf_nan=True, ser_json_inf_nan="constants")
