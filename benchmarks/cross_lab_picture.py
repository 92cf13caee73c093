"""The picture of the cross-lab card: a row a set, light and stain beside what each way makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from acq_isl.evaluation.results import Report
from acq_isl.files import whole_file
from acq_isl.processing.display import display_range, stretched

_SIDE_PX, _GAP_PX, _TITLE_PX = 190, 6, 34


@dataclass(frozen=True)
class Strip:
    """A row of the card: of a label of a set, gray pictures by title."""

    name: str
    label: str
    pictures: Mapping[str, NDArray[np.uint8]]

    def save(self, path: Path) -> None:
        with whole_file(path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **self.pictures)

    @classmethod
    def load(cls, path: Path, name: str, label: str) -> Strip:
        with np.load(path, allow_pickle=False) as stored:
            return cls(name, label, dict(stored))


def draw_card(strips: Sequence[Strip], path: Path) -> None:
    """Write a PNG, of each set the place with most stain. Each image is scaled by its own range: judge
    shapes, not brightness."""
    ways = dict.fromkeys(title for strip in strips for title in strip.pictures)
    last = [title for title in ("from scratch", "ridge") if title in ways]
    titles = [*(title for title in ways if title not in last), *last]
    step = _SIDE_PX + _GAP_PX
    sheet = Image.new("RGB", (step * max(len(titles), 1), (step + _TITLE_PX) * max(len(strips), 1)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, strip in enumerate(strips):
        top = number * (step + _TITLE_PX)
        headings = {"light": f"{strip.name}: light", "real stain": f"{strip.label}, real stain"}
        for column, title in enumerate(titles):
            left = column * step
            text = headings.get(title, f"{title}\n(predicted)")
            draw.multiline_text((left + 2, top + 2), text, "black", font, spacing=1)
            if title in strip.pictures:
                sheet.paste(Image.fromarray(strip.pictures[title]), (left, top + _TITLE_PX))
            else:
                draw.text((left + 50, top + _TITLE_PX + _SIDE_PX // 2), "no prediction", "gray", font)
    with whole_file(path) as partial:
        sheet.convert("L").save(partial, "PNG")


def make_strip(name: str, reports: Mapping[str, Report], ridge: Mapping[str, NDArray[np.float32]]) -> Strip:
    """The first label of the first image, as light, stain, each way and the ridge show it."""
    first = next(iter(reports.values()))
    field, label = first.shown[0], first.labels[0]
    stain = field.labels[label][0]
    images = {"light": field.transmitted.astype(np.float32), "real stain": stain}
    for way, report in reports.items():
        same = next((other for other in report.shown if other.name == field.name), None)
        if same is not None and label in same.labels:
            images[way] = same.labels[label][1]
    images |= {"ridge": ridge[label]} if label in ridge else {}
    at = _brightest(stain)
    shown = {title: stretched(image[at], *display_range(image)) for title, image in images.items()}
    return Strip(name, label, shown)


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
