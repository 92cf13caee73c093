"""Batches of tiles on their way through a network: one is computed, the next is cut, the last is blended."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.backend import Network, default_threads
from acq_isl.errors import EngineError
from acq_isl.processing.normalize import all_finite
from acq_isl.processing.tiling import Tile, TilePlan, cut
from acq_isl.stack import Float32Image, Uint16Image, ZStack

_MOST_WORKERS = 8  # more only wait for the memory

Each = Callable[[Callable[[int], object], Sequence[int]], None]
"""Does a piece of work for every number."""


@contextmanager
def workers(count: int) -> Iterator[Each]:
    """Threads that share pieces of work; numpy lets them run side by side."""
    if count < 2:

        def one_by_one(work: Callable[[int], object], numbers: Sequence[int]) -> None:
            for number in numbers:
                work(number)

        yield one_by_one
        return
    with ThreadPoolExecutor(count, "acq-isl around the network") as pool:

        def side_by_side(work: Callable[[int], object], numbers: Sequence[int]) -> None:
            if len(numbers) == 1:  # such as the last plane of a stack whose others were seen as they came
                work(numbers[0])
                return
            for _ in pool.map(work, numbers):
                pass

        yield side_by_side


def worker_count(network: object) -> int:
    """One more than the network has cores: it mostly rests meanwhile, and all is over within milliseconds."""
    cores = getattr(network, "threads", None)
    most = default_threads() + 1
    return min(most if cores is None else int(cores) + 1, most, _MOST_WORKERS)


def cut_tiles(
    pixels: Uint16Image, plan: TilePlan, tiles: tuple[Tile, ...], into: Uint16Image | None, each: Each
) -> Uint16Image:
    """As `acq_isl.processing.tiling.cut`, but what is to be in memory that is given gets there."""
    if plan.is_field and into is None:
        return cut(pixels, plan, tiles)
    shape = len(tiles), len(pixels), *plan.tile_shape
    out = np.empty(shape, np.uint16) if into is None else into[: len(tiles)]

    def one(z: int) -> None:
        if plan.is_field:
            out[0, z] = pixels[z]
        else:
            cut(pixels[z : z + 1], plan, tiles, out[:, z : z + 1])

    each(one, range(len(pixels)))
    return out


def whole(values: Float32Image, plan: TilePlan, each: Each) -> Float32Image:
    """The only tile, cut to the field; (label, y, x)."""
    top, left = -plan.rows.starts[0], -plan.columns.starts[0]
    rows, columns = plan.field_shape
    inner = values[0, :, top : top + rows, left : left + columns]
    if inner.flags.c_contiguous:
        return inner
    out = np.empty(inner.shape, np.float32)

    def copy(label: int) -> None:
        out[label] = inner[label]

    each(copy, range(len(out)))
    return out


def as_bytes(tiles: Uint16Image) -> NDArray[np.uint8]:
    """(..., h, w) uint16 as (..., h, w, 2) little-endian bytes; no copy on little-endian machines."""
    little = tiles if sys.byteorder == "little" else tiles.astype("<u2")
    return little.view(np.uint8).reshape(*tiles.shape, 2)


def check_finite(answers: Sequence[Float32Image], stack: ZStack, each: Each) -> None:
    """EngineError unless all answers, each (..., y, x), are numbers."""
    parts = [part for values in answers for part in values]
    fine = [False] * len(parts)

    def look(index: int) -> None:
        fine[index] = all_finite(parts[index])

    each(look, range(len(parts)))
    if not all(fine):
        raise EngineError(
            f"the network answered with NaN or infinity for stack {stack.info.key}; nothing is shown",
            fix="try another engine or fp32 precision; if it stays, the model is damaged: export it again",
        )


AT_ONCE = 2  # while one batch is computed, another is cut or blended
_THREAD = "acq-isl network"

Batch = tuple[Tile, ...]
Shape = tuple[int, ...]
_Timed = tuple[tuple[Float32Image, ...], float]
Answered = tuple[Batch, tuple[Float32Image, ...], float]
"""Tiles, what the network says of them, and the milliseconds in which it had these and no earlier ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """What is to be run through a network.

    Parameters
    ----------
    pixels : (z, y, x) uint16
    plan : TilePlan
        Of its tiles.
    inv_sd : float32
        1 / contrast of its stack.
    """

    pixels: Uint16Image
    plan: TilePlan
    inv_sd: np.float32

    def shape(self, tiles: Batch) -> Shape:
        """As a network takes them, (tile, z, h, w, 2)."""
        return len(tiles), len(self.pixels), *self.plan.tile_shape, 2

    def contrasts(self, tiles: Batch) -> Float32Image:
        return np.full(len(tiles), self.inv_sd, np.float32)


class Pending(Protocol):
    """A batch that was started."""

    def result(self) -> tuple[Float32Image, ...]:
        """Wait for the network's answers. Call it once, whatever comes of it."""

    @property
    def ended_s(self) -> float:
        """When they were there, by `time.perf_counter`; once there is a result."""


