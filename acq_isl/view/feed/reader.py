"""A viewer's end of the feed: the newest of everything, whatever the viewer's own speed.

Its thread empties the socket at once, so a viewer that does not look for a minute holds no more than the
newest message of each kind and field, and the run notices nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Hashable
from contextlib import suppress
from pathlib import Path
from typing import Self

import zmq

from acq_isl.commands import Command
from acq_isl.errors import WireError
from acq_isl.events import RunStatus
from acq_isl.view.feed.address import FeedAddress, read_address
from acq_isl.view.feed.messages import Message, decode, slot
from acq_isl.view.feed.queues import LatestState
from acq_isl.view.feed.requests import Answer, Ask, Give, read_answer

log = logging.getLogger(__name__)

SILENT_S = 3.0
"""After this long without a status the run does not answer."""
_ANSWER_S = 5.0
_ASK_AGAIN_S = 1.0
_LOOK_MS = 100
_MAX_FRAME_BYTES = 64 << 20


def answers(folder: Path) -> bool:
    """Whether the run in a folder goes on: a program that was killed leaves its address behind."""
    with FeedReader(read_address(folder)) as reader:
        return reader.wait(SILENT_S)


class FeedReader:
    """Follows one run. Enter it, then `take` what is new, from one thread.

    Overflow policy: the newest message of each slot wins; images beyond ``max_bytes`` go, oldest first.
    Replaced and dropped images are counted in `skipped`, messages that never came in `missed`.
    """

    def __init__(self, address: FeedAddress, max_bytes: int = 256 << 20) -> None:
        self._address = address
        self._changed = threading.Condition()
        self._waiting: LatestState[Message] = LatestState(max_bytes)
        self._newest: dict[Hashable, int] = {}
        self._sent: int | None = None
        self._asked_s = -_ASK_AGAIN_S
        self._ask_since: int | None = -1
        self._needed = self._answered = -1  # newest message that is missing; newest the run has answered with
        self._heard_s: float | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="acq-isl-viewer", daemon=True)
        self._next_id = 0
        self.missed = 0

    def __enter__(self) -> Self:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sub = self._connected(zmq.SUB, self._address.feed)
        self._sub.subscribe(b"")
        self._requests = self._connected(zmq.DEALER, self._address.desk)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(timeout=5)

    @property
    def alive(self) -> bool:
        """Whether the run was heard of lately."""
        heard_s = self._heard_s
        return heard_s is not None and time.monotonic() - heard_s < SILENT_S

    @property
    def skipped(self) -> int:
        """Images that were replaced by newer ones, or dropped, before they were taken."""
        with self._changed:
            return self._waiting.skipped

    def take(self, limit: int | None = None) -> list[Message]:
        """What is new since the last call: notes in order, then images, newest first; at most ``limit``.

        What is over the limit waits for the next call, or is replaced by something newer.
        """
        with self._changed:
            return self._waiting.take(limit)

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is something to `take`; False if there was nothing in time."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._waiting) > 0, timeout_s)

    def send(self, command: Command, *, token: str = "", by: str = "operator") -> Answer:
        """Give the run a command and return whether it took it; at most five seconds. Any thread.

        ``token`` is the operator's, by default that of the address; ``by`` says in the ledger who gives it.
        """
        self._next_id += 1
        give = Give(id=self._next_id, token=token or self._address.operator_token, by=by, order=command)
        requests = self._connected(zmq.DEALER, self._address.desk)
        try:
            requests.send(give.model_dump_json().encode())
            if not requests.poll(round(_ANSWER_S * 1000)):
                return Answer(id=give.id, taken=False, text="the run does not answer; it may be over")
            return read_answer(requests.recv())
        except (zmq.ZMQError, WireError) as error:
            return Answer(id=give.id, taken=False, text=f"the command did not reach the run: {error}")
        finally:
            requests.close(linger=0)

    def _connected(self, kind: int, address: str) -> zmq.Socket[bytes]:
        opened = self._context.socket(kind)
        opened.linger = 0
        opened.rcvhwm = 256
        opened.maxmsgsize = _MAX_FRAME_BYTES
        opened.connect(address)
        return opened

    # Everything below runs on the reader's thread.

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._sub, zmq.POLLIN)
        poller.register(self._requests, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                self._ask()
                for ready, _ in poller.poll(_LOOK_MS):
                    self._receive(ready)
        except Exception:
            log.exception("the viewer's thread failed; nothing new is shown")
        finally:
            self._context.destroy(linger=0)

    def _ask(self) -> None:
        """Ask for what is missing, at the start and after a gap, but not in a hurry."""
        now = time.monotonic()
        if self._ask_since is None or now - self._asked_s < _ASK_AGAIN_S:
            return
        with suppress(zmq.Again):
            self._requests.send(Ask(since=self._ask_since).model_dump_json().encode(), zmq.NOBLOCK)
            self._asked_s = now

    def _receive(self, ready: zmq.Socket[bytes]) -> None:
        # Bounded, so that the other socket gets its turn.
        for _ in range(64):
            try:
                message = decode(ready.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            except WireError as error:
                log.warning("%s", error)
                continue
            if message.run == self._address.run:
                self._arrived(message, live=ready is self._sub)

    def _arrived(self, message: Message, *, live: bool) -> None:
        """Note gaps in what was sent, and keep the message."""
        sent = message.sent
        if live:
            # The first one shows too what went out between the run's answer and the subscription.
            before = self._answered if self._sent is None else self._sent
            if sent > before + 1:
                self.missed += 0 if self._sent is None else sent - before - 1
                self._ask_since = before if self._ask_since is None else self._ask_since
                self._needed = sent - 1
            self._sent = sent
        else:
            self._answered = max(self._answered, sent)
            if sent >= self._needed:  # the question was heard after what is missing was sent
                self._ask_since = None
        if isinstance(message.event, RunStatus):
            self._heard_s = time.monotonic()
        place = slot(message)
        if self._newest.get(place, -1) >= message.seq:
            return
        self._newest[place] = message.seq
        with self._changed:
            self._waiting.put(message)
            self._changed.notify_all()
