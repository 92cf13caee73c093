"""Frames around the fields, the place to go to, and the words on the picture. Qt's main thread only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.view.napari.marks import BADGE_COLOR, BADGE_INK
from acq_isl.view.napari.model import FieldView
from acq_isl.view.napari.style import Outline

FIELDS = "fields"
TARGET = "place to go to"
MOST_FRAMES = 1500
"""Frames drawn at most; a napari shapes layer takes seconds for more."""
_UNITS = ("um", "um")


class Outlines:
    """A shapes layer with one frame per field, and a cross.

    Parameters
    ----------
    viewer : napari.Viewer
    thin_um : float
        Width of the thinnest frame.
    """

    def __init__(self, viewer: Any, thin_um: float) -> None:
        self._viewer, self._thin_um = viewer, thin_um
        self._fields = viewer.add_shapes(
            None, ndim=2, name=FIELDS, face_color="transparent", edge_width=thin_um, opacity=1.0, units=_UNITS
        )
        self._target = viewer.add_points(
            np.empty((0, 2)),
            name=TARGET,
            symbol="ring",
            size=6 * thin_um,
            units=_UNITS,
            face_color="white",
            border_color="black",
        )
        self._fields.editable = self._target.editable = False
        self._drawn: list[tuple[float, float, float, float]] = []

    def remove(self) -> None:
        """Take the layers out of the viewer."""
        for layer in (self._fields, self._target):
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)

    def draw(self, frames: Sequence[tuple[FieldView, Outline]]) -> None:
        """Draw a frame around each field; beyond `MOST_FRAMES` the widest ones only."""
        if self._fields not in self._viewer.layers or not frames:
            return
        shown = sorted(frames, key=lambda frame: frame[1].width)[-MOST_FRAMES:]
        boxes = [(one.box.x, one.box.y, one.box.width, one.box.height) for one, _ in shown]
        colors = [frame.color for _, frame in shown]
        widths = [self._thin_um * frame.width for _, frame in shown]
        if boxes != self._drawn:
            self._drawn = boxes
            self._fields.data = []
            self._fields.add_rectangles(
                [_corners(box) for box in boxes],
                edge_color=colors,
                edge_width=widths,
                face_color="transparent",
            )
        else:
            self._fields.edge_color, self._fields.edge_width = colors, widths
        self._fields.features = {"words": [frame.text for _, frame in shown]}
        # Inside the frame, below the badge: napari writes above or below a shape only, so from its lower
        # edge the words are moved up by its height.
        self._fields.text = {
            "string": "{words}",
            "size": 9,
            "color": "white",
            "anchor": "lower_left",
            "translation": [-0.93 * min(box[3] for box in boxes), 3 * self._thin_um],
        }

    def target(self, place_um: tuple[float, float] | None) -> None:
        """Mark a place, (x, y) in micrometres of the map."""
        if self._target in self._viewer.layers:
            x_y = () if place_um is None else ((place_um[1], place_um[0]),)
            self._target.data = np.array(x_y, float).reshape(-1, 2)


def write_banner(viewer: Any, text: str) -> None:
    """Write on the picture itself, so that screenshots have it."""
    overlay = viewer.canvas.overlays.text
    if overlay.text == text and overlay.visible:
        return
    overlay.text, overlay.visible, overlay.box, overlay.font_size = text, True, True, 11
    overlay.box_color, overlay.color, overlay.position = BADGE_COLOR, BADGE_INK, "top_left"


def _corners(box: tuple[float, float, float, float]) -> NDArray[np.float64]:
    x, y, width, height = box
    return np.array([(y, x), (y, x + width), (y + height, x + width), (y + height, x)])
