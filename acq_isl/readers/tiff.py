"""TIFF files: OME-TIFF, ImageJ, Micro-Manager's OME-TIFF per position, plain ones; or a folder of them."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from acq_isl.errors import AcqIslError, StorageError
from acq_isl.readers.recording import (
    Damaged,
    DataSet,
    Lengths,
    Pixels,
    RecordedChannel,
    RecordedField,
    channel_names,
    length_um,
    well_of,
)

_SUFFIXES = (".tif", ".tiff")
# A1.tif, B03_002.tif, A1_s2_DAPI.tif: a well, perhaps a site of it, perhaps a channel.
_PLACE = re.compile(
    r"(?P<place>[A-P](?:0?[1-9]|1\d|2[0-4])(?:[_-](?:site|field|pos|s|f)?_?\d+)?)(?:[_ -](?P<channel>.+))?",
    re.IGNORECASE,
)
# As ImageJ numbers the images of a stack: c:1/2 z:3/13.
_NUMBER = re.compile(r"[czt]:\d+/\d+")


class TiffReader:
    """Reads a TIFF file (all channels), or a folder of TIFF files: one for each channel, or each position."""

    def recognises(self, path: Path) -> bool:
        """Whether it is a TIFF file by its name, or holds some."""
        return bool(_files(path))

    def read(self, path: Path) -> DataSet:
        """All positions and times; raises `StorageError`."""
        return self.survey(path).whole()

    def survey(self, path: Path) -> DataSet:
        """As `read`; files that cannot be read are told."""
        files = _files(path) or [path]
        fields: dict[Path, list[RecordedField]] = {}
        damaged: list[Damaged] = []
        for file in files:
            try:
                own = _own_fields(file)
            except StorageError as error:
                damaged.append(Damaged(stem(file), error, well_of(stem(file))))
                continue
            if own:  # a file without an image of its own goes on with what another begins: 4 GiB are full
                fields[file] = own
        if not fields and damaged:
            raise damaged[0].error
        fields = fields or {path: read_file(files[0])}
        return DataSet(path, "a folder", tuple(_put_together(path, fields)), tuple(damaged))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = (file for file in path.iterdir() if not file.name.startswith("."))  # macOS writes ._NAME
        return sorted(file for file in files if file.suffix.lower() in _SUFFIXES and file.is_file())
    return [path] if path.suffix.lower() in _SUFFIXES and path.is_file() else []


def _put_together(path: Path, files: Mapping[Path, list[RecordedField]]) -> list[RecordedField]:
    """Fields of files: those of several channels are positions, others channels of a place, as their names
    say: ``A1_003_Phase`` and ``A2`` are in wells, names without wells are channels of one field.
    """
    found = [field for each in files.values() for field in each]
    if len(files) == 1 or any(len(field.channels) > 1 for field in found):
        return found
    places: dict[str, list[_Single]] = {}
    for file, each in files.items():
        name = _PLACE.fullmatch(stem(file))
        place, channel = (name["place"], name["channel"]) if name else ("", None)
        places.setdefault(place, []).append(_Single(channel or stem(file), file, each))
    if len(places) < 2 or "" in places:
        return [_merged(path, path.name, [_Single(stem(file), file, each) for file, each in files.items()])]
    fields: list[RecordedField] = []
    for place, singles in places.items():
        if len(singles) > 1:
            fields.append(_merged(path, place, singles))
        else:
            fields += [replace(field, name=place, well=well_of(place)) for field in singles[0].fields]
    return fields


@dataclass(frozen=True, slots=True)
class _Single:
    """A file of one channel."""

    channel: str
    file: Path
    fields: Sequence[RecordedField]


def _merged(folder: Path, position: str, files: Sequence[_Single]) -> RecordedField:
    """One field of files that hold one channel each."""
    names = tuple(single.channel for single in files)
    for name in names:
        if names.count(name) > 1:
            raise StorageError(
                f"two files in {folder} have the channel {name}", fix="give one of the files instead"
            )
    several = [single.file for single in files if len(single.fields) != 1]
    if several:
        raise StorageError(f"{several[0]} holds several images", fix="give one of the files instead")

    def open_channel(number: int) -> RecordedChannel:
        return replace(files[number].fields[0].channel(), name=names[number])

    parts = tuple(single.file for single in files)
    return RecordedField(folder, position, names, open_channel, parts, well=well_of(position))


def stem(path: Path) -> str:
    """Name of a file without its endings."""
    return path.name.split(".")[0]


def read_file(path: Path) -> list[RecordedField]:
    """All positions and times of one file: not those that are announced in it and lie in others."""
    fields = _own_fields(path)
    if not fields:
        raise StorageError(f"{path} holds no image of its own", fix="give the file that holds the images")
    return fields


def _own_fields(path: Path) -> list[RecordedField]:
    with open_tiff(path) as file:
        images = [_Image(path, n, file) for n, series in enumerate(file.series) if _is_own(file, series)]
    names = [stem(path)] if len(images) == 1 else [image.name for image in images]
    if len(set(names)) < len(names):
        names = [str(image.number) for image in images]
    return [
        RecordedField(path, name, image.channels, partial(image.open_channel, time), (path,), time)
        for name, image in zip(names, images, strict=True)
        for time in range(len(image.pages))
    ]


@contextmanager
def open_tiff(path: Path) -> Iterator[Any]:
    """tifffile's reader, whose many errors, also those that it only logs, become `StorageError`."""
    import tifffile

    heard: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("tifffile")
    log.addHandler(handler)
    try:
        with tifffile.TiffFile(path) as file:
            len(file.pages)  # finds all of them, or the place where the file ends
            if heard:
                raise ValueError(heard[0])
            yield file
    except FileNotFoundError as error:
        raise StorageError(f"there is no file {path}", fix="check the folder and the name") from error
    except AcqIslError:
        raise
    except Exception as error:  # whatever its parsers stumble over in a damaged file
        raise StorageError(
            f"{path} cannot be read as a TIFF file",
            got=f"{type(error).__name__}: {error}",
            fix="copy it anew from where it was recorded, or save it uncompressed",
        ) from error
    finally:
        log.removeHandler(handler)


