"""What client and server say to each other: the header of every message, checked strictly. Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, field_validator

from acq_isl.base import WireModel
from acq_isl.stack import Counting, Distance, StackInfo, StageTimes

VERSION = 2
MAX_HEADER_BYTES = 1 << 20
MAX_FRAME_BYTES = 1 << 30
MAX_STACK_BYTES = 1 << 32
MAX_SIDE_PX = 1 << 14
MAX_PLANES = 1024
MAX_LABELS = 32
MAX_NAME = 256
MAX_MODELS = 16
MAX_DEADLINE_MS = 1e9


def cut(text: str) -> str:
    """As much of a text as fits into a message."""
    return text[:8000]


def printable(text: str) -> str:
    """The beginning of a peer's text as it may stand in a log: what steers terminals is spelled out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:500])


_Id = Annotated[int, Field(ge=0, lt=1 << 53)]
_Name = Annotated[str, Field(max_length=MAX_NAME)]
_Text = Annotated[str, Field(max_length=8192)]

Work = Literal["live", "bulk"]
"""Class of work. ``live``: latest first, and before all bulk. ``bulk``: in the order of capture."""


class MemoryOffer(WireModel):
    """Shared memory the client offers: its name, ``#``, and the hash of the nonce in it, in hex.

    The server proves that it sees it by the nonce itself. A name without hash is not mapped.
    """

    name: Annotated[str, Field(max_length=1024)]
    nbytes: Annotated[int, Field(gt=0, lt=1 << 46)]


class MemoryRef(WireModel):
    """Where in shared memory the pixels of a stack lie, valid while the generation there is the same."""

    offset: _Id
    generation: Annotated[int, Field(gt=0, lt=1 << 53)]


class Wanted(WireModel):
    """What a client wants done with a stack.

    Parameters
    ----------
    models : tuple of str
        Names of the models that shall predict it, each once; empty: the server's first.
    work : "live" or "bulk"
    deadline_ms : float or None
        A prediction not begun within so many milliseconds after the last slice is not wanted any more.
    """

    models: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=MAX_NAME)], ...], Field(max_length=MAX_MODELS)
    ] = ()
    work: Work = "bulk"
    deadline_ms: Annotated[float, Field(gt=0, le=MAX_DEADLINE_MS)] | None = None

    @field_validator("models")
    @classmethod
    def _differ(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(models)) < len(models):
            raise ValueError("each model can be asked for once")
        return models

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models as they stand in messages; ``""`` is the server's first."""
        return self.models or ("",)


