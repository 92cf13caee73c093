"""The engines' threads of a server: take stacks in the order of the schedule, and change models in between.

All models of a server take turns: on one machine they would only slow each other down. Two bulk stacks may
be with an engine at once if it says so (``at_once``), as a GPU does: while one is computed, the host cuts the
next and finishes the last. A live stack is never begun early, since a newer one may come. While a model is
replaced nothing runs, so that no stack is lost.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from acq_isl.errors import EngineError, ModelError, StackRefused, WireError
from acq_isl.processing.normalize import all_finite
from acq_isl.protocols import ConcurrentEngine, Engine, IncrementalEngine
from acq_isl.stack import Prediction, StageTimes
from acq_isl.stream.codec import Frame, encode, result_of
from acq_isl.stream.incremental import IncrementalThread
from acq_isl.stream.messages import Failed, Refused
from acq_isl.stream.model_registry import ModelRegistry
from acq_isl.stream.schedule import Job, JobKey, Schedule, ScheduleCounts, Ticket

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_CHANGES_WAITING = 64
_HANDS = 2

Work = Job | Callable[[], None]


class EngineWorker:
    """Predicts jobs one by one.

    Parameters
    ----------
    registry : ModelRegistry
    limit : int
        Jobs that may wait.
    answer : callable
        Told each job and the message that answers it, on one of the engines' threads.
    """

    def __init__(
        self, registry: ModelRegistry, limit: int, answer: Callable[[Job, list[Frame]], None]
    ) -> None:
        self._registry, self._answer = registry, answer
        self.incremental = IncrementalThread(registry)
        """To be shown slices as they arrive; starts and stops with the worker."""
        self._schedule: Schedule[JobKey] = Schedule(limit)
        self._jobs: dict[JobKey, Job] = {}
        self._changes: deque[Callable[[], None]] = deque()
        self._at_work: list[Work] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"acq-isl engine {hand + 1}", daemon=True)
            for hand in range(_HANDS)
        ]

    def start(self) -> None:
        self.incremental.start()
        for thread in self._threads:
            thread.start()

    def stop(self, timeout_s: float = 60.0) -> bool:
        """End after the stacks at work; False if that takes longer."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self.incremental.stop()
        for thread in self._threads:
            thread.join(max(deadline_s - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def counts(self) -> ScheduleCounts:
        with self._changed:
            return self._schedule.counts

    def add(self, job: Job) -> bool:
        """Let a job wait for its turn; False if too many wait."""
        with self._changed:
            # By the client's number, not by arrival: what gave way to newer work comes again, and late.
            ticket = Ticket(job.key, job.session, job.work, job.stack, job.due_s)
            if not self._schedule.add(ticket):
                return False
            self._jobs[job.key] = job
            self._changed.notify_all()
        return True

    def remove(self, job: Job) -> bool:
        """Take a job back; False if it was begun already."""
        with self._changed:
            self._jobs.pop(job.key, None)
            return self._schedule.remove(job.key)

    def expire(self, now_s: float) -> list[Job]:
        """Take out the jobs whose deadline has come."""
        with self._changed:
            return [self._jobs.pop(key) for key in self._schedule.expire(now_s)]

    def between_stacks(self, change: Callable[[], None]) -> bool:
        """Have something done between two stacks; it must not raise. False if too much waits already."""
        with self._changed:
            if len(self._changes) >= _CHANGES_WAITING:
                return False
            self._changes.append(change)
            self._changed.notify_all()
        return True

    def _run(self) -> None:
        while (work := self._next()) is not None:
            try:
                if isinstance(work, Job):
                    self._answer(work, predict(self._registry, work))
                else:
                    work()
            except Exception:
                log.exception("an answer could not be handed over, or a change between two stacks failed")
            finally:
                with self._changed:
                    self._at_work.remove(work)
                    self._changed.notify_all()
            del work  # while it waits it must not keep a stack's memory

    def _next(self) -> Work | None:
        """What to do now; None to end. Waits as long as there is nothing."""
        with self._changed:
            while not self._stopping:
                work = self._chosen(time.monotonic())
                if work is not None:
                    self._at_work.append(work)
                    return work
                self._changed.wait(_LOOK_S)
        return None

    def _chosen(self, now_s: float) -> Work | None:
        if self._changes:
            return None if self._at_work else self._changes.popleft()
        if self._at_work and not self._may_join(now_s):
            return None
        key = self._schedule.next(now_s)
        return None if key is None else self._jobs.pop(key)

    def _may_join(self, now_s: float) -> bool:
        """Whether what is next may be begun beside what is at work."""
        ticket = self._schedule.first(now_s)
        if ticket is None:
            return False
        job = self._jobs[ticket.id]
        if any(not isinstance(one, Job) or one.model != job.model for one in self._at_work):
            return False
        return job.work == "bulk" and len(self._at_work) < at_once(self._registry, job.model)


def at_once(registry: ModelRegistry, model: str) -> int:
    """How many stacks an engine takes at once; 1 unless it is a `ConcurrentEngine`."""
    try:
        engine = registry[model].engine
        return engine.at_once if isinstance(engine, ConcurrentEngine) else 1
    except ModelError:  # its client is told when it is its turn
        return 1


def predict(registry: ModelRegistry, job: Job) -> list[Frame]:
    """The message that answers a job. An engine may raise anything; the server goes on."""
    taken_s, begin_s = time.time(), time.perf_counter()
    try:
        engine = registry[job.model].engine
        if not job.intact:
            raise WireError("the client gave the stack's memory to another one")
        prediction = _prediction(engine, job)
        _require_numbers(prediction)
        spent_ms = (time.perf_counter() - begin_s) * 1e3
        if not job.intact:
            raise WireError("the client gave the stack's memory to another one")
        times = prediction.times
        if times.infer_ms + times.decode_ms == 0:
            times = StageTimes(infer_ms=spent_ms)
        times = replace(times, wait_ms=max(taken_s - job.complete_s, 0.0) * 1e3)
        named = replace(prediction, info=job.zstack.info, times=times, model=job.model)
        return result_of(job.stack, named, job.complete_s)
    except StackRefused as refusal:
        told = [
            refusal.what,
            refusal.wanted and f"wanted: {refusal.wanted}",
            refusal.got and f"got: {refusal.got}",
        ]
        reason = "; ".join(part for part in told if part)
        fix = (refusal.fix or "")[:8000]
        return encode(Refused(stack=job.stack, model=job.model, reason=reason[:8000], fix=fix))
    except ModelError as error:
        return encode(Failed(stack=job.stack, model=job.model, reason=str(error)[:8000]))
    except Exception as error:
        log.exception("the engine failed on stack %s", job.zstack.info.key)
        reason = f"{type(error).__name__}: {error}"[:8000]
        return encode(Failed(stack=job.stack, model=job.model, reason=reason))


def _prediction(engine: Engine, job: Job) -> Prediction:
    """The engine's, which gets what it saw of the stack while it arrived."""
    seen = None if job.statistics is None else job.statistics.end(engine, job.zstack.info)
    if seen is not None and isinstance(engine, IncrementalEngine):
        return engine.predict(job.zstack, seen)
    return engine.predict(job.zstack)


def _require_numbers(prediction: Prediction) -> None:
    """Refuse what a broken engine gives: it would be counted as a prediction, and chosen from."""
    for what, values in (("mean", prediction.mean), ("spread", prediction.spread)):
        if not all_finite(values):
            raise EngineError(
                f"the engine {prediction.engine} gave a {what} that is not a number",
                wanted="finite values",
                got=f"{np.count_nonzero(~np.isfinite(values))} of {values.size} that are not",
                fix="check the model with acq-isl info, or use another backend",
            )
