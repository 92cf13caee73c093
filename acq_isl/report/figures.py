"""The pictures of a report: the overview on the stage, and chosen fields beside their fluorescence. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from acq_isl.processing import display as pictures
from acq_isl.record import Comparison, FieldRecord, RunRecord
from acq_isl.stack import Outcome, Prediction, Refusal, StackInfo, StackKey

_MOSAIC_PX = 1500  # along its side; fields share it
_PICTURES_PX = 6_000_000  # in all pictures of chosen fields together
_HUE = r"#[0-9a-fA-F]{6}"
_MOST_FIELDS = 48  # shown in large


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with its caption; what was predicted, wholly or in part, is framed as such."""

    caption: str
    uri: str
    badge: Literal["PREDICTED", "MEASURED", "PREDICTED + MEASURED"]

    @property
    def predicted(self) -> bool:
        return self.badge != "MEASURED"


@dataclass(frozen=True, slots=True)
class Row:
    """Pictures of one label of one field, beside each other, with what the score means."""

    label: str
    by: str
    channel: str
    pictures: tuple[Picture, ...]
    score: str
    meaning: str
    objects: str


def hues(record: RunRecord) -> dict[str, str]:
    """Hue of every label of this run; as the model says, else from the palette."""
    predictions = [field.outcome for field in record.fields if isinstance(field.outcome, Prediction)]
    names = dict.fromkeys(label for prediction in predictions for label in prediction.labels)
    found = {}
    for number, name in enumerate(names):
        stated = record.model_colors.get(name, "")
        spare = pictures.PALETTE[number % len(pictures.PALETTE)]
        found[name] = stated if re.fullmatch(_HUE, stated) else spare
    return found


def _layers(outcome: Outcome, colors: dict[str, str], longest_px: int) -> list[tuple[int, str]]:
    """Number and picture of every label, on black, to be added to transmitted light."""
    if not isinstance(outcome, Prediction):
        return []
    order = list(colors)
    layers = []
    for label in outcome.labels:
        gray = pictures.stretched(pictures.reduced(outcome.label(label), longest_px), 0.0, 1.0)
        layers.append((order.index(label), pictures.data_uri(pictures.tinted(gray, colors[label]), 72)))
    return layers


def mosaic(fields: Sequence[FieldRecord], colors: dict[str, str]) -> dict[str, Any] | None:
    last = {
        field.info.key.position: field for field in fields
    }  # of a time series the last picture of each place
    shown = list(last.values())
    if not shown:
        return None
    placed = pictures.layout([field.info for field in shown])
    tile_px = int(np.clip(_MOSAIC_PX / math.sqrt(len(shown)), 48, 360))
    tiles = [
        {
            "box": box,
            "field": field,
            "uri": pictures.data_uri(_gray(field, tile_px), 75),
            "layers": _layers(field.outcome, colors, tile_px)
            if isinstance(field.outcome, Prediction)
            else [],
            "state": state(field),
        }
        for field, box in zip(shown, placed.boxes, strict=True)
    ]
    return {
        "tiles": sorted(tiles, key=lambda tile: tile["field"].chosen),  # outlines of the chosen lie on top
        "around": placed.around,
        "unit": min(min(box.width, box.height) for box in placed.boxes),
        "to_scale": placed.to_scale,
        "bar": pictures.scale_bar(placed.around.width),
        "older": len(fields) - len(shown),
    }


def state(field: FieldRecord) -> str:
    if isinstance(field.outcome, Prediction):
        return "predicted in part" if field.without else "predicted"
    return "refused" if isinstance(field.outcome, Refusal) else "not predicted"


def _gray(field: FieldRecord, longest_px: int) -> pictures.Uint8Image:
    return pictures.reduced(field.thumbnail, longest_px).astype(np.uint8)


def chosen(record: RunRecord, colors: dict[str, str]) -> dict[str, Any]:
    """Fields in large: chosen ones by rank, then others that were imaged in fluorescence."""
    compared: dict[StackKey, list[Comparison]] = {}
    for comparison in record.comparisons:
        compared.setdefault(comparison.info.key, []).append(comparison)
    fields = [
        field for field in sorted(record.fields, key=by_rank) if field.chosen or field.info.key in compared
    ]
    few = fields[:_MOST_FIELDS]
    count = sum(4 * max(len(compared.get(field.info.key, [])), 1) for field in few)
    edge = int(np.clip(math.sqrt(_PICTURES_PX / max(count, 1)), 160, 640))
    return {
        "more": len(fields) - len(few),
        "fields": [
            {
                "field": field,
                "place": place(field.info),
                "bar": pictures.scale_bar(field.info.shape[1] * field.info.pixel_size_um),
                "rows": _rows(compared.get(field.info.key, []), record, colors, edge),
                "layers": _layers(field.outcome, colors, edge)
                if isinstance(field.outcome, Prediction)
                else [],
                "transmitted": pictures.data_uri(_gray(field, edge)),
            }
            for field in few
        ],
    }


def by(record: RunRecord, label: str) -> str:
    """The model of a label, if there are several and the label does not say."""
    model = record.label_models.get(label, "")
    return "" if label.startswith(f"{model}/") else model


def _rows(
    comparisons: Sequence[Comparison], record: RunRecord, colors: dict[str, str], edge: int
) -> list[Row]:
    rows = []
    for comparison in comparisons:
        color = colors.get(comparison.label, pictures.PALETTE[0])
        predicted = pictures.stretched(pictures.reduced(comparison.predicted, edge), 0.0, 1.0)
        plain = pictures.reduced(comparison.measured, edge)
        measured = pictures.stretched(plain, *pictures.display_range(plain))
        in_hue = [pictures.data_uri(pictures.tinted(gray, color)) for gray in (predicted, measured)]
        both = pictures.data_uri(pictures.overlaid(predicted, measured))
        found = (
            Picture(f"{comparison.label} (predicted)", in_hue[0], "PREDICTED"),
            Picture(f"{comparison.channel}, measured", in_hue[1], "MEASURED"),
            Picture("predicted magenta, measured green, both white", both, "PREDICTED + MEASURED"),
        )
        score = f"r = {comparison.pearson:.2f}" if math.isfinite(comparison.pearson) else "no r"
        words = meaning(comparison.pearson), objects(comparison)
        model = by(record, comparison.label)
        rows.append(Row(comparison.label, model, comparison.channel, found, score, *words))
    return rows


def objects(comparison: Comparison) -> str:
    """How many separate objects agree, in words; empty without any."""
    if not math.isfinite(comparison.f1):
        return ""
    counts = f"{comparison.found} predicted, {comparison.true} in the stain"
    return f"Separate objects: F1 = {comparison.f1:.2f} ({counts})."


def place(info: StackInfo) -> str:
    time = f", time point {info.key.time}" if info.key.time else ""
    return f"{info.key.position}{time}, x {info.x_um:.0f} µm, y {info.y_um:.0f} µm"


def by_rank(field: FieldRecord) -> tuple[bool, float]:
    return not field.chosen, math.inf if field.rank is None else field.rank


def meaning(pearson: float) -> str:
    """What a Pearson correlation of prediction and stain says, in words."""
    if not math.isfinite(pearson):
        return "No score: one of the two pictures is the same everywhere."
    levels = ((0.8, "Close"), (0.6, "Good"), (0.4, "Partial"), (0.2, "Weak"))
    word = next((word for least, word in levels if pearson >= least), "No")
    return f"{word} agreement of the two brightness patterns (1: the same, 0: unrelated)."
