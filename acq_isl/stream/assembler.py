"""Slices become stacks; duplicate and late slices are ignored. Pure: time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from acq_isl.errors import WireError
from acq_isl.stack import Slice, StackInfo, Uint16Image, ZStack


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A stack that was given up: its id, and indices into ``info.z_um`` of the slices that never came."""

    stack: int
    info: StackInfo
    missing: tuple[int, ...]


class OpenStack:
    """A stack that is being filled: the caller's memory, (z, y, x) uint16, and time on the caller's clock."""

    def __init__(self, info: StackInfo, pixels: Uint16Image, opened_s: float) -> None:
        self.info, self.pixels, self.touched_s = info, pixels, opened_s
        self._captured_s: dict[int, float] = {}

    @property
    def present(self) -> tuple[int, ...]:
        """Indices of the slices that are there, rising."""
        return tuple(sorted(self._captured_s))

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(z for z in range(self.info.planes) if z not in self._captured_s)

    @property
    def complete(self) -> bool:
        return len(self._captured_s) == self.info.planes

    @property
    def captured_s(self) -> tuple[float, ...]:
        """Unix time of each slice that is there, in the order of `present`."""
        return tuple(self._captured_s[z] for z in self.present)

    def has(self, z_index: int) -> bool:
        return z_index in self._captured_s

    def mark(self, z_index: int, captured_s: float, now_s: float) -> None:
        """Note that the pixels of a slice are in place."""
        self._captured_s[z_index] = captured_s
        self.touched_s = now_s

    def captured_at(self, z_index: int) -> float:
        return self._captured_s[z_index]


class Assembler:
    """Several stacks at once, by id, their slices in any order; more unfinished ones than agreed are refused.

    It remembers the ids of finished stacks to tell a late slice from a new stack.
    """

    def __init__(self, *, timeout_s: float, max_open: int = 16, remember: int = 1024) -> None:
        self._timeout_s, self._max_open, self._remember = timeout_s, max_open, remember
        self._open: dict[int, OpenStack] = {}
        self._finished: OrderedDict[int, None] = OrderedDict()

    @property
    def open(self) -> tuple[int, ...]:
        """Ids of the stacks that are not complete yet."""
        return tuple(self._open)

    def add(self, stack: int, slice_: Slice, now_s: float, into: Uint16Image | None = None) -> ZStack | None:
        """Take a slice; the stack, if this slice completes it.

        It is copied unless it lies already in ``into``, (z, y, x) uint16, the memory of its whole stack.
        WireError if it contradicts earlier ones, or too many stacks are open.
        """
        if stack in self._finished:
            return None
        slices = self._open.get(stack) or self._start(stack, slice_.info, now_s, into)
        _require_fit(slices.info, slice_)
        if slices.has(slice_.z_index):
            return None
        if into is None:
            slices.pixels[slice_.z_index] = slice_.pixels
        slices.mark(slice_.z_index, slice_.captured_s, now_s)
        if not slices.complete:
            return None
        self.drop(stack)
        return ZStack(slices.info, slices.pixels, slices.captured_s)

    def unfinished(self, stack: int) -> OpenStack | None:
        """A stack that is not complete yet; None if it is, or was never begun."""
        return self._open.get(stack)

    def expire(self, now_s: float) -> list[Incomplete]:
        """Give up and return the stacks that got no slice for ``timeout_s``."""
        old = [(id_, s) for id_, s in self._open.items() if now_s - s.touched_s >= self._timeout_s]
        for id_, _ in old:
            self.drop(id_)
        return [Incomplete(id_, slices.info, slices.missing) for id_, slices in old]

    def drop(self, stack: int) -> None:
        """Take no more slices of an unfinished stack."""
        if self._open.pop(stack, None) is not None:
            self._finished[stack] = None
            while len(self._finished) > self._remember:
                self._finished.popitem(last=False)

    def forget(self, stack: int) -> None:
        """Know nothing of a stack any more: if it is sent again, then from its beginning."""
        self._open.pop(stack, None)
        self._finished.pop(stack, None)

    def clear(self) -> None:
        """Forget all unfinished stacks."""
        self._open.clear()

    def _start(self, stack: int, info: StackInfo, now_s: float, into: Uint16Image | None) -> OpenStack:
        if len(self._open) >= self._max_open:
            raise WireError("more stacks are open at once than agreed", wanted=f"<= {self._max_open}")
        pixels = np.empty((info.planes, *info.shape), np.uint16) if into is None else into
        self._open[stack] = OpenStack(info, pixels, now_s)
        return self._open[stack]


def _require_fit(info: StackInfo, slice_: Slice) -> None:
    # repr makes NaN (pixel size not known) equal to itself.
    if slice_.info != info and repr(slice_.info) != repr(info):
        raise WireError(f"a slice contradicts its stack {info.key}", wanted=f"{info}", got=f"{slice_.info}")
    if not 0 <= slice_.z_index < info.planes or slice_.pixels.shape != info.shape:
        raise WireError(
            f"a slice does not fit its stack {info.key}",
            wanted=f"z_index < {info.planes}, {info.shape}",
            got=f"z_index {slice_.z_index}, {slice_.pixels.shape}",
        )
