"""Fields of view become a map: where each is drawn, and all of them in one array per layer. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.pictures import Box, layout
from acq_isl.stack import StackInfo
from acq_isl.view.messages import PREVIEW_PX, PlannedField
from acq_isl.view.napari_marks import hatch

MAP_PX = 1 << 21
"""Pixels of the map, whatever the number of fields: about 1450 x 1450."""
_NM_PER_UM = 1000


@dataclass(frozen=True, slots=True)
class Places:
    """Where the fields of a plan are drawn; as in `acq_isl.pictures.Layout`."""

    boxes: tuple[Box, ...]
    around: Box
    to_scale: bool

    @property
    def pixel_size_um(self) -> float:
        """Of the map: as fine as the previews, unless that would take more than `MAP_PX`."""
        preview = max(max(box.width, box.height) for box in self.boxes) / PREVIEW_PX
        return max(preview, math.sqrt(self.around.width * self.around.height / MAP_PX))


def placed(fields: Sequence[PlannedField], fov_um: tuple[float, float]) -> Places:
    """Fields at their stage coordinates, or in rows if they lie too far apart to be seen together."""
    width, height = (max(round(side * _NM_PER_UM), 1) for side in fov_um)
    infos = [
        StackInfo(one.key, (one.z_um,), (height, width), 1 / _NM_PER_UM, one.x_um, one.y_um) for one in fields
    ]
    found = layout(infos)
    return Places(found.boxes or (Box(0, 0, 1, 1),), found.around, found.to_scale)


class Mosaic:
    """All fields in one picture per kind, updated tile by tile.

    Parameters
    ----------
    places : Places
    labels : int
        Predicted labels.
    """

    def __init__(self, places: Places, labels: int) -> None:
        self._around, self.pixel_size_um = places.around, places.pixel_size_um
        shape = tuple(
            max(math.ceil(side / self.pixel_size_um), 1)
            for side in (places.around.height, places.around.width)
        )
        self.light: NDArray[np.uint16] = np.zeros(shape, np.uint16)
        self.labels: NDArray[np.uint8] = np.zeros((labels, *shape), np.uint8)

    @property
    def origin_um(self) -> tuple[float, float]:
        """Middle of the first pixel, (y, x)."""
        return self._around.y + self.pixel_size_um / 2, self._around.x + self.pixel_size_um / 2

    def put(self, box: Box, light: NDArray[Any] | None, labels: NDArray[Any] | None) -> None:
        """Draw a field; what is not given stays black.

        Parameters
        ----------
        box : Box
        light : (y, x) uint16 or None
        labels : (label, y, x) uint8 or None
            Hatched at the border, as predictions are.
        """
        rows, columns = self._window(box)
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        if min(shape) < 1:
            return
        self.light[rows, columns] = 0 if light is None else fitted(light, shape)
        if labels is None:
            self.labels[:, rows, columns] = 0
            return
        marks = hatch(shape)
        for number, plane in enumerate(labels[: len(self.labels)]):
            self.labels[number, rows, columns] = np.where(marks.mask, marks.values, fitted(plane, shape))

    def blank(self, box: Box) -> None:
        """Leave a field out, because it is shown in large at the same place."""
        self.put(box, None, None)

    def _window(self, box: Box) -> tuple[slice, slice]:
        spans = []
        for start, length, first, limit in (
            (box.y, box.height, self._around.y, self.light.shape[0]),
            (box.x, box.width, self._around.x, self.light.shape[1]),
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
