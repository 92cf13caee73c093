"""Predictions on disk: one OME-Zarr 0.5 image per field, complete or not there at all.

Fields come one by one, nobody knows how many, and a killed run must leave a store that opens; ome-writers'
own streams want every position before the first frame.

Values are float32 as predicted, not integers with a scale: 0 is background and 1 the bright end in every
reader, and a replay of the rules on a stored prediction decides as the run did.
"""

from __future__ import annotations

import json
import logging
import queue
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from acq_isl.errors import StorageError
from acq_isl.files import write_whole
from acq_isl.stack import Prediction, StackKey
from acq_isl.storage.ome_zarr import read_field, write_field

_LOOK_S = 0.1
_HUE = r"#[0-9a-fA-F]{6}"
_log = logging.getLogger(__name__)


class PredictionStore:
    """Writes ``predictions.ome.zarr`` as predictions arrive, on a thread of its own::

        predictions.ome.zarr/
            zarr.json                 a collection of images (bioformats2raw layout)
            OME/zarr.json             names of the complete fields, in order of arrival
            A1_003_t0_Phase/          axes c, y, x; um; placed at its stage coordinates
                zarr.json             channels, colours, windows; provenance under "acq_isl"
                0/                    for each label "nuclei (predicted)" and "nuclei (predicted, doubt)"

    A field is written beside the store, in ``predictions.ome.zarr.partial``, and moved in when complete:
    a run that is killed loses the fields still in the queue, never the store. `put` does not wait for the
    disk unless `queue_fields` predictions wait already. After a failed write nothing more is written, and
    every call says why.

    StorageError on entry if ``path`` exists and is not empty, unless ``extend`` says to add to what is there,
    or if it is in use or cannot be written. ``colors`` are ``#rrggbb`` by label; ``timeout_s`` is how long
    `put` may wait for a place in the queue, and closing for the disk.
    """

    def __init__(
        self,
        path: Path | str,
        colors: Mapping[str, str] | None = None,
        *,
        queue_fields: int = 8,
        timeout_s: float = 60.0,
        extend: bool = False,
    ) -> None:
        self._path = Path(path)
        self._partial = self._path.with_name(self._path.name + ".partial")
        self._colors = {name: hue for name, hue in (colors or {}).items() if re.fullmatch(_HUE, hue)}
        self._timeout_s, self._extend = timeout_s, extend
        self._owned = FileLock(self._partial / "lock")  # given up by the system if the process dies
        self._disk = threading.Lock()
        self._queue: queue.Queue[Prediction] = queue.Queue(queue_fields)
        self._closing = threading.Event()
        self._names: list[str] = []
        self._failure: StorageError | None = None
        self._thread = threading.Thread(target=self._work, name="prediction-store", daemon=True)

    def __enter__(self) -> PredictionStore:
        there = self._path.exists() and (not self._path.is_dir() or any(self._path.iterdir()))
        if there and not self._extend:
            raise StorageError(
                f"{self._path} exists already, and predictions are never overwritten",
                fix="choose another output folder, or move the old one away",
            )
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir(exist_ok=True)
            self._owned.acquire(timeout=0)
            if there:
                self._names = list(stored(self._path))
                for begun in filter(Path.is_dir, self._partial.iterdir()):  # by a run that was killed
                    shutil.rmtree(begun, ignore_errors=True)
            else:
                self._write_group(".", {"version": "0.5", "bioformats2raw.layout": 3})
        except Timeout as error:
            what = f"{self._path} is being written by another process"
            raise StorageError(what, fix="wait until that run has ended") from error
        except OSError as error:
            self._owned.release()
            raise self._unwritable(error) from error
        except StorageError:
            self._owned.release()
            raise
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._closing.set()
        self._thread.join(self._timeout_s)
        self._owned.release()
        if self._thread.is_alive():
            self._failure = self._failure or self._too_slow()
        else:
            shutil.rmtree(self._partial, ignore_errors=True)
        if self._failure is not None:
            if kind is None:
                raise self._failure
            _log.error("%s", self._failure)

    @property
    def written(self) -> tuple[str, ...]:
        """Names of the fields that are complete on disk."""
        return tuple(self._names)

    def put(self, prediction: Prediction) -> None:
        """Hand over a prediction; StorageError if an earlier one failed, or the disk does not keep up."""
        if self._failure is None:
            try:
                self._queue.put(prediction, timeout=self._timeout_s)
            except queue.Full:
                self._failure = self._failure or self._too_slow()
        if self._failure is not None:
            raise self._failure

    def write(self, prediction: Prediction) -> str:
        """Write a prediction before returning; its name in the store. StorageError if the disk refuses."""
        try:
            return self._write(prediction)
        except (OSError, ValueError) as error:
            raise self._unwritable(error) from error

    def _work(self) -> None:
        while not (self._closing.is_set() and self._queue.empty()):
            try:
                prediction = self._queue.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            if self._failure is not None:
                continue  # keeps the queue moving, so that nobody waits for a disk that failed
            try:
                self._write(prediction)
            except Exception as error:  # noqa: BLE001  a thread's failure has to reach its caller, whatever it is
                _log.warning("storing a prediction failed", exc_info=True)
                self._failure = self._unwritable(error)

    def _write(self, prediction: Prediction) -> str:
        with self._disk:
            name = self._name(prediction)
            try:
                write_field(self._partial / name, prediction, self._colors)
                (self._partial / name).replace(self._path / name)
            except BaseException:
                shutil.rmtree(self._partial / name, ignore_errors=True)  # a full disk needs the room
                raise
            self._write_group("OME", {"version": "0.5", "series": [*self._names, name]})
            self._names.append(name)
            return name

    def _write_group(self, name: str, ome: Mapping[str, Any]) -> None:
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
        (self._path / name).mkdir(exist_ok=True)
        write_whole(self._path / name / "zarr.json", json.dumps(group, indent=2))

    def _name(self, prediction: Prediction) -> str:
        """Folder name of a field; a second prediction of it by the same model gets a number."""
        base, number = field_name(prediction.info.key, prediction.model), 2
        name, taken = base, {"ome", *(other.casefold() for other in self._names)}
        while name.casefold() in taken or (self._path / name).exists():
            name, number = f"{base}_{number}", number + 1
        return name

    def _unwritable(self, error: Exception) -> StorageError:
        return StorageError(
            f"predictions cannot be written to {self._path}",
            got=f"{type(error).__name__}: {error}",
            fix="free some disk space or choose another output folder; the measured data are not affected",
        )

    def _too_slow(self) -> StorageError:
        return StorageError(
            f"the disk of {self._path} does not keep up with the predictions",
            wanted=f"a place in the queue within {self._timeout_s:g} s",
            fix="choose an output folder on a faster, local disk",
        )


def field_name(key: StackKey, model: str = "") -> str:
    """Folder name of a stack's first prediction, by a model as it was asked for; fit for every system."""
    parts = (key.position, f"t{key.time}", key.channel, *([model] if model else []))
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", "_".join(parts)).strip(".")


def stored(path: Path | str) -> tuple[str, ...]:
    """Names of the complete fields of a store, in order of arrival; StorageError if it is none."""
    _read_json(Path(path) / "zarr.json")
    listing = Path(path) / "OME" / "zarr.json"
    return tuple(_read_json(listing)["attributes"]["ome"]["series"]) if listing.exists() else ()


def load(path: Path | str, name: str) -> Prediction:
    """Read a prediction back, equal to the one that was put; StorageError if acq-isl did not write it."""
    folder = Path(path) / name
    try:
        return read_field(folder, _read_json(folder / "zarr.json")["attributes"]["acq_isl"])
    except (KeyError, ValueError, OSError) as error:
        raise StorageError(f"{folder} is no prediction of acq-isl", got=str(error), fix="check it") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"{path.parent} is no store of predictions"
        raise StorageError(what, got=str(error), fix="check the path") from error
    return content
