"""One piece of work for an engine: a complete stack and the model that shall predict it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from acq_isl.stack import ZStack
from acq_isl.stream.incremental import Watch
from acq_isl.stream.messages import RingRef, Work
from acq_isl.stream.shared_memory import RingView

JobKey = tuple[str, int, str]
"""Session, stack and model."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A complete stack for one model.

    Parameters
    ----------
    session : str
    stack : int
    model : str
        As the client names it.
    zstack : ZStack
    complete_s : float
        Unix time at which it was complete here.
    work : "live" or "bulk"
    due_s : float
        Deadline on the server's monotonic clock.
    ring, ref : RingView and RingRef, optional
        Where its pixels lie, if in shared memory.
    watch : Watch, optional
        What the model's engine was shown of it.
    """

    session: str
    stack: int
    model: str
    zstack: ZStack
    complete_s: float
    work: Work = "bulk"
    due_s: float = math.inf
    ring: RingView | None = None
    ref: RingRef | None = None
    watch: Watch | None = None

    @property
    def key(self) -> JobKey:
        return self.session, self.stack, self.model

    @property
    def intact(self) -> bool:
        """Whether the pixels in shared memory are still this stack's."""
        return self.ring is None or self.ref is None or self.ring.holds(self.ref)
