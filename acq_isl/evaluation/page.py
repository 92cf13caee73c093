"""An evaluation as one HTML file without network or script, and as Markdown."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from acq_isl.errors import StorageError
from acq_isl.evaluation import tables, worth
from acq_isl.evaluation.results import CEILING, FLOOR, MODEL, Report, ShownField
from acq_isl.processing import display as pictures
from acq_isl.scorecard import CountScore, say_counts

_LONGEST_PX = 640


def write_evaluation(folder: Path, report: Report) -> tuple[Path, ...]:
    """Write evaluation.html, .md, .csv and .json into a folder; `StorageError` if that fails."""
    contents = {
        "evaluation.html": render(report),
        "evaluation.md": as_markdown(report),
        "evaluation.csv": tables.as_csv(report),
        "evaluation.json": tables.as_json(report),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_text(content, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StorageError(
            f"the evaluation cannot be written to {folder}",
            got=error.strerror or str(error),
            fix="choose another folder with --output",
        ) from error
    return tuple(folder / name for name in contents)


def render(report: Report) -> str:
    """The page as HTML text."""
    return _fill(
        "evaluation.html",
        report,
        labels=(),  # the shared style sheet's switches, of which there are none here
        bars=[_bar(report, label) for label in report.labels],
        counts=[_plot_counts(score) for score in _counted(report)],
        fields=[_show(field, report) for field in report.shown],
        unit_titles=tables.COLUMNS,
        unit_rows=[map(tables.as_text, row.values()) for row in tables.list_rows(report)],
    )


def as_markdown(report: Report) -> str:
    """Tables of labels and perturbations, with what they are of."""
    return _fill("evaluation.md", report)


def _fill(template: str, report: Report, **more: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    pages = Environment(
        loader=PackageLoader("acq_isl"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return pages.get_template(template).render(
        report=report,
        manifest=report.model.manifest,
        header=tables.describe_units(report),
        says=list(worth.say(report)),
        level_titles=tables.LEVEL_TITLES,
        level_rows=list(tables.level_rows(report)),
        label_titles=tables.LABEL_TITLES,
        label_rows=list(tables.label_rows(report)),
        perturbation_titles=tables.perturbation_titles(report),
        perturbation_rows=list(tables.perturbation_rows(report)),
        **more,
    )


def _bar(report: Report, label: str) -> dict[str, Any]:
    """Pearson of one label between floor and ceiling, with a dot for every unit."""
    ways = tables.choose_ways(report, label)
    found = {way: tables.summarise(report, label, way)["pearson"] for way in ways}
    units = [row["pearson"] for row in tables.list_rows(report, label, MODEL)]
    return {
        "label": label,
        "color": next(one.color for one in report.model.manifest.labels if one.name == label),
        "model": found[MODEL],
        "floor": found.get(FLOOR),
        "ceiling": found.get(CEILING),
        "other": next(((w, r) for w, r in found.items() if w not in (MODEL, FLOOR, CEILING)), None),
        "units": [value for value in units if value is not None],
        "interval": _interval(report, label),
    }


def _interval(report: Report, label: str) -> tuple[float, float] | None:
    found = worth.agree(report, label)
    return (found.low, found.high) if math.isfinite(found.low) else None


def _counted(report: Report) -> list[CountScore]:
    found = [worth.count(report, label) for label in report.labels]
    return [score for score in found if len(score.fields) > 1]


def _plot_counts(score: CountScore) -> dict[str, Any]:
    """Counted against true objects, in hundredths of the longest axis; the SD is a bar where it is known."""
    most = max(max(true, counted + (sd if math.isfinite(sd) else 0)) for _, counted, sd, true in score.fields)
    most = max(most, 1.0) * 1.05
    points = [
        {
            "name": name,
            "x": 100 * true / most,
            "y": 100 - 100 * counted / most,
            "sd": 100 * sd / most if math.isfinite(sd) else 0.0,
            "text": f"{name}: {counted:.0f} counted, {true:.0f} in the stain",
        }
        for name, counted, sd, true in score.fields
    ]
    return {"label": score.label, "most": f"{most:.0f}", "points": points, "text": say_counts(score)}


def _show(field: ShownField, report: Report) -> dict[str, Any]:
    """Pictures of one field: by label the truth, the prediction, both in one, and the stated SD."""
    rows = []
    for label, images in field.labels.items():
        truth, mean, std = (pictures.reduced(image, _LONGEST_PX) for image in images)
        score = next(s for s in report.scores if (s.unit, s.label, s.way) == (field.unit, label, MODEL))
        most = float(std.max(initial=0))
        rows.append(
            {
                "label": label,
                "pearson": tables.as_text(score.pixels.pearson),
                "truth": pictures.data_uri(pictures.stretched(truth, 0, 1)),
                "mean": pictures.data_uri(pictures.stretched(mean, 0, 1)),
                "error": pictures.data_uri(pictures.additive_error(mean, truth), quality=85),
                "std": pictures.data_uri(pictures.stretched(std, 0, most or 1)),
                "std_end": tables.as_text(most),
            }
        )
    light = pictures.reduced(field.transmitted, _LONGEST_PX)
    return {
        "name": field.name,
        "light": pictures.data_uri(pictures.stretched(light, *pictures.display_range(light))),
        "scale": pictures.scale_bar(field.transmitted.shape[1] * field.pixel_size_um),
        "rows": rows,
    }
