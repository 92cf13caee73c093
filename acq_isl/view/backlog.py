"""News that wait for the feed's thread, and what is kept for a viewer that comes late. Both bounded."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Hashable

from acq_isl.news import News, Predicted, Seen
from acq_isl.view.messages import Decided, Parcel, slot

MAX_NOTES = 10_000
MAX_PICTURE_BYTES = 256 << 20
MAX_DECISIONS = 500


class Backlog:
    """News between the session and the feed. Any thread may put; putting never waits for long.

    Overflow policy "newest picture first, oldest dropped": notes (news without pictures) are taken in
    order, pictures newest first. Every drop is counted.
    """

    def __init__(self, max_bytes: int = MAX_PICTURE_BYTES, max_notes: int = MAX_NOTES) -> None:
        self._lock = threading.Lock()
        self._notes: deque[News] = deque()
        self._pictures: deque[tuple[Seen | Predicted, int]] = deque()
        self._bytes = 0
        self._max_bytes, self._max_notes = max_bytes, max_notes
        self.dropped = 0

    def put(self, news: News) -> None:
        with self._lock:
            if isinstance(news, Seen | Predicted):
                nbytes = _nbytes(news)
                self._pictures.append((news, nbytes))
                self._bytes += nbytes
                while self._bytes > self._max_bytes and len(self._pictures) > 1:
                    self._bytes -= self._pictures.popleft()[1]
                    self.dropped += 1
            else:
                self._notes.append(news)
                if len(self._notes) > self._max_notes:
                    self._notes.popleft()
                    self.dropped += 1

    def notes(self) -> list[News]:
        """All notes so far, oldest first."""
        with self._lock:
            taken, self._notes = list(self._notes), deque()
            return taken

    def picture(self) -> Seen | Predicted | None:
        """The newest picture."""
        with self._lock:
            if not self._pictures:
                return None
            news, nbytes = self._pictures.pop()
            self._bytes -= nbytes
            return news


def _nbytes(news: Seen | Predicted) -> int:
    if isinstance(news, Seen):
        return int(news.pixels.nbytes)
    return int(news.prediction.mean.nbytes + news.prediction.spread.nbytes)


class Shelf:
    """The present state of a run as messages: the newest of each slot, pictures within ``max_bytes``.

    Overflow policy: the pictures put longest ago go first, and are counted; notes stay. Owned by one thread.
    """

    def __init__(self, max_bytes: int, max_decisions: int = MAX_DECISIONS) -> None:
        self._parcels: OrderedDict[Hashable, Parcel] = OrderedDict()
        self._decisions: deque[Hashable] = deque()
        self._bytes = 0
        self._max_bytes, self._max_decisions = max_bytes, max_decisions
        self.forgotten = 0

    def put(self, parcel: Parcel) -> bool:
        """Keep a message; False if a newer one of its slot is there already."""
        place = slot(parcel.message)
        known = self._parcels.get(place)
        if known is not None:
            if known.message.seq >= parcel.message.seq:
                return False
            self._drop(place)
        self._parcels[place] = parcel
        self._bytes += parcel.nbytes
        if isinstance(parcel.message, Decided):
            self._decisions.append(place)
            if len(self._decisions) > self._max_decisions:
                self._drop(self._decisions.popleft())
        self._shrink()
        return True

    def present(self, since: int = -1) -> list[Parcel]:
        """What is kept with a number above ``since``: notes in order first, then pictures, newest first."""
        kept = [one for one in self._parcels.values() if one.message.seq > since]
        notes = sorted((one for one in kept if not one.pictures), key=lambda one: one.message.seq)
        pictures = sorted((one for one in kept if one.pictures), key=lambda one: -one.message.seq)
        return notes + pictures

    def _drop(self, place: Hashable) -> None:
        self._bytes -= self._parcels.pop(place).nbytes

    def _shrink(self) -> None:
        while self._bytes > self._max_bytes:
            oldest = next(place for place, one in self._parcels.items() if one.pictures)
            self._drop(oldest)
            self.forgotten += 1
