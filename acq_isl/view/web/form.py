"""A page that asks what `acq-isl new` asks, and has the same file written: where, the page cannot say.

Nothing is changed by a GET; questions and answers need the token of the address that was printed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from acq_isl.base import StrictModel
from acq_isl.errors import AcqIslError
from acq_isl.view.web.app import Access, Guarded

_MOST_BYTES = 64 << 10
_Name = Annotated[str, Field(min_length=1, max_length=256)]
_Exposure = Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)]


class FormAnswers(StrictModel):
    """What somebody has filled in; exposures in ms."""

    stage: _Name
    name: Annotated[str, Field(min_length=1, max_length=100)]
    label: _Name
    transmitted: _Name
    transmitted_ms: _Exposure
    fluorescence: _Name
    fluorescence_ms: _Exposure


class FormQuestions(StrictModel):
    """What there is to choose from, and what is usual; the file and the microscope are named for people."""

    file: str
    microscope: str
    stages: dict[str, str]
    labels: tuple[str, ...]
    stains: dict[str, str]
    """Preset that usually shows a label."""
    presets: tuple[str, ...]
    usual: FormAnswers


class Written(StrictModel):
    """What became of the answers: the text of the file, and what the dry run says of it."""

    text: str
    doubts: tuple[str, ...]


class FormPage:
    """The page of one file that is not written yet; ``write`` raises AcqIslError if it cannot be."""

    def __init__(
        self,
        questions: FormQuestions,
        write: Callable[[FormAnswers], Written],
        access: Access,
        done: Callable[[], None],
    ) -> None:
        self._questions, self._write, self._access, self._done = questions, write, access, done
        self._writing = threading.Lock()

    def app(self) -> Starlette:
        """The ASGI application."""
        static = Path(str(resources.files("acq_isl.view") / "static"))
        routes = [
            Route("/", lambda request: FileResponse(static / "new.html"), methods=["GET"]),
            Route("/questions", self._ask, methods=["GET"]),
            Route("/answers", self._take, methods=["POST"]),
            Mount("/static", StaticFiles(directory=static)),
        ]
        app = Starlette(routes=routes)
        app.add_middleware(Guarded, access=self._access)
        return app

    def _refused(self, request: Request) -> Response | None:
        if not self._access.own_page(request):
            return PlainTextResponse("this page is not the form's own", 403)
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._access.role(token) != "operator":
            return PlainTextResponse("wrong token: open the page with the address that was printed", 401)
        return None

    async def _ask(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse(self._questions.model_dump(mode="json"))

    async def _take(self, request: Request) -> Response:
        if (refused := self._refused(request)) is not None:
            return refused
        # A foreign page cannot send this type without asking first.
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return PlainTextResponse("send application/json", 415)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > _MOST_BYTES:
                return PlainTextResponse("that is more than a form", 413)
        try:
            answers = FormAnswers.model_validate_json(bytes(body))
        except ValidationError as error:
            first = error.errors()[0]
            return PlainTextResponse(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 422)
        return await run_in_threadpool(self._answer, answers)

    def _answer(self, answers: FormAnswers) -> Response:
        with self._writing:
            try:
                written = self._write(answers)
            except AcqIslError as error:
                return PlainTextResponse(str(error), 422)
        self._done()
        return JSONResponse(written.model_dump(mode="json"))
