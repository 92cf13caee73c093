"""Which held stacks may travel, give way, or leave the memory. Pure functions on the outbox's stacks."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable

from acq_isl.stream.pending_stack import Held


def in_turn(stacks: Iterable[Held]) -> list[Held]:
    """Those with slices to send now, those first that shall be predicted first."""
    return sorted((held for held in stacks if held.credited and held.unsent), key=_turn)


def in_flight(stacks: Iterable[Held]) -> int:
    """How much credit is used."""
    return sum(held.credited for held in stacks)


def to_grant(stacks: Iterable[Held], free: int) -> list[Held]:
    """The stacks that have their turn while ``free`` credit lasts."""
    if free <= 0:
        return []  # thousands may wait, and this is asked for every slice
    waiting = (held for held in stacks if not held.credited and held.can_travel)
    return heapq.nsmallest(free, waiting, key=_turn)


def to_withdraw(stacks: Collection[Held], credit: int) -> list[Held]:
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


def take_back(held: Held) -> None:
    """A stack is not at the server any more."""
    held.credited = held.withdrawing = False
    held.sent.clear()


def engine_lost(stacks: Iterable[Held], server_has: frozenset[int] = frozenset()) -> list[int]:
    """Take back all credit, but for complete stacks that the server has; which of those are unwanted."""
    kept = set()
    for held in stacks:
        take_back(held)
        if held.id in server_has and held.stack.complete and held.can_travel:
            kept.add(held.id)
            held.credited = True
            held.sent.update(held.stack.present)
    return sorted(server_has - kept)


def to_leave(stacks: Collection[Held]) -> list[Held]:
    """Complete stacks that wait in memory, those first that can leave it best; none while one does."""
    if any(held.place == "writing" for held in stacks):
        return []
    here = (held for held in stacks if held.place == "memory" and not held.credited and held.ending is None)
    idle = [held for held in here if held.stack.complete and not held.copying]
    return sorted(idle, key=_turn, reverse=True)


def _turn(held: Held) -> tuple[int, int]:
    return held.turn
