"""All browsers that look at one run: each gets the newest, at its own speed. Lives on the event loop."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from acq_isl.view.feed.messages import Light, Message, Parcel, Predicted
from acq_isl.view.feed.queues import Newest, Shelf
from acq_isl.view.feed.reader import FeedReader

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


log = logging.getLogger(__name__)

_SHELF_BYTES = 128 << 20
_VIEWER_BYTES = 32 << 20
_WINDOW = 8
MAX_VIEWERS = 32


class Viewer:
    """One browser: what it has not got yet, and how much it has on its way.

    At most eight frames are on their way; a browser that does not confirm them, such as a tab asleep,
    is sent nothing more, and gets the newest of everything when it wakes.
    """

    def __init__(self) -> None:
        self._waiting: Newest[Packet] = Newest(_VIEWER_BYTES)
        self._changed = asyncio.Event()
        self._sent = 0
        self._confirmed = 0

    @property
    def skipped(self) -> int:
        """Pictures it never got, since newer ones came."""
        return self._waiting.skipped

    def put(self, one: Packet) -> None:
        self._waiting.put(one)
        self._changed.set()

    def confirm(self, received: int) -> None:
        """It has handled so many frames since it connected."""
        self._confirmed = min(max(received, self._confirmed), self._sent)
        self._changed.set()

    async def next(self) -> Packet:
        """The next frame to send, as soon as there is one and the browser keeps up."""
        while True:
            if len(self._waiting) and self._sent - self._confirmed < _WINDOW:
                self._sent += 1
                return self._waiting.take(1)[0]
            self._changed.clear()
            await self._changed.wait()


class Hub:
    """The present state of a run, and everybody who looks at it. Only the event loop touches it."""

    def __init__(self) -> None:
        self._shelf: Shelf[Packet] = Shelf(_SHELF_BYTES)
        self._viewers: set[Viewer] = set()

    @property
    def full(self) -> bool:
        return len(self._viewers) >= MAX_VIEWERS

    def join(self) -> Viewer:
        """A new viewer, with everything there is so far waiting for it."""
        viewer = Viewer()
        for one in self._shelf.present():
            viewer.put(one)
        self._viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """A viewer has gone."""
        self._viewers.discard(viewer)

    def publish(self, one: Packet) -> None:
        """Keep a message and hand it to every viewer."""
        if self._shelf.put(one):
            for viewer in self._viewers:
                viewer.put(one)


class Pump:
    """A thread that takes from a reader, encodes, and hands over to the event loop.

    Parameters
    ----------
    reader : FeedReader
        Open; the pump alone takes from it.
    publish : callable
        Called on ``loop``.
    loop : asyncio.AbstractEventLoop
    """

    def __init__(
        self, reader: FeedReader, publish: Callable[[Packet], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        self._reader, self._publish, self._loop = reader, publish, loop
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="acq-isl-page", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if not self._reader.wait(0.25):
                    continue
                # One at a time: what comes in while a picture is encoded may be newer than the rest.
                for parcel in self._reader.take(1):
                    self._loop.call_soon_threadsafe(self._publish, packet(parcel))
        except Exception:
            log.exception("the page is not fed any more")