def _is_own(file: Any, series: Any) -> bool:
    """Whether the first page of a series lies in this file: OME metadata list other files' images as well."""
    return next((page.parent is file for page in series.pages if page is not None), False)


class _Image:
    """One series of a file; ``pages`` are the numbers of its images by time, channel and plane."""

    def __init__(self, path: Path, number: int, file: Any) -> None:
        series = file.series[number]
        self._path, self.number, self.name = path, number, str(series.name)
        self._dtype = np.dtype(series.dtype)
        self._axes = axes = _axes(path, series)
        size = dict(zip(axes, series.shape, strict=True))
        outer = [axis for axis in axes if axis in "TCZ"]
        numbers = np.arange(math.prod(size[axis] for axis in outer)).reshape([size[axis] for axis in outer])
        ordered = numbers.transpose([outer.index(axis) for axis in "TCZ" if axis in outer])
        self.pages = ordered.reshape([size.get(axis, 1) for axis in "TCZ"])
        self._shape = (self.pages.shape[2], size["Y"], size["X"])
        names: Sequence[str | None] = ()
        self._lengths, self._heights = Lengths(), dict[tuple[int, int, int], float]()
        ome = _ome_pixels(path, file, number)
        if ome is not None:
            names = [channel.get("Name") for channel in _children(ome, "Channel")]
            self._lengths, self._heights = _ome_lengths(ome), _ome_heights(ome)
        elif file.is_imagej and file.imagej_metadata:
            names = _imagej_names(file.imagej_metadata.get("Labels") or (), self.pages.shape[1])
            self._lengths = _imagej_lengths(file)
        self.channels = channel_names(self.pages.shape[1], names, stem(path))

    def open_channel(self, time: int, channel: int) -> RecordedChannel:
        places = [(time, channel, z) for z in range(self._shape[0])]
        z_um = tuple(self._heights[place] for place in places if place in self._heights)
        return RecordedChannel(
            str(self._path), self.channels[channel], self._shape, self._dtype, self._lengths,
            z_um if len(z_um) == len(places) else None,
            lambda planes: self._read(self.pages[time, channel, list(planes)]),
        )  # fmt: skip

    def _read(self, numbers: NDArray[np.intp]) -> Pixels:
        """Images by their numbers, (n, y, x)."""
        with open_tiff(self._path) as file:
            series = file.series[self.number]
            if self._axes.endswith("YX") and len(series.pages) == self.pages.size:
                pages = [series.pages[number] for number in numbers]
                _check_whole(self._path, pages)
                with ExitStack() as opened:
                    for other in {page.parent.filehandle for page in pages if page.parent is not file}:
                        other.open()
                        opened.callback(other.close)
                    return np.stack([page.asarray() for page in pages])
            _check_whole(self._path, list(series.pages))
            sides = [self._axes.index(axis) for axis in "YX"]
            images: Pixels = np.moveaxis(series.asarray(), sides, (-2, -1)).reshape(-1, *self._shape[1:])
            return images[numbers]


