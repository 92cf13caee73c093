"""What came of checking a part of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["holds", "differs", "not verified"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of checking a part of a run, in a sentence."""

    part: str
    state: State
    text: str
