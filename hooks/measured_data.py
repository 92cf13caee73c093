"""Measured data on disk: room for it, writing that never kills the saving thread, and reading it back."""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from acq_isl.errors import AcqIslError, SliceLost, StorageError
from acq_isl.files import write_whole
from acq_isl.hooks.progress import axes_key, axes_text
from acq_isl.readers.ndtiff import INDEX, index_entries
from acq_isl.stack import Uint16Image

logger = logging.getLogger(__name__)

_PREALLOCATED_BYTES = 4 << 30
_MARGIN_BYTES = 64 << 20
_METADATA_BYTES = 4096
# Bytes from the pointer to the next image directory to the pixels (ndstorage's writer): 4 + 2 * 8.
_POINTER_BEFORE_PIXELS = 20


def free_bytes(folder: Path) -> int:
    """Free space where a folder is, or will be."""
    for place in (folder, *folder.absolute().parents):
        if place.exists():
            return shutil.disk_usage(place).free
    raise StorageError(f"there is no such drive: {folder}")


def require_space(folder: Path, images: int, image_bytes: int, free: Callable[[Path], int]) -> None:
    """Check that a number of images fits; StorageError says how much is missing.

    NDTiff files claim 4 GiB when they are created. Where that is only a claim (a sparse file) the disk can
    still fill up in the middle; where it is real (Windows) it must fit before the first image.
    """
    needed = images * (image_bytes + _METADATA_BYTES) + _MARGIN_BYTES
    if os.name == "nt" and images == 0:
        needed += _PREALLOCATED_BYTES
    left = free(folder)
    if left < needed:
        raise StorageError(
            f"the disk of {folder} is too full for {images} more images",
            wanted=f"{needed / 1e6:.0f} MB free",
            got=f"{left / 1e6:.0f} MB free",
            fix="free some space, or save to another disk",
        )


class GuardedStorage:
    """Stands between Pycro-Manager's saving thread and its dataset (Python backend).

    Unlike the dataset it never raises there, since that would end the saving thread and hang the run; it
    never overwrites an image, and it flushes the index, so that the data survives a killed process. After a
    `StorageError`, which goes to ``report``, nothing more is written, and what was stays readable.
    """

    def __init__(self, dataset: Any, report: Callable[[AcqIslError], None]) -> None:
        from ndstorage.ndtiff_dataset import NDTiffDataset

        self._dataset = dataset
        self._on_disk = isinstance(dataset, NDTiffDataset)
        self._report = report
        self._broken = False
        self._last: Any = None
        self._writer: Any = None

    def put_image(self, axes: dict[str, int | str], pixels: Any, metadata: dict[str, Any]) -> None:
        """Store an image, or report why not."""
        what = axes_text(axes_key(axes))
        if self._broken or self.is_finished():
            logger.warning("%s came after storage had stopped and is lost", what)
            return
        if self._dataset.has_image(**axes):
            message = f"{what} was stored before; the second image was not written over the first"
            self._report(StorageError(message))
            return
        try:
            self._dataset.put_image(axes, pixels, metadata)
            self._flush_index()
        except Exception as error:
            logger.warning("could not store %s", what, exc_info=True)
            self._broken = True
            self._abandon(axes)
            self._report(_storage_error(what, error))

    def finish(self) -> None:
        """Close the files; whatever happens, the dataset counts as finished afterwards."""
        if self.is_finished():
            return
        try:
            self._dataset.finish()
            if self._on_disk and (Path(self._dataset.path) / INDEX).is_file():  # not without any image
                sort_index(Path(self._dataset.path))
        except Exception as error:
            logger.warning("could not finish the dataset", exc_info=True)
            self._report(_storage_error("the end of the dataset", error))
        finally:
            self._dataset._finished_event.set()

    def is_finished(self) -> bool:
        return bool(self._dataset.is_finished())

    def block_until_finished(self, timeout: float | None = None) -> bool:
        return bool(self._dataset.block_until_finished(timeout))

    def _flush_index(self) -> None:
        if not self._on_disk:
            return
        # Buffered, the index of a killed process is empty and none of its images can be found.
        self._dataset._index_file.flush()
        writer = self._dataset.current_writer
        if writer is not self._writer:
            self._writer = writer
            writer.reader.close()  # ndstorage opens it for nothing and never closes it
        self._last = next(reversed(self._dataset.index.values()))

    def _abandon(self, axes: dict[str, int | str]) -> None:
        """Cut off a half-written image, so that all before it can be read and the disk has room to close."""
        if not self._on_disk:
            return
        self._dataset._write_pending_images.pop(axes_key(axes), None)
        writer = self._dataset.current_writer
        if writer is None:
            return
        self._dataset.current_writer = None
        try:
            writer.reader.close()
            writer.file.raw.close()
            _truncate(Path(writer.filename), self._last)
        except OSError as error:
            self._report(_storage_error("the last file", error))


