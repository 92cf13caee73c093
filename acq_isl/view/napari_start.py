"""Opening a window on a run: by itself, from a notebook, or inside a napari that is open already."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from acq_isl.errors import AcqIslError

_PROBE_S = 60
_PROBE = """
from qtpy.QtGui import QGuiApplication, QOffscreenSurface, QOpenGLContext
app = QGuiApplication(["acq-isl"])
surface = QOffscreenSurface(); surface.create()
context = QOpenGLContext()
raise SystemExit(0 if context.create() and context.makeCurrent(surface) else 3)
"""
_INSTEAD = "or look at the run in a browser: acq-isl run --web"


def view(folder: Path) -> None:
    """Open a window on the newest run in a folder and return when the user closes it.

    Parameters
    ----------
    folder : Path
        A run folder, or the folder in which runs are made. Without a run there the window waits for one.

    Raises
    ------
    AcqIslError
        napari is not installed, or there is no display or no OpenGL for its window.
    """
    live = watch(folder)
    import napari

    napari.run()
    live.close()


def watch(folder: Path | str, viewer: Any = None) -> Any:
    """Show the newest run in a folder in a viewer, and go on; for notebooks (``%gui qt`` first).

    Parameters
    ----------
    folder : Path or str
    viewer : napari.Viewer, optional
        A new one by default.

    Returns
    -------
    LiveView

    Raises
    ------
    AcqIslError
        napari is not installed, or a new window cannot be opened here.
    """
    if viewer is None:
        check()
    import napari

    from acq_isl.view.napari.window import LiveView

    viewer = napari.Viewer(title="acq-isl") if viewer is None else viewer
    live = LiveView(viewer)
    viewer.window.add_dock_widget(live.panel.widget, name="acq-isl", area="right")
    live.connect(str(folder))
    return live


def check() -> None:
    """Whether a window can be opened here.

    Qt ends the whole process when it finds no display, so another process tries first.

    Raises
    ------
    AcqIslError
        With what to do about it.
    """
    missing = [name for name in ("napari", "qtpy") if importlib.util.find_spec(name) is None]
    if missing:
        raise AcqIslError(
            f"the window needs {' and '.join(missing)}", fix=f"pip install 'acq-isl[napari]', {_INSTEAD}"
        )
    x_window = sys.platform.startswith("linux") and not os.environ.get("QT_QPA_PLATFORM")
    if x_window and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise AcqIslError(
            "there is no display to open a window on",
            wanted="DISPLAY or WAYLAND_DISPLAY",
            got="neither is set",
            fix=f"start it on the desktop itself, or through 'ssh -X', {_INSTEAD}",
        )
    _try()


def _try() -> None:
    command = [sys.executable, "-c", _PROBE]
    try:
        tried = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise AcqIslError(
            f"the display did not answer within {_PROBE_S} s", fix=f"restart the desktop session, {_INSTEAD}"
        ) from error
    if tried.returncode == 3:
        raise AcqIslError(
            "there is no OpenGL on this display",
            fix="install the graphics driver, or Mesa for drawing on the processor "
            f"(Debian: libgl1-mesa-dri; Windows remote desktop: QT_OPENGL=software), {_INSTEAD}",
        )
    if tried.returncode != 0:
        words = [line for line in tried.stderr.splitlines() if line.strip()]
        raise AcqIslError(
            "Qt cannot open a window here",
            got=" ".join(words)[-500:] or f"exit status {tried.returncode}",
            fix="on Debian: apt-get install libxcb-cursor0 libxkbcommon-x11-0 libxcb-icccm4 libxcb-keysyms1, "
            f"{_INSTEAD}",
        )
