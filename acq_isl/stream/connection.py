"""The client's connection to one server: greeting, heartbeat, loss and return of the engine.

::

    closed ─open─► searching ──WELCOME──► connected
                      ▲                      │ disconnected, or silent for too long
                      └──────────────────────┘

One thread owns a link. Sending to an absent engine queues nothing (ZMQ_IMMEDIATE), so an engine that
comes back gets exactly what it is sent after its WELCOME.
"""

from __future__ import annotations

import logging
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import recv_monitor_message

from acq_isl.errors import EngineError, WireError
from acq_isl.stream import messages as wire
from acq_isl.stream.codec import Frame, decode, encode
from acq_isl.stream.promises import other_models, require_promised
from acq_isl.stream.repeats import LimitRepeats
from acq_isl.stream.shared_memory import Block
from acq_isl.stream.sockets import ClientKeys, open_dealer

log = logging.getLogger(__name__)
log.addFilter(LimitRepeats())

_HELLO_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class ConnectionSettings:
    """How often to beat and how long to trust a silent server, in seconds.

    ``any_model`` agrees to models being replaced by ones with other labels, planes or optics.
    """

    beat_s: float = 0.5
    silence_s: float = 5.0
    reconnect_s: float = 0.1
    reconnect_max_s: float = 2.0
    keys: ClientKeys | None = None
    any_model: bool = False


LinkSettings = ConnectionSettings
"""The name until version 0.1."""


