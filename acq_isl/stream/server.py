"""The engine's end of the wire: takes slices of several clients, has stacks predicted, answers.

One thread owns the socket, so that heartbeats go on during inference; another owns the engine.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType

import zmq

from acq_isl.errors import EngineError, StackRefused, WireError
from acq_isl.messages import (
    MAX_FRAME_BYTES,
    Alive,
    Beat,
    Bye,
    Cancel,
    Done,
    Failed,
    Hello,
    Message,
    Refused,
    SliceSent,
    Welcome,
)
from acq_isl.protocols import Engine
from acq_isl.stack import StageTimes
from acq_isl.stream.endpoint import is_ipv6, is_local
from acq_isl.stream.keys import ServerKeys, let_in
from acq_isl.stream.sessions import Job, SessionLimits, Sessions
from acq_isl.wire import Frame, decode, encode, result_of

log = logging.getLogger(__name__)

_LOOP_S = 0.1
_MESSAGES_QUEUED = 64
_MESSAGES_PER_ROUND = 256


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What a server tells of its engine and allows its clients."""

    engine_name: str = ""
    model_sha256: str = ""
    limits: SessionLimits = field(default_factory=SessionLimits)
    keys: ServerKeys | None = None


class EngineServer:
    """Serves one engine.

    Parameters
    ----------
    engine : Engine
        Called from one thread only. Every prediction must have arrays of its own. Closing it stays with
        the caller.
    bind : str
        ZMQ address; ``tcp://127.0.0.1:*`` takes a free port, see `endpoint`.
    settings : ServerSettings

    Raises
    ------
    EngineError
        On entering: the address is taken or unusable, or open to other hosts without keys.
    """

    def __init__(self, engine: Engine, bind: str, settings: ServerSettings | None = None) -> None:
        self._engine, self._bind, self._settings = engine, bind, settings or ServerSettings()
        limits = self._settings.limits
        self._jobs: queue.Queue[Job | None] = queue.Queue(limits.credit * limits.clients + 1)
        self._answers: queue.SimpleQueue[tuple[Job, list[Frame]]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._io = threading.Thread(target=self._run, name="acq-isl server", daemon=True)
        self._worker = threading.Thread(target=self._work, name="acq-isl engine", daemon=True)

    def __enter__(self) -> EngineServer:
        if self._settings.keys is None and not is_local(self._bind):
            raise EngineError(
                f"{self._bind} is open to other hosts, and anyone there could use or disturb the engine",
                wanted="CURVE keys, or an address of this host only",
                fix="bind tcp://127.0.0.1:PORT and use an SSH tunnel, or give keys to both sides",
            )
        welcome = Welcome(
            attempt=0,
            credit=self._settings.limits.credit,
            manifest=self._engine.manifest.model_dump_json(),
            model_sha256=self._settings.model_sha256,
            engine=self._settings.engine_name,
        )
        self._sessions = Sessions(self._settings.limits, welcome)
        self._context = zmq.Context()
        self._auth = let_in(self._context, self._settings.keys)
        try:
            self._socket = _router(self._context, self._bind, self._settings.keys)
        except zmq.ZMQError as error:
            self._close_context()
            raise EngineError(
                f"the engine cannot be served at {self._bind}: {error}",
                fix="choose another port, or stop the server that has it",
            ) from error
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._worker.start()
        self._io.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._wake()
        self._io.join(timeout=10)
        with suppress(queue.Full):  # then it is busy and sees `_stopping` next
            self._jobs.put_nowait(None)
        self._worker.join(timeout=60)
        self._close_context()
        self._wake_in.close()
        self._wake_out.close()

    @property
    def running(self) -> bool:
        """Whether it still answers."""
        return self._io.is_alive()

    def _wake(self) -> None:
        with suppress(BlockingIOError):
            self._wake_in.send(b"\0")

    def _close_context(self) -> None:
        if self._auth is not None:
            self._auth()
        self._context.destroy(linger=100)

    # ---- the engine's thread

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and not self._stopping.is_set():
            if job.wanted:
                self._answers.put((job, _predict(self._engine, job)))
                self._wake()

    # ---- the socket's thread

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_out, zmq.POLLIN)
        try:
            while not self._stopping.is_set():
                poller.poll(int(_LOOP_S * 1000))
                with suppress(BlockingIOError):
                    self._wake_out.recv(4096)
                self._receive()
                while not self._answers.empty():
                    job, frames = self._answers.get()
                    self._send(self._sessions.answer(job, frames), frames)
                for identity, frames in self._sessions.expire(time.monotonic()):
                    self._send(identity, frames)
            for identity in self._sessions.identities:
                self._send(identity, encode(Bye(reason="the engine was stopped")))
        except Exception:
            log.exception("the server's thread failed")
        finally:
            self._socket.close(linger=100)

    def _receive(self) -> None:
        for _ in range(_MESSAGES_PER_ROUND):
            try:
                identity, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                message, buffers = decode([frame.buffer for frame in frames])
            except WireError as error:
                log.warning("ignored a message: %s", error)
                self._send(identity.bytes, encode(Bye(reason=str(error)[:8000])))
                continue
            self._handle(identity.bytes, message, buffers)

    def _handle(self, identity: bytes, message: Message, buffers: Sequence[memoryview]) -> None:
        now_s = time.monotonic()
        if isinstance(message, Hello):
            for frames in self._sessions.hello(identity, message, now_s):
                self._send(identity, frames)
            return
        if not self._sessions.seen(identity, now_s):
            return  # it was forgotten; it greets again when it hears nothing
        if isinstance(message, SliceSent):
            self._take(identity, message, buffers)
        elif isinstance(message, Done | Cancel):
            self._sessions.forget(identity, message.stack)
        elif isinstance(message, Beat):
            self._send(identity, encode(Alive(sent_s=message.sent_s, server_s=time.time())))
        elif isinstance(message, Bye):
            self._sessions.leave(identity)

    def _take(self, identity: bytes, sent: SliceSent, buffers: Sequence[memoryview]) -> None:
        try:
            job = self._sessions.take(identity, sent, buffers, time.monotonic(), time.time())
        except WireError as error:
            frames = self._sessions.fail(identity, sent.stack, str(error))
            self._send(identity, frames)
            return
        if job is not None:
            try:
                self._jobs.put_nowait(job)
            except queue.Full:  # of cancelled jobs: those within credit fit
                self._answers.put((job, encode(Failed(stack=job.stack, reason="the engine is too busy"))))

    def _send(self, identity: bytes | None, frames: Sequence[Frame] | None) -> None:
        if identity is None or frames is None:
            return
        try:
            self._socket.send_multipart([identity, *frames], zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            # The client is gone or does not read. Answers are kept and sent again when it greets.
            log.info("a client could not be reached: %s", error)


def _predict(engine: Engine, job: Job) -> list[Frame]:
    """The message that answers a stack. An engine may raise anything; the server goes on."""
    taken_s, begin_s = time.time(), time.perf_counter()
    try:
        if not job.intact:
            raise WireError("the client gave the stack's memory to another one")
        prediction = engine.predict(job.zstack)
        spent_ms = (time.perf_counter() - begin_s) * 1e3
        if not job.intact:
            raise WireError("the client gave the stack's memory to another one")
        times = prediction.times
        if times.infer_ms + times.decode_ms == 0:
            times = StageTimes(infer_ms=spent_ms)
        times = replace(times, wait_ms=max(taken_s - job.complete_s, 0.0) * 1e3)
        named = replace(prediction, info=job.zstack.info, times=times)
        return result_of(job.stack, named, job.complete_s)
    except StackRefused as refusal:
        told = [
            refusal.what,
            refusal.wanted and f"wanted: {refusal.wanted}",
            refusal.got and f"got: {refusal.got}",
        ]
        reason = "; ".join(part for part in told if part)
        return encode(Refused(stack=job.stack, reason=reason[:8000], fix=(refusal.fix or "")[:8000]))
    except Exception as error:
        log.exception("the engine failed on stack %s", job.zstack.info.key)
        return encode(Failed(stack=job.stack, reason=f"{type(error).__name__}: {error}"[:8000]))


def _router(context: zmq.Context[zmq.Socket[bytes]], bind: str, keys: ServerKeys | None) -> zmq.Socket[bytes]:
    router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.setsockopt(zmq.IPV6, int(is_ipv6(bind)))
    # Without it an answer to a client that left would vanish silently.
    router.setsockopt(zmq.ROUTER_MANDATORY, 1)
    router.setsockopt(zmq.SNDHWM, _MESSAGES_QUEUED)
    router.setsockopt(zmq.RCVHWM, _MESSAGES_QUEUED)
    router.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    if keys is not None:
        router.curve_server = True
        router.curve_publickey, router.curve_secretkey = keys.public, keys.secret
    router.bind(bind)
    return router
