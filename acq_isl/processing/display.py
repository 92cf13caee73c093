"""Arrays become pictures for a page: reduced, stretched, tinted, encoded, and laid out on the stage. Pure."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.stack import Prediction, StackInfo

Uint8Image = NDArray[np.uint8]

# Okabe and Ito's colours, told apart with every kind of colour vision; for labels without one of their own.
PALETTE = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00")
_SPARSE = 0.15


@dataclass(frozen=True, slots=True)
class Box:
    """Where a field of view lies, in micrometres of stage, top left corner first."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Fields of view beside each other, each in its box, all of them in ``around``."""

    boxes: tuple[Box, ...]
    around: Box
    to_scale: bool
    """False if the fields lie so far apart on the stage that they are set in rows instead."""


@dataclass(frozen=True, slots=True)
class ScaleBar:
    """A round length of about a quarter of a picture, and which share of its width that is."""

    um: float
    share: float

    @property
    def text(self) -> str:
        return f"{self.um / 1000:g} mm" if self.um >= 1000 else f"{self.um:g} µm"


def spare_hue(number: int) -> str:
    """Colour for the label of this number that has none of its own."""
    return PALETTE[number % len(PALETTE)]


def reduced(image: NDArray[Any], longest_px: int) -> NDArray[np.float32]:
    """A real (y, x) image with its longest side at most ``longest_px``, by area averaging; never enlarged."""
    from PIL import Image

    plane = np.nan_to_num(np.asarray(image, np.float32))
    factor = longest_px / max(plane.shape)
    if factor >= 1:
        return plane
    rows, columns = (max(round(side * factor), 1) for side in plane.shape)
    return np.asarray(Image.fromarray(plane).resize((columns, rows), Image.Resampling.BOX))


def preview(prediction: Prediction, longest_px: int = 256) -> Prediction:
    """The same prediction with reduced images, for display only."""
    both = (prediction.mean, prediction.spread)
    mean, spread = (np.stack([reduced(plane, longest_px) for plane in planes]) for planes in both)
    return replace(prediction, mean=mean, spread=spread)


def display_range(image: NDArray[Any]) -> tuple[float, float]:
    """First and 99.8th percentile: a few hot pixels do not darken the rest."""
    low, high = np.percentile(image, (1.0, 99.8)) if image.size else (0.0, 0.0)
    return float(low), float(high)


def stretched(image: NDArray[Any], low: float, high: float) -> Uint8Image:
    """Linear from ``low`` to ``high`` onto 0 to 255; black if there is no range."""
    span = high - low
    if not math.isfinite(span) or span <= 0:
        return np.zeros(image.shape, np.uint8)
    scaled = (np.asarray(image, np.float32) - low) * (255 / span)
    return np.asarray(np.clip(scaled, 0, 255), np.uint8)


def tinted(gray: Uint8Image, color: str) -> Uint8Image:
    """A gray picture in a hue on black, (y, x, 3); to be added to others."""
    hue = np.array([int(color.lstrip("#")[i : i + 2], 16) for i in (0, 2, 4)], np.float32)
    return np.asarray(gray[..., None] * (hue / 255), np.uint8)


def covering(image: NDArray[Any], color: str, top: float) -> Uint8Image:
    """A label in its hue, to be laid over what is below, (y, x, 4): opaque from ``top`` on.

    It covers with the square of its value, so that what is faint hides nothing. Labels that are added up
    instead are cream where nuclei lie in cells.
    """
    hue = [int(color.lstrip("#")[i : i + 2], 16) for i in (0, 2, 4)]
    picture = np.empty((*image.shape, 4), np.uint8)
    picture[..., :3] = hue
    picture[..., 3] = np.rint(255 * np.clip(np.nan_to_num(image) / top, 0, 1) ** 2)
    return picture