class Offer(WireModel):
    """A model that a server holds, and the engine that runs it."""

    name: _Name
    manifest: Annotated[str, Field(max_length=MAX_HEADER_BYTES // 2)]
    model_sha256: _Name
    engine: _Name


class _Message(WireModel):
    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION


class _OfStack(_Message):
    stack: _Id


class _Answer(_OfStack):
    model: _Name = ""
    """By which it was asked for; empty if the client named none."""


class Hello(_Message):
    """Client asks to be served. ``attempt`` comes back in the answer, so that old answers are told apart.

    ``any_model`` says that a model may be replaced by one that wants or gives something else.
    """

    type: Literal["HELLO"] = "HELLO"
    session: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    attempt: _Id
    ring: MemoryOffer | None = None
    any_model: bool = False


_Offers = Annotated[tuple[Offer, ...], Field(min_length=1, max_length=MAX_MODELS)]


class Welcome(_Message):
    """Server grants ``credit`` stacks in flight. It holds the complete stacks ``held``."""

    type: Literal["WELCOME"] = "WELCOME"
    attempt: _Id
    credit: Annotated[int, Field(ge=1, le=64)]
    models: _Offers
    ring_nonce: _Name = ""
    held: Annotated[tuple[_Id, ...], Field(max_length=4096)] = ()

    @property
    def manifest(self) -> str:
        """What the first model expects, as JSON."""
        return self.models[0].manifest

    @property
    def model_sha256(self) -> str:
        return self.models[0].model_sha256

    @property
    def engine(self) -> str:
        return self.models[0].engine


class Models(_Message):
    """The server's models from now on: one of them was replaced."""

    type: Literal["MODELS"] = "MODELS"
    models: _Offers


class SliceSent(_OfStack):
    """One slice. It carries all that is said of its stack, so it means the same alone and after a restart.

    ``left_ms`` is what is left of the deadline, counted from the arrival of the last slice: clocks differ.
    """

    type: Literal["SLICE"] = "SLICE"
    info: StackInfo
    z_index: _Id
    captured_s: Annotated[float, Field(allow_inf_nan=False)]
    ring: MemoryRef | None = None
    wanted: Wanted = Wanted()
    left_ms: Annotated[float, Field(ge=0, le=MAX_DEADLINE_MS)] | None = None


def _stages_of_server(times: StageTimes) -> dict[str, float]:
    """What comes after the answer is the client's to measure; version 0.1 does not know its name."""
    return {name: ms for name, ms in asdict(times).items() if name != "turn_ms"}


class Result(_Answer):
    """A prediction. ``complete_s`` is the server's Unix time at which the stack was complete."""

    type: Literal["RESULT"] = "RESULT"
    labels: Annotated[tuple[_Name, ...], Field(min_length=1, max_length=MAX_LABELS)]
    shape: tuple[int, int]
    model_sha256: _Name
    model_name: _Name
    engine: _Name
    warnings: Annotated[tuple[_Text, ...], Field(max_length=64)]
    border_px: Annotated[int, Field(ge=0, le=MAX_SIDE_PX)]
    times: Annotated[StageTimes, PlainSerializer(_stages_of_server)]
    distances: Annotated[tuple[Distance, ...], Field(max_length=MAX_LABELS)] = ()
    counting: Annotated[
        tuple[Counting, ...], Field(max_length=MAX_LABELS, exclude_if=lambda counting: not counting)
    ] = ()
    """Not sent where there is none: version 0.1 does not know it."""
    focus_offset_um: Annotated[float | None, Field(exclude_if=lambda offset: offset is None)] = None
    """As ``counting``."""
    complete_s: Annotated[float, Field(allow_inf_nan=False)]


class Refused(_Answer):
    """The stack does not fit the model."""

    type: Literal["REFUSED"] = "REFUSED"
    reason: _Text
    fix: _Text


class Failed(_Answer):
    """The stack fits, but could not be predicted: an engine error, or slices that never came."""

    type: Literal["FAILED"] = "FAILED"
    reason: _Text


class Expired(_Answer):
    """The deadline of a stack passed before its prediction was begun."""

    type: Literal["EXPIRED"] = "EXPIRED"


class Done(_Answer):
    """Client has an outcome of a stack; the server may forget it."""

    type: Literal["DONE"] = "DONE"


class Cancel(_OfStack):
    """Client no longer wants the stack; the server forgets it and answers nothing."""

    type: Literal["CANCEL"] = "CANCEL"


class Withdraw(_OfStack):
    """Client has newer work. A stack that waits is forgotten and answered with WITHDRAWN; else it goes on."""

    type: Literal["WITHDRAW"] = "WITHDRAW"


class Withdrawn(_OfStack):
    """Server has forgotten a stack, which gives its credit back."""

    type: Literal["WITHDRAWN"] = "WITHDRAWN"


class Swap(_Message):
    """Somebody asks to replace a model: ``model`` is a file on the server, ``name`` the model to replace.

    An empty name stands for the model of the same name as the new one, or the only one there is.
    """

    type: Literal["SWAP"] = "SWAP"
    model: Annotated[str, Field(min_length=1, max_length=4096)]
    name: _Name = ""


class Loading(_Message):
    """Server loads the new model; the old one goes on."""

    type: Literal["LOADING"] = "LOADING"


class Swapped(_Message):
    """Server has replaced a model, with the ``changes`` in what it wants and gives."""

    type: Literal["SWAPPED"] = "SWAPPED"
    old: Offer
    new: Offer
    changes: Annotated[tuple[_Text, ...], Field(max_length=64)] = ()


class NotSwapped(_Message):
    """The old model stays. ``error`` is what the asker shall raise."""

    type: Literal["NOT_SWAPPED"] = "NOT_SWAPPED"
    error: Literal["model", "engine"]
    reason: _Text
    wanted: _Text = ""
    got: _Text = ""
    fix: _Text = ""


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


ClientMessage = SliceSent | Done | Cancel | Withdraw | Beat | Bye
"""What a client says once it was greeted."""
ServerMessage = (
    Welcome | Models | Result | Refused | Failed | Expired | Withdrawn | Alive | Bye
    | Loading | Swapped | NotSwapped
)  # fmt: skip
Message = Hello | Swap | ClientMessage | ServerMessage
