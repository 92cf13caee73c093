"""What the kinds of training data have in common."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from acq_isl.base import StrictModel
from acq_isl.errors import PairRefused


@dataclass(frozen=True, slots=True)
class Nominal:
    """What the model is trained for; simulated fields vary around it on purpose."""

    planes: int
    pixel_size_um: float
    z_step_um: float


class RecordedSource(StrictModel):
    """What may be said of every kind of recorded images."""

    plate: str = ""
    """For names, and so that wells of two plates differ."""
    well: str | None = None
    """Of all its fields, where names or metadata do not say."""
    pixel_size_um: float | None = Field(default=None, gt=0)
    """Overrules the metadata."""
    z_step_um: float | None = Field(default=None, gt=0)
    """Overrules the metadata."""

    def lengths(
        self, what: str, planes: int, found: tuple[float | None, float | None]
    ) -> tuple[float, float]:
        """Pixel size and z step in micrometres, as told or else as found in the metadata.

        Raises
        ------
        PairRefused
            Nobody knows one of them.
        """
        pixel = self.pixel_size_um if self.pixel_size_um is not None else found[0]
        step = self.z_step_um if self.z_step_um is not None else found[1]
        if not _is_length(pixel):
            raise _unknown(f"the pixel size of {what}", "pixel_size_um")
        if planes > 1 and not _is_length(step):
            raise _unknown(f"the z step of {what}", "z_step_um")
        return float(pixel or 0), float(step or 0) if planes > 1 else 0.0

    def name(self, well: str | None, field: str) -> str:
        """Of a field: plate, well, field."""
        return "/".join(part for part in (self.plate, well, field) if part)

    def place(self, well: str | None) -> str | None:
        """Plate and well, or None if the well is not known."""
        return None if well is None else "/".join(part for part in (self.plate, well) if part)


def _is_length(value: float | None) -> bool:
    return value is not None and math.isfinite(value) and value > 0


def _unknown(what: str, key: str) -> PairRefused:
    return PairRefused(
        f"{what} is not known", wanted="micrometres, from the files' metadata", fix=f"say {key} in the source"
    )


def stamp(files: Iterable[Path], *settings: object) -> str:
    """Changes when a file or a setting does."""
    content = hashlib.sha256(repr(settings).encode())
    for path in files:
        state = path.stat()
        content.update(f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}\n".encode())
    return content.hexdigest()


def picked(
    array: NDArray[Any], axes: str, channel: str | int | None, names: Sequence[str], what: str
) -> NDArray[Any]:
    """One channel of an image as (z, y, x).

    Parameters
    ----------
    array : ndarray
    axes : str
        One letter per axis, of T, C, Z, Y, X and whatever else files have.
    channel : str, int or None
        Name or number; None: there is only one.
    names : sequence of str
        Of the channels, as far as known.
    what : str
        For error messages.

    Raises
    ------
    PairRefused
        No such channel, or several time points, positions or colours.
    """
    axes = axes.upper()
    if "C" in axes:
        index = _index(channel, array.shape[axes.index("C")], names, what)
        array, axes = np.take(array, index, axes.index("C")), axes.replace("C", "")
    elif isinstance(channel, int) and channel > 0:
        raise PairRefused(f"{what} has one channel", wanted=f"channel {channel}", fix="check the source")
    if not set(axes) & {"Z"}:  # plain TIFF files call a stack of pages I or Q
        axes = axes.replace("I", "Z", 1) if "I" in axes else axes.replace("Q", "Z", 1)
    for axis in sorted(set(axes) - set("ZYX")):
        if array.shape[axes.index(axis)] != 1:
            raise PairRefused(
                f"{what} has {array.shape[axes.index(axis)]} images along its axis {axis}",
                wanted="one field, time point and channel at a time: axes Z, Y, X",
                fix="save them as separate images",
            )
        array, axes = np.take(array, 0, axes.index(axis)), axes.replace(axis, "")
    if "Z" not in axes:
        array, axes = array[None], "Z" + axes
    return np.transpose(array, [axes.index(axis) for axis in "ZYX"])


def _index(channel: str | int | None, count: int, names: Sequence[str], what: str) -> int:
    if channel is None and count == 1:
        return 0
    if isinstance(channel, int) and 0 <= channel < count:
        return channel
    matches = [at for at, name in enumerate(names) if name == channel]
    if len(matches) == 1:
        return matches[0]
    raise PairRefused(
        f"{what} has no channel {channel}" if channel is not None else f"{what} has {count} channels",
        wanted="one of " + ", ".join(names or [str(at) for at in range(count)]),
        fix="name the channel in the source",
    )


def projected(stack: NDArray[Any]) -> NDArray[Any]:
    """A label image: the maximum over z, which is what the published data set holds."""
    image: NDArray[Any] = stack[0] if len(stack) == 1 else stack.max(axis=0)
    return image
