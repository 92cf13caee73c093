"""How stacks, predictions and runs look in a notebook: HTML that explains itself, pictures inside.

Everything predicted has a hatched border and a badge; colours are readable in light and dark notebooks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.processing.display import PALETTE, data_uri, display_range, reduced, stretched, tinted
from acq_isl.rules.measurements import readable
from acq_isl.stack import Prediction, Refusal, StackInfo, Unpredicted, ZStack

if TYPE_CHECKING:
    from acq_isl.record import FieldRecord, RunRecord

_EDGE_PX = 220
_MOST_PLANES = 5
_MOST_FIELDS = 12


@dataclass(frozen=True, slots=True)
class _Picture:
    """A picture with its badge; lines of the caption are kept."""

    source: str
    caption: str
    predicted: bool


def stack_html(stack: ZStack) -> str:
    """A stack: where, how it was taken, and planes from its depth."""
    info = stack.info
    count = min(info.planes, _MOST_PLANES)
    shown = sorted({round(number) for number in np.linspace(0, info.planes - 1, count)})
    low, high = display_range(stack.pixels[:, ::4, ::4])
    pictures = [
        _picture(stretched(reduced(stack.pixels[number], _EDGE_PX), low, high), f"z {info.z_um[number]:g} µm")
        for number in shown
    ]
    facts = {**_facts(info), "type": f"{stack.pixels.dtype}, {stack.pixels.nbytes / 2**20:.1f} MiB"}
    return _page(f"Z-stack {info.key}", facts, pictures)


def prediction_html(prediction: Prediction) -> str:
    """A prediction: every label in its hue and its doubt, what computed it, and what to mind."""
    pictures = []
    for number, name in enumerate(prediction.display_names):
        mean = stretched(reduced(prediction.mean[number], _EDGE_PX), 0.0, 1.0)
        pictures.append(_picture(tinted(mean, PALETTE[number % len(PALETTE)]), name, predicted=True))
    doubt = stretched(reduced(prediction.spread.max(axis=0), _EDGE_PX), 0.0, 1.0)
    pictures.append(_picture(doubt, "doubt (predicted), the least sure label", predicted=True))
    facts = {
        **_facts(prediction.info),
        "model": f"{prediction.model_name} ({prediction.model_sha256[:12]})",
        "engine": f"{prediction.engine}, inference {prediction.times.infer_ms:.0f} ms",
    }
    title = f"Prediction for {prediction.info.key}: computed, never measured"
    return _page(title, facts, pictures, prediction.warnings)


def outcome_html(outcome: Refusal | Unpredicted) -> str:
    """A stack without a prediction: why, and what to do."""
    if isinstance(outcome, Refusal):
        return _page(f"Refused: {outcome.info.key}", {"reason": outcome.reason, "to fix": outcome.fix})
    return _page(f"Not predicted: {outcome.info.key}", {"reason": outcome.reason, "waits in": outcome.where})


def run_html(result: Any) -> str:
    """A `RunResult`: what became of its slices, its chosen fields, and where everything is."""
    record: RunRecord = result.record
    counts = record.counts
    facts = {
        "started": f"{record.started}, took {record.duration_s:.0f} s",
        "microscope": record.scope,
        "model": record.model or "none",
        "slices": f"{counts.captured} captured, {counts.predicted} predicted, {counts.refused} refused, "
        f"{counts.spooled} not predicted, {counts.lost} lost",
        "folder": str(result.folder),
        "report": str(result.report),
    }
    fields = sorted(record.fields, key=lambda field: (not field.chosen, field.rank or len(record.fields) + 1))
    pictures = [_field(field) for field in fields[:_MOST_FIELDS]]
    more = len(fields) - len(pictures)
    note = f"{more} more fields are in the report." if more > 0 else ""
    return _page(f"Run: {record.name}", facts, pictures, record.warnings, note)


def session_html(session: Any) -> str:
    """A `Session` that is going on or over: its fields, one line each."""
    rows = []
    for field in session.fields.values():
        outcome = field.outcome
        chosen = "★ " if field.choice is not None and field.choice.chosen else ""
        place, words = "not imaged yet", "waiting"
        if outcome is not None:
            place = f"x {outcome.info.x_um:.0f}, y {outcome.info.y_um:.0f} µm"
            words = field.choice.reason if field.choice else field.status or "waiting"
        rows.append((f"{chosen}{field.request.key}", place, words))
    title = f"Session: {session.name}"
    if not rows:
        return _page(title, {}, note="Nothing imaged yet.")
    return _filled(title=title, head=("field", "place", "what is known"), rows=rows)


def register(shell: Any) -> None:
    """Let an IPython shell show what this program makes."""
    formatter = shell.display_formatter.formatters["text/html"]
    shown: dict[tuple[str, str], Callable[[Any], str]] = {
        ("acq_isl.stack", "ZStack"): stack_html,
        ("acq_isl.stack", "Prediction"): prediction_html,
        ("acq_isl.stack", "Refusal"): outcome_html,
        ("acq_isl.stack", "Unpredicted"): outcome_html,
        ("acq_isl.session.session", "Session"): session_html,
        ("acq_isl.session.runner", "RunResult"): run_html,
    }
    for (module, name), function in shown.items():
        formatter.for_type_by_name(module, name, function)


def _field(field: FieldRecord) -> _Picture:
    chosen = f"{field.rank}. chosen, " if field.chosen and field.rank else ""
    measured = f"\n{field.measured.name}: {readable(field.measured)}" if field.measured else ""
    picture = reduced(field.thumbnail, _EDGE_PX).astype(np.uint8)
    return _picture(picture, f"{chosen}{field.info.key.position}{measured}")


def _facts(info: StackInfo) -> dict[str, str]:
    rows, columns = info.shape
    field = f"{columns * info.pixel_size_um:.0f} x {rows * info.pixel_size_um:.0f} µm"
    return {
        "place": f"x {info.x_um:.1f} µm, y {info.y_um:.1f} µm",
        "planes": f"{info.planes}, z {min(info.z_um):g} to {max(info.z_um):g} µm",
        "pixels": f"{rows} x {columns}, {info.pixel_size_um:g} µm each, {field}",
        "light": f"{info.modality}, {info.exposure_ms:g} ms",
    }


def _picture(picture: NDArray[np.uint8], caption: str, *, predicted: bool = False) -> _Picture:
    return _Picture(data_uri(picture), caption, predicted)


def _page(
    title: str,
    facts: dict[str, str],
    pictures: Sequence[_Picture] = (),
    minds: Sequence[str] = (),
    note: str = "",
) -> str:
    return _filled(title=title, rows=list(facts.items()), pictures=pictures, minds=minds, note=note)


def _filled(**words: Any) -> str:
    from jinja2 import Environment, PackageLoader

    pages = Environment(
        loader=PackageLoader("acq_isl"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return pages.get_template("notebook.html").render(edge=_EDGE_PX, **words)
