"""What tells a prediction from a measurement wherever its picture goes: a hatched border and a badge. Pure.

The marks are painted into the pixels of previews, which are display copies. A screenshot, an exported
figure or a saved layer keeps them; the predictions themselves, in OME-Zarr, are not touched.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

BADGE = "PREDICTED, not measured"
BADGE_COLOR = "#7a4b00"
BADGE_INK = "#ffffff"
_STRIPE = 130  # not full: the stripes of all labels add up on the screen
_TEXT_FROM_PX = 200  # narrower pictures get the hatching only


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """Pixels that are painted over, (y, x) bool, and with what, (y, x) uint8."""

    mask: NDArray[np.bool_]
    values: NDArray[np.uint8]

    def paint(self, picture: NDArray[Any]) -> None:
        """Paint onto a (..., y, x) uint8 picture."""
        np.copyto(picture, self.values, where=self.mask)


@lru_cache(maxsize=32)
def hatch(shape: tuple[int, int]) -> Marks:
    """A border of diagonal stripes, a fiftieth of the shorter side wide, for ``shape`` rows and columns."""
    width = max(min(shape) // 50, 1)
    mask = np.ones(shape, bool)
    mask[width:-width, width:-width] = False
    rows, columns = np.indices(shape)
    stripes = (rows + columns) // max(width // 2, 2) % 2 == 0
    return _frozen(mask, np.where(stripes & mask, _STRIPE, 0).astype(np.uint8))


@lru_cache(maxsize=32)
def badge(shape: tuple[int, int]) -> Marks:
    """The hatched border with the badge in its upper left corner, where there is room for words."""
    plain = hatch(shape)
    if shape[1] < _TEXT_FROM_PX or shape[0] < _TEXT_FROM_PX:
        return plain
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=max(shape[1] // 22, 12))
    left, top, right, bottom = font.getbbox(BADGE)
    high, wide = int(bottom - top) + 8, min(int(right - left) + 12, shape[1] - shape[1] // 20)
    words = Image.new("L", (wide, high), 0)
    ImageDraw.Draw(words).text((6 - left, 4 - top), BADGE, fill=255, font=font)
    mask, values = plain.mask.copy(), plain.values.copy()
    edge = min(shape) // 40  # inside of the hatching, and of the frame of a chosen field
    inside = slice(edge, edge + high), slice(edge, edge + wide)
    mask[inside], values[inside] = True, np.asarray(words)
    return _frozen(mask, values)


def _frozen(mask: NDArray[np.bool_], values: NDArray[np.uint8]) -> Marks:
    """Pictures of one shape share their marks."""
    mask.flags.writeable = values.flags.writeable = False
    return Marks(mask, values)
