"""The web page: static files, one websocket, the report. Nothing is changed by a GET.

A browser says who it is in its first message, so no token is ever part of an address that is logged::

    browser  HELLO token .......... SEEN number of frames ....... ORDER id, order
    server         WELCOME role, frames ...                             ANSWER id, taken, text

Close codes: 4401 wrong token, 4403 foreign page, 4429 too many viewers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, assert_never
from urllib.parse import urlsplit

from pydantic import Field, TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from acq_isl.base import StrictModel
from acq_isl.commands import Command
from acq_isl.view.feed.requests import Answer, RequestId, Token, same_token
from acq_isl.view.feed.source import WaitingSource
from acq_isl.view.web.clients import Hub, Viewer, packet

log = logging.getLogger(__name__)

_HELLO_S = 10.0
_SEND_S = 60.0
_WRONG_TOKEN_S = 1.0
Role = Literal["operator", "reader"]
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self' ws: wss:; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Operator": "no-store",
}
_REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox allow-popups allow-downloads"
)


class Hello(StrictModel):
    """Who looks; without a token only where reading is free."""

    type: Literal["HELLO"] = "HELLO"
    token: Token = ""


class Confirmed(StrictModel):
    """So many frames were handled since the connection."""

    type: Literal["SEEN"] = "SEEN"
    frames: Annotated[int, Field(ge=0, lt=1 << 53)]


class Ordered(StrictModel):
    """The operator gives a command."""

    type: Literal["ORDER"] = "ORDER"
    id: RequestId
    order: Command


Request = Hello | Confirmed | Ordered
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="type")])


@dataclass(frozen=True, slots=True)
class Access:
    """Who may do what.

    Without a ``read_token`` everybody who reaches the page may look. ``hosts`` are names under which the page
    may be asked for, None for any: on loopback that keeps out foreign pages whose name was bent to point
    here.
    """

    read_token: str | None
    operator_token: str
    hosts: frozenset[str] | None

    def role(self, token: str) -> Role | None:
        """What the bearer of a token may do; None for nothing."""
        if token and same_token(token, self.operator_token):
            return "operator"
        if self.read_token is None and not token:
            return "reader"
        return "reader" if token and self.read_token and same_token(token, self.read_token) else None

    def host_known(self, connection: HTTPConnection) -> bool:
        """Whether the page was asked for under one of its names."""
        name = urlsplit(f"//{connection.headers.get('host', '')}").hostname
        return self.hosts is None or name in self.hosts

    def own_page(self, connection: HTTPConnection) -> bool:
        """Whether a browser's request comes from this page; programs send no origin."""
        origin = connection.headers.get("origin")
        return origin is None or urlsplit(origin).netloc == connection.headers.get("host")


