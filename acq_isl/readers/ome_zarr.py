"""OME-Zarr (NGFF) 0.4 and 0.5: an image, a plate, a well, or a collection or folder of these."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from acq_isl.errors import StorageError
from acq_isl.readers.recording import (
    Damaged,
    DataSet,
    Lengths,
    Pixels,
    RecordedChannel,
    RecordedField,
    channel_names,
)

_METADATA = ("zarr.json", ".zattrs")


class OmeZarrReader:
    """Reads OME-Zarr at full resolution; each image is a field, named by its place below the path."""

    def recognises(self, path: Path) -> bool:
        """Whether it is a Zarr group or array."""
        return is_zarr(path)

    def read(self, path: Path) -> DataSet:
        """All images and times; raises `StorageError`."""
        return self.survey(path).whole()

    def survey(self, path: Path) -> DataSet:
        """As `read`; wells and images that a plate lists and that cannot be read are told."""
        fields: list[RecordedField] = []
        damaged: list[Damaged] = []
        for found in _images(path):
            if isinstance(found, Damaged):
                damaged.append(found)
                continue
            folder, well = found
            try:
                fields += _fields(path, folder, well)
            except StorageError as error:
                damaged.append(Damaged(_name(path, folder), error, well))
        if not fields and damaged:
            raise damaged[0].error
        if not fields:
            raise StorageError(
                f"{path} is no OME-Zarr image",
                wanted="a group with multiscales in its metadata",
                got="a Zarr group without an image" if is_zarr(path) else "no Zarr group",
                fix="give the folder of the image",
            )
        kind = next((kind for kind in ("plate", "well") if kind in _about(path)), "collection")
        return DataSet(path, f"an OME-Zarr {kind}", tuple(fields), tuple(damaged))


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr group or array."""
    return any((folder / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs", ".zarray"))


def _images(folder: Path) -> Iterator[tuple[Path, str | None] | Damaged]:
    """Folders of images with their wells, and wells that cannot be read."""
    about = _about(folder)
    if about.get("multiscales"):
        yield folder, None
    elif "plate" in about or "well" in about:
        try:
            wells = [str(well["path"]) for well in about["plate"]["wells"]] if "plate" in about else [""]
        except (LookupError, TypeError) as error:
            raise _incomplete(folder, error) from error
        for well in wells:
            name = well.replace("/", "") or None
            try:
                images = [str(image["path"]) for image in _about(folder / well)["well"]["images"]]
            except (LookupError, TypeError, StorageError) as error:
                yield Damaged(well or folder.name, _unreadable(folder / well, error), name)
                continue
            yield from ((folder / well / image, name) for image in images)
    elif not _is_array(folder):
        for inner in sorted(folder.iterdir()):
            if inner.is_dir():
                yield from _images(inner)


def _is_array(folder: Path) -> bool:
    return (folder / ".zarray").is_file() or _content(folder / "zarr.json").get("node_type") == "array"


def _about(folder: Path) -> dict[str, Any]:
    """The OME metadata of a group, which lie below ``ome`` since 0.5; empty if it has none."""
    attributes = _content(folder / "zarr.json").get("attributes") or _content(folder / ".zattrs")
    about = attributes.get("ome", attributes) if isinstance(attributes, dict) else {}
    return about if isinstance(about, dict) else {}


def _content(file: Path) -> dict[str, Any]:
    """A file of metadata; empty if there is none."""
    try:
        content = json.loads(file.read_bytes()) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{file.parent} cannot be read as OME-Zarr",
            got=f"{type(error).__name__}: {error}",
            fix="give the folder of the image, such as image.ome.zarr",
        ) from error
    return content if isinstance(content, dict) else {}


def _unreadable(well: Path, error: Exception) -> StorageError:
    if isinstance(error, StorageError):
        return error
    return (
        _incomplete(well, error)
        if well.is_dir()
        else StorageError(
            f"the plate lists a well that is not there: {well}", fix="complete the copy, or go on without it"
        )
    )


def _name(path: Path, folder: Path) -> str:
    """Of an image: where it lies below the path, or what the path is called."""
    inner = folder.relative_to(path).as_posix()
    return path.name.split(".")[0] if inner == "." else inner


def _incomplete(folder: Path, error: Exception) -> StorageError:
    return StorageError(f"the OME metadata of {folder} is incomplete", got=f"{type(error).__name__}: {error}")


def _fields(path: Path, folder: Path, well: str | None) -> list[RecordedField]:
    """One image at all times."""
    about = _about(folder)
    try:
        scales = about["multiscales"][0]
        axes = [axis["name"] if isinstance(axis, dict) else str(axis) for axis in scales["axes"]]
        lengths = _lengths(scales, axes)
        array_folder = folder / str(scales["datasets"][0]["path"])
        array = _array(array_folder)
        listed = [channel.get("label") for channel in (about.get("omero") or {}).get("channels", ())]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _incomplete(folder, error) from error
    if not {"y", "x"} <= set(axes) or set(axes) - set("tczyx"):
        raise StorageError(
            f"{folder} is not an image of z-stacks", wanted="axes t, c, z, y, x", got=", ".join(axes)
        )
    if len(axes) != array.ndim:
        raise StorageError(f"{folder} is damaged", wanted=f"{len(axes)} axes", got=f"{array.ndim}")
    size = dict.fromkeys("tcz", 1) | dict(zip(axes, array.shape, strict=True))
    names = channel_names(size["c"], listed, folder.name)
    name = _name(path, folder)

    def channel(time: int, number: int) -> RecordedChannel:
        def read_planes(planes: Sequence[int]) -> Pixels:
            if size["z"] > 1:
                _require_chunks(array_folder, array, axes, {"t": time, "c": number})
            return _read(folder, array, axes, (time, number, planes))

        shape = (size["z"], size["y"], size["x"])
        return RecordedChannel(
            str(folder), names[number], shape, np.dtype(array.dtype), lengths, None, read_planes
        )

    files = tuple(folder / file for file in _METADATA if (folder / file).is_file())
    return [
        RecordedField(folder, name, names, partial(channel, time), files, time, well)
        for time in range(size["t"])
    ]


def _array(folder: Path) -> Any:
    import zarr

    try:
        return zarr.open_array(str(folder), mode="r")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"the pixels of {folder} cannot be read", got=f"{type(error).__name__}: {error}"
        ) from error


