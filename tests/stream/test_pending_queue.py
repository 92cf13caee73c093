"""The client's book-keeping against any order of events: every stack has one outcome from each of its models.

The engine, the disk and the clock are played by the machine below, as hypothesis likes it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from acq_isl.stack import Outcome, Prediction, Refusal, Slice, StackInfo, StackKey, Unpredicted
from acq_isl.stream.accounts import SliceAccounts
from acq_isl.stream.messages import Wanted
from acq_isl.stream.pending_queue import PendingQueue
from acq_isl.stream.pending_stack import PendingStack, State
from acq_isl.stream.shared_memory import SharedMemory

PLANES, SHAPE, CREDIT = 2, (2, 3), 2
MEMORY_BYTES = 8 * 4096
WANTED = (
    Wanted(),
    Wanted(work="live"),
    Wanted(models=("a", "b")),
    Wanted(models=("a", "b"), work="live", deadline_ms=3000.0),
    Wanted(deadline_ms=2000.0),
)


def info_of(number: int) -> StackInfo:
    return StackInfo(StackKey(number, "A1", "Phase"), (0.0, 1.0), SHAPE, 0.3)


def predicted(info: StackInfo, model: str) -> Prediction:
    plane = np.zeros((1, *SHAPE), np.float32)
    return Prediction(info, ("nuclei",), plane, plane, "ab", "mean 1", "fake", model=model)


class PendingQueueMachine(RuleBasedStateMachine):
    stacks = Bundle("stacks")

    def __init__(self) -> None:
        super().__init__()
        self.memory = SharedMemory(MEMORY_BYTES, shared=False)
        self.free_bytes = self.memory.free_bytes
        self.now_s = 0.0
        self.queue = PendingQueue(
            self.memory, SliceAccounts(), lambda info: WANTED[info.key.time % len(WANTED)], lambda: self.now_s
        )
        self.outcomes: list[Outcome] = []
        self.accepted: set[tuple[int, int]] = set()
        self.begun: set[int] = set()
        self.captured = 0
        self.connected = True
        self.at_server: dict[int, set[str]] = {}  # complete stacks and the models that have not answered
        self.working: tuple[int, str] | None = None
        self.computed: set[tuple[int, str]] = set()
        self.disk: list[PendingStack] = []
        self.files: set[Path] = set()

    # ---- the camera

    @rule(target=stacks, number=st.integers(0, 200))
    def begin(self, number: int) -> int:
        self.put(number, 0)
        return number

    @rule(target=stacks, number=st.integers(0, 200))
    def capture(self, number: int) -> int:
        for z in range(PLANES):
            self.put(number, z)
        self.one_round()
        return number

    @rule(number=stacks)
    def go_on(self, number: int) -> None:
        self.put(number, 1)

    def put(self, number: int, z: int) -> None:
        slice_ = Slice(info_of(number), z, np.zeros(SHAPE, np.uint16), self.now_s)
        before = self.queue.slices_held
        self.queue.put(slice_)
        self.captured += 1
        if self.queue.slices_held > before:
            self.begun.add(number)
            self.accepted.add((number, z))

    # ---- the way to the engine

    def one_round(self) -> None:
        """One round of the client's thread, in its order."""
        if self.connected:
            self.send()
        self.keep(no_engine=False)

    @rule()
    def rounds(self) -> None:
        self.one_round()

    def send(self) -> None:
        plan = self.queue.plan(CREDIT)
        self.disk += plan.read
        for id_ in plan.forget:
            self.at_server.pop(id_, None)
        for stack in plan.recall:
            busy = self.working is not None and self.working[0] == stack.id
            if stack.id in self.at_server and not busy:
                del self.at_server[stack.id]
                self.queue.give_back(stack.id)
        for stack, z in plan.slices:
            self.queue.sent(stack, z)
            if stack.slices.complete and not stack.unsent:
                names = stack.still_wanted.names
                assert stack.id not in self.at_server, "sent twice"
                assert not self.computed & {(stack.id, name) for name in names}, "predicted twice"
                self.at_server[stack.id] = set(names)
        assert len(self.at_server) <= CREDIT

    @precondition(lambda self: self.connected)
    @rule(data=st.data(), answer=st.sampled_from(["predicted", "refused", "failed"]))
    def lie(self, data: st.DataObject, answer: str) -> None:
        """A peer answers for a stack that it does not have whole."""
        partly = [stack for stack in self.queue._filling.values() if stack.unsent or stack.slices.present]
        if not partly:
            return
        stack = data.draw(st.sampled_from(partly))
        model = data.draw(st.sampled_from(stack.waits_for or ("",)))
        self.reply(stack, answer, model)

    @precondition(lambda self: self.connected and self.at_server and self.working is None)
    @rule(data=st.data())
    def take_up(self, data: st.DataObject) -> None:
        stack = data.draw(st.sampled_from(sorted(self.at_server)))
        self.working = stack, data.draw(st.sampled_from(sorted(self.at_server[stack])))

    @precondition(lambda self: self.working is not None)
    @rule(answer=st.sampled_from(["predicted", "refused", "failed", "deadline"]))
    def answer(self, answer: str) -> None:
        assert self.working is not None
        (stack, model), self.working = self.working, None
        if stack not in self.at_server:
            return  # it was cancelled meanwhile
        self.at_server[stack].remove(model)
        if not self.at_server[stack]:
            del self.at_server[stack]
        pending = self.queue.find(stack)
        if pending is None:
            return
        if answer in ("predicted", "refused"):
            self.computed.add((stack, model))
        self.reply(pending, answer, model)

    def reply(self, stack: PendingStack, answer: str, model: str) -> None:
        match answer:
            case "predicted":
                self.queue.answer(stack, predicted(stack.info, model))
            case "refused":
                self.queue.answer(stack, Refusal(stack.info, "", "", model))
            case "failed":
                self.queue.fail(stack, model, "failed", "a bug")
            case _:
                self.queue.fail(stack, model, "deadline", "too late")

    @precondition(lambda self: self.connected and self.at_server and self.working is None)
    @rule(data=st.data(), answer=st.sampled_from(["predicted", "predicted", "refused", "failed", "deadline"]))
    def predict(self, data: st.DataObject, answer: str) -> None:
        self.take_up(data)
        self.answer(answer)
        self.one_round()

    @rule(remembers=st.booleans())
    def lose_engine(self, remembers: bool) -> None:
        """The connection breaks, and with ``remembers`` the same server greets again."""
        self.queue.lose_engine()
        self.connected = False
        if remembers:
            self.queue.find_engine(frozenset(self.at_server), again=True)
            self.connected = True
        else:
            self.at_server, self.working = {}, None

    @precondition(lambda self: not self.connected)
    @rule()
    def find_engine(self) -> None:
        self.connected = True

    @rule()
    def outage(self) -> None:
        """No engine for so long that stacks go to disk, and come back when it does."""
        self.lose_engine(remembers=False)
        for _ in range(3):
            self.keep(no_engine=True)
            while self.disk:
                self.use_disk(works=True)
        self.find_engine()
        self.one_round()
        while self.disk:
            self.use_disk(works=True)
        self.one_round()

    # ---- giving up

    @rule(number=stacks)
    def cancel(self, number: int) -> None:
        self.queue.cancel(info_of(number).key)

    @rule(seconds=st.floats(0.5, 4.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.queue.expire(6.0)

    # ---- the disk

    @precondition(lambda self: not self.connected)
    @rule()
    def spill(self) -> None:
        self.keep(no_engine=True)

    def keep(self, *, no_engine: bool) -> None:
        self.disk += [stack for stack, _ in self.queue.to_write(no_engine=no_engine, may_spill=True)]
        self.sweep()

    @precondition(lambda self: self.disk)
    @rule(works=st.booleans(), has_time=st.booleans())
    def use_disk(self, works: bool, has_time: bool = True) -> None:
        stack = self.disk.pop(0)
        why = "disk full" if has_time else None
        if stack.state is State.READING:
            if works:
                self.queue.loaded(stack)
            else:
                self.queue.not_loaded(stack, None)
        elif works:
            path = Path(f"{stack.id}.tif")
            self.files.add(path)
            present = stack.spooled("failed").present
            assert present == tuple(z for z in range(PLANES) if (stack.info.key.time, z) in self.accepted)
            self.queue.stored(stack, path, "no engine")
        else:
            self.queue.not_stored(stack, why)
        self.sweep()

    def sweep(self) -> None:
        self.files -= set(self.queue.unneeded_files())

    # ---- what must be true

    @invariant()
    def one_outcome_each(self) -> None:
        self.outcomes += self.queue.poll()
        told = [(one.info.key.time, one.model) for one in self.outcomes]
        assert len(set(told)) == len(told)
        open_ = {
            (stack.info.key.time, model) for stack in self.queue._stacks.values() for model in stack.waits_for
        }
        assert not open_ & set(told)

    @invariant()
    def counts_add_up(self) -> None:
        counts = self.queue.counts
        self.outcomes += self.queue.poll()
        assert counts.predicted + counts.refused + counts.unpredicted == len(self.outcomes)
        assert counts.slices.captured == self.captured
        assert counts.slices.open == self.queue.slices_held

    def teardown(self) -> None:
        self.queue.close_all("closed", "closed")
        for _ in range(1000):
            if not self.queue._stacks:
                break
            self.keep(no_engine=True)
            if self.disk:
                self.use_disk(True)
        self.sweep()
        self.outcomes += self.queue.poll()
        told = {(one.info.key.time, one.model): one for one in self.outcomes}
        wanted = {(n, name) for n in self.begun for name in WANTED[n % len(WANTED)].names}
        assert set(told) == wanted, "every stack that was begun has its outcomes"
        waits = {Path(one.where) for one in told.values() if self.is_kept(one)}
        assert waits == self.files, "what is not predicted is on disk, and nothing else"
        assert self.memory.free_bytes == self.free_bytes
        slices = self.queue.counts.slices
        assert slices.captured == self.captured == slices.sum
        self.memory.close()

    def is_kept(self, outcome: Outcome) -> bool:
        if not isinstance(outcome, Unpredicted):
            return False
        assert outcome.where or self.queue.counts.lost, outcome
        return bool(outcome.where)


@pytest.mark.parametrize("z_outermost", [True, False])
def test_a_stack_is_given_up_once_a_later_one_has_overtaken_it(z_outermost: bool) -> None:
    now_s = 0.0
    with SharedMemory(1 << 20, shared=False) as memory:
        queue = PendingQueue(memory, SliceAccounts(), clock=lambda: now_s)
        order = [(n, z) for z in range(PLANES) for n in range(50)]
        if not z_outermost:
            order = [(n, z) for n in range(50) for z in range(PLANES) if (n, z) != (7, 1)]
        for number, z in order:
            queue.put(Slice(info_of(number), z, np.zeros(SHAPE, np.uint16), 0.0))
            now_s += 1.0
            queue.expire(6.0)
        left = [stack.info.key.time for stack in queue._stacks.values() if not stack.slices.complete]
        counts = queue.counts
        ended = [stack.info.key.time for stack, _ in queue.to_write(no_engine=False, may_spill=False)]
    assert (counts.captured, counts.lost, counts.duplicates) == (len(order), 0, 0)
    assert (left, ended) == (([], []) if z_outermost else ([7], [7]))


TestPendingQueue = PendingQueueMachine.TestCase
TestPendingQueue.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
