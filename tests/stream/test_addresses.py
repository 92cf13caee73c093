"""Which addresses stay on this host."""

from __future__ import annotations

import pytest

from acq_isl.stream.sockets import is_ipv6, is_local


@pytest.mark.parametrize(
    "endpoint, local",
    [
        ("tcp://127.0.0.1:5555", True),
        ("tcp://127.8.9.10:*", True),
        ("tcp://localhost:5555", True),
        ("tcp://[::1]:5555", True),
        ("tcp://[::ffff:127.0.0.1]:5555", True),
        ("ipc:///tmp/engine", True),
        ("inproc://engine", True),
        ("tcp://0.0.0.0:5555", False),
        ("tcp://*:5555", False),
        ("tcp://[::]:5555", False),
        ("tcp://[::ffff:10.0.0.1]:5555", False),
        ("tcp://192.168.1.2:5555", False),
        ("tcp://scope-3:5555", False),
        ("tcp://127.0.0.1.evil.org:5555", False),
        ("tcp://[:5555", False),
        ("eth0", False),
        ("", False),
    ],
)
def test_is_local(endpoint: str, local: bool) -> None:
    assert is_local(endpoint) == local


def test_ipv6_is_told_by_its_brackets() -> None:
    assert is_ipv6("tcp://[::1]:5555")
    assert not is_ipv6("tcp://127.0.0.1:5555")
