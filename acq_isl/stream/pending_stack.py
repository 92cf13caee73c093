"""One stack on its way from the camera to its outcome, and the counts of all of them. Pure."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from acq_isl.stack import Refusal, Slice, StackKey, Unpredicted
from acq_isl.stream.assembler import OpenStack
from acq_isl.stream.messages import Refused, Wanted
from acq_isl.stream.schedule import turn
from acq_isl.stream.shared_memory import Block
from acq_isl.stream.spool import SpooledStack, SpoolReason

_COUNTED_AS: dict[SpoolReason, str] = {"failed": "failed", "deadline": "expired", "cancelled": "cancelled"}
Place = Literal["memory", "writing", "disk", "reading"]


@dataclass(frozen=True, slots=True)
class ClientCounts:
    """What became of everything that was put, so far.

    Slices: ``captured`` taken over, ``duplicates`` seen twice or too late and ignored, ``sent`` (also
    again after a restart), ``lost`` neither held nor on disk. Stacks: ``stacks`` begun, ``spooled``
    written to disk, ``replayed`` read back from there, ``withdrawn`` from the engine for a newer one.
    Outcomes, one of each stack and model: ``predicted``, ``refused``, ``unpredicted`` left on disk, of
    these ``failed``, ``expired`` after their deadline, ``cancelled``. ``reconnects`` counts engines that
    came back, ``bytes_copied`` the pixels copied in this process.
    """

    captured: int = 0
    duplicates: int = 0
    sent: int = 0
    lost: int = 0
    stacks: int = 0
    spooled: int = 0
    replayed: int = 0
    predicted: int = 0
    refused: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    withdrawn: int = 0
    unpredicted: int = 0
    reconnects: int = 0
    bytes_copied: int = 0
    spooled_for: tuple[tuple[SpoolReason, int], ...] = ()


class RecentKeys:
    """Keys of the latest stacks that take no slices any more."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._keys: OrderedDict[StackKey, None] = OrderedDict()

    def __contains__(self, key: StackKey) -> bool:
        return key in self._keys

    def add(self, key: StackKey) -> None:
        self._keys[key] = None
        while len(self._keys) > self._limit:
            self._keys.popitem(last=False)


@dataclass(slots=True, eq=False)
class PendingStack:
    """One stack that some model has not answered for yet.

    Parameters
    ----------
    id : int
        Number of the stack in this client, also on the wire and on disk.
    stack : OpenStack
    block : Block or None
        Its memory; None while it is on disk only.
    place : Place
    credited : bool
        Whether it may be sent to, or is at, the server.
    sent : set of int
        Slices handed to the socket since the server last asked.
    copying : int
        Slices that are being copied in right now.
    path : Path or None
        Its file in the spool.
    ending : (SpoolReason, str) or None
        Once set it goes to disk and becomes `Unpredicted`, for the reason in words.
    waits_since_s : float
        When its last slice came, on the client's monotonic clock.
    wanted : Wanted
    waits_for : list of str
        Names of the models without an outcome, as they stand in messages.
    failures : dict of name to (SpoolReason, str)
        Models that will not predict it; that is told as soon as the stack is on disk for them.
    cancelled : bool
        Ends as soon as all its slices are here.
    withdrawing : bool
        The server was asked to give it back.
    turn : (int, int)
        What to sort stacks by, first come first.
    """

    id: int
    stack: OpenStack
    block: Block | None
    place: Place = "memory"
    credited: bool = False
    sent: set[int] = field(default_factory=set)
    copying: int = 0
    path: Path | None = None
    ending: tuple[SpoolReason, str] | None = None
    waits_since_s: float = 0.0
    wanted: Wanted = field(default_factory=Wanted)
    waits_for: list[str] = field(default_factory=list)
    failures: dict[str, tuple[SpoolReason, str]] = field(default_factory=dict)
    cancelled: bool = False
    withdrawing: bool = False
    turn: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.waits_for = list(self.wanted.names)
        self.turn = turn(self.wanted.work, self.id)

    @property
    def settled(self) -> bool:
        """Whether all models have predicted or refused it."""
        return not self.waits_for and not self.failures

    @property
    def can_travel(self) -> bool:
        """Whether it may be given credit."""
        return self.ending is None and not self.cancelled and bool(self.waits_for)

    def left_ms(self, now_s: float) -> float | None:
        """What is left of its deadline; all of it until the last slice is here."""
        deadline_ms = self.wanted.deadline_ms
        if deadline_ms is None or not self.stack.complete:
            return deadline_ms
        return max(deadline_ms - (now_s - self.waits_since_s) * 1e3, 0.0)

    @property
    def with_disk(self) -> bool:
        """Whether the spool's thread is using its memory."""
        return self.place in ("writing", "reading")

    def fits(self, slice_: Slice) -> bool:
        """Whether a slice is of the kind that was announced."""
        info = self.stack.info
        same = slice_.pixels.shape == info.shape and slice_.pixels.dtype == np.uint16
        return same and 0 <= slice_.z_index < info.planes

    @property
    def still_wanted(self) -> Wanted:
        """What to ask the server for: models that have answered are not asked again."""
        if len(self.waits_for) == len(self.wanted.names):
            return self.wanted
        return self.wanted.model_copy(update={"models": tuple(self.waits_for)})

    @property
    def incomplete(self) -> str:
        """What is missing, in words."""
        return f"only {len(self.stack.present)} of {self.stack.info.planes} slices were captured"

    def overdue(self, now_s: float) -> bool:
        """Whether it waits on our side beyond its deadline.

        What the server has is its own business: only it knows whether a prediction was begun.
        """
        deadline_ms = self.wanted.deadline_ms
        if deadline_ms is None or now_s - self.waits_since_s < deadline_ms / 1e3:
            return False
        return not self.credited and self.stack.complete and self.can_travel

    @property
    def too_late(self) -> str:
        """What it means that its deadline passed, in words."""
        return f"no prediction was begun within {self.wanted.deadline_ms or 0:g} ms of its last slice"

    @property
    def unsent(self) -> tuple[int, ...]:
        """Slices to send now."""
        if not self.credited or self.place != "memory" or not self.can_travel:
            return ()
        return tuple(z for z in self.stack.present if z not in self.sent)

    def spooled(self, reason: SpoolReason) -> SpooledStack:
        """What goes to disk; shares the memory of the block."""
        present = self.stack.present
        # A complete stack is written without gathering its planes, that is, without a copy.
        pixels = self.stack.pixels if self.stack.complete else self.stack.pixels[list(present)]
        models = tuple(n for n in self.wanted.models if n in self.waits_for or n in self.failures)
        return SpooledStack(self.id, self.stack.info, present, self.stack.captured_s, pixels, reason, models)

    def refusal(self, told: Refused) -> Refusal:
        """A model's refusal of it, in the client's words."""
        return Refusal(self.stack.info, told.reason, told.fix, told.model)

    def unpredicted(self, where: str) -> list[tuple[tuple[str, ...], Unpredicted]]:
        """What to count and to tell of the models that will not predict it, now that it lies ``where``."""
        rest = dict.fromkeys(self.waits_for, self.ending or ("closed", ""))
        told: list[tuple[tuple[str, ...], Unpredicted]] = []
        for model, (reason, why) in (self.failures | rest).items():
            counted_as = (_COUNTED_AS[reason],) if reason in _COUNTED_AS else ()
            told.append((counted_as, Unpredicted(self.stack.info, why, where, model)))
        return told

    def blame(self, why: str) -> None:
        """Add to the reasons, in words, why it is not even on disk."""
        reason, before = self.ending or ("failed", "")
        self.ending = reason, f"{before}; {why}".removeprefix("; ")
        self.failures = {model: (r, f"{before}; {why}") for model, (r, before) in self.failures.items()}


