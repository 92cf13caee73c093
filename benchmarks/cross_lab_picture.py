"""The picture of the cross-lab card: a row a set, light and stain beside what each way makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from acq_isl.evaluation.results import Report, ShownField
from acq_isl.files import whole_file
from acq_isl.processing.display import display_range, stretched

_SIDE_PX, _GAP_PX, _TITLE_PX = 190, 6, 34


@dataclass(frozen=True)
class Shown:
    """A set: evaluations by way, and what a ridge makes of the first image, by label."""

    name: str
    reports: Mapping[str, Report]
    ridge: Mapping[str, NDArray[np.float32]]


def draw_card(sets: Sequence[Shown], path: Path) -> None:
    """Write a PNG, of each set the place with most stain. Each image is scaled by its own range: judge
    shapes, not brightness."""
    shown = [each for each in sets if each.reports]
    ways = [*dict.fromkeys(way for each in shown for way in each.reports), "ridge"]
    titles = ["light", "real stain", *ways]
    step = _SIDE_PX + _GAP_PX
    sheet = Image.new("RGB", (step * len(titles), (step + _TITLE_PX) * max(len(shown), 1)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, each in enumerate(shown):
        top = number * (step + _TITLE_PX)
        first = next(iter(each.reports.values()))
        label = first.labels[0]
        pictures = _pictures(first.shown[0], each, label)
        headings = {"light": f"{each.name}: light", "real stain": f"{label}, real stain"}
        for column, title in enumerate(titles):
            left = column * step
            text = headings.get(title, f"{title}\n(predicted)")
            draw.multiline_text((left + 2, top + 2), text, "black", font, spacing=1)
            if title in pictures:
                sheet.paste(Image.fromarray(pictures[title]), (left, top + _TITLE_PX))
            else:
                draw.text((left + 50, top + _TITLE_PX + _SIDE_PX // 2), "no prediction", "gray", font)
    with whole_file(path) as partial:
        sheet.save(partial, "PNG")


def _pictures(field: ShownField, each: Shown, label: str) -> dict[str, NDArray[np.uint8]]:
    """Gray pictures of a field by title."""
    stain = field.labels[label][0]
    images = {"light": field.transmitted.astype(np.float32), "real stain": stain}
    for way, report in each.reports.items():
        same = next((other for other in report.shown if other.name == field.name), None)
        if same is not None and label in same.labels:
            images[way] = same.labels[label][1]
    if label in each.ridge:
        images["ridge"] = each.ridge[label]
    at = _brightest(stain)
    return {title: stretched(image[at], *display_range(image)) for title, image in images.items()}


def _brightest(stain: NDArray[np.float32]) -> tuple[slice, slice]:
    """The square with most stain."""
    sides = [min(side, _SIDE_PX) for side in stain.shape]
    means = ndimage.uniform_filter(stain, sides, mode="constant")
    first = [n // 2 for n in sides]
    inside = means[first[0] : stain.shape[0] - first[0] + 1, first[1] : stain.shape[1] - first[1] + 1]
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    row, column = (
        min(int(at), whole - n) for at, whole, n in zip((row, column), stain.shape, sides, strict=True)
    )
    return slice(row, row + sides[0]), slice(column, column + sides[1])
