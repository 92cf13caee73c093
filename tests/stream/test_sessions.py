"""The server's clients: slots come back, and nobody makes it keep or write without end."""

from __future__ import annotations

import logging
import secrets

import pytest

from acq_isl.stream import messages as wire
from acq_isl.stream.codec import decode, encode
from acq_isl.stream.repeats import LimitRepeats
from acq_isl.stream.sessions import SessionLimits, Sessions

WELCOME = wire.Welcome(
    attempt=0, credit=2, models=(wire.Offer(name="m", model_sha256="ab" * 32, manifest="{}", engine="e"),)
)


def hello(session: str = "") -> wire.Hello:
    return wire.Hello(session=session or secrets.token_hex(16), attempt=1)


def test_greetings_on_one_connection_take_one_slot() -> None:
    """Eight of them used to take all eight, for good."""
    sessions = Sessions(SessionLimits(clients=2), WELCOME)
    for now_s in range(8):
        greeting = hello()
        assert sessions.replace(b"one", greeting.session) == []
        [frames] = sessions.hello(b"one", greeting, float(now_s))
        assert isinstance(decode(frames)[0], wire.Welcome)
    assert sessions.identities == (b"one",)
    [frames] = sessions.hello(b"other", hello(), 8.0)
    assert isinstance(decode(frames)[0], wire.Welcome)
    assert len(sessions.silent(100.0)) == 2
    for session in sessions.silent(100.0):
        sessions.leave(session)
    assert sessions.silent(200.0) == [] and sessions.identities == ()


def test_a_client_that_comes_back_under_another_identity_keeps_its_session() -> None:
    sessions, greeting = Sessions(SessionLimits(), WELCOME), hello()
    sessions.hello(b"before", greeting, 0.0)
    sessions.hello(b"after", greeting, 1.0)
    assert sessions.find(b"before", 2.0) is None and sessions.find(b"after", 2.0) is not None


def test_answers_that_nobody_confirms_are_bounded_and_the_greeting_fits() -> None:
    sessions, greeting = Sessions(SessionLimits(), WELCOME), hello()
    sessions.hello(b"one", greeting, 0.0)
    session = sessions.find(b"one", 0.0)
    assert session is not None
    for stack in range(5000):
        assert session.fail((1 << 53) - 1 - stack, ("",), "more stacks at once than credit")
    [welcome, *kept] = sessions.hello(b"one", greeting, 1.0)
    assert len(kept) <= 1024
    assert isinstance(decode(welcome)[0], wire.Welcome)


def test_records_that_repeat_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    now_s = [0.0]
    log = logging.getLogger("acq_isl.test_repeats")
    log.addFilter(LimitRepeats(2, 10.0, lambda: now_s[0]))

    def complain(number: int) -> None:
        log.warning("ignored a message: %d", number)

    for number in range(1000):
        complain(number)
    log.warning("something else")
    now_s[0] = 11.0
    complain(1000)
    assert caplog.messages == [
        "ignored a message: 0",
        "ignored a message: 1",
        "something else",
        "ignored a message: 1000 (and 998 more like it)",
    ]


def test_the_largest_greeting_is_within_what_the_wire_takes() -> None:
    held = tuple((1 << 53) - 1 - stack for stack in range(1024 + 64))
    assert encode(WELCOME.model_copy(update={"held": held}))
