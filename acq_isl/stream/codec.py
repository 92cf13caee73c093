"""The wire protocol: messages between client and server, as ZMQ frames. Pure; nothing is ever unpickled.

A message is a JSON header followed by raw little-endian buffers::

    SLICE   header, (y, x) uint16 unless the header points into shared memory
    RESULT  header, mean (label, y, x) float32, spread (label, y, x) float32
    others  header only

Every header names the protocol version and its type, and is checked strictly: whatever does not fit
is a `WireError`, whoever sent it. Predictions travel as float32: a served prediction then equals an
embedded one bit for bit, and on loop-back the bytes cost less than converting to float16 and back
(``benchmarks/transport.py``).

One conversation, and one of somebody who replaces a model::

    client  HELLO ........ SLICE SLICE SLICE ......................... DONE ... BEAT ... BYE
    server        WELCOME        RESULT | REFUSED | FAILED | EXPIRED       ALIVE    MODELS

    asker   SWAP
    server       LOADING ... SWAPPED | NOT_SWAPPED
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import astuple
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from acq_isl.errors import WireError
from acq_isl.processing.normalize import all_finite
from acq_isl.stack import Prediction, Slice, StackInfo
from acq_isl.stream import messages as wire

Frame = bytes | memoryview
_ADAPTER: TypeAdapter[wire.Message] = TypeAdapter(Annotated[wire.Message, Field(discriminator="type")])


def encode(message: wire.Message, buffers: Sequence[NDArray[Any]] = ()) -> list[Frame]:
    """Frames of a message, whose buffers are not copied; WireError if it breaks a limit of the protocol."""
    _check(message)
    if sys.byteorder != "little":  # pragma: no cover - no such machine runs Micro-Manager
        buffers = [buffer.byteswap() for buffer in buffers]
    views = [np.ascontiguousarray(buffer).reshape(-1).view(np.uint8).data for buffer in buffers]
    _check_sizes(message, [view.nbytes for view in views])
    try:
        header = message.model_dump_json().encode()
    except (PydanticSerializationError, UnicodeEncodeError) as error:
        raise WireError(f"a {message.type} message cannot be written as JSON: {error}") from error
    if len(header) > wire.MAX_HEADER_BYTES:
        raise WireError(
            f"the header of a {message.type} message is too long",
            wanted=f"<= {wire.MAX_HEADER_BYTES} B",
            got=f"{len(header)} B",
        )
    return [header, *views]


def decode(frames: Sequence[Frame]) -> tuple[wire.Message, tuple[memoryview, ...]]:
    """Message and its raw buffers, views of the frames; WireError unless both fit the protocol."""
    if not frames:
        raise WireError("a message without frames arrived")
    header = memoryview(frames[0]).cast("B")
    if header.nbytes > wire.MAX_HEADER_BYTES:
        raise WireError(
            "a message header is too long", wanted=f"<= {wire.MAX_HEADER_BYTES} B", got=f"{header.nbytes} B"
        )
    try:
        message = _ADAPTER.validate_json(bytes(header))
    except ValidationError as error:
        raise _explained(error) from error
    buffers = tuple(memoryview(frame).cast("B") for frame in frames[1:])
    _check(message)
    _check_sizes(message, [buffer.nbytes for buffer in buffers])
    return message, buffers


def slice_frames(
    stack: int,
    slice_: Slice,
    ref: wire.MemoryRef | None = None,
    wanted: wire.Wanted | None = None,
    left_ms: float | None = None,
) -> list[Frame]:
    """Frames of a slice; with ``ref`` its pixels lie in shared memory and only the header travels."""
    if slice_.pixels.shape != slice_.info.shape or slice_.pixels.dtype != np.uint16:
        raise WireError(
            f"a slice of {slice_.info.key} is not what was announced",
            wanted=f"{slice_.info.shape} uint16",
            got=f"{slice_.pixels.shape} {slice_.pixels.dtype}",
            fix="check camera ROI, binning and bit depth; they must not change within a run",
        )
    try:
        message = wire.SliceSent(
            stack=stack,
            info=slice_.info,
            z_index=slice_.z_index,
            captured_s=slice_.captured_s,
            ring=ref,
            wanted=wanted or wire.Wanted(),
            left_ms=left_ms,
        )
    except ValidationError as error:
        raise _explained(error) from error
    return encode(message, () if ref is not None else (slice_.pixels,))


def slice_of(message: wire.SliceSent, buffers: Sequence[memoryview]) -> Slice:
    """The slice of a message that carries its pixels (a read-only view of the received frame)."""
    if message.ring is not None:
        raise WireError("a slice that lies in shared memory has no pixels of its own")
    pixels = np.frombuffer(buffers[0].toreadonly(), "<u2").reshape(message.info.shape)
    return Slice(message.info, message.z_index, pixels, message.captured_s)


_SAME_IN_RESULT = (
    "labels", "model_sha256", "model_name", "engine", "warnings", "border_px", "times", "model", "distances",
    "counting", "focus_offset_um",
)  # fmt: skip


def result_of(stack: int, prediction: Prediction, complete_s: float) -> list[Frame]:
    """Frames of a prediction; WireError if the engine's arrays are not what they claim to be."""
    shape = (len(prediction.labels), *prediction.info.shape)
    for name, array in (("mean", prediction.mean), ("spread", prediction.spread)):
        if array.shape != shape or array.dtype != np.float32:
            raise WireError(
                f"the {name} of a prediction is not what its labels and stack imply",
                wanted=f"{shape} float32",
                got=f"{array.shape} {array.dtype}",
                fix="report this to the maker of the engine",
            )
    same: dict[str, Any] = {name: getattr(prediction, name) for name in _SAME_IN_RESULT}
    try:
        message = wire.Result(stack=stack, shape=prediction.info.shape, complete_s=complete_s, **same)
    except ValidationError as error:
        raise _explained(error) from error
    return encode(message, (prediction.mean, prediction.spread))


