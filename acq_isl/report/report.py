"""The report of a run: one HTML file for a microscopist that needs no network and runs no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from acq_isl.errors import StorageError
from acq_isl.record import Counts, FieldRecord, RunRecord, StageLatency
from acq_isl.report import figures as gallery
from acq_isl.rules.measurements import readable
from acq_isl.scorecard import Scorecard, sentences
from acq_isl.stack import Prediction, Refusal, Unpredicted

_MOST_LINES = 500
_STAGES = {
    "expose": "camera exposes the stack",
    "transfer": "last slice travels to the engine",
    "wait": "stack waits for the engine",
    "infer": "network computes",
    "decode": "labels are put together",
    "decide": "measure, rank, decide",
}


def write_report(path: Path | str, record: RunRecord) -> None:
    """Write a run as one HTML file.

    Pictures are reduced so that the file stays near 5 MB also for large runs; the data keep every pixel.

    Parameters
    ----------
    path : Path
        The file; replaced if it exists.
    record : RunRecord

    Raises
    ------
    StorageError
        The file cannot be written.
    """
    target = Path(path)
    fresh = target.with_name(target.name + ".new")
    try:
        fresh.write_text(render(record), encoding="utf-8")
        fresh.replace(target)
    except OSError as error:
        raise StorageError(
            f"the report {target} cannot be written",
            got=error.strerror or str(error),
            fix="free some disk space or close the program that holds the file; the data are not affected",
        ) from error


def render(record: RunRecord) -> str:
    """The report as HTML text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("acq_isl"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    colors = gallery.hues(record)
    return pages.get_template("report.html").render(
        record=record,
        headline=headline(record),
        duration=_run_time(record.duration_s),
        labels=[(name, color, gallery.by(record, name)) for name, color in colors.items()],
        mosaic=gallery.mosaic(record.fields, colors),
        chosen=gallery.chosen(record, colors),
        scorecard=_scorecard(record.scorecard),
        counts=_counts(record.counts),
        balance=_balance(record.counts),
        waterfall=_waterfall(record.latencies),
        refused=_refused(record.fields),
        ranking=[_ranked(field) for field in sorted(record.fields, key=gallery.by_rank)],
        decisions=_decisions(record.decisions),
        dose=_dose(record.decisions),
        seal=str(record.decisions[-1].get("sha256", "")) if record.decisions else "",
        files=[(what, where, quote(where.replace("\\", "/"))) for what, where in record.files.items()],
    )


def _scorecard(card: Scorecard | None) -> dict[str, Any] | None:
    if card is None:
        return None
    labels = [asdict(one) for one in card.labels]
    for one in labels:
        one |= {name: f"{one[name]:.2f}" if math.isfinite(one[name]) else "-" for name in ("pearson", "f1")}
    # The table says of the labels what the last sentence does.
    return {"lines": [line for line in sentences(card) if line[0] != "labels"], "labels": labels}


def headline(record: RunRecord) -> str:
    """What the run came to, in sentences a microscopist understands."""
    fields = len(record.fields)
    if fields == 0:
        return "No field was imaged."
    predicted = sum(isinstance(field.outcome, Prediction) for field in record.fields)
    chosen = sum(field.chosen for field in record.fields)
    text = f"{_many(fields, 'field')} imaged without stain."
    if predicted == 0:
        return f"{text} No labels were predicted: {_refused(record.fields)[0]['reason'].rstrip('.')}."
    where = ("it" if fields == 1 else "all of them") if predicted == fields else f"{predicted} of them"
    models = len(set(record.label_models.values()))
    who, they = (f"{models} models", "they") if models > 1 else ("A model", "it")
    text += f" {who} predicted {_and(list(gallery.hues(record)))} in {where}."
    if chosen:
        text += f" {_many(chosen, 'field')} chosen by what {they} predicted."
    visited = {comparison.info.key for comparison in record.comparisons}
    if visited:
        same = visited == {field.info.key for field in record.fields if field.chosen}
        which = ("It was" if chosen == 1 else "They were") if same else _many(len(visited), "field")
        text += f" {which} then imaged in fluorescence{_agreement(record)}."
    return text


def _agreement(record: RunRecord) -> str:
    spans = []
    for label in dict.fromkeys(comparison.label for comparison in record.comparisons):
        scores = [
            one.pearson for one in record.comparisons if one.label == label and math.isfinite(one.pearson)
        ]
        if scores:
            span = " to ".join(dict.fromkeys(f"{end(scores):.2f}" for end in (min, max)))
            spans.append(f"r = {span} for {label}")
    return f": prediction and stain agree with {_and(spans)}" if spans else ""


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)} {'was' if number == 1 else 'were'}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _ranked(field: FieldRecord) -> dict[str, Any]:
    measured = readable(field.measured) if field.measured else ""
    return {
        "field": field,
        "place": gallery.place(field.info),
        "measured": measured,
        "state": gallery.state(field),
    }


