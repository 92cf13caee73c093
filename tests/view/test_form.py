"""The form of `acq-isl new --page`: who may fill it in, what is refused, what is written."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

pytest.importorskip("uvicorn", reason="the extra [web] is not installed")
pytest.importorskip("starlette", reason="the extra [web] is not installed")

from acq_isl.errors import ExperimentError
from acq_isl.view.web.form import FormAnswers, FormQuestions, Written
from acq_isl.view.web.server import serve_form

USUAL = FormAnswers(
    stage="survey",
    name="my first survey",
    label="nuclei",
    transmitted="Phase",
    transmitted_ms=10.0,
    fluorescence="DAPI",
    fluorescence_ms=50.0,
)
ASKED = FormQuestions(
    file="x.yaml",
    microscope="a scope",
    stages={"survey": "find"},
    labels=("nuclei",),
    stains={"nuclei": "DAPI"},
    presets=("Phase", "DAPI"),
    usual=USUAL,
)


@dataclass
class Form:
    """A form that is served, and what was written by it."""

    address: str = ""
    written: list[FormAnswers] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)

    def write(self, answers: FormAnswers) -> Written:
        if answers.transmitted == answers.fluorescence:
            raise ExperimentError("one channel cannot be both")
        self.written.append(answers)
        return Written(text="name: x", doubts=("it is odd",))

    def ask(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
        base, _, token = self.address.partition("/#token=")
        given = {"Authorization": f"Bearer {token}"} if "Authorization" not in headers else {}
        given |= {"Content-Type": "application/json"} if body is not None else {}
        request = urllib.request.Request(base + path, body, given | headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture(scope="module")
def form() -> Iterator[Form]:
    made, there = Form(), threading.Event()

    def announce(address: str) -> None:
        made.address = address
        there.set()

    serving = threading.Thread(
        target=lambda: made.ended.append(serve_form(ASKED, made.write, announce)), daemon=True
    )
    serving.start()
    assert there.wait(20)
    yield made
    serving.join(20)
    assert made.ended == [True]  # it ends by itself once a file is written


def answers(**changes: object) -> bytes:
    return json.dumps(USUAL.model_dump() | changes).encode()


REFUSED = {
    "no token": (answers(), {"Authorization": "Bearer "}, 401, "wrong token"),
    "another token": (answers(), {"Authorization": "Bearer guess"}, 401, "wrong token"),
    "a foreign page": (answers(), {"Origin": "http://evil.example"}, 403, "not the form's own"),
    "a foreign name": (answers(), {"Host": "evil.example"}, 421, "unknown host"),
    "a plain form": (answers(), {"Content-Type": "text/plain"}, 415, "application/json"),
    "too much": (answers(name="x" * 70_000), {}, 413, "more than a form"),
    "no JSON": (b"{", {}, 422, "JSON"),
    "a path": (answers(file="/etc/passwd"), {}, 422, "file"),
    "no exposure": (answers(fluorescence_ms=0), {}, 422, "fluorescence_ms"),
    "not a number": (b'{"transmitted_ms": NaN}', {}, 422, ""),
    "no name": (answers(name=""), {}, 422, "name"),
    "what the writer refuses": (answers(fluorescence="Phase"), {}, 422, "cannot be both"),
}


@pytest.mark.parametrize("body, headers, status, says", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_refused_writes_nothing(
    form: Form, body: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    got, text = form.ask("/answers", body, **headers)
    assert got == status and says in text
    assert not form.written


def test_questions_need_the_token_and_a_get_writes_nothing(form: Form) -> None:
    assert form.ask("/questions", Authorization="Bearer guess")[0] == 401
    status, text = form.ask("/questions")
    assert status == 200 and FormQuestions.model_validate_json(text) == ASKED
    assert form.ask("/answers")[0] == 405 and not form.written
    assert form.ask("/")[0] == form.ask("/static/new.js")[0] == 200


def test_the_answers_are_written_once(form: Form) -> None:  # the last one: then it is not served any more
    status, text = form.ask("/answers", answers(name="größer"))
    assert status == 200 and json.loads(text) == {"text": "name: x", "doubts": ["it is odd"]}
    assert [each.name for each in form.written] == ["größer"]
