"""Pictures of predictions beside the truth, as in the paper: false positives orange, false negatives blue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from acq_isl.files import whole_file
from acq_isl.manifest import Label
from acq_isl.processing.display import Uint8Image, additive_error, display_range, stretched, tinted
from acq_isl.training.data.dataset import Field
from acq_isl.training.network import LiveNetwork
from acq_isl.training.score import predict

_SIDE_PX = 256
_GAP_PX = 6
_TITLE_PX = 22
_LEGEND = "errors: orange predicted only, blue in truth only, grey both"


def draw_panel(network: LiveNetwork, fields: Sequence[Field], labels: Sequence[Label], path: Path) -> None:
    """Write a PNG: one row a field; the middle plane, then truth, prediction and errors of each label. The
    network is in evaluation mode, on the processor."""
    titles = ["middle plane"]
    for label in labels:
        titles += [f"{label.name}: truth", f"{label.name} (predicted)", "errors"]
    step = _SIDE_PX + _GAP_PX
    size = step * len(titles) - _GAP_PX, (_SIDE_PX + _TITLE_PX) * len(fields) + _TITLE_PX
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, title in enumerate(titles):
        draw.text((column * step + 3, 3), title, "black", font)
    for number, field in enumerate(fields):
        top = _TITLE_PX + number * (_SIDE_PX + _TITLE_PX)
        for column, picture in enumerate(_make_row(network, field, labels)):
            if picture is None:
                draw.text((column * step + 3, top + _SIDE_PX // 2), "no truth", "gray", font)
            else:
                sheet.paste(Image.fromarray(picture), (column * step, top))
        draw.text((3, top + _SIDE_PX + 2), field.name, "black", font)
    draw.text((step + 3, sheet.height - 18), _LEGEND, "black", font)
    with whole_file(path) as partial:
        sheet.save(partial, "PNG")


def _make_row(network: LiveNetwork, field: Field, labels: Sequence[Label]) -> list[Uint8Image | None]:
    """Pictures of the middle of a field; None where there is no truth."""
    step = network.config.size_step_px
    sides = [min(side, max(_SIDE_PX // step, 1) * step) for side in field.y.shape[1:]]
    start = [(whole - side) // 2 for whole, side in zip(field.y.shape[1:], sides, strict=True)]
    cut = (slice(None), *(slice(first, first + side) for first, side in zip(start, sides, strict=True)))
    x = np.asarray(field.x[cut]).astype(np.float32)
    mean, _ = predict(network, x)
    middle = x[len(x) // 2]
    gray = stretched(middle, *display_range(middle))
    row: list[Uint8Image | None] = [np.repeat(gray[..., None], 3, axis=2)]
    for at, label in enumerate(labels):
        predicted = tinted(stretched(mean[at], 0, 1), label.color)
        if not field.present[at]:
            row += [None, predicted, None]
            continue
        truth = field.y[cut][at].astype(np.float32) / 255
        row += [tinted(stretched(truth, 0, 1), label.color), predicted, additive_error(mean[at], truth)]
    return row
