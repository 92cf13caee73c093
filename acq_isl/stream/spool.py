"""Stacks that wait on disk while no engine answers: one OME-TIFF per stack, in a folder of the run.

Any TIFF reader opens the files. What OME cannot say exactly (the stack's info, which slices are there,
when each was captured, why it waits) is JSON in the private TIFF tag 65000. A file appears under its
name only when it is whole.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from acq_isl.base import WireModel
from acq_isl.errors import StorageError
from acq_isl.files import whole_file
from acq_isl.stack import StackInfo, Uint16Image

log = logging.getLogger(__name__)

SUFFIX = ".ome.tif"
_JSON_TAG = 65000
_NAME = re.compile(r"\d{6,}_")

SpoolReason = Literal[
    "memory full", "no engine", "failed", "incomplete", "timed out", "closed", "deadline", "cancelled"
]
"""Why a stack went to disk: the memory for waiting stacks is used up; no engine answers; the engine
failed on it; slices are missing; no prediction came in time; the client closed first; its deadline
passed; somebody cancelled it."""


class _Record(WireModel):
    format: Literal["acq-isl-spool/1"] = "acq-isl-spool/1"
    stack: Annotated[int, Field(ge=0)]
    info: StackInfo
    present: Annotated[tuple[int, ...], Field(min_length=1)]
    captured_s: tuple[float, ...]
    reason: SpoolReason
    crc32: int
    models: tuple[str, ...] = ()

    def check(self, pixels: Uint16Image) -> None:
        """ValueError unless it fits the pixels that it was read with."""
        present = self.present
        if list(present) != sorted(set(present)) or not 0 <= present[0] <= present[-1] < self.info.planes:
            raise ValueError(f"its slices {present} are not of a stack of {self.info.planes}")
        if len(self.captured_s) != len(present) or pixels.dtype != np.uint16:
            raise ValueError("its slices and its record do not fit together")
        if _crc32(pixels) != self.crc32:
            raise ValueError("its pixels are not those that were written")

    def to_ascii(self) -> str:
        """JSON in plain ASCII, as a TIFF text tag must be."""
        return json.dumps(self.model_dump(mode="json"))


@dataclass(frozen=True, slots=True, eq=False)
class SpooledStack:
    """A stack as it lies on disk, possibly without some of its slices.

    ``stack`` is its number in its run. ``present`` are the indices into ``info.z_um`` of the slices that are
    there, rising, ``captured_s`` the Unix time of each, ``pixels`` their planes, (z, y, x) uint16. ``reason``
    says why it waits, ``models`` for which models: none for the one that clients need not name.
    """

    stack: int
    info: StackInfo
    present: tuple[int, ...]
    captured_s: tuple[float, ...]
    pixels: Uint16Image
    reason: SpoolReason
    models: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return len(self.present) == self.info.planes


class Spool:
    """A folder of waiting stacks, made when the first one is written."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def write(self, stack: SpooledStack) -> Path:
        """Write a stack, the whole file or none; StorageError if the disk is full or does not allow it."""
        import tifffile

        path = self._free(f"{stack.stack:06d}_{_safe(str(stack.info.key))}")
        try:
            record = _Record(
                stack=stack.stack,
                info=stack.info,
                present=stack.present,
                captured_s=stack.captured_s,
                reason=stack.reason,
                crc32=_crc32(stack.pixels),
                models=stack.models,
            )
            self.folder.mkdir(parents=True, exist_ok=True)
            tag = (_JSON_TAG, "s", 0, record.to_ascii(), True)
            metadata = _ome(stack.info)
            with whole_file(path) as part:
                tifffile.imwrite(
                    part, stack.pixels, ome=True, photometric="minisblack", metadata=metadata, extratags=[tag]
                )
        except (OSError, ValueError) as error:
            raise StorageError(
                f"stack {stack.info.key} could not be kept on disk for a later engine: {error}",
                wanted=f"{stack.pixels.nbytes >> 20} MiB in {self.folder}",
                fix="free disk space, or start the engine",
            ) from error
        return path

    def read(self, path: Path) -> SpooledStack:
        """Read a stack back; StorageError if the file is damaged or not a spooled stack."""
        import tifffile

        try:
            with tifffile.TiffFile(path) as tiff:
                tag = tiff.pages.first.tags.get(_JSON_TAG)
                if tag is None:
                    raise ValueError("it holds no acq-isl record")
                record = _Record.model_validate_json(tag.value)
                # Page by page: the sizes in OME metadata, which tifffile believes, may be anything.
                pages = [tiff.pages[number] for number in range(len(record.present))]
                if sum(page.nbytes for page in pages) > path.stat().st_size:
                    raise ValueError("it announces more pixels than it holds")
                pixels = np.stack([page.asarray() for page in pages]).reshape(
                    len(record.present), *record.info.shape
                )
                record.check(pixels)
        # tifffile raises what its parsers stumble over, from KeyError to struct.error.
        except Exception as error:
            what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise StorageError(
                f"{path} cannot be read as a stack that waits: {what}",
                wanted="a file written by acq-isl",
                fix="leave it out; a stack that was captured is also in the measured data of its run",
            ) from error
        return SpooledStack(
            record.stack, record.info, record.present, record.captured_s, pixels, record.reason, record.models
        )

    def list(self) -> tuple[Path, ...]:
        """Files of waiting stacks, oldest first: no half-written ones of a killed run, no other people's."""
        return tuple(path for path in sorted(self.folder.glob(f"*{SUFFIX}")) if _is_ours(path))

    def _free(self, name: str) -> Path:
        """A file that is not there yet: a stack of an earlier run in this folder may have the same name."""
        path, number = self.folder / f"{name}{SUFFIX}", 2
        while path.exists():
            path, number = self.folder / f"{name}_{number}{SUFFIX}", number + 1
        return path

    def remove(self, path: Path) -> None:
        """Remove a stack that waits no longer; StorageError if it cannot be removed."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"the spooled stack {path} cannot be removed: {error}") from error


class SpoolThread:
    """One thread that reads and writes the spool, so that nobody else waits for the disk."""

    def __init__(self, limit: int = 64) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(limit + 1)
        self._limit = limit
        self._thread = threading.Thread(target=self._run, name="acq-isl spool", daemon=True)

    def __enter__(self) -> SpoolThread:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """End after the jobs that wait."""
        self._jobs.put(None, timeout=60)
        self._thread.join(timeout=60)

    def submit(self, job: Callable[[], None]) -> bool:
        """Have a job done, in order; False if too many wait. The job must not raise."""
        if self._jobs.qsize() >= self._limit:
            return False
        self._jobs.put_nowait(job)
        return True

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                log.exception("a job of the spool failed")


def _is_ours(path: Path) -> bool:
    """Whether a file holds a record, or is damaged and called as if it had held one."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            return _JSON_TAG in tiff.pages.first.tags
    except Exception:  # noqa: BLE001  whatever its parsers stumble over
        return _NAME.match(path.name) is not None


def _ome(info: StackInfo) -> dict[str, Any]:
    metadata: dict[str, Any] = {"axes": "ZYX", "Name": str(info.key), "Channel": {"Name": info.key.channel}}
    if np.isfinite(info.pixel_size_um) and info.pixel_size_um > 0:
        for side in "XY":
            metadata |= {f"PhysicalSize{side}": info.pixel_size_um, f"PhysicalSize{side}Unit": "µm"}
    return metadata


def _crc32(pixels: Uint16Image) -> int:
    return zlib.crc32(np.ascontiguousarray(pixels).reshape(-1).view(np.uint8).data)


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:100]