def covering_ramp(color: str, steps: int = 32) -> tuple[tuple[float, float, float, float], ...]:
    """As `covering`, for programs that take a table: red, green, blue and opacity from 0 to 1."""
    red, green, blue = (int(color.lstrip("#")[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return tuple((red, green, blue, (n / steps) ** 2) for n in range(steps + 1))


def additive_error(predicted: NDArray[np.float32], truth: NDArray[np.float32]) -> Uint8Image:
    """Truth and prediction in one picture, (y, x, 3), as in Christiansen et al., Cell 2018.

    Of (y, x) images from 0 to 1: truth in blue (0, .5, 1) and prediction in orange (1, .5, 0), added. Grey
    where they agree, orange where only the prediction is bright, blue where only the stain is.
    """
    t, p = (np.clip(image, 0, 1)[..., None] for image in (truth, predicted))
    summed = t * np.array([0.0, 0.5, 1.0], np.float32) + p * np.array([1.0, 0.5, 0.0], np.float32)
    return np.asarray(np.rint(255 * np.clip(summed, 0, 1)), np.uint8)


def overlaid(first: Uint8Image, second: Uint8Image) -> Uint8Image:
    """First in magenta, second in green: white where both are bright, (y, x, 3)."""
    rows, columns = (min(a, b) for a, b in zip(first.shape, second.shape, strict=True))
    a, b = first[:rows, :columns], second[:rows, :columns]
    return np.stack([a, b, a], axis=-1)


def data_uri(picture: Uint8Image, quality: int = 80) -> str:
    """A gray (y, x) or colour (y, x, 3) picture as a JPEG inside a ``data:`` address; (y, x, 4) as a WebP."""
    from PIL import Image

    buffer, clear = io.BytesIO(), picture.shape[2:] == (4,)
    if clear:  # the hue is the same all over: what costs bytes is how clear it is
        Image.fromarray(picture).save(buffer, "WebP", quality=quality, alpha_quality=quality // 2, method=0)
    else:
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality, optimize=True)
    kind = "webp" if clear else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def scale_bar(width_um: float) -> ScaleBar:
    """1, 2 or 5 times a power of ten, at most 30 % of ``width_um``."""
    if not math.isfinite(width_um) or width_um <= 0:
        return ScaleBar(0.0, 0.0)
    decade = 10.0 ** math.floor(math.log10(0.3 * width_um))
    um = max(step * decade for step in (1, 2, 5) if step * decade <= 0.3 * width_um * (1 + 1e-9))
    return ScaleBar(um, um / width_um)


def layout(fields: Sequence[StackInfo]) -> Layout:
    """Fields at their stage coordinates, x to the right and y downwards as in the images.

    Fields that would fill less than 15 % of their common frame, such as wells of a plate, are set in rows in
    the order given instead.
    """
    boxes = [_box(info) for info in fields]
    if not boxes:
        return Layout((), Box(0, 0, 1, 1), True)
    around = _around(boxes)
    covered = sum(box.width * box.height for box in boxes) / (around.width * around.height)
    if covered >= _SPARSE and len({(info.x_um, info.y_um) for info in fields}) == len(fields):
        return Layout(tuple(boxes), around, True)
    columns = math.ceil(math.sqrt(len(boxes) * 1.5))
    wide, high = (1.06 * max(getattr(box, side) for box in boxes) for side in ("width", "height"))
    rows = [
        Box(number % columns * wide, number // columns * high, box.width, box.height)
        for number, box in enumerate(boxes)
    ]
    return Layout(tuple(rows), _around(rows), len(rows) == 1)


def _box(info: StackInfo) -> Box:
    pixel = info.pixel_size_um if math.isfinite(info.pixel_size_um) and info.pixel_size_um > 0 else 1.0
    height, width = (side * pixel for side in info.shape)
    return Box(info.x_um - width / 2, info.y_um - height / 2, width, height)


def _around(boxes: Sequence[Box]) -> Box:
    left, top = min(box.x for box in boxes), min(box.y for box in boxes)
    right, bottom = max(box.x + box.width for box in boxes), max(box.y + box.height for box in boxes)
    return Box(left, top, right - left, bottom - top)
