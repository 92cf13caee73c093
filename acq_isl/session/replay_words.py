"""A comparison of rules in words and rows, for the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from acq_isl.report.replay_page import MapField, ReplayPage
from acq_isl.session.replay import CHOICE, Change, Comparison, Course, count
from acq_isl.stack import StackKey, StackRequest

_ORDER = ("kept", "lost", "gained")  # of what several rules say about a field the last is drawn


def make_page(folder: Path, rules: Path, found: Comparison) -> ReplayPage:
    """What the page about a comparison shows."""
    told = [f"{number} {kind}" for kind, number in count(found.changes).items() if number]
    return ReplayPage(
        run=folder.resolve().name,
        rules=rules.name,
        headline=f"Decisions with these rules: {', '.join(told) or 'none, as in the run'}.",
        table=_table(found),
        changes=[_row(change) for change in found.changes],
        fields=_map(found.changes, found.fields),
        notes=found.notes,
    )


def _table(found: Comparison) -> list[tuple[str, str, str]]:
    columns: dict[str, Callable[[Course], object]] = {
        "fields chosen": lambda course: sum(act.rule == CHOICE for act in course.acts),
        "actions of triggers": lambda course: sum(act.rule != CHOICE for act in course.acts),
        "only proposed": lambda course: course.proposed,
        "stacks for them": lambda course: sum(len(act.stacks) for act in course.acts),
        "their light": lambda course: f"{course.light_ms / 1000:.2f} s",
        "their time": _time,
    }
    if found.label and math.isfinite(found.before.recall):
        name = f"recall: share of the cells with {found.label} that they image"
        columns[name] = lambda course: f"{course.recall:.0%}"
    return [(what, str(say(found.before)), str(say(found.after))) for what, say in columns.items()]


def _time(course: Course) -> str:
    return f"about {course.time_s:.0f} s" if math.isfinite(course.time_s) else "not known"


def _row(change: Change) -> tuple[str, str, str, str]:
    rule = change.rule if change.rule == CHOICE else f"'{change.rule}'"
    before, after = ("" if key is None else name_of(key) for key in (change.before, change.after))
    return change.kind, f"{rule}: {change.what}", before, after


def name_of(key: StackKey) -> str:
    return f"{key.position} t{key.time}" if key.time else key.position


def _map(changes: tuple[Change, ...], fields: Mapping[StackKey, StackRequest]) -> list[MapField]:
    kinds: dict[StackKey, str] = {}
    texts: dict[StackKey, list[str]] = {}
    for change in changes:
        for key in dict.fromkeys((change.before, change.after)):
            if key is not None:
                end = "gained" if key == change.after else "lost"
                kind = "kept" if change.before == change.after else end
                kinds[key] = max(kinds.get(key, "kept"), kind, key=_ORDER.index)
                texts.setdefault(key, []).append(f"{change.rule}: {change.what} ({kind})")
    return [
        MapField(
            name_of(key),
            key.time,
            request.x_um,
            request.y_um,
            kinds.get(key, ""),
            "; ".join(texts.get(key, ())),
        )
        for key, request in fields.items()
    ]
