"""The engine's end of the wire: takes slices of several clients, has stacks predicted, answers.

One thread owns the socket, so that heartbeats go on during inference; another owns the engines
(`acq_isl.stream.worker`); a third, now and then, loads a new model (`acq_isl.stream.swap`).
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import zmq

from acq_isl.errors import EngineError, WireError
from acq_isl.stream import messages as wire
from acq_isl.stream.codec import Frame, decode, encode
from acq_isl.stream.model_registry import ModelRegistry, ServedModel
from acq_isl.stream.repeats import LimitRepeats
from acq_isl.stream.schedule import Job, ScheduleCounts
from acq_isl.stream.sessions import Session, SessionLimits, Sessions
from acq_isl.stream.sockets import ServerKeys, Waker, is_local, let_in, open_router
from acq_isl.stream.swap import Swapper
from acq_isl.stream.unfinished import UnfinishedMessages
from acq_isl.stream.worker import EngineWorker

log = logging.getLogger(__name__)
log.addFilter(LimitRepeats())

_LOOP_S = 0.1
_MESSAGES_PER_ROUND = 256
_UNFINISHED_BYTES = 256 << 20  # a slice is one message
# Whoever floods this thread takes the engine's time: so much talk that is no work is heard, then there is a
# pause, in which ZMQ stops who sends on. ZMQ takes turns among peers, so work comes through.
_TALK_PER_ROUND, _TALK_PAUSE_S = 32, 0.01


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server allows."""

    limits: SessionLimits = field(default_factory=SessionLimits)
    keys: ServerKeys | None = None  # needed to be reached from other hosts
    load: Callable[[str], ServedModel] | None = None
    """Makes a model ready, given its file; without it no model can be replaced. Raises ModelError or
    EngineError."""


