"""What is drawn of a model in a viewer, and when. Qt's main thread only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.processing.display import Box
from acq_isl.view.napari.layers import PictureLayers
from acq_isl.view.napari.marks import BADGE_COLOR, BADGE_INK
from acq_isl.view.napari.model import Changes, FieldView, LiveModel
from acq_isl.view.napari.style import Outline, banner, hues, outline

FIELDS = "fields"
TARGET = "place to go to"
MOST_FRAMES = 1500
"""Frames drawn at most; a napari shapes layer takes seconds for more."""
_UNITS = ("um", "um")


class Outlines:
    """A shapes layer with one frame per field, and a mark; the thinnest frame is ``thin_um`` wide."""

    def __init__(self, viewer: Any, thin_um: float) -> None:
        self._viewer, self._thin_um = viewer, thin_um
        self._fields = viewer.add_shapes(
            None, ndim=2, name=FIELDS, face_color="transparent", edge_width=thin_um, opacity=1.0, units=_UNITS
        )
        style = {"symbol": "ring", "size": 6 * thin_um, "face_color": "white", "border_color": "black"}
        self._target = viewer.add_points(np.empty((0, 2)), name=TARGET, units=_UNITS, **style)
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
            corners = [_corners(box) for box in boxes]
            style = {"edge_color": colors, "edge_width": widths, "face_color": "transparent"}
            self._fields.add_rectangles(corners, **style)
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


_REST_EVERY_S = 0.3
_REST_PAUSE = 4  # times as long as drawing the rest took
_CLICK_PX = 4


class Scene:
    """Layers, frames, banner and camera of one run, whose model has its plan."""

    def __init__(self, viewer: Any, model: LiveModel, now: Callable[[], float] = time.monotonic) -> None:
        if model.plan is None or model.places is None:
            raise ValueError("a scene needs a plan")
        self._viewer, self._model, self._now = viewer, model, now
        self._large: str | None = None
        self._next_s = float("-inf")
        self._stale: set[str] = set()
        self._unframed = True
        self.hues = hues(model.plan)
        by_model = {style.name: style.model for style in model.plan.labels if style.model}
        self._pictures = PictureLayers(viewer, self.hues, model.places, by_model)
        thin_um = min(min(box.width, box.height) for box in model.places.boxes) / 110
        self._outlines = Outlines(viewer, thin_um)
        viewer.canvas.overlays.scale_bar.visible = True
        # The pictures are what the user's mouse and keys are about, not the frames.
        viewer.layers.selection.active = self._pictures.light
        self.show_map()

    def close(self) -> None:
        """Take everything out of the viewer."""
        self._pictures.remove()
        self._outlines.remove()

    def draw(self, changes: Changes) -> bool:
        """Draw what changed; whether the field in large did.

        It is drawn at once. The map and the frames, which cost more, are drawn a few times a second, and
        never so often that they take more than a fifth of the time.
        """
        shown = self._model.shown
        name = shown.name if shown is not None else None
        moved = name != self._large
        self._stale |= changes.fields | ({one for one in (name, self._large) if one} if moved else set())
        self._unframed |= changes.outlines or changes.plan
        self._large = name
        drawn = shown is not None and (moved or name in changes.fields)
        if shown is not None and drawn:
            self._pictures.show(shown, self._model.light_range, self._model.tops)
            if moved and self._model.selected is None:
                self._bring_into_view(shown.box)
        if self._now() >= self._next_s:
            self._draw_rest()
        return drawn

    def _draw_rest(self) -> None:
        began_s = self._now()
        for name in self._stale:
            self._pictures.tile(self._model.fields[name], blank=name == self._large)
        self._stale.clear()
        self._pictures.flush()
        if self._unframed:
            self._frame()
            self._unframed = False
        ended_s = self._now()
        self._next_s = ended_s + max(_REST_EVERY_S, _REST_PAUSE * (ended_s - began_s))

    def write(self, state: str) -> None:
        """Say on the picture what is predicted in it, and which field is shown in large."""
        shown = self._model.shown
        where = f"{shown.name} · " if shown is not None else ""
        write_banner(self._viewer, f"{banner(self._model)}\n{where}{state}")

    def mark(self, place_um: tuple[float, float] | None) -> None:
        """Mark a place, (x, y) in micrometres of the map."""
        self._outlines.target(place_um)

    def show_map(self) -> None:
        """Zoom out to all fields."""
        places = self._model.places
        if places is not None:
            self._zoom_to(places.around)

    def show_field(self) -> None:
        """Zoom in to the field shown in large."""
        if self._model.shown is not None:
            self._zoom_to(self._model.shown.box)

    def automatic_contrast(self) -> None:
        """Forget the contrast limits set by hand."""
        self._pictures.automatic()
        if self._model.shown is not None:
            self._pictures.show(self._model.shown, self._model.light_range, self._model.tops)

    def _frame(self) -> None:
        fields = list(self._model.fields.values())
        ranked = sum(one.ranked is not None and one.ranked.rank is not None for one in fields)
        self._outlines.draw([(one, outline(one, ranked)) for one in fields])

    def _zoom_to(self, box: Box) -> None:
        rows, columns = self._viewer.canvas.size
        self._viewer.scene.camera.center = (0.0, box.y + box.height / 2, box.x + box.width / 2)
        self._viewer.scene.camera.zoom = 0.92 * min(rows / box.height, columns / box.width)

    def _bring_into_view(self, box: Box) -> None:
        """Follow the run to a field without touching the user's zoom."""
        camera = self._viewer.scene.camera
        half_rows, half_columns = (side / camera.zoom / 2 for side in self._viewer.canvas.size)
        y, x = camera.center[-2:]
        rows_seen = y - half_rows <= box.y and box.y + box.height <= y + half_rows
        columns_seen = x - half_columns <= box.x and box.x + box.width <= x + half_columns
        if not (rows_seen and columns_seen):
            camera.center = (0.0, box.y + box.height / 2, box.x + box.width / 2)


def on_click(clicked: Callable[[float, float], None]) -> Callable[[Any, Any], Iterator[None]]:
    """A napari mouse callback that tells clicks (x, y in micrometres) from drags."""

    def pressed(viewer: Any, event: Any) -> Iterator[None]:
        start = event.pos
        moved = False
        yield
        while event.type == "mouse_move":
            moved |= max(abs(event.pos[i] - start[i]) for i in (0, 1)) > _CLICK_PX
            yield
        if not moved:
            y, x = event.position[-2:]
            clicked(float(x), float(y))

    return pressed


def coordinates(model: LiveModel, x: float, y: float) -> tuple[float, float, FieldView | None] | None:
    """Stage coordinates of a place of the map, and the field there.

    None where the map has no stage coordinates: between fields that are set in rows.
    """
    found = model.at(x, y)
    if found is not None:
        dx, dy = found.shift_um
        return x - dx, y - dy, found
    to_scale = model.places is not None and model.places.to_scale
    return (x, y, None) if to_scale else None
