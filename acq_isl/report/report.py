"""The report of a run: one HTML file for a microscopist that needs no network and runs no script."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, assert_never

from acq_isl import scorecard
from acq_isl.errors import StorageError
from acq_isl.files import write_whole
from acq_isl.processing.statistics import Amplitude
from acq_isl.record import Comparison, Counts, FieldRecord, RunRecord, StageLatency
from acq_isl.report.curves import draw_curves
from acq_isl.report.figures import draw_chosen, draw_mosaic, hues, rank_order, tops
from acq_isl.report.trust import describe_trust
from acq_isl.rules.measurements import readable
from acq_isl.scorecard import HeldAgainstStain, TrustFacts, sentences, trust_sentences
from acq_isl.stack import Prediction, Refusal, StackInfo, StackKey, Unpredicted

_MOST_LINES = 500
_DECISIONS = ("decision", "proposed", "late", "order", "engine")


def write_report(path: Path | str, record: RunRecord) -> None:
    """Write a run as one HTML file, which replaces the one that may be there.

    Pictures are reduced so that the file stays near 5 MB also for large runs; the data keep every pixel.
    """
    try:
        write_whole(Path(path), render(record))
    except OSError as error:
        raise StorageError(
            f"the report {path} cannot be written",
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
    words = (describe_place, describe_state, describe_objects, weigh, readable, duration, score, sentences)
    pages.filters.update({function.__name__: function for function in words})
    colors, brightest = hues(record), tops(record)
    return pages.get_template("report.html").render(
        record=record,
        headline=headline(record),
        far=trust_sentences(trust_facts(record)),
        charts=draw_curves(record.curves),
        duration=_run_time(record.duration_s),
        labels=[(name, color, model_of(record, name)) for name, color in colors.items()],
        models={comparison.label: model_of(record, comparison.label) for comparison in record.comparisons},
        mosaic=draw_mosaic(record.fields, colors, brightest),
        chosen=draw_chosen(record, colors, brightest),
        balance=_balance(record.counts),
        waterfall=_waterfall(record.latencies),
        missing=_group_missing(record.fields),
        ranking=sorted(record.fields, key=rank_order),
        decisions=_decisions(record.decisions),
        dose=_dose(record.decisions),
        trust=describe_trust(record),
        seal=str(record.decisions[-1].get("sha256", "")) if record.decisions else "",
    )


def headline(record: RunRecord) -> str:
    """What the run came to, in sentences a microscopist understands; what is missing comes first."""
    missing = f"{record.shortfall[0].upper()}{record.shortfall[1:]}. " if record.shortfall else ""
    return missing + _tell_fields(record)


def _tell_fields(record: RunRecord) -> str:
    fields = len(record.fields)
    if fields == 0:
        return "No field was imaged."
    predicted = sum(isinstance(field.outcome, Prediction) for field in record.fields)
    chosen = sum(field.chosen for field in record.fields)
    text = f"{_were(fields, 'field')} imaged without stain."
    if predicted == 0:
        return f"{text} No labels were predicted: {_group_missing(record.fields)[0]['reason'].rstrip('.')}."
    where = ("it" if fields == 1 else "all of them") if predicted == fields else f"{predicted} of them"
    models = len(set(record.label_models.values()))
    who, they = (f"{models} models", "they") if models > 1 else ("A model", "it")
    text += f" {who} predicted {_and(list(hues(record)))} in {where}."
    if chosen:
        text += f" {_were(chosen, 'field')} chosen by what {they} predicted."
    visited = {comparison.info.key for comparison in record.comparisons}
    if visited:
        same = visited == {field.info.key for field in record.fields if field.chosen}
        which = ("It was" if chosen == 1 else "They were") if same else _were(len(visited), "field")
        text += f" {which} then imaged in fluorescence{_agreement(record)}."
    return text


def trust_facts(record: RunRecord) -> TrustFacts:
    """What a record says of how far its predictions can be trusted."""
    made = [field.outcome for field in record.fields if isinstance(field.outcome, Prediction)]
    by_label: dict[str, list[Comparison]] = {}
    for comparison in record.comparisons:
        if math.isfinite(comparison.pearson):
            by_label.setdefault(comparison.label, []).append(comparison)
    return TrustFacts(
        fields=len(record.fields),
        predicted=len(made),
        refused=sum(isinstance(field.outcome, Refusal) for field in record.fields),
        chosen=sum(field.chosen for field in record.fields),
        stained=tuple(_held(label, some) for label, some in by_label.items()),
        warned=sum(bool(prediction.warnings) for prediction in made),
        scorecard=record.scorecard,
    )


def _held(label: str, some: Sequence[Comparison]) -> HeldAgainstStain:
    scores = [comparison.pearson for comparison in some]
    floors = [comparison.floor for comparison in some if math.isfinite(comparison.floor)]
    floor = statistics.fmean(floors) if floors else math.nan
    amplitude = Amplitude.mean(comparison.amplitude for comparison in some)
    return HeldAgainstStain(label, len(some), min(scores), max(scores), floor, amplitude)


def _agreement(record: RunRecord) -> str:
    by_label: dict[str, list[Comparison]] = {}
    for comparison in record.comparisons:
        if math.isfinite(comparison.pearson):
            by_label.setdefault(comparison.label, []).append(comparison)
    spans = []
    for label, some in by_label.items():
        floors = [comparison.floor for comparison in some if math.isfinite(comparison.floor)]
        beside = f" (contrast alone {_span(floors)})" if floors else ""
        spans.append(f"r = {_span([comparison.pearson for comparison in some])} for {label}{beside}")
    return f": prediction and stain agree with {_and(spans)}" if spans else ""


def _span(values: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{end(values):.2f}" for end in (min, max)))


def _were(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)} {'was' if number == 1 else 'were'}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def model_of(record: RunRecord, label: str) -> str:
    """The model of a label, if there are several and the label does not say."""
    model = record.label_models.get(label, "")
    return "" if label.startswith(f"{model}/") else model


def describe_place(info: StackInfo) -> str:
    return f"{name_field(info.key)}, x {info.x_um:.0f} µm, y {info.y_um:.0f} µm"


def name_field(key: StackKey) -> str:
    """A field with its time point, counted from 1; the first one of a run goes without saying."""
    return f"{key.position}, time {key.time + 1}" if key.time else key.position


def describe_state(field: FieldRecord) -> str:
    if isinstance(field.outcome, Prediction):
        return "predicted in part" if field.without else "predicted"
    return "refused" if isinstance(field.outcome, Refusal) else "not predicted"


def describe_objects(comparison: Comparison) -> str:
    """How many separate objects agree; empty without any."""
    if not math.isfinite(comparison.f1):
        return ""
    cut = f"{comparison.found} in the prediction, {comparison.true} in the stain"
    return f"Bright spots that overlap: F1 = {comparison.f1:.2f} (cut from both pictures alike: {cut})."


def weigh(comparison: Comparison) -> str:
    """What the correlation of prediction and stain says, beside floor, ceiling, and how bright it is."""
    return scorecard.weigh(comparison.pearson, comparison.floor, comparison.ceiling, comparison.amplitude)


def score(value: float) -> str:
    """A score with two digits, or a dash for none."""
    return f"{value:.2f}" if math.isfinite(value) else "-"


def _group_missing(fields: Sequence[FieldRecord]) -> list[dict[str, Any]]:
    """Fields that a model did not predict by its reason, the most frequent first."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for field in fields:
        for outcome in field.without or (field.outcome,):
            by = f"{outcome.model}: " if field.without else ""
            match outcome:
                case Refusal(reason=reason, fix=fix):
                    key = ("refused", by + reason, fix)
                case Unpredicted(reason=reason):
                    key = ("not predicted", by + reason, "the stacks are kept and can be predicted later")
                case Prediction():
                    continue
                case _:
                    assert_never(outcome)
            groups.setdefault(key, []).append(name_field(field.info.key))
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [{"state": key[0], "reason": key[1], "fix": key[2], "places": places} for key, places in ordered]


