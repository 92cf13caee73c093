"""An evaluation as tables: CSV and JSON for programs, Markdown for people."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from acq_isl.evaluation.results import CEILING, FLOOR, MODEL, Report, Score
from acq_isl.evaluation.scores import IOUS

COLUMNS = (
    "unit", "label", "way", "fields", "pixels", "pearson", "ssim", "mae",
    *(f"f1_iou_{iou:g}" for iou in IOUS), "objects_found", "objects_true", "count_bias",
    "coverage", "coverage_foreground", "spread_error_rank_correlation",
)  # fmt: skip
_SHORT = {
    "pearson": "Pearson",
    "ssim": "SSIM",
    "mae": "MAE",
    "f1_iou_0.5": "F1 @.5",
    "f1_iou_0.3": "F1 @.3",
    "objects_found": "found",
    "objects_true": "true",
    "count_bias": "bias",
    "coverage": "cover",
    "coverage_foreground": "cover, bright",
    "spread_error_rank_correlation": "rank corr.",
}
_NONE = "-"


def row(score: Score) -> dict[str, Any]:
    """One line of the table; None where a number does not apply or is none."""
    first = next(iter(score.objects.values()), None)
    spread = score.spread
    values = {
        "unit": score.unit,
        "label": score.label,
        "way": score.way,
        "fields": score.fields,
        "pixels": score.pixels.n,
        "pearson": score.pixels.pearson,
        "ssim": score.pixels.ssim,
        "mae": score.pixels.mae,
        **{f"f1_iou_{iou:g}": one.f1 for iou, one in score.objects.items()},
        **({} if first is None else {
            "objects_found": first.found, "objects_true": first.true, "count_bias": first.found - first.true,
        }),
        **({} if spread is None else {
            "coverage": spread.coverage,
            "coverage_foreground": spread.coverage_foreground,
            "spread_error_rank_correlation": spread.rank_correlation,
        }),
    }  # fmt: skip
    return {name: _number(values.get(name)) for name in COLUMNS}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rows(report: Report) -> list[dict[str, Any]]:
    """Every unit, label and way."""
    return [row(score) for score in report.scores]


def ways(report: Report, label: str) -> tuple[str, ...]:
    """Model, floor, the best of the other stains, and ceiling: what a label is read beside."""
    found = dict.fromkeys(score.way for score in report.scores if score.label == label)
    others = [way for way in found if way not in (MODEL, FLOOR, CEILING)]
    best = sorted(others, key=lambda way: summary(report, label, way)["pearson"] or -1.0)[-1:]
    return tuple(way for way in (MODEL, FLOOR, *best, CEILING) if way in found)


def summary(report: Report, label: str, way: str) -> dict[str, Any]:
    """Mean over the held-out units; objects are added up."""
    own = [row(score) for score in report.scores if (score.label, score.way) == (label, way)]
    means: dict[str, Any] = {"label": label, "way": way, "units": len(own)}
    for name in COLUMNS[3:]:
        values = [one[name] for one in own if one[name] is not None]
        total = name in ("fields", "pixels", "objects_found", "objects_true", "count_bias")
        means[name] = None if not values else sum(values) if total else fmean(values)
    return means


def spans(report: Report, label: str, way: str, name: str) -> tuple[float, ...]:
    """The single units' values of one column."""
    own = (row(score)[name] for score in report.scores if (score.label, score.way) == (label, way))
    return tuple(value for value in own if value is not None)


