"""Batches of tiles on their way through a network: one is computed, the next is cut, the last is blended."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.backend import Network, UsesCores, default_threads
from acq_isl.errors import EngineError
from acq_isl.processing.normalize import all_finite
from acq_isl.processing.tiling import Tile, TilePlan, cut
from acq_isl.stack import Float32Image, Uint16Image, ZStack

AT_ONCE = 2  # while one batch is computed, another is cut or blended
_MOST_WORKERS = 8  # more only wait for the memory

ParallelMap = Callable[[Callable[[int], object], Sequence[int]], None]
"""Calls a function with every number; returns when all calls have."""
Batch = tuple[Tile, ...]
Shape = tuple[int, ...]
Result = tuple[Batch, tuple[Float32Image, ...], float]
"""Tiles, the network's outputs for them, and the milliseconds in which it had these and no earlier ones."""


@contextmanager
def worker_threads(count: int) -> Iterator[ParallelMap]:
    """Threads that share the calls of a map; numpy lets them run side by side."""
    if count < 2:
        yield _map_in_turn
        return
    with ThreadPoolExecutor(count, "acq-isl predictor") as pool:

        def parallel_map(function: Callable[[int], object], numbers: Sequence[int]) -> None:
            if len(numbers) == 1:  # such as the last plane of a stack whose others were measured as they came
                _map_in_turn(function, numbers)
            else:
                for _ in pool.map(function, numbers):
                    pass

        yield parallel_map


def _map_in_turn(function: Callable[[int], object], numbers: Sequence[int]) -> None:
    for number in numbers:
        function(number)


def worker_count(network: Network) -> int:
    """One more than the network has cores: it mostly rests meanwhile, and all is over within milliseconds."""
    most = default_threads() + 1
    cores = network.threads + 1 if isinstance(network, UsesCores) else most
    return min(cores, most, _MOST_WORKERS)


def cut_tiles(
    pixels: Uint16Image, plan: TilePlan, tiles: Batch, into: Uint16Image | None, parallel_map: ParallelMap
) -> Uint16Image:
    """As `acq_isl.processing.tiling.cut`, plane by plane, and into memory that is given, if any."""
    if plan.is_field and into is None:
        return cut(pixels, plan, tiles)
    shape = len(tiles), len(pixels), *plan.tile_shape
    out = np.empty(shape, np.uint16) if into is None else into[: len(tiles)]

    def cut_plane(z: int) -> None:
        if plan.is_field:
            out[0, z] = pixels[z]
        else:
            cut(pixels[z : z + 1], plan, tiles, out[:, z : z + 1])

    parallel_map(cut_plane, range(len(pixels)))
    return out


def crop_to_field(values: Float32Image, plan: TilePlan, parallel_map: ParallelMap) -> Float32Image:
    """The only tile, (1, label, h, w), without the border around the field; (label, y, x)."""
    top, left = -plan.rows.starts[0], -plan.columns.starts[0]
    rows, columns = plan.field_shape
    inner = values[0, :, top : top + rows, left : left + columns]
    if inner.flags.c_contiguous:
        return inner
    out = np.empty(inner.shape, np.float32)

    def copy_label(label: int) -> None:
        out[label] = inner[label]

    parallel_map(copy_label, range(len(out)))
    return out


def check_finite(outputs: Sequence[Float32Image], stack: ZStack, parallel_map: ParallelMap) -> None:
    """EngineError unless all outputs, each (..., y, x), are numbers."""
    parts = [part for values in outputs for part in values]
    finite = [False] * len(parts)

    def check_part(index: int) -> None:
        finite[index] = all_finite(parts[index])

    parallel_map(check_part, range(len(parts)))
    if not all(finite):
        raise EngineError(
            f"the network answered with NaN or infinity for stack {stack.info.key}; nothing is shown",
            fix="try another engine or fp32 precision; if it stays, the model is damaged: export it again",
        )


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """What is run through a network: (z, y, x) uint16, its tiles, and 1 / contrast of its stack."""

    pixels: Uint16Image
    plan: TilePlan
    inv_sd: np.float32

    def shape(self, tiles: Batch) -> Shape:
        """As a network takes them, (tile, z, h, w, 2)."""
        return len(tiles), len(self.pixels), *self.plan.tile_shape, 2

    def contrasts(self, tiles: Batch) -> Float32Image:
        return np.full(len(tiles), self.inv_sd, np.float32)


