"""Runs in a napari viewer: takes what the feed has, draws what changed. Qt's main thread only.

A timer looks at the feed some sixty times a second. The reader keeps only the newest of everything, so a
window that is slow, frozen or hidden catches up at once and holds nothing back.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from acq_isl.commands import Command, GoTo, Pause, Resume, Stop
from acq_isl.errors import AcqIslError
from acq_isl.events import OVER
from acq_isl.view.feed.address import read_address, running_folder
from acq_isl.view.feed.reader import FeedReader
from acq_isl.view.feed.requests import Answer
from acq_isl.view.feed.source import FinishedRun, RunSource
from acq_isl.view.napari.model import FieldView, LiveModel
from acq_isl.view.napari.panel import Panel, beside
from acq_isl.view.napari.scene import Scene, coordinates, on_click
from acq_isl.view.napari.style import decision_words, field_words, short_state, status_lines

_TICK_MS = 15
_MESSAGES = 64  # only the newest state is drawn, so taking many at once costs little
_WORDS_EVERY_S = 0.25
_WORDS_AT_LEAST_S = 1.0
_LOOK_AGAIN_S = 2.0


OpenFinished = Callable[[Path], FinishedRun | None]


class LiveView:
    """Shows runs in a viewer until closed."""

    def __init__(
        self,
        viewer: Any,
        now: Callable[[], float] = time.monotonic,
        open_finished: OpenFinished = lambda folder: None,
    ) -> None:
        self._viewer, self._now, self._open_finished = viewer, now, open_finished
        self._model = LiveModel()
        self._scene: Scene | None = None
        self._source: RunSource | None = None
        self._folder: Path | None = None
        self._run = ""
        self._opened = ExitStack()
        self._place: tuple[float, float, FieldView | None] | None = None
        self._asked: Future[Answer] | None = None
        self._sending = ThreadPoolExecutor(1, thread_name_prefix="acq-isl-command")
        self._words_s = self._looked_s = float("-inf")
        self._words_due = True
        self._thumbnails_of: tuple[object, ...] = ()
        self._plotted: tuple[str, int] = ("", 0)
        self.drawn = 0
        """Ticks that drew a new picture."""
        self.panel = Panel(self.connect, self.look, self.command)
        self._pressed = on_click(self.click)
        viewer.mouse_drag_callbacks.append(self._pressed)
        self._panel_gone = False
        self._timer = self._ticking()
        self.panel.widget.destroyed.connect(self._deleted)

    def close(self) -> None:
        """Stop looking; the layers stay in the viewer. Qt may have deleted the panel and the timer before."""
        if not self._panel_gone:
            self._timer.stop()
        if self._pressed in self._viewer.mouse_drag_callbacks:
            self._viewer.mouse_drag_callbacks.remove(self._pressed)
        self._sending.shutdown(wait=False, cancel_futures=True)
        self._opened.close()
        self._source = None

    def connect(self, folder: str) -> None:
        """Follow the newest run in a folder, now or as soon as one starts there."""
        self._folder = Path(folder or ".").expanduser()
        self._opened.close()
        self._source, self._run, self._looked_s = None, "", float("-inf")
        self.panel.folder(str(self._folder))
        self._find_run()

    def follow(self, source: RunSource) -> None:
        """Show what comes from an open source, which stays the caller's to close."""
        self._source, self._model, self._place = source, LiveModel(), None

    def look(self, at: str) -> None:
        """Follow the newest field or stop to, or change what is seen of the picture; as `Panel` says."""
        if at == "newest":
            shown = self._model.shown
            follow = self._model.selected is not None or shown is None
            self._model.select(None if follow or shown is None else shown.name)
            self._words_due = True
        elif self._scene is not None:
            scene = self._scene
            {"map": scene.show_map, "field": scene.show_field, "contrast": scene.automatic_contrast}[at]()

    def command(self, kind: str) -> None:
        """Send the run a command; the answer is shown when it is there."""
        command = self._command(kind)
        if self._source is None or self._asked is not None or command is None:
            return
        self.panel.answer("asking the run …")
        self._asked = self._sending.submit(self._source.send, command, by="operator, napari")

    def click(self, x: float, y: float) -> None:
        """The user has clicked a place of the map, in micrometres."""
        self._place = coordinates(self._model, x, y)
        if self._place is not None and self._place[2] is not None:
            self._model.select(self._place[2].name)
        if self._scene is not None:
            self._scene.mark((x, y) if self._place is not None else None)
        self._words_due = True

    def tick(self) -> None:
        """Take what is new and draw what changed."""
        self._find_run()
        if self._source is not None:
            for message in self._source.take(_MESSAGES):
                self._model.take(message)
        changes = self._model.changes()
        if changes.plan:
            if self._scene is not None:
                self._scene.close()
            self._scene = Scene(self._viewer, self._model, self._now)
        if self._scene is not None:
            self.drawn += self._scene.draw(changes)
        if self._asked is not None and self._asked.done():
            self.panel.answer(self._asked.result().text)
            self._asked = None
        self._words_due |= changes.words
        waited_s = self._now() - self._words_s
        if waited_s >= (_WORDS_EVERY_S if self._words_due else _WORDS_AT_LEAST_S):
            self._words_s, self._words_due = self._now(), False
            self._write()

    def _deleted(self) -> None:
        self._panel_gone = True
        self.close()

    def _ticking(self) -> Any:
        from qtpy.QtCore import QTimer

        timer = QTimer(self.panel.widget)
        timer.setInterval(_TICK_MS)
        timer.timeout.connect(self.tick)
        timer.start()
        return timer

    def _find_run(self) -> None:
        """Connect to the newest run of the folder, if none is going on that is shown already."""
        over = self._model.status is not None and self._model.status.state in OVER
        if self._folder is None or (self._source is not None and self._source.alive and not over):
            return
        if self._now() - self._looked_s < _LOOK_AGAIN_S:
            return
        self._looked_s = self._now()
        try:
            address = read_address(running_folder(self._folder))
        except AcqIslError as error:
            if self._source is None:
                self._show_finished(self._folder, str(error))
            return
        if address.run == self._run:
            return
        self._opened.close()
        self._run = address.run
        self.follow(self._opened.enter_context(FeedReader(address)))
        self.panel.answer("")

    def _show_finished(self, folder: Path, otherwise: str) -> None:
        """Show a run that is over, if that is what the folder holds."""
        try:
            finished = self._open_finished(folder)
        except AcqIslError as error:
            self.panel.answer(str(error))
            return
        if finished is None:
            self.panel.answer(f"{otherwise} This window waits for it.")
        else:
            self.follow(self._opened.enter_context(finished))
            self.panel.answer("")

    def _command(self, kind: str) -> Command | None:
        if kind == "go_to":
            return None if self._place is None else GoTo(x_um=self._place[0], y_um=self._place[1])
        commands: dict[str, Command] = {"pause": Pause(), "resume": Resume(), "stop": Stop()}
        return commands[kind]

    def _write(self) -> None:
        """Bring all words up to date."""
        status, source = self._model.status, self._source
        alive = source is not None and source.alive
        head, numbers = status_lines(status, alive) if source is not None else ("no run is followed", "")
        self.panel.status(head, numbers)
        self.panel.field(field_words(self._model.shown), decision_words(self._model.decisions))
        self.panel.following(self._model.selected is None)
        self._plot()
        state = status.state if status is not None and alive else ""
        self.panel.enable({"running": ("pause", "stop"), "paused": ("resume", "stop")}.get(state, ()))
        self.panel.target(_target(self._place))
        if self._scene is None:
            return
        self._scene.write(short_state(status, alive))
        shown = self._model.shown
        if shown is not None:
            seen = (shown.name, shown.predicted, *shown.measured.values())
            if seen != self._thumbnails_of:
                self._thumbnails_of = seen
                self.panel.pictures(beside(shown, self._scene.hues))

    def _plot(self) -> None:
        """Curves, if one has changed or another field is looked at."""
        shown = self._model.shown
        place = shown.name if shown is not None else ""
        stamp = (place, self._model.curve_changes)
        if stamp != self._plotted:
            self._plotted = stamp
            self.panel.plots.show(self._model.curves, place)


