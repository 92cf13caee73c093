"""The picture of the cross-lab card: a row a set, light and stain beside what each way makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from acq_isl.evaluation.results import Report, ShownField
from acq_isl.files import whole_file
from acq_isl.processing.display import display_range, stretched

_SIDE_PX, _GAP_PX, _TITLE_PX = 190, 6, 34


def draw_card(sets: Sequence[tuple[str, Mapping[str, Report]]], path: Path) -> None:
    """Write a PNG. Each image is scaled by its own range: judge shapes, not brightness."""
    shown = [(name, reports) for name, reports in sets if reports]
    ways = list(dict.fromkeys(way for _, reports in shown for way in reports))
    titles = ["light", "real stain", *ways]
    step = _SIDE_PX + _GAP_PX
    sheet = Image.new("RGB", (step * len(titles), (step + _TITLE_PX) * max(len(shown), 1)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (name, reports) in enumerate(shown):
        top = number * (step + _TITLE_PX)
        first = next(iter(reports.values()))
        label = first.labels[0]
        pictures = _pictures(first.shown[0], reports, label)
        for column, title in enumerate(titles):
            left = column * step
            text = (
                f"{name}: {label}"
                if column == 1
                else f"{name}: light"
                if column == 0
                else f"{title}\n(predicted)"
            )
            draw.multiline_text((left + 2, top + 2), text, "black", font, spacing=1)
            if title in pictures:
                sheet.paste(Image.fromarray(pictures[title]), (left, top + _TITLE_PX))
            else:
                draw.text((left + 50, top + _TITLE_PX + _SIDE_PX // 2), "no prediction", "gray", font)
    with whole_file(path) as partial:
        sheet.save(partial, "PNG")


def _pictures(field: ShownField, reports: Mapping[str, Report], label: str) -> dict[str, NDArray[np.uint8]]:
    """Gray pictures of a field by title."""
    images = {"light": field.transmitted.astype(np.float32), "real stain": field.labels[label][0]}
    for way, report in reports.items():
        same = next((each for each in report.shown if each.name == field.name), None)
        if same is not None and label in same.labels:
            images[way] = same.labels[label][1]
    return {title: stretched(_middle(image), *display_range(image)) for title, image in images.items()}


def _middle(image: NDArray[np.float32]) -> NDArray[np.float32]:
    rows, columns = (slice((n - min(n, _SIDE_PX)) // 2, (n + min(n, _SIDE_PX)) // 2) for n in image.shape)
    return image[rows, columns]
