"""Training pairs from NDTiff, the format that Pycro-Manager and acq-isl write."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from acq_isl.errors import PairRefused, StorageError
from acq_isl.readers.ndtiff import open_ndtiff
from acq_isl.training.data.pairs import Item, Recording, as_counts
from acq_isl.training.data.source_base import Nominal, RecordedSource, projected, stamp

_INDEX = "NDTiff.index"
# The Python backend of Pycro-Manager's names, then the Java backend's.
_PIXEL_KEYS = ("PixelSize_um", "PixelSizeUm")
_Z_KEYS = ("ZPosition_um_Intended", "ZPosition_um", "ZPositionUm")


class NdtiffSource(RecordedSource):
    """One or more NDTiff data sets; every position and time point is a field, every position a well's part.

    Positions called ``A1_003`` or ``A1-Site_3`` lie in well A1.
    """

    kind: Literal["ndtiff"]
    folder: Path
    """A data set, or a folder of data sets."""
    stack: str
    """Channel of transmitted light."""
    labels: dict[str, str] = Field(min_length=1)
    """Channel by label name; a channel that is not there is a label that this field lacks."""

    def items(self, nominal: Nominal) -> Iterator[Item]:
        """All positions and times that have the stack."""
        del nominal
        sets = sorted(path.parent for path in self.folder.rglob(_INDEX))
        if not sets:
            raise StorageError(
                f"{self.folder} is not an NDTiff data set", wanted=f"a file {_INDEX}", fix="check the folder"
            )
        for folder in sets:
            with open_ndtiff(folder) as data:
                axes = [_named(one, data) for one in data.get_image_coordinates_list()]
            yield from self._fields(folder, axes, many=len(sets) > 1)

    def _fields(self, folder: Path, axes: list[dict[str, Any]], *, many: bool) -> Iterator[Item]:
        places = sorted({_place(one) for one in axes if one.get("channel") == self.stack}, key=str)
        if not places:
            found = sorted({str(one.get("channel")) for one in axes})
            raise PairRefused(
                f"{folder} has no channel {self.stack}", got=", ".join(found), fix="check stack"
            )
        for position, time in places:
            here = [one for one in axes if _place(one) == (position, time)]
            channels = {one.get("channel") for one in here}
            labels = tuple(name for name, channel in self.labels.items() if channel in channels)
            well = self.well if self.well is not None else _well(position)
            field = f"{folder.name}:{position}" if many else str(position)
            yield Item(
                name=self.name(None, field if time in (None, 0) else f"{field} t{time}"),
                well=self.place(well),
                stamp=stamp(sorted(folder.iterdir()), self.model_dump(mode="json"), position, time),
                load=_Load(self, folder, (position, time), labels),
                labels=labels,
                plate=self.plate,
                field=self.name(None, field),  # the same place at another time is the same field
            )


@dataclass(frozen=True, slots=True)
class _Load:
    source: NdtiffSource
    folder: Path
    place: tuple[Any, Any]
    labels: tuple[str, ...]

    def __call__(self) -> Recording:
        what = f"{self.folder} {self.place[0]}"
        with open_ndtiff(self.folder) as data:
            stack, lengths = self._planes(data, self.source.stack)
            images = {n: projected(self._planes(data, self.source.labels[n])[0]) for n in self.labels}
        counts = as_counts(stack, f"the stack {what}")
        return Recording(counts, images, *self.source.lengths(what, len(counts), lengths))

    def _planes(self, data: Any, channel: str) -> tuple[NDArray[Any], tuple[float | None, float | None]]:
        axes = [one for one in data.get_image_coordinates_list()
                if _named(one, data).get("channel") == channel and _place(one) == self.place]  # fmt: skip
        axes.sort(key=lambda one: one.get("z", 0))
        pixels, places_um, pixel_um = [], [], None
        for one in axes:
            pixels.append(data.read_image(**one))
            about = data.read_metadata(**one)
            # 0 stands for a microscope whose pixels were never calibrated.
            pixel_um = next((about[key] for key in _PIXEL_KEYS if about.get(key)), pixel_um)
            places_um.append(next((float(about[key]) for key in _Z_KEYS if key in about), float("nan")))
        if any(image.shape != pixels[0].shape for image in pixels):
            raise PairRefused(f"{self.folder} {self.place[0]}: planes of {channel} differ in size")
        steps = np.diff(places_um)
        if len(steps) and np.all(steps < 0):
            pixels.reverse()
        step = float(np.mean(np.abs(steps))) if len(steps) and np.isfinite(steps).all() else None
        return np.stack(pixels), (float(pixel_um) if pixel_um else None, step)


def _place(axes: dict[str, Any]) -> tuple[Any, Any]:
    return axes.get("position", "0"), axes.get("time")


def _named(axes: dict[str, Any], data: Any) -> dict[str, Any]:
    """Older data sets number their channels."""
    channel = axes.get("channel")
    if isinstance(channel, int):
        names = list(data.get_channel_names() or ())
        return {**axes, "channel": names[channel] if channel < len(names) else str(channel)}
    return axes


def _well(position: object) -> str | None:
    head = str(position).replace("-", "_").partition("_")[0]
    return head if head[:1].isalpha() and head[1:].isdecimal() else None