def _axes(path: Path, series: Any) -> str:
    """Axes among T, C, Z, Y, X; a stack of pages without a word about them is a z-stack."""
    axes = str(series.axes).upper()
    for page in "IQ":
        if "Z" not in axes:
            axes = axes.replace(page, "Z", 1)
    if len(set(axes)) < len(axes) or set(axes) - set("TCZYX") or not set("YX") <= set(axes):
        raise StorageError(
            f"{path} is not a z-stack",
            wanted="axes among T, C, Z, Y, X",
            got=f"{series.axes} {series.shape}",
            fix="save grey images, one position per file",
        )
    return axes


def _check_whole(path: Path, pages: Sequence[Any]) -> None:
    missing = sum(page is None for page in pages)
    if missing:
        raise StorageError(
            f"{path}: planes are missing",
            wanted=f"{len(pages)} planes, as its metadata announce",
            got=f"{len(pages) - missing}",
            fix="leave it out: it was probably stopped while it was recorded",
        )
    for page in pages:
        size = page.parent.filehandle.size
        chunks = zip(page.dataoffsets, page.databytecounts, strict=True)
        if any(first + count > size for first, count in chunks):
            raise StorageError(f"{path} ends too early", fix="copy it anew from where it was recorded")


def _children(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    return [child for child in element if child.tag.rpartition("}")[2] == name]


def _ome_pixels(path: Path, file: Any, number: int) -> ElementTree.Element | None:
    """The description of a series, where it has one."""
    if not file.ome_metadata:
        return None
    try:
        root = ElementTree.fromstring(file.ome_metadata)
    except ElementTree.ParseError as error:
        raise StorageError(f"the OME metadata of {path} is not XML", got=str(error)) from error
    pixels = [pixels for image in _children(root, "Image") for pixels in _children(image, "Pixels")]
    return pixels[number] if number < len(pixels) else None


def _ome_lengths(pixels: ElementTree.Element) -> Lengths:
    sizes = {axis: f"PhysicalSize{axis.upper()}" for axis in "xyz"}
    return Lengths.stated(
        **{axis: (pixels.get(key), pixels.get(f"{key}Unit", "µm")) for axis, key in sizes.items()}
    )


def _ome_heights(pixels: ElementTree.Element) -> dict[tuple[int, int, int], float]:
    """Stage z in micrometres by numbers of time, channel and plane, where it is a length."""
    heights = {}
    for plane in _children(pixels, "Plane"):
        scale = length_um(1, plane.get("PositionZUnit", "reference frame"))
        try:
            place = (int(plane.attrib["TheT"]), int(plane.attrib["TheC"]), int(plane.attrib["TheZ"]))
            height = float(plane.attrib["PositionZ"])
        except (KeyError, ValueError):
            continue
        if scale is not None and math.isfinite(height):
            heights[place] = height * scale
    return heights


def _imagej_lengths(file: Any) -> Lengths:
    """Pixel size and z step as ImageJ writes them: pixels per unit, and spacing."""
    about = file.imagej_metadata
    unit = str(about.get("unit", "")).replace("\\u00B5", "µ")
    sizes = {}
    for axis in "XY":
        tag = file.pages.first.tags.get(f"{axis}Resolution")
        known = tag is not None and tag.value[0] and unit
        sizes[axis.lower()] = (tag.value[1] / tag.value[0] if known else None, unit)
    return Lengths.stated(**sizes, z=(about.get("spacing"), unit))


def _imagej_names(labels: Sequence[str], count: int) -> list[str]:
    """Names of channels from the labels of all images, of which channels alternate: words that they share."""
    if count == 1 or not labels or len(labels) % count:
        return []
    shared = [set.intersection(*(set(label.split()) for label in labels[at::count])) for at in range(count)]
    everywhere = set.intersection(*shared)
    names = [
        " ".join(
            word
            for word in labels[at].split()
            if word in shared[at] - everywhere and not _NUMBER.fullmatch(word)
        )
        for at in range(count)
    ]
    return names if all(names) and len(set(names)) == count else []
