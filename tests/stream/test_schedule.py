"""Which stack is predicted next: the laws of the schedule, for any order of arrivals, deadlines, cancels."""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acq_isl.stack import StackInfo, StackKey, ZStack
from acq_isl.stream.messages import Work
from acq_isl.stream.schedule import LIVE_IN_A_ROW, Job, Schedule, ScheduleCounts, priority

STACK = ZStack(
    StackInfo(StackKey(0, "A", "Phase"), (0.0,), (1, 1), 0.3), np.zeros((1, 1, 1), np.uint16), (0.0,)
)


def ticket_of(number: int, client: str, work: Work, due_s: float = math.inf) -> Job:
    return Job(client, number, "mean", STACK, 0.0, work, due_s)


CLIENTS = ("a", "b", "c")
WORKS: tuple[Work, ...] = ("live", "bulk")


def schedule(*tickets: Job, limit: int = 100) -> Schedule:
    made: Schedule = Schedule(limit)
    for ticket in tickets:
        assert made.add(ticket)
    return made


def tickets(text: str) -> list[Job]:
    """``"a:live b:bulk"``, numbered from 0 as they come."""
    words = [word.split(":") for word in text.split()]
    return [
        ticket_of(n, client, "live" if work == "live" else "bulk") for n, (client, work) in enumerate(words)
    ]


def taken(plan: Schedule) -> list[int]:
    order: list[int] = []
    while (one := plan.next(0.0)) is not None:
        order.append(one.number)
    return order


@pytest.mark.parametrize(
    "text, order",
    [
        ("a:bulk a:bulk a:bulk", [0, 1, 2]),
        ("a:live a:live a:live", [2, 1, 0]),
        ("a:bulk a:live a:bulk a:live", [3, 1, 0, 2]),
        ("a:live a:live b:live b:live", [1, 3, 0, 2]),  # clients take turns
        ("a:bulk a:bulk a:bulk b:bulk", [0, 3, 1, 2]),
        ("a:bulk b:live", [1, 0]),
        ("", []),
    ],
)
def test_order(text: str, order: list[int]) -> None:
    assert taken(schedule(*tickets(text))) == order


def test_bulk_has_its_turn_among_ever_more_live_work() -> None:
    plan = schedule(ticket_of(-1, "plate", "bulk"))
    order = []
    for n in range(3 * LIVE_IN_A_ROW):
        plan.add(ticket_of(n, "scope", "live"))
        order.append(plan.next(0.0).number)  # type: ignore[union-attr]
    assert order.index(-1) == LIVE_IN_A_ROW


def test_a_deadline_is_a_deadline() -> None:
    early, late = ticket_of(0, "a", "live", due_s=5.0), ticket_of(1, "a", "live", due_s=3.0)
    plan = schedule(early, late)
    assert plan.next(3.0) is early, "at its deadline a ticket is too late"
    assert plan.next(3.0) is None
    assert plan.expire(3.0) == [late]
    assert plan.counts == ScheduleCounts(added=2, taken=1, expired=1)


def test_more_than_the_limit_and_twice_the_same_are_refused_and_counted() -> None:
    plan = schedule(*tickets("a:bulk a:bulk"), limit=2)
    first = ticket_of(0, "a", "bulk").id
    assert not plan.add(ticket_of(2, "a", "live"))
    assert plan.remove(first)
    assert not plan.remove(first)
    assert not plan.add(ticket_of(1, "a", "live"))
    assert plan.counts == ScheduleCounts(added=2, removed=1, refused=2)


def test_clients_that_are_gone_are_forgotten() -> None:
    plan: Schedule = Schedule(4)
    for n in range(100):
        waits = ticket_of(n, f"client {n}", "bulk")
        plan.add(waits)
        assert plan.next(0.0) is waits
    assert len(plan._served) <= 2 * 4 + 1


# ---- laws

events = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"), st.sampled_from(CLIENTS), st.sampled_from(WORKS), st.none() | st.integers(0, 9)
        ),
        st.tuples(st.just("take")),
        st.tuples(st.just("tick")),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
    ),
    max_size=60,
)


@given(events)
def test_every_ticket_leaves_once_and_in_order(told: list[tuple[object, ...]]) -> None:
    plan: Schedule = Schedule(20)
    now_s, waiting, gone = 0.0, dict[int, Job](), dict[int, str]()
    number = refused = 0
    for what, *more in told:
        match what:
            case "add":
                client, work, left = more
                due_s = math.inf if left is None else now_s + float(str(left))
                ticket = ticket_of(number, str(client), "live" if work == "live" else "bulk", due_s)
                if plan.add(ticket):
                    waiting[number] = ticket
                else:
                    refused += 1
                    assert len(waiting) == 20
                number += 1
            case "tick":
                now_s += 1.0
                for late in plan.expire(now_s):
                    assert waiting.pop(late.number).due_s <= now_s
                    gone[late.number] = "expired"
                assert all(ticket.due_s > now_s for ticket in waiting.values())
            case "cancel":
                id_ = int(str(more[0]))
                there = waiting.pop(id_, None)
                asked = there or ticket_of(id_, CLIENTS[0], "bulk")
                assert plan.remove(asked.id) == (there is not None), "what left before cannot leave again"
                if there is not None:
                    gone[id_] = "cancelled"
            case "take":
                check_taken(plan.next(now_s), waiting, gone, now_s)
    counts = plan.counts
    assert len(plan) == len(waiting)
    assert counts.added == counts.taken + counts.removed + counts.expired + len(plan)
    assert (counts.added, counts.refused) == (len(waiting) + len(gone), refused)


def check_taken(ticket: Job | None, waiting: dict[int, Job], gone: dict[int, str], now_s: float) -> None:
    ready = [ticket for ticket in waiting.values() if ticket.due_s > now_s]
    if ticket is None:
        assert not ready, "the engine idles although a stack waits"
        return
    assert waiting.pop(ticket.number) is ticket
    assert ticket.number not in gone, "predicted twice"
    gone[ticket.number] = "taken"
    assert ticket.due_s > now_s, "too late"
    rivals = [one for one in ready if (one.client, one.work) == (ticket.client, ticket.work)]
    assert ticket == min(rivals, key=lambda one: priority(one.work, one.number))


@given(st.lists(st.tuples(st.sampled_from(CLIENTS), st.sampled_from(WORKS)), min_size=1, max_size=60))
def test_nobody_starves(wanted: list[tuple[str, Work]]) -> None:
    """Everything waits at once: live never keeps bulk waiting for more than `LIVE_IN_A_ROW`."""
    plan = schedule(*(ticket_of(n, client, work) for n, (client, work) in enumerate(wanted)))
    order = [wanted[n] for n in taken(plan)]
    assert sorted(order) == sorted(wanted)
    last_bulk = max((n for n, (_, work) in enumerate(order) if work == "bulk"), default=-1)
    for work, run in groupby(order[: last_bulk + 1], key=lambda one: one[1]):
        assert work == "bulk" or len(list(run)) <= LIVE_IN_A_ROW
    for work in WORKS:
        line = [client for client, w in order if w == work]
        for n, client in enumerate(line):
            others = set(line[n + 1 :]) - {client}
            assert line[n + 1 : n + 2] != [client] or not others, "clients take turns"
