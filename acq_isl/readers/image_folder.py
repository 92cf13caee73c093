"""Folders of one file a plane: Micro-Manager's image files, and PNG files of the In Silico Labeling data set.

Micro-Manager 2 says ``img_channel000_position000_time000000000_z003.tif``, 1.4 says
``img_000000000_Phase_003.tif``; both keep ``metadata.txt`` beside them. Of the PNG files the repository's own
samples say ``channel-DAPI_CONFOCAL``, the published data set says ``channel,value-DAPI_CONFOCAL``. Everything
that a name says counts: fields, wells and masks are told apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from acq_isl.errors import StorageError
from acq_isl.readers.recording import DataSet, Lengths, Pixels, RecordedChannel, RecordedField, well_of
from acq_isl.readers.tiff import read_file, stem

TRANSMITTED = ("BRIGHTFIELD", "PHASE_CONTRAST", "DIC")
MASK = " (where it can be trusted)"
"""Ends the name of a channel that is the mask of another."""
PIXEL_SIZE_UM = MappingProxyType({"scott": 0.5, "kevan": 0.3, "alicia": 0.3, "yusha": 0.3, "2015_06_26": 0.4})
"""By the beginning of the condition's name, as published."""
_NOT_THE_FIELD = {"z_depth", "depth_computation", "channel", "is_mask", "kind", "statistic"}
_PLACE = ("site", "field", "time_point", "tile")
_MM_NAMES = (
    re.compile(r"img_channel(?P<number>\d+)_position(?P<position>\d+)_time(?P<time>\d+)_z(?P<z>\d+)\.tif"),
    re.compile(r"img_(?P<time>\d{9})_(?P<channel>.+)_(?P<z>\d{3,})\.tif"),
)


class ImageFolderReader:
    """Reads folders of image files, one a plane; each position or site is a field."""

    def recognises(self, path: Path) -> bool:
        """Whether files of Micro-Manager are in it or in its folders, or PNG files of the data set in it."""
        return path.is_dir() and (bool(_mm_folders(path)) or any(parse(png) for png in path.glob("*.png")))

    def read(self, path: Path) -> DataSet:
        """All positions and times below the folder; raises `StorageError`."""
        folders = _mm_folders(path)
        if folders:
            fields = [field for folder in folders for field in _mm_fields(folder)]
            return DataSet(path, "a Micro-Manager data set", tuple(fields))
        return DataSet(path, "a folder", tuple(_png_fields(path)))


@dataclass(frozen=True, slots=True)
class _Plane:
    file: Path
    z: int
    z_um: float | None = None


@dataclass(frozen=True, slots=True)
class _Files:
    """The planes of a field by channel, what reads one as (y, x), and how many make a stack, if known."""

    folder: Path
    channels: Mapping[str, Sequence[_Plane]]
    lengths: Lengths
    read: Callable[[Path], Pixels]
    announced: int = 0

    def open_channel(self, number: int) -> RecordedChannel:
        """A channel, none of whose planes may be missing."""
        name, planes = list(self.channels.items())[number]
        planes = sorted(planes, key=lambda plane: plane.z)
        numbers = [plane.z for plane in planes]
        wanted = max(self.announced, numbers[-1] + 1)
        if len(planes) > 1 and numbers != list(range(wanted)):
            raise StorageError(
                f"{self.folder}: planes are missing",
                wanted=f"planes of {name} 0 to {wanted - 1}",
                got=", ".join(map(str, numbers)),
                fix="complete the copy or download, or leave it out",
            )
        heights = tuple(plane.z_um for plane in planes if plane.z_um is not None)
        first = self.read(planes[0].file)

        def read_planes(chosen: Sequence[int]) -> Pixels:
            images = [self.read(planes[plane].file) for plane in chosen]
            if len({image.shape for image in images}) > 1:
                raise StorageError(f"the planes of {name} in {self.folder} differ in size")
            return np.stack(images)

        return RecordedChannel(
            str(self.folder), name, (len(planes), first.shape[0], first.shape[1]), first.dtype, self.lengths,
            heights if len(heights) == len(planes) else None, read_planes,
        )  # fmt: skip

    def field(self, name: str, time: int = 0, well: str | None = None, plate: str = "") -> RecordedField:
        """The field that these files are."""
        files = tuple(plane.file for planes in self.channels.values() for plane in planes)
        return RecordedField(
            self.folder, name, tuple(self.channels), self.open_channel, files, time, well, plate
        )


