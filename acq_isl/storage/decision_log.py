"""What was decided and how much light each position got: one line a record, each sealed by the one before."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import to_json

from acq_isl.errors import StorageError

_START = "0" * 64
_SEAL = "sha256"
_RESERVED = {"n", "time", "kind", "previous", _SEAL}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Verified:
    """An unbroken ledger."""

    lines: int
    closed: bool  # whether it was closed in order. If not, the run ended hard, or lines were cut off its end.
    seal: str  # hash of the last line. Noted elsewhere (the report has it), it vouches for all lines before.


class Ledger:
    """Append-only ``decisions.jsonl``; every line is on the disk when its call returns, but for `note`.

    A line is a JSON object: ``n`` (from 0), ``time`` (ISO 8601, UTC), ``kind``, the caller's entries,
    ``previous`` (seal of the line before, 64 zeros for the first) and ``sha256`` (its own seal: the hash
    of the line without that entry). Entries of any run are read back by `verify` and `read`.

    An existing ledger is verified and continued. Safe to use from several threads. StorageError on entry if
    the file cannot be written, or exists and is damaged. ``clock`` gives Unix time in seconds.
    """

    def __init__(self, path: Path | str, clock: Callable[[], float] = time.time) -> None:
        self._path = Path(path)
        self._clock = clock
        self._lock = threading.RLock()
        self._file: FileIO | None = None
        self._lines = 0
        self._seal = _START
        self._dose_ms: dict[str, dict[str, float]] = {}

    def __enter__(self) -> Ledger:
        if self._path.exists():
            for line in _lines(self._path):
                self._count(line)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            why = {} if error is None else {"why": str(error)}
            self.write("closed", ended="in order" if kind is None else f"by {kind.__name__}", **why)
        except StorageError as failure:
            if kind is None:
                raise
            _log.error("the ledger was not closed in order: %s", failure)
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None

    @property
    def dose_ms(self) -> dict[str, dict[str, float]]:
        """Exposure so far by position and channel, in milliseconds; a copy."""
        with self._lock:
            return {position: dict(channels) for position, channels in self._dose_ms.items()}

    def write(self, kind: str, **entries: Any) -> dict[str, Any]:
        """Append one record and return it as written; StorageError if the disk is full or gone.

        Entries may be numbers, text, lists, mappings, dataclasses and pydantic models; a number that is
        not finite is written as null.
        """
        return self._record(kind, entries, sync=True)

    def note(self, kind: str, **entries: Any) -> dict[str, Any]:
        """As `write`, for what nobody acts upon before the next line, which waits for the disk."""
        return self._record(kind, entries, sync=False)

    def _record(self, kind: str, entries: Mapping[str, Any], sync: bool) -> dict[str, Any]:
        if clash := _RESERVED & entries.keys():
            raise ValueError(
                f"the ledger writes {', '.join(sorted(clash))} itself: call the entries otherwise"
            )
        with self._lock:
            now = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
            line = {"n": self._lines, "time": now, "kind": kind, **_plain(entries), "previous": self._seal}
            line[_SEAL] = _hash(line)
            self._append(_written(line) + b"\n", sync)
            self._count(line)
            return line

    def dose(
        self,
        position: str,
        channel: str,
        exposure_ms: float,
        slices: int = 1,
        about: Mapping[str, Any] | None = None,
        sync: bool = True,
    ) -> None:
        """Book the light of one stack, or of a part of it: ``slices`` exposures of ``exposure_ms`` each.

        ``about`` are further entries, such as where and when. Without ``sync`` as `note`.
        """
        total = exposure_ms * slices
        if not (math.isfinite(total) and total >= 0):
            raise ValueError(f"a dose is finite and not negative, not {slices} x {exposure_ms} ms")
        with self._lock:
            sum_ms = self._dose_ms.get(position, {}).get(channel, 0.0) + total
            place = {**(about or {}), "position": position, "channel": channel}
            entries = {**place, "exposure_ms": total, "slices": slices, "sum_ms": sum_ms}
            self._record("dose", entries, sync)

    def _append(self, line: bytes, sync: bool) -> None:
        if self._file is None:
            raise StorageError(f"the ledger {self._path} is not open", fix="use it inside 'with Ledger(...)'")
        end = self._file.tell()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if sync:
                os.fsync(self._file.fileno())
        except OSError as error:
            self._take_back(end)
            raise self._unwritable(error) from error

    def _take_back(self, end: int) -> None:
        """Half a line would break the chain for what is written after space was made."""
        try:
            if self._file is not None:
                self._file.close()
            self._file = None
            os.truncate(self._path, end)
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            _log.error("the ledger %s may end in half a line: %s", self._path, error)

    def _count(self, line: Mapping[str, Any]) -> None:
        self._lines += 1
        self._seal = str(line[_SEAL])
        if line["kind"] == "dose":
            channels = self._dose_ms.setdefault(str(line["position"]), {})
            channels[str(line["channel"])] = channels.get(str(line["channel"]), 0.0) + line["exposure_ms"]

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(
            f"decisions cannot be written to {self._path}",
            got=error.strerror or str(error),
            fix="free some disk space or choose another output folder; nothing is decided unrecorded",
        )


def verify(path: Path | str) -> Verified:
    """Check every seal of a ledger; StorageError names the first line that does not hold.

    Any line that was edited, removed, added or moved is found. Not found: a whole ledger written anew
    by somebody who recomputes all seals, and whole lines cut off the end of a run that ended hard; compare
    `Verified.seal` with the one noted in the report.
    """
    count, seal, kind = 0, _START, ""
    for line in _lines(Path(path)):
        count, seal, kind = count + 1, str(line[_SEAL]), str(line["kind"])
    return Verified(count, kind == "closed", seal)


def read(path: Path | str) -> tuple[dict[str, Any], ...]:
    """All records of a ledger, verified; raises as `verify`."""
    return tuple(_lines(Path(path)))


def read_intact(path: Path | str) -> tuple[tuple[dict[str, Any], ...], StorageError | None]:
    """The records before the first that does not hold, and what is wrong with that one; None if all hold."""
    lines: list[dict[str, Any]] = []
    try:
        for line in _lines(Path(path)):
            lines.append(line)
    except StorageError as error:
        return tuple(lines), error
    return tuple(lines), None


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        what = f"the ledger {path} cannot be read"
        raise StorageError(what, got=error.strerror, fix="check the path") from error
    seal = _START
    for number, raw in enumerate(data.split(b"\n")[:-1]):
        try:
            line = json.loads(raw)
            intact = raw == _written(line)  # also a blank, which no hash of the values would tell
            held = line.pop(_SEAL)
            intact &= line["n"] == number and line["previous"] == seal and held == _hash(line)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _broken(path, number, "a line that is not a ledger record") from error
        if not intact:
            got = "a seal that does not match: a line was edited, removed, added or moved"
            raise _broken(path, number, got)
        seal = held
        yield {**line, _SEAL: held}
    if data and not data.endswith(b"\n"):
        raise _broken(path, data.count(b"\n"), "a last line that was cut off, as after a power failure")


def _broken(path: Path, number: int, got: str) -> StorageError:
    return StorageError(
        f"the ledger {path} does not hold from line {number + 1} on",
        wanted="an unbroken chain of records",
        got=got,
        fix="keep the file as evidence and start the next run in a new folder",
    )


def _written(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False, allow_nan=False).encode()


def _hash(line: Mapping[str, Any]) -> str:
    text = json.dumps(line, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(entries: Mapping[str, Any]) -> dict[str, Any]:
    """JSON's own types only, so that a line reads back as it was hashed."""

    def fallback(value: Any) -> Any:
        return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)

    plain: dict[str, Any] = json.loads(to_json(entries, inf_nan_mode="null", fallback=fallback))
    return plain
