"""A page that holds a run beside what other rules would have done: a map of its fields, all decisions."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from acq_isl.errors import StorageError
from acq_isl.files import write_whole

_MOST_MAPS = 24
_MOST_ROWS = 500


@dataclass(frozen=True, slots=True)
class MapField:
    """A field of a map: its middle on the stage in um, ``kept``, ``gained``, ``lost`` or empty, and why."""

    name: str
    time: int
    x_um: float
    y_um: float
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class ReplayPage:
    """What is shown; rows of ``table`` are what, before, after; of ``changes`` kind, rule, before, after."""

    run: str
    rules: str
    headline: str
    table: Sequence[tuple[str, str, str]]
    changes: Sequence[tuple[str, str, str, str]]
    fields: Sequence[MapField]
    notes: Sequence[str]


def write_replay_page(path: Path, page: ReplayPage) -> None:
    """One HTML file without scripts; StorageError if it cannot be written."""
    try:
        write_whole(path, render_replay(page))
    except OSError as error:
        what = f"the page {path} cannot be written"
        raise StorageError(what, got=str(error), fix="choose another place: --page FILE") from error


def render_replay(page: ReplayPage) -> str:
    """The page as HTML text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(
        loader=PackageLoader("acq_isl"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    by_time: dict[int, list[MapField]] = {}
    for field in page.fields:
        by_time.setdefault(field.time, []).append(field)
    maps = [_draw(time, some) for time, some in sorted(by_time.items())[:_MOST_MAPS]]
    return pages.get_template(
        "replay.html"
    ).render(
        page=page,
        maps=maps,
        labels=(),  # whose hues the style of reports defines
        more_maps=len(by_time) - len(maps),
        changes=page.changes[:_MOST_ROWS],
        more=max(len(page.changes) - _MOST_ROWS, 0),
    )


def _draw(time: int, fields: Sequence[MapField]) -> Mapping[str, object]:
    """Fields at their places, as squares in a picture whose longer side is 100."""
    columns, rows = [field.x_um for field in fields], [field.y_um for field in fields]
    pitch = min((_least_gap(columns), _least_gap(rows)), key=lambda gap: gap or float("inf")) or 1.0
    scale = 100 / (max(max(columns) - min(columns), max(rows) - min(rows)) + pitch)
    squares = [
        {"field": field, "x": (field.x_um - min(columns)) * scale, "y": (field.y_um - min(rows)) * scale}
        for field in fields
    ]
    size = {"width": (max(columns) - min(columns) + pitch) * scale, "side": pitch * scale * 0.92}
    return {"time": time, "squares": squares, "height": (max(rows) - min(rows) + pitch) * scale, **size}


def _least_gap(values: Sequence[float]) -> float:
    """Least distance between values that are more than 1 apart; 0 if none are."""
    gaps = (b - a for a, b in itertools.pairwise(sorted(set(values))))
    return min((gap for gap in gaps if gap > 1.0), default=0.0)
