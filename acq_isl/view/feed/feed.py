"""The preview feed of a run: one thread, one PUB socket for all viewers, one ROUTER for requests.

Nothing here can slow the run. A session leaves its events in a bounded `EventQueue` and goes on; this thread
reduces and sends them. A viewer that is slow, frozen or gone only fills its own bounded queue inside ZMQ.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Self, assert_never

import zmq

from acq_isl.commands import Command, Stop, describe
from acq_isl.errors import AcqIslError, StorageError, WireError
from acq_isl.events import OVER, Event
from acq_isl.stream.sockets import Waker
from acq_isl.stream.unfinished import UnfinishedMessages
from acq_isl.view.feed.address import FeedAddress, new_token, write_address
from acq_isl.view.feed.encode import MessageMaker
from acq_isl.view.feed.messages import Message, encode
from acq_isl.view.feed.queues import EventQueue, LatestState, picture_bytes
from acq_isl.view.feed.requests import MAX_REQUEST_BYTES, Answer, Ask, Give, read_request, same_token

log = logging.getLogger(__name__)

BEAT_S = 0.5
"""A status goes out at least this often."""
_QUIET_S = 0.05
_SEND_QUEUE = 64
_MAX_COMMANDS = 16
_STATE_BYTES = 64 << 20
_UNFINISHED_BYTES = 4 << 20
_REQUESTS_PER_ROUND = 256
_LOOPBACK = "tcp://127.0.0.1:*"


class Feed:
    """Sends viewers the events of a run, and brings their commands back. A `RunView`.

    ``live.json`` in the run folder tells viewers where it is. ``bind`` is the ZMQ address of both sockets; a
    port of ``*`` takes free ones.
    """

    def __init__(self, folder: Path, bind: str = _LOOPBACK) -> None:
        self._folder, self._bind = folder, bind
        self._queue = EventQueue()
        self._latest: LatestState[Message] = LatestState(_STATE_BYTES)
        self._maker = MessageMaker(uuid.uuid4().hex)
        self._commands: deque[Command] = deque()
        self._commands_lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="acq-isl-feed", daemon=True)
        self._sent = 0
        self._unsent_status = True
        self._status_s = 0.0

    def __enter__(self) -> Self:
        self.setup()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def setup(self) -> None:
        """Open the sockets and write ``live.json``; StorageError if that or a free port cannot be had."""
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._pub = self._bound(zmq.PUB)
            self._requests = self._bound(zmq.ROUTER)
            feed, desk = (s.getsockopt_string(zmq.LAST_ENDPOINT) for s in (self._pub, self._requests))
            self.address = FeedAddress(
                run=self._maker.run, feed=feed, desk=desk, read_token=new_token(), operator_token=new_token()
            )
            self._file = write_address(self._folder, self.address)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            what = f"the preview feed cannot be opened at {self._bind}"
            raise StorageError(what, got=str(error)) from error
        except AcqIslError:
            self._context.destroy(linger=0)
            raise
        self._unfinished = UnfinishedMessages(self._requests, _UNFINISHED_BYTES)
        self._waker = Waker()
        self._thread.start()

    def handle(self, event: Event) -> None:
        """Take an event; returns at once. Any thread may call it."""
        self._queue.put(event)
        self._waker.wake()

    def close(self) -> None:
        """Send what is left, and end."""
        self._stopping.set()
        self._waker.wake()
        self._thread.join(timeout=5)
        self._waker.close()
        with suppress(OSError):  # the folder may have been moved or removed meanwhile
            self._file.unlink(missing_ok=True)

    @property
    def dropped(self) -> int:
        """Pictures that were dropped before they were sent."""
        return self._queue.dropped

    def commands(self) -> tuple[Command, ...]:
        """Commands given since the last call; returns at once."""
        with self._commands_lock:
            taken = tuple(self._commands)
            self._commands.clear()
        return taken

    def _bound(self, kind: int) -> zmq.Socket[bytes]:
        opened = self._context.socket(kind)
        opened.linger = 0
        opened.sndhwm = _SEND_QUEUE if kind == zmq.PUB else 4096
        opened.rcvhwm = 64
        opened.maxmsgsize = MAX_REQUEST_BYTES
        opened.bind(self._bind)
        return opened

    # Everything below runs on the feed's thread.

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                more = self._step()
                self._wait(0.0 if more else BEAT_S / 2)
            # What happened before the end is still sent: how the run ended, above all.
            while self._step():
                pass
            self._send(self._maker.status(self.dropped, self._queue.number()))
            time.sleep(_QUIET_S)  # PUB sends in the background, and closing drops what it has not sent
        except Exception:
            log.exception("the preview feed failed; viewers see nothing more, the run goes on")
        finally:
            self._unfinished.close()
            self._context.destroy(linger=200)

    def _step(self) -> bool:
        """One round: all notes and one picture; True if pictures may be left."""
        picture = False
        while not picture and (taken := self._queue.take()) is not None:
            picture = picture_bytes(taken[1]) > 0
            self._publish(*taken)
            self._unsent_status |= not picture
        self._answer_all()
        now = time.monotonic()
        waited_s = now - self._status_s
        if waited_s >= BEAT_S or (self._unsent_status and waited_s >= _QUIET_S):
            self._send(self._maker.status(self.dropped, self._queue.number()))
            self._status_s, self._unsent_status = now, False
        return picture

    def _publish(self, number: int, event: Event) -> None:
        try:
            for message in self._maker.messages(event, number):
                self._send(message)
        except (ValueError, WireError) as error:
            log.warning("an event of the run cannot be shown: %s", error)

    def _send(self, message: Message) -> None:
        self._sent += 1
        message = replace(message, sent=self._sent)
        self._latest.put(message)
        self._pub.send_multipart(encode(message), copy=not message.images)

    def _answer_all(self) -> None:
        for _ in range(_REQUESTS_PER_ROUND):  # whoever floods must not keep the pictures from the others
            if not self._requests.poll(0):
                break
            received = self._requests.recv_multipart(copy=False)
            self._unfinished.note(received)
            viewer, *frames = (frame.bytes for frame in received)
            try:
                request = read_request(frames[-1] if frames else b"")
            except WireError as error:
                log.warning("a viewer was not understood: %s", error)
                self._reply(viewer, Answer(id=0, taken=False, text=str(error)))
                continue
            match request:
                case Ask(since=since):
                    for message in self._latest.present(since):
                        self._reply(viewer, message)
                case Give():
                    self._reply(viewer, self._accept(request))
                case _:
                    assert_never(request)
        self._unfinished.cut_off()

    def _reply(self, viewer: bytes, answer: Answer | Message) -> None:
        frames = encode(answer) if isinstance(answer, Message) else [answer.model_dump_json().encode()]
        # ROUTER drops what a viewer does not fetch; the viewer asks again.
        with suppress(zmq.Again):
            self._requests.send_multipart([viewer, *frames], flags=zmq.NOBLOCK, copy=False)

    def _accept(self, give: Give) -> Answer:
        what = describe(give.order)
        if not same_token(give.token, self.address.operator_token):
            log.warning("a command with a wrong token was turned away: %s", what)
            return Answer(id=give.id, taken=False, text="wrong token: only the operator may do this")
        if self._maker.state.state in OVER:
            return Answer(id=give.id, taken=False, text="the run is over")
        with self._commands_lock:
            if len(self._commands) >= _MAX_COMMANDS:
                text = f"{_MAX_COMMANDS} commands wait already for the stack that is being acquired"
                return Answer(id=give.id, taken=False, text=text)
            self._commands.append(give.order)
        if isinstance(give.order, Stop):
            # Told at once; the session itself looks between two stacks only.
            log.warning("the run stops after the stack that is being acquired, as %s wants", give.by)
            why = "the stack that is being acquired is finished first"
            self._maker.state = replace(self._maker.state, state="stopping", why=why)
            self._unsent_status = True
        return Answer(id=give.id, taken=True, text=f"{what}: after the stack that is being acquired")

    def _wait(self, longest_s: float) -> None:
        poller = zmq.Poller()
        poller.register(self._requests, zmq.POLLIN)
        poller.register(self._waker.socket, zmq.POLLIN)
        soon_s = _QUIET_S if self._unsent_status else longest_s
        poller.poll(round(min(soon_s, longest_s) * 1000))
        self._waker.clear()
