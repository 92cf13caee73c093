"""A child process of ours: it says when it is ready, and never outlives this one."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

_STOP_S = 5.0
_TAIL_BYTES = 2000


class ChildProcess:
    """A command that understands ``--announce FILE --stop-with-stdin``; OSError if it cannot be started."""

    def __init__(self, command: Sequence[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="acq-isl-child-")
        self._announced, self._stderr = (Path(self._folder.name) / name for name in ("ready.json", "stderr"))
        windows = sys.platform == "win32"
        try:
            with self._stderr.open("wb") as stderr:
                self._process = subprocess.Popen(
                    [*command, "--announce", str(self._announced), "--stop-with-stdin"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=stderr,
                    # Its own group: Ctrl-C at the terminal must reach the acquisition only, which still
                    # wants predictions and viewers while it stops.
                    start_new_session=not windows,
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) if windows else 0,
                    env={**os.environ, "PYTHONUTF8": "1", "COLUMNS": "200"},
                )
        except OSError:
            self._folder.cleanup()
            raise
        self.pid = self._process.pid

    @property
    def ended_with(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    @property
    def announcement(self) -> bytes | None:
        """What it wrote when it was ready; None until then."""
        return self._announced.read_bytes() if self._announced.exists() else None

    def end(self, *, politely: bool = True) -> str:
        """End it, first by closing its input unless it does not listen yet; returns its last words."""
        process = self._process
        if process.stdin is not None:
            with suppress(OSError):  # it is gone already
                process.stdin.close()
        for force in (None if politely else process.terminate, process.terminate, process.kill):
            if force is not None:
                force()
            try:
                process.wait(timeout=_STOP_S)
                break
            except subprocess.TimeoutExpired:
                log.warning("the process %d does not end; insisting", process.pid)
        said = self._stderr.read_bytes()[-_TAIL_BYTES:] if self._stderr.exists() else b""
        self._folder.cleanup()
        return said.decode("utf-8", "replace").strip()


def follow_parent(end: Callable[[], None]) -> None:
    """Call ``end``, on its own thread, once standard input is closed: the parent wants that, or is gone."""

    def watch() -> None:
        # Straight from the descriptor: the buffered reader's lock would stop the interpreter from ending.
        with suppress(OSError):
            while os.read(0, 4096):
                continue
        end()

    threading.Thread(target=watch, name="acq-isl parent", daemon=True).start()