def _require_chunks(folder: Path, array: Any, axes: Sequence[str], at: Mapping[str, int]) -> None:
    """StorageError where chunks of a stack were never written: Zarr gives black for them, without a word."""
    numbers = [
        (at[axis] // length,) if axis in at else range(math.ceil(size / length))
        for axis, size, length in zip(axes, array.shape, array.shards or array.chunks, strict=True)
    ]
    chunks = [folder / array.metadata.encode_chunk_key(place) for place in itertools.product(*numbers)]
    missing = [chunk for chunk in chunks if not chunk.is_file()]
    if missing:
        raise StorageError(
            f"{folder}: parts of a stack are missing",
            wanted=f"{len(chunks)} chunks",
            got=f"{len(chunks) - len(missing)}, without {missing[0].relative_to(folder)}",
            fix="copy it anew, or leave it out; if they are truly black, save it with write_empty_chunks",
        )


def _read(folder: Path, array: Any, axes: Sequence[str], place: tuple[int, int, Sequence[int]]) -> Pixels:
    """Planes of a channel at a time, (z, y, x); only they are read."""
    wanted = {"t": place[0], "c": place[1]}
    try:
        pixels = np.asarray(array[tuple(wanted.get(axis, slice(None)) for axis in axes)])
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise StorageError(
            f"the pixels of {folder} cannot be read", got=f"{type(error).__name__}: {error}"
        ) from error
    left = [axis for axis in axes if axis not in wanted]
    if "z" not in left:
        pixels, left = pixels[None], ["z", *left]
    return np.transpose(pixels, [left.index(axis) for axis in "zyx"])[list(place[2])]


def _lengths(scales: dict[str, Any], axes: Sequence[str]) -> Lengths:
    """Scale of each axis, of the data set times that of the multiscale; a 1 without a unit is no length."""
    transforms = [
        *(scales["datasets"][0].get("coordinateTransformations") or ()),
        *(scales.get("coordinateTransformations") or ()),
    ]
    factors = [transform["scale"] for transform in transforms if transform.get("type") == "scale"]
    if not factors:
        return Lengths()
    scale = np.prod(np.asarray(factors, float), axis=0)
    stated: dict[str, tuple[object, object]] = {}
    for name, value, axis in zip(axes, scale, scales["axes"], strict=True):
        unit = str((isinstance(axis, dict) and axis.get("unit")) or "").strip()
        if name in "xyz" and (unit or value != 1):
            stated[name] = (float(value), unit or "micrometer")
    return Lengths.stated(**stated)
