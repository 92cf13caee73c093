"""Predictions on disk: an OME-Zarr 0.5 plate, one image per field, complete or not there at all.

Fields come one by one, nobody knows how many, and a killed run must leave a store that opens; ome-writers'
own streams want every position before the first frame.

Values are float32 as predicted, not integers with a scale: 0 is background and 1 the bright end in every
reader, and a replay of the rules on a stored prediction decides as the run did.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from acq_isl.errors import StorageError
from acq_isl.files import write_whole
from acq_isl.stack import Prediction, StackInfo, StackKey
from acq_isl.storage.ome_zarr import read_field, write_field
from acq_isl.storage.plate import Image, describe_plate, describe_well, image_path

_LOOK_S = 0.1
_LISTING_SHARE = 20.0
"""Listing takes a twentieth of the time at most, however many images there are."""
_HUE = r"#[0-9a-fA-F]{6}"
_log = logging.getLogger(__name__)
OnStored = Callable[[Prediction, str, str], None]


class PredictionStore:
    """Writes ``predictions.ome.zarr`` as predictions arrive, on a thread of its own::

        predictions.ome.zarr/
            zarr.json                 the plate: wells, time points, and every image in order of arrival
            A/1/zarr.json             a well: its fields
            A/1/A1003t0Phase/         axes c, y, x; um; placed at its stage coordinates
                zarr.json             channels, colours, windows; provenance under "acq_isl"
                0/                    for each label "nuclei (predicted)" and "nuclei (predicted, doubt)"

    A field is written beside the store, in ``predictions.ome.zarr.partial``, and moved in when complete:
    a run that is killed loses the fields still in the queue, never the store. What lists them is rewritten
    at intervals that grow with it, and on closing; `stored` also finds what is not listed yet. Stores of
    version 0.1, a collection without a plate, are read and added to. `put` does not wait for the disk unless
    `queue_fields` predictions wait already. After a failed write nothing more is written, and every call
    says why.

    StorageError on entry if ``path`` exists and is not empty, unless ``extend`` says to add to what is there,
    or if it is in use or cannot be written. ``colors`` are ``#rrggbb`` by label; ``timeout_s`` is how long
    `put` may wait for a place in the queue, and closing for the disk. ``on_stored`` gets every prediction
    that is complete on disk with its name and `digest`, on the thread that wrote it; it must not raise.
    """

    def __init__(
        self,
        path: Path | str,
        colors: Mapping[str, str] | None = None,
        *,
        queue_fields: int = 8,
        timeout_s: float = 60.0,
        extend: bool = False,
        on_stored: OnStored | None = None,
    ) -> None:
        self._path, self._on_stored = Path(path), on_stored
        self._partial = self._path.with_name(self._path.name + ".partial")
        self._colors = {name: hue for name, hue in (colors or {}).items() if re.fullmatch(_HUE, hue)}
        self._timeout_s, self._extend = timeout_s, extend
        self._owned = FileLock(self._partial / "lock")  # given up by the system if the process dies
        self._disk = threading.Lock()
        self._queue: queue.Queue[Prediction] = queue.Queue(queue_fields)
        self._closing = threading.Event()
        self._images: list[Image] = []
        self._taken: set[str] = set()  # names that a file system may hold to be the same
        self._listed, self._list_at = 0, 0.0
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
                for name in stored(self._path):
                    self._take_up(name)
                for begun in filter(Path.is_dir, self._partial.iterdir()):  # by a run that was killed
                    shutil.rmtree(begun, ignore_errors=True)
            else:
                _write_group(self._path, None)
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
        if self._thread.is_alive():
            self._failure = self._failure or self._too_slow()
        else:
            try:
                self._list()
            except (OSError, ValueError) as failure:
                self._failure = self._failure or self._unwritable(failure)
            shutil.rmtree(self._partial, ignore_errors=True)
        self._owned.release()
        if self._failure is not None:
            if kind is None:
                raise self._failure
            _log.error("%s", self._failure)

    @property
    def written(self) -> tuple[str, ...]:
        """Names of the fields that are complete on disk."""
        return tuple(image.path for image in self._images)

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
                self._list_if_due()
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
            begun = self._partial / name.replace("/", "_")
            try:
                write_field(begun, prediction, self._colors)
                (self._path / name).parent.mkdir(parents=True, exist_ok=True)
                begun.replace(self._path / name)
            except BaseException:
                shutil.rmtree(begun, ignore_errors=True)  # a full disk needs the room
                raise
            self._add(_read_image(self._path, name))
        if self._on_stored is not None:
            self._on_stored(prediction, name, digest(self._path, name))
        self._list_if_due()
        return name

    def _take_up(self, name: str) -> None:
        """An image that is there; one that power loss left unreadable is moved out of the store."""
        try:
            self._add(_read_image(self._path, name))
        except StorageError as error:
            aside = self._path.with_name(self._path.name + ".damaged") / f"{name}_{time.time_ns()}"
            aside.parent.mkdir(parents=True, exist_ok=True)
            (self._path / name).replace(aside)
            _log.warning("a damaged prediction was moved to %s: %s", aside, error)

    def _add(self, image: Image) -> None:
        self._images.append(image)
        self._taken.add(image.path.casefold())

    def _list_if_due(self) -> None:
        try:
            with self._disk:
                if len(self._images) > self._listed and time.monotonic() >= self._list_at:
                    self._list()
        except (OSError, ValueError) as error:
            _log.warning("what lists the predictions was not written, and is tried again: %s", error)

    def _list(self) -> None:
        """Write which images there are; the more there are, the more seldom."""
        began = time.monotonic()
        _write_listing(self._path, self._images)
        self._listed, now = len(self._images), time.monotonic()
        self._list_at = now + _LISTING_SHARE * (now - began)

    def _name(self, prediction: Prediction) -> str:
        """Path of a field's image; a second prediction of it by the same model gets a number."""
        base = image_path(prediction.info.key, prediction.model)
        names = itertools.chain([base], (f"{base}no{number}" for number in itertools.count(2)))
        free = (name for name in names if name.casefold() not in self._taken)
        return next(name for name in free if not (self._path / name).exists())  # as power loss leaves them

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


