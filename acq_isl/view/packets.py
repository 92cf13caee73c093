"""Messages of the feed as a browser takes them: JSON header and JPEG pictures in one binary frame. Pure.

::

    uint32 little endian   length of the header in bytes
    header                 JSON: the message, and "jpegs", the length of each picture in bytes
    pictures               JPEG, 8-bit gray: LIGHT from low to high; PREDICTED each label, then doubt
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.view.feed.messages import Light, Message, Parcel, Predicted

_QUALITY = 88


@dataclass(frozen=True, slots=True, eq=False)
class Packet:
    """A message, encoded once for all browsers.

    Parameters
    ----------
    message : Message
    frame : bytes
        What is sent.
    nbytes : int
        Size of the pictures; 0 without.
    """

    message: Message
    frame: bytes
    nbytes: int


def packet(parcel: Parcel) -> Packet:
    """The frame of a message; pictures become JPEG, which takes about 2 ms each."""
    message = parcel.message
    pictures: list[bytes] = []
    match message:
        case Light(low=low, high=high):
            pictures = [_jpeg(_stretched(parcel.pictures[0], low, high))]
        case Predicted():
            pictures = [_jpeg(plane) for plane in (*parcel.pictures[0], parcel.pictures[1])]
        case _:
            pass
    header = message.model_dump(mode="json")
    # NaN and infinity are no JSON for a browser.
    text = json.dumps({**_finite(header), "jpegs": [len(one) for one in pictures]}, allow_nan=False).encode()
    frame = b"".join([struct.pack("<I", len(text)), text, *pictures])
    return Packet(message, frame, sum(len(one) for one in pictures))


def _stretched(plane: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    scale = 255.0 / max(high - low, 1.0)
    shown: NDArray[np.uint8] = np.clip((plane.astype(np.float32) - low) * scale, 0, 255).astype(np.uint8)
    return shown


def _jpeg(plane: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {key: _finite(entry) for key, entry in value.items()}
        case list():
            return [_finite(entry) for entry in value]
        case float() if not np.isfinite(value):
            return None
        case _:
            return value