class Connection:
    """DEALER socket to a server, which is offered shared memory with a nonce to prove that it sees it."""

    def __init__(
        self, endpoint: str, settings: ConnectionSettings, memory: wire.MemoryOffer | None, nonce: str
    ) -> None:
        self._endpoint, self._settings, self._memory, self._nonce = endpoint, settings, memory, nonce
        self._session = secrets.token_hex(16)
        self._attempt = 0
        self._heard_s = self._beat_s = self._hello_s = float("-inf")
        self._best_rtt_s = float("inf")
        self._first_offers: tuple[wire.Offer, ...] = ()
        self.welcome: wire.Welcome | None = None
        """The server's greeting while connected, else None."""
        self.trouble = "it has not answered yet"
        """Why it is not connected, in words."""
        self.clock_offset_s = 0.0
        """The server's clock minus ours, from the fastest heartbeat."""

    def open(self) -> None:
        """Start to look for the server; EngineError if the address cannot be used."""
        self._context = zmq.Context()
        try:
            self._open_socket()
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise EngineError(
                f"the engine's address {self._endpoint} cannot be used: {error}",
                wanted="an address such as tcp://127.0.0.1:5555",
            ) from error

    def close(self) -> None:
        """Say good-bye and give everything back."""
        if self.welcome is not None:
            self.send(encode(wire.Bye(reason="the client closes")))
        self._close_socket(linger_ms=100)
        self._context.destroy(linger=100)

    def shares(self, block: Block) -> bool:
        """Whether the server sees a stack's memory."""
        return self.shares_memory and block.home.offer == self._memory

    @property
    def shares_memory(self) -> bool:
        """Whether the server has proved to see our memory."""
        return (
            self.welcome is not None and self._memory is not None and self.welcome.ring_nonce == self._nonce
        )

    def wait(self, wake: socket.socket, timeout_s: float, *, until_sendable: bool) -> None:
        """Wait until there is something to receive, room to send if asked for, or somebody woke us."""
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN | (zmq.POLLOUT if until_sendable else 0))
        poller.register(self._monitor, zmq.POLLIN)
        poller.register(wake, zmq.POLLIN)
        poller.poll(int(timeout_s * 1000))

    def send(self, frames: Sequence[Frame]) -> bool:
        """Hand a message to ZMQ, large buffers uncopied; False if the server is absent or too slow."""
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        return True

    def receive(self) -> Iterator[tuple[wire.Message, tuple[memoryview, ...]]]:
        """Messages that have arrived; heartbeats are answered here and not shown."""
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._heard_s = time.monotonic()
            try:
                message, buffers = decode([frame.buffer for frame in frames])
            except WireError as error:
                log.warning("ignored a message of the engine: %s", error)
                # It may have been an answer: what was not understood is sent anew.
                if self.welcome is not None:
                    self._lose(f"it cannot be understood: {error}")
                    self._attempt += 1
                continue
            match message:
                case wire.Alive():
                    self._note_clock(message)
                case wire.Bye(reason=reason):
                    self._lose(f"the server ended the connection: {wire.printable(reason)}")
                    self._attempt += 1
                case wire.Models(models=models):
                    if self.welcome is not None and self._keeps_models(models):
                        log.info("the engine at %s serves other models from now on", self._endpoint)
                        self.welcome = self.welcome.model_copy(update={"models": models})
                case wire.Welcome(attempt=attempt):
                    # Not the answer to a repeated greeting, or on an earlier connection.
                    if (
                        self.welcome is None
                        and attempt == self._attempt
                        and self._keeps_models(message.models)
                    ):
                        self.welcome = message
                        yield message, buffers
                case _:
                    yield message, buffers

    def require_promised(self, result: wire.Result) -> None:
        """WireError unless a prediction has the labels that the server said its model has."""
        if self.welcome is not None and not self._settings.any_model:
            require_promised(self.welcome.models, result)

    def _keeps_models(self, offers: tuple[wire.Offer, ...]) -> bool:
        """Whether a client that relies on the models it began with can go on; else the server is lost."""
        self._first_offers = self._first_offers or offers
        changed = "" if self._settings.any_model else other_models(self._first_offers, offers)
        changed = wire.printable(changed)
        if not changed:
            return True
        log.warning("the engine at %s is not used: it has other models (%s)", self._endpoint, changed)
        self._lose(f"it came back with other models ({changed}); stacks wait for those it had")
        return False

    def tick(self) -> None:
        """Greet, beat, and notice that the server is gone. Call it several times a second."""
        self._note_events()
        now_s = time.monotonic()
        if self.welcome is None:
            if now_s - self._hello_s >= _HELLO_EVERY_S and self._greet():
                self._hello_s = now_s
            return
        if now_s - self._heard_s > self._settings.silence_s:
            self._lose(f"it was silent for {self._settings.silence_s:g} s")
            # A frozen server or a cut cable: start afresh rather than on a half-dead connection.
            self._close_socket()
            self._open_socket()
        elif now_s - self._beat_s >= self._settings.beat_s:
            self._beat_s = now_s
            self.send(encode(wire.Beat(sent_s=time.time())))

    def _greet(self) -> bool:
        hello = wire.Hello(
            session=self._session,
            attempt=self._attempt,
            ring=self._memory,
            any_model=self._settings.any_model,
        )
        return self.send(encode(hello))

    def _note_events(self) -> None:
        while self._monitor.poll(0):
            event = recv_monitor_message(self._monitor)["event"]
            if event == zmq.EVENT_DISCONNECTED:
                if self.welcome is not None:  # else an attempt failed, whose reason is known already
                    self._lose("the connection broke")
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._start_greeting()
            else:
                self.trouble = "the server refuses our keys"

    def _lose(self, why: str) -> None:
        self.trouble = why
        if self.welcome is not None:
            self.welcome = None
            log.warning("the engine at %s is lost: %s", self._endpoint, why)

    def _note_clock(self, alive: wire.Alive) -> None:
        now_s = time.time()
        rtt_s = now_s - alive.sent_s
        if 0 <= rtt_s < self._best_rtt_s:
            self._best_rtt_s = rtt_s
            self.clock_offset_s = alive.server_s - (alive.sent_s + now_s) / 2

    def _open_socket(self) -> None:
        settings = self._settings
        self._socket = open_dealer(self._context, self._endpoint, settings.keys)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.RECONNECT_IVL, int(settings.reconnect_s * 1000))
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, int(settings.reconnect_max_s * 1000))
        self._monitor = self._socket.get_monitor_socket(
            zmq.EVENT_DISCONNECTED
            | zmq.EVENT_HANDSHAKE_SUCCEEDED
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH
            | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        )
        self._start_greeting()
        self._socket.connect(self._endpoint)

    def _start_greeting(self) -> None:
        """A new connection: answers to greetings on an earlier one do not count any more."""
        self._attempt += 1
        self._hello_s = float("-inf")

    def _close_socket(self, linger_ms: int = 0) -> None:
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=linger_ms)
