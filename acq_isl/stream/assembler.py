"""Slices become stacks; missing, duplicate and late slices are counted. Pure: time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from acq_isl.errors import WireError
from acq_isl.stack import Slice, StackInfo, Uint16Image, ZStack


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A stack that was given up because no slice came any more.

    Parameters
    ----------
    stack : Hashable
        Its id.
    info : StackInfo
    missing : tuple of int
        Indices into ``info.z_um`` of the slices that never came.
    """

    stack: Hashable
    info: StackInfo
    missing: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AssemblyCounts:
    """What an assembler has seen. ``slices`` counts all arrivals, also the duplicate and late ones."""

    slices: int = 0
    duplicates: int = 0
    late: int = 0
    complete: int = 0
    incomplete: int = 0


class OpenStack:
    """A stack that is being filled.

    Parameters
    ----------
    info : StackInfo
    pixels : (z, y, x) uint16
        Memory to fill; belongs to the caller.
    opened_s : float
        Time on the caller's clock, in seconds.
    """

    def __init__(self, info: StackInfo, pixels: Uint16Image, opened_s: float) -> None:
        self.info = info
        self.pixels = pixels
        self.touched_s = opened_s
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

    def mark(self, z_index: int, captured_s: float, now_s: float) -> bool:
        """Note that the pixels of a slice are in place; False for a duplicate, which changes nothing."""
        if z_index in self._captured_s:
            return False
        self._captured_s[z_index] = captured_s
        self.touched_s = now_s
        return True

    def captured_at(self, z_index: int) -> float:
        return self._captured_s[z_index]

    def zstack(self) -> ZStack:
        """The complete stack, sharing this one's memory."""
        if not self.complete:
            raise WireError(
                f"stack {self.info.key} is not complete", got=f"slices {self.missing} are missing"
            )
        return ZStack(self.info, self.pixels, self.captured_s)


class Assembler:
    """Several stacks at once, their slices in any order.

    Parameters
    ----------
    timeout_s : float
        A stack that got no slice for this long is given up by `expire`.
    max_open : int
        More unfinished stacks than this are refused.
    remember : int
        Ids of finished stacks kept to tell a late slice from a new stack.
    """

    def __init__(self, *, timeout_s: float, max_open: int = 16, remember: int = 1024) -> None:
        self._timeout_s = timeout_s
        self._max_open = max_open
        self._remember = remember
        self._open: dict[Hashable, OpenStack] = {}
        self._finished: OrderedDict[Hashable, None] = OrderedDict()
        self._counts = {"slices": 0, "duplicates": 0, "late": 0, "complete": 0, "incomplete": 0}

    @property
    def counts(self) -> AssemblyCounts:
        return AssemblyCounts(**self._counts)

    @property
    def open(self) -> tuple[Hashable, ...]:
        """Ids of the stacks that are not complete yet."""
        return tuple(self._open)

    def add(
        self, stack: Hashable, slice_: Slice, now_s: float, into: Uint16Image | None = None
    ) -> ZStack | None:
        """Take a slice; the stack, if this slice completes it.

        Parameters
        ----------
        stack : Hashable
            Id of the stack.
        slice_ : Slice
            Copied into the stack unless ``into`` is given.
        now_s : float
            Time on the caller's clock, in seconds.
        into : (z, y, x) uint16, optional
            Memory of the whole stack in which the slice already lies; nothing is copied.

        Raises
        ------
        WireError
            The slice contradicts earlier ones of its stack, or too many stacks are open.
        """
        self._counts["slices"] += 1
        if stack in self._finished:
            self._counts["late"] += 1
            return None
        open_ = self._open.get(stack)
        if open_ is None:
            open_ = self._start(stack, slice_.info, now_s, into)
        self._fits(open_, slice_)
        if open_.has(slice_.z_index):
            self._counts["duplicates"] += 1
            return None
        if into is None:
            open_.pixels[slice_.z_index] = slice_.pixels
        open_.mark(slice_.z_index, slice_.captured_s, now_s)
        if not open_.complete:
            return None
        self._finish(stack)
        self._counts["complete"] += 1
        return open_.zstack()

    def unfinished(self, stack: Hashable) -> OpenStack | None:
        """A stack that is not complete yet; None if it is, or was never begun."""
        return self._open.get(stack)

    def expire(self, now_s: float) -> tuple[Incomplete, ...]:
        """Give up and return the stacks that got no slice for ``timeout_s``."""
        old = [
            (stack, open_)
            for stack, open_ in self._open.items()
            if now_s - open_.touched_s >= self._timeout_s
        ]
        for stack, _ in old:
            self._finish(stack)
            self._counts["incomplete"] += 1
        return tuple(Incomplete(stack, open_.info, open_.missing) for stack, open_ in old)

    def drop(self, stack: Hashable) -> None:
        """Forget an unfinished stack; later slices of it count as late."""
        if stack in self._open:
            self._finish(stack)

    def forget(self, stack: Hashable) -> None:
        """Know nothing of a stack any more: it will not be sent on, or from its beginning."""
        self._open.pop(stack, None)
        self._finished.pop(stack, None)

    def clear(self) -> None:
        """Forget all unfinished stacks as if they had never begun: their slices will be sent again."""
        self._open.clear()

    def _start(self, stack: Hashable, info: StackInfo, now_s: float, into: Uint16Image | None) -> OpenStack:
        if len(self._open) >= self._max_open:
            raise WireError("more stacks are open at once than agreed", wanted=f"<= {self._max_open}")
        pixels = np.empty((info.planes, *info.shape), np.uint16) if into is None else into
        self._open[stack] = OpenStack(info, pixels, now_s)
        return self._open[stack]

    def _fits(self, open_: OpenStack, slice_: Slice) -> None:
        # repr makes NaN (pixel size not known) equal to itself.
        if slice_.info != open_.info and repr(slice_.info) != repr(open_.info):
            raise WireError(
                f"a slice contradicts its stack {open_.info.key}",
                wanted=f"{open_.info}",
                got=f"{slice_.info}",
            )
        if not 0 <= slice_.z_index < open_.info.planes or slice_.pixels.shape != open_.info.shape:
            raise WireError(
                f"a slice does not fit its stack {open_.info.key}",
                wanted=f"z_index < {open_.info.planes}, {open_.info.shape}",
                got=f"z_index {slice_.z_index}, {slice_.pixels.shape}",
            )

    def _finish(self, stack: Hashable) -> None:
        del self._open[stack]
        self._finished[stack] = None
        while len(self._finished) > self._remember:
            self._finished.popitem(last=False)
