"""Cut a field into overlapping tiles and blend what comes back, so that tiling cannot be seen. Pure.

What a network says within a halo of an inner tile edge is thrown away, so every pixel comes from tiles
that saw its whole receptive field; tiles start on multiples of the size step, so pooling stays in phase.
Hence a tiled prediction equals the untiled one as far as the halo covers the receptive field. Where it
does not quite, neighbours are blended over at least `BLEND_PX` pixels instead of showing a seam.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acq_isl.stack import Float32Image, Uint16Image

BLEND_PX = 16


@dataclass(frozen=True, slots=True)
class TileRule:
    """What a network asks of its tiles, in pixels."""

    min_px: int = 1
    """Smallest side, at least 1."""
    halo_px: int = 0
    """Margin whose prediction depends on what is outside of the tile, at least 0."""
    step_px: int = 1
    """Sides must be multiples of this, at least 1."""

    def __post_init__(self) -> None:
        if self.min_px < 1 or self.halo_px < 0 or self.step_px < 1:
            raise ValueError(f"tile sides and steps start at 1, halos at 0: {self}")


@dataclass(frozen=True, slots=True, eq=False)
class AxisPlan:
    """Tiles along one axis."""

    size: int
    """Pixels of the field."""
    side: int
    """Pixels of each tile."""
    starts: tuple[int, ...]
    """First field pixel of each tile. Pixels before 0 and from ``size`` on are reflections."""
    weights: tuple[Float32Image, ...]
    """Share of each tile in the result, (side,). Over all tiles they sum to 1 at every pixel of the field."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Place of a tile in its plan: index along rows and along columns."""

    row: int
    column: int


@dataclass(frozen=True, slots=True, eq=False)
class TilePlan:
    """Where the tiles of a field lie; all have the same shape, so any of them can share a batch."""

    rows: AxisPlan
    columns: AxisPlan

    @property
    def field_shape(self) -> tuple[int, int]:
        """Rows and columns of the field, in pixels."""
        return self.rows.size, self.columns.size

    @property
    def tile_shape(self) -> tuple[int, int]:
        """Rows and columns of every tile, in pixels."""
        return self.rows.side, self.columns.side

    @property
    def is_field(self) -> bool:
        """Whether the only tile is the field, no more and no less."""
        same = self.tile_shape == self.field_shape and len(self.tiles) == 1
        return same and self.rows.starts == self.columns.starts == (0,)

    @property
    def tiles(self) -> tuple[Tile, ...]:
        rows, columns = len(self.rows.starts), len(self.columns.starts)
        return tuple(Tile(row, column) for row in range(rows) for column in range(columns))

    def batches(self, tiles_per_batch: int) -> Iterator[tuple[Tile, ...]]:
        """The tiles, ``tiles_per_batch`` at a time; the last batch may be smaller."""
        tiles, count = self.tiles, max(tiles_per_batch, 1)
        for first in range(0, len(tiles), count):
            yield tiles[first : first + count]


