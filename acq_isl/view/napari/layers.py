"""The pictures of a run as layers of a napari viewer. Qt's main thread only.

From the bottom: the map; the field in large (light, each label, doubt); measured fluorescence. A field is
drawn once: the map leaves out the one that is shown in large. The map is one layer, coloured as the layers of
the field in large are: every further layer over the whole canvas costs a processor without GPU 10 ms a frame.

Where labels overlap, as nuclei lie in cells, the sum of their hues is cream: so the first label covers the
second, and so on, the more the stronger it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.events import Predicted, Seen
from acq_isl.processing.display import Layout, covering_ramp
from acq_isl.view.napari.marks import badge
from acq_isl.view.napari.model import FieldView
from acq_isl.view.napari.mosaic import Mosaic, Shade

LIGHT = "transmitted light"
MAP = "map, labels (predicted)"
DOUBT = "doubt (predicted)"
_DIMMED = ((0.0, 0.0, 0.0, 1.0), (0.6, 0.6, 0.6, 1.0))  # so that colours stand out on it
_DOUBT_LIMITS = (0, 255)
_HAZE = ((0.8, 0.8, 0.85, 0.0), (0.8, 0.8, 0.85, 0.85))
_STEPS = 32
_UNITS = ("um", "um")


class PictureLayers:
    """Layers of one run, added to a viewer.

    ``hues`` are ``#rrggbb`` by label; ``models`` name the model of each label where there are several.
    """

    def __init__(
        self, viewer: Any, hues: Mapping[str, str], places: Layout, models: Mapping[str, str] | None = None
    ) -> None:
        self._viewer, self._hues, self._models = viewer, hues, models or {}
        self._layers: dict[str, Any] = {}
        self._channels: list[str] = []
        self._dirty = False
        self._left_out = ""  # the field the map has a hole for
        self._ours = False
        self._touched: set[str] = set()
        self._add_live()
        self._add_map(places)

    @property
    def light(self) -> Any:
        """The layer of transmitted light of the field in large."""
        return self._layers[LIGHT]

    def remove(self) -> None:
        """Take the layers of this run out of the viewer, to make room for another's."""
        for layer in self._layers.values():
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)
        self._layers.clear()

    def show(self, one: FieldView, light_range: tuple[float, float] | None, tops: Mapping[str, int]) -> None:
        """Show a field in large, where it lies.

        ``light_range``: counts to show transmitted light between; ``tops``: up to which value to show each
        label; unless the user has set that.
        """
        for label in self._hues.keys() & tops.keys():
            self._limit(predicted(label), (0, tops[label]))
        plane, found = one.light, one.predicted
        self._draw(LIGHT, one, (plane.event, plane.pixels) if plane else None)
        for label in self._hues:
            mean = found.plane(label) if found else None
            self._draw(predicted(label), one, (found.event, mean) if found and mean is not None else None)
        self._draw(DOUBT, one, (found.event, found.uncertainty) if found else None)
        for channel in sorted(one.measured.keys() - set(self._channels)):
            self._add_measured(channel)
        for channel in self._channels:
            plane = one.measured.get(channel)
            self._draw(measured(channel), one, (plane.event, plane.pixels) if plane else None)
            if plane:
                self._limit(measured(channel), (plane.event.low, plane.event.high))
        if light_range is not None:
            self._limit(LIGHT, light_range)

    def tile(self, one: FieldView, *, blank: bool) -> None:
        """Draw a field into the map, or leave it out; seen after the next `flush`."""
        if blank and one.name == self._left_out:
            return
        self._dirty = True
        if blank:
            self._left_out = one.name
            self._mosaic.put(one.box, None, None)
            return
        if one.name == self._left_out:
            self._left_out = ""
        planes = None
        if one.predicted is not None:
            none = np.zeros(one.predicted.uncertainty.shape, np.uint8)
            found = [one.predicted.plane(label) for label in self._hues]
            planes = np.stack([none if plane is None else plane for plane in found]) if found else None
        self._mosaic.put(one.box, one.light.pixels if one.light else None, planes)

    def flush(self) -> None:
        """Show what was drawn into the map, or coloured otherwise by the user, since the last call."""
        self._dirty |= self._mosaic.shade(self._shades())
        if not self._dirty:
            return
        self._dirty = False
        # The small pictures of the layer list are brought up to date with the map, not at every picture.
        for layer in self._layers.values():
            if layer in self._viewer.layers and layer.visible:
                layer.refresh(extent=False, highlight=False, data_displayed=layer is self._layers[MAP])

    def automatic(self) -> None:
        """Forget which contrast limits the user has set; the next pictures set them again."""
        self._touched.clear()
        self._limit(DOUBT, _DOUBT_LIMITS)

    def _draw(self, name: str, one: FieldView, picture: tuple[Seen | Predicted, NDArray[Any]] | None) -> None:
        layer = self._layers[name]
        if layer not in self._viewer.layers:  # the user has removed it
            return
        if picture is None:
            layer.data[...] = 0
            self._refresh(layer)
            return
        event, pixels = picture
        if layer.data.shape != pixels.shape:
            with self._setting():
                layer.data = np.array(pixels)
        else:
            np.copyto(layer.data, pixels)
        if isinstance(event, Predicted):
            badge((pixels.shape[0], pixels.shape[1])).paint(layer.data)
        if not self._place(layer, one, event):
            self._refresh(layer)

    def _place(self, layer: Any, one: FieldView, event: Seen | Predicted) -> bool:
        """Move a layer to where its field lies; whether it was moved, and so drawn anew."""
        size, (dx, dy) = event.pixel_size_um, one.shift_um
        rows, columns = event.shape
        # napari places the middle of the first pixel.
        corner = (event.y_um + dy - (rows - 1) / 2 * size, event.x_um + dx - (columns - 1) / 2 * size)
        scaled, moved = tuple(layer.scale) != (size, size), tuple(layer.translate) != corner
        # Setting them draws the layer. Their events would have the viewer work out the extent of all layers
        # anew, 10 ms for each layer, though it is the map's, which stays.
        with layer.events.scale.blocker(), layer.events.translate.blocker():
            if scaled:
                layer.scale = (size, size)
            if moved:
                layer.translate = corner
        return scaled or moved

    def _refresh(self, layer: Any) -> None:
        # The arrays of the layers are written in place: assigning ``data`` takes about twice as long.
        if layer in self._viewer.layers:
            layer.refresh(extent=False, thumbnail=False, highlight=False)

    def _limit(self, name: str, limits: tuple[float, float]) -> None:
        """Set contrast limits, unless the user has."""
        layer = self._layers[name]
        wanted = [float(limits[0]), max(float(limits[1]), float(limits[0]) + 1.0)]
        if name not in self._touched and list(layer.contrast_limits) != wanted:
            with self._setting():
                layer.contrast_limits = wanted

    @contextmanager
    def _setting(self) -> Iterator[None]:
        """What changes inside was not the user."""
        self._ours = True
        try:
            yield
        finally:
            self._ours = False

    def _add(self, name: str, data: NDArray[Any], **options: Any) -> Any:
        layer = self._viewer.add_image(data, name=name, units=_UNITS, **options)
        self._layers[name] = layer

        def touched() -> None:
            if not self._ours:
                self._touched.add(name)

        layer.events.contrast_limits.connect(touched)
        return layer

    def _add_live(self) -> None:
        empty = np.zeros((2, 2), np.uint8)
        counts = empty.astype(np.uint16)
        self._add(LIGHT, counts, contrast_limits=(0, 65535), colormap=_colormap("gray, dimmed", _DIMMED))
        for label, hue in reversed(list(self._hues.items())):
            colormap = _colormap(predicted(label), covering_ramp(hue, _STEPS))
            options = {"blending": "translucent", "contrast_limits": (0, 255), "metadata": dict(_PREDICTED)}
            layer = self._add(predicted(label), empty.copy(), colormap=colormap, **options)
            if model := self._models.get(label):
                layer.name = f"{predicted(label)}, {model}"
        haze = _colormap("doubt", _HAZE)
        self._add(DOUBT, empty.copy(), colormap=haze, contrast_limits=_DOUBT_LIMITS, metadata=_PREDICTED)

    def _add_map(self, places: Layout) -> None:
        """The map lies below all others, but takes its colours from them."""
        self._mosaic = Mosaic(places, self._shades())
        size = self._mosaic.pixel_size_um
        place = {"scale": (size, size), "units": _UNITS, "translate": self._mosaic.origin_um}
        layer = self._viewer.add_image(
            self._mosaic.picture, name=MAP, rgb=True, metadata=dict(_PREDICTED), **place
        )
        self._viewer.layers.move(self._viewer.layers.index(layer), self._viewer.layers.index(self.light))
        self._layers[MAP] = layer

    def _shades(self) -> list[Shade]:
        """How the layers of light and labels look now."""
        return [_shade(self._layers[name]) for name in (LIGHT, *map(predicted, self._hues))]

    def _add_measured(self, channel: str) -> None:
        """Measured fluorescence, switched off until the user wants it: it hides what is predicted there."""
        active = self._viewer.layers.selection.active
        layer = self._add(measured(channel), np.zeros((2, 2), np.uint16), contrast_limits=(0, 65535))
        layer.visible = False
        self._viewer.layers.selection.active = active
        self._channels.append(channel)


_PREDICTED = {"acq-isl": "predicted, not measured"}


def predicted(label: str) -> str:
    """Name of the layer of a predicted label."""
    return f"{label} (predicted)"


def measured(channel: str) -> str:
    """Name of the layer of a measured fluorescence channel."""
    return f"{channel} (measured)"


def _shade(layer: Any) -> Shade:
    low, high = (float(limit) for limit in layer.contrast_limits)
    table = layer.colormap.map(np.linspace(0, 1, 256) ** layer.gamma).astype(np.float32)
    table[:, 3] *= layer.opacity * layer.visible
    return Shade(low, high, table)


def _colormap(name: str, colors: tuple[tuple[float, ...], ...]) -> Any:
    from napari.utils.colormaps import Colormap

    return Colormap(colors, name=name)
