"""Peers that lie, cut and flood, for `engine_faults.py` and `fuzz.py`."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

import zmq

Lie = Literal["shapes", "nan", "labels", "order"]
Way = Literal["open", "dropped", "late", "half-open"]
_LATE_S = 0.3
_SHARE_OF_LIES = 3


class LyingEngine:
    """Stands between a client and an engine, speaks the protocol, and changes answers once it was told to."""

    def __init__(self, engine: str, kind: Lie, rng: random.Random) -> None:
        self._kind, self._rng, self._lying = kind, rng, False
        self._context = zmq.Context()
        self._front = self._context.socket(zmq.ROUTER)
        self._back = self._context.socket(zmq.DEALER)
        port = self._front.bind_to_random_port("tcp://127.0.0.1")
        self._back.connect(engine)
        self.address = f"tcp://127.0.0.1:{port}"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._context.destroy(linger=0)

    def lie(self) -> None:
        """From now on."""
        self._lying = True

    def _run(self) -> None:
        identity = b""
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        poller.register(self._back, zmq.POLLIN)
        while not self._stopping.is_set():
            for ready, _ in poller.poll(50):
                frames = ready.recv_multipart()
                if ready is self._front:
                    identity, *frames = frames
                    self._back.send_multipart(frames)
                    if self._lying and self._kind == "order" and b'"SLICE"' in frames[0][:400]:
                        self._answer_too_early(identity, frames)
                elif identity:
                    for lie in self._lies(frames):
                        self._front.send_multipart([identity, *lie])

    def _answer_too_early(self, identity: bytes, frames: list[bytes]) -> None:
        if self._rng.randrange(20 * _SHARE_OF_LIES) == 0:
            sent = json.loads(frames[0])
            answer = {"type": "FAILED", "version": sent["version"], "stack": sent["stack"], "reason": "no"}
            self._front.send_multipart([identity, json.dumps(answer).encode()])

    def _lies(self, frames: list[bytes]) -> list[list[bytes]]:
        """What is sent instead of a message."""
        header = json.loads(frames[0])
        if not self._lying or header["type"] != "RESULT" or self._rng.randrange(_SHARE_OF_LIES):
            return [frames]
        match self._kind:
            case "shapes":
                header["shape"] = [header["shape"][0] * 2, header["shape"][1]]
                frames = self._rng.choice([[json.dumps(header).encode(), *frames[1:]], frames[:2]])
            case "nan":
                spoilt = b"\0\0\xc0\x7f" + frames[1][4:]
                frames = [frames[0], spoilt, frames[2]]
            case "labels":
                header["labels"] = [f"no {label}" for label in header["labels"]]
                frames = [json.dumps(header).encode(), *frames[1:]]
            case "order":
                header["stack"] = self._rng.choice([header["stack"] + 1000, (1 << 53) - 1])
                return [[json.dumps(header).encode(), *frames[1:]], frames, frames]
        return [frames]


class Relay:
    """A way over TCP that can go bad: `way` says how it is now."""

    def __init__(self, to: str) -> None:
        parts = urlsplit(to)
        self._to = (parts.hostname, parts.port)
        self.way: Way = "open"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                near, _ = self._listener.accept()
            except TimeoutError:
                continue
            if self.way == "dropped":
                near.close()
                continue
            try:
                far = socket.create_connection(self._to, timeout=1)
            except OSError:
                near.close()
                continue
            for source, target in ((near, far), (far, near)):
                source.settimeout(0.1)
                self._threads.append(threading.Thread(target=self._carry, args=(source, target)))
                self._threads[-1].start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        while not self._stopping.is_set() and self.way != "dropped":
            try:
                data = source.recv(1 << 16)
                if self.way == "late":
                    time.sleep(_LATE_S)
                if self.way != "half-open":  # else it is swallowed, and nobody hears of it
                    target.settimeout(2)
                    target.sendall(data)
                    target.settimeout(0.1)
            except TimeoutError:
                continue
            except OSError:
                break
            if not data:
                break
        for end in (source, target):
            with suppress(OSError):
                end.close()


def flood(address: str, seconds: float, seed: int = 0) -> int:
    """Send nonsense as fast as the other side takes it; how many messages."""
    rng = random.Random(seed)
    hello = {"type": "HELLO", "version": 2, "session": "0" * 32, "attempt": 1}
    shapes = [
        lambda: [rng.randbytes(rng.randrange(200))],
        lambda: [b'{"type": "HELLO", "version": 1}'],
        lambda: [json.dumps({**hello, "session": rng.randbytes(16).hex()}).encode()],
        lambda: [json.dumps({**hello, "ring": {"name": "/proc/1/fd/3#0", "nbytes": 1 << 40}}).encode()],
        lambda: [b'{"type": "DONE", "version": 2, "stack": 1}'] + [b""] * rng.randrange(50),
        lambda: [rng.randbytes(1 << rng.randrange(16))] * 3,
    ]
    sent, until_s = 0, time.monotonic() + seconds
    with zmq.Context() as context:
        while time.monotonic() < until_s:
            with context.socket(zmq.DEALER) as peer:
                peer.setsockopt(zmq.LINGER, 0)
                peer.setsockopt(zmq.SNDTIMEO, 100)
                peer.connect(address)
                for _ in range(500):
                    with suppress(zmq.Again):
                        peer.send_multipart(rng.choice(shapes)())
                        sent += 1
                    if time.monotonic() > until_s:
                        break
    return sent
