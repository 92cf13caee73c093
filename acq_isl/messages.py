"""What client and server say to each other: the header of every message, checked strictly. Pure."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from acq_isl.stack import StackInfo, StageTimes

VERSION = 1
MAX_HEADER_BYTES = 1 << 20
MAX_FRAME_BYTES = 1 << 30
MAX_STACK_BYTES = 1 << 32
MAX_SIDE_PX = 1 << 14
MAX_PLANES = 1024
MAX_LABELS = 32
MAX_NAME = 256

_Id = Annotated[int, Field(ge=0, lt=1 << 53)]
_Name = Annotated[str, Field(max_length=MAX_NAME)]
_Text = Annotated[str, Field(max_length=8192)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, ser_json_inf_nan="constants")


class RingOffer(_Model):
    """Shared memory the client offers; the server proves that it sees it by reading back the nonce."""

    name: Annotated[str, Field(max_length=1024)]
    nbytes: Annotated[int, Field(gt=0, lt=1 << 46)]


class RingRef(_Model):
    """Where in the ring the pixels of a whole stack lie, valid while the generation there is the same."""

    offset: _Id
    generation: Annotated[int, Field(gt=0, lt=1 << 53)]


class _Message(_Model):
    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION


class Hello(_Message):
    """Client asks to be served. ``attempt`` comes back in the answer, so that old answers are told apart."""

    type: Literal["HELLO"] = "HELLO"
    session: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    attempt: _Id
    ring: RingOffer | None = None


class Welcome(_Message):
    """Server grants ``credit`` stacks in flight. It holds the complete stacks ``held``."""

    type: Literal["WELCOME"] = "WELCOME"
    attempt: _Id
    credit: Annotated[int, Field(ge=1, le=64)]
    manifest: Annotated[str, Field(max_length=MAX_HEADER_BYTES // 2)]
    model_sha256: _Name
    engine: _Name
    ring_nonce: _Name = ""
    held: Annotated[tuple[_Id, ...], Field(max_length=4096)] = ()


class SliceSent(_Message):
    """One slice. It carries its whole stack's info, so it means the same alone and after a restart."""

    type: Literal["SLICE"] = "SLICE"
    stack: _Id
    info: StackInfo
    z_index: _Id
    captured_s: Annotated[float, Field(allow_inf_nan=False)]
    ring: RingRef | None = None


class Result(_Message):
    """A prediction. ``complete_s`` is the server's Unix time at which the stack was complete."""

    type: Literal["RESULT"] = "RESULT"
    stack: _Id
    labels: Annotated[tuple[_Name, ...], Field(min_length=1, max_length=MAX_LABELS)]
    shape: tuple[int, int]
    model_sha256: _Name
    model_name: _Name
    engine: _Name
    warnings: Annotated[tuple[_Text, ...], Field(max_length=64)]
    border_px: Annotated[int, Field(ge=0, le=MAX_SIDE_PX)]
    times: StageTimes
    complete_s: Annotated[float, Field(allow_inf_nan=False)]


class Refused(_Message):
    """The stack does not fit the model."""

    type: Literal["REFUSED"] = "REFUSED"
    stack: _Id
    reason: _Text
    fix: _Text


class Failed(_Message):
    """The stack fits, but could not be predicted: an engine error, or slices that never came."""

    type: Literal["FAILED"] = "FAILED"
    stack: _Id
    reason: _Text


class Done(_Message):
    """Client has the outcome of a stack; the server may forget it."""

    type: Literal["DONE"] = "DONE"
    stack: _Id


class Cancel(_Message):
    """Client no longer wants the stack; the server forgets it and answers nothing."""

    type: Literal["CANCEL"] = "CANCEL"
    stack: _Id


class Beat(_Message):
    """Client is there. ``sent_s`` is its Unix time."""

    type: Literal["BEAT"] = "BEAT"
    sent_s: Annotated[float, Field(allow_inf_nan=False)]


class Alive(_Message):
    """Server is there, also while it predicts. ``sent_s`` is the beat's, ``server_s`` its own Unix time."""

    type: Literal["ALIVE"] = "ALIVE"
    sent_s: Annotated[float, Field(allow_inf_nan=False)]
    server_s: Annotated[float, Field(allow_inf_nan=False)]


class Bye(_Message):
    """Either side leaves, or the server will not talk to the client for ``reason``."""

    type: Literal["BYE"] = "BYE"
    reason: _Text = ""


Message = Hello | Welcome | SliceSent | Result | Refused | Failed | Done | Cancel | Beat | Alive | Bye
