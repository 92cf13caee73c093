"""The PNG folders of the In Silico Labeling data set, in both dialects of its file names.

The repository's own samples say ``channel-DAPI_CONFOCAL``, the published data set says
``channel,value-DAPI_CONFOCAL`` (its data.md). Other than the reference code, everything that a name says
counts: fields, wells and masks are told apart instead of overwriting each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.errors import PairRefused, StorageError

TRANSMITTED = ("BRIGHTFIELD", "PHASE_CONTRAST", "DIC")
LABELS = MappingProxyType(
    {
        "DAPI_CONFOCAL": "nuclei",
        "DAPI_WIDEFIELD": "nuclei",
        "MAP2_CONFOCAL": "dendrites",
        "NFH_CONFOCAL": "axons",
        "TUJ1_WIDEFIELD": "neurons",
        "ISLET_WIDEFIELD": "motor neurons",
        "DEAD_CONFOCAL": "dead cells",
        "CELLMASK_CONFOCAL": "membranes",
    }
)
"""What the label channels stand for, unless told otherwise."""
PIXEL_SIZE_UM = MappingProxyType({"scott": 0.5, "kevan": 0.3, "alicia": 0.3, "yusha": 0.3, "2015_06_26": 0.4})
"""By the beginning of the condition's name, as published."""
_NOT_THE_FIELD = {"z_depth", "depth_computation", "channel", "is_mask", "kind", "statistic"}


@dataclass(frozen=True, slots=True)
class Name:
    """What a file name says.

    Parameters
    ----------
    channel : str
    z : int or None
        Plane; None for a projection.
    mask : bool
        Whether it tells where the channel can be trusted.
    predicted : bool
        Whether it is somebody's prediction.
    field : tuple of (str, str)
        Everything else, which is what fields differ in.
    """

    channel: str
    z: int | None
    mask: bool
    predicted: bool
    field: tuple[tuple[str, str], ...]

    def __getitem__(self, key: str) -> str | None:
        return dict(self.field).get(key)


def parse(path: Path) -> Name | None:
    """Read a file name of either dialect; None if it is neither."""
    values: dict[str, str] = {}
    group = ""
    for token in path.name.removesuffix(".png").split(","):
        key, dash, value = token.partition("-")
        if not dash:
            group = key
        elif key == "value" and group:
            values[group] = value
        else:
            values[key] = value
    z = values.get("z_depth")
    if "channel" not in values or (z is None) == ("depth_computation" not in values):
        return None
    if z is not None and not z.isdecimal():
        return None
    rest = tuple(sorted((k, v) for k, v in values.items() if k not in _NOT_THE_FIELD))
    predicted = values.get("kind") == "PREDICTED" or "PREDICTED" in path.name
    return Name(
        values["channel"], None if z is None else int(z), values.get("is_mask") == "true", predicted, rest
    )


@dataclass(frozen=True, slots=True, eq=False)
class PngField:
    """The files of one field of view.

    Parameters
    ----------
    name : Name
        Of its first file, for the well and the condition.
    folder : Path
    planes : tuple of Path
        Of transmitted light, in order.
    labels, masks : mapping of channel to Path
    """

    name: Name
    folder: Path
    planes: tuple[Path, ...]
    labels: Mapping[str, Path]
    masks: Mapping[str, Path]

    @property
    def pixel_size_um(self) -> float | None:
        """As published for the condition, where it is one of those."""
        condition = (self.name["condition"] or self.folder.name).lower()
        known = [size for start, size in PIXEL_SIZE_UM.items() if condition.startswith(start)]
        return known[0] if known else None

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.planes, *self.labels.values(), *self.masks.values())


def find_fields(folder: Path) -> list[PngField]:
    """All fields below a folder, sorted by name.

    Raises
    ------
    StorageError
        There are none.
    PairRefused
        Planes are missing or a field has two kinds of transmitted light.
    """
    groups: dict[tuple[Path, tuple[tuple[str, str], ...]], list[tuple[Name, Path]]] = {}
    for path in sorted(folder.rglob("*.png")):
        name = parse(path)
        if name is not None and not name.predicted:
            groups.setdefault((path.parent, name.field), []).append((name, path))
    fields = [_field(place, files) for (place, _), files in groups.items()]
    if not fields:
        raise StorageError(
            f"there are no images of the In Silico Labeling data set in {folder}",
            wanted="names such as ...,well-A4,z_depth-0,channel,value-PHASE_CONTRAST,...png",
            fix="check the folder; for other images use another kind of source",
        )
    return fields


def _field(folder: Path, files: Iterable[tuple[Name, Path]]) -> PngField:
    planes: dict[str, dict[int, Path]] = {}
    labels: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    first: Name | None = None
    for name, path in files:
        first = first or name
        if name.z is not None and name.channel in TRANSMITTED and not name.mask:
            planes.setdefault(name.channel, {})[name.z] = path
        elif name.z is None:
            (masks if name.mask else labels)[name.channel] = path
    if first is None or len(planes) != 1:
        raise PairRefused(
            f"{folder}: a field needs planes of one kind of transmitted light",
            wanted=" or ".join(TRANSMITTED),
            got=", ".join(planes) or "none",
            fix="complete the download, or move what does not belong there",
        )
    (stack,) = planes.values()
    if sorted(stack) != list(range(len(stack))):
        raise PairRefused(
            f"{folder}: planes are missing",
            wanted=f"z_depth 0 to {max(stack)}",
            got=", ".join(str(z) for z in sorted(stack)),
            fix="complete the download",
        )
    return PngField(first, folder, tuple(stack[z] for z in sorted(stack)), labels, masks)


def read_png(path: Path) -> NDArray[Any]:
    """Pixels of a gray PNG, (y, x) uint8 or uint16; `PairRefused` or `StorageError` if it is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except FileNotFoundError as error:
        raise StorageError(f"there is no file {path}", fix="check the folder and the name") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise StorageError(f"{path} cannot be read", got=str(error), fix="download it again") from error
    if pixels.ndim != 2 or pixels.dtype not in (np.uint8, np.uint16, np.int32):
        raise PairRefused(
            f"{path} is no gray image",
            wanted="8 or 16 bits, one channel",
            got=f"{pixels.dtype} {pixels.shape}",
            fix="use the single-channel images of the data set",
        )
    return pixels.astype(np.uint16) if pixels.dtype == np.int32 else pixels
