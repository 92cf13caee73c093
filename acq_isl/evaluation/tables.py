"""An evaluation as tables: CSV and JSON for programs, rows of text for people."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from acq_isl.evaluation import worth
from acq_isl.evaluation.results import CEILING, FLOOR, MODEL, Report, Score
from acq_isl.evaluation.scores import IOUS, LEVELS

COLUMNS = (
    "unit", "label", "way", "fields", "pixels", "pearson", "ssim", "mae",
    *(f"f1_iou_{iou:g}" for iou in IOUS), "objects_found", "objects_true", "count_bias",
    "coverage", "coverage_foreground", "spread_error_rank_correlation",
)  # fmt: skip
_SUMMED = ("fields", "pixels", "objects_found", "objects_true", "count_bias")
_SHORT = {
    "pearson": "Pearson", "ssim": "SSIM", "mae": "MAE", "f1_iou_0.5": "F1 @.5", "f1_iou_0.3": "F1 @.3",
    "objects_found": "objects", "objects_true": "in the stain", "count_bias": "too many",
    "coverage": "within 1 SD", "coverage_foreground": "where bright",
    "spread_error_rank_correlation": "SD follows error",
}  # fmt: skip
LABEL_TITLES = ("label", "way", "n", *_SHORT.values())

Row = dict[str, Any]
"""A line of the table by column; None where a number does not apply or is none."""


def _row(score: Score) -> Row:
    values: Row = {"unit": score.unit, "label": score.label, "way": score.way, "fields": score.fields}
    pixels, std = score.pixels, score.std
    values |= {"pixels": pixels.n, "pearson": pixels.pearson, "ssim": pixels.ssim, "mae": pixels.mae}
    for iou, one in score.objects.items():
        values |= {f"f1_iou_{iou:g}": one.f1, "objects_found": one.found, "objects_true": one.true}
        values["count_bias"] = one.found - one.true
    if std is not None:
        values |= {"coverage": std.coverage, "coverage_foreground": std.coverage_foreground}
        values["spread_error_rank_correlation"] = std.rank_correlation
    return {name: _finite(values.get(name)) for name in COLUMNS}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def list_rows(report: Report, label: str | None = None, way: str | None = None) -> list[Row]:
    """Every unit, label and way, or only those of a label and way."""
    return [
        _row(score) for score in report.scores if label in (None, score.label) and way in (None, score.way)
    ]


def choose_ways(report: Report, label: str) -> tuple[str, ...]:
    """Model, floor, the best of the other stains, and ceiling: what a label is read beside."""
    found = dict.fromkeys(score.way for score in report.scores if score.label == label)
    others = [way for way in found if way not in (MODEL, FLOOR, CEILING)]
    best = sorted(others, key=lambda way: summarise(report, label, way)["pearson"] or -1.0)[-1:]
    return tuple(way for way in (MODEL, FLOOR, *best, CEILING) if way in found)


def summarise(report: Report, label: str, way: str) -> Row:
    """Mean over the held-out units; objects are added up."""
    own = list_rows(report, label, way)
    means: Row = {"label": label, "way": way, "units": len(own)}
    for name in COLUMNS[3:]:
        values = [row[name] for row in own if row[name] is not None]
        means[name] = None if not values else sum(values) if name in _SUMMED else fmean(values)
    return means


def as_csv(report: Report) -> str:
    """Every row; commas, points, UTF-8."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(list_rows(report))
    return text.getvalue()


