"""The folder of a run, or its predictions, opened in napari: File > Open, or drop it on the window.

Each field is a layer for each of its pictures, where it lies on the stage: what was measured in gray, labels
(predicted) in their hues, doubt hidden; frames with the reason around the fields that were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acq_isl.errors import StorageError
from acq_isl.processing.display import PALETTE, covering_ramp
from acq_isl.readers.read import find_reader
from acq_isl.readers.recording import RecordedChannel, RecordedField
from acq_isl.stack import StackInfo
from acq_isl.storage.decision_log import read as read_decisions
from acq_isl.storage.prediction_store import load_info, stored

LayerData = tuple[Any, dict[str, Any], str]
_STORE, _MEASURED, _DECISIONS = "predictions.ome.zarr", "measured_1", "decisions.jsonl"
_UNITS = ("um", "um")
_FIELDS_WITH_DOUBT = 12
"""Beyond so many fields every further layer makes the window slower than it is worth."""
_DIM = "#808080"
"""White of transmitted light, so that labels stand out on it."""


def find_run_reader(path: str | list[str]) -> Callable[[str | list[str]], list[LayerData]] | None:
    """What napari asks of a reader: a function that reads the path, or None if it is no run of acq-isl."""
    folder = Path(path[0] if isinstance(path, list) else path)
    return (lambda _: read_run(folder)) if _store(folder) is not None else None


def read_run(folder: Path) -> list[LayerData]:
    """Layers of a run, measured ones first, of each field's last time point; `StorageError` if it is none."""
    store = _store(folder)
    if store is None:
        raise StorageError(f"{folder} is no run of acq-isl", fix=f"give a folder with {_STORE} in it")
    fields = _last(_Field(store / name, *load_info(store, name)) for name in stored(store))
    run = store.parent
    with_doubt = len(fields) <= _FIELDS_WITH_DOUBT
    predicted = [layer for field in fields.values() for layer in field.layers(with_doubt)]
    return [*_measured(run / _MEASURED, fields), *predicted, *_frames(run / _DECISIONS, fields)]


def _store(folder: Path) -> Path | None:
    for place in (folder, folder / _STORE):
        try:
            if place.name == _STORE and stored(place):
                return place
        except (StorageError, KeyError, TypeError):
            continue
    return None


@dataclass(frozen=True, slots=True)
class _Field:
    """One prediction on disk."""

    path: Path
    info: StackInfo
    labels: tuple[str, ...]
    colors: tuple[str, ...]
    model: str

    def place(self, shape: tuple[int, ...] | None = None) -> dict[str, Any]:
        """Where a picture of the field lies, in micrometres; ``shape`` where it has other pixels."""
        rows, columns = shape or self.info.shape
        pixel_um = self.info.pixel_size_um * self.info.shape[0] / rows
        corner = (self.info.y_um - (rows - 1) / 2 * pixel_um, self.info.x_um - (columns - 1) / 2 * pixel_um)
        return {
            "scale": (pixel_um,) * 2,
            "translate": corner,
            "units": _UNITS,
        }

    def layers(self, with_doubt: bool) -> Iterator[LayerData]:
        import dask.array

        planes = dask.array.from_zarr(str(self.path / "0"))  # type: ignore[no-untyped-call]
        told = {"predicted": True, "model": self.model, "stack": str(self.info.key)}
        named = list(enumerate(zip(self.labels, self.colors, strict=True)))
        for number, (label, color) in reversed(named):  # the first label, such as nuclei, lies on top
            pictures = ((0, "", 1.0, color), (1, ", doubt", 0.5, "#ffffff"))
            for offset, what, bright, hue in pictures[: 1 + with_doubt]:
                yield (
                    planes[2 * number + offset],
                    {
                        "name": f"{label} (predicted{what}) {self.info.key.position}",
                        "colormap": {"name": hue, "colors": covering_ramp(hue)},
                        "blending": "translucent",
                        "contrast_limits": (0.0, bright),
                        "visible": not what,
                        "metadata": told,
                        **self.place(),
                    },
                    "image",
                )


def _ramp(hue: str) -> dict[str, Any]:
    """From black to a hue, as napari takes it."""
    end = [int(hue[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return {"name": hue, "colors": [[0.0, 0.0, 0.0, 1.0], [*end, 1.0]]}


def _last(fields: Iterator[_Field]) -> dict[tuple[str, str], _Field]:
    """The prediction of the last time point of each field and model."""
    found: dict[tuple[str, str], _Field] = {}
    for field in sorted(fields, key=lambda field: field.info.key.time):
        found[field.info.key.position, field.model] = field
    return found


def _measured(folder: Path, fields: Mapping[tuple[str, str], _Field]) -> Iterator[LayerData]:
    """The middle plane of every channel that was measured at a field; nothing where there are no data."""
    reader = find_reader(folder) if folder.is_dir() else None
    if reader is None:
        return
    places = {(field.info.key.position, field.info.key.time): field for field in fields.values()}
    for recorded in reader.read(folder).fields:
        if field := places.get((recorded.name, recorded.time)):
            for channel in recorded.channels:
                yield _plane(recorded, recorded.channel(channel), field)


def _plane(recorded: RecordedField, channel: RecordedChannel, field: _Field) -> LayerData:
    import dask.array
    from dask.delayed import delayed

    planes, *shape = channel.shape
    middle = planes // 2 if channel.z_um is None else int(np.argsort(channel.z_um)[planes // 2])
    read = delayed(lambda: channel.read_planes([middle])[0])()
    light = channel.name == field.info.key.channel
    settings = field.place(tuple(shape)) | {
        "name": f"{channel.name} (measured) {recorded.name}",
        "colormap": _ramp(_DIM if light else "#ffffff"),
        "blending": "additive",
        "visible": light,
    }
    plane = dask.array.from_delayed(read, tuple(shape), channel.dtype)  # type: ignore[no-untyped-call]
    return plane, settings, "image"


def _frames(path: Path, fields: Mapping[tuple[str, str], _Field]) -> Iterator[LayerData]:
    """A frame around each field that was chosen, with its rank; the reasons are features of the layer."""
    try:
        choices = [line for line in read_decisions(path) if line["kind"] == "choice" and line["chosen"]]
    except StorageError:
        return
    places = {field.info.key.position: field for field in fields.values()}
    choices = [line for line in choices if line["key"]["position"] in places]
    if not choices:
        return
    corners = []
    for line in choices:
        info = places[line["key"]["position"]].info
        half = np.array(info.shape) * info.pixel_size_um / 2
        middle = np.array([info.y_um, info.x_um])
        corners.append(np.array([middle - half, middle + half]))
    features = {"rank": [line["rank"] for line in choices], "reason": [line["reason"] for line in choices]}
    yield (
        corners,
        {
            "name": "chosen fields",
            "shape_type": "rectangle",
            "face_color": "transparent",
            "edge_color": PALETTE[4],
            "edge_width": 3,
            "features": features,
            "text": {"string": "{rank}", "color": PALETTE[4], "size": 14, "anchor": "upper_left"},
            "units": _UNITS,
        },
        "shapes",
    )
