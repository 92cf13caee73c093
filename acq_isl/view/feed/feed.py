"""The preview feed of a run: one thread, one PUB socket for all viewers, one ROUTER for questions and orders.

Nothing here can slow the run. A session leaves its news in a bounded `Backlog` and goes on; this thread
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
from types import TracebackType
from typing import Self

import zmq

from acq_isl.commands import Command, describe
from acq_isl.errors import AcqIslError, StorageError, WireError
from acq_isl.events import Event
from acq_isl.stream.sockets import Waker
from acq_isl.view.feed.address import FeedAddress, new_token, write_address
from acq_isl.view.feed.encode import Translator
from acq_isl.view.feed.messages import Parcel, encode
from acq_isl.view.feed.queues import Backlog, Shelf
from acq_isl.view.feed.requests import MAX_REQUEST_BYTES, Answer, Ask, Give, read_request, same_token

log = logging.getLogger(__name__)

BEAT_S = 0.5
"""A status goes out at least this often."""
_QUIET_S = 0.05
_SEND_QUEUE = 64
_MAX_ORDERS = 16
_SHELF_BYTES = 64 << 20
_LOOPBACK = "tcp://127.0.0.1:*"


class Feed:
    """Tells viewers what a session tells it, and brings their orders back.

    Parameters
    ----------
    folder : Path
        Run folder; ``live.json`` there tells viewers where the feed is.
    bind : str
        ZMQ address of both sockets; a port of ``*`` takes free ones.

    Raises
    ------
    StorageError
        On entering: ``live.json`` cannot be written, or there is no free port.
    """

    def __init__(self, folder: Path, bind: str = _LOOPBACK) -> None:
        self._folder, self._bind = folder, bind
        self._backlog = Backlog()
        self._shelf: Shelf[Parcel] = Shelf(_SHELF_BYTES)
        self._translator = Translator(uuid.uuid4().hex)
        self._orders: deque[Command] = deque()
        self._orders_lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="acq-isl-feed", daemon=True)
        self._sent = 0
        self._unsent_status = True
        self._status_s = 0.0

    def __enter__(self) -> Self:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._pub = self._bound(zmq.PUB)
            self._desk = self._bound(zmq.ROUTER)
            run = self._translator.run
            feed, desk = (s.getsockopt_string(zmq.LAST_ENDPOINT) for s in (self._pub, self._desk))
            self.address = FeedAddress(
                run=run, feed=feed, desk=desk, read_token=new_token(), operator_token=new_token()
            )
            self._file = write_address(self._folder, self.address)
        except (zmq.ZMQError, AcqIslError) as error:
            self._context.destroy(linger=0)
            if isinstance(error, AcqIslError):
                raise
            raise StorageError(
                f"the preview feed cannot be opened at {self._bind}", got=str(error)
            ) from error
        self._waker = Waker()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._waker.wake()
        self._thread.join(timeout=5)
        self._waker.close()
        with suppress(OSError):  # the folder may have been moved or removed meanwhile
            self._file.unlink(missing_ok=True)

    @property
    def dropped(self) -> int:
        """Pictures that were dropped before they were sent."""
        return self._backlog.dropped

    def tell(self, news: Event) -> None:
        """Take a news; returns at once. Any thread may call it."""
        self._backlog.put(news)
        self._waker.wake()

    def orders(self) -> tuple[Command, ...]:
        """CommandSource given since the last call; returns at once."""
        with self._orders_lock:
            taken = tuple(self._orders)
            self._orders.clear()
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
            # What was told before the end is still sent: how the run ended, above all.
            while self._step():
                pass
            self._send(self._translator.status(self.dropped, self._backlog.number()))
            time.sleep(_QUIET_S)  # PUB sends in the background, and closing drops what it has not sent
        except Exception:
            log.exception("the preview feed failed; viewers see nothing more, the run goes on")
        finally:
            self._context.destroy(linger=200)

    def _step(self) -> bool:
        """One round; True if pictures are left."""
        for number, news in self._backlog.notes():
            self._publish(number, news)
            self._unsent_status = True
        picture = self._backlog.picture()
        if picture is not None:
            self._publish(*picture)
        self._answer_all()
        now = time.monotonic()
        waited_s = now - self._status_s
        if waited_s >= BEAT_S or (self._unsent_status and waited_s >= _QUIET_S):
            self._send(self._translator.status(self.dropped, self._backlog.number()))
            self._status_s, self._unsent_status = now, False
        return picture is not None

    def _publish(self, number: int, news: Event) -> None:
        try:
            parcels = self._translator.parcels(news, number)
        except ValueError as error:  # pydantic's: something in it is too long or no number
            log.warning("a news of the run cannot be shown: %s", error)
            return
        for parcel in parcels:
            self._send(parcel)

    def _send(self, parcel: Parcel) -> None:
        self._sent += 1
        parcel = replace(parcel, message=parcel.message.model_copy(update={"sent": self._sent}))
        self._shelf.put(parcel)
        self._pub.send_multipart(encode(parcel), copy=not parcel.pictures)

    def _answer_all(self) -> None:
        while self._desk.poll(0):
            viewer, *frames = self._desk.recv_multipart()
            try:
                request = read_request(frames[-1] if frames else b"")
            except WireError as error:
                log.warning("a viewer was not understood: %s", error)
                self._reply([viewer, Answer(id=0, taken=False, text=str(error)).model_dump_json().encode()])
                continue
            match request:
                case Ask(since=since):
                    for parcel in self._shelf.present(since):
                        self._reply([viewer, *encode(parcel)])
                case Give():
                    self._reply([viewer, self._taken(request).model_dump_json().encode()])

    def _reply(self, frames: list[bytes | memoryview]) -> None:
        # ROUTER drops what a viewer does not fetch; the viewer asks again.
        with suppress(zmq.Again):
            self._desk.send_multipart(frames, flags=zmq.NOBLOCK, copy=False)

    def _taken(self, give: Give) -> Answer:
        what = describe(give.order)
        if not same_token(give.token, self.address.operator_token):
            log.warning("an order with a wrong token was turned away: %s", what)
            return Answer(id=give.id, taken=False, text="wrong token: only the operator may do this")
        if self._translator.standing.state in ("ended", "failed"):
            return Answer(id=give.id, taken=False, text="the run is over")
        with self._orders_lock:
            if len(self._orders) >= _MAX_ORDERS:
                text = f"{_MAX_ORDERS} orders wait already for the stack that is being acquired"
                return Answer(id=give.id, taken=False, text=text)
            self._orders.append(give.order)
        return Answer(id=give.id, taken=True, text=f"{what}: after the stack that is being acquired")

    def _wait(self, longest_s: float) -> None:
        poller = zmq.Poller()
        poller.register(self._desk, zmq.POLLIN)
        poller.register(self._waker.socket, zmq.POLLIN)
        soon_s = _QUIET_S if self._unsent_status else longest_s
        poller.poll(round(min(soon_s, longest_s) * 1000))
        self._waker.clear()