class Request(Protocol):
    """One batch at an `AsyncNetwork`. Write its tiles and start it, or release it."""

    @property
    def tiles(self) -> NDArray[np.uint8]:
        """Where the batch is to be written, (tile, z, h, w, 2) uint8; untouched from start to result."""

    def start(self, inv_sd: Float32Image) -> None:
        """Compute what was written; if that raises, the request is released."""

    def result(self) -> tuple[Float32Image, ...]:
        """Wait for the network's outputs, once, and release the request, whatever comes of it."""

    @property
    def ended_s(self) -> float:
        """When the outputs were there, by `time.perf_counter`; once there is a result."""

    def release(self) -> None:
        """Give it back without starting it."""


@runtime_checkable
class AsyncNetwork(Protocol):
    """A `Network` that takes several batches at once by itself, such as a GPU."""

    def request(self, shape: Shape, *, wait: bool = True) -> Request | None:
        """A request for a batch of this shape; None if none is free and ready and ``wait`` is false.

        Who has a request already must not wait for another one, since all others might do the same.
        """


def run_tiles(
    network: Network, field: Field, tiles_per_batch: int, parallel_map: ParallelMap
) -> Generator[Result, None, None]:
    """Run the tiles of a field through a network, in order, `AT_ONCE` batches at the same time.

    What was started has left the network when this ends: close it if it is not read to its end.
    """
    batches = tuple(field.plan.batches(tiles_per_batch))
    if isinstance(network, AsyncNetwork):
        yield from _overlap(network, field, batches, parallel_map)
    elif len(batches) > 1:
        yield from _run_beside(network, field, batches, parallel_map)
    else:
        tiles = cut_tiles(field.pixels, field.plan, batches[0], None, parallel_map)
        yield batches[0], *_timed_run(network, tiles, field.contrasts(batches[0]))


def _timed_run(
    network: Network, tiles: Uint16Image, inv_sd: Float32Image
) -> tuple[tuple[Float32Image, ...], float]:
    little_endian = np.ascontiguousarray(tiles, "<u2").view(np.uint8).reshape(*tiles.shape, 2)
    began_s = time.perf_counter()
    outputs = network.run(little_endian, inv_sd)
    return outputs, (time.perf_counter() - began_s) * 1e3


def _run_beside(
    network: Network, field: Field, batches: Sequence[Batch], parallel_map: ParallelMap
) -> Generator[Result, None, None]:
    """One batch on a thread of its own while another is cut or blended; their memory takes turns."""
    memory = [np.empty(field.shape(batches[0])[:-1], np.uint16) for _ in range(AT_ONCE)]
    started: tuple[Batch, Future[tuple[tuple[Float32Image, ...], float]]] | None = None
    with ThreadPoolExecutor(1, "acq-isl network") as pool:
        for number, tiles in enumerate(batches):
            cut_now = cut_tiles(field.pixels, field.plan, tiles, memory[number % AT_ONCE], parallel_map)
            future = pool.submit(_timed_run, network, cut_now, field.contrasts(tiles))
            if started is not None:
                yield started[0], *started[1].result()
            started = tiles, future
        if started is not None:
            yield started[0], *started[1].result()


def _overlap(
    network: AsyncNetwork, field: Field, batches: Sequence[Batch], parallel_map: ParallelMap
) -> Generator[Result, None, None]:
    started: deque[tuple[Batch, Request, float]] = deque()
    free_s = 0.0  # when the network had nothing left of earlier batches

    def oldest_result() -> Result:
        nonlocal free_s
        tiles, request, began_s = started.popleft()
        outputs = request.result()
        busy_s = request.ended_s - max(began_s, free_s)
        free_s = request.ended_s
        return tiles, outputs, busy_s * 1e3

    try:
        for tiles in batches:
            while (request := network.request(field.shape(tiles), wait=not started)) is None:
                yield oldest_result()
            try:
                cut_tiles(field.pixels, field.plan, tiles, request.tiles.view("<u2")[..., 0], parallel_map)
            except BaseException:
                request.release()
                raise
            began_s = time.perf_counter()
            request.start(field.contrasts(tiles))
            started.append((tiles, request, began_s))
        while started:
            yield oldest_result()
    finally:
        for _, request, _ in started:
            with suppress(EngineError):  # there is an error on its way already
                request.result()
