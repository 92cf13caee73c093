"""All stacks between the camera and their outcomes, in the states of `acq_isl.stream.pending_stack.State`.

Credit goes to live work first, there to the latest, then to bulk as it began. Every stack has one outcome
from each of its models. Any thread may call any method; none waits but for `PendingQueue.wait_for`.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from acq_isl.stack import Outcome, Prediction, Refusal, Slice, StackInfo, StackKey, Unpredicted
from acq_isl.stream.accounts import AFTER_DRAIN, SECOND_IMAGE, Fate, SliceAccounts
from acq_isl.stream.messages import Wanted
from acq_isl.stream.overflow import OverflowMemory
from acq_isl.stream.pending_stack import ClientCounts, PendingStack, State
from acq_isl.stream.shared_memory import SharedMemory
from acq_isl.stream.spool import SpoolReason

log = logging.getLogger(__name__)

_SPARE_STACKS = 2
_FIRST_RESERVE_BYTES = 64 << 20
_OUTCOMES_AHEAD = 16
_KEYS_REMEMBERED = 4096
_COUNTED_AS: dict[SpoolReason, str] = {"failed": "failed", "deadline": "expired", "cancelled": "cancelled"}


_StackId = tuple[int, StackKey]  # with its acquisition


class _Ended(NamedTuple):
    """A stack that takes no slice any more, and what becomes of those that it still missed."""

    missing: frozenset[int]
    fate: Fate
    why: str


@dataclass(frozen=True, slots=True)
class SendPlan:
    """What to do for the server now: first have stacks read from disk, then send in this order.

    ``forget`` are ids that it shall forget, ``recall`` stacks that it shall give back if not yet begun,
    ``slices`` pairs of stack and z.
    """

    read: list[PendingStack]
    forget: list[int]
    recall: list[PendingStack]
    slices: list[tuple[PendingStack, int]]


class PendingQueue:
    """The stacks without an outcome, the outcomes that nobody took yet, and the counts.

    ``wanted`` says what is wanted of a stack that begins, and must not raise; ``clock`` is monotonic.
    """

    def __init__(
        self,
        memory: SharedMemory,
        accounts: SliceAccounts,
        wanted: Callable[[StackInfo], Wanted] = lambda info: Wanted(),
        clock: Callable[[], float] = time.monotonic,
        overflow: OverflowMemory | None = None,
    ) -> None:
        self._overflow = overflow or OverflowMemory(None)
        self._memory, self.accounts, self._wanted, self._clock = memory, accounts, wanted, clock
        self._changed = threading.Condition()
        self._stacks: dict[int, PendingStack] = {}
        self._filling: dict[_StackId, PendingStack] = {}
        self._ended: OrderedDict[_StackId, _Ended] = OrderedDict()
        self._outcomes: list[Outcome] = []
        self._unneeded_files: list[Path] = []
        self._forget: list[int] = []
        self._count: Counter[str] = Counter()
        self._spooled_for: Counter[SpoolReason] = Counter()
        self._next_id = self._latest_nbytes = 0
        self._closed = False
        self._newest_complete, self._latest_s = -1, clock()

    # ---- for whoever puts and polls

    @property
    def counts(self) -> ClientCounts:
        with self._changed:
            slices, spooled_for = self.accounts.counts, tuple(sorted(self._spooled_for.items()))
            return ClientCounts(
                **self._count,
                captured=slices.captured,
                duplicates=sum(n for _, why, n in slices.reasons if why == SECOND_IMAGE),
                lost=slices.lost,
                spooled_for=spooled_for,
                slices=slices,
            )

    @property
    def slices_held(self) -> int:
        """Slices that have no outcome yet."""
        with self._changed:
            return sum(len(stack.slices.present) for stack in self._stacks.values())

    def put(self, slice_: Slice) -> None:
        """Take a slice: one copy of its pixels, made while other threads go on. Never raises.

        What nobody waits for is counted and ignored; what cannot be taken is counted as lost.
        """
        self.accounts.capture()
        stack = None
        try:
            identity = slice_.acquisition, slice_.info.key
            # Outside of the lock, for a user's function is asked.
            known = identity in self._filling or identity in self._ended
            stack = self._accept(slice_, Wanted() if known else self._wanted(slice_.info))
            if not isinstance(stack, PendingStack):
                self.accounts.end(*stack)
                return
            np.copyto(stack.slices.pixels[slice_.z_index], slice_.pixels)
        except Exception:
            log.exception("slice %s of %s was lost", slice_.z_index, slice_.info.key)
            self.accounts.end("lost", "it could not be copied")
            if isinstance(stack, PendingStack):
                with self._changing(stack):
                    stack.drop_expected(slice_.z_index)
            return
        with self._changing(stack):
            if stack.id not in self._stacks:
                self.accounts.end("lost", "came when the client was closed")
                return
            self._latest_s = self._clock()
            stack.add(slice_, self._latest_s)
            if stack.slices.complete:
                self._newest_complete = max(self._newest_complete, stack.id)
            self._count["bytes_copied"] += slice_.pixels.nbytes

    def poll(self) -> list[Outcome]:
        """Take the outcomes that have arrived."""
        with self._changed:
            outcomes, self._outcomes = self._outcomes, []
            return outcomes

    def collect(self, outcomes: list[Outcome], timeout_s: float) -> bool:
        """Take the outcomes, waiting if there is none; True if no stack is left without one."""
        with self._changed:
            self._changed.wait_for(lambda: self._outcomes or not self._stacks, timeout_s)
            outcomes += self.poll()
            return not self._stacks

    def wait_outcome(self, timeout_s: float) -> bool:
        """Wait until an outcome can be polled, or no stack is left; whether there is either still to come."""
        with self._changed:
            self._changed.wait_for(lambda: self._outcomes or not self._stacks, timeout_s)
            return bool(self._outcomes or self._stacks)

    def put_back(self, outcomes: list[Outcome]) -> None:
        """Have outcomes polled again, before all others."""
        with self._changed:
            self._outcomes[:0] = outcomes

    def wait_for(self, predicate: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something is so that changes with outcomes and connections; whether it is."""
        with self._changed:
            return self._changed.wait_for(predicate, timeout_s)

    def notify(self) -> None:
        """What somebody in `wait_for` looks at may have changed."""
        with self._changed:
            self._changed.notify_all()

    def cancel(self, key: StackKey) -> bool:
        """No model shall predict a stack any more; False if none waits or travels under that key."""
        with self._changed:
            found = [stack for stack in self._stacks.values() if stack.info.key == key and stack.waits_for]
            for stack in found:
                self._give_up(stack, "cancelled", "it was cancelled")
            return bool(found)

    def discard(self, key: StackKey, again: bool = True) -> None:
        """Stacks under that key that miss slices will be imaged again, or not: nobody wants their slices.

        They have no outcome, and the next slice under that key begins another stack.
        """
        with self._changed:
            found = [stack for stack in self._filling.values() if stack.info.key == key]
            for stack in found:
                if stack.copying:  # its memory is in use: it goes the long way, by the disk
                    self._close(stack)
                else:
                    with self._changing(stack):
                        if stack.discard(again):
                            self._forget.append(stack.id)
                self._ended.pop(stack.identity, None)

    def close_all(self, reason: SpoolReason, why: str) -> None:
        """End all stacks: they go to disk and become `Unpredicted`."""
        with self._changed:
            for stack in list(self._stacks.values()):
                self._close(stack, reason, why)

    def abandon(self) -> None:
        """Nobody sees to the stacks that are left any more: their slices are lost."""
        with self._changed:
            for stack in self._stacks.values():
                self.accounts.end("lost", "no thread was there to keep them", len(stack.slices.present))
            self._stacks.clear()
            self._filling.clear()
            self._closed = True

    def close_incomplete(self) -> None:
        """End the stacks that miss slices."""
        with self._changed:
            for stack in [s for s in self._stacks.values() if not s.slices.complete]:
                self._close(stack)

    # ---- for the thread that talks to the server

    def reserve_ahead(self) -> None:
        """Have memory ready for the stacks to come. Needs no lock."""
        self._memory.reserve_ahead(max(_SPARE_STACKS * self._latest_nbytes, _FIRST_RESERVE_BYTES))

    def lose_engine(self) -> None:
        """Nothing is at the server any more."""
        with self._changed:
            for stack in self._stacks.values():
                stack.take_back()

    def find_engine(self, server_has: frozenset[int], *, again: bool) -> None:
        """A server has greeted; it holds some complete stacks. It forgets those that it shall not predict."""
        with self._changed:
            self._count["reconnects"] += again
            kept = set()
            for stack in self._stacks.values():
                stack.take_back()
                waits = stack.state is State.WAITING and stack.slices.complete
                if stack.id in server_has and waits:
                    stack.claim()
                    kept.add(stack.id)
            self._forget = sorted(server_has - kept)
            self._changed.notify_all()

    def plan(self, credit: int) -> SendPlan:
        """Give free credit to the stacks whose turn it is, and say what is to be sent."""
        with self._changed:
            # Predictions that nobody takes must not pile up: their stacks wait instead.
            credit = credit if len(self._outcomes) < _OUTCOMES_AHEAD else 0
            read = self._grant(credit)
            # What is free now was granted just above, so the server must hear of it first.
            forget, self._forget = self._forget, []
            ready = sorted((s for s in self._stacks.values() if s.unsent), key=_priority)
            slices = [(stack, z) for stack in ready for z in stack.unsent]
            return SendPlan(read, forget, self._recall(credit) if credit else [], slices)

    def not_forgotten(self, ids: list[int]) -> None:
        """The server could not be told to forget stacks: it is to be tried again."""
        with self._changed:
            self._forget[:0] = ids

    def sent(self, stack: PendingStack, z_index: int) -> None:
        """A slice was handed to the socket."""
        with self._changed:
            self._count["sent"] += 1
            if not stack.note_sent(z_index):
                self._forget.append(stack.id)

    def unsendable(self, stack: PendingStack, why: str) -> None:
        """The protocol does not allow to send a stack."""
        with self._changed:
            self._give_up(stack, "failed", why)

    def find(self, id_: int) -> PendingStack | None:
        """A stack that has not all its outcomes."""
        return self._stacks.get(id_)

    def answer(self, stack: PendingStack, outcome: Prediction | Refusal) -> None:
        """A model has predicted or refused a stack."""
        with self._changing(stack):
            if stack.answer(outcome):
                self._tell(outcome)

    def fail(self, stack: PendingStack, model: str, reason: SpoolReason, why: str) -> None:
        """A model will not predict a stack; the others may."""
        with self._changing(stack):
            stack.fail(model, reason, why)

    def give_back(self, id_: int) -> None:
        """The server has given back a stack that it was asked for."""
        with self._changed:
            stack = self._stacks.get(id_)
            if stack is not None and stack.state is State.RECALLED:
                stack.take_back()
                self._count["withdrawn"] += 1

    # ---- for the thread that owns the disk

    def expire(self, stack_timeout_s: float) -> None:
        """End stacks whose next slice does not come, and those that wait here beyond their deadline.

        Where z is the outermost axis the next slice comes after one of every other stack. So while slices
        come, only a stack that a later one has overtaken is given up.
        """
        with self._changed:
            now_s = self._clock()
            quiet = now_s - self._latest_s > stack_timeout_s
            for stack in list(self._filling.values()):
                silent = now_s - stack.slices.touched_s > stack_timeout_s
                if silent and (quiet or self._newest_complete > stack.id):
                    self._close(stack)
                    missing = frozenset(stack.slices.missing)
                    self._ended[stack.identity] = _Ended(missing, "lost", "its stack was given up before")
            for stack in list(self._stacks.values()):
                if stack.is_overdue(now_s):
                    self._give_up(stack, "deadline", stack.overdue_text)

    def to_write(self, *, no_engine: bool, may_spill: bool) -> list[tuple[PendingStack, SpoolReason]]:
        """Stacks to be written now: all that end, and one that has to leave the memory; and why."""
        with self._changed:
            jobs: list[tuple[PendingStack, SpoolReason]] = []
            for stack in list(self._stacks.values()):
                if reason := stack.store():
                    jobs.append((stack, reason))
                self._update(stack)
            full = self._memory.free_bytes < _SPARE_STACKS * self._latest_nbytes
            if may_spill and (full or no_engine):
                jobs += self._spill("memory full" if full else "no engine")
            return jobs

    def stored(self, stack: PendingStack, path: Path, reason: SpoolReason) -> None:
        """A stack is on disk now."""
        with self._changing(stack):
            self._count["spooled"] += 1
            self._spooled_for[reason] += 1
            stack.stored(path)

    def not_stored(self, stack: PendingStack, why: str | None) -> None:
        """The disk refused a stack, which is lost if it ends; without a reason it only had no time."""
        with self._changing(stack):
            if why is not None and stack.state is State.STORING:
                stack.lose(why)
            else:
                stack.not_stored()

    def loaded(self, stack: PendingStack) -> None:
        """A stack is back in memory."""
        with self._changing(stack):
            self._count["replayed"] += 1
            self._count["bytes_copied"] += stack.slices.pixels.nbytes
            stack.loaded()

    def not_loaded(self, stack: PendingStack, why: str | None) -> None:
        """The file of a stack is damaged or gone; without a reason the disk only had no time."""
        with self._changing(stack):
            if why is None:
                stack.not_loaded()
            else:
                stack.lose(why)

    def unneeded_files(self) -> list[Path]:
        """Take the list of files whose stacks were predicted."""
        with self._changed:
            paths, self._unneeded_files = self._unneeded_files, []
            return paths

    # ---- all of it under the lock

    def _accept(self, slice_: Slice, wanted: Wanted) -> PendingStack | tuple[Fate, str]:
        """The stack whose memory shall take this slice; what becomes of it and why if none does."""
        identity, z = (slice_.acquisition, slice_.info.key), slice_.z_index
        with self._changed:
            if self._closed:
                return "lost", "came when the client was closed"
            stack, ended = self._filling.get(identity), self._ended.get(identity)
            if stack is None and ended is not None and z in ended.missing:
                log.warning("slice %d of %s came when its stack had ended", z, slice_.info.key)
                return ended.fate, ended.why
            if (stack is None and ended is not None) or (stack is not None and stack.has(z)):
                return "not wanted", SECOND_IMAGE
            stack = stack or self._begin(slice_, wanted)
            if stack is None:
                return "lost", "no memory was left"
            return stack if stack.expect(slice_) else ("lost", "not as its stack was announced")

    def _begin(self, slice_: Slice, wanted: Wanted) -> PendingStack | None:
        info = slice_.info
        block = self._memory.allocate(info) or self._overflow.allocate(info)
        if block is None:
            return None
        stack = PendingStack(self._next_id, info, block, wanted, self._clock(), slice_.acquisition)
        self._next_id += 1
        self._latest_nbytes = block.nbytes
        self._count["stacks"] += 1
        self._stacks[stack.id] = self._filling[stack.identity] = stack
        return stack

    def _give_up(self, stack: PendingStack, reason: SpoolReason, why: str) -> None:
        with self._changing(stack):
            if stack.give_up(reason, why):
                self._forget.append(stack.id)

    def _close(self, stack: PendingStack, reason: SpoolReason = "incomplete", why: str = "") -> None:
        with self._changing(stack):
            if stack.close(reason, why):
                self._forget.append(stack.id)

    def _grant(self, credit: int) -> list[PendingStack]:
        """Give free credit away; the stacks that have to be read from disk for it."""
        free = credit - sum(stack.uses_credit for stack in self._stacks.values())
        if free <= 0:
            return []  # thousands may wait, and this is asked for every slice
        waiting = (s for s in self._stacks.values() if s.waits_for and not s.uses_credit)
        to_read: list[PendingStack] = []
        for stack in heapq.nsmallest(free, waiting, key=_priority):
            if stack.state is State.WAITING:
                stack.grant()
                continue
            block = self._memory.allocate(stack.info) if stack.state is State.ON_DISK else None
            if block is None:
                break  # it is just being written, or there is no room
            stack.load(block)
            to_read.append(stack)
        return to_read

    def _recall(self, credit: int) -> list[PendingStack]:
        """Stacks at the server that shall give way to a live one that is complete and newer."""
        there = [stack for stack in self._stacks.values() if stack.uses_credit]
        waiting = (s for s in self._stacks.values() if s.state is State.WAITING and s.slices.complete)
        newest = min(waiting, key=_priority, default=None)
        if len(there) < credit or newest is None or not newest.live:
            return []
        return [stack for stack in there if stack.priority > newest.priority and stack.recall()]

    def _spill(self, reason: SpoolReason) -> list[tuple[PendingStack, SpoolReason]]:
        """The last complete stack in turn that waits in memory, if it has to be written to leave it."""
        if any(stack.state in (State.SPILLING, State.STORING) for stack in self._stacks.values()):
            return []
        idle = [s for s in self._stacks.values() if s.state is State.WAITING and s.slices.complete]
        for stack in sorted(idle, key=_priority, reverse=True):
            to_write = stack.spill()
            self._update(stack)
            if to_write:
                return [(stack, reason)]
        return []

    @contextmanager
    def _changing(self, stack: PendingStack) -> Iterator[None]:
        with self._changed:
            yield
            self._update(stack)

    def _update(self, stack: PendingStack) -> None:
        """See to what follows from a stack's state. The one place where stacks, and their slices, leave."""
        if not stack.takes_slices and self._filling.get(stack.identity) is stack:
            del self._filling[stack.identity]
            missing = frozenset(stack.slices.missing)
            self._ended[stack.identity] = _Ended(missing, "not wanted", AFTER_DRAIN)
            while len(self._ended) > _KEYS_REMEMBERED:
                self._ended.popitem(last=False)
        block = stack.leave_memory()
        if block is not None:
            self._overflow.release(block)
        if stack.state is not State.DONE or self._stacks.pop(stack.id, None) is None:
            return
        self.accounts.end(*stack.fate, len(stack.slices.present))
        unpredicted = stack.unpredicted()
        for reason, outcome in unpredicted:
            if reason in _COUNTED_AS:
                self._count[_COUNTED_AS[reason]] += 1
            self._tell(outcome)
        if stack.path is not None and not unpredicted:
            self._unneeded_files.append(stack.path)
        self._changed.notify_all()

    def _tell(self, outcome: Outcome) -> None:
        names = {Prediction: "predicted", Refusal: "refused", Unpredicted: "unpredicted"}
        self._count[names[type(outcome)]] += 1
        self._outcomes.append(outcome)
        self._changed.notify_all()


def _priority(stack: PendingStack) -> tuple[int, int]:
    return stack.priority
