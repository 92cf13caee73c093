"""The client's book-keeping against any order of events: every stack has one outcome from each of its models.

The engine, the disk and the clock are played by the machine below, as hypothesis likes it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from acq_isl.stack import Outcome, Prediction, Refusal, Slice, StackInfo, StackKey, Unpredicted
from acq_isl.stream.messages import Wanted
from acq_isl.stream.pending_queue import PendingQueue
from acq_isl.stream.pending_stack import PendingStack, engine_lost, to_withdraw
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


class OutboxMachine(RuleBasedStateMachine):
    stacks = Bundle("stacks")

    def __init__(self) -> None:
        super().__init__()
        self.ring = SharedMemory(MEMORY_BYTES, shared=False)
        self.free_bytes = self.ring.free_bytes
        self.box = PendingQueue(self.ring, lambda info: WANTED[info.key.time % len(WANTED)])
        self.now_s = 0.0
        self.begun: set[int] = set()
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
        self.courier()
        return number

    @rule(number=stacks)
    def go_on(self, number: int) -> None:
        self.put(number, 1)

    def put(self, number: int, z: int) -> None:
        slice_ = Slice(info_of(number), z, np.zeros(SHAPE, np.uint16), self.now_s)
        held = self.box.accept(slice_, self.now_s)
        if held is not None:
            self.begun.add(number)
            self.box.landed(held, slice_, self.now_s)

    # ---- the way to the engine

    def courier(self) -> None:
        """One round of the courier, in its order."""
        if self.connected:
            self.send()
        self.keep("")

    @rule()
    def rounds(self) -> None:
        self.courier()

    def send(self) -> None:
        self.disk += self.box.grant(CREDIT)
        for stack in self.box.unwanted:
            self.at_server.pop(stack, None)
        self.box.unwanted = []
        for held in list(self.box.held.values()):
            if held.unsent:
                held.sent.update(held.unsent)
                if len(held.sent) == PLANES:
                    names = held.still_wanted.names
                    assert held.id not in self.at_server, "sent twice"
                    assert not self.computed & {(held.id, name) for name in names}, "predicted twice"
                    self.at_server[held.id] = set(names)
        assert len(self.at_server) <= CREDIT
        for held in to_withdraw(self.box.held.values(), CREDIT):
            busy = self.working is not None and self.working[0] == held.id
            if held.id in self.at_server and not busy:
                del self.at_server[held.id]
                self.box.withdrawn(held.id)

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
        held = self.box.held.get(stack)
        if held is None:
            return
        if answer in ("predicted", "refused"):
            self.computed.add((stack, model))
        match answer:
            case "predicted":
                self.box.settle(held, predicted(held.stack.info, model))
            case "refused":
                self.box.settle(held, Refusal(held.stack.info, "", "", model))
            case "failed":
                self.box.fail(held, model, "failed", "a bug")
            case _:
                self.box.fail(held, model, "deadline", "too late")

    @precondition(lambda self: self.connected and self.at_server and self.working is None)
    @rule(data=st.data(), answer=st.sampled_from(["predicted", "predicted", "refused", "failed", "deadline"]))
    def predict(self, data: st.DataObject, answer: str) -> None:
        self.take_up(data)
        self.answer(answer)
        self.courier()

    @rule(remembers=st.booleans())
    def lose_engine(self, remembers: bool) -> None:
        """The connection breaks, and with ``remembers`` the same server greets again."""
        engine_lost(self.box.held.values())
        self.connected = False
        if remembers:
            self.box.unwanted = engine_lost(self.box.held.values(), frozenset(self.at_server))
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
            self.keep("no engine")
            while self.disk:
                self.use_disk(works=True)
        self.find_engine()
        self.courier()
        while self.disk:
            self.use_disk(works=True)
        self.courier()

    # ---- giving up

    @rule(number=stacks)
    def cancel(self, number: int) -> None:
        self.box.cancel(info_of(number).key)

    @rule(seconds=st.floats(0.5, 4.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.box.expire(self.now_s, timeout_s=6.0)

    # ---- the disk

    @precondition(lambda self: not self.connected)
    @rule()
    def spill(self) -> None:
        self.keep("no engine")

    def keep(self, pressed: str) -> None:
        self.disk += self.box.to_end()
        reason = "no engine" if pressed else self.box.to_spill(None, self.now_s, 5.0)
        spilled = self.box.spill(reason) if reason is not None else None
        if spilled is not None:
            self.disk.append(spilled)
        self.sweep()

    @precondition(lambda self: self.disk)
    @rule(works=st.booleans())
    def use_disk(self, works: bool) -> None:
        held = self.disk.pop(0)
        if held.place == "writing":
            if works:
                path = Path(f"{held.id}.tif")
                self.files.add(path)
                self.box.written(held, path, "no engine")
            else:
                self.box.not_written(held, "disk full")
        elif works:
            self.box.read(held)
        else:
            self.box.not_read(held)
        self.sweep()

    def sweep(self) -> None:
        spare, self.box.spare = self.box.spare, []
        self.files -= set(spare)

    # ---- what must be true

    @invariant()
    def one_outcome_each(self) -> None:
        told = [(one.info.key.time, one.model) for one in self.box.outcomes]
        assert len(set(told)) == len(told)
        open_ = {
            (held.stack.info.key.time, model) for held in self.box.held.values() for model in held.waits_for
        }
        assert not open_ & set(told)

    @invariant()
    def counts_add_up(self) -> None:
        counts = self.box.counts
        assert counts.predicted + counts.refused + counts.unpredicted == len(self.box.outcomes)

    def teardown(self) -> None:
        self.box.end_all("closed", "closed", incomplete_only=False)
        for _ in range(1000):
            if not self.box.held:
                break
            self.keep("no engine")
            if self.disk:
                self.use_disk(True)
        self.sweep()
        told = {(one.info.key.time, one.model): one for one in self.box.outcomes}
        wanted = {(n, name) for n in self.begun for name in WANTED[n % len(WANTED)].names}
        assert set(told) == wanted, "every stack that was begun has its outcomes"
        waits = {Path(one.where) for one in told.values() if self.is_kept(one)}
        assert waits == self.files, "what is not predicted is on disk, and nothing else"
        assert self.ring.free_bytes == self.free_bytes
        self.ring.close()

    def is_kept(self, outcome: Outcome) -> bool:
        if not isinstance(outcome, Unpredicted):
            return False
        assert outcome.where or self.box.count["lost"], outcome
        return bool(outcome.where)


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
