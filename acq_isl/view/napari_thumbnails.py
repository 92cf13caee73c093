"""Predicted labels and measured fluorescence of a field beside each other, as small pictures. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from acq_isl.processing.display import Uint8Image, reduced, stretched, tinted
from acq_isl.view.napari.marks import hatch
from acq_isl.view.napari.model import FieldView

_EDGE_PX = 88


@dataclass(frozen=True, slots=True, eq=False)
class Thumbnail:
    """A picture (y, x, 3) uint8 and what it shows."""

    caption: str
    pixels: Uint8Image


def beside(one: FieldView, hues: Mapping[str, str]) -> list[Thumbnail]:
    """Predicted labels, then measured channels; nothing while no fluorescence was measured.

    Predicted ones have a hatched border and say so below; measured ones have neither.
    """
    if one.predicted is None or not one.measured:
        return []
    predicted = [
        _predicted(plane, label, hue)
        for label, hue in hues.items()
        if (plane := one.predicted.plane(label)) is not None
    ]
    measured = []
    for channel, seen in sorted(one.measured.items()):
        gray = stretched(reduced(seen.pixels, _EDGE_PX), seen.message.low, seen.message.high)
        measured.append(Thumbnail(f"{channel} (measured)", _rgb(gray)))
    return [*predicted, *measured]


def _predicted(mean: Uint8Image, label: str, hue: str) -> Thumbnail:
    gray = reduced(mean, _EDGE_PX).astype(np.uint8)
    marks = hatch((gray.shape[0], gray.shape[1]))
    marks.paint(gray)
    return Thumbnail(f"{label} (predicted)", tinted(gray, hue))


def _rgb(gray: Uint8Image) -> Uint8Image:
    return np.repeat(gray[..., None], 3, axis=-1)