def in_turn(stacks: Iterable[PendingStack]) -> list[PendingStack]:
    """Those with slices to send now, those first that shall be predicted first."""
    return sorted((held for held in stacks if held.credited and held.unsent), key=_turn)


def in_flight(stacks: Iterable[PendingStack]) -> int:
    """How much credit is used."""
    return sum(held.credited for held in stacks)


def to_grant(stacks: Iterable[PendingStack], free: int) -> list[PendingStack]:
    """The stacks that have their turn while ``free`` credit lasts."""
    if free <= 0:
        return []  # thousands may wait, and this is asked for every slice
    waiting = (held for held in stacks if not held.credited and held.can_travel)
    return heapq.nsmallest(free, waiting, key=_turn)


def to_withdraw(stacks: Collection[PendingStack], credit: int) -> list[PendingStack]:
    """Stacks at the server that shall give way to a live one that is complete and newer.

    The server gives back those that it has not begun; each is asked for once.
    """
    there = [held for held in stacks if held.credited]
    if len(there) < credit:
        return []
    idle = (held for held in stacks if held.place == "memory" and not held.credited and held.can_travel)
    newest = min((held for held in idle if held.stack.complete), key=_turn, default=None)
    if newest is None or newest.wanted.work != "live":
        return []
    asked = [
        held
        for held in there
        if held.turn > newest.turn and held.stack.complete and not (held.withdrawing or held.unsent)
    ]
    for held in asked:
        held.withdrawing = True
    return asked


def take_back(held: PendingStack) -> None:
    """A stack is not at the server any more."""
    held.credited = held.withdrawing = False
    held.sent.clear()


def engine_lost(stacks: Iterable[PendingStack], server_has: frozenset[int] = frozenset()) -> list[int]:
    """Take back all credit, but for complete stacks that the server has; which of those are unwanted."""
    kept = set()
    for held in stacks:
        take_back(held)
        if held.id in server_has and held.stack.complete and held.can_travel:
            kept.add(held.id)
            held.credited = True
            held.sent.update(held.stack.present)
    return sorted(server_has - kept)


def to_leave(stacks: Collection[PendingStack]) -> list[PendingStack]:
    """Complete stacks that wait in memory, those first that can leave it best; none while one does."""
    if any(held.place == "writing" for held in stacks):
        return []
    here = (held for held in stacks if held.place == "memory" and not held.credited and held.ending is None)
    idle = [held for held in here if held.stack.complete and not held.copying]
    return sorted(idle, key=_turn, reverse=True)


def _turn(held: PendingStack) -> tuple[int, int]:
    return held.turn