def plan_tiles(
    shape: tuple[int, int], rule: TileRule, *, tile_px: int | None = None, border_px: int = 0
) -> TilePlan:
    """Plan as few and as small tiles as cover a field of so many rows and columns.

    Parameters
    ----------
    tile_px : int, optional
        Longest tile side allowed; this is what bounds memory. A side too short for halo, blending and
        step is raised to the shortest that works. None predicts the field in one piece.
    border_px : int
        Reflected pixels to add around the field beyond what size step and smallest side need.
    """
    if min(shape) < 1 or border_px < 0:
        raise ValueError(f"a field needs at least one pixel and a border at least none: {shape}, {border_px}")
    rows, columns = (_plan_axis(size, rule, tile_px, border_px) for size in shape)
    return TilePlan(rows, columns)


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _plan_axis(size: int, rule: TileRule, tile_px: int | None, border_px: int) -> AxisPlan:
    step = rule.step_px
    padded = _up(max(size + 2 * border_px, rule.min_px), step)
    overlap = 2 * rule.halo_px + BLEND_PX
    smallest = max(_up(rule.min_px, step), _up(overlap, step) + step)
    longest = padded if tile_px is None else max(tile_px // step * step, smallest)
    side, count = padded, 1
    if longest < padded:
        count = -(-(padded - longest) // _stride(longest, overlap, step)) + 1
        # The same number of tiles may do with shorter ones; the first that reaches the end is taken.
        side = next(
            s
            for s in range(smallest, longest + step, step)
            if s + (count - 1) * _stride(s, overlap, step) >= padded
        )
    free = (padded - side) // step
    starts = tuple(free * i // max(count - 1, 1) * step - border_px for i in range(count))
    return AxisPlan(size, side, starts, _weights(starts, side, rule.halo_px))


def _stride(side: int, overlap: int, step: int) -> int:
    return (side - overlap) // step * step


def _weights(starts: tuple[int, ...], side: int, halo_px: int) -> tuple[Float32Image, ...]:
    """Trapezoids: 0 in the halo of inner edges, a ramp over the rest of the overlap, 1 elsewhere."""
    origin, end = starts[0], starts[-1] + side
    raw = np.zeros((len(starts), end - origin))
    for index, start in enumerate(starts):
        weight = np.ones(side)
        if index:
            ramp = starts[index - 1] + side - start - 2 * halo_px
            weight *= np.clip((np.arange(side) - halo_px + 0.5) / ramp, 0, 1)
        if index + 1 < len(starts):
            ramp = start + side - starts[index + 1] - 2 * halo_px
            weight *= np.clip((side - halo_px - np.arange(side) - 0.5) / ramp, 0, 1)
        raw[index, start - origin : start - origin + side] = weight
    raw /= raw.sum(axis=0)
    shares = (raw[i, s - origin : s - origin + side] for i, s in enumerate(starts))
    return tuple(share.astype(np.float32) for share in shares)


def _reflect(start: int, stop: int, size: int) -> NDArray[np.intp]:
    """Field pixels that stand for pixels ``start`` to ``stop``; the edge pixel is not repeated."""
    period = max(2 * (size - 1), 1)
    folded = np.abs(np.arange(start, stop)) % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros(stop - start, np.intp)


def cut(
    pixels: Uint16Image, plan: TilePlan, tiles: tuple[Tile, ...], into: Uint16Image | None = None
) -> Uint16Image:
    """Copy tiles out of a stack, (z, y, x) uint16, reflected where they reach outside.

    ``into``, (n, z, h, w), is C-contiguous memory to use again: fresh memory is slow to touch. The answer,
    (tile, z, h, w), is a view of it, or of ``pixels`` if one tile is the whole field.
    """
    if plan.is_field and pixels.flags.c_contiguous:
        return pixels[np.newaxis]
    shape = (len(tiles), len(pixels), *plan.tile_shape)
    out = np.empty(shape, pixels.dtype) if into is None else into[: len(tiles)]
    for target, tile in zip(out, tiles, strict=True):
        _cut_tile(pixels, plan, tile, target)
    return out


def _cut_tile(pixels: Uint16Image, plan: TilePlan, tile: Tile, target: Uint16Image) -> None:
    top, left = plan.rows.starts[tile.row], plan.columns.starts[tile.column]
    (field_rows, field_columns), (height, width) = plan.field_shape, plan.tile_shape
    rows, columns = _reflect(top, top + height, field_rows), _reflect(left, left + width, field_columns)
    y, x = _inside(top, height, field_rows), _inside(left, width, field_columns)
    sides, ends = _margins(x, width), _margins(y, height)
    # Plane by plane, so that margins are made of what is in the cache, and what lies inside in whole runs.
    for plane, out in zip(pixels, target, strict=True):
        inner = plane[y.start + top : y.stop + top]
        out[y, x] = inner[:, x.start + left : x.stop + left]
        for margin in sides:
            out[y, margin] = inner[:, _backwards(columns[margin])]
        for margin in ends:
            out[margin, x] = plane[_backwards(rows[margin]), x.start + left : x.stop + left]
            for side in sides:
                out[margin, side] = plane[_backwards(rows[margin])][:, _backwards(columns[side])]


def _margins(inside: slice, side: int) -> list[slice]:
    """What lies before and behind the inside of a tile, where there is any."""
    around = (slice(0, inside.start), slice(inside.stop, side))
    return [margin for margin in around if margin.stop > margin.start]


def _backwards(indices: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """The same as a slice where that is possible, which is read several times as fast."""
    if (np.diff(indices) != -1).any():
        return indices
    last = int(indices[-1]) - 1
    return slice(int(indices[0]), None if last < 0 else last, -1)


def _inside(start: int, side: int, size: int) -> slice:
    """The pixels of a tile that lie inside of the field, in tile coordinates."""
    first = min(max(-start, 0), side)
    return slice(first, max(min(size - start, side), first))


def blend(out: Float32Image, values: Float32Image, plan: TilePlan, tile: Tile) -> None:
    """Add a tile's share, of what the network said of it, (label, h, w), to the field, (label, y, x).

    ``out`` starts as zeros and holds the field once every tile was added.
    """
    slices, sources, shares = [], [], []
    for axis, index in ((plan.rows, tile.row), (plan.columns, tile.column)):
        start, weight = axis.starts[index], axis.weights[index]
        used = np.flatnonzero(weight)
        first, stop = max(start + int(used[0]), 0), min(start + int(used[-1]) + 1, axis.size)
        if stop <= first:
            return  # the tile lies wholly in the reflected border
        slices.append(slice(first, stop))
        sources.append(slice(first - start, stop - start))
        shares.append(weight[first - start : stop - start])
    weight = shares[0][:, np.newaxis] * shares[1]
    for label, part in enumerate(values[:, sources[0], sources[1]]):
        out[label, slices[0], slices[1]] += part * weight  # label by label keeps temporaries small
