"""How stacks, predictions and runs look in a notebook: HTML that explains itself, pictures inside.

Everything predicted has a hatched border and a badge; colours are readable in light and dark notebooks.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
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
_TAB = "display:block;font:700 11px sans-serif;padding:3px 6px;letter-spacing:.04em;"
_BADGE = f"<span style='{_TAB}background:#7a4b00;color:#ffffff'>PREDICTED</span>"
_PLAIN = f"<span style='{_TAB}background:#d9dad6;color:#1b1d21'>MEASURED</span>"
_CELL = f"display:inline-block;vertical-align:top;margin:0 10px 10px 0;width:{_EDGE_PX + 12}px"
_HATCH = (
    "border:6px solid #b3700a;"
    "border-image:repeating-linear-gradient(45deg,#b3700a 0 4px,transparent 4px 8px) 6"
)
_NO_BORDER = "border:6px solid transparent"


def stack_html(stack: ZStack) -> str:
    """A stack: where, how it was taken, and planes from its depth."""
    info = stack.info
    count = min(info.planes, _MOST_PLANES)
    shown = sorted({round(number) for number in np.linspace(0, info.planes - 1, count)})
    low, high = display_range(stack.pixels[:, ::4, ::4])
    pictures = [
        _figure(
            stretched(reduced(stack.pixels[number], _EDGE_PX), low, high),
            f"z {info.z_um[number]:g} µm",
            predicted=False,
        )
        for number in shown
    ]
    facts = {**_facts(info), "type": f"{stack.pixels.dtype}, {stack.pixels.nbytes / 2**20:.1f} MiB"}
    return _block(f"Z-stack {info.key}", _table(facts) + _row(pictures))


def prediction_html(prediction: Prediction) -> str:
    """A prediction: every label in its hue and its doubt, what computed it, and what to mind."""
    pictures = []
    for number, name in enumerate(prediction.display_names):
        hue = PALETTE[number % len(PALETTE)]
        mean = stretched(reduced(prediction.mean[number], _EDGE_PX), 0.0, 1.0)
        pictures.append(_figure(tinted(mean, hue), name, predicted=True))
    doubt = stretched(reduced(prediction.spread.max(axis=0), _EDGE_PX), 0.0, 1.0)
    pictures.append(_figure(doubt, "doubt (predicted), the least sure label", predicted=True))
    times = prediction.times
    facts = {
        **_facts(prediction.info),
        "model": f"{prediction.model_name} ({prediction.model_sha256[:12]})",
        "engine": f"{prediction.engine}, inference {times.infer_ms:.0f} ms",
    }
    minds = "".join(f"<p><b>Mind:</b> {_safe(text)}</p>" for text in prediction.warnings)
    title = f"Prediction for {prediction.info.key}: computed, never measured"
    return _block(title, minds + _table(facts) + _row(pictures))


def outcome_html(outcome: Refusal | Unpredicted) -> str:
    """A stack without a prediction: why, and what to do."""
    if isinstance(outcome, Refusal):
        facts = {"reason": outcome.reason, "to fix": outcome.fix}
        return _block(f"Refused: {outcome.info.key}", _table(facts))
    facts = {"reason": outcome.reason, "waits in": outcome.where}
    return _block(f"Not predicted: {outcome.info.key}", _table(facts))


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
    warnings = "".join(f"<p><b>Mind:</b> {_safe(text)}</p>" for text in record.warnings)
    fields = sorted(record.fields, key=lambda field: (not field.chosen, field.rank or len(record.fields) + 1))
    pictures = [_field(field) for field in fields[:_MOST_FIELDS]]
    more = len(fields) - len(pictures)
    rest = f"<p>{more} more fields are in the report.</p>" if more > 0 else ""
    return _block(f"Run: {record.name}", warnings + _table(facts) + _row(pictures) + rest)


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
        rows.append(
            f"<tr><td>{chosen}{_safe(str(field.request.key))}</td><td>{place}</td>"
            f"<td style='text-align:left'>{_safe(words)}</td></tr>"
        )
    head = "<tr><th>field</th><th>place</th><th style='text-align:left'>what is known</th></tr>"
    table = f"<table>{head}{''.join(rows)}</table>" if rows else "<p>Nothing imaged yet.</p>"
    return _block(f"Session: {session.name}", table)


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


def _field(field: FieldRecord) -> str:
    chosen = f"{field.rank}. chosen, " if field.chosen and field.rank else ""
    measured = f"\n{field.measured.name}: {readable(field.measured)}" if field.measured else ""
    picture = reduced(field.thumbnail, _EDGE_PX).astype(np.uint8)
    return _figure(picture, f"{chosen}{field.info.key.position}{measured}", predicted=False)


def _facts(info: StackInfo) -> dict[str, str]:
    rows, columns = info.shape
    field = f"{columns * info.pixel_size_um:.0f} x {rows * info.pixel_size_um:.0f} µm"
    return {
        "place": f"x {info.x_um:.1f} µm, y {info.y_um:.1f} µm",
        "planes": f"{info.planes}, z {min(info.z_um):g} to {max(info.z_um):g} µm",
        "pixels": f"{rows} x {columns}, {info.pixel_size_um:g} µm each, {field}",
        "light": f"{info.modality}, {info.exposure_ms:g} ms",
    }


def _figure(picture: NDArray[np.uint8], caption: str, *, predicted: bool) -> str:
    """A picture with its badge; lines of the caption are kept."""
    words = "<br>".join(_safe(line) for line in caption.splitlines())
    return (
        f"<figure style='{_CELL}'><div style='{_HATCH if predicted else _NO_BORDER}'>"
        f"{_BADGE if predicted else _PLAIN}"
        f"<img style='display:block;width:100%' alt='{_safe(caption)}' src='{data_uri(picture)}'></div>"
        f"<figcaption style='font-size:12px'>{words}</figcaption></figure>"
    )


def _table(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th style='text-align:left;padding-right:12px'>{_safe(name)}</th>"
        f"<td style='text-align:left'>{_safe(str(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table>{rows}</table>"


def _row(pictures: Iterable[str]) -> str:
    return f"<div style='margin-top:8px'>{''.join(pictures)}</div>"


def _block(title: str, body: str) -> str:
    return f"<div class='acq-isl'><b>{_safe(title)}</b>{body}</div>"


def _safe(text: str) -> str:
    return html.escape(text, quote=True)
