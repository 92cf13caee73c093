"""What a run's feed says to its viewers: JSON header and raw pictures, checked strictly. Pure.

Every message names the protocol version, its type, the run, when in the run it happened (``seq``), and how
many were sent before it (``sent``). Pictures may come out of order, the newest first, and messages may be
missing: of two with the same `slot` the higher ``seq`` counts, and a gap in ``sent`` shows what is missing.
Pictures follow the header as raw little-endian frames::

    LIGHT      (y, x) uint16, camera counts
    PREDICTED  mean (label, y, x) uint8, doubt (y, x) uint8; 255 stands for 1.0 or more in both
    others     header only
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from acq_isl.base import WireModel
from acq_isl.errors import WireError
from acq_isl.events import Bound, Phase, RunState
from acq_isl.record import Counts, StageLatency
from acq_isl.rules.label_names import LabelStyle
from acq_isl.rules.measurements import Measured
from acq_isl.stack import StackKey, StageTimes

VERSION = 1
MAX_HEADER_BYTES = 8 << 20
MAX_SIDE_PX = 1024
MAX_LABELS = 32
MAX_FIELDS = 20_000
PREVIEW_PX = 512
"""Longest side of the pictures a run sends."""

_Seq = Annotated[int, Field(ge=0, lt=1 << 53)]
_Name = Annotated[str, Field(max_length=256)]
_Text = Annotated[str, Field(max_length=8192)]
_Side = Annotated[int, Field(ge=1, le=MAX_SIDE_PX)]
_Um = Annotated[float, Field(allow_inf_nan=False)]
_Run = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class _Message(WireModel):
    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    run: _Run
    seq: _Seq
    sent: _Seq = 0


class PlannedField(WireModel):
    """One overview stack of the plan: its key and the middle of its field of view on the stage."""

    key: StackKey
    x_um: _Um
    y_um: _Um
    z_um: _Um
    planes: Annotated[int, Field(ge=1)]


class Plan(_Message):
    """The run, before its first slice; ``fov_um`` is width and height of a field of view."""

    type: Literal["PLAN"] = "PLAN"
    name: _Text
    started: _Name
    folder: _Text
    scope: _Text
    model: _Text
    labels: Annotated[tuple[LabelStyle, ...], Field(max_length=MAX_LABELS)]
    fields: Annotated[tuple[PlannedField, ...], Field(max_length=MAX_FIELDS)]
    fov_um: tuple[_Um, _Um]
    limits: Annotated[tuple[Bound, ...], Field(max_length=64)]
    choice: _Text


class Light(_Message):
    """A measured plane. ``key.channel`` names the light; ``predict`` is False for fluorescence.

    ``x_um``, ``y_um`` is the middle of the picture on the stage. ``low``, ``high`` (counts) suggest how to
    display it.
    """

    type: Literal["LIGHT"] = "LIGHT"
    key: StackKey
    predict: bool
    x_um: _Um
    y_um: _Um
    z_um: _Um
    pixel_size_um: _Um
    shape: tuple[_Side, _Side]
    low: _Um
    high: _Um
    captured_s: _Um


class Predicted(_Message):
    """Predicted labels of an overview stack: computed, never measured."""

    type: Literal["PREDICTED"] = "PREDICTED"
    key: StackKey
    x_um: _Um
    y_um: _Um
    pixel_size_um: _Um
    shape: tuple[_Side, _Side]
    labels: Annotated[tuple[_Name, ...], Field(min_length=1, max_length=MAX_LABELS)]
    measured: Annotated[tuple[Measured, ...], Field(max_length=64)]
    warnings: Annotated[tuple[_Text, ...], Field(max_length=64)]
    engine: _Name
    times: StageTimes

    @property
    def display_names(self) -> tuple[str, ...]:
        return tuple(f"{label} (predicted)" for label in self.labels)


class NotPredicted(_Message):
    """The model refused a stack, or it waits for an engine (``state``), why, and what to do."""

    type: Literal["NOT_PREDICTED"] = "NOT_PREDICTED"
    key: StackKey
    state: Literal["refused", "waits"]
    reason: _Text
    fix: _Text


class Ranked(_Message):
    """Where a field stands. One message for each field, so that the newest wins field by field."""

    type: Literal["RANKED"] = "RANKED"
    key: StackKey
    rank: int | None
    chosen: bool
    measured: Measured | None
    reason: _Text


class Decided(_Message):
    """A decision and what became of it; ``time_s`` is Unix time. ``key`` is None if it is about no field."""

    type: Literal["DECIDED"] = "DECIDED"
    time_s: _Um
    key: StackKey | None
    rule: _Name
    what: _Text
    why: _Text
    done: _Text


class Status(_Message):
    """Where the run stands; sent at least once a second while it runs, so silence means that it is gone.

    ``dropped`` counts pictures the feed dropped, ``late`` slices without outcome so far, ``elapsed_s`` is
    since the start. ``report`` is a path once there is one. ``why`` explains ``state``.
    """

    type: Literal["STATUS"] = "STATUS"
    state: RunState
    why: _Text
    phase: Phase
    done: int
    total: int
    text: _Text
    counts: Counts
    late: int
    latencies: Annotated[tuple[StageLatency, ...], Field(max_length=16)]
    engine: _Text
    elapsed_s: _Um
    remaining_s: float | None
    dropped: int
    report: _Text
    sent_s: _Um


Answered = Predicted | NotPredicted
Message = Plan | Light | Predicted | NotPredicted | Ranked | Decided | Status
_ADAPTER: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """A message with its pictures.

    Parameters
    ----------
    message : Message
    pictures : tuple of array
        LIGHT: one (y, x) uint16. PREDICTED: (label, y, x) uint8 and (y, x) uint8. Else none.
    """

    message: Message
    pictures: tuple[NDArray[Any], ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(picture.nbytes for picture in self.pictures)


def slot(message: Message) -> tuple[object, ...]:
    """What a message replaces: of two with the same slot only the one with the higher ``seq`` counts."""
    match message:
        case Plan() | Status():
            return (message.type,)
        case Decided():
            return (message.type, message.seq)
        case Predicted() | NotPredicted():
            return ("OUTCOME", message.key)
        case _:
            return (message.type, message.key)


def encode(parcel: Parcel) -> list[bytes | memoryview]:
    """Frames of a message; pictures are viewed, not copied. WireError if they do not belong to it."""
    wanted = _pictures(parcel.message)
    got = [(picture.shape, picture.dtype.newbyteorder("=")) for picture in parcel.pictures]
    if got != wanted:
        raise WireError(
            f"the pictures of a {parcel.message.type} message are wrong", wanted=f"{wanted}", got=f"{got}"
        )
    views = [
        np.ascontiguousarray(p, p.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
        for p in parcel.pictures
    ]
    return [parcel.message.model_dump_json().encode(), *views]


def decode(frames: Sequence[bytes | memoryview]) -> Parcel:
    """The message of received frames; its pictures are read-only views of them.

    Raises
    ------
    WireError
        Another version, an unknown type, fields missing or too many, pictures of another size.
    """
    if not frames:
        raise WireError("a message without frames arrived")
    header = memoryview(frames[0]).cast("B")
    if header.nbytes > MAX_HEADER_BYTES:
        raise WireError("a header is too long", wanted=f"<= {MAX_HEADER_BYTES} B", got=f"{header.nbytes} B")
    try:
        message = _ADAPTER.validate_json(bytes(header))
    except ValidationError as error:
        raise _explained(error) from error
    wanted = _pictures(message)
    buffers = [memoryview(frame).cast("B").toreadonly() for frame in frames[1:]]
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in wanted]
    if [buffer.nbytes for buffer in buffers] != sizes:
        raise WireError(
            f"the pictures of a {message.type} message do not fit its header",
            wanted=f"{sizes} B",
            got=f"{[buffer.nbytes for buffer in buffers]} B",
        )
    pictures = tuple(
        np.frombuffer(buffer, dtype.newbyteorder("<")).reshape(shape)
        for buffer, (shape, dtype) in zip(buffers, wanted, strict=True)
    )
    return Parcel(message, pictures)


def _pictures(message: Message) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
    match message:
        case Light(shape=shape):
            return [(shape, np.dtype(np.uint16))]
        case Predicted(shape=shape, labels=labels):
            return [((len(labels), *shape), np.dtype(np.uint8)), (shape, np.dtype(np.uint8))]
        case _:
            return []


def _explained(error: ValidationError) -> WireError:
    complaints = error.errors(include_url=False, include_input=False)
    first = next((c for c in complaints if c["loc"][-1:] == ("version",)), complaints[0])
    where = ".".join(str(part) for part in first["loc"]) or "header"
    return WireError(
        f"a message does not follow version {VERSION} of the preview feed: {where}: {first['msg']}",
        fix="run the same version of acq-isl on both sides",
    )
