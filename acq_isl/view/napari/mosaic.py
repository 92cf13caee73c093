"""Fields of view become a map: where each is drawn, and all of them in one picture. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.events import PlannedField
from acq_isl.processing.display import Box, Layout, layout
from acq_isl.stack import StackInfo
from acq_isl.view.feed.messages import PREVIEW_PX
from acq_isl.view.napari.marks import hatch

MAP_PX = 1 << 21
"""Pixels of the map, whatever the number of fields: about 1450 x 1450."""
_NM_PER_UM = 1000
_STEPS = 256
_FULL = slice(None)


def placed(fields: Sequence[PlannedField], fov_um: tuple[float, float]) -> Layout:
    """Fields at their stage coordinates, or in rows if they lie too far apart to be seen together."""
    height, width = (max(round(side * _NM_PER_UM), 1) for side in reversed(fov_um))
    infos = [StackInfo(f.key, (f.z_um,), (height, width), 1 / _NM_PER_UM, f.x_um, f.y_um) for f in fields]
    found = layout(infos)
    return found if found.boxes else replace(found, boxes=(Box(0, 0, 1, 1),))


def pixel_size_um(places: Layout) -> float:
    """Of the map: as fine as the previews, unless that would take more than `MAP_PX`."""
    preview = max(max(box.width, box.height) for box in places.boxes) / PREVIEW_PX
    return max(preview, math.sqrt(places.around.width * places.around.height / MAP_PX))


@dataclass(frozen=True, slots=True, eq=False)
class Shade:
    """How counts become colour: linear from ``low`` to ``high`` through a (256, 4) float32 table.

    The table is red, green, blue, and how far that covers what lies below, 0 to 1.
    """

    low: float
    high: float
    table: NDArray[np.float32]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Shade):
            return NotImplemented
        limits = (self.low, self.high) == (other.low, other.high)
        return limits and np.array_equal(self.table, other.table)

    __hash__ = None  # type: ignore[assignment]  # it holds an array

    def colors(self, plane: NDArray[Any]) -> NDArray[np.float32]:
        """(y, x) counts as (y, x, 4) colours."""
        scaled = (plane.astype(np.float32) - self.low) * ((_STEPS - 1) / max(self.high - self.low, 1e-6))
        colors: NDArray[np.float32] = self.table[np.clip(scaled, 0, _STEPS - 1).astype(np.uint8)]
        return colors


class Mosaic:
    """All fields in one picture, updated tile by tile; shades are of the light, then of each label."""

    def __init__(self, places: Layout, shades: Sequence[Shade]) -> None:
        self._around, self.pixel_size_um = places.around, pixel_size_um(places)
        sides = (places.around.height, places.around.width)
        self._shape = tuple(max(math.ceil(side / self.pixel_size_um), 1) for side in sides)
        self._light = np.zeros(self._shape, np.uint16)
        self._labels = np.zeros((len(shades) - 1, *self._shape), np.uint8)
        self._shades = tuple(shades)
        self.picture: NDArray[np.uint8] = np.zeros((*self._shape, 3), np.uint8)
        """(y, x, rgb); written in place."""

    @property
    def origin_um(self) -> tuple[float, float]:
        """Middle of the first pixel, (y, x)."""
        return self._around.y + self.pixel_size_um / 2, self._around.x + self.pixel_size_um / 2

    def put(self, box: Box, light: NDArray[Any] | None, labels: NDArray[Any] | None) -> None:
        """Draw a field from light (y, x) uint16 and labels (label, y, x) uint8; what is missing is black.

        Labels are hatched at the border, as predictions are.
        """
        rows, columns = self._window(box)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        if min(shape) < 1:
            return
        self._light[rows, columns] = 0 if light is None else fitted(light, shape)
        self._labels[:, rows, columns] = 0
        for number, plane in enumerate(() if labels is None else labels[: len(self._labels)]):
            self._labels[number, rows, columns] = fitted(plane, shape)
        if labels is not None:
            hatch(shape).paint(self._labels[:, rows, columns])
        self._compose(rows, columns)

    def shade(self, shades: Sequence[Shade]) -> bool:
        """Show the same in other colours; whether that changed anything."""
        if tuple(shades) == self._shades:
            return False
        self._shades = tuple(shades)
        self._compose(_FULL, _FULL)
        return True

    def _compose(self, rows: slice, columns: slice) -> None:
        """Light, and labels over it, the first on top, as the layers lie on the screen."""
        light = self._shades[0].colors(self._light[rows, columns])
        total = light[..., :3] * light[..., 3:]
        for shade, plane in reversed(list(zip(self._shades[1:], self._labels, strict=True))):
            if shade.table[:, 3].any():
                over = shade.colors(plane[rows, columns])
                total += (over[..., :3] - total) * over[..., 3:]
        self.picture[rows, columns] = total * 255

    def _window(self, box: Box) -> tuple[slice, slice]:
        spans = []
        for start, length, first, limit in (
            (box.y, box.height, self._around.y, self._shape[0]),
            (box.x, box.width, self._around.x, self._shape[1]),
        ):
            low = round((start - first) / self.pixel_size_um)
            high = round((start + length - first) / self.pixel_size_um)
            spans.append(slice(min(max(low, 0), limit), min(max(high, 0), limit)))
        return spans[0], spans[1]


def fitted(plane: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    """A (y, x) picture in another shape, by area averaging; enlarged by repeating pixels."""
    from PIL import Image

    image = Image.fromarray(np.asarray(plane, np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BOX))
