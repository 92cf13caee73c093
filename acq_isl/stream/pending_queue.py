"""Book-keeping of every stack between the camera and its outcome. No thread, socket or clock of its own.

::

    put ─► memory ──credit──► in flight ──► Prediction | Refusal, from each model it was asked of
             │  ▲                 │ engine lost, or withdrawn for a newer one: back to memory, same id
        spill│  │load             └─ failed ─► disk ─► Unpredicted
             ▼  │
            disk ──ending (drained, closed, cancelled, deadline)──► Unpredicted

Credit goes to live work first, there to the latest, then to bulk as it began. Every stack has one outcome
from each of its models. The client calls every method under its own lock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from acq_isl.stack import Outcome, Prediction, Refusal, Slice, StackInfo, StackKey, Unpredicted
from acq_isl.stream.assembler import OpenStack
from acq_isl.stream.messages import Wanted
from acq_isl.stream.pending_stack import (
    ClientCounts,
    PendingStack,
    RecentKeys,
    in_flight,
    take_back,
    to_grant,
    to_leave,
)
from acq_isl.stream.shared_memory import SharedMemory
from acq_isl.stream.spool import SpoolReason

_SPARE_STACKS = 2
_FIRST_RESERVE_BYTES = 64 << 20
_CANCELLED = "it was cancelled"


class PendingQueue:
    """All stacks without an outcome, the outcomes nobody took yet, and the counts.

    Parameters
    ----------
    ring : SharedMemory
        Memory for the stacks that wait or travel.
    wanted : callable
        What is wanted of a stack that begins; must not raise.
    """

    def __init__(
        self, ring: SharedMemory, wanted: Callable[[StackInfo], Wanted] = lambda info: Wanted()
    ) -> None:
        self._ring, self._wanted = ring, wanted
        self.held: dict[int, PendingStack] = {}
        self.outcomes: list[Outcome] = []
        self.spare: list[Path] = []  # files of the spool that nobody needs any more
        self.unwanted: list[int] = []  # stacks that the server shall forget before it gets others
        self.count: Counter[str] = Counter()
        self._spooled_for: Counter[SpoolReason] = Counter()
        self._filling: dict[StackKey, PendingStack] = {}
        self._finished_keys = RecentKeys()
        self._next_id = self._latest_nbytes = 0

    @property
    def counts(self) -> ClientCounts:
        return ClientCounts(**self.count, spooled_for=tuple(sorted(self._spooled_for.items())))

    def reserve_ahead(self) -> None:
        """Have memory ready for the stacks to come. Needs no lock."""
        self._ring.reserve_ahead(max(_SPARE_STACKS * self._latest_nbytes, _FIRST_RESERVE_BYTES))

    def accept(self, slice_: Slice, now_s: float) -> PendingStack | None:
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
        if not held.fits(slice_):
            self.count["lost"] += 1
            return None
        held.copying += 1
        self.count["captured"] += 1
        self.count["bytes_copied"] += slice_.pixels.nbytes
        return held

    def landed(self, held: PendingStack, slice_: Slice, now_s: float) -> None:
        """Note that the pixels of a slice are in their place."""
        held.copying -= 1
        held.stack.mark(slice_.z_index, slice_.captured_s, now_s)
        held.waits_since_s = now_s
        if held.stack.complete:
            self._stop_filling(held)
            if held.cancelled:
                self.end(held, "cancelled", _CANCELLED)

    def grant(self, credit: int) -> list[PendingStack]:
        """Give free credit to the stacks whose turn it is; those returned must be read from disk."""
        to_read: list[PendingStack] = []
        free = credit - in_flight(self.held.values())
        for held in to_grant(self.held.values(), free):
            if held.place == "writing":
                break
            if held.place == "disk":
                held.block = self._ring.allocate(held.stack.info)
                if held.block is None:
                    break
                held.stack.pixels = held.block.pixels
                held.place = "reading"
                to_read.append(held)
            held.credited = True
        return to_read

    def withdrawn(self, stack: int) -> None:
        """The server has given a stack back."""
        held = self.held.get(stack)
        if held is not None and held.withdrawing:
            self.count["withdrawn"] += 1
            take_back(held)

    def to_spill(self, absent_since_s: float | None, now_s: float, patience_s: float) -> SpoolReason | None:
        """Why waiting stacks have to leave the memory now, if they have to."""
        if self._ring.free_bytes < _SPARE_STACKS * self._latest_nbytes:
            return "memory full"
        if absent_since_s is not None and now_s - absent_since_s > patience_s:
            return "no engine"
        return None

    def spill(self, reason: SpoolReason) -> PendingStack | None:
        """The last complete stack in turn that waits in memory, now to be written to disk."""
        for held in to_leave(self.held.values()):
            if held.path is None:
                held.place = "writing"
                return held
            self._leave_memory(held)  # it came from disk and is still there
        return None

    def to_end(self) -> list[PendingStack]:
        """Stacks that shall end and are in memory only, now to be written; those on disk end here."""
        to_write: list[PendingStack] = []
        for held in list(self.held.values()):
            if held.ending is None or held.copying or held.with_disk:
                continue
            if held.path is not None or not held.stack.present:
                self._end(held, str(held.path or ""))
            else:
                held.place = "writing"
                to_write.append(held)
        return to_write

    def written(self, held: PendingStack, path: Path, reason: SpoolReason) -> None:
        """A stack is on disk now."""
        held.path = path
        self.count["spooled"] += 1
        self._spooled_for[reason] += 1
        self._leave_memory(held)
        self._let_go(held)

    def not_written(self, held: PendingStack, why: str) -> None:
        """The disk refused a stack: it stays in memory if it may, else it is lost."""
        held.place = "memory"
        if not self._let_go(held) and held.ending is not None:
            self._lose(held, why, "")

    def read(self, held: PendingStack) -> None:
        """A stack is back in memory and can be sent."""
        held.place = "memory"
        self.count["replayed"] += 1
        self.count["bytes_copied"] += held.stack.pixels.nbytes
        self._let_go(held)

    def not_read(self, held: PendingStack) -> None:
        """Nobody had time to read a stack: it goes on waiting on disk."""
        held.credited = False
        self._leave_memory(held)

    def unreadable(self, held: PendingStack, why: str) -> None:
        """The file of a waiting stack is damaged or gone."""
        held.place = "memory"
        if not self._let_go(held):
            self._lose(held, why, str(held.path or ""))

    def end(self, held: PendingStack, reason: SpoolReason, why: str) -> None:
        """Give a stack up: it goes to disk and becomes `Unpredicted`."""
        if held.ending is None:
            held.ending = (reason, why)
            self._unwant(held)
            self._stop_filling(held)

    def cancel(self, key: StackKey) -> bool:
        """No model shall predict a stack any more; False if none waits or travels under that key."""
        found = [held for held in self.held.values() if held.stack.info.key == key and held.can_travel]
        for held in found:
            if held.stack.complete and not held.copying:
                self.end(held, "cancelled", _CANCELLED)
            else:  # what is still captured is kept, too
                held.cancelled = True
                self._unwant(held)
        return bool(found)

    def expire(self, now_s: float, timeout_s: float) -> None:
        """End stacks whose next slice does not come, and those that wait here beyond their deadline."""
        for held in list(self._filling.values()):
            if now_s - held.waits_since_s > timeout_s:
                self.end(held, "incomplete", held.incomplete)
        for held in self.held.values():
            if held.overdue(now_s):
                self.end(held, "deadline", held.too_late)

    def end_all(self, reason: SpoolReason, why: str, *, incomplete_only: bool) -> None:
        """End what has no outcome yet; whatever is incomplete ends for that reason."""
        for held in list(self.held.values()):
            if not held.stack.complete:
                self.end(held, "incomplete", held.incomplete)
            elif not incomplete_only:
                self.end(held, reason, why)

    def settle(self, held: PendingStack, outcome: Prediction | Refusal) -> None:
        """A model has answered; one that had answered before is not heard again."""
        if outcome.model in held.waits_for:
            held.waits_for.remove(outcome.model)
            self._tell(outcome)
            self._answered(held)

    def fail(self, held: PendingStack, model: str, reason: SpoolReason, why: str) -> None:
        """A model will not predict a stack; the others may."""
        if model in held.waits_for:
            held.waits_for.remove(model)
            held.failures[model] = (reason, why)
            self._answered(held)

    def _answered(self, held: PendingStack) -> None:
        if held.waits_for:
            return
        held.credited = False
        self._stop_filling(held)
        if held.failures and held.ending is None:
            held.ending = next(iter(held.failures.values()))
        self._let_go(held)

    def _let_go(self, held: PendingStack) -> bool:
        """Forget a stack that has all its outcomes, unless the disk is using its memory."""
        if not held.settled or held.with_disk:
            return False
        self._leave_memory(held)
        del self.held[held.id]
        if held.path is not None:
            self.spare.append(held.path)
        return True

    def _end(self, held: PendingStack, where: str) -> None:
        """Tell what is not predicted, and where it is."""
        for counted_as, outcome in held.unpredicted(where):
            self.count.update(counted_as)
            self._tell(outcome)
        self._stop_filling(held)
        self._leave_memory(held)
        del self.held[held.id]

    def _lose(self, held: PendingStack, why: str, where: str) -> None:
        """Neither an engine nor the disk has a stack."""
        self.count["lost"] += len(held.stack.present)
        held.blame(why)
        self._end(held, where)

    def _unwant(self, held: PendingStack) -> None:
        if held.sent:
            self.unwanted.append(held.id)
        take_back(held)

    def _tell(self, outcome: Outcome) -> None:
        names = {Prediction: "predicted", Refusal: "refused", Unpredicted: "unpredicted"}
        self.count[names[type(outcome)]] += 1
        self.outcomes.append(outcome)

    def _begin(self, info: StackInfo, now_s: float) -> PendingStack | None:
        block = self._ring.allocate(info)
        if block is None:
            return None
        stack = OpenStack(info, block.pixels, now_s)
        held = PendingStack(self._next_id, stack, block, waits_since_s=now_s, wanted=self._wanted(info))
        self._next_id += 1
        self._latest_nbytes = block.nbytes
        self.count["stacks"] += 1
        self.held[held.id] = self._filling[info.key] = held
        return held

    def _stop_filling(self, held: PendingStack) -> None:
        if self._filling.get(held.stack.info.key) is held:
            del self._filling[held.stack.info.key]
            self._finished_keys.add(held.stack.info.key)

    def _leave_memory(self, held: PendingStack) -> None:
        held.place = "disk"
        if held.block is not None:
            self._ring.release(held.block)
            held.block = None
