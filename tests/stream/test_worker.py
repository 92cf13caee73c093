"""The engines' threads: what may be begun beside what is at work, and what may not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from acq_isl.errors import EngineError
from acq_isl.stack import Prediction, ZStack
from acq_isl.stream.messages import Work
from acq_isl.stream.model_registry import ModelRegistry, ServedModel
from acq_isl.stream.schedule import Job
from acq_isl.stream.worker import EngineWorker
from doubles import serving as fake


@dataclass
class Counted(fake.GateEngine):  # type: ignore[misc, name-defined]
    """Lets one stack through for each time its gate is opened; knows how many are with it."""

    here: int = 0
    most: int = 0
    begun: list[int] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def predict(self, stack: ZStack) -> Prediction:
        with self.lock:
            self.here += 1
            self.most = max(self.most, self.here)
            self.begun.append(stack.info.key.time)
        try:
            return super().predict(stack)  # type: ignore[no-any-return]
        finally:
            with self.lock:
                self.here -= 1


@dataclass
class Gpu(Counted):
    """Takes two at once."""

    at_once: int = 2


def job(number: int, work: Work = "bulk", model: str = "mean") -> Job:
    pixels = np.stack([fake.slice_of(number, z).pixels for z in range(fake.PLANES)])
    stack = ZStack(fake.info(number), pixels, (0.0,) * fake.PLANES)
    return Job("client", number, model, stack, time.time(), work)


@contextmanager
def at_work(*engines: Counted) -> Iterator[tuple[EngineWorker, list[int]]]:
    answered: list[int] = []
    registry = ModelRegistry([ServedModel(engine) for engine in engines])  # type: ignore[arg-type]
    worker = EngineWorker(registry, 100, lambda job, frames: answered.append(job.number))
    worker.start()
    try:
        yield worker, answered
    finally:
        for engine in engines:
            engine.open()
        assert worker.stop(20)


def test_two_bulk_stacks_are_with_a_gpu_at_once_and_never_more() -> None:
    engine = Gpu()
    with at_work(engine) as (worker, answered):
        for number in range(6):
            worker.add(job(number))
        fake.wait_until(lambda: engine.here == 2)
        engine.open()
        fake.wait_until(lambda: len(answered) == 6)
    assert engine.most == 2 and sorted(answered) == list(range(6))
    assert sorted(engine.begun[:2]) == [0, 1] and sorted(engine.begun[2:4]) == [2, 3]


@pytest.mark.parametrize("engine", [Counted(), Gpu(at_once=1)], ids=["says nothing", "says one"])
def test_other_engines_have_one_stack_at_a_time(engine: Counted) -> None:
    with at_work(engine) as (worker, answered):
        for number in range(4):
            worker.add(job(number))
        engine.open()
        fake.wait_until(lambda: len(answered) == 4)
    assert engine.most == 1 and answered == engine.begun == [0, 1, 2, 3]


def test_a_live_stack_is_not_begun_early_since_a_newer_one_may_come() -> None:
    engine = Gpu()
    with at_work(engine) as (worker, answered):
        worker.add(job(1, "live"))
        fake.wait_until(lambda: engine.here == 1)
        for number in (2, 3, 4):
            worker.add(job(number, "live"))
        engine.open()
        fake.wait_until(lambda: len(answered) == 4)
    assert engine.most == 1 and engine.begun == [1, 4, 3, 2]


def test_bulk_that_waits_does_not_go_before_live() -> None:
    engine = Gpu()
    with at_work(engine) as (worker, answered):
        worker.add(job(1))
        fake.wait_until(lambda: engine.here == 1)
        worker.add(job(9, "live"))
        worker.add(job(2))
        engine.open()
        fake.wait_until(lambda: len(answered) == 3)
    assert engine.begun == [1, 9, 2]


def test_models_take_turns() -> None:
    one, other = Gpu(), Gpu(manifest=fake.manifest("other"))
    with at_work(one, other) as (worker, answered):
        worker.add(job(1, model="mean"))
        fake.wait_until(lambda: one.here == 1)
        worker.add(job(2, model="other"))
        one.open()
        fake.wait_until(lambda: other.here == 1)
        assert answered == [1]


def test_a_change_waits_for_all_that_is_at_work_and_nothing_begins_before_it() -> None:
    engine, changed = Gpu(), []
    with at_work(engine) as (worker, answered):
        worker.add(job(0))
        worker.add(job(1))
        fake.wait_until(lambda: engine.here == 2)
        worker.between_stacks(lambda: changed.append((engine.here, sorted(answered))))
        worker.add(job(2))
        engine.gate.release()
        fake.wait_until(lambda: len(answered) == 1)
        assert changed == [] and engine.here == 1
        engine.open()
        fake.wait_until(lambda: len(answered) == 3)
    assert changed == [(0, [0, 1])] and engine.begun[2:] == [2]


def test_a_stack_that_fails_leaves_the_other_alone() -> None:
    class Faulty(Gpu):
        def predict(self, stack: ZStack) -> Prediction:
            prediction = super().predict(stack)
            if stack.info.key.time == 1:
                raise EngineError("it broke", fix="mend it")
            return prediction

    engine = Faulty()
    with at_work(engine) as (worker, answered):
        for number in range(4):
            worker.add(job(number))
        engine.open()
        fake.wait_until(lambda: len(answered) == 4)
    assert sorted(answered) == [0, 1, 2, 3]
