"""A peer whose message never ends is cut off; others do not notice, and what is kept stays small."""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
import zmq

from acq_isl.stream.sockets import open_router
from acq_isl.stream.unfinished import UnfinishedMessages

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a connection's bytes")

MOST = 1 << 20
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + b"\0" + bytes(31)
READY = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER"
MORE_LONG = 3


class Endless:
    """A peer that speaks ZMTP 3.0 and sends parts of one message (rfc.zeromq.org/spec/23)."""

    def __init__(self, endpoint: str) -> None:
        where = urlsplit(endpoint)
        self.socket = socket.create_connection((where.hostname, where.port), timeout=5)
        self.socket.sendall(GREETING)
        self.socket.recv(64)
        self.socket.sendall(bytes([4, len(READY)]) + READY)
        self.socket.recv(64)

    def send(self, size: int) -> None:
        self.socket.sendall(bytes([MORE_LONG]) + struct.pack(">Q", size) + bytes(size))

    @property
    def is_cut_off(self) -> bool:
        try:
            return self.socket.recv(4096) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True


@pytest.fixture
def router() -> Iterator[zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with open_router(context, "tcp://127.0.0.1:*", None) as opened:
        yield opened
    context.destroy(linger=0)


def receive_all(router: zmq.Socket[bytes], unfinished: UnfinishedMessages) -> list[bytes]:
    bodies = []
    while router.poll(50):
        frames = router.recv_multipart(copy=False)
        unfinished.note(frames)
        bodies.append(frames[-1].bytes)
    return bodies


def test_who_never_ends_a_message_is_cut_off_and_others_go_on(router: zmq.Socket[bytes]) -> None:
    unfinished = UnfinishedMessages(router, MOST)
    endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
    with router.context.socket(zmq.DEALER) as good:
        good.linger = 0
        good.connect(endpoint)
        bad = Endless(endpoint)
        for number in range(6):  # eight times what is allowed, in whole messages, is nothing
            good.send_multipart([b"part", bytes([number]) * (MOST + MOST // 3)])
            assert [body[:1] for body in receive_all(router, unfinished)] == [bytes([number])]
            assert unfinished.cut_off() == 0
        bad.send(MOST - 1000)
        assert unfinished.cut_off() == 0
        bad.send(MOST)
        assert _within(lambda: unfinished.cut_off() == 1)
        assert bad.is_cut_off
        bad.socket.close()
        good.send_multipart([b"still", b"here"])
        assert receive_all(router, unfinished) == [b"here"]
    unfinished.close()


def test_many_peers_share_what_is_allowed(router: zmq.Socket[bytes]) -> None:
    unfinished = UnfinishedMessages(router, MOST)
    peers = [Endless(router.getsockopt_string(zmq.LAST_ENDPOINT)) for _ in range(8)]
    ended = 0
    for peer in peers:
        with suppress(OSError):
            peer.send(MOST // 4)
    deadline = time.monotonic() + 10
    while ended < 4 and time.monotonic() < deadline:
        receive_all(router, unfinished)
        ended += unfinished.cut_off()
    assert ended in (4, 5)  # a quarter each, and a few bytes of greeting
    for peer in peers:
        peer.socket.close()
    unfinished.close()


def _within(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return held
