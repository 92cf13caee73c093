"""The work around a network, spread over the cores: tiles cut, the field put together, numbers checked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.backend import default_threads
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
