"""The curves of a report: a chart for each measurement over time, as SVG. Pure."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from acq_isl.processing.chart import Drawing, Line, draw_chart
from acq_isl.rules.series import Curve

_HUES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#8a6d00", "#3a87c8")
_MOST_LINES = 80
_SCALES = {"fraction": (100.0, "% of the area"), "um": (1.0, "µm")}
_TEXT = 'font-family="system-ui, sans-serif" font-size="12" fill="#565b64"'


@dataclass(frozen=True, slots=True)
class Chart:
    """A measurement over time: the picture as SVG text, itself as a ``data:`` address, and its key."""

    name: str
    unit: str
    svg: str
    address: str
    key: tuple[tuple[str, str], ...]
    """Hue and name of each line that stands out."""
    others: int
    missing: int
    """Time points at which a line has no value."""


def draw_curves(curves: Sequence[Curve]) -> list[Chart]:
    """Wells stand out, or else up to six fields; none of a run with one time point."""
    names = dict.fromkeys(curve.name for curve in curves if len(curve.points) > 1)
    return [_chart(name, [curve for curve in curves if curve.name == name]) for name in names]


def _chart(name: str, curves: Sequence[Curve]) -> Chart:
    scale, unit = _SCALES.get(curves[0].unit, (1.0, curves[0].unit))
    wells = [curve for curve in curves if curve.level == "well"]
    strong = (wells or list(curves))[: len(_HUES)]
    rest = [curve for curve in curves if curve not in strong][: _MOST_LINES - len(strong)]
    lines = [_line(curve, scale, curve in strong) for curve in (*strong, *rest)]
    key = tuple((hue, curve.place) for hue, curve in zip(_HUES, strong, strict=False))
    svg = _svg(draw_chart(lines), {place: hue for hue, place in key}, f"{name} over time, {unit}")
    address = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode("ascii")
    missing = sum(not math.isfinite(y) for line in lines for y in line.y)
    return Chart(name, unit, svg, address, key, len(curves) - len(strong), missing)


def _line(curve: Curve, scale: float, strong: bool) -> Line:
    points = curve.points
    y, doubt = (tuple(scale * value for value in some) for some in _columns(curve))
    return Line(curve.place, tuple(point.elapsed_s for point in points), y, doubt, strong)


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    return [point.value for point in curve.points], [point.doubt for point in curve.points]


def _svg(drawing: Drawing, hues: dict[str, str], title: str) -> str:
    left, _, right, bottom = drawing.frame
    size = f'viewBox="0 0 {drawing.width:g} {drawing.height:g}"'
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{escape(title)}">']
    parts.append(f"<g {_TEXT}>")
    for y, text in drawing.y_ticks:
        parts.append(f'<path stroke="#d9dad6" d="M{left} {y}H{right}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{text}</text>')
    for x, text in drawing.x_ticks:
        parts.append(f'<text x="{x}" y="{bottom + 20}" text-anchor="middle">{text}</text>')
    parts.append("</g>")
    for drawn in drawing.lines:
        hue = hues.get(drawn.line.name, "#8a8f98") if drawn.line.strong else "#8a8f98"
        width = 2.2 if drawn.line.strong else 0.8
        parts += [f'<path fill="{hue}" fill-opacity=".2" d="{_path(band)}Z"/>' for band in drawn.bands]
        stroke = f'stroke="{hue}" stroke-width="{width}" stroke-linecap="round"'
        parts += [f'<path fill="none" {stroke} d="{_path(piece)}"/>' for piece in drawn.pieces]
        parts += [f'<path fill="none" stroke="#a11212" d="{_cross(*at)}"/>' for at in drawn.missing]
    return "".join([*parts, "</svg>"])


def _path(shape: Sequence[tuple[float, float]]) -> str:
    # A point alone is a line of no length, which a round cap makes a dot.
    return "M" + "L".join(f"{x} {y}" for x, y in shape) + ("h0" if len(shape) == 1 else "")


def _cross(x: float, y: float) -> str:
    return f"M{x - 3} {y - 3}l6 6m0 -6l-6 6"
