"""How often a set of images was scored while something was chosen: a log, and what a card says of it.

A set that was looked at often, while recipes were picked by its scores, says less than one that nobody looked
at. The log is a file of one JSON object a line; `count_looks` puts it into a model file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from acq_isl.base import StrictModel
from acq_isl.errors import StorageError
from acq_isl.manifest import Looks


class Look(StrictModel):
    """A set of images was scored, at a time (ISO 8601, UTC), with models (SHA-256 or names), and why."""

    at: str
    dataset: str
    models: tuple[str, ...]
    why: str


def note_look(log: Path, dataset: str, models: Sequence[str], why: str) -> None:
    """Append a line; `StorageError` if the log cannot be written."""
    look = Look(
        at=datetime.now(UTC).isoformat(timespec="seconds"), dataset=dataset, models=tuple(models), why=why
    )
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(look.model_dump_json() + "\n")
    except OSError as error:
        raise StorageError(
            f"the log of looks {log} cannot be written", got=str(error), fix="choose another place"
        ) from error


def read_looks(log: Path) -> list[Look]:
    """All of them; `StorageError` names the line that is none."""
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(
            f"the log of looks {log} cannot be read", got=str(error), fix="check the path"
        ) from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Look.model_validate(json.loads(line)))
        except (ValueError, ValidationError) as error:
            raise StorageError(
                f"line {number} of {log} is no look", got=line[:80], fix="take that line out, or correct it"
            ) from error
    return found


def count_looks(before: Sequence[Looks], looks: Sequence[Look]) -> tuple[Looks, ...]:
    """What a card says: for each set and purpose how often, and when last. It replaces what was said of the
    same before, so that a log may be written into a card again when it has grown."""
    counts: dict[tuple[str, str], Looks] = {}
    for look in looks:
        key = look.dataset, look.why
        old = counts.get(key, Looks(dataset=look.dataset, why=look.why, times=0, last=""))
        counts[key] = old.model_copy(update={"times": old.times + 1, "last": max(old.last, look.at)})
    kept = {(each.dataset, each.why): each for each in before}
    return tuple((kept | counts).values())
