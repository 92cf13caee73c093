"""How fast the napari window is: ``python benchmarks/window.py`` on a desktop, or under xvfb-run.

One window, one real feed, 512 x 512 previews with three labels. Tables:

* first picture: from telling the first prediction to the end of the frame that shows it, in a window that is
  open and waits, once per round.
* updates: predictions told 30 times a second; how many a second were drawn, with the whole map of nine fields
  and with one field filling the canvas; processor time of the window's process for each.

Drawing on the processor (Mesa's llvmpipe, as under xvfb-run) is what bounds the second table; the line below
says what draws.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from acq_isl.events import LabelStyle, PlannedField, Predicted, RunStarted, Seen
from acq_isl.rules.measurements import Measured
from acq_isl.stack import Prediction, Slice, StackInfo, StackKey, StackRequest
from acq_isl.view.feed import Feed
from acq_isl.view.feed.previews import preview_of
from acq_isl.view.napari.window import watch

SIDE, SIZE_UM, COLUMNS = 512, 0.3, 3
LABELS = (LabelStyle("nuclei", "#56B4E9"), LabelStyle("dendrites", "#E69F00"), LabelStyle("axons", "#CC79A7"))
Z_UM = tuple(1.5 * n for n in range(13))
EVENTS_PER_S = 30.0


def request(number: int) -> StackRequest:
    row, column = divmod(number, COLUMNS)
    key = StackKey(0, f"A{number}", "Phase")
    fov = SIDE * SIZE_UM
    return StackRequest(key, column * fov, row * fov, Z_UM, "Channel", "Phase", 10.0)


class Pictures:
    """Noise to show, made beforehand."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self._light = [random.integers(500, 3000, (SIDE, SIDE)).astype(np.uint16) for _ in range(8)]
        self._mean = [random.random((3, SIDE, SIDE), np.float32) ** 4 for _ in range(8)]
        self._spread = np.full((3, SIDE, SIDE), 0.05, np.float32)

    def events(self, number: int, turn: int) -> tuple[Seen, Predicted]:
        one = request(number)
        info = StackInfo(one.key, Z_UM, (SIDE, SIDE), SIZE_UM, one.x_um, one.y_um)
        labels = tuple(style.name for style in LABELS)
        found = Prediction(info, labels, self._mean[turn % 8], self._spread, "0" * 64, "noise", "none")
        measured = (Measured("noise", float(turn), "objects", 1.0),)
        plane = Slice(info, 0, self._light[turn % 8], 0.0)
        return preview_of(plane, predict=True), Predicted.of(found, measured, 1.0)


class Window:
    def __init__(self, folder: Path, size: tuple[int, int] = (1500, 940)) -> None:
        from qtpy.QtWidgets import QApplication

        self.live = watch(folder)
        self.viewer = self.live._viewer
        self.viewer.window.resize(*size)
        self.app: Any = QApplication.instance()
        self.canvas = self.viewer.window._qt_viewer.canvas._scene_canvas
        self.frames: list[float] = []
        self.canvas.events.draw.connect(lambda _: self.frames.append(time.perf_counter()), position="last")

    def until(self, holds: Callable[[], bool], longest_s: float) -> bool:
        end = time.perf_counter() + longest_s
        while time.perf_counter() < end:
            if holds():
                return True
            self.app.processEvents()
            time.sleep(0.0005)
        return False

    def renderer(self) -> str:
        from vispy import gloo

        self.canvas.set_current()
        return str(gloo.gl.glGetParameter(gloo.gl.GL_RENDERER))


def started(folder: Path, fields: int) -> RunStarted:
    fov = SIDE * SIZE_UM
    planned = tuple(PlannedField.of(request(number)) for number in range(fields))
    return RunStarted("noise", "now", str(folder), "none", "noise", LABELS, planned, (fov, fov))


def first_picture(window: Window, root: Path, pictures: Pictures, turn: int) -> float:
    folder = root / f"first{turn}"
    folder.mkdir()
    with Feed(folder) as feed:
        window.live.connect(str(folder))
        feed.handle(started(folder, COLUMNS * COLUMNS))
        window.until(lambda: window.live._scene is not None and window.live._model.status is not None, 20)
        window.until(lambda: False, 0.5)
        before = window.live.drawn
        light, predicted = pictures.events(4, turn)
        feed.handle(light)
        began = time.perf_counter()
        feed.handle(predicted)

        def shown() -> bool:
            one = window.live._model.shown
            there = one is not None and one.predicted is not None and window.live.drawn > before
            return there and bool(window.frames) and window.frames[-1] > began + 0.001

        window.frames.clear()
        if not window.until(shown, 20):
            raise SystemExit("the prediction was never drawn")
        return window.frames[-1] - began


def updates(window: Window, root: Path, pictures: Pictures, fields: int, seconds: float) -> tuple[float, ...]:
    folder = root / f"updates{fields}"
    folder.mkdir()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=emit, args=(folder, fields), daemon=True)
    process.start()
    window.live.connect(str(folder))
    try:
        if not window.until(lambda: window.live._model.newest is not None, 60):
            raise SystemExit("nothing arrived")
        window.until(lambda: False, 3.0)
        frames, drawn = len(window.frames), window.live.drawn
        used, began = time.process_time(), time.perf_counter()
        window.until(lambda: False, seconds)
        taken, used = time.perf_counter() - began, time.process_time() - used
    finally:
        process.kill()
        process.join()
    updates = min(len(window.frames) - frames, window.live.drawn - drawn)
    return updates / taken, used / max(updates, 1) * 1e3, used / taken


def emit(folder: Path, fields: int) -> None:
    """A run's feed, in a process of its own."""
    pictures = Pictures()
    with Feed(folder) as feed:
        feed.handle(started(folder, fields))
        began, turn = time.perf_counter(), 0
        while True:
            for event in pictures.events(turn % fields, turn):
                feed.handle(event)
            turn += 1
            time.sleep(max(began + turn / EVENTS_PER_S - time.perf_counter(), 0.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--size", type=int, nargs=2, default=(1500, 940), help="of the window in pixels")
    arguments = parser.parse_args()
    pictures = Pictures()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        window = Window(root, tuple(arguments.size))
        lines = [f"{window.renderer()}, canvas {window.canvas.size[0]} x {window.canvas.size[1]}"]
        firsts = [first_picture(window, root, pictures, turn) for turn in range(arguments.rounds)]
        median, worst = statistics.median(firsts) * 1e3, max(firsts) * 1e3
        lines.append(f"first picture: median {median:.0f} ms, worst {worst:.0f} ms")
        lines.append("shown                updates/s   cpu ms/update   cores used")
        for fields, shown in ((COLUMNS * COLUMNS, "map of nine fields"), (1, "one field")):
            rate, cost_ms, cores = updates(window, root, pictures, fields, arguments.seconds)
            lines.append(f"{shown:20s} {rate:9.1f} {cost_ms:15.0f} {cores:12.2f}")
        window.live.close()
        window.viewer.close()
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
