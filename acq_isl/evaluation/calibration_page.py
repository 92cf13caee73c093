"""What a calibrated model may be used for, in plain words: one HTML file, and a card in Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from acq_isl.engines.model_file import ModelInfo
from acq_isl.errors import StorageError
from acq_isl.processing import display as pictures
from acq_isl.scorecard import brightness_is_right, describe_amplitude
from acq_isl.stack import NetworkLabel, ObjectCounting
from acq_isl.training.cross_fit import AS_IT_IS, CrossFit, LabelResult, ShownField

PAGE, CARD = "calibration.html", "card.md"
_ABOVE_FLOOR, _USEFUL = 0.05, 0.5
_TRUE_COUNT, _FOLLOWS = 0.1, 0.8
_HONEST = (0.55, 0.8)
_LONGEST_PX = 512


@dataclass(frozen=True, slots=True)
class Advice:
    """Of one label: what it may be used for, and what not, each with its reason."""

    label: str
    use: tuple[str, ...]
    avoid: tuple[str, ...]


def advise(result: LabelResult) -> Advice:
    """What held-out fields allow; a correlation alone is never called good agreement."""
    label, r = result.label, f"{result.r:.2f} ({result.low:.2f} to {result.high:.2f})"
    use: list[str] = []
    explained = f"the prediction explains {max(result.r, 0) ** 2:.0%} of the differences between pixels"
    avoid = [f"to measure how bright single places are: {explained} of the stain (r {r})"]
    if result.low > max(result.floor + _ABOVE_FLOOR, _USEFUL):
        use.append(
            f"to find where {label} are and to choose fields to look at: r {r} on fields it had not seen, "
            f"where the light alone has {result.floor:.2f}"
        )
    else:
        avoid.append(
            f"to choose fields by {label}: r {r} is not clearly better than the light alone "
            f"({result.floor:.2f}), or too low to be of use (below {_USEFUL:g})"
        )
    if not brightness_is_right(result.amplitude):
        avoid.append(f"by its brightness: {describe_amplitude(result.amplitude)}")
    _advise_counts(result, use, avoid)
    covers = result.doubt_covers
    if covers is None:
        avoid.append("by its stated SD: no field showed anything bright to hold it against")
    elif _HONEST[0] <= covers <= _HONEST[1]:
        use.append(
            f"with its stated SD: it holds for {covers:.0%} of the bright pixels elsewhere (wanted: 68 %)"
        )
    else:
        size = "too small" if covers < _HONEST[0] else "too large"
        avoid.append(
            f"by its stated SD, which is {size}: it holds for {covers:.0%} of the bright pixels, not 68 %"
        )
    return Advice(label, tuple(use), tuple(avoid))


def _advise_counts(result: LabelResult, use: list[str], avoid: list[str]) -> None:
    label, counting = result.label, result.counting
    match counting:
        case NetworkLabel():
            avoid.append(
                f"to count {label}: they are a network without objects; length and area can be measured"
            )
        case None:
            avoid.append(f"to count {label}: the fields are too few to say how wrong a count would be")
        case ObjectCounting(bias=bias, correlation=follows, within_1_sd=one, within_2_sd=two):
            found = (
                f"{abs(bias):.0%} too {'many' if bias > 0 else 'few'} on average, r {follows:.2f} with the "
                f"true number, right within one stated SD in {one:.0%} and within two in {two:.0%}"
            )
            good = abs(bias) <= _TRUE_COUNT and follows >= _FOLLOWS
            (use if good else avoid).append(f"to count {label}: {found} ({counting.judged_on})")
        case _:
            assert_never(counting)


def remarks(fit: CrossFit) -> tuple[str, ...]:
    """What else somebody who uses the model should know."""
    lines = [f"Kept: {fit.kept}, which did best on fields it had not seen."]
    if fit.slower > 1:
        lines.append(f"A prediction takes {fit.slower:.3g} times as long as with the model it came from.")
    if fit.refused is None:
        lines.append("It has no gate: the fields are too few to say what an unusual stack looks like.")
    else:
        refused, of = fit.refused
        lines.append(f"A gate fitted to the other fields refuses {refused} of {of} that it had not seen.")
    if fit.kept == AS_IT_IS:
        lines.append(
            "The network has learned nothing from these fields: only SD, counts and gate were fitted."
        )
    else:
        lines.append("It has learned from all fields; what is said here was found before it had seen them.")
    return (*lines, *fit.remarks)


def write_calibration(fit: CrossFit, info: ModelInfo, facts: Sequence[tuple[str, str]], use: str) -> Path:
    """Write page and card beside the model; ``facts`` are what was done, ``use`` how to take it into use.
    `StorageError` if they cannot be written."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    pages = Environment(
        loader=PackageLoader("acq_isl"), autoescape=select_autoescape(), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    about = {
        "manifest": info.manifest, "sha256": info.sha256, "facts": facts, "take_into_use": use, "fit": fit,
        "advice": [advise(result) for result in fit.labels], "remarks": remarks(fit), "labels": (),
        "rows": [_row(result) for result in fit.labels],
    }  # fmt: skip
    folder = fit.model.parent
    contents = {
        PAGE: pages.get_template(PAGE).render(about, shown=_pictures(fit.shown)),
        CARD: pages.get_template("calibration.md").render(about),
    }
    try:
        for name, content in contents.items():
            (folder / name).write_text(content, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StorageError(
            f"the page cannot be written to {folder}", got=str(error), fix="make room there"
        ) from error
    return folder / PAGE


def _row(result: LabelResult) -> tuple[str, ...]:
    before = "-" if result.as_it_is is None else f"{result.as_it_is:.2f}"
    covers = "-" if result.doubt_covers is None else f"{result.doubt_covers:.0%}"
    r = f"{result.r:.2f} ({result.low:.2f} to {result.high:.2f})"
    bright = (result.amplitude.top, result.amplitude.slope)
    amplitude = (f"{value:.2f}" if math.isfinite(value) else "-" for value in bright)
    return result.label, before, r, f"{result.floor:.2f}", *amplitude, covers


def _pictures(field: ShownField) -> dict[str, Any]:
    """Transmitted light, and of each label truth, prediction, and both in one."""
    light = pictures.reduced(field.light, _LONGEST_PX)
    rows = []
    for label, images in field.labels.items():
        truth, mean = (pictures.reduced(image, _LONGEST_PX) for image in images)
        rows.append(
            {
                "label": label,
                "truth": pictures.data_uri(pictures.stretched(truth, 0, 1)),
                "mean": pictures.data_uri(pictures.stretched(mean, 0, 1)),
                "error": pictures.data_uri(pictures.additive_error(mean, truth), quality=85),
            }
        )
    shown = pictures.stretched(light, *pictures.display_range(light))
    return {"name": field.name, "light": pictures.data_uri(shown), "rows": rows}
