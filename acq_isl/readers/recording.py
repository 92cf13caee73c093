"""A data set of recorded images, whatever its format: fields, channels, heights, and planes to be read."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from acq_isl.errors import StorageError
from acq_isl.stack import Modality, Uint16Image

Pixels = NDArray[Any]

_UNITS = {
    1e6: "m meter metre", 1e4: "cm centimeter centimetre", 1e3: "mm millimeter millimetre",
    1.0: "µm μm um micrometer micrometre micron", 1e-3: "nm nanometer nanometre",
    1e-4: "Å angstrom", 1e-6: "pm picometer picometre", 25400.0: "in inch inche",  # less the plural's s
}  # fmt: skip
_UM = MappingProxyType({name: um for um, names in _UNITS.items() for name in names.split()})
_SQUARE = 1e-3
_SAME_STEP = 1.25
_FULL_SCALE = 65535
# How channels of transmitted light are usually called; "PC", "TL" and "BF" only as whole words.
_TRANSMITTED = re.compile(r"phase|bright|transmi|dic\b|\b(pc|ph\d?|tl|bf)\b", re.IGNORECASE)
_LIGHT: Mapping[Modality, re.Pattern[str]] = MappingProxyType({
    "phase contrast": re.compile(r"phase|\b(pc|ph\d?)\b", re.IGNORECASE),
    "DIC": re.compile(r"\bdic\b|nomarski|interference", re.IGNORECASE),
    "brightfield": re.compile(r"bright|\bbf\b", re.IGNORECASE),
    "fluorescence": re.compile(
        r"dapi|hoechst|fluor|alexa|mcherry|texas.?red|\b(e?gfp|rfp|yfp|fitc|tritc|cy[357]|draq5|sytox)\b",
        re.IGNORECASE,
    ),
})  # fmt: skip
# Labels of the model by the usual names of their stains; other channels keep their own name.
_LABELS = MappingProxyType(
    {"nuclei": r"dapi|hoechst|nucle", "dendrites": r"map-?2|dendrit", "axons": r"nfh|nf-h|neurofil|axon"}
)


def length_um(value: object, unit: object) -> float | None:
    """Micrometres, or None where the value is no positive number or the unit no length."""
    name = str(unit).strip()
    try:
        length = float(str(value)) * _UM[name if len(name) < 3 else name.lower().removesuffix("s")]
    except (ValueError, KeyError):
        return None
    return length if math.isfinite(length) and length > 0 else None


@dataclass(frozen=True, slots=True)
class Lengths:
    """Pixel size and z step in micrometres; None where the metadata do not say, with what they do say."""

    pixel_size_um: float | None = None
    z_step_um: float | None = None
    doubts: tuple[str, ...] = ()
    """What stands there and is no length."""

    @classmethod
    def stated(cls, **axes: tuple[object, object]) -> Self:
        """From (value, unit) of the axes x, y and z; a value of None is not stated."""
        known = {axis: length_um(*stated) for axis, stated in axes.items()}
        doubts = [
            f"unknown unit or length along {axis} {value} {unit}"
            for axis, (value, unit) in axes.items()
            if value is not None and known[axis] is None
        ]
        x_um, y_um = known.get("x"), known.get("y")
        if x_um is not None and y_um is not None and abs(x_um - y_um) > _SQUARE * x_um:
            doubts.append(f"the pixels are not square: {x_um:g} x {y_um:g} um")
            x_um = None
        return cls(x_um, known.get("z"), tuple(doubts))


@dataclass(frozen=True, slots=True, eq=False)
class RecordedChannel:
    """The planes of one channel of a field at one time."""

    source: str
    """Where it comes from, for messages."""
    name: str
    shape: tuple[int, int, int]
    """Planes, rows and columns."""
    dtype: np.dtype[Any]
    lengths: Lengths
    z_um: tuple[float, ...] | None
    """Height of each plane in micrometres, in the order in which they are stored; None: not known."""
    read_planes: Callable[[Sequence[int]], Pixels]
    """Gives planes by their numbers as stored, (n, y, x); may raise `StorageError`."""

    def read(self) -> Pixels:
        """All planes, (z, y, x): by rising height where heights are known, else as stored."""
        order = range(self.shape[0])
        if self.z_um is not None and self.has_heights:
            order = np.argsort(self.z_um).tolist()
        return self.read_planes(order)

    def only(self, plane: int) -> RecordedChannel:
        """The channel of this plane alone, by its number as stored; `StorageError`: there is none."""
        if plane >= self.shape[0]:
            raise StorageError(f"{self.source} has no plane {plane}", wanted=f"0 to {self.shape[0] - 1}")
        z_um = None if self.z_um is None else (self.z_um[plane],)
        return replace(
            self, shape=(1, *self.shape[1:]), z_um=z_um, read_planes=lambda _: self.read_planes([plane])
        )

    def lengths_um(
        self, pixel_size_um: float | None = None, z_step_um: float | None = None
    ) -> tuple[float, tuple[float, ...]]:
        """Edge of a pixel, and rising height of each plane that `read` gives, in micrometres. What the user
        states counts, else what the metadata say. Where they tell heights, a step that is stated scales them,
        so that a gap stays a gap. `StorageError`: nobody says one of them, or two places say different."""
        size_um = self.lengths.pixel_size_um if pixel_size_um is None else pixel_size_um
        step_um = self.lengths.z_step_um if z_step_um is None else z_step_um
        heights = np.arange(self.shape[0]) * (step_um or 0.0)
        if self.z_um is not None and self.has_heights:
            heights = np.sort(self.z_um)
            apart = float(np.median(np.diff(heights))) if len(heights) > 1 else 0.0
            if z_step_um is not None and apart:
                heights *= z_step_um / apart
            elif step_um is not None and apart and not 1 / _SAME_STEP <= apart / step_um <= _SAME_STEP:
                raise StorageError(
                    f"the planes of {self.source} are {apart:g} um apart by their heights, but "
                    f"{step_um:g} um by the z step",
                    fix="say z_step_um, the true one (on the command line: --z-step)",
                )
            step_um = 1.0
        unknown = ["pixel size"] * (size_um is None) + ["z step"] * (step_um is None and len(heights) > 1)
        if size_um is None or unknown:
            names = " and ".join(f"{name.replace(' ', '_')}_um" for name in unknown)
            raise StorageError(
                f"the {' and the '.join(unknown)} of {self.source} {'is' if len(unknown) == 1 else 'are'} "
                "not known",
                wanted="micrometres in the metadata",
                got="; ".join(self.lengths.doubts) or None,
                fix=f"say {names} (in a source of pairs, or below microscope.specimen in an experiment "
                f"file; on the command line: {' and '.join('--' + n.replace(' ', '-') for n in unknown)})",
            )
        return size_um, tuple(heights.tolist())

    @property
    def has_heights(self) -> bool:
        """Whether heights are known: where nobody reads the stage they are all the same."""
        known = self.z_um if self.z_um is not None else ()
        return len(set(known)) > (self.shape[0] > 1) and all(map(math.isfinite, known))


@dataclass(frozen=True, slots=True, eq=False)
class RecordedField:
    """One field of view at one time."""

    source: Path
    """File or folder that holds it."""
    name: str
    """Of its position within the data set."""
    channels: tuple[str, ...]
    """Names, in the order of the file."""
    open_channel: Callable[[int], RecordedChannel]
    """Opens a channel by its number: reads its metadata, not its pixels; may raise `StorageError`."""
    files: tuple[Path, ...]
    """Those that change when the field does."""
    time: int = 0
    """Number of the time point."""
    well: str | None = None
    plate: str = ""

    def channel(self, which: str | int | None = None) -> RecordedChannel:
        """A channel by its name or number; where there is only one, None or any name is it. `StorageError`:
        there is no such channel, or several of that name."""
        alone = len(self.channels) == 1
        number = which if isinstance(which, int) else 0 if alone else self._number(which)
        if not 0 <= number < len(self.channels):
            raise StorageError(
                f"{self.source} has no channel {number}", wanted=f"0 to {len(self.channels) - 1}"
            )
        return self.open_channel(number)

    def _number(self, name: str | None) -> int:
        if name is not None and self.channels.count(name) == 1:
            return self.channels.index(name)
        near = difflib.get_close_matches(name or "", self.channels, n=1)
        raise StorageError(
            f"it is not said which channel of {self.source} is meant" if name is None
            else f"{self.source} has {'several channels' if name in self.channels else 'no channel'} {name}",
            wanted=f"one of {', '.join(self.channels)}",
            fix=f"did you mean {near[0]!r}?" if near else "name one of these, or give its number",
        )  # fmt: skip

    def transmitted(self, wanted: str | None = None) -> str:
        """Name of the channel of transmitted light: as wanted, by its usual name, or the only stack.
        `StorageError`: there is no such channel, or it cannot be told which it is."""
        if wanted is not None:
            return self.channels[self._number(wanted)]
        found = [name for name in self.channels if _TRANSMITTED.search(name.replace("_", " "))]
        if len(found) != 1:
            names = found or list(self.channels)
            found = [name for name in names if self.channel(name).shape[0] > 1] or names
        if len(found) == 1:
            return found[0]
        raise StorageError(
            f"which channel of {self.source} is transmitted light cannot be told from the names",
            got=", ".join(self.channels),
            fix="give transmitted, the name of one of them",
        )


@dataclass(frozen=True, slots=True)
class Damaged:
    """A field, well or file of a data set that cannot be read, by its name, and why."""

    name: str
    error: StorageError
    well: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DataSet:
    """What a file or folder holds."""

    path: Path
    format: str
    """For messages, such as ``"an OME-Zarr plate"``."""
    fields: tuple[RecordedField, ...]
    """Every position at every time."""
    damaged: tuple[Damaged, ...] = ()
    """What should be there and cannot be read; only `SurveysDamage.survey` gives such."""

    def whole(self) -> Self:
        """The data set itself; `StorageError` if something of it cannot be read."""
        if self.damaged:
            raise self.damaged[0].error
        return self

    def field(self, position: str | None = None, time: int | None = None) -> RecordedField:
        """One field; of several positions in the same file the first with most channels, unless named.
        `StorageError`: there is no such position or time, or it is one of several files and nobody said
        which."""
        fits = [
            field for field in self.fields if position in (None, field.name) and time in (None, field.time)
        ]
        if not fits:
            wrong = f"position {position!r}" if position is not None else f"time {time}"
            names = list(dict.fromkeys(field.name for field in self.fields))
            last = max((field.time for field in self.fields), default=0)
            raise StorageError(
                f"{self.path} has no {wrong}", wanted=f"one of {', '.join(names[:20])}, time 0 to {last}"
            )
        if len({field.source for field in fits}) > 1:
            names = list(dict.fromkeys(field.name for field in fits))
            raise StorageError(
                f"{self.path} is {self.format} of several images",
                got=", ".join(names[:8]) + ", ..." * (len(names) > 8),
                fix=f"give one of them, such as {fits[0].source}",
            )
        return max(fits, key=lambda field: len(field.channels))


@runtime_checkable
class Reader(Protocol):
    """A file format of recorded images. A class of this kind without parameters is found by an entry point in
    the group ``acq_isl.readers``."""

    def recognises(self, path: Path) -> bool:
        """Whether a file or folder is of this format; reads no more than names, and raises nothing."""
        ...

    def read(self, path: Path) -> DataSet:
        """What is there; `StorageError` says what is wrong with it."""
        ...


@runtime_checkable
class SurveysDamage(Protocol):
    """A `Reader` that can go on past what is damaged."""

    def survey(self, path: Path) -> DataSet:
        """As `Reader.read`, with what cannot be read in `DataSet.damaged`; `StorageError`: nothing can."""
        ...


def channel_names(count: int, names: Sequence[str | None], only: str) -> tuple[str, ...]:
    """Names of all channels: unnamed ones are numbered, one alone is called ``only``."""
    if count == 1 and not any(names):
        return (only,)
    given = (*names, *(None,) * count)
    return tuple(given[at] or f"channel {at}" for at in range(count))


def well_of(position: str) -> str | None:
    """Of positions called ``A1_003`` or ``A1-Site_3``."""
    head = position.replace("-", "_").partition("_")[0]
    return head if head[:1].isalpha() and head[1:].isdecimal() else None


def light_of(channel: str) -> Modality:
    """The kind of light that a channel's name tells, or ``"unknown"``."""
    name = channel.replace("_", " ")
    return next((light for light, pattern in _LIGHT.items() if pattern.search(name)), "unknown")