def _refused(fields: Sequence[FieldRecord]) -> list[dict[str, Any]]:
    """Fields that a model did not predict by its reason, the most frequent first."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for field in fields:
        for outcome in field.without or (field.outcome,):
            by = f"{outcome.model}: " if field.without else ""
            match outcome:
                case Refusal(reason=reason, fix=fix):
                    key = ("refused", by + reason, fix)
                case Unpredicted(reason=reason):
                    fix = "the stacks are kept and can be predicted later"
                    key = ("not predicted", by + reason, fix)
                case _:
                    continue
            groups.setdefault(key, []).append(str(field.info.key))
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [{"state": key[0], "reason": key[1], "fix": key[2], "places": places} for key, places in ordered]


def _counts(counts: Counts) -> list[tuple[str, int, str]]:
    return [
        ("requested", counts.requested, "slices the experiment asked for"),
        ("captured", counts.captured, "slices the camera delivered"),
        ("predicted", counts.predicted, "went into a prediction"),
        ("refused", counts.refused, "the model declined, with a reason"),
        ("spooled", counts.spooled, "kept on disk, waiting for an engine"),
        ("measured only", counts.not_for_prediction, "fluorescence and such, not for prediction"),
        ("lost", counts.lost, "must be 0"),
    ]


def _balance(counts: Counts) -> str:
    """What is wrong with the counts, in words; empty if they add up."""
    used = counts.predicted + counts.refused + counts.spooled + counts.not_for_prediction
    if used + counts.lost != counts.captured and counts.lost == 0:
        return f"The counts do not add up: {counts.captured} slices captured, {used} accounted for."
    return ""


def _waterfall(latencies: Sequence[StageLatency]) -> dict[str, Any] | None:
    """Stages one after the other at their medians, each with the way to its 95th percentile."""
    finite = [one for one in latencies if math.isfinite(one.p50_ms) and math.isfinite(one.p95_ms)]
    starts = [0.0, *np.cumsum([one.p50_ms for one in finite]).tolist()]
    total = max([start + one.p95_ms for start, one in zip(starts, finite, strict=False)], default=0.0)
    if total <= 0:
        return None
    rows = [
        {
            "stage": one.stage,
            "what": _STAGES.get(one.stage, ""),
            "start": 1000 * start / total,
            "p50": max(1000 * one.p50_ms / total, 2.0),
            "p95": 1000 * one.p95_ms / total,
            "p50_text": duration(one.p50_ms),
            "p95_text": duration(one.p95_ms),
        }
        for start, one in zip(starts, finite, strict=False)
    ]
    after = sum(one.p50_ms for one in finite if one.stage != "expose")
    return {"rows": rows, "after": duration(after)}


def _run_time(seconds: float) -> str:
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def duration(ms: float) -> str:
    """Milliseconds for people."""
    if ms < 9.95:
        return f"{ms:.1f} ms"
    return f"{ms:.0f} ms" if ms < 999.5 else f"{ms / 1000:.2f} s"


def _decisions(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Decisions that led to an action, and those that did not; how many more there are than are shown."""
    every = [_decision(line) for line in lines if line.get("kind") in ("decision", "order")]
    acted = [line for line in every if line["what"] != "nothing"]
    idle = [line for line in every if line["what"] == "nothing"]
    return {
        "acted": acted[:_MOST_LINES],
        "idle": idle[:_MOST_LINES],
        "more": sum(max(len(some) - _MOST_LINES, 0) for some in (acted, idle)),
    }


def _decision(line: dict[str, Any]) -> dict[str, str]:
    key = line.get("key") or {}
    return {
        "time": str(line.get("time", ""))[11:19],
        "place": f"{key.get('position', '')}{' t' + str(key['time']) if key.get('time') else ''}",
        "rule": str(line.get("rule", "")),
        "what": str(line.get("what", "")),
        "done": str(line.get("done", "")),
        "why": str(line.get("why", "")),
    }


def _dose(decisions: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    sums: dict[str, dict[str, float]] = {}
    for line in decisions:
        if line.get("kind") == "dose":
            channels = sums.setdefault(str(line["position"]), {})
            channels[str(line["channel"])] = channels.get(str(line["channel"]), 0.0) + float(
                line["exposure_ms"]
            )
    names = list(dict.fromkeys(name for channels in sums.values() for name in channels))
    rows = [
        (position, [duration(channels[name]) if name in channels else "" for name in names])
        for position, channels in sums.items()
    ]
    return {"channels": names, "rows": rows} if rows else None
