"""Start a server as a child process, and stop it for sure."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from acq_isl.errors import EngineError
from acq_isl.files import write_whole
from acq_isl.protocols import SelectedEngine
from acq_isl.stream.child import ChildProcess, follow_parent
from acq_isl.stream.model_registry import ServedModel
from acq_isl.stream.server import EngineServer, ServerSettings

log = logging.getLogger(__name__)

_LOOK_S = 0.02
_STOP_LOOK_S = 0.2
_SILENT = "nothing on standard error"
SERVE = (sys.executable, "-m", "acq_isl", "serve")


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to run an engine's process, from the best down."""

    title: str
    options: tuple[str, ...] = ()
    model: str = ""  # instead of the models that it was made for


class EngineProcess:
    """An engine in its own process: it cannot slow down or crash the acquisition.

    ``model``: files to serve, each also as ``NAME=FILE``. ``bind``: as for `EngineServer`. Each model has
    ``startup_timeout_s`` until it must serve; the very first start with a wide model may take longer, so let
    ``acq-isl serve`` compile it before a microscope waits. ``command`` understands ``--model --bind --threads
    --announce --stop-with-stdin``. EngineError on entering: it ended (with its last words), or took too long.
    """

    def __init__(
        self,
        model: str | Path | Sequence[str | Path],
        *,
        bind: str = "tcp://127.0.0.1:*",
        threads: int | None = None,
        startup_timeout_s: float = 60.0,
        command: Sequence[str] = SERVE,
    ) -> None:
        self._models = tuple(map(str, [model] if isinstance(model, str | Path) else model))
        self._bind, self._threads = bind, threads
        self._startup_timeout_s = startup_timeout_s * len(self._models)
        self._command = tuple(command)
        self._endpoint = ""
        self.engines: tuple[str, ...] = ()
        """What could run its first model here, best first, as it said when it was started first."""
        self.why = ""
        """Why this engine, and how close it is to ONNX Runtime, as it said when it was started last."""
        self._child: ChildProcess | None = None
        self._stopped = False

    def __enter__(self) -> EngineProcess:
        self._stopped = False
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """Where it serves."""
        return self._endpoint

    @property
    def _model_arguments(self) -> list[str]:
        return [word for model in self._models for word in ("--model", model)]

    @property
    def pid(self) -> int | None:
        return None if self._child is None else self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.ended_with is None

    @property
    def ended_with(self) -> int | None:
        """Exit code of the process; None while it runs."""
        return None if self._child is None else self._child.ended_with

    def restart(self, rung: Rung | None = None) -> None:
        """End it, and start it again, perhaps in another way, where its clients find it; EngineError."""
        if self._child is not None:
            self._child.end()
        self._bind = self._endpoint
        self._start(rung)

    def stop(self) -> None:
        """End it for good, also one that `restart` waits for: first politely, then by force."""
        self._stopped = True
        if self._child is not None:
            self._child.end(politely=bool(self._endpoint))

    def _start(self, rung: Rung | None = None) -> None:
        model = ["--model", rung.model] if rung is not None and rung.model else self._model_arguments
        arguments = [*model, "--bind", self._bind, *(() if rung is None else rung.options)]
        if self._threads is not None:
            arguments += ["--threads", str(self._threads)]
        try:
            self._child = child = ChildProcess([*self._command, *arguments])
        except OSError as error:
            raise EngineError(
                f"the engine's process could not be started: {error}", wanted=" ".join(self._command)
            ) from error
        if self._stopped:  # by another thread, which did not see this child
            child.end(politely=False)
            raise EngineError("the engine was stopped while it was started")
        self._endpoint = self._wait_until_ready(child)

    def _wait_until_ready(self, child: ChildProcess) -> str:
        deadline_s = time.monotonic() + self._startup_timeout_s
        names = ", ".join(self._models)
        while (announcement := child.announcement) is None:
            if child.ended_with is not None:
                raise EngineError(
                    f"the engine for {names} ended with code {child.ended_with} before serving",
                    got=child.end() or _SILENT,
                    fix=f"run it by hand to see more: acq-isl serve {' '.join(self._model_arguments)}",
                )
            if time.monotonic() > deadline_s:
                raise EngineError(
                    f"the engine for {names} did not serve within {self._startup_timeout_s:g} s",
                    got=child.end(politely=False) or _SILENT,
                    fix="the first start with a model compiles it; let it do so before the run, and see what "
                    f"takes so long: acq-isl serve --verbose {' '.join(self._model_arguments)}",
                )
            time.sleep(_LOOK_S)
        said = json.loads(announcement)
        self.engines = self.engines or tuple(map(str, said.get("engines", ())))
        self.why = str(said.get("why", ""))
        return str(said["endpoint"])


@dataclass(frozen=True, slots=True)
class Parent:
    """How a server process and the process that started it keep in touch."""

    announce: Path | None = None  # JSON file to write when ready: ``{"endpoint": ..., "pid": ...}``
    stop_with_stdin: bool = False  # stop when standard input is closed


def serve(
    models: Sequence[ServedModel],
    bind: str,
    settings: ServerSettings | None = None,
    parent: Parent | None = None,
) -> None:
    """Serve models until Ctrl-C, SIGTERM or the end of the parent; then close their engines.

    Lowers the priority of this process, so that an acquisition on the same machine wins. ModelError if two
    models have one name, EngineError if the address cannot be served or the server's thread failed.
    """
    parent = parent or Parent()
    stop = threading.Event()
    with ExitStack() as cleanup:
        cleanup.enter_context(_signals(stop))
        lower_priority()
        server = cleanup.enter_context(EngineServer(models, bind, settings))
        log.info("serving %s at %s", ", ".join(model.name for model in models), server.endpoint)
        if parent.stop_with_stdin:
            follow_parent(stop.set)
        if parent.announce is not None:
            first = models[0].engine
            why = first.why if isinstance(first, SelectedEngine) else ""
            said = {"endpoint": server.endpoint, "pid": os.getpid(), "engines": models[0].rungs, "why": why}
            write_whole(parent.announce, json.dumps(said))
        while not stop.wait(_STOP_LOOK_S):
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
