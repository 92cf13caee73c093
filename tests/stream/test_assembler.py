"""Slices in any order, doubled, late or missing: stacks come out right, each once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acq_isl.errors import WireError
from acq_isl.stack import Slice, StackInfo, StackKey, ZStack
from acq_isl.stream.assembler import Assembler, Incomplete

PLANES = 3


def info(stack: int, planes: int = PLANES) -> StackInfo:
    return StackInfo(StackKey(stack, "A", "Phase"), tuple(float(z) for z in range(planes)), (2, 4), 0.3)


def slice_of(stack: int, z: int) -> Slice:
    pixels = np.full((2, 4), 100 * stack + z, np.uint16)
    return Slice(info(stack), z, pixels, captured_s=1000.0 + 10 * stack + z)


def whole(stack: int) -> np.ndarray:
    return np.stack([slice_of(stack, z).pixels for z in range(PLANES)])


@given(st.permutations([(stack, z) for stack in range(4) for z in range(PLANES)]))
def test_interleaved_slices_in_any_order_make_the_same_stacks(order: list[tuple[int, int]]) -> None:
    assembler = Assembler(timeout_s=10, max_open=4)
    out: dict[int, ZStack] = {}
    for stack, z in order:
        done = assembler.add(stack, slice_of(stack, z), 0.0)
        if done is not None:
            out[stack] = done
    assert sorted(out) == [0, 1, 2, 3]
    for stack, zstack in out.items():
        assert np.array_equal(zstack.pixels, whole(stack))
        assert zstack.captured_s == tuple(slice_of(stack, z).captured_s for z in range(PLANES))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, PLANES - 1)), max_size=40))
def test_every_stack_comes_out_once_when_all_its_slices_came(arrivals: list[tuple[int, int]]) -> None:
    assembler = Assembler(timeout_s=10)
    out = [s for s, z in arrivals if assembler.add(s, slice_of(s, z), 0.0) is not None]
    complete = {s for s in range(3) if {z for t, z in arrivals if t == s} == set(range(PLANES))}
    assert sorted(out) == sorted(complete)
    assert {s for s, _ in set(arrivals)} - set(assembler.open) == complete


def test_a_duplicate_does_not_change_what_was_first() -> None:
    assembler = Assembler(timeout_s=10)
    assembler.add(0, slice_of(0, 0), 0.0)
    assembler.add(0, replace(slice_of(0, 0), pixels=np.zeros((2, 4), np.uint16), captured_s=5.0), 0.0)
    assembler.add(0, slice_of(0, 1), 0.0)
    done = assembler.add(0, slice_of(0, 2), 0.0)
    assert done is not None
    assert np.array_equal(done.pixels, whole(0))


def test_a_stack_without_further_slices_is_given_up_and_named() -> None:
    assembler = Assembler(timeout_s=10)
    assembler.add(7, slice_of(0, 1), now_s=0.0)
    assembler.add(8, slice_of(1, 0), now_s=5.0)
    assert assembler.expire(now_s=9.9) == []
    assert assembler.expire(now_s=10.0) == [Incomplete(7, info(0), missing=(0, 2))]
    assert assembler.expire(now_s=10.1) == []
    assert assembler.open == (8,)
    assert assembler.add(7, slice_of(0, 0), now_s=11.0) is None


def test_each_slice_extends_the_time_limit() -> None:
    assembler = Assembler(timeout_s=10)
    assembler.add(0, slice_of(0, 0), now_s=0.0)
    assembler.add(0, slice_of(0, 1), now_s=9.0)
    assert assembler.expire(now_s=18.0) == []
    assert len(assembler.expire(now_s=19.0)) == 1


def test_dropped_is_late_and_cleared_begins_again() -> None:
    assembler = Assembler(timeout_s=10)
    assembler.add(0, slice_of(0, 0), 0.0)
    assembler.drop(0)
    assert assembler.add(0, slice_of(0, 1), 0.0) is None
    assembler.add(1, slice_of(1, 0), 0.0)
    assembler.clear()
    assert [assembler.add(1, slice_of(1, z), 0.0) is not None for z in range(PLANES)] == [False, False, True]


def test_a_stack_that_lies_in_its_memory_already_is_not_copied() -> None:
    assembler, memory = Assembler(timeout_s=10), whole(7)
    for z in range(PLANES):
        done = assembler.add(0, replace(slice_of(7, z), pixels=memory[z]), 0.0, into=memory)
    assert done is not None
    assert done.pixels is memory


@pytest.mark.parametrize(
    "second",
    [
        replace(slice_of(0, 1), info=replace(info(0), pixel_size_um=0.5)),
        replace(slice_of(0, 1), info=info(0, planes=4)),
        replace(slice_of(0, 1), z_index=3),
        replace(slice_of(0, 1), z_index=-1),
        replace(slice_of(0, 1), pixels=np.zeros((4, 2), np.uint16)),
    ],
)
def test_a_slice_that_contradicts_its_stack_is_refused(second: Slice) -> None:
    assembler = Assembler(timeout_s=10)
    assembler.add(0, slice_of(0, 0), 0.0)
    with pytest.raises(WireError):
        assembler.add(0, second, 0.0)


def test_an_unknown_pixel_size_is_no_contradiction() -> None:
    assembler = Assembler(timeout_s=10)
    unknown = [
        replace(slice_of(0, z), info=replace(info(0), pixel_size_um=float("nan"))) for z in range(PLANES)
    ]
    assert [assembler.add(0, slice_, 0.0) is not None for slice_ in unknown] == [False, False, True]


def test_open_stacks_are_bounded() -> None:
    assembler = Assembler(timeout_s=10, max_open=2)
    assembler.add(0, slice_of(0, 0), 0.0)
    assembler.add(1, slice_of(1, 0), 0.0)
    with pytest.raises(WireError, match="more stacks"):
        assembler.add(2, slice_of(2, 0), 0.0)


def test_memory_of_finished_stacks_is_bounded() -> None:
    assembler = Assembler(timeout_s=10, remember=2)
    for stack in range(4):
        for z in range(PLANES):
            assembler.add(stack, slice_of(stack, z), 0.0)
    assert assembler.add(3, slice_of(3, 0), 0.0) is None
    assembler.add(0, slice_of(0, 0), 0.0)  # forgotten: a new stack by now
    assert assembler.open == (0,)
