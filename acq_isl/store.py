"""Predictions on disk: one OME-Zarr 0.5 image per field, complete or not there at all.

Written with yaozarrs, the part of ome-writers that knows the format, and zarr. ome-writers' own streams want
every position, all of one shape, before the first frame, write the metadata of a position at the end, know
no display window but the full integer range, and place all positions at one origin. Here fields come one by
one, nobody knows how many, and a killed run must leave a store that opens.

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
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from acq_isl.errors import StorageError
from acq_isl.stack import Distance, Prediction, StackInfo, StackKey, StageTimes

_LARGEST_CHUNK_PX = 1024
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

    Parameters
    ----------
    path : Path
        The store; must not exist, or be empty.
    colors : mapping of label to ``#rrggbb``
    queue_fields : int
        Predictions that may wait for the disk.
    timeout_s : float
        How long `put` may wait for a place in the queue, and closing for the disk.

    Raises StorageError on entry if the folder exists or cannot be written, later as `put` says.
    """

    def __init__(
        self,
        path: Path | str,
        colors: Mapping[str, str] | None = None,
        *,
        queue_fields: int = 8,
        timeout_s: float = 60.0,
    ) -> None:
        self._path = Path(path)
        self._partial = self._path.with_name(self._path.name + ".partial")
        self._colors = {name: hue for name, hue in (colors or {}).items() if re.fullmatch(_HUE, hue)}
        self._timeout_s = timeout_s
        self._queue: queue.Queue[Prediction] = queue.Queue(queue_fields)
        self._closing = threading.Event()
        self._names: list[str] = []
        self._failure: StorageError | None = None
        self._thread = threading.Thread(target=self._work, name="prediction-store", daemon=True)

    def __enter__(self) -> PredictionStore:
        if self._path.exists() and (not self._path.is_dir() or any(self._path.iterdir())):
            raise StorageError(
                f"{self._path} exists already, and predictions are never overwritten",
                fix="choose another output folder, or move the old one away",
            )
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir(exist_ok=True)
            _write_json(self._path / "zarr.json", _group({"version": "0.5", "bioformats2raw.layout": 3}))
        except OSError as error:
            raise self._unwritable(error) from error
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join(self._timeout_s)
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

    def _write(self, prediction: Prediction) -> None:
        name = self._name(prediction.info.key)
        try:
            _write_image(self._partial / name, prediction, self._colors)
            (self._partial / name).replace(self._path / name)
        except BaseException:
            shutil.rmtree(self._partial / name, ignore_errors=True)  # a full disk needs the room
            raise
        series = [*self._names, name]
        (self._path / "OME").mkdir(exist_ok=True)
        _write_json(self._path / "OME" / "zarr.json", _group({"version": "0.5", "series": series}))
        self._names.append(name)

    def _name(self, key: StackKey) -> str:
        """Folder name of a field; a second prediction of it gets a number."""
        base, number = field_name(key), 2
        name = base
        while name.casefold() in {"ome", *(other.casefold() for other in self._names)}:
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


def field_name(key: StackKey) -> str:
    """Folder name of the first prediction of a stack, fit for every file system."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{key.position}_t{key.time}_{key.channel}").strip(".")


def stored(path: Path | str) -> tuple[str, ...]:
    """Names of the complete fields of a store, in order of arrival; StorageError if it is none."""
    _read_json(Path(path) / "zarr.json")
    listing = Path(path) / "OME" / "zarr.json"
    return tuple(_read_json(listing)["attributes"]["ome"]["series"]) if listing.exists() else ()


def load(path: Path | str, name: str) -> Prediction:
    """Read a prediction back, equal to the one that was put.

    Raises
    ------
    StorageError
        There is no such field, or it was not written by acq-isl.
    """
    import zarr

    folder = Path(path) / name
    try:
        kept = _read_json(folder / "zarr.json")["attributes"]["acq_isl"]
        planes = np.asarray(zarr.open_array(folder / "0", mode="r")[:])
        return Prediction(
            info=TypeAdapter(StackInfo).validate_python(kept["stack"]),
            labels=tuple(kept["labels"]),
            mean=planes[0::2],
            spread=planes[1::2],
            model_sha256=kept["model"]["sha256"],
            model_name=kept["model"]["name"],
            engine=kept["engine"],
            warnings=tuple(kept["warnings"]),
            border_px=kept["border_px"],
            times=TypeAdapter(StageTimes).validate_python(kept["latency_ms"]),
            distances=TypeAdapter(tuple[Distance, ...]).validate_python(kept.get("distances", ())),
        )
    except (KeyError, ValueError, OSError) as error:
        raise StorageError(f"{folder} is no prediction of acq-isl", got=str(error), fix="check it") from error


def _write_image(folder: Path, prediction: Prediction, colors: Mapping[str, str]) -> None:
    from yaozarrs.write.v05 import write_image

    planes = np.empty((2 * len(prediction.labels), *prediction.info.shape), np.float32)
    planes[0::2], planes[1::2] = prediction.mean, prediction.spread
    write_image(
        folder,
        _image(prediction, colors),
        datasets=planes,
        extra_attributes={"acq_isl": _provenance(prediction)},
        writer="zarr",
        chunks=(1, *(min(side, _LARGEST_CHUNK_PX) for side in planes.shape[1:])),
        compression="blosc-lz4",
        progress=False,
    )


def _image(prediction: Prediction, colors: Mapping[str, str]) -> Any:
    from yaozarrs import DimSpec, v05

    info = prediction.info
    pixel = info.pixel_size_um
    space: dict[str, Any] = {"type": "space", "unit": "micrometer", "scale": pixel}
    axes = [DimSpec(name="c", size=2 * len(prediction.labels), type="channel")]
    for axis, side, middle in zip("yx", info.shape, (info.y_um, info.x_um), strict=True):
        first = middle - (side - 1) / 2 * pixel  # where the first pixel's middle lies
        axes.append(DimSpec(name=axis, size=side, translation=first, **space))
    channels = [
        v05.OmeroChannel(
            window=v05.OmeroWindow(start=0.0, min=0.0, end=bright, max=2 * bright),
            label=f"{label} (predicted{what})",
            color=color,
            active=not what,
        )
        for label in prediction.labels
        for what, bright, color in (("", 1.0, colors.get(label, "#ffffff")), (", doubt", 0.5, "#ffffff"))
    ]
    return v05.Image(
        multiscales=[v05.Multiscale.from_dims(axes, name=f"{info.key} (predicted)")],
        omero=v05.Omero(channels=channels),
    )


def _provenance(prediction: Prediction) -> dict[str, Any]:
    return {
        "predicted": True,
        "note": "Predicted from transmitted light, not measured. 0 is background, 1 the bright end of the "
        "training truth; doubt is one standard deviation in the same unit.",
        "labels": list(prediction.labels),
        "model": {"name": prediction.model_name, "sha256": prediction.model_sha256},
        "engine": prediction.engine,
        "latency_ms": asdict(prediction.times),
        "warnings": list(prediction.warnings),
        "border_px": prediction.border_px,
        "distances": [asdict(one) for one in prediction.distances],
        "stack": asdict(prediction.info),
        "software": {"acq-isl": version("acq-isl")},
    }


def _group(ome: Mapping[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": {"ome": dict(ome)}}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    """In one move, so that a reader or a kill never finds half a file."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(content, indent=2), encoding="utf-8")
    fresh.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"{path.parent} is no store of predictions"
        raise StorageError(what, got=str(error), fix="check the path") from error
    return content
