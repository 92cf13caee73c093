"""Which stack is predicted next. Pure: no thread, socket or clock; time is an argument.

Laws, which ``tests/stream/test_schedule.py`` checks:

* a job leaves once: taken, removed or expired; none is taken after its deadline;
* of one client's live jobs the newest is taken, of its bulk jobs the oldest;
* live comes before bulk, but after `LIVE_IN_A_ROW` live ones a bulk job that waits has its turn;
* within a class the client whose turn in it is longest ago comes first.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from acq_isl.stack import ZStack
from acq_isl.stream.incremental import IncrementalStatistics
from acq_isl.stream.messages import MemoryRef, Work
from acq_isl.stream.shared_memory import SharedMemoryView

LIVE_IN_A_ROW = 8


def priority(work: Work, number: int) -> tuple[int, int]:
    """What to sort stacks of one client by, first come first: live before bulk, latest live, oldest bulk."""
    return (0, -number) if work == "live" else (1, number)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A complete stack for one model, as the client names it.

    ``client`` is a session and ``number`` the stack's in it, which rises; what gave way to newer work comes
    again, and late. ``complete_s`` is Unix time, ``due_s`` the deadline on the server's monotonic clock.
    ``memory`` and ``ref`` say where its pixels lie if they are shared, ``statistics`` what the model's engine
    has measured of it.
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


@dataclass(frozen=True, slots=True)
class ScheduleCounts:
    """Jobs by what became of them; ``added == taken + removed + expired + those that wait``."""

    added: int = 0
    taken: int = 0
    removed: int = 0
    expired: int = 0
    refused: int = 0


class Schedule:
    """The jobs that wait: at most ``limit``, more are refused and counted."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._jobs: dict[tuple[str, int, str], Job] = {}
        self._count: Counter[str] = Counter()
        self._served: dict[tuple[str, Work], int] = {}  # by client and class: when it last had a turn
        self._live_in_a_row = 0

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def counts(self) -> ScheduleCounts:
        return ScheduleCounts(**self._count)

    def add(self, job: Job) -> bool:
        """Let a job wait; False (and counted) if too many do, or one of that id does."""
        if len(self._jobs) >= self._limit or job.id in self._jobs:
            self._count["refused"] += 1
            return False
        self._jobs[job.id] = job
        self._count["added"] += 1
        return True

    def remove(self, id_: tuple[str, int, str]) -> bool:
        """Take a job out unserved; False if it does not wait (any more)."""
        if self._jobs.pop(id_, None) is None:
            return False
        self._count["removed"] += 1
        return True

    def expire(self, now_s: float) -> list[Job]:
        """Take out the jobs whose deadline has come."""
        late = [job for job in self._jobs.values() if job.due_s <= now_s]
        for job in late:
            del self._jobs[job.id]
        self._count["expired"] += len(late)
        return late

    def first(self, now_s: float) -> Job | None:
        """The job whose turn it is, which goes on waiting; None if none waits that is not expired."""
        ready = [job for job in self._jobs.values() if now_s < job.due_s]
        bulk = [job for job in ready if job.work == "bulk"]
        if bulk and self._live_in_a_row >= LIVE_IN_A_ROW:
            ready = bulk
        return min(ready, key=self._order, default=None)

    def next(self, now_s: float) -> Job | None:
        """Take the job whose turn it is; None if none waits that is not expired."""
        first = self.first(now_s)
        if first is None:
            return None
        bulk = any(job.work == "bulk" and now_s < job.due_s for job in self._jobs.values())
        del self._jobs[first.id]
        self._count["taken"] += 1
        # How long live has kept bulk waiting; without bulk nobody waits.
        self._live_in_a_row = self._live_in_a_row + 1 if first.work == "live" and bulk else 0
        self._served[first.client, first.work] = self._count["taken"]
        self._forget_absent()
        return first

    def _order(self, job: Job) -> tuple[int, int, str, int]:
        class_, number = priority(job.work, job.number)
        return class_, self._served.get((job.client, job.work), 0), job.client, number

    def _forget_absent(self) -> None:
        """Clients come and go: of those without jobs only the latest are remembered."""
        if len(self._served) > 2 * self._limit:
            waiting = {(job.client, job.work) for job in self._jobs.values()}
            latest = set(sorted(self._served, key=lambda turns: self._served[turns])[-self._limit :])
            self._served = {key: when for key, when in self._served.items() if key in waiting | latest}
