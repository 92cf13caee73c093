"""Which pixels calibrate an int8 network and which judge it: upper and lower halves, so none does both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from acq_isl.errors import StackRefused
from acq_isl.manifest import Manifest
from acq_isl.processing.normalize import inverse_contrast
from acq_isl.processing.tiling import TileRule, cut, plan_tiles
from acq_isl.stack import Float32Image, Uint16Image, ZStack

_TILE_PX = 256
_MOST_TILES = 48

Tiles = list[tuple[Uint16Image, Float32Image]]
"""Each (1, z, h, w) uint16 with (1,) float32, 1 / contrast of its stack."""


def split_in_two(stacks: Sequence[ZStack]) -> tuple[tuple[ZStack, ...], tuple[ZStack, ...]]:
    """Upper and lower rows of every stack; StackRefused if there is no stack, or one with a single row."""
    if not stacks:
        raise StackRefused(
            "int8 cannot be calibrated or judged without stacks",
            wanted="z-stacks of your own specimens",
            fix="name one or more of them, or use another precision, such as --precision fp16 for TensorRT",
        )
    upper, lower = zip(*(_split(stack) for stack in stacks), strict=True)
    return upper, lower


def _split(stack: ZStack) -> tuple[ZStack, ZStack]:
    rows, columns = stack.info.shape
    middle = rows // 2
    if middle < 1:
        raise StackRefused(f"stack {stack.info.key} has a single row", fix="give a whole field of view")

    def part(pixels: Uint16Image) -> ZStack:
        info = replace(stack.info, shape=(pixels.shape[1], columns))
        return ZStack(info, np.ascontiguousarray(pixels), stack.captured_s)

    return part(stack.pixels[:, :middle]), part(stack.pixels[:, middle:])


def calibration_tiles(stacks: Sequence[ZStack], manifest: Manifest) -> Tiles:
    """At most 48 tiles spread evenly over all stacks."""
    rule = TileRule(manifest.min_tile_px, manifest.halo_px, manifest.size_step_px)
    found = []
    for stack in stacks:
        contrast = inverse_contrast(stack.pixels, manifest.high_pass_um / manifest.pixel_size_um)
        plan = plan_tiles(stack.info.shape, rule, tile_px=_TILE_PX)
        found += [(stack.pixels, plan, tile, np.full(1, contrast, np.float32)) for tile in plan.tiles]
    picks = np.unique(np.linspace(0, len(found) - 1, min(len(found), _MOST_TILES)).round().astype(int))
    chosen = (found[pick] for pick in picks)
    return [(cut(pixels, plan, (tile,)), inv_sd) for pixels, plan, tile, inv_sd in chosen]