def _mm_folders(path: Path) -> list[Path]:
    """The folder, or those in it, that hold files called as Micro-Manager calls them."""
    folders = [path] if any(map(_mm_name, path.glob("img_*.tif"))) else sorted(path.glob("*/"))
    return [folder for folder in folders if any(map(_mm_name, folder.glob("img_*.tif")))]


def _mm_name(file: Path) -> dict[str, str] | None:
    found = (pattern.fullmatch(file.name) for pattern in _MM_NAMES)
    return next((match.groupdict() for match in found if match), None)


def is_plane_of_stack(file: Path) -> bool:
    """Whether it is one of Micro-Manager's image files, and others of the same stack lie beside it."""
    stack = _mm_stack(file)
    others = file.parent.glob("img_*.tif") if stack else ()
    return any(_mm_stack(other) == stack for other in others if other != file)


def _mm_stack(file: Path) -> dict[str, str]:
    """What the images of a stack have in common; empty for another file."""
    return {key: value for key, value in (_mm_name(file) or {}).items() if key != "z"}


def _mm_fields(folder: Path) -> list[RecordedField]:
    summary, frames = _mm_metadata(folder)
    listed = summary.get("ChNames") or ()
    groups: dict[tuple[str, int], dict[str, list[_Plane]]] = {}
    for file in sorted(folder.glob("img_*.tif")):
        name = _mm_name(file)
        if name is None:
            continue
        number = int(name.get("number", -1))
        channel = name.get("channel") or (listed[number] if number < len(listed) else f"channel {number}")
        height = frames.get(file.name, {}).get("ZPositionUm")
        plane = _Plane(file, int(name["z"]), None if height is None else float(height))
        place = (name.get("position", ""), int(name["time"]))
        groups.setdefault(place, {}).setdefault(str(channel), []).append(plane)
    sizes = [summary.get("PixelSize_um"), *(frame.get("PixelSizeUm") for frame in frames.values())]
    # 0 stands for what was never calibrated.
    pixel = next((size for size in sizes if size), None)
    lengths = Lengths.stated(x=(pixel, "um"), z=(summary.get("z-step_um") or None, "um"))
    several = len({position for position, _ in groups}) > 1
    return [
        _Files(folder, channels, lengths, _read_tiff, int(summary.get("Slices") or 0)).field(
            f"{folder.name} {position}" if several else folder.name, time, well_of(folder.name)
        )
        for (position, time), channels in sorted(groups.items())
    ]