def as_csv(report: Report) -> str:
    """Every row; commas, points, UTF-8."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(report))
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
        "rows": rows(report),
        "conditions": [
            {
                "condition": one.name,
                "pearson": {label: _number(value) for label, value in one.pearson.items()},
                "pearson_lost": _number(one.loss),
                "auroc_gate": _number(one.gate),
                "auroc_spread": _number(one.spread),
                "tiles_flagged": _number(one.flagged),
                "tiles": one.tiles,
            }
            for one in report.conditions
        ],
        "evaluations": [
            {
                "label": label, "dataset": "", "split_unit": unit, "n": len(report.units),
                "metrics": {
                    name: value for name, value in summary(report, label, MODEL).items()
                    if name in COLUMNS[5:] and value is not None
                },
            }
            for label in report.labels
        ],
    }  # fmt: skip
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def header(report: Report) -> str:
    """What the numbers are of; nothing is called held out that nobody knows to be."""
    unit, n = report.settings.split_unit, len(report.units)
    known = report.model.manifest.training is not None and not report.leaks
    text = f"{n}{' held-out' if known else ''} {unit}{'s' * (n != 1)}"
    if unit == "well":
        text += f" with {report.fields} field{'s' * (report.fields != 1)}"
    return f"{text} (split unit: {unit}, n = {n})"


def as_markdown(report: Report) -> str:
    """Tables of labels and conditions, with what they are of."""
    model = report.model.manifest
    lines = [f"# {model.name} {model.version} on {header(report)}", ""]
    lines += [f"- model {report.model.sha256[:12]}, {report.engine}"]
    lines += [f"- truth of {label}: {words}" for label, words in report.truths.items()]
    lines += [f"- **{warning}**" for warning in (*report.leaks, *report.warnings)]
    lines += [f"- not scored: {name}: {why}" for name, why in report.refused]
    lines += ["", *_table(LABEL_TITLES, label_rows(report)), ""]
    lines += [f"- {explanation}" for explanation in explanations(report)]
    if report.conditions:
        lines += ["", *_table(condition_titles(report), condition_rows(report))]
    lines += ["", gate_words(report), ""]
    return "\n".join(lines)


def explanations(report: Report) -> list[str]:
    """How to read the columns."""
    return [
        "Means over the units; objects are summed.",
        "Floor: logarithm of the variance over z, smoothed by 1.2 um, fitted to each truth. "
        "Real NAME: the stain of another label taken as a guess, likewise. "
        "Ceiling: the real stain itself with its noise drawn anew, "
        f"displaced by {report.settings.registration_um:g} um.",
        "SSIM and MAE: on a scale where 1 is the bright end of the truth, data range 1.",
        "Objects: the same segmenter in every way (Otsu's threshold over all fields, waists split, "
        "from 20 um^2), matched one to one at an IoU; bias is found less true.",
        "Cover: share of pixels within one stated SD (.68 if it were right), everywhere and where the "
        "stain is bright. Rank corr.: Spearman of stated SD and error.",
    ]


def gate_words(report: Report) -> str:
    """What the model can and cannot notice."""
    if report.model.manifest.gate is None:
        return (
            "This model gives no distance to its training set: nothing but metadata and content checks tells "
            "whether a stack fits it. The predicted spread does not."
        )
    if not report.conditions:
        return "No field was large enough to try the model's gate on."
    return (
        "Gate: the model's distances to its training set, tiles of about 256 px under a condition against "
        "tiles as trained; flagged as trained are false alarms. The spread is for display, never a gate."
    )


LABEL_TITLES = ("label", "way", "n", *_SHORT.values())


def label_rows(report: Report) -> Iterable[Sequence[str]]:
    """What each label is worth, beside floor and ceiling."""
    for label in report.labels:
        for way in ways(report, label):
            found = summary(report, label, way)
            yield (label, way, str(found["units"]), *(text(found[name]) for name in _SHORT))


def condition_titles(report: Report) -> tuple[str, ...]:
    """Of the table of conditions."""
    return ("condition", *report.labels, "Pearson lost", "gate AUROC", "tiles flagged", "spread AUROC")


def condition_rows(report: Report) -> Iterable[Sequence[str]]:
    """Pearson by label, what it lost, and what would have noticed."""
    for one in report.conditions:
        values = [one.pearson.get(label) for label in report.labels]
        yield (one.name, *map(text, (*values, one.loss, one.gate, one.flagged, one.spread)))


def text(value: Any) -> str:
    """A number for people; a dash for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return _NONE
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(titles: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *body]
    return [f"| {' | '.join(line)} |" for line in lines]
