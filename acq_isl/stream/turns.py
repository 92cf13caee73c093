"""Which held stacks may travel, give way, or leave the memory. Pure functions on the outbox's stacks."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from acq_isl.stream.held import Held


def in_turn(stacks: Iterable[Held]) -> list[Held]:
    """Those first that shall be predicted first."""
    return sorted(stacks, key=lambda held: held.turn)


def in_flight(stacks: Iterable[Held]) -> int:
    """How much credit is used."""
    return sum(held.credited for held in stacks)


def to_withdraw(stacks: Collection[Held], credit: int) -> list[Held]:
    """Stacks at the server that shall give way to a live one that is complete and newer.

    The server gives back those that it has not begun; each is asked for once.
    """
    idle = [held for held in stacks if held.can_travel and not held.credited and held.place == "memory"]
    newest = min((held for held in idle if held.stack.complete), key=lambda held: held.turn, default=None)
    if newest is None or newest.wanted.work != "live" or in_flight(stacks) < credit:
        return []
    asked = [
        held
        for held in stacks
        if held.credited and held.turn > newest.turn and held.stack.complete
        if not (held.withdrawing or held.unsent)
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
    idle = [held for held in stacks if held.place == "memory" and not held.credited and held.ending is None]
    return [held for held in reversed(in_turn(idle)) if held.stack.complete and not held.copying]


def too_late(stacks: Iterable[Held], now_s: float) -> list[Held]:
    """Stacks that wait on our side beyond their deadline.

    What the server has is its own business: only it knows whether a prediction was begun.
    """
    waiting = (held for held in stacks if held.stack.complete and not held.credited and held.can_travel)
    return [held for held in waiting if held.left_ms(now_s) == 0]
