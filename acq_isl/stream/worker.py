"""The engines' threads of a server: take stacks in the order of the schedule, and change models in between.

All models of a server take turns: on one machine they would only slow each other down. Two bulk stacks may
be with an engine at once if it says so (`ConcurrentEngine`), as a GPU does: while one is computed, the host
cuts the next and finishes the last. A live stack is never begun early, since a newer one may come. While a
model is replaced nothing runs, so that no stack is lost.
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
from acq_isl.stream.messages import Failed, Refused, cut
from acq_isl.stream.model_registry import ModelRegistry
from acq_isl.stream.schedule import Job, Schedule, ScheduleCounts

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_CHANGES_WAITING = 64
_THREADS = 2

Work = Job | Callable[[], None]


class EngineWorker:
    """Predicts jobs, of which ``limit`` may wait.

    ``answer`` is given each job and the message that answers it, on one of the engines' threads.
    """

    def __init__(
        self, registry: ModelRegistry, limit: int, answer: Callable[[Job, list[Frame]], None]
    ) -> None:
        self._registry, self._answer = registry, answer
        self.incremental = IncrementalThread(registry)
        """To be given slices as they arrive; starts and stops with the worker."""
        self._schedule = Schedule(limit)
        self._changes: deque[Callable[[], None]] = deque()
        self._at_work: list[Work] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"acq-isl engine {number}", daemon=True)
            for number in range(1, _THREADS + 1)
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
            self._changed.notify_all()
            return self._schedule.add(job)

    def remove(self, job: Job) -> bool:
        """Take a job back; False if it was begun already."""
        with self._changed:
            return self._schedule.remove(job.id)

    def expire(self, now_s: float) -> list[Job]:
        """Take out the jobs whose deadline has come."""
        with self._changed:
            return self._schedule.expire(now_s)

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
                work = self._choose(time.monotonic())
                if work is not None:
                    self._at_work.append(work)
                    return work
                self._changed.wait(_LOOK_S)
        return None

    def _choose(self, now_s: float) -> Work | None:
        if self._changes:
            return None if self._at_work else self._changes.popleft()
        if self._at_work and not self._may_join(self._schedule.first(now_s)):
            return None
        return self._schedule.next(now_s)

    def _may_join(self, job: Job | None) -> bool:
        """Whether a job may be begun beside what is at work."""
        if job is None or job.work != "bulk":
            return False
        same = all(isinstance(other, Job) and other.model == job.model for other in self._at_work)
        return same and len(self._at_work) < at_once(self._registry, job.model)


def at_once(registry: ModelRegistry, model: str) -> int:
    """How many stacks an engine takes at once; 1 unless it is a `ConcurrentEngine`."""
    try:
        engine = registry[model].engine
    except ModelError:  # its client is told when it is its turn
        return 1
    return engine.at_once if isinstance(engine, ConcurrentEngine) else 1


def predict(registry: ModelRegistry, job: Job) -> list[Frame]:
    """The message that answers a job. An engine may raise anything; the server goes on."""
    taken_s, begin_s = time.time(), time.perf_counter()
    try:
        engine = registry[job.model].engine
        _require_intact(job)
        prediction = _predict(engine, job)
        _require_finite(prediction)
        spent_ms = (time.perf_counter() - begin_s) * 1e3
        _require_intact(job)
        times = prediction.times
        if times.infer_ms + times.decode_ms == 0:
            times = StageTimes(infer_ms=spent_ms)
        times = replace(times, wait_ms=max(taken_s - job.complete_s, 0.0) * 1e3)
        prediction = replace(prediction, info=job.zstack.info, times=times, model=job.model)
        return result_of(job.number, prediction, job.complete_s)
    except StackRefused as refusal:
        details = {"wanted": refusal.wanted, "got": refusal.got}
        reason = "; ".join([refusal.what, *(f"{key}: {text}" for key, text in details.items() if text)])
        fix = cut(refusal.fix or "")
        return encode(Refused(stack=job.number, model=job.model, reason=cut(reason), fix=fix))
    except ModelError as error:
        return encode(Failed(stack=job.number, model=job.model, reason=cut(str(error))))
    except Exception as error:
        log.exception("the engine failed on stack %s", job.zstack.info.key)
        reason = cut(f"{type(error).__name__}: {error}")
        return encode(Failed(stack=job.number, model=job.model, reason=reason))


def _predict(engine: Engine, job: Job) -> Prediction:
    """The engine's prediction; it gets what it measured of the stack while that arrived."""
    if job.statistics is not None and isinstance(engine, IncrementalEngine):
        return engine.predict(job.zstack, job.statistics.end(engine, job.zstack.info))
    return engine.predict(job.zstack)


def _require_intact(job: Job) -> None:
    if not job.intact:
        raise WireError("the client gave the stack's memory to another one")


def _require_finite(prediction: Prediction) -> None:
    """Refuse what a broken engine gives: it would be counted as a prediction, and chosen from."""
    for what, values in (("mean", prediction.mean), ("spread", prediction.spread)):
        if not all_finite(values):
            raise EngineError(
                f"the engine {prediction.engine} gave a {what} that is not a number",
                wanted="finite values",
                got=f"{np.count_nonzero(~np.isfinite(values))} of {values.size} that are not",
                fix="check the model with acq-isl info, or use another backend",
            )
