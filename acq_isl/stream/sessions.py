"""The server's book-keeping of its clients: what each has sent, and which answers it has not confirmed.

No thread, socket or clock of its own. A client may lose its connection and come back: its session id
tells it is the same one, complete stacks are not asked for again, unconfirmed answers are sent again.
So a stack is predicted once, as long as the server lives.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from acq_isl.errors import WireError
from acq_isl.stack import Slice, ZStack
from acq_isl.stream import messages as wire
from acq_isl.stream.assembler import Assembler
from acq_isl.stream.codec import Frame, encode, slice_of
from acq_isl.stream.incremental import IncrementalStatistics, IncrementalThread
from acq_isl.stream.schedule import Job
from acq_isl.stream.shared_memory import SharedMemoryView

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What the server allows.

    Parameters
    ----------
    credit : int
        Stacks of one client that may be at the server at once.
    clients : int
    stack_bytes : int
        Largest stack taken, in bytes.
    stack_timeout_s : float
        A stack whose next slice does not come for this long is answered with FAILED.
    client_timeout_s : float
        A client silent for this long is forgotten.
    """

    credit: int = 2
    clients: int = 8
    stack_bytes: int = 1 << 31
    stack_timeout_s: float = 60.0
    client_timeout_s: float = 30.0


@dataclass(slots=True, eq=False)
class _Session:
    identity: bytes
    heard_s: float
    assembler: Assembler
    offer: wire.MemoryOffer | None = None
    ring: SharedMemoryView | None = None
    any_model: bool = False
    models: dict[int, dict[str, IncrementalStatistics | None]] = field(
        default_factory=dict
    )  # asked for, by open stack
    jobs: dict[tuple[int, str], Job] = field(default_factory=dict)
    answers: dict[tuple[int, str], list[Frame]] = field(default_factory=dict)

    @property
    def stacks(self) -> set[int]:
        """Complete stacks of which the client has not confirmed every answer."""
        return {stack for stack, _ in (*self.jobs, *self.answers)}