def as_json(report: Report) -> str:
    """Everything but the pictures; ``evaluations`` is in the manifest's own form."""
    unit = report.settings.split_unit
    content = {
        "model": f"{report.model.manifest.name} {report.model.manifest.version}",
        "model_sha256": report.model.sha256,
        "engine": report.engine,
        "split_unit": unit,
        "units": len(report.units),
        "fields": report.fields,
        "truth": dict(report.truths),
        "registration_um": report.settings.registration_um,
        "leaks": report.leaks,
        "warnings": report.warnings,
        "refused": dict(report.refused),
        "says": [{"about": what, "sentence": text} for what, text in worth.say(report)],
        "labels": [_label(report, label) for label in report.labels],
        "rows": list_rows(report),
        "conditions": [
            {
                "condition": one.name,
                "pearson": {label: _finite(value) for label, value in one.pearson.items()},
                "pearson_lost": _finite(one.loss),
                "auroc_gate": _finite(one.gate),
                "auroc_spread": _finite(one.std),
                "tiles_flagged": _finite(one.flagged),
                "tiles": one.tiles,
            }
            for one in report.perturbations
        ],
        "evaluations": [
            {
                "label": label, "dataset": "", "split_unit": unit, "n": len(report.units),
                "metrics": {
                    name: value for name, value in summarise(report, label, MODEL).items()
                    if name in COLUMNS[5:] and value is not None
                },
            }
            for label in report.labels
        ],
    }  # fmt: skip
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _label(report: Report, label: str) -> Row:
    """A label with the interval of its correlation, its counts, and where its stated SD holds."""
    found = worth.agree(report, label)
    pixels, inside = worth.cover_by_brightness(report, label).tolist()
    return {
        "label": label,
        "pearson": _finite(found.pearson),
        "interval": [_finite(found.low), _finite(found.high)],
        "floor": _finite(found.floor),
        "ceiling": _finite(found.ceiling),
        "resampled": found.of,
        "better_than_floor": _finite(found.better),
        "slope_of_stain_on_prediction": _finite(found.amplitude.slope),
        "bright_end_of_stain": _finite(found.amplitude.top),
        "counts": [
            dict(zip(("field", "counted", "sd", "true"), map(_finite, row), strict=True))
            for row in worth.count(report, label).fields
        ],
        "coverage_by_brightness": [
            {"from": low, "pixels": n, "coverage": holds / n if n else None}
            for low, n, holds in zip(LEVELS, pixels, inside, strict=True)
        ],
    }


LEVEL_TITLES = ("label", *(f"from {low:g}" for low in LEVELS))


def level_rows(report: Report) -> Iterator[tuple[str, ...]]:
    """Share of pixels within one stated SD, by brightness of the stain, under `LEVEL_TITLES`."""
    for label in report.labels:
        pixels, inside = worth.cover_by_brightness(report, label).tolist()
        yield (label, *(f"{k / n:.2f}" if n else "-" for n, k in zip(pixels, inside, strict=True)))


def describe_units(report: Report) -> str:
    """What the numbers are of; nothing is called held out that nobody knows to be."""
    unit, n = report.settings.split_unit, len(report.units)
    known = report.model.manifest.training is not None and not report.leaks
    text = f"{n}{' held-out' if known else ''} {unit}{'s' * (n != 1)}"
    if unit == "well":
        text += f" with {report.fields} field{'s' * (report.fields != 1)}"
    return f"{text} (split unit: {unit}, n = {n})"


def label_rows(report: Report) -> Iterator[tuple[str, ...]]:
    """What each label is worth, beside floor and ceiling, under `LABEL_TITLES`."""
    for label in report.labels:
        for way in choose_ways(report, label):
            means = summarise(report, label, way)
            yield (label, way, str(means["units"]), *(as_text(means[name]) for name in _SHORT))


def perturbation_titles(report: Report) -> tuple[str, ...]:
    told = "told by the gate", "tiles refused", "told by the SD"
    return ("what was done to the stack", *report.labels, "Pearson lost", *told)


def perturbation_rows(report: Report) -> Iterator[tuple[str, ...]]:
    """Pearson by label, what it lost, and what would have noticed."""
    for one in report.perturbations:
        values = (*map(one.pearson.get, report.labels), one.loss, one.gate, one.flagged, one.std)
        yield (one.name, *map(as_text, values))


def as_text(value: Any) -> str:
    """A number for people; a dash for none."""
    value = _finite(value)
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
