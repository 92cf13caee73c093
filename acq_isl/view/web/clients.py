"""All browsers that look at one run: each gets the newest, at its own speed. Lives on the event loop."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from acq_isl.events import Predicted, Seen
from acq_isl.processing.display import stretched
from acq_isl.view.feed.messages import Message, encode
from acq_isl.view.feed.queues import LatestState

MAX_VIEWERS = 32
_QUALITY = 88
_STATE_BYTES = 128 << 20
_VIEWER_BYTES = 32 << 20
_WINDOW = 8


@dataclass(frozen=True, slots=True, eq=False)
class Packet(Message):
    """A message, encoded once for all browsers: what is sent, and how much of it are images."""

    frame: bytes = b""
    jpeg_bytes: int = 0

    @property
    def nbytes(self) -> int:
        return self.jpeg_bytes


def packet(message: Message) -> Packet:
    """The frame of a message: its header, and its images as JPEG, which takes about 2 ms each."""
    jpegs: list[bytes] = []
    if isinstance(message.event, Seen):
        low, high = message.event.low, max(message.event.high, message.event.low + 1.0)
        jpegs = [_jpeg(stretched(message.images[0], low, high))]
    elif isinstance(message.event, Predicted):
        jpegs = [_jpeg(plane) for plane in (*message.images[0], message.images[1])]
    header = {**json.loads(bytes(encode(message)[0])), "jpegs": [len(jpeg) for jpeg in jpegs]}
    text = to_json(header, inf_nan_mode="null")  # NaN and infinity are no JSON for a browser
    frame = b"".join([struct.pack("<I", len(text)), text, *jpegs])
    jpeg_bytes = sum(header["jpegs"])
    return Packet(message.run, message.seq, message.event, (), message.sent, frame, jpeg_bytes)


def _jpeg(plane: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


class Viewer:
    """One browser: what it has not got yet, and how much it has on its way.

    At most eight frames are on their way; a browser that does not confirm them, such as a tab asleep,
    is sent nothing more, and gets the newest of everything when it wakes.
    """

    def __init__(self) -> None:
        self._waiting: LatestState[Packet] = LatestState(_VIEWER_BYTES)
        self._changed = asyncio.Event()
        self._sent = 0
        self._confirmed = 0

    def put(self, packet: Packet) -> None:
        self._waiting.put(packet)
        self._changed.set()

    def confirm(self, received: int) -> None:
        """It has handled so many frames since it connected."""
        self._confirmed = min(max(received, self._confirmed), self._sent)
        self._changed.set()

    async def next(self) -> Packet:
        """The next frame to send, as soon as there is one and the browser keeps up."""
        while not len(self._waiting) or self._sent - self._confirmed >= _WINDOW:
            self._changed.clear()
            await self._changed.wait()
        self._sent += 1
        return self._waiting.take(1)[0]


class Hub:
    """The latest state of a run, and everybody who looks at it. Only the event loop touches it."""

    def __init__(self) -> None:
        self._latest: LatestState[Packet] = LatestState(_STATE_BYTES)
        self._viewers: set[Viewer] = set()

    @property
    def full(self) -> bool:
        return len(self._viewers) >= MAX_VIEWERS

    def join(self) -> Viewer:
        """A new viewer, with everything there is so far waiting for it."""
        viewer = Viewer()
        for known in self._latest.present():
            viewer.put(known)
        self._viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """A viewer has gone."""
        self._viewers.discard(viewer)

    def publish(self, packet: Packet) -> None:
        """Keep a message and hand it to every viewer."""
        if self._latest.put(packet):
            for viewer in self._viewers:
                viewer.put(packet)
