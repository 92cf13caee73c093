"""The server's book-keeping of its clients: what each has sent, and which answers it has not confirmed.

No thread or socket of its own. A client may lose its connection and come back: its session id
tells it is the same one, complete stacks are not asked for again, unconfirmed answers are sent again.
So a stack is predicted once, as long as the server lives.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from acq_isl.errors import WireError
from acq_isl.stack import Slice, ZStack
from acq_isl.stream import messages as wire
from acq_isl.stream.assembler import Assembler
from acq_isl.stream.codec import Frame, encode, slice_of
from acq_isl.stream.incremental import IncrementalStatistics, IncrementalThread
from acq_isl.stream.repeats import LimitRepeats
from acq_isl.stream.schedule import Job
from acq_isl.stream.shared_memory import SharedMemoryView

log = logging.getLogger(__name__)
log.addFilter(LimitRepeats())

_ANSWERS_KEPT = 1024
"""Of a client that does not confirm them. Results cannot come to so many: they need credit."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What the server allows."""

    credit: int = 2  # stacks of one client that may be at the server at once
    clients: int = 8
    stack_bytes: int = 1 << 31  # largest stack taken, in bytes
    stack_timeout_s: float = 60.0
    """A stack whose next slice does not come for this long is answered with FAILED."""
    client_timeout_s: float = 30.0  # a client silent for this long is forgotten


@dataclass(slots=True, eq=False)
class Session:
    """What a client has sent, and the answers that it has not confirmed."""

    id: str
    identity: bytes
    heard_s: float
    assembler: Assembler
    offer: wire.MemoryOffer | None = None
    memory: SharedMemoryView | None = None
    any_model: bool = False
    models: dict[int, dict[str, IncrementalStatistics | None]] = field(default_factory=dict)
    """Models asked for, by open stack."""
    jobs: dict[tuple[int, str], Job] = field(default_factory=dict)
    answers: dict[tuple[int, str], list[Frame]] = field(default_factory=dict)

    @property
    def stacks(self) -> set[int]:
        """Complete stacks of which the client has not confirmed every answer."""
        return {stack for stack, _ in (*self.jobs, *self.answers)}

    def confirm(self, stack: int, model: str) -> None:
        """The client has an answer."""
        self.answers.pop((stack, model), None)

    def fail(self, stack: int, models: Iterable[str], reason: str) -> list[list[Frame]]:
        """Give a stack up; the messages that say so, one for each model."""
        if stack in self.stacks:
            return []
        self.assembler.drop(stack)
        self.models.pop(stack, None)
        failed = {
            (stack, model): encode(wire.Failed(stack=stack, model=model, reason=wire.cut(reason)))
            for model in models
        }
        if len(self.answers) < _ANSWERS_KEPT:
            self.answers |= failed
        return list(failed.values())

    def forget(self, stack: int) -> list[Job]:
        """The client wants no answers of a stack for now; its jobs, to be taken off the schedule."""
        self.assembler.forget(stack)
        self.models.pop(stack, None)
        jobs = [job for job in self.jobs.values() if job.number == stack]
        self.jobs = {key: job for key, job in self.jobs.items() if key[0] != stack}
        self.answers = {key: frames for key, frames in self.answers.items() if key[0] != stack}
        return jobs

    def waiting(self, stack: int) -> list[Job]:
        """The jobs of a complete stack if none of its models has answered yet, else nothing."""
        if any(number == stack for number, _ in self.answers):
            return []
        return [job for job in self.jobs.values() if job.number == stack]

    def map_memory(self, offer: wire.MemoryOffer | None) -> None:
        """Look for the shared memory that the client offers."""
        if offer == self.offer:
            return
        self.offer, self.memory = offer, None
        if offer is not None:
            try:
                self.memory = SharedMemoryView(offer)
            except WireError as error:
                log.info("a client's slices will come through the socket: %s", error)

    def add(self, sent: wire.SliceSent, buffers: Sequence[memoryview], now_s: float) -> ZStack | None:
        """Take a slice; its stack if that is complete now. WireError if it breaks an agreement."""
        if sent.ring is None:
            return self.assembler.add(sent.stack, slice_of(sent, buffers), now_s)
        if self.memory is None:
            raise WireError("a slice lies in shared memory that was not agreed upon")
        whole = self.memory.view(sent.ring, sent.info)
        slice_ = Slice(sent.info, sent.z_index, whole[sent.z_index], sent.captured_s)
        return self.assembler.add(sent.stack, slice_, now_s, into=whole)