class Slot(Protocol):
    """A place at the network for one batch. Either start it or drop it."""

    @property
    def tiles(self) -> NDArray[np.uint8]:
        """Where the batch is to be written, (tile, z, h, w, 2) uint8."""

    def start(self, inv_sd: Float32Image) -> Pending:
        """Compute what was written; it must stay as it is until there is a result."""

    def drop(self) -> None:
        """Give the place back unused."""


@runtime_checkable
class Slotted(Protocol):
    """A `Network` that takes several batches at once by itself, such as a GPU."""

    def slot(self, shape: Shape, *, wait: bool = True) -> Slot | None:
        """A place for a batch of this shape.

        Who has a batch there already must not wait, since all others might do the same: then None is said
        where no place is free and ready.
        """


def through(
    network: Network, field: Field, tiles_per_batch: int, each: Each
) -> Generator[Answered, None, None]:
    """Run the tiles of a field through a network, in order, `AT_ONCE` batches at the same time.

    Every batch that was started has left the network when this ends, however it ends: close it if it is not
    read to its end. A batch that is the only one runs on the caller's thread.

    Parameters
    ----------
    network : Network
        Gets a thread of its own unless it is `Slotted`.
    field : Field
    tiles_per_batch : int
    each : callable
        What shares the work of cutting.

    Yields
    ------
    Answered
    """
    batches = tuple(field.plan.batches(tiles_per_batch))
    if isinstance(network, Slotted):
        yield from _in_turns(network, field, batches, each)
    elif len(batches) > 1:
        with _Aside(network) as aside:
            yield from _in_turns(aside, field, batches, each)
    else:
        tiles = as_bytes(cut_tiles(field.pixels, field.plan, batches[0], None, each))
        began_s = time.perf_counter()
        answers = network.run(tiles, field.contrasts(batches[0]))
        yield batches[0], answers, (time.perf_counter() - began_s) * 1e3


def _in_turns(
    slots: Slotted, field: Field, batches: Sequence[Batch], each: Each
) -> Generator[Answered, None, None]:
    flying = _Flying()
    try:
        for tiles in batches:
            while (slot := slots.slot(field.shape(tiles), wait=not flying)) is None:
                yield flying.oldest()
            try:
                cut_tiles(field.pixels, field.plan, tiles, slot.tiles.view("<u2")[..., 0], each)
            except BaseException:
                slot.drop()
                raise
            flying.start(tiles, slot, field.contrasts(tiles))
        while flying:
            yield flying.oldest()
    finally:
        flying.land()


class _Flying:
    """Batches that were started and not fetched yet, in order."""

    def __init__(self) -> None:
        self._batches: deque[tuple[Batch, Pending, float]] = deque()
        self._free_s = 0.0

    def __bool__(self) -> bool:
        return bool(self._batches)

    def start(self, tiles: Batch, slot: Slot, inv_sd: Float32Image) -> None:
        began_s = time.perf_counter()
        self._batches.append((tiles, slot.start(inv_sd), began_s))

    def oldest(self) -> Answered:
        tiles, pending, began_s = self._batches.popleft()
        answers = pending.result()
        busy_s = pending.ended_s - max(began_s, self._free_s)
        self._free_s = pending.ended_s
        return tiles, answers, busy_s * 1e3

    def land(self) -> None:
        """Fetch what nobody wants any more: its place at the network, and its memory, are needed again."""
        while self._batches:
            with suppress(EngineError):  # there is an error on its way already
                self._batches.popleft()[1].result()


class _Aside:
    """A network on a thread of its own, with memory for `AT_ONCE` batches, which are used over and over."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._pool = ThreadPoolExecutor(1, _THREAD)
        self._free: list[NDArray[np.uint8] | None] = [None] * AT_ONCE

    def slot(self, shape: Shape, *, wait: bool = True) -> _AsideSlot | None:
        """Never waits: nobody else has a place here."""
        if not self._free:
            return None
        memory = self._free.pop()
        if memory is None or memory.size < prod(shape):
            memory = np.empty(prod(shape), np.uint8)
        return _AsideSlot(self, memory, shape)

    def start(self, tiles: NDArray[np.uint8], inv_sd: Float32Image) -> Future[_Timed]:
        return self._pool.submit(lambda: (self._network.run(tiles, inv_sd), time.perf_counter()))

    def give_back(self, memory: NDArray[np.uint8]) -> None:
        self._free.append(memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown()


class _AsideSlot:
    def __init__(self, aside: _Aside, memory: NDArray[np.uint8], shape: Shape) -> None:
        self._aside, self._memory = aside, memory
        self.tiles = memory[: prod(shape)].reshape(shape)

    def start(self, inv_sd: Float32Image) -> _AsidePending:
        return _AsidePending(self, self._aside.start(self.tiles, inv_sd))

    def drop(self) -> None:
        self._aside.give_back(self._memory)


class _AsidePending:
    def __init__(self, slot: _AsideSlot, future: Future[_Timed]) -> None:
        self._slot, self._future = slot, future
        self.ended_s = 0.0

    def result(self) -> tuple[Float32Image, ...]:
        try:
            answers, self.ended_s = self._future.result()
        finally:
            self._slot.drop()
        return answers
