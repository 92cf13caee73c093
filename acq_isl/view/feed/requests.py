"""What a viewer asks of a run, and the answers: questions for the latest state, and commands. Pure."""

from __future__ import annotations

import hmac
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from acq_isl.base import StrictModel
from acq_isl.commands import Command
from acq_isl.errors import WireError
from acq_isl.view.feed.messages import VERSION

MAX_REQUEST_BYTES = 4096
RequestId = Annotated[int, Field(ge=0, lt=1 << 53)]
Token = Annotated[str, Field(max_length=256)]


class _Versioned(StrictModel):
    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION


class Ask(_Versioned):
    """Send me what is kept and was sent after ``since``: the messages of the feed, one by one."""

    type: Literal["ASK"] = "ASK"
    since: Annotated[int, Field(ge=-1, lt=1 << 53)] = -1


class Give(_Versioned):
    """Carry out a command. ``by`` says who or what asks, for the ledger."""

    type: Literal["GIVE"] = "GIVE"
    id: RequestId
    token: Token
    by: Annotated[str, Field(max_length=64)] = "operator"
    order: Command


class Answer(_Versioned):
    """Whether a command was taken; what became of it is on the feed and in the ledger."""

    type: Literal["ANSWER"] = "ANSWER"
    id: RequestId
    taken: bool
    text: Annotated[str, Field(max_length=1024)]


Request = Ask | Give
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="type")])


def read_request(frame: bytes) -> Request:
    """A viewer's request; WireError if it is none."""
    if len(frame) > MAX_REQUEST_BYTES:
        raise WireError("a request is too long", wanted=f"<= {MAX_REQUEST_BYTES} B", got=f"{len(frame)} B")
    try:
        return _REQUEST.validate_json(frame)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "request"
        raise WireError(
            f"a request does not follow version {VERSION} of the feed: {where}: {first['msg']}",
            fix="run the same version of acq-isl on both sides",
        ) from error


def read_answer(frame: bytes) -> Answer:
    """The run's answer to a command; WireError if it is none."""
    try:
        return Answer.model_validate_json(frame)
    except ValidationError as error:
        raise WireError("the run's answer is none", got=str(error)[:200]) from error


def same_token(given: str, expected: str) -> bool:
    """Compared in a time that does not tell how much of it is right."""
    return hmac.compare_digest(given.encode(), expected.encode())
