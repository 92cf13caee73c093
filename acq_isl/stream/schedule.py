"""Which stack is predicted next. Pure: no thread, socket or clock; time is an argument.

Laws, which ``tests/stream/test_schedule.py`` checks:

* a ticket leaves once: taken, removed or expired; none is taken after its deadline;
* of one client's live tickets the newest is taken, of its bulk tickets the oldest;
* live comes before bulk, but after `LIVE_IN_A_ROW` live ones a bulk ticket that waits has its turn;
* within a class the client whose turn in it is longest ago comes first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from acq_isl.stack import ZStack
from acq_isl.stream.incremental import IncrementalStatistics
from acq_isl.stream.messages import MemoryRef, Work
from acq_isl.stream.shared_memory import SharedMemoryView

LIVE_IN_A_ROW = 8


def priority(work: Work, number: int) -> tuple[int, int]:
    """What to sort stacks of one client by, first come first: live before bulk, latest live, oldest bulk."""
    return (0, -number) if work == "live" else (1, number)


class Ticket(Protocol):
    """What waits: something of a client, with a number that rises, not to be taken at or after ``due_s``."""

    @property
    def id(self) -> Hashable: ...
    @property
    def client(self) -> str: ...
    @property
    def work(self) -> Work: ...
    @property
    def number(self) -> int: ...
    @property
    def due_s(self) -> float: ...


T = TypeVar("T", bound=Ticket)


@dataclass(frozen=True, slots=True)
class ScheduleCounts:
    """Tickets by what became of them; ``added == taken + removed + expired + those that wait``."""

    added: int = 0
    taken: int = 0
    removed: int = 0
    expired: int = 0
    refused: int = 0


class Schedule(Generic[T]):
    """The tickets that wait: at most ``limit``, more are refused and counted."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tickets: dict[Hashable, T] = {}
        self._count: Counter[str] = Counter()
        self._served: dict[tuple[str, Work], int] = {}  # by client and class: when it last had a turn
        self._live_in_a_row = 0

    def __len__(self) -> int:
        return len(self._tickets)

    @property
    def counts(self) -> ScheduleCounts:
        return ScheduleCounts(**self._count)

    def add(self, ticket: T) -> bool:
        """Let a ticket wait; False (and counted) if too many do, or one of that id does."""
        if len(self._tickets) >= self._limit or ticket.id in self._tickets:
            self._count["refused"] += 1
            return False
        self._tickets[ticket.id] = ticket
        self._count["added"] += 1
        return True

    def remove(self, id_: Hashable) -> bool:
        """Take a ticket out unserved; False if it does not wait (any more)."""
        if self._tickets.pop(id_, None) is None:
            return False
        self._count["removed"] += 1
        return True

    def expire(self, now_s: float) -> list[T]:
        """Take out the tickets whose deadline has come."""
        late = [ticket for ticket in self._tickets.values() if ticket.due_s <= now_s]
        for ticket in late:
            del self._tickets[ticket.id]
        self._count["expired"] += len(late)
        return late

    def first(self, now_s: float) -> T | None:
        """The ticket whose turn it is, which goes on waiting; None if none waits that is not expired."""
        ready = [ticket for ticket in self._tickets.values() if now_s < ticket.due_s]
        bulk = [ticket for ticket in ready if ticket.work == "bulk"]
        if bulk and self._live_in_a_row >= LIVE_IN_A_ROW:
            ready = bulk
        return min(ready, key=self._order, default=None)

    def next(self, now_s: float) -> T | None:
        """Take the ticket whose turn it is; None if none waits that is not expired."""
        first = self.first(now_s)
        if first is None:
            return None
        bulk = any(ticket.work == "bulk" and now_s < ticket.due_s for ticket in self._tickets.values())
        del self._tickets[first.id]
        self._count["taken"] += 1
        # How long live has kept bulk waiting; without bulk nobody waits.
        self._live_in_a_row = self._live_in_a_row + 1 if first.work == "live" and bulk else 0
        self._served[first.client, first.work] = self._count["taken"]
        self._forget_absent()
        return first

    def _order(self, ticket: T) -> tuple[int, int, str, int]:
        class_, number = priority(ticket.work, ticket.number)
        return class_, self._served.get((ticket.client, ticket.work), 0), ticket.client, number

    def _forget_absent(self) -> None:
        """Clients come and go: of those without tickets only the latest are remembered."""
        if len(self._served) > 2 * self._limit:
            waiting = {(ticket.client, ticket.work) for ticket in self._tickets.values()}
            latest = set(sorted(self._served, key=lambda turns: self._served[turns])[-self._limit :])
            self._served = {key: when for key, when in self._served.items() if key in waiting | latest}


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A complete stack for one model: the `Ticket` of the engines' schedule.

    Parameters
    ----------
    client : str
        Its session.
    number : int
        Of the stack in its session; what gave way to newer work comes again, and late.
    model : str
        As the client names it.
    zstack : ZStack
    complete_s : float
        Unix time at which it was complete here.
    work : "live" or "bulk"
    due_s : float
        Deadline on the server's monotonic clock.
    memory, ref : SharedMemoryView and MemoryRef, optional
        Where its pixels lie, if in shared memory.
    statistics : IncrementalStatistics, optional
        What the model's engine has measured of it.
    """

    client: str
    number: int
    model: str
    zstack: ZStack
    complete_s: float
    work: Work = "bulk"
    due_s: float = math.inf
    memory: SharedMemoryView | None = None
    ref: MemoryRef | None = None
    statistics: IncrementalStatistics | None = None

    @property
    def id(self) -> tuple[str, int, str]:
        return self.client, self.number, self.model

    @property
    def intact(self) -> bool:
        """Whether the pixels in shared memory are still this stack's."""
        return self.memory is None or self.ref is None or self.memory.holds(self.ref)