def _target(place: tuple[float, float, FieldView | None] | None) -> str:
    if place is None:
        return ""
    x, y, one = place
    return f"Go to x {x:.1f} um, y {y:.1f} um" + (f" (in {one.name})" if one is not None else "")


_PROBE_S = 60
_PROBE = """
from qtpy.QtGui import QGuiApplication, QOffscreenSurface, QOpenGLContext
app = QGuiApplication(["acq-isl"])
surface = QOffscreenSurface(); surface.create()
context = QOpenGLContext()
raise SystemExit(0 if context.create() and context.makeCurrent(surface) else 3)
"""
_NO_OPENGL = 3
_INSTALL_OPENGL = (
    "install the graphics driver, or Mesa for drawing on the processor "
    "(Debian: libgl1-mesa-dri; Windows remote desktop: QT_OPENGL=software)"
)
_INSTALL_QT = "on Debian: apt-get install libxcb-cursor0 libxkbcommon-x11-0 libxcb-icccm4 libxcb-keysyms1"
_INSTEAD = "or look at the run in a browser: acq-isl run --web"


def view(folder: Path, open_finished: OpenFinished = lambda folder: None) -> None:
    """Open a window on the newest run in a folder, or the next one there; returns when the user closes it.

    ``open_finished`` opens a run that is over, if a folder is that of one. AcqIslError: napari is not
    installed, or there is no display or no OpenGL for its window.
    """
    live = watch(folder, open_finished=open_finished)
    import napari

    napari.run()
    live.close()