def label_of(channel: str, taken: Iterable[str]) -> str:
    """Name of the label that a fluorescence channel shows: that of the model, or its own."""
    for label, stain in _LABELS.items():
        if re.search(stain, channel, re.IGNORECASE) and label not in taken:
            return label
    return channel


def as_counts(pixels: Pixels, what: str) -> Uint16Image:
    """Pixels as uint16: integers moved to begin at 0 where they are negative, all else mapped linearly.
    `StorageError`: NaN or infinite pixels, or a type that is no number."""
    if pixels.dtype in (np.uint16, np.uint8):
        return pixels.astype(np.uint16, copy=False)
    values = require_finite(pixels, what)
    # Python's numbers: the difference of two int8 may be no int8.
    low, high = values.min().item(), values.max().item()
    if pixels.dtype.kind in "iu" and high - min(low, 0) <= _FULL_SCALE:
        moved: Uint16Image = (values.astype(np.int64) - min(low, 0)).astype(np.uint16)
        return moved
    scale = _FULL_SCALE / (high - low) if high > low else 0.0
    scaled: Uint16Image = np.rint((values.astype(np.float64) - low) * scale).astype(np.uint16)
    return scaled


def require_finite(pixels: Pixels, what: str) -> Pixels:
    """The same pixels; `StorageError` if they are no real, finite numbers."""
    if pixels.dtype.kind not in "iufb":
        raise StorageError(f"{what} holds no numbers", got=str(pixels.dtype), fix="save intensities")
    bad = int(np.size(pixels) - np.isfinite(pixels).sum()) if pixels.dtype.kind == "f" else 0
    if bad:
        raise StorageError(
            f"{what} has pixels that are NaN or infinite",
            got=f"{bad} of {pixels.size} pixels",
            fix="export it again, or leave this field out",
        )
    return pixels
