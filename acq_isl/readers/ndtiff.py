"""NDTiff, the format that Pycro-Manager and Micro-Manager write: versions 2 and 3, and pyramids."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from acq_isl.errors import StorageError
from acq_isl.readers.recording import DataSet, Lengths, Pixels, RecordedChannel, RecordedField, well_of

INDEX = "NDTiff.index"
_FULL = "Full resolution"
_STACKS = "*NDTiffStack*.tif"
# The Python backend's names, then the Java backend's.
_PIXEL_KEYS = ("PixelSize_um", "PixelSizeUm")
_Z_KEYS = ("ZPosition_um_Intended", "ZPosition_um", "ZPositionUm")
_AXES = {"channel", "position", "time", "z", "row", "column"}
_TYPES: Mapping[int, type[np.uint8] | type[np.uint16]] = MappingProxyType(
    {0: np.uint8, 1: np.uint16, 3: np.uint16, 4: np.uint16, 5: np.uint16, 6: np.uint16}
)
_ONLY = "Phase"  # what a channel without a name is called

Axes = dict[str, int | str]


class NdtiffReader:
    """Reads an NDTiff data set; each position, or tile of a pyramid, is a field."""

    def recognises(self, path: Path) -> bool:
        """Whether there is an index, or files that are of a data set by their name."""
        return index_folder(path) is not None or any(path.glob(_STACKS))

    def read(self, path: Path) -> DataSet:
        """All positions and times; raises `StorageError`."""
        folder = index_folder(path)
        if folder is None:
            raise StorageError(
                f"{path} is no whole NDTiff data set, so nobody knows what its images are",
                wanted=f"a file {INDEX}",
                got="none",
                fix="copy the whole folder anew; of a run that was killed: acq-isl recover RUN",
            )
        images = [NdtiffImage(folder, axes, rest) for axes, rest in index_entries(folder, whole=True)]
        strange = {name for image in images for name in image.axes} - _AXES
        if strange or not images:
            raise StorageError(
                f"{path} is not a set of z-stacks",
                wanted=f"axes among {', '.join(sorted(_AXES))}",
                got=", ".join(sorted(strange)) or "no images",
            )
        summary = _summary(images[0].file)
        names = _channel_names(images, summary)
        tiles = any("row" in image.axes for image in images)
        overlap = tuple(int(summary.get(f"GridPixelOverlap{axis}", 0)) if tiles else 0 for axis in "YX")
        places: dict[tuple[str, int], dict[str, list[NdtiffImage]]] = {}
        for image in images:
            channels = places.setdefault(image.place, {})
            channels.setdefault(names[image.axes.get("channel", _ONLY)], []).append(image)
        files = tuple(sorted(folder.iterdir()))
        fields = [
            RecordedField(
                path, place[0], tuple(channels), _Opener(f"{path} {place[0]}", channels, overlap), files,
                place[1], well_of(place[0]),
            )
            for place, channels in sorted(places.items())
        ]  # fmt: skip
        return DataSet(path, "an NDTiff data set", tuple(fields))


def index_folder(path: Path) -> Path | None:
    """The folder that holds the index of a data set: of a pyramid that of its full resolution."""
    return next((folder for folder in (path, path / _FULL) if (folder / INDEX).is_file()), None)


def index_entries(folder: Path, *, whole: bool = False) -> Iterator[tuple[Axes, bytes]]:
    """Axes, and everything after the axes, of each complete entry of an index; `StorageError` if damaged. An
    index that ends within an entry, as a killed process may leave it, is an error only if ``whole``."""
    data = (folder / INDEX).read_bytes()
    position = 0
    try:
        while position + 4 <= len(data):
            (axes_length,) = struct.unpack_from("<I", data, position)
            start = position + 4 + axes_length
            if axes_length == 0 or start + 4 > len(data):
                break
            (name_length,) = struct.unpack_from("<I", data, start)
            end = start + 4 + name_length + 32
            if end > len(data):
                break
            yield json.loads(data[position + 4 : start]), data[start:end]
            position = end
        if data and (position == 0 or (whole and any(data[position:]))):
            raise ValueError("the index is damaged, or ends in the middle of an entry")
    except (ValueError, struct.error) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> StorageError:
    return StorageError(
        f"{folder} cannot be read as NDTiff",
        got=f"{type(error).__name__}: {error}",
        fix="copy it anew from where it was recorded",
    )


class NdtiffImage:
    """One image, by what the index says of it; the tiles of a pyramid are positions."""

    def __init__(self, folder: Path, axes: Axes, rest: bytes) -> None:
        try:
            (length,) = struct.unpack_from("<I", rest)
            self.file = folder / rest[4 : 4 + length].decode()
            self._offset, width, height, self._kind, _, *self._about, _ = struct.unpack_from(
                "<8I", rest, 4 + length
            )
            self.axes, self.shape, self.z = axes, (height, width), int(axes.get("z", 0))
            tile = [f"{name} {axes[name]}" for name in ("row", "column") if name in axes]
            position = [str(axes.get("position", 0))] if "position" in axes or not tile else []
            self.place = " ".join(position + tile), int(axes.get("time", 0))
        except (ValueError, AttributeError, TypeError) as error:
            raise _damaged(folder, error) from error

    @property
    def dtype(self) -> np.dtype[Any]:
        if self._kind not in _TYPES:
            raise StorageError(f"{self.file} holds colour images", wanted="grey images")
        return np.dtype(_TYPES[self._kind])

    def read(self) -> Pixels:
        """(y, x) uint8 or uint16."""
        content = self._bytes(self._offset, self.dtype.itemsize * self.shape[0] * self.shape[1])
        return np.frombuffer(content, self.dtype).reshape(self.shape)

    def metadata(self) -> dict[str, Any]:
        try:
            about: dict[str, Any] = json.loads(self._bytes(*self._about))
        except ValueError as error:
            raise StorageError(f"the metadata of an image in {self.file} cannot be read") from error
        return about

    def _bytes(self, first: int, count: int) -> bytes:
        try:
            with self.file.open("rb") as file:
                if file.seek(0, os.SEEK_END) < first + count:
                    raise StorageError(
                        f"{self.file} ends too early", fix="copy it anew from where it was recorded"
                    )
                file.seek(first)
                return file.read(count)
        except (OSError, ValueError) as error:
            raise StorageError(f"the images in {self.file} cannot be read", got=str(error)) from error


@dataclass(frozen=True, slots=True)
class _Opener:
    """Opens the channels of one place; of rows and columns that tiles share half are cut off at each side."""

    source: str
    channels: Mapping[str, Sequence[NdtiffImage]]
    overlap: tuple[int, ...]

    def __call__(self, number: int) -> RecordedChannel:
        name, found = list(self.channels.items())[number]
        images = sorted(found, key=lambda image: image.z)
        if len({(image.shape, image.dtype) for image in images}) > 1:
            raise StorageError(f"the planes of {name} in {self.source} differ in size")
        about = [image.metadata() for image in images]
        z_um = tuple(z for z in (_first(each, _Z_KEYS) for each in about) if z is not None)
        numbers = [image.z for image in images]
        if len(z_um) < len(images) and len(set(np.diff(numbers))) > 1:
            raise StorageError(
                f"{self.source}: planes of {name} are missing", got=", ".join(map(str, numbers))
            )
        # 0 stands for a microscope whose pixels were never calibrated.
        pixel = next((size for size in (_first(each, _PIXEL_KEYS) for each in about) if size), None)
        rows, columns = (
            slice(each // 2, side - (each + 1) // 2)
            for each, side in zip(self.overlap, images[0].shape, strict=True)
        )
        return RecordedChannel(
            self.source,
            name,
            (len(images), rows.stop - rows.start, columns.stop - columns.start),
            images[0].dtype,
            Lengths.stated(x=(pixel, "um")),
            z_um if len(z_um) == len(images) else None,
            lambda planes: np.stack([images[plane].read()[rows, columns] for plane in planes]),
        )


def _first(about: Mapping[str, Any], keys: Sequence[str]) -> float | None:
    """The first of these numbers that there is."""
    return next((float(about[key]) for key in keys if about.get(key) is not None), None)


def _channel_names(images: Sequence[NdtiffImage], summary: Mapping[str, Any]) -> dict[int | str, str]:
    """Name by what stands on the channel axis, which older data sets number."""
    listed = summary.get("ChNames") or ()
    names: dict[int | str, str] = {}
    for image in images:
        channel = image.axes.get("channel", _ONLY)
        if channel not in names and isinstance(channel, int):
            known = channel < len(listed)
            names[channel] = str(listed[channel] if known else image.metadata().get("Channel", channel))
        names.setdefault(channel, str(channel))
    return names


def _summary(file: Path) -> dict[str, Any]:
    """What a file says of the whole data set; version 3 has four more bytes before it than version 2."""
    try:
        with file.open("rb") as opened:
            head = opened.read(28)
            first = 24 if int.from_bytes(head[12:16], "little") >= 3 else 20
            opened.seek(first + 4)
            summary = json.loads(opened.read(int.from_bytes(head[first : first + 4], "little")))
    except (OSError, ValueError):
        return {}  # a killed process or an old version: nothing in it must be known
    return summary if isinstance(summary, dict) else {}
