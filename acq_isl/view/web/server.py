"""Serve the page of a run, in a process of its own: whatever happens here, the run does not notice."""

from __future__ import annotations

import ipaddress
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from acq_isl.base import StrictModel
from acq_isl.errors import ExperimentError
from acq_isl.events import Event, RunStarted
from acq_isl.stream.child import ChildProcess, follow_parent
from acq_isl.view.feed.address import new_token, read_address
from acq_isl.view.feed.reader import FeedReader
from acq_isl.view.feed.source import FinishedRun, OpenableSource

if TYPE_CHECKING:
    from acq_isl.view.web.form import FormAnswers, FormQuestions, Written

DEFAULT_PORT = 8765
_STARTUP_S = 30.0
_STOP_S = 5.0
_LOOK_S = 0.05
_MAX_FRAME_BYTES = 64 << 10
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class PageSettings:
    """Where the page is served: https with a PEM certificate and its key.

    Beyond this computer everybody needs a token. Without a port it is 8765, or any free one if that is taken.
    """

    host: str = "127.0.0.1"
    port: int | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def local(self) -> bool:
        """Whether only this computer reaches it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def address(self, port: int, token: str = "") -> str:
        """What to open in a browser; what follows '#' stays in the browser and is never logged."""
        names = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname(), "::1": "[::1]"}
        name = names.get(self.host, self.host)
        scheme = "https" if self.certificate is not None else "http"
        return f"{scheme}://{name}:{port}/" + (f"#token={token}" if token else "")


class Announcement(StrictModel):
    """Addresses of a page: to look, and to give commands as well."""

    read: str
    operate: str


def serve_page(
    folder: Path,
    settings: PageSettings,
    announce: Callable[[Announcement], None],
    with_parent: bool = False,
    finished: FinishedRun | None = None,
) -> None:
    """Serve the page of the run in a folder until Ctrl-C; ``announce`` gets its addresses once it is there.

    A run that is over is shown as ``finished`` has it; without, the run must be going on.

    ``with_parent`` ends it when standard input is closed, as it is when the parent process ends in whatever
    way. ExperimentError: no run there, no extra [web], the port is taken, or TLS files are wrong.
    """
    try:
        import uvicorn

        from acq_isl.view.web.app import Access, Page
    except ImportError as error:
        raise _without_extra(error) from error
    source, tokens = _source(folder, finished)
    listening = _listen(settings)
    port = listening.getsockname()[1]
    access = Access(
        read_token=None if settings.local else tokens[0],
        operator_token=tokens[1],
        hosts=_LOOPBACK_NAMES | {settings.host} if settings.local else None,
    )
    with listening, source as reader:
        config = uvicorn.Config(
            Page(reader, folder, access).app(),
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="websockets-sansio",
            ws_max_size=_MAX_FRAME_BYTES,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=1,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
        )
        server = uvicorn.Server(config)
        _check_tls(config, settings)
        if with_parent:
            follow_parent(lambda: setattr(server, "should_exit", True))
        read = settings.address(port, "" if settings.local else tokens[0])
        announce(Announcement(read=read, operate=settings.address(port, tokens[1])))
        server.run(sockets=[listening])


def serve_form(
    questions: FormQuestions,
    write: Callable[[FormAnswers], Written],
    announce: Callable[[str], None],
    port: int | None = None,
) -> bool:
    """Serve a form on this computer until it was answered, or Ctrl-C; whether a file was written.

    ``announce`` gets its address. ExperimentError: no extra [web], or the port is taken.
    """
    try:
        import uvicorn

        from acq_isl.view.web.app import Access
        from acq_isl.view.web.form import FormPage
    except ImportError as error:
        raise _without_extra(error) from error
    settings, token = PageSettings(port=port), new_token()
    answered: list[bool] = []

    def done() -> None:
        answered.append(True)
        server.should_exit = True  # once the answer is sent

    access = Access(new_token(), token, _LOOPBACK_NAMES)
    app = FormPage(questions, write, access, done).app()
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    with _listen(settings) as listening:
        announce(settings.address(listening.getsockname()[1], token))
        server.run(sockets=[listening])
    return bool(answered)


def _without_extra(error: ImportError) -> ExperimentError:
    return ExperimentError(
        "the web page needs packages that are not installed",
        got=str(error),
        fix='pip install "acq-isl[web]"',
    )


def _source(folder: Path, finished: FinishedRun | None) -> tuple[OpenableSource, tuple[str, str]]:
    """What to show, and the tokens to read and to operate."""
    if finished is not None:
        return finished, (new_token(), new_token())
    address = read_address(folder)
    return FeedReader(address), (address.read_token, address.operator_token)


def _listen(settings: PageSettings) -> socket.socket:
    """A bound socket; opened here, so that a taken port is an error in words."""
    port = DEFAULT_PORT if settings.port is None else settings.port
    try:
        return _bind(settings.host, port)
    except OSError as error:
        if settings.port is None:
            return _bind(settings.host, 0)
        raise ExperimentError(
            f"the page cannot be served at {settings.host} port {port}",
            got=error.strerror or str(error),
            fix="give another --port, or end the program that has this one",
        ) from error


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = family is socket.AF_INET6 and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=both)


def _check_tls(config: object, settings: PageSettings) -> None:
    try:
        config.load()  # type: ignore[attr-defined]
    except OSError as error:  # ssl.SSLError is one
        raise ExperimentError(
            "the page cannot be served with this certificate",
            wanted="a certificate and its private key, both PEM",
            got=f"{settings.certificate}, {settings.key}: {error}",
            fix="correct --tls CERTIFICATE KEY",
        ) from error


class PageProcess:
    """Serves the page of a run as soon as the run has a folder.

    ``ready`` is called once, on another thread: with where the page is, or with why it is not served.
    """

    def __init__(self, settings: PageSettings, ready: Callable[[Announcement | str], None]) -> None:
        self._settings, self._ready = settings, ready
        self._child: ChildProcess | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._announced = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=_STOP_S)
        if self._child is not None:
            self._child.end()

    @property
    def serving(self) -> bool:
        """Whether the page can be opened."""
        return self._announced and self._child is not None and self._child.ended_with is None

    def handle(self, event: Event) -> None:
        """Take the events of a run: its start is what this waits for."""
        if not isinstance(event, RunStarted) or self._child is not None:
            return
        settings = self._settings
        command = [sys.executable, "-m", "acq_isl", "web", event.folder, "--host", settings.host]
        if settings.port is not None:
            command += ["--port", str(settings.port)]
        if settings.certificate is not None and settings.key is not None:
            command += ["--tls", str(settings.certificate), str(settings.key)]
        try:
            self._child = ChildProcess(command)
        except OSError as error:
            self._ready(f"the page is not served: {error}")
            return
        self._thread = threading.Thread(
            target=self._wait, args=(self._child,), name="acq-isl-page", daemon=True
        )
        self._thread.start()

    def _wait(self, child: ChildProcess) -> None:
        deadline_s = time.monotonic() + _STARTUP_S
        while (announcement := child.announcement) is None:
            if child.ended_with is not None or time.monotonic() > deadline_s:
                self._ready(f"the page is not served; the run goes on. {child.end()}")
                return
            if self._closing.wait(_LOOK_S):
                return
        self._announced = True
        self._ready(Announcement.model_validate_json(announcement))
