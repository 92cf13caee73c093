"""Training pairs from OME-Zarr images and plates, versions 0.4 and 0.5."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from acq_isl.errors import PairRefused, StorageError
from acq_isl.training.data.pairs import Item, Recording, as_counts
from acq_isl.training.data.source_base import Nominal, RecordedSource, picked, projected, stamp

_UM = {None: 1.0, "micrometer": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "meter": 1e6, "angstrom": 1e-4}


class ZarrSource(RecordedSource):
    """OME-Zarr: an image, a plate, a collection, or a folder of these; each image is a field."""

    kind: Literal["ome_zarr"]
    path: Path
    stack: str | int
    """Channel of transmitted light, name or number."""
    labels: dict[str, str | int] = Field(min_length=1)
    """Channel by label name; a name that is not there is a label that this field lacks."""

    def items(self, nominal: Nominal) -> Iterator[Item]:
        """All images below the path."""
        del nominal
        found = list(_images(self.path))
        if not found:
            raise StorageError(f"there is no OME-Zarr image in {self.path}", fix="check the path")
        for folder, well in found:
            inner = folder.relative_to(self.path).as_posix()
            field = inner if inner != "." else self.path.name.split(".")[0]
            channels = _channels(_about(folder))
            labels = tuple(n for n, c in self.labels.items() if isinstance(c, int) or c in channels)
            place = well if well is not None else self.well
            metadata = [path for path in (folder / "zarr.json", folder / ".zattrs") if path.is_file()]
            yield Item(
                name=self.name(None if well is not None else place, field),
                well=self.place(place),
                stamp=stamp(metadata, self.model_dump(mode="json"), inner),
                load=_Load(self, folder, labels),
                labels=labels,
                plate=self.plate,
            )


@dataclass(frozen=True, slots=True)
class _Load:
    source: ZarrSource
    folder: Path
    labels: tuple[str, ...]

    def __call__(self) -> Recording:
        about = _about(self.folder)
        scales = about.multiscales[0]
        axes = "".join(axis.name for axis in scales.axes)
        array = _array(self.folder / scales.datasets[0].path)
        names = _channels(about)
        what = str(self.folder)
        stack = as_counts(picked(array, axes, self.source.stack, names, what), f"the stack {what}")
        images = {n: projected(picked(array, axes, self.source.labels[n], names, what)) for n in self.labels}
        lengths = self.source.lengths(what, len(stack), _lengths(scales))
        return Recording(stack, images, *lengths)


def _images(path: Path) -> Iterator[tuple[Path, str | None]]:
    """Folders of images with their wells."""
    about = _about(path) if _is_group(path) else None
    if about is None:
        for inner in sorted(path.iterdir()) if path.is_dir() else ():
            if inner.is_dir():
                yield from _images(inner)
    elif hasattr(about, "multiscales"):
        yield path, None
    elif hasattr(about, "plate"):
        for well in about.plate.wells:
            inside = _about(path / well.path)
            for image in inside.well.images:
                yield path / well.path / image.path, well.path.replace("/", "")
    else:
        for inner in sorted(path.iterdir()):
            if inner.is_dir() and _is_group(inner):
                yield from _images(inner)


def _is_group(path: Path) -> bool:
    return (path / "zarr.json").is_file() or (path / ".zattrs").is_file()


def _about(folder: Path) -> Any:
    """The OME metadata of a group, or None."""
    import zarr
    from yaozarrs import validate_ome_object

    try:
        attributes = dict(zarr.open_group(folder, mode="r").attrs)
        content = attributes.get("ome", attributes)
        known = isinstance(content, dict) and {"multiscales", "plate", "well"} & set(content)
        return validate_ome_object(content) if known else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"the OME metadata of {folder} cannot be read", got=str(error)[:300], fix="write it anew"
        ) from error


def _array(folder: Path) -> NDArray[Any]:
    import zarr

    try:
        return np.asarray(zarr.open_array(folder, mode="r")[:])
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StorageError(f"{folder} cannot be read", got=str(error)[:300], fix="copy it anew") from error


def _channels(about: Any) -> list[str]:
    omero = about.omero
    return [channel.label or str(at) for at, channel in enumerate(omero.channels)] if omero else []


def _lengths(scales: Any) -> tuple[float | None, float | None]:
    """Pixel size and z step in micrometres; a scale of 1 without a unit is no length."""
    first = scales.datasets[0].coordinateTransformations[0]  # the format puts the scale first
    scale = dict(zip((axis.name for axis in scales.axes), first.scale, strict=True))
    units = {axis.name: getattr(axis, "unit", None) for axis in scales.axes}

    def um(axis: str) -> float | None:
        unit = _UM.get(units.get(axis))
        known = axis in scale and unit is not None and not (units[axis] is None and scale[axis] == 1)
        return float(scale[axis]) * unit if known and unit is not None else None

    x_um, y_um = um("x"), um("y")
    if x_um and y_um and abs(x_um - y_um) > 1e-3 * x_um:
        raise PairRefused("pixels are not square", got=f"{x_um:g} x {y_um:g} um")
    return x_um, um("z")
