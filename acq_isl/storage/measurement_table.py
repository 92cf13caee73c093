"""``measurements.csv``: every stack of a run and what was measured of it, a line each, as the run goes.

A line is handed to the system whole and at once, so a program that is killed leaves whole lines. Of several
lines about the same the last one counts: a stack that waited is predicted later.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Self

from acq_isl.errors import StorageError

FILE = "measurements.csv"


@dataclass(frozen=True, slots=True)
class TableRow:
    """One line.

    ``state`` is ``time point`` (it begins), ``imaged``, ``predicted``, ``refused``, ``waits``, ``failed`` or
    ``measured`` (of the images themselves, such as drift). ``time_point`` counts from 0, ``elapsed_s`` from
    the first time point to the last slice of the stack; ``sd`` is one SD of ``value``, both NaN where not
    known; ``written`` is when the line was, ISO 8601.
    """

    state: str
    time_point: int
    position: str = ""
    well: str = ""
    channel: str = ""
    x_um: float = math.nan
    y_um: float = math.nan
    z_um: float = math.nan
    elapsed_s: float = math.nan
    measurement: str = ""
    value: float = math.nan
    sd: float = math.nan
    unit: str = ""
    note: str = ""
    written: str = ""


_NAMES = tuple(field.name for field in fields(TableRow))
_NUMBERS = {"x_um", "y_um", "z_um", "elapsed_s", "value", "sd"}


class MeasurementTable:
    """Appends rows; what a run before wrote stays. StorageError if the file cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        try:
            self._file = self._path.open("ab", buffering=0)
            kept = _whole(self._path.read_bytes())
            if kept < self._file.tell():  # half a line, after a power failure
                os.truncate(self._path, kept)
            if not kept:
                self._file.write(_line(_NAMES))
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, rows: Iterable[TableRow]) -> None:
        """Write rows; StorageError if the disk refuses."""
        text = b"".join(_line(_cell(value) for value in astuple(row)) for row in rows)
        end = self._file.tell()
        try:
            if self._file.write(text) != len(text):
                os.truncate(self._path, end)
                raise OSError("the disk is full")
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(
            f"measurements cannot be written to {self._path}",
            got=error.strerror or str(error),
            fix="free some disk space; the data are not affected",
        )


def read_table(path: Path) -> tuple[TableRow, ...]:
    """All whole lines that this version understands; none if there is no file."""
    try:
        text = path.read_bytes()
    except OSError:
        return ()
    reader = csv.DictReader(io.StringIO(text[: _whole(text)].decode("utf-8", "replace"), newline=""))
    return tuple(row for line in reader if (row := _row(line)) is not None)


def _row(line: dict[str, str]) -> TableRow | None:
    try:
        numbers = {name: float(line.get(name) or "nan") for name in _NUMBERS}
        words = {name: line.get(name) or "" for name in _NAMES if name not in {*_NUMBERS, "time_point"}}
        return TableRow(time_point=int(line["time_point"]), **words, **numbers)  # type: ignore[arg-type]
    except (KeyError, ValueError, TypeError):
        return None


def _whole(text: bytes) -> int:
    return text.rfind(b"\n") + 1


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    return " ".join(str(value).split("\n"))


def _line(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(list(cells))
    return text.getvalue().encode()
