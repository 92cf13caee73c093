"""Where a viewer's messages come from: a run that goes on, or the folder of one that is over."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, Self

from acq_isl.commands import Command
from acq_isl.errors import AcqIslError
from acq_isl.events import Event
from acq_isl.view.feed.encode import MessageMaker
from acq_isl.view.feed.messages import Message
from acq_isl.view.feed.queues import LatestState, picture_bytes
from acq_isl.view.feed.requests import Answer

log = logging.getLogger(__name__)

_MAX_BYTES = 256 << 20
_PICTURES = 1 << 32


class RunSource(Protocol):
    """What a viewer takes messages from, on one thread of its own; see `FeedReader`."""

    @property
    def alive(self) -> bool:
        """Whether the run can still be heard of."""

    def take(self, limit: int | None = None) -> list[Message]:
        """What is new since the last call."""

    def send(self, command: Command, *, by: str = "operator") -> Answer:
        """Give the run a command."""


class WaitingSource(RunSource, Protocol):
    """A `RunSource` that can be waited for."""

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is something to take; False if there was nothing in time."""


OpenableSource = AbstractContextManager[WaitingSource]


class FinishedRun:
    """Plays the events of a run that is over, read on a thread of its own; nothing can be commanded.

    The newest of everything is kept within 256 MiB of pictures, as of a run that goes on. Events that cannot
    be read end it, with a warning.
    """

    alive = True

    def __init__(self, events: Iterable[Event]) -> None:
        self._events = events
        self._maker = MessageMaker(uuid.uuid4().hex)
        self._changed = threading.Condition()
        self._waiting: LatestState[Message] = LatestState(_MAX_BYTES)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name="acq-isl-finished", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=5)

    def take(self, limit: int | None = None) -> list[Message]:
        """As of `FeedReader`."""
        with self._changed:
            return self._waiting.take(limit)

    def wait(self, timeout_s: float) -> bool:
        """As of `FeedReader`."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._waiting) > 0, timeout_s)

    def send(self, command: Command, *, by: str = "operator") -> Answer:
        """Nobody is there to take it."""
        return Answer(id=0, taken=False, text="the run is over")

    def _read(self) -> None:
        try:
            for message in self._messages():
                with self._changed:
                    self._waiting.put(message)
                    self._changed.notify_all()
                if self._stopping.is_set():
                    return
        except (AcqIslError, OSError, ValueError, KeyError):
            log.warning("not all of the run can be shown", exc_info=True)

    def _messages(self) -> Iterator[Message]:
        # Pictures come newest first, and the newest is what is followed.
        for number, event in enumerate(self._events, start=1):
            seq = _PICTURES - number if picture_bytes(event) else _PICTURES + number
            yield from self._maker.messages(event, seq)
