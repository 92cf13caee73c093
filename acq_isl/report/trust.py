"""What a report says of trust: spot checks, what was only proposed, and means over all fields. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acq_isl.processing.sampling import MeanEstimate, horvitz_thompson, naive_mean
from acq_isl.record import Comparison, RunRecord
from acq_isl.rules.trusted import SpotScore, score_of
from acq_isl.stack import Prediction, StackKey

Line = Mapping[str, Any]
_CHECK, _GUARD, _RULE = "spot check", "bias guard", "rule"
_SHARES = {_CHECK: "spot_checks", _GUARD: "bias_guard"}
_OBJECTS = "objects in the stain"
_BRIGHT = "mean brightness of the stain, counts"


@dataclass(frozen=True, slots=True)
class CheckRow:
    """Spot checks of one label."""

    label: str
    checks: int
    text: str
    verdict: str


@dataclass(frozen=True, slots=True)
class EstimateRow:
    """A mean per field, as it was found where the run looked, and weighted."""

    what: str
    visited: int
    fields: int
    naive: str
    weighted: str
    with_predictions: str


@dataclass(frozen=True, slots=True)
class TrustSection:
    """Empty where an experiment asks for nothing of it."""

    checks: tuple[CheckRow, ...]
    estimates: tuple[EstimateRow, ...]
    guarded: int
    proposed: int
    command: str
    """How to adapt the model to what was stained in this run; empty without spot checks."""


def describe_trust(record: RunRecord) -> TrustSection | None:
    """None if there were neither spot checks, nor a bias guard, nor decisions that were only proposed."""
    lines = record.decisions
    asked = _asked(lines)
    proposed = sum(line.get("kind") == "proposed" for line in lines)
    if not any(asked.get(key) for key in _SHARES.values()) and not proposed:
        return None
    return TrustSection(
        tuple(_check_rows(lines)),
        tuple(_estimate_rows(record, asked)),
        sum(line.get("kind") == "guard" for line in lines),
        proposed,
        record.files.get("pairs for adapting the model", ""),
    )


def _asked(lines: Sequence[Line]) -> Line:
    """The experiment as the ledger has it."""
    runs = [line["experiment"] for line in lines if line.get("kind") == "run"]
    found: Line = runs[-1] if runs else {}
    return found


def _check_rows(lines: Sequence[Line]) -> list[CheckRow]:
    scores: dict[str, list[SpotScore]] = {}
    for line in lines:
        if line.get("kind") == "spot_check":
            score = score_of(line)
            scores.setdefault(score.label, []).append(score)
    fallen = {line["label"]: line["why"] for line in lines if line.get("kind") == "trust"}
    return [
        CheckRow(label, len(some), _sum_up(some), _verdict(fallen.get(label)))
        for label, some in scores.items()
    ]


def _verdict(why: str | None) -> str:
    return f"only proposed from then on: {why}" if why else "acted upon"


def _sum_up(scores: Sequence[SpotScore]) -> str:
    known = [score.r for score in scores if math.isfinite(score.r)]
    mean = sum(known) / len(known) if known else math.nan
    sums = [sum(getattr(score, name) for score in scores) for name in ("found", "true", "matched")]
    return SpotScore("", mean, *sums).text


def _estimate_rows(record: RunRecord, asked: Line) -> list[EstimateRow]:
    """For every label that was stained, what it says of all fields."""
    shares = {why: (asked.get(key) or {}).get("share", 0.0) for why, key in _SHARES.items()}
    if not any(shares.values()):
        return []
    causes: dict[StackKey, set[str]] = {}
    for line in record.decisions:
        if line.get("kind") == "visit":
            causes.setdefault(StackKey(**line["key"]), set()).add(line["why"])
    by_label: dict[str, list[Comparison]] = {}
    for comparison in record.comparisons:
        by_label.setdefault(comparison.label, []).append(comparison)
    rows, presets = [], _presets(asked)
    for label, some in by_label.items():
        known = []
        for each in some:
            own = {why: p for why, p in shares.items() if each.channel in presets[why] or not presets[why]}
            known.append((each, _probability(each, causes, own)))
        sure = [(each, p) for each, p in known if p > 0]
        if any(each.found or each.true for each, _ in sure):
            objects = [float(each.true) for each, _ in sure]
            rows.append(_row(record, f"{label}: {_OBJECTS}", sure, objects, label))
        bright = [float(each.measured.mean()) for each, _ in sure]
        rows.append(_row(record, f"{label}: {_BRIGHT}", sure, bright))
    return rows


def _presets(asked: Line) -> dict[str, set[str]]:
    """Which presets spot checks and bias guard each stain with."""
    truth = (asked.get("spot_checks") or {}).get("truth") or asked.get("truth") or {}
    channels = (asked.get("revisit") or {}).get("channels") or ()
    revisited = {each if isinstance(each, str) else each["config"] for each in channels}
    return {_CHECK: set(truth.values()), _GUARD: revisited}


def _probability(each: Comparison, causes: Mapping[StackKey, set[str]], shares: Mapping[str, float]) -> float:
    """With which a field was stained: 1 where a rule wanted it, which chance has nothing to do with."""
    key = each.info.key
    why = causes.get(StackKey(key.time, key.position, each.channel), set())
    if _RULE in why:
        return 1.0
    return 1.0 - math.prod(1.0 - share for share in shares.values())


def _row(
    record: RunRecord,
    what: str,
    visited: Sequence[tuple[Comparison, float]],
    values: Sequence[float],
    counted: str = "",
) -> EstimateRow:
    fields, pi = len(record.fields), [p for _, p in visited]
    expected = _counts(record, counted) if counted else {}
    here = [expected.get(each.info.key, math.nan) for each, _ in visited]
    with_predictions = "-"
    if len(expected) == fields and all(map(math.isfinite, here)):
        mean = sum(expected.values()) / fields
        with_predictions = _text(horvitz_thompson(values, pi, fields, here, mean))
    return EstimateRow(
        what,
        len(values),
        fields,
        _text(naive_mean(values)),
        _text(horvitz_thompson(values, pi, fields)) if values else "-",
        with_predictions,
    )


def _counts(record: RunRecord, label: str) -> dict[StackKey, float]:
    """Objects of a label that were predicted, by field, where a rule counted them."""
    predicted = {field.info.key for field in record.fields if isinstance(field.outcome, Prediction)}
    found: dict[StackKey, float] = {}
    for line in record.decisions:
        if line.get("kind") == "outcome" and line["state"] == "predicted":
            for measured in line["measured"]:
                name = f"number of objects in {label} (predicted)"
                if measured["name"] == name and measured["value"] is not None:
                    found[StackKey(**line["key"])] = float(measured["value"])
    return {key: value for key, value in found.items() if key in predicted}


def _text(estimate: MeanEstimate) -> str:
    if not math.isfinite(estimate.mean):
        return "-"
    if not math.isfinite(estimate.low):
        return f"{estimate.mean:.3g} (too few for an interval)"
    return f"{estimate.mean:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"
