"""Bounded places to wait for what is shown: newest first, every drop counted."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

from acq_isl.events import Event, Predicted, Seen
from acq_isl.view.feed.messages import Decided, Message, slot

MAX_NOTES = 10_000
MAX_PICTURE_BYTES = 256 << 20
MAX_DECISIONS = 500


class Item(Protocol):
    """A message on its way, with or without pictures."""

    @property
    def message(self) -> Message: ...

    @property
    def nbytes(self) -> int:
        """Size of the pictures; 0 without."""


T = TypeVar("T", bound=Item)


class Backlog:
    """Event between the session and the feed. Any thread may put; putting never waits for long.

    Overflow policy "newest picture first, oldest dropped": notes (news without pictures) are taken in
    order, pictures newest first. Every drop is counted.
    """

    def __init__(self, max_bytes: int = MAX_PICTURE_BYTES, max_notes: int = MAX_NOTES) -> None:
        self._lock = threading.Lock()
        self._notes: deque[tuple[int, Event]] = deque()
        self._pictures: deque[tuple[int, Seen | Predicted, int]] = deque()
        self._last = 0
        self._bytes = 0
        self._max_bytes, self._max_notes = max_bytes, max_notes
        self.dropped = 0

    def put(self, news: Event) -> None:
        with self._lock:
            self._last += 1
            if isinstance(news, Seen | Predicted):
                nbytes = _nbytes(news)
                self._pictures.append((self._last, news, nbytes))
                self._bytes += nbytes
                while self._bytes > self._max_bytes and len(self._pictures) > 1:
                    self._bytes -= self._pictures.popleft()[2]
                    self.dropped += 1
            else:
                self._notes.append((self._last, news))
                if len(self._notes) > self._max_notes:
                    self._notes.popleft()
                    self.dropped += 1

    def number(self) -> int:
        """When it is now: a number between those of the news before and after."""
        with self._lock:
            self._last += 1
            return self._last

    def notes(self) -> list[tuple[int, Event]]:
        """All notes so far with their numbers, oldest first."""
        with self._lock:
            taken, self._notes = list(self._notes), deque()
            return taken

    def picture(self) -> tuple[int, Seen | Predicted] | None:
        """The newest picture with its number."""
        with self._lock:
            if not self._pictures:
                return None
            number, news, nbytes = self._pictures.pop()
            self._bytes -= nbytes
            return number, news


def _nbytes(news: Seen | Predicted) -> int:
    if isinstance(news, Seen):
        return int(news.pixels.nbytes)
    return int(news.prediction.mean.nbytes + news.prediction.spread.nbytes)


class Shelf(Generic[T]):
    """The present state of a run: the newest message of each slot, pictures within ``max_bytes``.

    Overflow policy: the oldest pictures go first, and are counted; notes stay. Owned by one thread.
    """

    def __init__(self, max_bytes: int, max_decisions: int = MAX_DECISIONS) -> None:
        self._items: OrderedDict[Hashable, T] = OrderedDict()
        self._decisions: deque[Hashable] = deque()
        self._bytes = 0
        self._max_bytes, self._max_decisions = max_bytes, max_decisions
        self.forgotten = 0

    def put(self, item: T) -> bool:
        """Keep a message; False if a newer one of its slot is there already."""
        place = slot(item.message)
        known = self._items.get(place)
        if known is not None:
            if known.message.seq >= item.message.seq:
                return False
            self._drop(place)
        self._items[place] = item
        self._bytes += item.nbytes
        if isinstance(item.message, Decided):
            self._decisions.append(place)
            if len(self._decisions) > self._max_decisions:
                self._drop(self._decisions.popleft())
        self.forgotten += len(_shrink(self, self._max_bytes))
        return True

    def present(self, since: int = -1) -> list[T]:
        """What was sent after ``since``: notes in order first, then pictures, newest first."""
        return sorted((one for one in self._items.values() if one.message.sent > since), key=_urgency)

    def _drop(self, place: Hashable) -> None:
        self._bytes -= self._items.pop(place).nbytes


class Newest(Generic[T]):
    """What one viewer has not got yet: the newest message of each slot. Owned by one thread, or locked.

    Overflow policy: a newer message replaces the waiting one of its slot; pictures beyond ``max_bytes`` go,
    oldest first. Pictures that go either way are counted in ``skipped``.
    """

    def __init__(self, max_bytes: int) -> None:
        self._items: OrderedDict[Hashable, T] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes
        self.skipped = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> None:
        """Wait to be taken."""
        place = slot(item.message)
        if place in self._items:
            self.skipped += bool(self._items[place].nbytes)
            self._drop(place)
        self._items[place] = item
        self._bytes += item.nbytes
        self.skipped += len(_shrink(self, self._max_bytes))

    def take(self, limit: int | None = None) -> list[T]:
        """At most ``limit``: notes in order first, then pictures, newest first."""
        taken = sorted(self._items.values(), key=_urgency)[:limit]
        for one in taken:
            self._drop(slot(one.message))
        return taken

    def _drop(self, place: Hashable) -> None:
        self._bytes -= self._items.pop(place).nbytes


def _shrink(store: Shelf[T] | Newest[T], max_bytes: int) -> list[Hashable]:
    """Drop the oldest pictures until the rest fits."""
    gone = []
    while store._bytes > max_bytes:
        pictures = [(one.message.seq, place) for place, one in store._items.items() if one.nbytes]
        oldest = min(pictures, key=lambda found: found[0])[1]
        store._drop(oldest)
        gone.append(oldest)
    return gone


def _urgency(item: Item) -> tuple[bool, int]:
    seq = item.message.seq
    return (True, -seq) if item.nbytes else (False, seq)
