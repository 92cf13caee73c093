"""The law of slices: captured = predicted + refused + spooled + not wanted + lost, whatever happens.

Hook and queue are the real ones; camera, engine, disk and clock are played as hypothesis likes it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from acq_isl.hooks import CaptureHook
from acq_isl.hooks.held_slices import HeldSlices
from acq_isl.stack import Outcome, Prediction, Refusal, Slice, StackKey, StackRequest, Unpredicted
from acq_isl.stream.accounts import SliceAccounts
from acq_isl.stream.overflow import OverflowMemory
from acq_isl.stream.pending_queue import PendingQueue
from acq_isl.stream.pending_stack import PendingStack, State
from acq_isl.stream.shared_memory import SharedMemory

PLANES, SHAPE, STACKS = 3, (4, 5), 6
MEMORY_BYTES = 4 * 4096
ANSWERS = ["predicted", "predicted", "predicted", "refused", "failed", "nothing"]
FLUORESCENCE = StackKey(0, "A1", "DAPI")


class Client:
    """The client's side of the queue, which takes slices on the image thread."""

    copies = True

    def __init__(self, memory: SharedMemory, machine: Conservation) -> None:
        self.accounts = SliceAccounts()
        overflow = OverflowMemory(machine.folder, 4 * 4096, lambda folder: machine.room)
        self.queue = PendingQueue(memory, self.accounts, clock=lambda: machine.now_s, overflow=overflow)

    def put(self, slice_: Slice) -> None:
        self.queue.put(slice_)