class Page:
    """The page of one run: an open reader, and the folder where the report will be."""

    def __init__(self, reader: WaitingSource, folder: Path, access: Access) -> None:
        self._reader, self._report, self._access = reader, folder / "report.html", access
        self._hub = Hub()

    def app(self) -> Starlette:
        """The ASGI application."""
        static = Path(str(resources.files("acq_isl.view") / "static"))
        routes = [
            Route("/", lambda request: FileResponse(static / "index.html"), methods=["GET"]),
            Route("/report", self._send_report, methods=["GET"]),
            WebSocketRoute("/feed", self._serve),
            Mount("/static", StaticFiles(directory=static)),
        ]
        app = Starlette(routes=routes, lifespan=self._living)
        app.add_middleware(Guarded, access=self._access)
        return app

    @asynccontextmanager
    async def _living(self, app: Starlette) -> AsyncIterator[None]:
        pump = asyncio.create_task(self._pump())
        yield
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)

    async def _pump(self) -> None:
        """Hand what the run sends to all browsers, encoded on another thread."""
        try:
            while True:
                # One at a time: what comes in while a picture is encoded may be newer than the rest.
                if await run_in_threadpool(self._reader.wait, 0.25):
                    for message in self._reader.take(1):
                        self._hub.publish(await run_in_threadpool(packet, message))
        except Exception:
            log.exception("the page is not fed any more")

    async def _send_report(self, request: HttpRequest) -> Response:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._access.role(token) is None:
            return PlainTextResponse("wrong token: open the page with the address that was printed", 401)
        if not self._report.is_file():
            return PlainTextResponse("the report is written when the run ends", 404)
        text = await run_in_threadpool(self._report.read_text, encoding="utf-8")
        # Files beside the report cannot be reached from here: what would lead nowhere is no link.
        text = re.sub(r'<a href="(?!data:|https?:|#)[^"]*">(.*?)</a>', r"\1", text)
        return HTMLResponse(text, headers={"Content-Security-Policy": _REPORT_POLICY})

    async def _serve(self, socket: WebSocket) -> None:
        if not self._access.own_page(socket):
            log.warning("a foreign page was turned away: %s", socket.headers.get("origin"))
            await socket.close(4403, "this page is not the run's own")
            return
        await socket.accept()
        role = await self._welcome(socket)
        if role is None:
            return
        viewer = self._hub.join()
        tasks = [
            asyncio.create_task(self._send(socket, viewer)),
            asyncio.create_task(self._listen(socket, viewer, role)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._hub.leave(viewer)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with suppress(RuntimeError, WebSocketDisconnect):  # it is closed already
                await socket.close()

    async def _welcome(self, socket: WebSocket) -> Role | None:
        """The role of a browser that says hello in time and knows the token; else close."""
        try:
            request = _REQUEST.validate_json(await asyncio.wait_for(socket.receive_text(), _HELLO_S))
        except (TimeoutError, ValidationError, KeyError):
            await socket.close(4400, "say HELLO first")
            return None
        except WebSocketDisconnect:
            return None
        role = self._access.role(request.token) if isinstance(request, Hello) else None
        if role is None:
            await asyncio.sleep(_WRONG_TOKEN_S)  # guessing shall take a while
            await socket.close(4401, "wrong token: use the address that was printed when the run started")
            return None
        if self._hub.full:
            await socket.close(4429, "too many viewers; close one")
            return None
        await socket.send_text(json.dumps({"type": "WELCOME", "role": role}))
        return role

    async def _send(self, socket: WebSocket, viewer: Viewer) -> None:
        # The time limit frees what a viewer holds whose network swallows everything.
        with suppress(TimeoutError, WebSocketDisconnect):
            while True:
                frame = (await viewer.next()).frame
                await asyncio.wait_for(socket.send_bytes(frame), _SEND_S)

    async def _listen(self, socket: WebSocket, viewer: Viewer, role: Role) -> None:
        with suppress(WebSocketDisconnect):
            while True:
                try:
                    request = _REQUEST.validate_json(await socket.receive_text())
                except (ValidationError, KeyError):
                    await socket.close(4400, "not understood; reload the page")
                    return
                match request:
                    case Confirmed(frames=frames):
                        viewer.confirm(frames)
                    case Ordered():
                        answer = await self._answer(request, role)
                        await socket.send_text(answer.model_dump_json())
                    case Hello():
                        pass
                    case _:
                        assert_never(request)

    async def _answer(self, ordered: Ordered, role: Role) -> Answer:
        if role != "operator":
            text = "this page may only look; open it with the operator's address"
            return Answer(id=ordered.id, taken=False, text=text)
        answer = await run_in_threadpool(self._reader.send, ordered.order, by="web page")
        return answer.model_copy(update={"id": ordered.id})


class Guarded:
    """Every answer carries the security headers; requests under a foreign name get none."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if not self._access.host_known(HTTPConnection(scope)):
            if scope["type"] == "websocket":
                await WebSocket(scope, receive, send).close(4403, "unknown host name")
                return
            await PlainTextResponse("unknown host name", 421)(scope, receive, send)
            return
        await self._app(scope, receive, _with_headers(send))


def _with_headers(send: Send) -> Callable[[Message], Awaitable[None]]:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return guarded
