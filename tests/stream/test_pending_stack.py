"""The states of a stack: what is impossible is refused and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from acq_isl.stack import Slice, StackInfo, StackKey
from acq_isl.stream.messages import Wanted
from acq_isl.stream.pending_stack import PendingStack, State
from acq_isl.stream.shared_memory import Block, SharedMemory

INFO = StackInfo(StackKey(0, "A1", "Phase"), (0.0, 1.0), (2, 3), 0.3)
Step = Callable[[PendingStack, Block], object]


def capture(stack: PendingStack, block: Block) -> None:
    for z in range(INFO.planes):
        slice_ = Slice(INFO, z, np.zeros(INFO.shape, np.uint16), 0.0)
        assert stack.expect(slice_)
        stack.add(slice_, 0.0)


def send(stack: PendingStack, block: Block) -> None:
    stack.grant()
    for z in stack.unsent:
        assert stack.note_sent(z)


def fail(stack: PendingStack, block: Block) -> None:
    stack.fail("", "failed", "a bug")


STEPS: dict[str, Step] = {
    "capture": capture,
    "grant": lambda stack, block: stack.grant(),
    "send": send,
    "recall": lambda stack, block: stack.recall(),
    "fail": fail,
    "spill": lambda stack, block: stack.spill(),
    "stored": lambda stack, block: stack.stored(Path("0.tif")),
    "not_stored": lambda stack, block: stack.not_stored(),
    "load": lambda stack, block: stack.load(block),
    "loaded": lambda stack, block: stack.loaded(),
    "not_loaded": lambda stack, block: stack.not_loaded(),
    "store": lambda stack, block: stack.store(),
    "close": lambda stack, block: stack.close("closed", ""),
    "lose": lambda stack, block: stack.lose("disk full"),
}
WAYS = {
    State.WAITING: "capture",
    State.AT_SERVER: "capture send",
    State.RECALLED: "capture send recall",
    State.SPILLING: "capture spill",
    State.ON_DISK: "capture spill stored",
    State.READING: "capture spill stored load",
    State.FINISHING: "fail",
    State.ENDING: "capture fail",
    State.STORING: "capture fail store",
    State.DONE: "capture fail store stored",
}
POSSIBLE = {
    "grant": {State.WAITING},
    "spill": {State.WAITING},
    "load": {State.ON_DISK},
    "loaded": {State.READING},
    "not_loaded": {State.READING},
    "stored": {State.SPILLING, State.STORING},
    "not_stored": {State.SPILLING, State.STORING},
    "lose": {State.READING, State.STORING},
}


@pytest.fixture
def block() -> Iterator[Block]:
    with SharedMemory(1 << 16, shared=False) as memory:
        made = memory.allocate(INFO)
        assert made is not None
        yield made


def brought_to(state: State, block: Block) -> PendingStack:
    stack = PendingStack(0, INFO, block, Wanted(), 0.0)
    for step in WAYS[state].split():
        STEPS[step](stack, block)
    assert stack.state is state
    return stack


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("step", POSSIBLE)
def test_impossible_changes_are_refused(step: str, state: State, block: Block) -> None:
    stack = brought_to(state, block)
    if state in POSSIBLE[step]:
        STEPS[step](stack, block)
        assert stack.state is not state
    else:
        with pytest.raises(RuntimeError, match="cannot"):
            STEPS[step](stack, block)
        assert stack.state is state and stack.fate[0] != "lost"


@pytest.mark.parametrize(
    "way, state, reasons",
    [
        ("fail capture", State.ENDING, ["a bug"]),
        ("fail close", State.ENDING, ["a bug; only 0 of 2 slices were captured"]),
        ("close", State.ENDING, ["only 0 of 2 slices were captured"]),
        ("close store", State.DONE, ["only 0 of 2 slices were captured"]),
        ("capture spill fail", State.SPILLING, ["a bug"]),
        ("capture spill fail stored", State.ENDING, ["a bug"]),
        ("capture spill fail stored store", State.DONE, ["a bug"]),
        ("capture spill stored load fail", State.READING, ["a bug"]),
        ("capture spill stored load fail loaded", State.ENDING, ["a bug"]),
        ("capture fail store lose", State.DONE, ["a bug; disk full"]),
    ],
)
def test_where_a_failure_leads(way: str, state: State, reasons: list[str], block: Block) -> None:
    stack = PendingStack(0, INFO, block, Wanted(), 0.0)
    for step in way.split():
        STEPS[step](stack, block)
    assert stack.state is state
    assert [outcome.reason for _, outcome in stack.unpredicted()] == reasons