class Sessions:
    """All clients of a server.

    Parameters
    ----------
    limits : SessionLimits
    welcome : Welcome
        The greeting; attempt, ring nonce and held stacks are filled in for each client.
    incremental : IncrementalThread, optional
        Shown every slice as soon as it is in its place.
    """

    def __init__(
        self, limits: SessionLimits, welcome: wire.Welcome, incremental: IncrementalThread | None = None
    ) -> None:
        self._limits, self._welcome, self._incremental = limits, welcome, incremental
        self._sessions: dict[str, _Session] = {}
        self._of_identity: dict[bytes, str] = {}

    def hello(self, identity: bytes, hello: wire.Hello, now_s: float) -> list[list[Frame]]:
        """Messages that answer a greeting: WELCOME and the unconfirmed answers, or BYE."""
        session = self._sessions.get(hello.session)
        if session is None:
            if len(self._sessions) >= self._limits.clients:
                return [encode(wire.Bye(reason=f"the engine serves {self._limits.clients} clients already"))]
            assembler = Assembler(timeout_s=self._limits.stack_timeout_s, max_open=self._limits.credit)
            session = _Session(identity, now_s, assembler)
            self._sessions[hello.session] = session
        self._of_identity.pop(session.identity, None)
        self._of_identity[identity] = hello.session
        session.identity, session.heard_s = identity, now_s
        session.any_model = hello.any_model
        session.assembler.clear()
        session.models.clear()
        self._map(session, hello.ring)
        welcome = self._welcome.model_copy(
            update={
                "attempt": hello.attempt,
                "ring_nonce": session.ring.nonce if session.ring else "",
                "held": tuple(sorted(session.stacks)),
            }
        )
        return [encode(welcome), *session.answers.values()]

    def note_alive(self, identity: bytes, now_s: float) -> bool:
        """Note that a client is there; False if it is not one of ours."""
        session = self._session(identity)
        if session is not None:
            session.heard_s = now_s
        return session is not None

    def take(
        self,
        identity: bytes,
        sent: wire.SliceSent,
        buffers: Sequence[memoryview],
        now_s: float,
        unix_s: float,
    ) -> list[Job]:
        """Add a slice; the jobs, one for each model, if its stack is complete now.

        Raises
        ------
        WireError
            The slice breaks an agreement. Its stack is forgotten; answer it with `fail`.
        """
        session = self._session(identity)
        if session is None or sent.stack in session.stacks:
            return []
        known = sent.stack in session.assembler.open
        if not known and len(session.assembler.open) + len(session.stacks) >= self._limits.credit:
            raise WireError("more stacks at once than credit", wanted=f"<= {self._limits.credit}")
        rows, columns = sent.info.shape
        if sent.info.planes * rows * columns * 2 > self._limits.stack_bytes:
            raise WireError(
                "the stack is larger than this server takes", wanted=f"<= {self._limits.stack_bytes} B"
            )
        zstack = self._add(session, sent, buffers, now_s)
        before, of = session.models.pop(sent.stack, {}), zstack or session.assembler.unfinished(sent.stack)
        if of is None:
            return []
        models = {name: before.get(name) for name in sent.wanted.names}
        if self._incremental is not None:
            self._incremental.add(models, of.info, sent.z_index, of.pixels[sent.z_index])
        if zstack is None:
            session.models[sent.stack] = models
            return []
        ring = session.ring if sent.ring is not None else None
        due_s = math.inf if sent.left_ms is None else now_s + sent.left_ms / 1e3
        name, work = self._of_identity[identity], sent.wanted.work
        jobs = [
            Job(name, sent.stack, model, zstack, unix_s, work, due_s, ring, sent.ring, statistics)
            for model, statistics in models.items()
        ]
        session.jobs |= {(job.number, job.model): job for job in jobs}
        return jobs

    def fail(self, identity: bytes, stack: int, models: Iterable[str], reason: str) -> list[list[Frame]]:
        """Give a stack up; the messages that say so, one for each model."""
        session = self._session(identity)
        if session is None or stack in session.stacks:
            return []
        session.assembler.drop(stack)
        session.models.pop(stack, None)
        for model in models:
            failed = wire.Failed(stack=stack, model=model, reason=wire.cut(reason))
            session.answers[stack, model] = encode(failed)
        return [session.answers[stack, model] for model in models]

    def answer(self, job: Job, frames: list[Frame]) -> bytes | None:
        """Keep an answer until the client confirms it; whom to send it to, None if nobody wants it."""
        session = self._sessions.get(job.client)
        place = job.number, job.model
        if session is None or session.jobs.get(place) is not job:
            return None
        del session.jobs[place]
        session.answers[place] = frames
        return session.identity

    def expire_job(self, job: Job) -> tuple[bytes | None, list[Frame]]:
        """The answer to a job whose deadline has come, and for whom."""
        frames = encode(wire.Expired(stack=job.number, model=job.model))
        return self.answer(job, frames), frames

    def confirm(self, identity: bytes, stack: int, model: str) -> None:
        """The client has an answer."""
        session = self._session(identity)
        if session is not None:
            session.answers.pop((stack, model), None)

    def forget(self, identity: bytes, stack: int) -> list[Job]:
        """The client wants no answers of a stack for now; its jobs, to be taken off the schedule."""
        session = self._session(identity)
        if session is None:
            return []
        session.assembler.forget(stack)
        session.models.pop(stack, None)
        jobs = [job for job in session.jobs.values() if job.number == stack]
        for kept in (session.jobs, session.answers):
            for place in [place for place in kept if place[0] == stack]:
                del kept[place]
        return jobs

    def waiting(self, identity: bytes, stack: int) -> list[Job]:
        """The jobs of a complete stack if none of its models has answered yet, else nothing."""
        session = self._session(identity)
        if session is None or any(place[0] == stack for place in session.answers):
            return []
        return [job for job in session.jobs.values() if job.number == stack]

    def leave(self, identity: bytes) -> list[Job]:
        """A client said good-bye; its jobs, to be taken off the schedule."""
        name = self._of_identity.pop(identity, None)
        session = self._sessions.pop(name, None) if name is not None else None
        return list(session.jobs.values()) if session is not None else []

    def silent(self, now_s: float) -> list[bytes]:
        """Clients that are to be forgotten."""
        limit_s = self._limits.client_timeout_s
        return [s.identity for s in self._sessions.values() if now_s - s.heard_s > limit_s]

    def expire(self, now_s: float) -> list[tuple[bytes, list[Frame]]]:
        """Give up stacks whose slices stopped coming; what to tell whom about it."""
        messages: list[tuple[bytes, list[Frame]]] = []
        for session in self._sessions.values():
            for lost in session.assembler.expire(now_s):
                reason = f"{len(lost.missing)} of {lost.info.planes} slices never came: {lost.missing}"
                models = session.models.get(lost.stack, ("",))
                answers = self.fail(session.identity, lost.stack, models, reason)
                messages += [(session.identity, frames) for frames in answers]
        return messages

    def offer(self, models: tuple[wire.Offer, ...]) -> None:
        """What to say of the models from now on."""
        self._welcome = self._welcome.model_copy(update={"models": models})

    @property
    def clients_of_fixed_models(self) -> int:
        """Clients that did not agree to other models."""
        return sum(not session.any_model for session in self._sessions.values())

    @property
    def identities(self) -> tuple[bytes, ...]:
        return tuple(self._of_identity)

    def _session(self, identity: bytes) -> _Session | None:
        return self._sessions.get(self._of_identity.get(identity, ""))

    def _add(
        self, session: _Session, sent: wire.SliceSent, buffers: Sequence[memoryview], now_s: float
    ) -> ZStack | None:
        if sent.ring is None:
            return session.assembler.add(sent.stack, slice_of(sent, buffers), now_s)
        if session.ring is None:
            raise WireError("a slice lies in shared memory that was not agreed upon")
        whole = session.ring.view(sent.ring, sent.info)
        slice_ = Slice(sent.info, sent.z_index, whole[sent.z_index], sent.captured_s)
        return session.assembler.add(sent.stack, slice_, now_s, into=whole)

    @staticmethod
    def _map(session: _Session, offer: wire.MemoryOffer | None) -> None:
        if offer == session.offer:
            return
        session.offer, session.ring = offer, None
        if offer is not None:
            try:
                session.ring = SharedMemoryView(offer)
            except WireError as error:
                log.info("a client's slices will come through the socket: %s", error)
