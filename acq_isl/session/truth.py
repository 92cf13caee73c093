"""Which cells were truly there in the fields of a simulated run, kept for those who look at the run later."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from acq_isl.errors import StorageError
from acq_isl.files import write_whole
from acq_isl.sim import CellTruth
from acq_isl.stack import StackKey

FILE = "truth.json"
_MARKED = 0.25  # as in grading: such a cell is truly shown by a label


@dataclass(frozen=True, slots=True)
class TrueField:
    """Cells of an overview stack while it was imaged: how bright each label truly is in each, by its name."""

    key: StackKey
    cells: Mapping[str, Mapping[str, float]]


_FIELDS = TypeAdapter(tuple[TrueField, ...])


def write_truth(folder: Path, cells: Mapping[StackKey, tuple[CellTruth, ...]]) -> None:
    fields = tuple(TrueField(key, {one.id: dict(one.markers) for one in some}) for key, some in cells.items())
    write_whole(folder / FILE, json.dumps(_FIELDS.dump_python(fields, mode="json")))


def read_truth(folder: Path) -> tuple[TrueField, ...]:
    """Empty if the run has none; StorageError if it cannot be read."""
    path = folder / FILE
    if not path.exists():
        return ()
    try:
        return _FIELDS.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise StorageError(f"the truth of the run cannot be read from {path}", got=str(error)) from error


def recall(label: str, fields: Collection[TrueField], imaged: Collection[tuple[int, str]]) -> float:
    """Share of the cells that a label truly shows which lie in the imaged (time, position); NaN without any.

    A cell counts once a time point, also where fields overlap.
    """
    wanted, found = set[tuple[int, str]](), set[tuple[int, str]]()
    for field in fields:
        time, here = field.key.time, (field.key.time, field.key.position)
        cells = {(time, cell) for cell, shown in field.cells.items() if shown.get(label, 0.0) >= _MARKED}
        wanted |= cells
        found |= cells if here in imaged else set()
    return len(found) / len(wanted) if wanted else math.nan
