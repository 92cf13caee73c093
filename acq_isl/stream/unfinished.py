"""Messages that never end: ZMQ keeps the parts of one until its last has come, however many there are.

Nothing in ZMQ bounds that, so that a peer can fill the memory of whoever listens. But the system counts what
each connection brought, and ZMQ says which connection a message came by; what is missing is being kept.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit

import zmq
from zmq.utils.monitor import recv_monitor_message

from acq_isl.stream.repeats import LimitRepeats

log = logging.getLogger(__name__)
log.addFilter(LimitRepeats())

# struct tcp_info of Linux (linux/tcp.h): tcpi_bytes_received, a u64, since 4.1.
_BYTES_RECEIVED = 128
_GONE = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED


class UnfinishedMessages:
    """Cuts off who sends what does not become messages, ``most_bytes`` of all peers. Of the socket's thread.

    TCP on Linux; elsewhere, and on ipc, which other users cannot open, it does nothing. Close it before the
    socket.
    """

    def __init__(self, router: zmq.Socket[bytes], most_bytes: int) -> None:
        self._router, self._most_bytes = router, most_bytes
        self._port = urlsplit(router.getsockopt_string(zmq.LAST_ENDPOINT)).port
        self._taken: dict[int, int] = {}
        self._works = sys.platform == "linux" and self._port is not None
        if self._works:
            self._events = router.get_monitor_socket(zmq.EVENT_ACCEPTED | _GONE)

    def note(self, frames: Sequence[zmq.Frame]) -> None:
        """Count a message that was received."""
        if not self._works or not frames:
            return
        try:
            connection = int(frames[-1].get(zmq.SRCFD))
        except zmq.ZMQError:  # a way of getting here that has no connection
            return
        size = sum(len(frame) for frame in frames)
        if connection not in self._taken:  # its beginning was missed: all so far was taken
            size = self._received(connection) or 0
        self._taken[connection] = self._taken.get(connection, 0) + size

    def cut_off(self) -> int:
        """End the connections that keep most, until all keep little; how many were ended.

        Call it after receiving: whole messages that wait count as kept.
        """
        if not self._works:
            return 0
        self._follow()
        received = {connection: self._received(connection) for connection in self._taken}
        kept = {c: max(b - self._taken[c], 0) for c, b in received.items() if b is not None}
        ended = 0
        while sum(kept.values()) > self._most_bytes:
            connection = max(kept, key=lambda c: kept[c])
            log.warning(
                "a peer was cut off: %d kB of a message that does not end", kept.pop(connection) >> 10
            )
            with suppress(OSError), socket.socket(fileno=os.dup(connection)) as peer:
                peer.shutdown(socket.SHUT_RDWR)
            ended += 1
        return ended

    def close(self) -> None:
        if self._works:
            self._router.disable_monitor()
            self._events.close(linger=0)

    def _follow(self) -> None:
        while self._events.poll(0):
            event = recv_monitor_message(self._events)
            connection = int(event["value"])
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._taken.setdefault(connection, 0)
            else:
                self._taken.pop(connection, None)

    def _received(self, connection: int) -> int | None:
        """Bytes that a connection brought; None if it is gone, and its number perhaps another's."""
        try:
            with socket.socket(fileno=os.dup(connection)) as peer:
                if peer.getsockname()[1] != self._port:
                    return None
                info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
            (received,) = struct.unpack_from("Q", info, _BYTES_RECEIVED)
            return int(received)
        except (OSError, struct.error, IndexError):
            return None
