"""An evaluation as one HTML file without network or script, with pictures in the paper's style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from acq_isl.errors import StorageError
from acq_isl.evaluation import tables
from acq_isl.evaluation.results import CEILING, FLOOR, MODEL, Report, ShownField
from acq_isl.processing import display as pictures
from acq_isl.stack import Float32Image

_LONGEST_PX = 640
_TRUTH_RGB = np.array([0.0, 0.5, 1.0], np.float32)
_PREDICTED_RGB = np.array([1.0, 0.5, 0.0], np.float32)


def write_evaluation(folder: Path, report: Report) -> tuple[Path, ...]:
    """Write evaluation.html, .md, .csv and .json into a folder, which is made if need be.

    Raises
    ------
    StorageError
        They cannot be written.
    """
    contents = {
        "evaluation.html": render(report),
        "evaluation.md": tables.as_markdown(report),
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


def additive_error(predicted: Float32Image, truth: Float32Image) -> pictures.Uint8Image:
    """Truth and prediction in one picture, as in Christiansen et al., Cell 2018.

    Truth is shown in blue (0, .5, 1) and prediction in orange (1, .5, 0), added: grey where they agree,
    orange where only the prediction is bright, blue where only the stain is.

    Parameters
    ----------
    predicted, truth : (y, x) float32
        0 to 1.

    Returns
    -------
    (y, x, 3) uint8
    """
    both = (np.clip(image, 0, 1)[..., None] for image in (truth, predicted))
    summed = sum(image * hue for image, hue in zip(both, (_TRUTH_RGB, _PREDICTED_RGB), strict=True))
    return np.asarray(np.rint(255 * np.clip(summed, 0, 1)), np.uint8)


def render(report: Report) -> str:
    """The page as HTML text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("acq_isl"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    manifest = report.model.manifest
    return pages.get_template("evaluation.html").render(
        labels=(),  # the shared style sheet's switches, of which there are none here
        report=report,
        manifest=manifest,
        header=tables.header(report),
        bars=[_bar(report, label) for label in report.labels],
        label_titles=tables.LABEL_TITLES,
        label_rows=list(tables.label_rows(report)),
        explanations=tables.explanations(report),
        condition_titles=tables.condition_titles(report),
        condition_rows=list(tables.condition_rows(report)),
        gate_words=tables.gate_words(report),
        fields=[_shown(field, report) for field in report.shown],
        unit_titles=tables.COLUMNS,
        unit_rows=[[tables.text(value) for value in row.values()] for row in tables.rows(report)],
    )


def _bar(report: Report, label: str) -> dict[str, Any]:
    """Pearson of one label between floor and ceiling, with a dot for every unit."""
    found = {way: tables.summary(report, label, way)["pearson"] for way in tables.ways(report, label)}
    others = {way: value for way, value in found.items() if way not in (MODEL, FLOOR, CEILING)}
    color = next(one.color for one in report.model.manifest.labels if one.name == label)
    return {
        "label": label,
        "color": color,
        "model": found[MODEL],
        "floor": found.get(FLOOR),
        "ceiling": found.get(CEILING),
        "other": next(iter(others.items()), None),
        "units": tables.spans(report, label, MODEL, "pearson"),
    }


def _shown(field: ShownField, report: Report) -> dict[str, Any]:
    """Pictures of one field: by label the truth, the prediction, both in one, and the stated doubt."""
    rows = []
    for label, images in field.labels.items():
        truth, mean, spread = (pictures.reduced(image, _LONGEST_PX) for image in images)
        score = next(s for s in report.scores if (s.unit, s.label, s.way) == (field.unit, label, MODEL))
        rows.append(
            {
                "label": label,
                "pearson": tables.text(score.pixels.pearson),
                "truth": pictures.data_uri(pictures.stretched(truth, 0, 1)),
                "mean": pictures.data_uri(pictures.stretched(mean, 0, 1)),
                "error": pictures.data_uri(additive_error(mean, truth), quality=85),
                "spread": pictures.data_uri(pictures.stretched(spread, 0, float(spread.max(initial=0)) or 1)),
                "spread_end": tables.text(float(spread.max(initial=0))),
            }
        )
    light = pictures.reduced(field.transmitted, _LONGEST_PX)
    width_um = field.transmitted.shape[1] * field.pixel_size_um
    return {
        "name": field.name,
        "unit": field.unit,
        "light": pictures.data_uri(pictures.stretched(light, *pictures.display_range(light))),
        "scale": pictures.scale_bar(width_um),
        "rows": rows,
    }
