"""How a window shows what it knows: hues, outlines by rank, and words. Pure."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from acq_isl.events import OVER, Decided, FieldRanked, Predicted, RunStarted, RunStatus
from acq_isl.processing.display import PALETTE
from acq_isl.rules.measurements import readable
from acq_isl.view.napari.marks import BADGE
from acq_isl.view.napari.model import FieldView, LiveModel

# Cividis (Nunez, Anderton, Renslow 2018) from its middle on: made for colour-blind eyes, and light
# enough throughout to be seen on black.
_RANKS = ("#ffe945", "#d9c55c", "#b5a36f", "#918b77", "#6e7b83")
_REFUSED = "#d55e00"
_WAITS = "#cc79a7"
_IMAGED = "#a0a0a0"
_PLANNED = "#5a5a5a"
_BANNER_COLUMNS = 64
_REASON_COLUMNS = 26
_REASON_LINES = 4
_SHOWN_DECISIONS = 5


@dataclass(frozen=True, slots=True)
class Outline:
    """Frame of a field: colour, width relative to the thinnest, and what is written beside it."""

    color: str
    width: float
    text: str


def hues(plan: RunStarted) -> dict[str, str]:
    """Hue of each label as ``#rrggbb``: the model's, or one of the palette where it states none."""
    return {
        style.name: style.color if re.fullmatch("#[0-9a-fA-F]{6}", style.color) else PALETTE[n % len(PALETTE)]
        for n, style in enumerate(plan.labels)
    }


def outline(one: FieldView, ranked: int) -> Outline:
    """Frame of a field among ``ranked`` ranked ones."""
    if one.refused is not None and one.refused.state == "refused":
        return Outline(_REFUSED, 1.5, "refused")
    if one.refused is not None:
        return Outline(_WAITS, 1.5, "waits for the engine")
    if one.failed is not None and one.predicted is None:
        return Outline(_REFUSED, 1.5, "failed")
    if one.ranked is not None and one.ranked.rank is not None:
        color = rank_color(one.ranked.rank, ranked)
        if one.ranked.chosen:
            return Outline(color, 4.0, _because(one.ranked))
        return Outline(color, 2.0, "")
    return Outline(_IMAGED if one.time >= 0 else _PLANNED, 1.0, "")


def rank_color(rank: int, ranked: int) -> str:
    """From bright yellow for rank 1 to grey-blue for the last."""
    place = (rank - 1) / max(ranked - 1, 1) * (len(_RANKS) - 1)
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in _RANKS], float)
    mixed = [round(float(np.interp(place, range(len(_RANKS)), stops[:, i]))) for i in range(3)]
    return "#" + "".join(f"{value:02x}" for value in mixed)


def banner(model: LiveModel) -> str:
    """The line that always stands on the picture: what in it is predicted."""
    plan = model.plan
    if plan is None:
        return "waiting for the run"
    if not plan.labels:
        return "no engine: everything shown is measured"
    names = ", ".join(f"{style.name}{f' by {style.model}' * bool(style.model)}" for style in plan.labels)
    return "\n".join(textwrap.wrap(f"{BADGE}: {names}", _BANNER_COLUMNS, max_lines=3, placeholder=" …"))


def status_lines(status: RunStatus | None, alive: bool) -> tuple[str, str]:
    """State of the run in one line, and its numbers in another; plain text."""
    if status is None:
        return "waiting for the run to answer", ""
    over = status.state in OVER
    head = " · ".join(part for part in (_progress(status), status.why or status.step.text) if part)
    if not alive and not over:
        head = f"the run does not answer; last heard: {head}"
    elif over and status.report:
        head += f" · report: {status.report}"
    progress, counts = status.progress, status.progress.counts
    numbers = [
        f"{counts.captured} slices captured, {counts.predicted} predicted, {counts.refused} refused, "
        f"{progress.late} on their way, {counts.lost} lost",
        _late_words(status),
        f"engine {progress.engine}" if progress.engine else "",
        f"{_duration(progress.remaining_s)} left" if progress.remaining_s and not over else "",
        f"{status.dropped} pictures dropped (display only)" if status.dropped else "",
    ]
    return head, " · ".join(part for part in numbers if part)