def _mm_metadata(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What ``metadata.txt`` says of the whole and, by file name, of each image; empty where there is none."""
    file = folder / "metadata.txt"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else "{}"
    try:
        about = json.loads(text)
    except ValueError:  # a stopped acquisition leaves half a file, the summary at its beginning
        about = {"Summary": _first_value(text.partition('"Summary":')[2])}
    summary = about.pop("Summary", {})
    frames = {
        str(frame.get("FileName", key)).rpartition("/")[2]: frame
        for key, frame in about.items()
        if not key.startswith("Coords-") and isinstance(frame, dict)
    }
    return summary, frames


def _first_value(text: str) -> dict[str, Any]:
    try:
        value, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read_tiff(file: Path) -> Pixels:
    plane: Pixels = read_file(file)[0].channel().read()[0]
    return plane


@dataclass(frozen=True, slots=True)
class Name:
    """What the name of a PNG file says; ``field`` is all that fields differ in."""

    channel: str
    z: int | None
    """Plane; None for a projection."""
    mask: bool
    """Whether it tells where the channel can be trusted."""
    predicted: bool
    """Whether it is somebody's prediction."""
    field: tuple[tuple[str, str], ...]


def parse(path: Path) -> Name | None:
    """Read a file name of either dialect; None if it is neither."""
    if path.name.startswith("."):  # macOS writes ._NAME beside NAME
        return None
    tokens = path.name.removesuffix(".png").replace(",value-", "-").split(",")
    values = dict(token.split("-", 1) for token in tokens if "-" in token)
    z = values.get("z_depth")
    if "channel" not in values or (z is None) == ("depth_computation" not in values):
        return None
    if z is not None and not z.isdecimal():
        return None
    field = tuple(sorted((k, v) for k, v in values.items() if k not in _NOT_THE_FIELD))
    predicted = "PREDICTED" in path.name
    plane = None if z is None else int(z)
    return Name(values["channel"], plane, values.get("is_mask") == "true", predicted, field)


def _png_fields(path: Path) -> list[RecordedField]:
    """All fields below a folder, sorted by name; predictions are left alone."""
    groups: dict[tuple[Path, tuple[tuple[str, str], ...]], list[tuple[Name, Path]]] = {}
    for file in sorted(path.rglob("*.png")):
        name = parse(file)
        if name is not None and not name.predicted:
            groups.setdefault((file.parent, name.field), []).append((name, file))
    if not groups:
        raise StorageError(
            f"there are no images of the In Silico Labeling data set in {path}",
            wanted="names such as ...,well-A4,z_depth-0,channel,value-PHASE_CONTRAST,...png",
            fix="check the folder; for other images use another kind of source",
        )
    return [_png_field(folder, dict(field), files) for (folder, field), files in groups.items()]


def _png_field(folder: Path, about: Mapping[str, str], files: Sequence[tuple[Name, Path]]) -> RecordedField:
    stacks: dict[str, list[_Plane]] = {}
    flat: dict[str, list[_Plane]] = {}
    for name, file in files:
        if name.z is None:
            flat[name.channel + MASK * name.mask] = [_Plane(file, 0)]
        elif name.channel in TRANSMITTED and not name.mask:
            stacks.setdefault(name.channel, []).append(_Plane(file, name.z))
    if len(stacks) != 1:
        raise StorageError(
            f"{folder}: a field needs planes of one kind of transmitted light",
            wanted=" or ".join(TRANSMITTED),
            got=", ".join(stacks) or "none",
            fix="complete the download, or move what does not belong there",
        )
    plate = about.get("condition") or folder.name
    known = [size for start, size in PIXEL_SIZE_UM.items() if plate.lower().startswith(start)]
    read = _Files(folder, stacks | flat, Lengths(known[0] if known else None), read_png)
    place = " ".join(about[key] for key in sorted(about) if key in _PLACE)
    return read.field(place, well=about.get("well"), plate=plate)


def png_field(path: Path) -> RecordedField:
    """Any gray PNG as a field of one channel and plane, whose pixel size nobody knows."""
    name = stem(path)
    return _Files(path.parent, {name: [_Plane(path, 0)]}, Lengths(), read_png).field(name)


def read_png(path: Path) -> Pixels:
    """Pixels of a gray PNG, (y, x) uint8 or uint16; `StorageError` if it is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except FileNotFoundError as error:
        raise StorageError(f"there is no file {path}", fix="check the folder and the name") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise StorageError(f"{path} cannot be read", got=str(error), fix="download it again") from error
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16, np.int32):
        raise StorageError(
            f"{path} is no gray image",
            wanted="8 or 16 bits, one channel",
            got=f"{pixels.dtype} {pixels.shape}",
            fix="use the single-channel images of the data set",
        )
    return pixels.astype(np.uint16) if pixels.dtype == np.int32 else pixels
