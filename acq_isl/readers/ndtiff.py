"""A recorded field from NDTiff, the format that Pycro-Manager and Micro-Manager write."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from acq_isl.errors import StorageError
from acq_isl.readers.image import RecordedField

_log = logging.getLogger(__name__)

INDEX = "NDTiff.index"
# The Python backend's names, then the Java backend's.
_PIXEL_KEYS = ("PixelSize_um", "PixelSizeUm")
_Z_KEYS = ("ZPosition_um_Intended", "ZPosition_um", "ZPositionUm")
_AXES = {"channel", "position", "time", "z"}


def read_ndtiff(folder: Path, position: str | None, time: int | None) -> RecordedField:
    """Read all channels of one position at one time.

    Parameters
    ----------
    folder : Path
        That holds ``NDTiff.index``.
    position : str, optional
        Default: the one with most channels, the first of these.
    time : int, optional
        Default: the first of that position.

    Raises
    ------
    StorageError
        It cannot be read, has no such position or time, or axes that are not known.
    """
    with open_ndtiff(folder) as data:
        axes = [_named(one, data) for one in data.get_image_coordinates_list()]
        strange = {name for named, _ in axes for name in named} - _AXES
        if strange or not axes:
            raise StorageError(
                f"{folder} is not a set of z-stacks",
                wanted=f"axes among {', '.join(sorted(_AXES))}",
                got=", ".join(sorted(strange)) or "no images",
            )
        place = _place(folder, [named for named, _ in axes], position, time)
        here = [(named, real) for named, real in axes if _where(named) == place]
        channels = list(dict.fromkeys(str(named.get("channel", "Phase")) for named, _ in here))
        return _read(folder, data, {name: _of(here, name) for name in channels})


def _read(folder: Path, data: Any, channels: dict[str, list[dict[str, Any]]]) -> RecordedField:
    stacks: dict[str, Any] = {}
    pixel_um: float | None = None
    step_um: float | None = None
    for name, axes in channels.items():
        images, about = _images(folder, data, name, axes)
        pixel_um = pixel_um or next((float(m[k]) for m in about for k in _PIXEL_KEYS if m.get(k)), None)
        places_um = [next((float(m[k]) for k in _Z_KEYS if k in m), None) for m in about]
        known_um = [z_um for z_um in places_um if z_um is not None]
        if len(images) > 1 and len(known_um) == len(images):
            steps_um = np.diff(known_um)
            if np.all(steps_um < 0):
                images.reverse()
            step_um = step_um or float(np.mean(np.abs(steps_um))) or None
        stacks[name] = np.stack(images)
    return RecordedField(str(folder), stacks, pixel_um, step_um)


def _images(
    folder: Path, data: Any, channel: str, axes: list[dict[str, Any]]
) -> tuple[list[Any], list[dict[str, Any]]]:
    try:
        images = [data.read_image(**one) for one in axes]
        about = [data.read_metadata(**one) for one in axes]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StorageError(
            f"the images of {channel} in {folder} cannot be read",
            got=f"{type(error).__name__}: {error}",
            fix="copy it anew from where it was recorded",
        ) from error
    if len({image.shape for image in images}) > 1:
        raise StorageError(f"the planes of {channel} in {folder} differ in size")
    return images, about


def _place(
    folder: Path, axes: list[dict[str, Any]], position: str | None, time: int | None
) -> tuple[str, int]:
    """The position and time to read."""
    counts: dict[tuple[str, int], set[str]] = {}
    for one in axes:
        counts.setdefault(_where(one), set()).add(str(one.get("channel")))
    fits = [
        place
        for place in sorted(counts, key=lambda place: -len(counts[place]))
        if position in (None, place[0]) and time in (None, place[1])
    ]
    if not fits:
        names = sorted({place[0] for place in counts})
        times = sorted({place[1] for place in counts})
        raise StorageError(
            f"{folder} has no position {position!r} at time {time}",
            wanted=f"one of {', '.join(names[:20])}, time {times[0]} to {times[-1]}",
        )
    if len(counts) > 1 and (position is None or time is None):
        _log.info("%s holds %d fields; %s at time %d is used", folder, len(counts), *fits[0])
    return fits[0]


def _where(axes: dict[str, Any]) -> tuple[str, int]:
    return str(axes.get("position", 0)), int(axes.get("time", 0))


def _of(axes: list[tuple[dict[str, Any], dict[str, Any]]], channel: str) -> list[dict[str, Any]]:
    """Axes of the planes of a channel, in the order of their numbers."""
    planes = [(named, real) for named, real in axes if str(named.get("channel", "Phase")) == channel]
    return [real for _, real in sorted(planes, key=lambda pair: int(pair[0].get("z", 0)))]


def _named(axes: dict[str, Any], data: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Axes with the channel's name, and as the data set wants them: older ones number their channels."""
    channel, names = axes.get("channel"), list(data.get_channel_names() or ())
    if isinstance(channel, int) and channel < len(names):
        return {**axes, "channel": names[channel]}, axes
    return dict(axes), axes


@contextmanager
def open_ndtiff(folder: Path) -> Iterator[Any]:
    """An NDTiff data set, closed again afterwards; `StorageError` if it cannot be read."""
    from ndstorage import Dataset

    try:
        with redirect_stdout(StringIO()):  # it prints its progress
            data = Dataset(str(folder))
    except (OSError, ValueError, LookupError, RuntimeError, struct.error) as error:
        raise StorageError(
            f"{folder} cannot be read as NDTiff",
            got=f"{type(error).__name__}: {error}",
            fix="copy it anew from where it was recorded",
        ) from error
    try:
        yield data
    finally:
        data.close()
