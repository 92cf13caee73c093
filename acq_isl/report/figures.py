"""The pictures of a report: the overview on the stage, and chosen fields beside their fluorescence. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from acq_isl.processing import display
from acq_isl.record import Comparison, FieldRecord, RunRecord
from acq_isl.stack import Prediction, StackKey

_MOSAIC_PX = 1500  # along its side; fields share it
_PICTURES_PX = 6_000_000  # in all pictures of chosen fields together
_TOTAL_PX = 512
_HUE = r"#[0-9a-fA-F]{6}"
_LEAST_TOP = 0.1
_MOST_FIELDS = 48  # shown in large


def hues(record: RunRecord) -> dict[str, str]:
    """Hue of every label of this run; as the model says, else from the palette."""
    predictions = [field.outcome for field in record.fields if isinstance(field.outcome, Prediction)]
    names = dict.fromkeys(label for prediction in predictions for label in prediction.labels)
    stated = record.model_colors
    return {
        name: stated[name] if re.fullmatch(_HUE, stated.get(name, "")) else display.spare_hue(number)
        for number, name in enumerate(names)
    }


def tops(record: RunRecord) -> dict[str, float]:
    """Up to which value each label is shown, on all fields alike; what is hardly there is not blown up."""
    found = dict.fromkeys(hues(record), _LEAST_TOP)
    for field in record.fields:
        if isinstance(field.outcome, Prediction):
            for label, mean in zip(field.outcome.labels, field.outcome.mean, strict=True):
                found[label] = max(found[label], float(np.nanpercentile(mean[::4, ::4], 99.5)))
    return found


def draw_mosaic(
    fields: Sequence[FieldRecord], colors: dict[str, str], tops: dict[str, float]
) -> dict[str, Any] | None:
    """All fields at their places; of a time series the last picture of each place. None without any."""
    last = list({field.info.key.position: field for field in fields}.values())
    if not last:
        return None
    placed = display.layout([field.info for field in last])
    edge = int(np.clip(_MOSAIC_PX / math.sqrt(len(last)), 48, 360))
    tiles = [
        {
            "box": box,
            "field": field,
            "uri": _draw_gray(field, edge, 75),
            "layers": _layers(field, colors, tops, edge),
        }
        for field, box in zip(last, placed.boxes, strict=True)
    ]
    return {
        "tiles": sorted(tiles, key=lambda tile: tile["field"].chosen),  # outlines of the chosen lie on top
        "around": placed.around,
        "unit": min(min(box.width, box.height) for box in placed.boxes),
        "to_scale": placed.to_scale,
        "bar": display.scale_bar(placed.around.width),
        "older": len(fields) - len(last),
    }


def draw_chosen(record: RunRecord, colors: dict[str, str], tops: dict[str, float]) -> dict[str, Any]:
    """Fields in large: chosen ones by rank, then others that were imaged in fluorescence."""
    compared: dict[StackKey, list[Comparison]] = {}
    for comparison in record.comparisons:
        compared.setdefault(comparison.info.key, []).append(comparison)
    large = [field for field in record.fields if field.chosen or field.info.key in compared]
    fields = sorted(large, key=rank_order)
    few = fields[:_MOST_FIELDS]
    count = sum(4 * max(len(compared.get(field.info.key, [])), 1) for field in few)
    edge = int(np.clip(math.sqrt(_PICTURES_PX / max(count, 1)), 160, 640))
    return {
        "more": len(fields) - len(few),
        "fields": [
            {
                "field": field,
                "bar": display.scale_bar(field.info.shape[1] * field.info.pixel_size_um),
                "rows": [_draw_row(pair, colors, tops, edge) for pair in compared.get(field.info.key, [])],
                "layers": _layers(field, colors, tops, edge),
                "total": _draw_total(field, compared.get(field.info.key, []), colors, tops),
                "transmitted": _draw_gray(field, edge),
            }
            for field in few
        ],
    }


def rank_order(field: FieldRecord) -> tuple[bool, float]:
    """Chosen fields first, by their rank."""
    return not field.chosen, math.inf if field.rank is None else field.rank


def _draw_total(
    field: FieldRecord, compared: Sequence[Comparison], colors: dict[str, str], tops: dict[str, float]
) -> tuple[tuple[str, str, list[tuple[int, str]], str], ...]:
    """All labels predicted, and all stains measured, in the same hues and order: two large pictures."""
    if len(compared) < 2:
        return ()
    order, black = list(colors), np.zeros(field.thumbnail.shape, np.uint8)
    stains = []
    for comparison in compared:
        if comparison.label in colors:
            plain = display.reduced(comparison.measured, _TOTAL_PX)
            gray = display.stretched(plain, *display.display_range(plain)) / 255.0
            picture = display.covering(gray, colors[comparison.label], 1.0)
            stains.append((order.index(comparison.label), display.data_uri(picture, 72)))
    below = display.data_uri(display.reduced(black, _TOTAL_PX).astype(np.uint8))
    shown = {number for number, _ in stains}
    predicted = [layer for layer in _layers(field, colors, tops, _TOTAL_PX) if layer[0] in shown]
    names = ", ".join(order[number] for number in sorted(shown))
    return (
        (f"predicted: {names}", below, predicted, "PREDICTED"),
        (f"measured stains of the same: {names}", below, sorted(stains, reverse=True), "MEASURED"),
    )


def _draw_row(
    comparison: Comparison, colors: dict[str, str], tops: dict[str, float], edge: int
) -> dict[str, Any]:
    """A label of a field: predicted, measured, and both in one."""
    color = colors.get(comparison.label, display.PALETTE[0])
    top = tops.get(comparison.label, 1.0)
    predicted = display.stretched(display.reduced(comparison.predicted, edge), 0.0, top)
    plain = display.reduced(comparison.measured, edge)
    measured = display.stretched(plain, *display.display_range(plain))
    both = display.data_uri(display.overlaid(predicted, measured))
    in_hue = [display.data_uri(display.tinted(gray, color)) for gray in (predicted, measured)]
    pictures = (
        (f"{comparison.label} (predicted)", in_hue[0], "PREDICTED"),
        (f"{comparison.channel}, measured", in_hue[1], "MEASURED"),
        ("predicted magenta, measured green, both white", both, "PREDICTED + MEASURED"),
    )
    return {"comparison": comparison, "pictures": pictures}


def _layers(
    field: FieldRecord, colors: dict[str, str], tops: dict[str, float], edge: int
) -> list[tuple[int, str]]:
    """Number and picture of every label, to be laid over transmitted light; the first label lies on top."""
    if not isinstance(field.outcome, Prediction):
        return []
    order, named = list(colors), zip(field.outcome.labels, field.outcome.mean, strict=True)
    pictures = [
        (order.index(label), display.covering(display.reduced(image, edge), colors[label], tops[label]))
        for label, image in named
    ]
    return [(number, display.data_uri(picture, 72)) for number, picture in reversed(pictures)]


def _draw_gray(field: FieldRecord, edge: int, quality: int = 80) -> str:
    return display.data_uri(display.reduced(field.thumbnail, edge).astype(np.uint8), quality)
