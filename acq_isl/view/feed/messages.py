"""What a run's feed sends to its viewers: an event as JSON, and raw images beside it, checked strictly. Pure.

Every message names the protocol version, the run, when in the run it happened (``seq``), and how many were
sent before it (``sent``). Images may come out of order, the newest first, and messages may be missing: of two
with the same `slot` the higher ``seq`` counts, and a gap in ``sent`` shows what is missing. Images follow the
JSON as raw little-endian frames::

    Seen       (y, x) uint16, camera counts
    Predicted  mean (label, y, x) uint8, uncertainty (y, x) uint8; 255 stands for 1.0 or more in both
    others     none
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, assert_never

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from acq_isl import events
from acq_isl.base import WireModel
from acq_isl.errors import WireError

VERSION = 2
MAX_HEADER_BYTES = 8 << 20
PREVIEW_PX = 512
"""Longest side of the pictures a run sends."""

Images = tuple[NDArray[Any], ...]
_Seq = Annotated[int, Field(ge=0, lt=1 << 53)]


@dataclass(frozen=True, slots=True, eq=False)
class Message:
    """An event of a run on its way to viewers, with its images."""

    run: str
    seq: int
    event: events.Event
    images: Images = ()
    sent: int = 0

    @property
    def nbytes(self) -> int:
        """Size of the images."""
        return sum(image.nbytes for image in self.images)


class Header(WireModel):
    """A message without its images."""

    version: Annotated[int, Field(ge=VERSION, le=VERSION)] = VERSION
    run: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    seq: _Seq
    sent: _Seq = 0
    event: events.Event


def slot(message: Message) -> tuple[object, ...]:
    """What a message replaces: of two with the same slot only the one with the higher ``seq`` counts."""
    match message.event:
        case events.Decided() as event:
            return (event.kind, message.seq)
        case events.Predicted() | events.NotPredicted() as event:
            return ("outcome", event.key)
        case events.Seen() | events.FieldRanked() | events.FieldFailed() as event:
            return (event.kind, event.key)
        case events.CurveChanged() as event:
            return (event.kind, event.level, event.place, event.name)
        case events.FieldImaged() as event:
            return (event.kind, event.request.key)
        case (
            events.RunStarted()
            | events.RunStatus()
            | events.Step()
            | events.TimePointBegan()
            | events.Progress()
            | events.FieldsRanked()
            | events.StateChanged()
            | events.RunEnded()
        ) as event:
            return (event.kind,)
        case event:
            assert_never(event)


def encode(message: Message) -> list[bytes | memoryview]:
    """Frames of a message; images are viewed, not copied. WireError if they do not belong to it."""
    wanted = _images_of(message.event)
    got = [(image.shape, image.dtype.newbyteorder("=")) for image in message.images]
    if got != wanted:
        raise WireError(
            f"the images of a {message.event.kind} message are wrong", wanted=f"{wanted}", got=f"{got}"
        )
    header = Header(run=message.run, seq=message.seq, sent=message.sent, event=message.event)
    views = [
        np.ascontiguousarray(image, image.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data
        for image in message.images
    ]
    return [header.model_dump_json().encode(), *views]


def decode(frames: Sequence[bytes | memoryview]) -> Message:
    """The message of received frames; its images are read-only views of them.

    WireError: another version, an unknown kind, fields missing or too many, images of another size.
    """
    if not frames:
        raise WireError("a message without frames arrived")
    text = memoryview(frames[0]).cast("B")
    if text.nbytes > MAX_HEADER_BYTES:
        raise WireError("a header is too long", wanted=f"<= {MAX_HEADER_BYTES} B", got=f"{text.nbytes} B")
    try:
        header = Header.model_validate_json(bytes(text))
    except ValidationError as error:
        raise _explained(error) from error
    wanted = _images_of(header.event)
    buffers = [memoryview(frame).cast("B").toreadonly() for frame in frames[1:]]
    sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in wanted]
    if [buffer.nbytes for buffer in buffers] != sizes:
        raise WireError(
            f"the images of a {header.event.kind} message do not fit its header",
            wanted=f"{sizes} B",
            got=f"{[buffer.nbytes for buffer in buffers]} B",
        )
    images = tuple(
        np.frombuffer(buffer, dtype.newbyteorder("<")).reshape(shape)
        for buffer, (shape, dtype) in zip(buffers, wanted, strict=True)
    )
    return Message(header.run, header.seq, header.event, images, header.sent)


def _images_of(event: events.Event) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shapes and types of the images that belong to an event."""
    if isinstance(event, events.Seen):
        return [(event.shape, np.dtype(np.uint16))]
    if isinstance(event, events.Predicted):
        return [((len(event.labels), *event.shape), np.dtype(np.uint8)), (event.shape, np.dtype(np.uint8))]
    return []


def _explained(error: ValidationError) -> WireError:
    complaints = error.errors(include_url=False, include_input=False)
    first = next((c for c in complaints if c["loc"][-1:] == ("version",)), complaints[0])
    where = ".".join(str(part) for part in first["loc"]) or "header"
    return WireError(
        f"a message does not follow version {VERSION} of the preview feed: {where}: {first['msg']}",
        fix="run the same version of acq-isl on both sides",
    )