class Sessions:
    """All clients of a server; slices are measured as they come if there is a thread for that.

    ``welcome`` is the greeting, whose attempt, nonce and held stacks are filled in for each client.
    """

    def __init__(
        self, limits: SessionLimits, welcome: wire.Welcome, incremental: IncrementalThread | None = None
    ) -> None:
        self._limits, self._welcome, self._incremental = limits, welcome, incremental
        self._sessions: dict[str, Session] = {}
        self._by_identity: dict[bytes, Session] = {}

    def hello(self, identity: bytes, hello: wire.Hello, now_s: float) -> list[list[Frame]]:
        """Messages that answer a greeting: WELCOME and the unconfirmed answers, or BYE."""
        session = self._sessions.get(hello.session)
        if session is None:
            if len(self._sessions) >= self._limits.clients:
                return [encode(wire.Bye(reason=f"the engine serves {self._limits.clients} clients already"))]
            assembler = Assembler(timeout_s=self._limits.stack_timeout_s, max_open=self._limits.credit)
            session = Session(hello.session, identity, now_s, assembler)
            self._sessions[session.id] = session
        self._forget_identity(session)
        self._by_identity[identity] = session
        session.identity, session.heard_s, session.any_model = identity, now_s, hello.any_model
        session.assembler.clear()
        session.models.clear()
        session.map_memory(hello.ring)
        welcome = self._welcome.model_copy(
            update={
                "attempt": hello.attempt,
                "ring_nonce": session.memory.nonce if session.memory else "",
                "held": tuple(sorted(session.stacks)),
            }
        )
        return [encode(welcome), *session.answers.values()]

    def replace(self, identity: bytes, session: str) -> list[Job]:
        """A connection has one session: what was another of this one is gone; its jobs."""
        before = self._by_identity.get(identity)
        return self.leave(before) if before is not None and before.id != session else []

    def find(self, identity: bytes, now_s: float) -> Session | None:
        """The client that has said something just now; None if it is not one of ours."""
        session = self._by_identity.get(identity)
        if session is not None:
            session.heard_s = now_s
        return session

    def take(
        self, session: Session, sent: wire.SliceSent, buffers: Sequence[memoryview], now_s: float
    ) -> list[Job]:
        """Add a slice; the jobs, one for each model, if its stack is complete now.

        WireError if it breaks an agreement: its stack is forgotten, and to be answered by `Session.fail`.
        """
        if sent.stack in session.stacks:
            return []
        known = sent.stack in session.assembler.open
        if not known and len(session.assembler.open) + len(session.stacks) >= self._limits.credit:
            raise WireError("more stacks at once than credit", wanted=f"<= {self._limits.credit}")
        rows, columns = sent.info.shape
        if sent.info.planes * rows * columns * 2 > self._limits.stack_bytes:
            raise WireError(
                "the stack is larger than this server takes", wanted=f"<= {self._limits.stack_bytes} B"
            )
        zstack = session.add(sent, buffers, now_s)
        before, stack = session.models.pop(sent.stack, {}), zstack or session.assembler.unfinished(sent.stack)
        if stack is None:
            return []
        models = {name: before.get(name) for name in sent.wanted.names}
        if self._incremental is not None:
            self._incremental.add(models, stack.info, sent.z_index, stack.pixels[sent.z_index])
        if zstack is None:
            session.models[sent.stack] = models
            return []
        memory = session.memory if sent.ring is not None else None
        due_s = math.inf if sent.left_ms is None else now_s + sent.left_ms / 1e3
        complete_s, work = time.time(), sent.wanted.work
        jobs = [
            Job(session.id, sent.stack, model, zstack, complete_s, work, due_s, memory, sent.ring, statistics)
            for model, statistics in models.items()
        ]
        session.jobs |= {(job.number, job.model): job for job in jobs}
        return jobs

    def answer(self, job: Job, frames: list[Frame]) -> bytes | None:
        """Keep an answer until the client confirms it; whom to send it to, None if nobody wants it."""
        session = self._sessions.get(job.client)
        key = job.number, job.model
        if session is None or session.jobs.get(key) is not job:
            return None
        del session.jobs[key]
        session.answers[key] = frames
        return session.identity

    def leave(self, session: Session) -> list[Job]:
        """A client is gone; its jobs, to be taken off the schedule."""
        self._forget_identity(session)
        self._sessions.pop(session.id, None)
        return list(session.jobs.values())

    def _forget_identity(self, session: Session) -> None:
        if self._by_identity.get(session.identity) is session:
            del self._by_identity[session.identity]

    def silent(self, now_s: float) -> list[Session]:
        """Clients that are to be forgotten."""
        limit_s = self._limits.client_timeout_s
        return [session for session in self._sessions.values() if now_s - session.heard_s > limit_s]

    def expire(self, now_s: float) -> list[tuple[bytes, list[Frame]]]:
        """Give up stacks whose slices stopped coming; what to tell whom about it."""
        messages: list[tuple[bytes, list[Frame]]] = []
        for session in self._sessions.values():
            for lost in session.assembler.expire(now_s):
                reason = f"{len(lost.missing)} of {lost.info.planes} slices never came: {lost.missing}"
                answers = session.fail(lost.stack, session.models.get(lost.stack, ("",)), reason)
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
        return tuple(self._by_identity)
