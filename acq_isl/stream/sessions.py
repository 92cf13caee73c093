"""The server's book-keeping of its clients: what each has sent, and which answers it has not confirmed.

No thread, socket or clock of its own. A client may lose its connection and come back: its session id
tells it is the same one, complete stacks are not asked for again, unconfirmed answers are sent again.
So a stack is predicted once, as long as the server lives.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from acq_isl.assemble import Assembler
from acq_isl.errors import WireError
from acq_isl.messages import Bye, Failed, Hello, RingOffer, RingRef, SliceSent, Welcome
from acq_isl.stack import Slice, ZStack
from acq_isl.stream.ring import RingView
from acq_isl.wire import Frame, encode, slice_of

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
class Job:
    """A complete stack for the engine. ``complete_s`` is Unix time; ``wanted`` turns False on CANCEL."""

    session: str
    stack: int
    zstack: ZStack
    complete_s: float
    ring: RingView | None = None
    ref: RingRef | None = None
    wanted: bool = True

    @property
    def intact(self) -> bool:
        """Whether the pixels in shared memory are still this stack's."""
        return self.ring is None or self.ref is None or self.ring.holds(self.ref)


@dataclass(slots=True, eq=False)
class _Session:
    identity: bytes
    seen_s: float
    assembler: Assembler
    offer: RingOffer | None = None
    ring: RingView | None = None
    jobs: dict[int, Job] = field(default_factory=dict)
    answers: dict[int, list[Frame]] = field(default_factory=dict)


class Sessions:
    """All clients of a server.

    Parameters
    ----------
    limits : SessionLimits
    welcome : Welcome
        The greeting; attempt, ring nonce and held stacks are filled in for each client.
    """

    def __init__(self, limits: SessionLimits, welcome: Welcome) -> None:
        self._limits, self._welcome = limits, welcome
        self._sessions: dict[str, _Session] = {}
        self._of_identity: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def hello(self, identity: bytes, hello: Hello, now_s: float) -> list[list[Frame]]:
        """Messages that answer a greeting: WELCOME and the unconfirmed answers, or BYE."""
        session = self._sessions.get(hello.session)
        if session is None:
            if len(self._sessions) >= self._limits.clients:
                return [encode(Bye(reason=f"the engine serves {self._limits.clients} clients already"))]
            session = _Session(identity, now_s, self._assembler())
            self._sessions[hello.session] = session
        self._of_identity.pop(session.identity, None)
        self._of_identity[identity] = hello.session
        session.identity, session.seen_s = identity, now_s
        session.assembler.clear()
        self._map(session, hello.ring)
        welcome = self._welcome.model_copy(
            update={
                "attempt": hello.attempt,
                "ring_nonce": session.ring.nonce if session.ring else "",
                "held": tuple(session.jobs) + tuple(session.answers),
            }
        )
        return [encode(welcome), *session.answers.values()]

    def seen(self, identity: bytes, now_s: float) -> bool:
        """Note that a client is there; False if it is not one of ours."""
        session = self._session(identity)
        if session is not None:
            session.seen_s = now_s
        return session is not None

    def take(
        self, identity: bytes, sent: SliceSent, buffers: Sequence[memoryview], now_s: float, unix_s: float
    ) -> Job | None:
        """Add a slice; the job, if its stack is complete now.

        Raises
        ------
        WireError
            The slice breaks an agreement. Its stack is forgotten; answer it with `fail`.
        """
        session = self._session(identity)
        if session is None or sent.stack in session.jobs or sent.stack in session.answers:
            return None
        known = sent.stack in session.assembler.open
        if not known and len(session.assembler.open) + self._waiting(session) >= self._limits.credit:
            raise WireError("more stacks at once than credit", wanted=f"<= {self._limits.credit}")
        rows, columns = sent.info.shape
        if sent.info.planes * rows * columns * 2 > self._limits.stack_bytes:
            raise WireError(
                "the stack is larger than this server takes", wanted=f"<= {self._limits.stack_bytes} B"
            )
        zstack = self._add(session, sent, buffers, now_s)
        if zstack is None:
            return None
        ring = session.ring if sent.ring is not None else None
        job = Job(self._of_identity[identity], sent.stack, zstack, unix_s, ring, sent.ring)
        session.jobs[sent.stack] = job
        return job

    def fail(self, identity: bytes, stack: int, reason: str) -> list[Frame] | None:
        """Give a stack up; the message that says so."""
        session = self._session(identity)
        if session is None or stack in session.answers:
            return None
        session.assembler.drop(stack)
        session.answers[stack] = encode(Failed(stack=stack, reason=reason[:8000]))
        return session.answers[stack]

    def answer(self, job: Job, frames: list[Frame]) -> bytes | None:
        """Keep an answer until the client confirms it; whom to send it to, None if nobody wants it."""
        session = self._sessions.get(job.session)
        if session is None or session.jobs.pop(job.stack, None) is None:
            return None
        session.answers[job.stack] = frames
        return session.identity

    def forget(self, identity: bytes, stack: int) -> None:
        """The client has its answer, or does not want one any more."""
        session = self._session(identity)
        if session is not None:
            session.answers.pop(stack, None)
            session.assembler.drop(stack)
            job = session.jobs.pop(stack, None)
            if job is not None:
                job.wanted = False

    def leave(self, identity: bytes) -> None:
        """A client said good-bye."""
        name = self._of_identity.pop(identity, None)
        session = self._sessions.pop(name, None) if name is not None else None
        for job in session.jobs.values() if session is not None else ():
            job.wanted = False

    def expire(self, now_s: float) -> list[tuple[bytes, list[Frame]]]:
        """Forget silent clients and unfinished stacks; what to tell whom about it."""
        for session in list(self._sessions.values()):
            if now_s - session.seen_s > self._limits.client_timeout_s:
                log.warning("forgot a client that was silent for %g s", self._limits.client_timeout_s)
                self.leave(session.identity)
        messages = []
        for session in self._sessions.values():
            for lost in session.assembler.expire(now_s):
                reason = f"{len(lost.missing)} of {lost.info.planes} slices never came: {lost.missing}"
                frames = self.fail(session.identity, int(str(lost.stack)), reason)
                if frames is not None:
                    messages.append((session.identity, frames))
        return messages

    @property
    def identities(self) -> tuple[bytes, ...]:
        return tuple(self._of_identity)

    def _session(self, identity: bytes) -> _Session | None:
        return self._sessions.get(self._of_identity.get(identity, ""))

    def _waiting(self, session: _Session) -> int:
        return len(session.jobs) + len(session.answers)

    def _assembler(self) -> Assembler:
        return Assembler(timeout_s=self._limits.stack_timeout_s, max_open=self._limits.credit)

    def _add(
        self, session: _Session, sent: SliceSent, buffers: Sequence[memoryview], now_s: float
    ) -> ZStack | None:
        if sent.ring is None:
            return session.assembler.add(sent.stack, slice_of(sent, buffers), now_s)
        if session.ring is None:
            raise WireError("a slice lies in shared memory that was not agreed upon")
        whole = session.ring.view(sent.ring, sent.info)
        slice_ = Slice(sent.info, sent.z_index, whole[sent.z_index], sent.captured_s)
        return session.assembler.add(sent.stack, slice_, now_s, into=whole)

    @staticmethod
    def _map(session: _Session, offer: RingOffer | None) -> None:
        if offer == session.offer:
            return
        session.offer, session.ring = offer, None
        if offer is not None:
            try:
                session.ring = RingView(offer)
            except WireError as error:
                log.info("a client's slices will come through the socket: %s", error)
