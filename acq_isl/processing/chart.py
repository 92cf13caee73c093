"""Lines over time become shapes: for the report, which is SVG, and for the window, which is Qt. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Shape = tuple[tuple[float, float], ...]
_NICE = (1.0, 2.0, 5.0, 10.0)
_SPANS = ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "d"))
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 10.0, 8.0, 30.0


@dataclass(frozen=True, slots=True)
class Line:
    """Values over seconds, NaN where there is none, and one SD of each, NaN if unknown."""

    name: str
    x_s: tuple[float, ...]
    y: tuple[float, ...]
    doubt: tuple[float, ...]
    strong: bool = False


@dataclass(frozen=True, slots=True)
class DrawnLine:
    """Pieces of a line, bands of its doubt if it is strong, and points where a value is missing."""

    line: Line
    pieces: tuple[Shape, ...]
    bands: tuple[Shape, ...]
    missing: Shape


@dataclass(frozen=True, slots=True)
class Drawing:
    """A chart of ``width`` by ``height``, all in its pixels; ticks are places with words."""

    width: float
    height: float
    lines: tuple[DrawnLine, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    frame: tuple[float, float, float, float]
    """Left, top, right and bottom of what the axes enclose."""


def draw_chart(lines: Sequence[Line], width: float = 520.0, height: float = 220.0) -> Drawing:
    """Draw lines on common axes, strong ones on top."""
    left, top, right, bottom = frame = (_LEFT, _TOP, width - _RIGHT, height - _BOTTOM)
    x_low, x_high = _span([x for line in lines for x in line.x_s])
    reach = [end for line in lines for y, d in _reach(line) for end in (_below(y, d), y + d)]
    y_ticks = ticks(*_span(reach))
    y_low, y_high = min(y_ticks[0], *reach, math.inf), max(y_ticks[-1], *reach, -math.inf)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / max(x_high - x_low, 1e-9)
        up = (y - y_low) / max(y_high - y_low, 1e-9)
        return round(left + across * (right - left), 1), round(bottom - up * (bottom - top), 1)

    drawn = []
    for line in sorted(lines, key=lambda line: line.strong):
        runs = _runs(line)
        pieces = tuple(tuple(at(x, y) for x, y, _ in run) for run in runs)
        bands = tuple(
            tuple([at(x, y + d) for x, y, d in run] + [at(x, _below(y, d)) for x, y, d in reversed(run)])
            for run in runs
            if line.strong and all(math.isfinite(d) for *_, d in run)
        )
        missing = [at(x, y_low) for x, y in zip(line.x_s, line.y, strict=True) if not math.isfinite(y)]
        drawn.append(DrawnLine(line, pieces, bands, tuple(missing)))
    seconds, unit = next(span for span in reversed(_SPANS) if span[0] <= max(x_high / 2, 1.0))
    x_ticks = [tick for tick in ticks(x_low / seconds, x_high / seconds) if tick * seconds <= x_high]
    return Drawing(
        width,
        height,
        tuple(drawn),
        tuple((at(tick * seconds, 0)[0], f"{tick:g} {unit}") for tick in x_ticks if tick * seconds >= x_low),
        tuple((at(0, tick)[1], f"{tick:g}") for tick in y_ticks),
        frame,
    )


def ticks(low: float, high: float, about: int = 4) -> tuple[float, ...]:
    """Round numbers from at most ``low`` to at least ``high``."""
    rough = (high - low) / about
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * decade for nice in _NICE if nice * decade >= rough * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return tuple(float(f"{number * step:.6g}") for number in range(first, last + 1))


def _below(y: float, doubt: float) -> float:
    """The lower end of a band: what cannot be below 0 is not drawn below 0."""
    return max(y - doubt, min(y, 0.0))


def _reach(line: Line) -> list[tuple[float, float]]:
    """Values with their doubts, as far as they are drawn."""
    pairs = zip(line.y, line.doubt, strict=True)
    known = [(y, d) for y, d in pairs if math.isfinite(y)]
    return [(y, d if line.strong and math.isfinite(d) else 0.0) for y, d in known]


def _runs(line: Line) -> list[list[tuple[float, float, float]]]:
    """Stretches without a missing value."""
    runs: list[list[tuple[float, float, float]]] = [[]]
    for x, y, doubt in zip(line.x_s, line.y, line.doubt, strict=True):
        if math.isfinite(y):
            runs[-1].append((x, y, doubt))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Least and largest, never the same."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5 * abs(low), high + 0.5 * abs(high) or 1.0)
