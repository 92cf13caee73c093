"""Book-keeping of every stack between the camera and its outcome. No thread, socket or clock of its own.

::

    put ─► memory ──credit──► in flight ──► Prediction | Refusal
             │  ▲                 │ engine lost: back to memory, same id
        spill│  │load             └─ failed ─► disk ─► Unpredicted
             ▼  │
            disk ──ending (drained, closed)──► Unpredicted

Stacks are granted credit in the order in which they began, wherever they wait. The client calls every
method under its own lock.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np

from acq_isl.assemble import OpenStack
from acq_isl.stack import Outcome, Prediction, Refusal, Slice, StackInfo, StackKey, Unpredicted
from acq_isl.stream.held import ClientCounts, Held
from acq_isl.stream.ring import Ring
from acq_isl.stream.spool import SpoolReason

_REMEMBERED_KEYS = 4096
_SPARE_STACKS = 2
_FIRST_RESERVE_BYTES = 64 << 20


class Outbox:
    """All stacks without an outcome, the outcomes nobody took yet, and the counts.

    Parameters
    ----------
    ring : Ring
        Memory for the stacks that wait or travel.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self.held: dict[int, Held] = {}
        self.outcomes: list[Outcome] = []
        self.spare: list[Path] = []
        """Files of the spool that nobody needs any more."""
        self.count: Counter[str] = Counter()
        self._spooled_for: Counter[SpoolReason] = Counter()
        self._filling: dict[StackKey, Held] = {}
        self._finished_keys: OrderedDict[StackKey, None] = OrderedDict()
        self._next_id = 0
        self._latest_nbytes = 0

    @property
    def counts(self) -> ClientCounts:
        return ClientCounts(**self.count, spooled_for=tuple(sorted(self._spooled_for.items())))

    def reserve_ahead(self) -> None:
        """Have memory ready for the stacks to come. Needs no lock."""
        self._ring.reserve_ahead(max(_SPARE_STACKS * self._latest_nbytes, _FIRST_RESERVE_BYTES))

    @property
    def in_flight(self) -> int:
        return sum(held.credited for held in self.held.values())

    def accept(self, slice_: Slice, now_s: float) -> Held | None:
        """The stack whose memory shall take this slice (then call `landed`); None if it is not wanted.

        Duplicates are counted and ignored; without memory the slice is counted as lost.
        """
        info = slice_.info
        held = self._filling.get(info.key)
        if held is None and info.key not in self._finished_keys:
            held = self._begin(info, now_s)
            if held is None:
                self.count["lost"] += 1
                return None
        if held is None or held.stack.has(slice_.z_index):
            self.count["duplicates"] += 1
            return None
        if not _fits(held, slice_):
            self.count["lost"] += 1
            return None
        held.copying += 1
        self.count["captured"] += 1
        self.count["bytes_copied"] += slice_.pixels.nbytes
        return held

    def landed(self, held: Held, slice_: Slice, now_s: float) -> None:
        """Note that the pixels of a slice are in their place."""
        held.copying -= 1
        held.stack.mark(slice_.z_index, slice_.captured_s, now_s)
        held.waits_since_s = now_s
        if held.stack.complete:
            self._stop_filling(held)

    def grant(self, credit: int) -> list[Held]:
        """Give free credit to the stacks that began first; those returned must be read from disk."""
        to_read: list[Held] = []
        free = credit - self.in_flight
        for held in self.held.values():
            if held.credited or held.ending is not None:
                continue
            if free <= 0 or held.place == "writing":
                break
            if held.place == "disk":
                held.block = self._ring.allocate(held.stack.info)
                if held.block is None:
                    break
                held.stack.pixels = held.block.pixels
                held.place = "reading"
                to_read.append(held)
            held.credited = True
            free -= 1
        return to_read

    def engine_lost(self, server_has: frozenset[int] = frozenset()) -> None:
        """Take back all credit, but for complete stacks that the server says it has."""
        for held in self.held.values():
            kept = held.id in server_has and held.stack.complete and held.ending is None
            held.credited = kept
            held.sent = set(held.stack.present) if kept else set()

    def to_spill(self, absent_since_s: float | None, now_s: float, patience_s: float) -> SpoolReason | None:
        """Why waiting stacks have to leave the memory now, if they have to."""
        if self._ring.free_bytes < _SPARE_STACKS * self._latest_nbytes:
            return "memory full"
        if absent_since_s is not None and now_s - absent_since_s > patience_s:
            return "no engine"
        return None

    def spill(self, reason: SpoolReason) -> Held | None:
        """The newest complete stack that waits in memory, now to be written to disk, if there is one."""
        if any(held.place == "writing" for held in self.held.values()):
            return None
        for held in reversed(self.held.values()):
            idle = held.place == "memory" and not held.credited and held.ending is None
            if not idle or not held.stack.complete or held.copying:
                continue
            if held.path is not None:  # it came from disk and is still there
                self._leave_memory(held)
                continue
            held.place = "writing"
            return held
        return None

    def to_end(self) -> list[Held]:
        """Stacks that shall end and are in memory only, now to be written; those on disk are settled here."""
        to_write: list[Held] = []
        for held in list(self.held.values()):
            if held.ending is None or held.copying or held.with_disk:
                continue
            if held.path is not None or not held.stack.present:
                self._end(held, str(held.path or ""))
            else:
                held.place = "writing"
                to_write.append(held)
        return to_write

    def written(self, held: Held, path: Path, reason: SpoolReason) -> None:
        """A stack is on disk now."""
        held.path = path
        self.count["spooled"] += 1
        self._spooled_for[reason] += 1
        self._leave_memory(held)
        self._late_outcome(held)

    def not_written(self, held: Held, why: str) -> None:
        """The disk refused a stack: it stays in memory if it may, else it is lost."""
        held.place = "memory"
        if not self._late_outcome(held) and held.ending is not None:
            self.count["lost"] += len(held.stack.present)
            held.ending = (held.ending[0], f"{held.ending[1]}; {why}")
            self._end(held, "")

    def read(self, held: Held) -> None:
        """A stack is back in memory and can be sent."""
        held.place = "memory"
        self.count["replayed"] += 1
        self.count["bytes_copied"] += held.stack.pixels.nbytes
        self._late_outcome(held)

    def not_read(self, held: Held) -> None:
        """Nobody had time to read a stack: it goes on waiting on disk."""
        held.credited = False
        self._leave_memory(held)

    def unreadable(self, held: Held, why: str) -> None:
        """The file of a waiting stack is damaged or gone."""
        held.place = "memory"
        if not self._late_outcome(held):
            self.count["lost"] += len(held.stack.present)
            held.ending = ("failed", why)
            self._end(held, str(held.path or ""))

    def end(self, held: Held, reason: SpoolReason, why: str) -> None:
        """Give a stack up: it goes to disk and becomes `Unpredicted`."""
        if held.ending is None:
            held.ending = (reason, why)
            held.credited = False
            self._stop_filling(held)

    def expire(self, now_s: float, timeout_s: float) -> None:
        """End the stacks whose next slice does not come, so that they hold no credit for ever."""
        for held in list(self._filling.values()):
            if now_s - held.waits_since_s > timeout_s:
                self.end(held, "incomplete", held.incomplete)

    def end_all(self, reason: SpoolReason, why: str, *, incomplete_only: bool) -> None:
        """End what has no outcome yet; whatever is incomplete ends for that reason."""
        for held in list(self.held.values()):
            if not held.stack.complete:
                self.end(held, "incomplete", held.incomplete)
            elif not incomplete_only:
                self.end(held, reason, why)

    def settle(self, held: Held, outcome: Outcome) -> None:
        """A stack has its outcome."""
        if held.with_disk:  # the disk uses its memory: a moment later, then
            held.outcome = outcome
            return
        names = {Prediction: "predicted", Refusal: "refused", Unpredicted: "unpredicted"}
        self.count[names[type(outcome)]] += 1
        self.outcomes.append(outcome)
        self._stop_filling(held)
        self._leave_memory(held)
        del self.held[held.id]
        if held.path is not None and not isinstance(outcome, Unpredicted):
            self.spare.append(held.path)

    def _late_outcome(self, held: Held) -> bool:
        if held.outcome is None:
            return False
        self.settle(held, held.outcome)
        return True

    def _begin(self, info: StackInfo, now_s: float) -> Held | None:
        block = self._ring.allocate(info)
        if block is None:
            return None
        held = Held(self._next_id, OpenStack(info, block.pixels, now_s), block, waits_since_s=now_s)
        self._next_id += 1
        self._latest_nbytes = block.nbytes
        self.count["stacks"] += 1
        self.held[held.id] = self._filling[info.key] = held
        return held

    def _end(self, held: Held, where: str) -> None:
        _, why = held.ending or ("closed", "")
        self.settle(held, Unpredicted(held.stack.info, why, where))

    def _stop_filling(self, held: Held) -> None:
        if self._filling.get(held.stack.info.key) is held:
            del self._filling[held.stack.info.key]
            self._finished_keys[held.stack.info.key] = None
            while len(self._finished_keys) > _REMEMBERED_KEYS:
                self._finished_keys.popitem(last=False)

    def _leave_memory(self, held: Held) -> None:
        held.place = "disk"
        if held.block is not None:
            self._ring.release(held.block)
            held.block = None


def _fits(held: Held, slice_: Slice) -> bool:
    info = held.stack.info
    same = slice_.pixels.shape == info.shape and slice_.pixels.dtype == np.uint16
    return same and 0 <= slice_.z_index < info.planes