class Conservation(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s, self.room = 0.0, 1 << 40
        self.temporary = TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.memory = SharedMemory(MEMORY_BYTES, shared=False)
        self.client = Client(self.memory, self)
        self.queue = self.client.queue
        held = HeldSlices(memory_bytes=4 * 40, file_bytes=4 * 40)
        self.hook = CaptureHook(self.client, planes=PLANES, held=held)
        self.hook.expect(StackRequest(FLUORESCENCE, 0.0, 0.0, (0.0,), "", "DAPI", 1.0, predict=False))
        self.held = held
        self.threads = [ThreadPoolExecutor(1)]
        self.images = 0
        self.outcomes: list[Outcome] = []
        self.files: dict[str, int] = {}

    # ---- the microscope

    def see(self, image: Any, tags: Any, thread: int = -1) -> None:
        self.images += 1
        self.threads[thread].submit(self.hook, image, tags).result()

    @rule(
        stack=st.integers(0, STACKS - 1),
        z=st.integers(0, PLANES),
        camera=st.sampled_from([{}, {}, {"Camera": "B"}, {"CameraChannelIndex": 1, "Camera": "C"}]),
        thread=st.integers(-2, -1),
        rows=st.sampled_from([SHAPE[0], SHAPE[0], SHAPE[0], SHAPE[0] + 1]),
    )
    def image(self, stack: int, z: int, camera: dict[str, Any], thread: int, rows: int) -> None:
        axes = {"time": stack, "position": "A1", "channel": "Phase", "z": z}
        tags = {"Axes": axes, "ZPosition_um_Intended": 1.5 * z, **camera}
        self.see(
            np.full((rows, SHAPE[1]), self.images % 60000, np.uint16), tags, max(thread, -len(self.threads))
        )

    @rule(first=st.integers(0, STACKS - 1), many=st.integers(1, 20), z_outermost=st.booleans())
    def whole_stacks(self, first: int, many: int, z_outermost: bool) -> None:
        order = [(stack, z) for stack in range(first, first + many) for z in range(PLANES)]
        for stack, z in sorted(order, key=lambda one: one[1]) if z_outermost else order:
            self.image(stack, z, {}, -1, SHAPE[0])

    @rule(odd=st.integers(0, 6))
    def odd_image(self, odd: int) -> None:
        image: Any = np.zeros(SHAPE, np.uint16)
        axes = {"time": 0, "position": "A1", "channel": "Phase", "z": 0}
        tags = [
            (image.astype(np.float32), {"Axes": axes, "ZPosition_um_Intended": 0.0}),
            (np.zeros((*SHAPE, 3), np.uint8), {"Axes": axes, "ZPosition_um_Intended": 0.0}),
            (image, {"Axes": axes}),
            (image, {"Axes": {**axes, "z": "top"}}),
            (image, None),
            (None, {"Axes": axes}),
            (image, {"Axes": {"time": 0, "position": "A1", "channel": "DAPI", "z": 0}}),
        ]
        self.see(*tags[odd])

    @rule()
    def next_acquisition(self) -> None:
        if len(self.threads) > 3:
            return
        self.threads[-1].shutdown()
        self.threads[-1:] = [ThreadPoolExecutor(1)]

    @rule()
    def second_acquisition_beside_it(self) -> None:
        if len(self.threads) < 2:
            self.threads.append(ThreadPoolExecutor(1))

    @rule(stack=st.integers(0, STACKS - 1))
    def interrupt_and_repeat(self, stack: int) -> None:
        """The next slices under this key are of another attempt."""
        key = StackKey(stack, "A1", "Phase")
        self.hook.forget(key)
        self.queue.discard(key)

    # ---- whoever waits for outcomes

    @rule()
    def drain(self) -> None:
        self.hook.flush()
        self.queue.close_incomplete()

    @rule(stack=st.integers(0, STACKS - 1))
    def cancel(self, stack: int) -> None:
        self.queue.cancel(StackKey(stack, "A1", "Phase"))

    @rule(seconds=st.floats(0.5, 10.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.queue.expire(6.0)

    # ---- the engine

    @rule(data=st.data(), early=st.sampled_from([False, False, False, True]))
    def engine(self, data: st.DataObject, early: bool) -> None:
        plan = self.queue.plan(2)
        for stack in plan.read:
            data.draw(st.sampled_from([self.queue.loaded, lambda s: self.queue.not_loaded(s, None)]))(stack)
        for stack in plan.recall:
            self.queue.give_back(stack.id)
        for stack, z in plan.slices:
            self.queue.sent(stack, z)
        for stack in [s for s in self.queue._stacks.values() if s.state is State.AT_SERVER]:
            if stack.slices.complete or early:
                self.answer(stack, data.draw(st.sampled_from(ANSWERS)))

    def answer(self, stack: PendingStack, answer: str) -> None:
        plane = np.zeros((1, *stack.info.shape), np.float32)
        if answer == "predicted":
            prediction = Prediction(stack.info, ("nuclei",), plane, plane, "ab", "mean 1", "fake")
            self.queue.answer(stack, prediction)
        elif answer == "refused":
            self.queue.answer(stack, Refusal(stack.info, "", ""))
        elif answer == "failed":
            self.queue.fail(stack, "", "failed", "a bug")

    @rule(again=st.booleans())
    def restart(self, again: bool) -> None:
        self.queue.lose_engine()
        if again:
            self.queue.find_engine(frozenset(), again=True)

    # ---- the disk

    @rule(no_engine=st.booleans(), answers=st.lists(st.sampled_from(["written", "full", "busy"]), max_size=3))
    def disk(self, no_engine: bool, answers: list[str]) -> None:
        for stack, reason in self.queue.to_write(no_engine=no_engine, may_spill=True):
            match answers.pop() if answers else "written":
                case "written":
                    path = f"{stack.id}.tif"
                    self.files[path] = len(stack.spooled(reason).present)
                    self.queue.stored(stack, Path(path), reason)
                case "full":
                    self.queue.not_stored(stack, "disk full")
                case _:
                    self.queue.not_stored(stack, None)
        for unneeded in self.queue.unneeded_files():
            del self.files[str(unneeded)]

    @rule(full=st.booleans())
    def fill(self, full: bool) -> None:
        self.room = 0 if full else 1 << 40

    # ---- what must be true

    @invariant()
    def every_slice_is_somewhere(self) -> None:
        counts = self.hook.counts
        assert counts.captured == self.images
        assert counts.open == self.queue.slices_held + len(self.held)

    @precondition(lambda self: self.images > 0)
    @invariant()
    def the_sentence_says_all(self) -> None:
        left, _, right = str(self.hook.counts).partition(" slices captured = ")
        assert int(left) == sum(int(part.split()[0]) for part in right.split(" + "))

    def teardown(self) -> None:
        self.hook.flush()
        self.queue.close_all("closed", "closed")
        for _ in range(100):
            self.disk(no_engine=True, answers=[])
        self.queue.abandon()
        self.outcomes += self.queue.poll()
        counts, planes = self.hook.counts, {Prediction: 0, Refusal: 0, Unpredicted: 0}
        for outcome in self.outcomes:
            written = isinstance(outcome, Unpredicted)
            planes[type(outcome)] += self.files.pop(outcome.where, 0) if written else outcome.info.planes
        assert (counts.captured, counts.open) == (self.images, 0)
        by_models = sum(n for fate, why, n in counts.reasons if (fate, why) == ("refused", "by a model"))
        assert planes == {Prediction: counts.predicted, Refusal: by_models, Unpredicted: counts.spooled}
        assert not self.files, "what is on disk has an outcome that says so"
        for thread in self.threads:
            thread.shutdown()
        self.memory.close()
        self.temporary.cleanup()


TestConservation = Conservation.TestCase
TestConservation.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
