"""The folder that predictions of stored stacks go to, in which everything is whole or not there at all::

OUT/
    predict.json                   what all of it depends on: model, engine, settings
    PLATE_predicted.ome.zarr/      as a run writes it; its root is written when all is done
    records/PLATE/A_1_A1003t0Phase.json    the mark that a field is done, or refused, with its numbers
    fields.csv, measurements.csv, objects.csv     the tables, written when all is done
    .partial/                      what is being written
"""

from __future__ import annotations

import json
import logging
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from acq_isl.bulk.work import Chunk, Predicted, Record, Refused, Settings
from acq_isl.errors import StorageError
from acq_isl.files import flush, write_whole
from acq_isl.stack import Prediction
from acq_isl.storage.ome_tiff import write_field_tiff
from acq_isl.storage.ome_zarr import write_field
from acq_isl.storage.prediction_store import list_images

_RECORD: TypeAdapter[Predicted | Refused] = TypeAdapter(Record)
_SWAPS = 3
log = logging.getLogger(__name__)


def noted_settings(folder: Path) -> dict[str, object]:
    """The settings of a folder of predictions as they stand there; empty if it is none yet."""
    try:
        noted: object = json.loads((folder / "predict.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


class Output:
    """Where a chunk's prediction and record lie; several processes may write chunks at once."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self._settings = folder, settings
        self._partial = folder / ".partial"

    @contextmanager
    def opened(self, data: Sequence[Path]) -> Iterator[None]:
        """The folder, made where it is not there, for one call at a time; StorageError if it is another
        job's, lies within the data, or cannot be written."""
        _check_apart(self.folder, data)
        lock = FileLock(self._partial / "lock")  # given up by the system if the process dies
        try:
            self._partial.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise StorageError(
                f"{self.folder} is being written by another process", fix="wait until it has ended"
            ) from error
        except OSError as error:
            raise self.unwritable(error) from error
        try:
            for begun in self._partial.iterdir():  # by a call that was killed
                if begun.name != "lock":
                    _remove(begun)
            self._claim()
            yield
        finally:
            lock.release()
            shutil.rmtree(self._partial, ignore_errors=True)

    def unwritable(self, error: OSError) -> StorageError:
        """What to say of an error of the disk."""
        return StorageError(
            f"{self.folder} cannot be written",
            got=str(error),
            fix="make room or choose another output folder; what is done is not done again",
        )

    def _claim(self) -> None:
        try:
            self._note_settings()
        except OSError as error:
            raise self.unwritable(error) from error

    def _note_settings(self) -> None:
        """Note the settings, or compare them with those that are there."""
        path = self.folder / "predict.json"
        mine = self._settings.model_dump(mode="json")
        if not path.exists():
            others = [each.name for each in self.folder.iterdir() if each != self._partial]
            if others:
                raise StorageError(
                    f"{self.folder} holds other things", got=", ".join(others[:5]), fix="choose a new folder"
                )
            write_whole(path, json.dumps(mine, indent=1), durable=True)
            return
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise StorageError(f"{path} cannot be read", got=str(error), fix="choose a new folder") from error
        for name in mine:
            if there.get(name) != mine[name]:
                raise StorageError(
                    f"{self.folder} holds predictions made with another {name.replace('_', ' ')}",
                    wanted=str(there.get(name)),
                    got=str(mine[name]),
                    fix="choose another output folder, or give the same settings as before",
                )

    def record(self, chunk: Chunk) -> Predicted | Refused | None:
        """What came of a chunk before; StorageError if it was another input."""
        path = self._record_path(chunk)
        try:
            found = _RECORD.validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError:
            log.warning("%s is damaged, and made anew", path)
            return None
        if isinstance(found, Predicted) and not self.image(chunk).exists():
            return None
        if found.input != chunk.input:
            raise StorageError(
                f"the files of {chunk.field} are not those that were predicted into {self.folder} before",
                fix=f"choose another output folder; to predict it again remove {path}",
            )
        return found

    def keep(self, chunk: Chunk, record: Predicted | Refused) -> None:
        """Mark a chunk as done."""
        path = self._record_path(chunk)
        path.parent.mkdir(parents=True, exist_ok=True)
        begun = self._begun()
        begun.write_text(record.model_dump_json(indent=1), encoding="utf-8")
        flush(begun)
        begun.replace(path)

    def put(self, chunk: Chunk, prediction: Prediction, colors: Mapping[str, str]) -> None:
        """Write the prediction of a chunk, in the place of one without a mark."""
        begun, path = self._begun(), self.image(chunk)
        try:
            if self._settings.output == "ome-tiff":
                write_field_tiff(begun, prediction)
            else:
                write_field(begun, prediction, colors)
            flush(begun)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._move(begun, path)
        except BaseException:
            _remove(begun)  # a full disk needs the room
            raise

    def _move(self, begun: Path, path: Path) -> None:
        """Rename; what is there, by a worker that was taken for dead, makes way."""
        for left in reversed(range(_SWAPS)):
            try:
                begun.replace(path)
                return
            except OSError:
                if not left or not path.exists():
                    raise
            aside = self._begun()
            path.replace(aside)
            _remove(aside)

    def _begun(self) -> Path:
        return self._partial / uuid.uuid4().hex

    def plate(self, group: str) -> Path:
        """Where the predictions of a plate are."""
        zarr = self._settings.output == "ome-zarr"
        return self.folder / f"{group}_predicted{'.ome.zarr' if zarr else ''}"

    def image(self, chunk: Chunk) -> Path:
        """Where the prediction of a chunk is."""
        ending = "" if self._settings.output == "ome-zarr" else ".ome.tif"
        return self.plate(chunk.group) / f"{chunk.image}{ending}"

    def _record_path(self, chunk: Chunk) -> Path:
        return self.folder / "records" / chunk.group / f"{chunk.image.replace('/', '_')}.json"

    def list_plates(self, chunks: Iterable[Chunk]) -> None:
        """Write what lists the images of each plate; before that none opens as a plate."""
        images: dict[str, list[str]] = {}
        for chunk in chunks:
            images.setdefault(chunk.group, []).append(chunk.image)
        if self._settings.output == "ome-zarr":
            for group, names in images.items():
                list_images(self.plate(group), names)


def _check_apart(folder: Path, data: Sequence[Path]) -> None:
    """StorageError where predictions would lie among what was measured."""
    for path in data:
        place = path.resolve()
        if place.is_dir() and folder.is_relative_to(place):
            raise StorageError(
                f"{folder} lies within the data {path}",
                wanted="a folder outside, for predictions are never mixed into what was measured",
                fix="choose another output folder (-o)",
            )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