def prediction_of(message: wire.Result, buffers: Sequence[memoryview], info: StackInfo) -> Prediction:
    """The prediction of a result (views of the received frames); WireError if it is none of this stack."""
    if message.shape != info.shape:
        raise WireError(
            "a prediction is not of its stack's shape", wanted=f"{info.shape}", got=f"{message.shape}"
        )
    shape = (len(message.labels), *message.shape)
    mean, spread = (np.frombuffer(buffer.toreadonly(), "<f4").reshape(shape) for buffer in buffers)
    if not (all_finite(mean) and all_finite(spread)):
        raise WireError("a prediction holds values that are not numbers", wanted="finite means and SDs")
    same: dict[str, Any] = {name: getattr(message, name) for name in _SAME_IN_RESULT}
    return Prediction(info=info, mean=mean, spread=spread, **same)


def check_info(info: StackInfo) -> None:
    """WireError unless a stack is of a size that can exist and can travel."""
    rows, columns = info.shape
    if not (0 < rows <= wire.MAX_SIDE_PX and 0 < columns <= wire.MAX_SIDE_PX):
        raise WireError(
            "slices of this size cannot be sent", wanted=f"1 to {wire.MAX_SIDE_PX} px", got=f"{info.shape}"
        )
    if not 0 < info.planes <= wire.MAX_PLANES or info.planes * rows * columns * 2 > wire.MAX_STACK_BYTES:
        raise WireError(
            "a stack of this size cannot be sent",
            wanted=f"1 to {wire.MAX_PLANES} planes, at most {wire.MAX_STACK_BYTES >> 20} MiB",
            got=f"{info.planes} planes of {info.shape}",
        )
    if not all(math.isfinite(z) for z in info.z_um):
        raise WireError("a stack has a z that is not a number")
    if len(info.key.position) > wire.MAX_NAME or len(info.key.channel) > wire.MAX_NAME:
        raise WireError(
            "names of positions and channels are limited", wanted=f"<= {wire.MAX_NAME} characters"
        )


def _check(message: wire.Message) -> None:
    if isinstance(message, wire.SliceSent):
        check_info(message.info)
        if message.z_index >= message.info.planes:
            raise WireError(
                "a slice lies outside of its stack",
                wanted=f"z_index < {message.info.planes}",
                got=f"{message.z_index}",
            )
    elif isinstance(message, wire.Result):
        rows, columns = message.shape
        if not (0 < rows <= wire.MAX_SIDE_PX and 0 < columns <= wire.MAX_SIDE_PX):
            raise WireError("a prediction of this size cannot exist", got=f"{message.shape}")
        numbers = (*astuple(message.times), message.focus_offset_um or 0.0)
        if not all(math.isfinite(number) for number in numbers):
            raise WireError("a prediction has a time or a focus that is not a number", got=f"{numbers}")


def _check_sizes(message: wire.Message, got: list[int]) -> None:
    wanted: list[int] = []
    if isinstance(message, wire.SliceSent) and message.ring is None:
        wanted = [math.prod(message.info.shape) * 2]
    elif isinstance(message, wire.Result):
        wanted = [len(message.labels) * math.prod(message.shape) * 4] * 2
    if got != wanted or any(size > wire.MAX_FRAME_BYTES for size in got):
        raise WireError(
            f"the buffers of a {message.type} message do not fit its header",
            wanted=f"{wanted} B, each at most {wire.MAX_FRAME_BYTES} B",
            got=f"{got} B",
        )


def _explained(error: ValidationError) -> WireError:
    """The most telling of pydantic's complaints: another version explains all others."""
    complaints = error.errors(include_url=False, include_input=False)
    first = next((c for c in complaints if c["loc"][-1:] == ("version",)), complaints[0])
    where = wire.printable(".".join(str(part) for part in first["loc"])) or "header"
    return WireError(
        f"a message does not follow protocol version {wire.VERSION}: {where}: {first['msg']}",
        fix="run the same version of acq-isl on both sides",
    )