def _truncate(file: Path, last: Any) -> None:
    """End an NDTiff file after its last whole image, or after its header where there is none."""
    with file.open("r+b") as handle:
        if last is None or Path(last.filename).name != file.name:
            handle.seek(24)
            end, pointer = 28 + struct.unpack("<I", handle.read(4))[0], 4
        else:
            end = last.metadata_offset + last.metadata_length
            pointer = last.pix_offset - _POINTER_BEFORE_PIXELS
        handle.truncate(end)
        handle.seek(pointer)
        handle.write(bytes(4))


def _storage_error(what: str, error: Exception) -> StorageError:
    failed = StorageError(
        f"{what} could not be stored",
        got=f"{type(error).__name__}: {error}",
        fix="check the disk; what was captured before is kept",
    )
    failed.__cause__ = error
    return failed


def sort_index(folder: Path) -> None:
    """Write the axes of every index entry in the same order.

    Pycro-Manager writes them in the random order of a set. Versions of tifffile before the fix of its issue
    311 take the first entry's order for all, and silently shuffle the images; later ones warn.
    """
    entries = (_encode(dict(sorted(axes.items())), rest) for axes, rest in index_entries(folder))
    write_whole(folder / INDEX, b"".join(entries))


def _encode(axes: dict[str, int | str], rest: bytes) -> bytes:
    encoded = json.dumps(axes).encode()
    return struct.pack("<I", len(encoded)) + encoded + rest


@contextmanager
def open_measured(folder: Path) -> Iterator[Any]:
    """Open an NDTiff dataset for reading, finished or left behind by a killed process.

    Yields an ``ndstorage.NDTiffDataset``; ask it for images by name, never by number:
    ``read_image(position="A1", channel="DAPI", z=0)``. StorageError if there is no readable dataset.
    """
    from ndstorage.ndtiff_dataset import NDTiffDataset

    if not (folder / INDEX).is_file():
        raise StorageError(
            f"{folder} is not an NDTiff dataset",
            wanted=f"a file {INDEX}",
            fix="give the folder Pycro-Manager made",
        )
    # With summary metadata it neither prints nor trusts the end of the index.
    dataset = NDTiffDataset(str(folder), summary_metadata={}, writable=False)
    dataset.major_version, dataset.minor_version = 0, 0
    try:
        for axes, rest in index_entries(folder):
            dataset.add_index_entry(_encode(axes, rest))
        yield dataset
    finally:
        dataset.close()


def read_slices(dataset: Any, axes: Sequence[dict[str, int | str]]) -> Uint16Image:
    """Images of an ndstorage dataset by their axes, (z, y, x) uint16; SliceLost names what is not there."""
    missing = [axes_text(axes_key(place)) for place in axes if not dataset.has_image(**place)]
    if missing:
        raise SliceLost(
            f"{len(missing)} of {len(axes)} slices are not in the measured data", got=", ".join(missing[:5])
        )
    slices: Uint16Image = np.stack([dataset.read_image(**place) for place in axes])
    return slices.astype(np.uint16, copy=False)