def watch(folder: Path | str, viewer: Any = None, open_finished: OpenFinished = lambda folder: None) -> Any:
    """Show the newest run in a folder in a napari viewer, by default a new one, and go on.

    For notebooks (``%gui qt`` first). AcqIslError: napari is not installed, or no window can be opened here.
    """
    if viewer is None:
        check()
    import napari

    viewer = napari.Viewer(title="acq-isl") if viewer is None else viewer
    live = LiveView(viewer, open_finished=open_finished)
    viewer.window.add_dock_widget(live.panel.widget, name="acq-isl", area="right")
    live.connect(str(folder))
    return live


def check() -> None:
    """Whether a window can be opened here; AcqIslError with what to do about it.

    Qt ends the whole process when it finds no display, so another process tries first.
    """
    missing = [name for name in ("napari", "qtpy") if importlib.util.find_spec(name) is None]
    if missing:
        raise AcqIslError(
            f"the window needs {' and '.join(missing)}", fix=f'pip install "acq-isl[napari]", {_INSTEAD}'
        )
    x_window = sys.platform.startswith("linux") and not os.environ.get("QT_QPA_PLATFORM")
    if x_window and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise AcqIslError(
            "there is no display to open a window on",
            wanted="DISPLAY or WAYLAND_DISPLAY",
            got="neither is set",
            fix=f"start it on the desktop itself, or through 'ssh -X', {_INSTEAD}",
        )
    command = [sys.executable, "-c", _PROBE]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=False)
    except subprocess.TimeoutExpired as error:
        what = f"the display did not answer within {_PROBE_S} s"
        raise AcqIslError(what, fix=f"restart the desktop session, {_INSTEAD}") from error
    if tried.returncode != 0:
        no_opengl = tried.returncode == _NO_OPENGL
        words = " ".join(line for line in tried.stderr.splitlines() if line.strip())
        raise AcqIslError(
            "there is no OpenGL on this display" if no_opengl else "Qt cannot open a window here",
            got=None if no_opengl else words[-500:] or f"exit status {tried.returncode}",
            fix=f"{_INSTALL_OPENGL if no_opengl else _INSTALL_QT}, {_INSTEAD}",
        )


def live_panel(viewer: Any = None) -> Any:
    """Panel (a QWidget) that follows a run in a viewer, by default the current one.

    napari calls it without arguments from Plugins > acq-isl live.
    """
    import napari

    return LiveView(napari.current_viewer() if viewer is None else viewer).panel.widget
