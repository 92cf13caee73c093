"""The base of everything that is read from a file, a command line or a socket."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


class StrictModel(BaseModel):
    """Frozen; a key nobody knows is an error, and so is a number that is none."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class WireModel(StrictModel):
    """Between programs that both write exact types: nothing is converted, and NaN is told as such."""

    model_config = ConfigDict(strict=True, allow_inf_nan=True, ser_json_inf_nan="constants")


def _expand(path: Any) -> Any:
    return Path(path).expanduser() if isinstance(path, str) else path


Folder = Annotated[Path, BeforeValidator(_expand)]
"""A path in which ``~`` stands for the user's own folder."""
