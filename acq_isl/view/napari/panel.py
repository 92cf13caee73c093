"""The panel beside the picture: state of the run, numbers of a field, buttons. Qt's main thread only."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from acq_isl.processing.display import Uint8Image, reduced, stretched, tinted
from acq_isl.view.napari.marks import hatch
from acq_isl.view.napari.model import FieldView
from acq_isl.view.napari.plots import Plots

_EDGE_PX = 88


@dataclass(frozen=True, slots=True, eq=False)
class Thumbnail:
    """A picture (y, x, 3) uint8 and what it shows."""

    caption: str
    pixels: Uint8Image


def beside(one: FieldView, hues: Mapping[str, str]) -> list[Thumbnail]:
    """Predicted labels, then measured channels; nothing while no fluorescence was measured.

    Predicted ones have a hatched border and say so below; measured ones have neither.
    """
    if one.predicted is None or not one.measured:
        return []
    predicted = [
        _predicted(plane, label, hue)
        for label, hue in hues.items()
        if (plane := one.predicted.plane(label)) is not None
    ]
    measured = []
    for channel, imaged in sorted(one.measured.items()):
        gray = stretched(reduced(imaged.pixels, _EDGE_PX), imaged.event.low, imaged.event.high)
        measured.append(Thumbnail(f"{channel} (measured)", np.repeat(gray[..., None], 3, axis=-1)))
    return [*predicted, *measured]


def _predicted(mean: Uint8Image, label: str, hue: str) -> Thumbnail:
    gray = reduced(mean, _EDGE_PX).astype(np.uint8)
    marks = hatch((gray.shape[0], gray.shape[1]))
    marks.paint(gray)
    return Thumbnail(f"{label} (predicted)", tinted(gray, hue))


_WIDTH_PX = 330
_SURE_MS = 4000


Pressed = Callable[[str], None]


class Panel:
    """Widgets, and what they show; `widget` is the one to dock.

    ``connect`` gets the folder of a run. ``look``: ``"newest"`` follows the run or stops to, ``"map"`` and
    ``"field"`` zoom, ``"contrast"`` resets. ``command``: ``"go_to"``, ``"pause"``, ``"resume"``, ``"stop"``.
    """

    def __init__(self, connect: Pressed, look: Pressed, command: Pressed) -> None:
        from qtpy.QtCore import QTimer
        from qtpy.QtWidgets import QGridLayout, QScrollArea, QVBoxLayout, QWidget

        self._connect, self._look, self._command = connect, look, command
        inside = QWidget()
        self._rows = QVBoxLayout(inside)
        self._add_connection()
        self._head, self._numbers = self._words(), self._words()
        self._add_look()
        self._add_commands()
        self._target, self._answer = self._words(), self._words()
        self._title("Field")
        self._field = self._words()
        self._pictures = QGridLayout()
        self._rows.addLayout(self._pictures)
        self.plots = Plots()
        self._rows.addWidget(self.plots.widget)
        self._title("Decisions, newest first")
        self._decisions = self._words()
        self._rows.addStretch(1)
        self.widget = QScrollArea()
        self.widget.setWidgetResizable(True)
        self.widget.setWidget(inside)
        self.widget.setMinimumWidth(_WIDTH_PX)
        self._sure = QTimer(self.widget)
        self._sure.setSingleShot(True)
        self._sure.timeout.connect(self._unsure)
        self.enable(())

    def status(self, head: str, numbers: str) -> None:
        """State of the run and its numbers, plain text."""
        _show(self._head, f"<b>{escape(head)}</b>")
        _show(self._numbers, escape(numbers))

    def field(self, words: str, decisions: str) -> None:
        """What is known of the field shown, and the newest decisions, as HTML."""
        _show(self._field, words)
        _show(self._decisions, decisions)

    def answer(self, text: str) -> None:
        """What became of the last command or attempt to connect."""
        _show(self._answer, escape(text))

    def target(self, text: str) -> None:
        """Where "go there" leads; empty if nowhere."""
        _show(self._target, escape(text or "Click on the picture to choose a place to go to."))
        self._buttons["go_to"].setEnabled(bool(text) and self._buttons["stop"].isEnabled())

    def following(self, yes: bool) -> None:
        """Whether the newest field is shown."""
        self._buttons["newest"].setChecked(yes)

    def folder(self, folder: str) -> None:
        """Which folder is looked at."""
        self._folder.setText(folder)

    def enable(self, kinds: Container[str]) -> None:
        """Which commands can be given."""
        for kind in ("pause", "resume", "stop"):
            self._buttons[kind].setEnabled(kind in kinds)
        if "stop" not in kinds:
            self._buttons["go_to"].setEnabled(False)

    def pictures(self, shown: Sequence[Thumbnail]) -> None:
        """Small pictures of a field, three in a row."""
        from qtpy.QtGui import QImage, QPixmap
        from qtpy.QtWidgets import QLabel

        while item := self._pictures.takeAt(0):
            if (widget := item.widget()) is not None:
                widget.deleteLater()
        for place, one in enumerate(shown):
            rows, columns, _ = one.pixels.shape
            image = QImage(one.pixels.tobytes(), columns, rows, 3 * columns, QImage.Format.Format_RGB888)
            picture, caption = QLabel(), QLabel(one.caption)
            picture.setPixmap(QPixmap.fromImage(image))
            picture.setAccessibleName(one.caption)
            caption.setWordWrap(True)
            self._pictures.addWidget(picture, place // 3 * 2, place % 3)
            self._pictures.addWidget(caption, place // 3 * 2 + 1, place % 3)

    def _add_connection(self) -> None:
        from qtpy.QtWidgets import QHBoxLayout, QLineEdit, QPushButton

        row = QHBoxLayout()
        self._folder = QLineEdit()
        self._folder.setPlaceholderText("folder of a run, or of all runs")
        self._folder.returnPressed.connect(lambda: self._connect(self._folder.text()))
        button = QPushButton("Follow run")
        button.clicked.connect(lambda: self._connect(self._folder.text()))
        row.addWidget(self._folder, 1)
        row.addWidget(button)
        self._rows.addLayout(row)

    def _add_look(self) -> None:
        looks = {
            "newest": ("Follow the newest field", "Show each field as it comes"),
            "map": ("Whole map", "Zoom out to all fields"),
            "field": ("This field", "Zoom in to the field shown"),
            "contrast": ("Automatic contrast", "Forget the contrast limits set by hand"),
        }
        self._buttons = self._button_rows(looks, self._look)
        self._buttons["newest"].setCheckable(True)

    def _add_commands(self) -> None:
        commands = {
            "go_to": ("Go there", "Drive the stage to the place chosen on the picture, and pause"),
            "pause": ("Pause", "Acquire nothing more after the stack being acquired"),
            "resume": ("Go on", "Continue after a pause"),
            "stop": ("Stop…", "End the run in order; what was captured is kept"),
        }
        self._buttons |= self._button_rows(commands, self._press_command)

    def _press_command(self, kind: str) -> None:
        # Stop asks once more, in the button itself: a dialog would hide the picture.
        if kind == "stop" and not self._sure.isActive():
            self._buttons["stop"].setText("Click again to stop the run")
            self._sure.start(_SURE_MS)
            return
        self._unsure()
        self._command(kind)

    def _unsure(self) -> None:
        self._sure.stop()
        self._buttons["stop"].setText("Stop…")

    def _button_rows(self, texts: Mapping[str, tuple[str, str]], pressed: Pressed) -> dict[str, Any]:
        from qtpy.QtWidgets import QGridLayout, QPushButton

        grid, found = QGridLayout(), {}
        for place, (kind, (text, tip)) in enumerate(texts.items()):
            button = QPushButton(text)
            button.setToolTip(tip)
            button.clicked.connect(lambda _=False, kind=kind: pressed(kind))
            grid.addWidget(button, place // 2, place % 2)
            found[kind] = button
        self._rows.addLayout(grid)
        return found

    def _title(self, text: str) -> None:
        self._words().setText(f"<h3>{text}</h3>")

    def _words(self) -> Any:
        from qtpy.QtCore import Qt
        from qtpy.QtWidgets import QLabel

        label = QLabel()
        label.setWordWrap(True)
        label.setTextFormat(Qt.TextFormat.RichText)
        label.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self._rows.addWidget(label)
        return label


def _show(label: Any, text: str) -> None:
    if label.text() != text:  # laying out rich text anew takes milliseconds
        label.setText(text)