def stored(path: Path | str) -> tuple[str, ...]:
    """Names of the complete fields of a store, in order of arrival; StorageError if it is none."""
    path = Path(path)
    ome = _read_json(path / "zarr.json")["attributes"].get("ome", {})
    listed = [scales["datasets"][0]["path"].rpartition("/")[0] for scales in ome.get("multiscales", ())]
    collection = path / "OME" / "zarr.json"  # of a store of version 0.1
    if collection.exists():
        listed = [*_read_json(collection)["attributes"]["ome"]["series"], *listed]
    found = sorted(image.relative_to(path).as_posix() for image in path.glob("*/*/*") if image.is_dir())
    return tuple(name for name in dict.fromkeys([*listed, *found]) if (path / name / "zarr.json").exists())


def find(path: Path | str, key: StackKey, model: str = "") -> tuple[str, ...]:
    """Names of a stack's predictions by a model as it was asked for, in order of arrival."""
    path = Path(path)
    parts = filter(None, (key.position, f"t{key.time}", key.channel, model))
    old = re.sub(r"[^A-Za-z0-9_.-]+", "-", "_".join(parts)).strip(".")  # in a store of version 0.1
    for base, number in ((image_path(key, model), "no"), (old, "_")):
        names = itertools.chain([base], (f"{base}{number}{n}" for n in itertools.count(2)))
        there = itertools.takewhile(lambda name: (path / name / "zarr.json").exists(), names)
        if found := tuple(name for name in there if _is_of(path / name, key, model)):
            return found
    # Its name may have been taken by one that differs in capitals only.
    return tuple(name for name in stored(path) if _is_of(path / name, key, model))


def digest(path: Path | str, name: str) -> str:
    """SHA-256 of all files of a stored prediction with their names; StorageError if they cannot be read."""
    folder, found = Path(path) / name, hashlib.sha256()
    try:
        files = sorted(
            (file.relative_to(folder).as_posix(), file) for file in folder.rglob("*") if file.is_file()
        )
        for inside, file in files:
            content = file.read_bytes()
            found.update(f"{inside}\0{len(content)}\0".encode() + content)
    except OSError as error:
        raise StorageError(
            f"the prediction {folder} cannot be read", got=str(error), fix="check it"
        ) from error
    return found.hexdigest()


def _is_of(folder: Path, key: StackKey, model: str) -> bool:
    provenance = _read_json(folder / "zarr.json")["attributes"].get("acq_isl", {})
    wrote = provenance.get("stack", {}).get("key"), provenance.get("asked_as", "")
    return wrote == (asdict(key), model)


def load(path: Path | str, name: str) -> Prediction:
    """Read a prediction back, equal to the one that was put; StorageError if acq-isl did not write it."""
    folder = Path(path) / name
    try:
        return read_field(folder, _read_json(folder / "zarr.json")["attributes"]["acq_isl"])
    except (KeyError, ValueError, OSError) as error:
        raise StorageError(f"{folder} is no prediction of acq-isl", got=str(error), fix="check it") from error


def load_info(path: Path | str, name: str) -> tuple[StackInfo, tuple[str, ...], tuple[str, ...], str]:
    """Of a prediction without its pixels: stack, labels, their colours as ``#rrggbb``, model.

    StorageError if acq-isl did not write it.
    """
    attributes = _read_json(Path(path) / name / "zarr.json")["attributes"]
    try:
        colors = [f"#{channel['color']}" for channel in attributes["ome"]["omero"]["channels"]]
        known = attributes["acq_isl"]
        info = TypeAdapter(StackInfo).validate_python(known["stack"])
        return info, tuple(known["labels"]), tuple(colors[0::2]), known["model"]["name"]
    except (KeyError, ValueError) as error:
        what = f"{Path(path) / name} is no prediction of acq-isl"
        raise StorageError(what, got=str(error), fix="check it") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"{path.parent} is no store of predictions"
        raise StorageError(what, got=str(error), fix="check the path") from error
    return content


def _read_image(path: Path, name: str) -> Image:
    attributes = _read_json(path / name / "zarr.json")["attributes"]
    return Image(name, int(attributes["acq_isl"]["stack"]["key"]["time"]), attributes["ome"])


def list_images(path: Path, names: Iterable[str]) -> None:
    """Write what lists these complete images of a plate, in this order; StorageError if one is damaged."""
    _write_listing(path, [_read_image(path, name) for name in names])


def _write_listing(path: Path, found: Sequence[Image]) -> None:
    wells: dict[str, list[Image]] = {}
    for image in found:
        wells.setdefault(image.well, []).append(image)
    wells.pop("", None)  # images of a store of version 0.1 lie in no well
    for well, images in wells.items():
        _write_group((path / well).parent, None)
        _write_group(path / well, describe_well(images))
    if wells:
        _write_group(path, describe_plate(path.name, found))


def _write_group(folder: Path, ome: Mapping[str, Any] | None) -> None:
    attributes = {} if ome is None else {"ome": ome}
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "zarr.json", json.dumps(group, indent=2))