def _balance(counts: Counts) -> str:
    """What is wrong with the counts; empty if they add up."""
    what = f"{counts.captured} slices captured, {counts.sum} accounted for"
    return f"The counts do not add up: {what}." if counts.open else ""


def _waterfall(latencies: Sequence[StageLatency]) -> dict[str, Any] | None:
    """Stages one after the other at their medians, each with the way to its 95th percentile, in 1/1000."""
    stages = [stage for stage in latencies if math.isfinite(stage.p50_ms) and math.isfinite(stage.p95_ms)]
    starts = [sum(earlier.p50_ms for earlier in stages[:number]) for number in range(len(stages))]
    total = max([start + stage.p95_ms for start, stage in zip(starts, stages, strict=True)], default=0.0)
    if total <= 0:
        return None
    rows = [
        {
            "latency": stage,
            "start": 1000 * start / total,
            "p50": max(1000 * stage.p50_ms / total, 2.0),
            "p95": 1000 * stage.p95_ms / total,
        }
        for start, stage in zip(starts, stages, strict=True)
    ]
    return {"rows": rows}


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
    decided = [line for line in lines if line.get("kind") in _DECISIONS]
    acted = [line for line in decided if line.get("what") != "nothing"]
    idle = [line for line in decided if line.get("what") == "nothing"]
    more = sum(max(len(some) - _MOST_LINES, 0) for some in (acted, idle))
    return {"acted": acted[:_MOST_LINES], "idle": idle[:_MOST_LINES], "more": more}


def _dose(decisions: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Milliseconds of light by position and channel; None without any."""
    sums: dict[str, dict[str, float]] = {}
    for line in decisions:
        if line.get("kind") == "dose":
            position, channel = str(line["position"]), str(line["channel"])
            channels = sums.setdefault(position, {})
            channels[channel] = channels.get(channel, 0.0) + float(line["exposure_ms"])
    names = dict.fromkeys(name for channels in sums.values() for name in channels)
    return {"channels": list(names), "positions": sums} if sums else None
