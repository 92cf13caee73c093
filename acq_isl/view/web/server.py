"""Serve the page of a run, in a process of its own: whatever happens here, the run does not notice."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from acq_isl.errors import ExperimentError
from acq_isl.events import Event, RunStarted
from acq_isl.view.feed.address import FeedAddress, read_address
from acq_isl.view.feed.reader import FeedReader

DEFAULT_PORT = 8765
_MAX_FRAME_BYTES = 64 << 10
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class PageSettings:
    """Where the page is served.

    Parameters
    ----------
    host : str
        Address to listen at; beyond this computer everybody needs a token.
    port : int or None
        None takes 8765, or any free one if that is taken.
    certificate, key : Path or None
        PEM files, to serve https.
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
        name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname(), "::1": "[::1]"}.get(
            self.host, self.host
        )
        scheme = "https" if self.certificate is not None else "http"
        return f"{scheme}://{name}:{port}/" + (f"#token={token}" if token else "")


@dataclass(frozen=True, slots=True)
class Announcement:
    """Addresses of a page: to look, and to give commands as well."""

    read: str
    operate: str


def serve_page(
    folder: Path, settings: PageSettings, announce: Callable[[Announcement], None], with_parent: bool = False
) -> None:
    """Serve the page of the run in ``folder`` until Ctrl-C, or until standard input closes.

    Parameters
    ----------
    folder : Path
        Run folder.
    settings : PageSettings
    announce : callable
        Told where the page is, once it is there.
    with_parent : bool
        End when standard input is closed, as it is when the parent process ends in whatever way.

    Raises
    ------
    ExperimentError
        No run in that folder, the extra [web] is not installed, the port is taken, or TLS files are wrong.
    """
    try:
        import uvicorn

        from acq_isl.view.web.app import Access, Page
    except ImportError as error:
        raise ExperimentError(
            "the web page needs packages that are not installed",
            got=str(error),
            fix="pip install 'acq-isl[web]'",
        ) from error
    address = read_address(folder)
    listening = _listening(settings)
    port = listening.getsockname()[1]
    access = Access(
        read_token=None if settings.local else address.read_token,
        operator_token=address.operator_token,
        hosts=_LOOPBACK_NAMES | {settings.host} if settings.local else None,
    )
    with listening, FeedReader(address) as reader:
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
            threading.Thread(
                target=_follow_parent, args=(server,), name="acq-isl-parent", daemon=True
            ).start()
        announce(_announcement(settings, port, address))
        server.run(sockets=[listening])


def write_announcement(path: Path, announcement: Announcement) -> None:
    """EventHandler the parent process where the page is; whole or not at all."""
    half = path.with_suffix(".half")
    half.write_text(json.dumps({"read": announcement.read, "operate": announcement.operate}), "utf-8")
    half.replace(path)


def read_announcement(path: Path) -> Announcement:
    """What `write_announcement` wrote."""
    return Announcement(**json.loads(path.read_text(encoding="utf-8")))


def _announcement(settings: PageSettings, port: int, address: FeedAddress) -> Announcement:
    read = settings.address(port, "" if settings.local else address.read_token)
    return Announcement(read, settings.address(port, address.operator_token))


def _listening(settings: PageSettings) -> socket.socket:
    """A bound socket; opened here, so that a taken port is an error in words."""
    port = DEFAULT_PORT if settings.port is None else settings.port
    try:
        return _bound(settings.host, port)
    except OSError as error:
        if settings.port is None:
            return _bound(settings.host, 0)
        raise ExperimentError(
            f"the page cannot be served at {settings.host} port {port}",
            got=error.strerror or str(error),
            fix="give another --port, or end the program that has this one",
        ) from error


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # on Windows this option would let two programs share the port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(128)
    except BaseException:
        listening.close()
        raise
    return listening


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


def _follow_parent(server: object) -> None:
    """The parent never writes; the end of standard input means that it has closed it, or died."""
    while sys.stdin.buffer.read(4096):
        pass
    server.should_exit = True  # type: ignore[attr-defined]


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

    def handle(self, event: Event) -> None:
        """Take the events of a run: its start is what this waits for."""
        if isinstance(event, RunStarted) and self._process is None:
            self._start(Path(event.folder))

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
