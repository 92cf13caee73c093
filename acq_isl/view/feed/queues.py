"""Bounded places to wait for whoever watches: newest picture first, every drop counted."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from acq_isl.events import Decided, Event, Predicted, Seen
from acq_isl.view.feed.messages import Message, slot

MAX_NOTES = 10_000
MAX_PICTURE_BYTES = 256 << 20
MAX_DECISIONS = 500

T = TypeVar("T", bound=Message)


class EventQueue:
    """Events between a session and a view. Any thread may put; putting never waits for long.

    Overflow policy "newest picture first, oldest dropped": notes (events without pictures) are taken in
    order, then pictures, newest first. Every drop is counted.
    """

    def __init__(self, max_bytes: int = MAX_PICTURE_BYTES, max_notes: int = MAX_NOTES) -> None:
        self._changed = threading.Condition()
        self._notes: deque[tuple[int, Event]] = deque()
        self._pictures: deque[tuple[int, Event]] = deque()
        self._last = 0
        self._bytes = 0
        self._max_bytes, self._max_notes = max_bytes, max_notes
        self.dropped = 0

    def put(self, event: Event) -> None:
        with self._changed:
            self._last += 1
            nbytes = picture_bytes(event)
            (self._pictures if nbytes else self._notes).append((self._last, event))
            self._bytes += nbytes
            while self._bytes > self._max_bytes and len(self._pictures) > 1:
                self._bytes -= picture_bytes(self._pictures.popleft()[1])
                self.dropped += 1
            if len(self._notes) > self._max_notes:
                self._notes.popleft()
                self.dropped += 1
            self._changed.notify()

    def number(self) -> int:
        """When it is now: a number between those of the events before and after."""
        with self._changed:
            self._last += 1
            return self._last

    def take(self, timeout_s: float = 0.0) -> tuple[int, Event] | None:
        """The next event with its number: the oldest note, else the newest picture; None if there is none."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._notes or self._pictures, timeout_s):
                return None
            if self._notes:
                return self._notes.popleft()
            number, event = self._pictures.pop()
            self._bytes -= picture_bytes(event)
            return number, event


def picture_bytes(event: Event) -> int:
    """Size of the pictures beside an event; 0 without."""
    if isinstance(event, Seen) and event.pixels is not None:
        return int(event.pixels.nbytes)
    if isinstance(event, Predicted) and event.prediction is not None:
        return int(event.prediction.mean.nbytes + event.prediction.spread.nbytes)
    return 0


class LatestState(Generic[T]):
    """The newest message of each slot, images within ``max_bytes``. Owned by one thread, or locked.

    Overflow policy: the oldest images go first, then the oldest decisions; other notes stay. Messages with
    images that a newer one replaced are counted in ``replaced``, those that had to go in ``forgotten``.
    """

    def __init__(self, max_bytes: int, max_decisions: int = MAX_DECISIONS) -> None:
        self._items: OrderedDict[Hashable, T] = OrderedDict()
        self._decisions: deque[Hashable] = deque()
        self._bytes = 0
        self._max_bytes, self._max_decisions = max_bytes, max_decisions
        self.replaced = self.forgotten = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def skipped(self) -> int:
        """Images that were never taken."""
        return self.replaced + self.forgotten

    def put(self, item: T) -> bool:
        """Keep a message; False if a newer one of its slot is there already."""
        place = slot(item)
        known = self._items.get(place)
        if known is not None:
            if known.seq >= item.seq:
                return False
            self.replaced += bool(known.nbytes)
            self._drop(place)
        self._items[place] = item
        self._bytes += item.nbytes
        if isinstance(item.event, Decided):
            self._decisions.append(place)
            if len(self._decisions) > self._max_decisions:
                self._drop(self._decisions[0])
        while self._bytes > self._max_bytes:
            pictures = [(kept.seq, place) for place, kept in self._items.items() if kept.nbytes]
            self._drop(min(pictures, key=lambda found: found[0])[1])
            self.forgotten += 1
        return True

    def present(self, since: int = -1) -> list[T]:
        """What was sent after ``since``: notes in order first, then images, newest first."""
        return sorted((item for item in self._items.values() if item.sent > since), key=_urgency)

    def take(self, limit: int | None = None) -> list[T]:
        """Take at most ``limit`` out: notes in order first, then images, newest first."""
        taken = self.present()[:limit]
        for item in taken:
            self._drop(slot(item))
        return taken

    def _drop(self, place: Hashable) -> None:
        item = self._items.pop(place)
        self._bytes -= item.nbytes
        if isinstance(item.event, Decided):
            self._decisions.remove(place)


def _urgency(item: Message) -> tuple[bool, int]:
    return (True, -item.seq) if item.nbytes else (False, item.seq)
