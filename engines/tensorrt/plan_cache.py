"""Built plans on disk: keyed by everything they depend on, checked before use, built again when in doubt."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import filelock
from pydantic import Field, ValidationError

from acq_isl.base import StrictModel
from acq_isl.errors import EngineError
from acq_isl.files import default_folder, write_whole

_log = logging.getLogger(__name__)
_LOCK_TIMEOUT_S = 1800.0  # another process may be building the same plan, which can take many minutes
_HASH_DIGITS = 16


Precision = Literal["fp16", "fp32", "int8"]
ProfileName = Literal["live", "bulk"]
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""Smallest, optimal and largest shape of every input."""


class PlanKey(StrictModel):
    """Everything a plan depends on; equal keys may share a plan."""

    onnx_sha256: str
    flavour: str
    """Package it was built with, such as ``tensorrt_rtx``."""
    version: str
    """Exact version of that package."""
    precision: Precision
    profile: ProfileName
    shapes: Shapes
    targets: tuple[str, ...] = ()
    """Compute capabilities; none named means the flavour's portable default."""
    gpu: str = ""
    """Name, capability and driver of the GPU it was built on; empty for portable plans."""
    flags: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Name of the plan's files."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]


class PlanNote(StrictModel):
    """What lies beside a plan: its key, its hash, and how it came about."""

    format: str = Field(default="acq-isl-plan/1", pattern=r"^acq-isl-plan/1$")
    key: PlanKey
    model: str
    """Name and version of the model, for people."""
    field_px: tuple[int, int]
    """Rows and columns of the field it was built for."""
    plan_sha256: str
    plan_bytes: int = Field(ge=0)
    built_s: float = Field(ge=0)
    """Seconds the build took."""
    built_at: str
    """ISO 8601 local time with offset."""
    agreement: dict[str, float] = Field(default_factory=dict)
    """Precision against fp32 on a processor, as `acq_isl.engines.agreement` measured it."""


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan on disk."""

    path: Path
    note: PlanNote | None
    """None if it is missing or damaged; such a plan is never used."""
    size_bytes: int


class PlanStore:
    """A folder of plans that several processes may share, by default in the user's cache.

    A process waits for ``lock_timeout_s`` for another one that builds the same plan.
    """

    def __init__(self, folder: Path | None = None, *, lock_timeout_s: float = _LOCK_TIMEOUT_S) -> None:
        self.folder = default_folder() / "plans" if folder is None else folder
        self._lock_timeout_s = lock_timeout_s

    def path(self, key: PlanKey) -> Path:
        """Where the plan of a key is or would be."""
        return self.folder / f"{key.digest}.plan"

    @contextmanager
    def locked(self, key: PlanKey) -> Iterator[None]:
        """Keep other processes from building the same plan at the same time; EngineError if that fails."""
        lock = filelock.FileLock(self.path(key).with_suffix(".lock"), timeout=self._lock_timeout_s)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout as error:
            raise EngineError(
                f"another process has been building the same plan for {self._lock_timeout_s:g} s",
                fix=f"wait for it or end it, then try again; its lock is {lock.lock_file}",
            ) from error
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        try:
            yield
        finally:
            lock.release()

    def load(self, key: PlanKey) -> tuple[bytes, PlanNote] | None:
        """A plan whose note, key and hash all fit; None, with a warning in the log, if it must be rebuilt."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            note = _note(path)
            content = path.read_bytes()
        except (OSError, ValidationError) as error:
            reason = str(error).partition("\n")[0]
            _log.warning("plan %s cannot be used and will be rebuilt: %s", path, reason)
            return None
        if note.key != key:
            _log.warning("plan %s was built for something else and will be rebuilt", path)
            return None
        if hashlib.sha256(content).hexdigest() != note.plan_sha256:
            _log.warning("plan %s is damaged and will be rebuilt", path)
            return None
        return content, note

    def save(self, content: bytes, note: PlanNote) -> Path:
        """Keep a plan, whole or not at all; EngineError if the folder cannot be written."""
        path = self.path(note.key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Without its note a plan is not used, so the note goes last.
            _note_path(path).unlink(missing_ok=True)
            write_whole(path, content)
            write_whole(_note_path(path), note.model_dump_json(indent=1).encode())
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        return path

    def discard(self, key: PlanKey) -> None:
        """Forget a plan that turned out to be of no use."""
        try:
            # The note first: without it a plan is not used, should deleting the plan itself fail.
            _note_path(self.path(key)).unlink(missing_ok=True)
            self.path(key).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self.folder, error) from error

    def list(self) -> tuple[StoredPlan, ...]:
        """Every plan in the folder, damaged ones too, by model and age."""
        found = []
        for path in self.folder.glob("*.plan"):
            try:
                note: PlanNote | None = _note(path)
            except (OSError, ValidationError):
                note = None
            found.append(StoredPlan(path, note, path.stat().st_size))
        return tuple(sorted(found, key=lambda p: (p.note.model, p.note.built_at) if p.note else ("", "")))

    def clear(self, onnx_sha256: str | None = None) -> tuple[int, int]:
        """Delete the plans of a model, or all, and what was kept with them; how many files and bytes.

        EngineError if a file is in use or may not be deleted.
        """
        files, size = 0, 0
        for path in tuple(self._all() if onnx_sha256 is None else self._of(onnx_sha256)):
            try:
                n = path.stat().st_size
                path.unlink(missing_ok=True)
            except OSError as error:
                raise EngineError(
                    f"{path} cannot be deleted: {error}", fix="stop the engines that use it, then try again"
                ) from error
            files, size = files + (path.suffix != ".lock"), size + n
        return files, size

    def _all(self) -> Iterator[Path]:
        kinds = (".plan", ".json", ".kernels", ".timings", ".lock", ".partial")
        return (path for path in self.folder.glob("*") if path.suffix in kinds)

    def _of(self, onnx_sha256: str) -> Iterator[Path]:
        for plan in self.list():
            if plan.note is None or plan.note.key.onnx_sha256 != onnx_sha256:
                continue
            yield from self.folder.glob(f"{plan.note.plan_sha256[:_HASH_DIGITS]}-*.kernels")
            yield from self.folder.glob(f"{plan.path.stem}.*")


def _note_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _note(path: Path) -> PlanNote:
    return PlanNote.model_validate_json(_note_path(path).read_bytes())


def _unwritable(folder: Path, error: OSError) -> EngineError:
    return EngineError(
        f"plans cannot be kept in {folder}: {error}",
        wanted="a folder that can be written, with room for some hundred MB",
        fix="free some space, or name another folder in the environment variable ACQ_ISL_CACHE",
    )
