"""The inside of a server process: serve until told to stop, and say where.

Its parent (`acq_isl.stream.process`) learns the address from a file and ends it by closing its standard
input, which also happens by itself when the parent dies.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from acq_isl.errors import EngineError
from acq_isl.stream.model_registry import ServedModel
from acq_isl.stream.server import EngineServer, ServerSettings

log = logging.getLogger(__name__)

_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Parent:
    """How a server process and the process that started it keep in touch.

    Parameters
    ----------
    announce : Path or None
        JSON file to write when ready: ``{"endpoint": ..., "pid": ...}``.
    stop_with_stdin : bool
        Stop when standard input is closed.
    """

    announce: Path | None = None
    stop_with_stdin: bool = False


def serve(
    models: Sequence[ServedModel],
    bind: str,
    settings: ServerSettings | None = None,
    parent: Parent | None = None,
) -> None:
    """Serve models until Ctrl-C, SIGTERM or the end of the parent; then close their engines.

    Lowers the priority of this process, so that an acquisition on the same machine wins.

    Parameters
    ----------
    models : sequence of ServedModel
    bind : str
        ZMQ address, such as ``tcp://127.0.0.1:5555``.
    settings : ServerSettings, optional
    parent : Parent, optional

    Raises
    ------
    ModelError
        Two models have one name.
    EngineError
        The address cannot be served, or the server's thread failed.
    """
    parent = parent or Parent()
    stop = threading.Event()
    with ExitStack() as cleanup:
        cleanup.enter_context(_signals(stop))
        lower_priority()
        server = cleanup.enter_context(EngineServer(models, bind, settings))
        log.info("serving %s at %s", ", ".join(model.name for model in models), server.endpoint)
        if parent.stop_with_stdin:
            threading.Thread(target=_watch_stdin, args=(stop,), name="acq-isl parent", daemon=True).start()
        if parent.announce is not None:
            _announce(parent.announce, server.endpoint)
        while not stop.wait(_LOOK_S):
            if not server.running:
                raise EngineError("the server's thread failed", fix="see the log above, and start it again")


def lower_priority() -> None:
    """Make this process give way to others; where that is not allowed, say so and go on."""
    import psutil

    try:
        process = psutil.Process()
        if sys.platform == "win32":
            process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        elif process.nice() < 10:
            process.nice(10)
    except (psutil.Error, OSError) as error:
        log.warning("the priority of the server could not be lowered: %s", error)


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Let signals set an event while serving; only the main thread can."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if sys.platform == "win32":
        numbers.append(signal.SIGBREAK)
    before = [(number, signal.signal(number, handle)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _watch_stdin(stop: threading.Event) -> None:
    """Set the event at the end of standard input: the parent closed it, or is gone."""
    # Straight from the descriptor: the buffered reader's lock would stop the interpreter from ending.
    with suppress(OSError):
        while os.read(0, 4096):
            continue
    stop.set()


def _announce(path: Path, endpoint: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({"endpoint": endpoint, "pid": os.getpid()}), encoding="utf-8")
    part.replace(path)
