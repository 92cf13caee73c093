"""Curves over time in the panel: a chart for each measurement, drawn by Qt. Qt's main thread only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from acq_isl.events import CurveChanged
from acq_isl.processing.chart import Drawing, Line, draw_chart
from acq_isl.rules.series import Curve

_WIDTH, _HEIGHT = 310, 150
_HUES = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00")
_MOST_LINES = 80
_SCALES = {"fraction": (100.0, "% of the area"), "um": (1.0, "µm")}


def lines_of(curves: Iterable[Curve], place: str) -> dict[str, tuple[str, list[Line]]]:
    """Lines by measurement, with its unit: wells and the field ``place`` stand out. Pure."""
    found: dict[str, tuple[str, list[Line]]] = {}
    for curve in curves:
        scale, unit = _SCALES.get(curve.unit, (1.0, curve.unit))
        points = curve.points
        values, doubts = ([scale * v for v in some] for some in _columns(curve))
        strong = curve.level == "well" or curve.place == place
        line = Line(curve.place, tuple(p.elapsed_s for p in points), tuple(values), tuple(doubts), strong)
        found.setdefault(curve.name, (unit, []))[1].append(line)
    return {name: (unit, _few(lines)) for name, (unit, lines) in found.items()}


def _columns(curve: Curve) -> tuple[list[float], list[float]]:
    return [point.value for point in curve.points], [point.doubt for point in curve.points]


def _few(lines: list[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: not line.strong)[:_MOST_LINES]


class Plots:
    """A column of charts; `widget` is the one to lay out."""

    def __init__(self) -> None:
        from qtpy.QtWidgets import QVBoxLayout, QWidget

        self.widget = QWidget()
        self._rows = QVBoxLayout(self.widget)
        self._rows.setContentsMargins(0, 0, 0, 0)
        self._shown: dict[str, tuple[Any, Any]] = {}
        self.widget.setVisible(False)

    def show(self, curves: Mapping[tuple[str, str, str], CurveChanged], place: str) -> None:
        """Draw what is known; nothing before there are two time points."""
        several = any(len(curve.points) > 1 for curve in curves.values())
        self.widget.setVisible(several)
        for name, (unit, lines) in (lines_of(curves.values(), place) if several else {}).items():
            caption, picture = self._shown.get(name) or self._add(name)
            strong = [line.name for line in lines if line.strong]
            caption.setText(f"<b>{name}</b>, {unit}" + (f": {', '.join(strong)}" if strong else ""))
            picture.setPixmap(paint(draw_chart(lines, _WIDTH, _HEIGHT)))
            picture.setAccessibleName(f"{name} over time")

    def _add(self, name: str) -> tuple[Any, Any]:
        from qtpy.QtWidgets import QLabel

        caption, picture = QLabel(), QLabel()
        caption.setWordWrap(True)
        for label in (caption, picture):
            self._rows.addWidget(label)
        self._shown[name] = caption, picture
        return caption, picture


def paint(drawing: Drawing) -> Any:
    """A chart as a QPixmap."""
    from qtpy.QtCore import QPointF, QRectF, Qt
    from qtpy.QtGui import QColor, QPainter, QPen, QPixmap, QPolygonF

    picture = QPixmap(round(drawing.width), round(drawing.height))
    picture.fill(QColor("#1b1d21"))
    painter = QPainter(picture)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    left, _, right, bottom = drawing.frame
    font = painter.font()
    font.setPixelSize(11)
    painter.setFont(font)
    for y, text in drawing.y_ticks:
        painter.setPen(QColor("#363b44"))
        painter.drawLine(QPointF(left, y), QPointF(right, y))
        painter.setPen(QColor("#a9afb9"))
        painter.drawText(QRectF(0, y - 8, left - 5, 16), Qt.AlignmentFlag.AlignRight, text)
    for x, text in drawing.x_ticks:
        painter.drawText(QRectF(x - 40, bottom + 6, 80, 16), Qt.AlignmentFlag.AlignHCenter, text)
    number = 0
    for drawn in drawing.lines:
        hue = QColor(_HUES[number % len(_HUES)] if drawn.line.strong else "#6e7681")
        number += drawn.line.strong
        veil = QColor(hue)
        veil.setAlpha(60)
        for band in drawn.bands:
            painter.setPen(Qt.PenStyle.NoPen)
            painter.setBrush(veil)
            painter.drawPolygon(QPolygonF([QPointF(*at) for at in band]))
        painter.setPen(QPen(hue, 2.0 if drawn.line.strong else 1.0))
        for piece in drawn.pieces:
            if len(piece) == 1:
                painter.drawPoint(QPointF(*piece[0]))
            painter.drawPolyline(QPolygonF([QPointF(*at) for at in piece]))
        painter.setPen(QColor("#ff9c92"))
        for x, y in drawn.missing:
            painter.drawText(QRectF(x - 6, y - 8, 12, 16), Qt.AlignmentFlag.AlignHCenter, "x")
    painter.end()
    return picture