class EngineServer:
    """Serves models, of which clients need not name the first; closes their engines.

    Every prediction must have arrays of its own. ``tcp://127.0.0.1:*`` takes a free port, see `endpoint`.
    ModelError if two models have one name; EngineError on entering if the address is taken, unusable, or
    open to other hosts without keys.
    """

    def __init__(
        self, models: Sequence[ServedModel], bind: str, settings: ServerSettings | None = None
    ) -> None:
        self._registry = ModelRegistry(models)
        self._bind, self._settings = bind, settings or ServerSettings()
        limits = self._settings.limits
        # One entry for each job within credit at most: the engines' thread adds, the socket's takes.
        self._answers: queue.SimpleQueue[tuple[Job, list[Frame]]] = queue.SimpleQueue()
        self._worker = EngineWorker(
            self._registry, limits.credit * limits.clients * wire.MAX_MODELS, self._answered
        )
        self._stopping = threading.Event()
        self._io = threading.Thread(target=self._run, name="acq-isl server", daemon=True)

    def __enter__(self) -> EngineServer:
        try:
            self._open()
        except BaseException:
            self._registry.close()
            raise
        self._worker.start()
        self._io.start()
        return self

    def _open(self) -> None:
        if self._settings.keys is None and not is_local(self._bind):
            raise EngineError(
                f"{self._bind} is open to other hosts, and anyone there could use or disturb the engine",
                wanted="CURVE keys, or an address of this host only",
                fix="bind tcp://127.0.0.1:PORT and use an SSH tunnel, or give keys to both sides",
            )
        credit = self._settings.limits.credit
        welcome = wire.Welcome(attempt=0, credit=credit, models=self._registry.offers)
        self._sessions = Sessions(self._settings.limits, welcome, self._worker.incremental)
        self._context = zmq.Context()
        keys = self._settings.keys
        self._stop_authentication = None if keys is None else let_in(self._context, keys)
        try:
            self._socket = open_router(self._context, self._bind, keys)
        except zmq.ZMQError as error:
            self._close_context()
            raise EngineError(
                f"the engine cannot be served at {self._bind}: {error}",
                fix="choose another port, or stop the server that has it",
            ) from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._unfinished = UnfinishedMessages(self._socket, _UNFINISHED_BYTES)
        self._waker = Waker()
        self._swapper = Swapper(
            self._registry, self._settings.load, self._worker.between_stacks, self._waker.wake
        )

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._waker.wake()
        self._io.join(timeout=10)
        ended = self._worker.stop()
        self._swapper.stop()
        if ended:
            self._registry.close()
        else:
            log.error("the engine does not finish its stack; it is left to the end of the process")
        self._close_context()
        self._waker.close()

    @property
    def running(self) -> bool:
        """Whether it still answers."""
        return self._io.is_alive()

    @property
    def counts(self) -> ScheduleCounts:
        """What became of the stacks that waited for an engine; one of each stack and model."""
        return self._worker.counts

    def _close_context(self) -> None:
        if self._stop_authentication is not None:
            self._stop_authentication()
        self._context.destroy(linger=100)

    def _answered(self, job: Job, frames: list[Frame]) -> None:
        self._answers.put((job, frames))
        self._waker.wake()

    # ---- the socket's thread

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._waker.socket, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                poller.poll(int(_LOOP_S * 1000))
                self._waker.clear()
                self._receive()
                self._unfinished.cut_off()
                while not self._answers.empty():
                    job, frames = self._answers.get()
                    self._send(self._sessions.answer(job, frames), frames)
                self._expire(time.monotonic())
                self._swap()
            for identity in self._sessions.identities:
                self._send(identity, encode(wire.Bye(reason="the engine was stopped")))
        except Exception:
            log.exception("the server's thread failed")
        finally:
            self._unfinished.close()
            self._socket.close(linger=100)

    def _receive(self) -> None:
        talk = 0
        for _ in range(_MESSAGES_PER_ROUND):
            if talk >= _TALK_PER_ROUND:
                self._stopping.wait(_TALK_PAUSE_S)
                return
            try:
                identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._unfinished.note([identity, *frames])
            try:
                message, buffers = decode([frame.buffer for frame in frames])
            except WireError as error:
                talk += 1
                log.warning("ignored a message: %s", error)
                self._send(identity.bytes, encode(wire.Bye(reason=wire.cut(str(error)))))
                continue
            talk += not isinstance(message, wire.SliceSent | wire.Done)
            self._handle(identity.bytes, message, buffers)

    def _handle(self, identity: bytes, message: wire.Message, buffers: Sequence[memoryview]) -> None:
        now_s = time.monotonic()
        session = self._sessions.find(identity, now_s)
        if isinstance(message, wire.Hello):
            self._drop(self._sessions.replace(identity, message.session))
            for frames in self._sessions.hello(identity, message, now_s):
                self._send(identity, frames)
        elif isinstance(message, wire.Swap):
            # Whoever gets here is on this host or has a key: `_open` lets nobody else in.
            self._send(identity, encode(self._swapper.begin(identity, message)))
        elif session is not None and isinstance(message, wire.ClientMessage):
            self._serve(session, message, buffers)
        # Else it was forgotten, and greets again when it hears nothing.

    def _serve(self, session: Session, message: wire.ClientMessage, buffers: Sequence[memoryview]) -> None:
        match message:
            case wire.SliceSent():
                self._take(session, message, buffers)
            case wire.Done(stack=stack, model=model):
                session.confirm(stack, model)
            case wire.Cancel(stack=stack):
                self._drop(session.forget(stack))
            case wire.Withdraw(stack=stack):
                self._withdraw(session, stack)
            case wire.Beat(sent_s=sent_s):
                self._send(session.identity, encode(wire.Alive(sent_s=sent_s, server_s=time.time())))
            case wire.Bye():
                self._drop(self._sessions.leave(session))
            case _:
                assert_never(message)

    def _take(self, session: Session, sent: wire.SliceSent, buffers: Sequence[memoryview]) -> None:
        try:
            jobs = self._sessions.take(session, sent, buffers, time.monotonic())
        except WireError as error:
            for frames in session.fail(sent.stack, sent.wanted.names, str(error)):
                self._send(session.identity, frames)
            return
        for job in jobs:
            self._swapper.latest = job.zstack.info
            if not self._worker.add(job):
                busy = wire.Failed(stack=job.number, model=job.model, reason="the engine is too busy")
                self._answers.put((job, encode(busy)))

    def _withdraw(self, session: Session, stack: int) -> None:
        jobs = session.waiting(stack)
        # What is begun already goes on; the others of its stack, too.
        back = [job for job in jobs if self._worker.remove(job)]
        if jobs and len(back) == len(jobs):
            session.forget(stack)
            self._send(session.identity, encode(wire.Withdrawn(stack=stack)))
            return
        for job in back:
            self._worker.add(job)

    def _drop(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._worker.remove(job)

    def _expire(self, now_s: float) -> None:
        for job in self._worker.expire(now_s):
            late = encode(wire.Expired(stack=job.number, model=job.model))
            self._send(self._sessions.answer(job, late), late)
        for client in self._sessions.silent(now_s):
            log.warning("forgot a client that was silent for too long")
            self._drop(self._sessions.leave(client))
        for identity, frames in self._sessions.expire(now_s):
            self._send(identity, frames)

    def _swap(self) -> None:
        """See to a model that was loaded, refused, or put in its place."""
        for notice in self._swapper.step(self._sessions.clients_of_fixed_models):
            if notice.offers is not None:
                self._sessions.offer(notice.offers)
                for identity in self._sessions.identities:
                    self._send(identity, encode(wire.Models(models=notice.offers)))
            if notice.message is not None:
                self._send(notice.asker, encode(notice.message))

    def _send(self, identity: bytes | None, frames: Sequence[Frame] | None) -> None:
        if identity is None or frames is None:
            return
        try:
            self._socket.send_multipart([identity, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            # The client is gone or does not read. Answers are kept and sent again when it greets.
            log.info("a client could not be reached: %s", error)
