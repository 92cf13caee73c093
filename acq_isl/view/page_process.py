"""Start the page's server beside a run, and end it with the run. It never holds the run up."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from acq_isl.events import News, RunStarted
from acq_isl.view.web.server import Announcement, PageSettings, read_announcement

log = logging.getLogger(__name__)

_STARTUP_S = 30.0
_STOP_S = 5.0
_LOOK_S = 0.05


class PageProcess:
    """Serves the page of a run as soon as the run has a folder.

    Parameters
    ----------
    settings : PageSettings
    ready : callable
        Told once, on another thread, where the page is; or why it is not served, as text.
    """

    def __init__(self, settings: PageSettings, ready: Callable[[Announcement | str], None]) -> None:
        self._settings, self._ready = settings, ready
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="acq-isl-page-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        if self._process is not None:
            _end(self._process)
        if self._thread is not None:
            self._thread.join(timeout=_STOP_S)
        self._folder.cleanup()

    @property
    def serving(self) -> bool:
        """Whether the page can be opened."""
        return self._process is not None and self._process.poll() is None and self._announced.exists()

    def tell(self, news: News) -> None:
        """Hear of a run's news: its start is what this waits for."""
        if isinstance(news, RunStarted) and self._process is None:
            self._start(Path(news.folder))

    @property
    def _announced(self) -> Path:
        return Path(self._folder.name) / "page.json"

    def _start(self, folder: Path) -> None:
        settings = self._settings
        command = [sys.executable, "-m", "acq_isl", "web", str(folder), "--host", settings.host]
        command += ["--announce", str(self._announced), "--stop-with-stdin"]
        if settings.port is not None:
            command += ["--port", str(settings.port)]
        if settings.certificate is not None and settings.key is not None:
            command += ["--tls", str(settings.certificate), str(settings.key)]
        words = Path(self._folder.name) / "stderr.txt"
        windows = sys.platform == "win32"
        try:
            with words.open("wb") as stderr:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    start_new_session=not windows,  # Ctrl-C is for the run
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) if windows else 0,
                    env={**os.environ, "PYTHONUTF8": "1", "COLUMNS": "200"},
                )
        except OSError as error:
            self._ready(f"the page is not served: {error}")
            return
        self._thread = threading.Thread(
            target=self._wait, args=(self._process, words), name="acq-isl-page", daemon=True
        )
        self._thread.start()

    def _wait(self, process: subprocess.Popen[bytes], words: Path) -> None:
        deadline_s = time.monotonic() + _STARTUP_S
        while not self._announced.exists() and not self._closing.is_set():
            if process.poll() is not None or time.monotonic() > deadline_s:
                said = words.read_text(encoding="utf-8", errors="replace").strip()
                self._ready(f"the page is not served; the run goes on. {said}")
                return
            self._closing.wait(_LOOK_S)
        if self._announced.exists():
            self._ready(read_announcement(self._announced))


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        with suppress(OSError):  # it is gone already
            process.stdin.close()
    for force in (None, process.terminate, process.kill):
        if force is not None:
            force()
        try:
            process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            log.warning("the page's process %d does not end; insisting", process.pid)
        else:
            return