def short_state(status: RunStatus | None, alive: bool) -> str:
    """State of the run in a few words, for the picture itself."""
    if status is None:
        return "waiting for the run"
    known = _progress(status)
    return known if alive or status.state in OVER else f"the run does not answer; last heard: {known}"


def _progress(status: RunStatus) -> str:
    step, point = status.step, status.time_point
    time = f"time {point.number} of {point.total}, " if point is not None and point.total > 1 else ""
    return f"{time}{step.phase} {step.done} of {step.total}" if status.state == "running" else status.state


def _late_words(status: RunStatus) -> str:
    late = status.late_time_points
    return f"{late} interval{'s' * (late != 1)} between time points could not be kept" if late else ""


def field_words(one: FieldView | None) -> str:
    """What is known of a field, as HTML for a panel."""
    if one is None:
        return "<p>No field yet. Fields appear as they are imaged; click one to see its numbers.</p>"
    x, y = one.box.x + one.box.width / 2, one.box.y + one.box.height / 2
    if one.planned is not None:
        x, y = one.planned.x_um, one.planned.y_um
    time = f", time point {one.time + 1}" if one.time > 0 else ""
    lines = [f"<p><b>{_safe(one.name)}</b>{time}<br>x {x:.1f} µm, y {y:.1f} µm</p>"]
    if one.failed is not None:
        words = f"{_safe(one.failed.what)}. {_safe(one.failed.why)}"
        lines.append(f"<p><b>Something went wrong here:</b> {words}</p>")
    if one.refused is not None:
        word = "Refused by the model" if one.refused.state == "refused" else "Not predicted yet"
        lines.append(f"<p><b>{word}:</b> {_safe(one.refused.reason)}<br>{_safe(one.refused.fix)}</p>")
    if one.ranked is not None:
        lines.append(f"<p>{_safe(one.ranked.reason)}</p>")
    if one.predicted is not None:
        lines.append(_numbers(one.predicted.event))
    elif one.refused is None:
        lines.append("<p>No prediction here yet.</p>")
    return "".join(lines)


def decision_words(decisions: Sequence[Decided]) -> str:
    """The newest decisions, newest first, as HTML."""
    newest = sorted(decisions, key=lambda decided: -decided.time_s)[:_SHOWN_DECISIONS]
    rows = [
        f"<li><b>{_safe(one.rule)}</b>{f' at {_safe(one.key.position)}' if one.key else ''}: "
        f"{_safe(_outcome(one))}<br><small>{_safe(one.why)}</small></li>"
        for one in newest
    ]
    return f"<ul style='margin-left:-24px'>{''.join(rows)}</ul>" if rows else "<p>None so far.</p>"


def _outcome(one: Decided) -> str:
    return one.what if one.done in ("done", one.what) else f"{one.what} ({one.done})"


def _numbers(event: Predicted) -> str:
    # No table: Qt does not reserve the height that its cells take when they are wrapped.
    rows = "".join(f"<p>{_safe(one.name)}: <b>{_safe(readable(one))}</b></p>" for one in event.measured)
    table = rows or "<p>Nothing is measured on predictions in this run.</p>"
    times = event.times
    taken = f"<p><small>infer {times.infer_ms:.0f} ms, {_safe(event.engine)}</small></p>"
    warnings = "".join(f"<p><b>Note:</b> {_safe(warning)}</p>" for warning in event.warnings)
    return table + taken + warnings


def _because(ranked: FieldRanked) -> str:
    """The reason in a few words; all of it is in the panel."""
    found = ranked.measured
    reason = ranked.reason if found is None else f"{found.name}: {readable(found)}"
    text = f"{ranked.rank}. {reason}"
    return "\n".join(textwrap.wrap(text, _REASON_COLUMNS, max_lines=_REASON_LINES, placeholder=" …"))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _safe(text: str) -> str:
    return html.escape(text)
