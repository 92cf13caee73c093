"""Dendrites, axons and bundles as random walks with correlated curvature."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.sim.specimen.cells import RADII_UM, REACH_UM, REGION_UM, STEP_UM, Cell, Culture, Floats, Strokes


@dataclass(frozen=True, slots=True, eq=False)
class _Walks:
    """Paths of many neurites: (path, step) positions, which steps exist; (path,) whose they are.

    ``cell`` is -1 where no cell of the region is at the other end; ``start_um`` is how far from the soma a
    path begins.
    """

    x: Floats
    y: Floats
    exists: NDArray[np.bool_]
    cell: NDArray[np.int64]
    start_um: Floats

    def along(self) -> Floats:
        """Fraction of each path's length, (path, step)."""
        total = np.maximum(self.exists.sum(axis=1, keepdims=True), 1)
        fraction: Floats = np.arange(self.x.shape[1])[None] / total
        return fraction


def walk(rng: np.random.Generator, start: Floats, angle: Floats, length_um: Floats, calm: float) -> _Walks:
    """Random walks with correlated curvature, in steps of `STEP_UM`, from (path, 2) starts; nobody's yet."""
    steps = max(int(length_um.max(initial=0) / STEP_UM), 1)
    kicks = rng.normal(0, 0.0127 / calm, (steps, len(start)))
    curvature, heading = np.zeros(len(start)), angle.copy()
    headings = np.empty((steps, len(start)))
    for step in range(steps):
        curvature = 0.97 * curvature + kicks[step]
        heading = heading + curvature
        headings[step] = heading
    x = start[:, :1] + STEP_UM * np.cumsum(np.cos(headings), axis=0).T
    y = start[:, 1:] + STEP_UM * np.cumsum(np.sin(headings), axis=0).T
    exists = np.arange(steps)[None] < (length_um / STEP_UM)[:, None]
    return _Walks(x, y, exists, np.full(len(start), -1), np.zeros(len(start)))


def grow_neurites(
    rng: np.random.Generator, neurons: tuple[Cell, ...], origin: Floats, culture: Culture
) -> Strokes:
    """Dendrites, twigs, axons, passing axons and bundles of one region with its corner at ``origin``."""
    parts = []
    dendrites, thick = _grow_dendrites(rng, neurons)
    twigs, thin = _grow_twigs(rng, dendrites)
    for walks, start in ((dendrites, thick), (twigs, thin)):
        radius = np.clip(start[:, None] - np.floor(2.5 * walks.along()), 0, 5)
        parts.append(_ink(rng, walks, radius, (rng.uniform(0.3, 0.7), rng.uniform(0.05, 0.2))))
    for walks, axon in _grow_axons(rng, neurons, origin):
        radius = np.broadcast_to(rng.choice(4, (len(walks.x), 1), p=(0.15, 0.35, 0.35, 0.15)), walks.x.shape)
        parts.append(_ink(rng, walks, radius, (rng.uniform(0.0, 0.08), axon)))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    x, y, radius, layer, index, dendrite, axon_weight, begins, cell, along = columns
    x, y = x - origin[0], y - origin[1]
    inside = (np.minimum(x, y) > -REACH_UM) & (np.maximum(x, y) < REGION_UM + REACH_UM)
    wide = (x, y, culture.index * index, dendrite, axon_weight, along)
    singles = [column[inside].astype(np.float32) for column in wide]
    small = [column[inside].astype(np.uint8) for column in (radius, layer)]
    path, owner = (column[inside].astype(np.int32) for column in (np.cumsum(begins), cell))
    names = ("x", "y", "index", "dendrite", "axon", "along")
    return Strokes(
        radius=small[0], layer=small[1], path=path, cell=owner, **dict(zip(names, singles, strict=True))
    )


def _grow_dendrites(rng: np.random.Generator, neurons: tuple[Cell, ...]) -> tuple[_Walks, Floats]:
    count = rng.integers(1, 5, len(neurons))
    owner = np.repeat(np.arange(len(neurons)), count)
    angle = rng.uniform(0, 2 * np.pi, len(owner))
    place = np.array([(cell.x, cell.y) for cell in neurons]).reshape(-1, 2)[owner]
    rim = np.array([0.7 * cell.short for cell in neurons])[owner]
    start = place + rim[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    length = rng.uniform(15, 75, len(owner))
    walks = replace(walk(rng, start, angle, length, 5.0), cell=owner, start_um=rim)
    return walks, rng.choice((2.0, 3.0, 4.0, 5.0), len(owner), p=(0.25, 0.4, 0.3, 0.05))


def _grow_twigs(rng: np.random.Generator, parents: _Walks) -> tuple[_Walks, Floats]:
    which = rng.integers(0, max(len(parents.x), 1), int(0.8 * len(parents.x)))
    last = parents.exists.sum(axis=1)[which]
    at = (rng.uniform(0.2, 0.8, len(which)) * last).astype(int)
    x, y = parents.x[which, at], parents.y[which, at]
    ahead = np.minimum(at + 1, parents.x.shape[1] - 1)
    angle = np.arctan2(parents.y[which, ahead] - y, parents.x[which, ahead] - x)
    angle = angle + rng.choice((-1, 1), len(which)) * rng.uniform(0.4, 1.1, len(which))
    start = np.stack([x, y], axis=1)
    walks = walk(rng, start, angle, rng.uniform(8, 40, len(which)), 3.0)
    owned = replace(walks, cell=parents.cell[which], start_um=parents.start_um[which] + STEP_UM * at)
    return owned, np.full(len(which), 2.0)


def _grow_axons(
    rng: np.random.Generator, neurons: tuple[Cell, ...], origin: Floats
) -> list[tuple[_Walks, float]]:
    place = np.array([(cell.x, cell.y) for cell in neurons]).reshape(-1, 2)
    own = walk(rng, place, rng.uniform(0, 2 * np.pi, len(place)), rng.uniform(60, 230, len(place)), 8.0)
    own = replace(own, cell=np.arange(len(place)))
    passing_count = int(rng.poisson(50))
    passing = walk(
        rng, origin + rng.uniform(0, REGION_UM, (passing_count, 2)),
        rng.uniform(0, 2 * np.pi, passing_count), rng.uniform(40, 260, passing_count), 8.0,
    )  # fmt: skip
    result = [(own, rng.uniform(0.5, 0.9)), (passing, rng.uniform(0.3, 0.9))]
    trunks = int(rng.integers(4, 16))
    trunk = walk(
        rng, origin + rng.uniform(0, REGION_UM, (trunks, 2)), rng.uniform(0, 2 * np.pi, trunks),
        rng.uniform(120, 300, trunks), 14.0,
    )  # fmt: skip
    for _ in range(int(rng.integers(3, 10))):
        result.append((_bundle(rng, trunk), rng.uniform(0.7, 1.0)))
    return result


def _bundle(rng: np.random.Generator, trunk: _Walks) -> _Walks:
    """A copy of each path that wanders 0.3-0.9 um about it, as axons do in a bundle."""
    paths, steps = trunk.x.shape
    knots = rng.normal(0, 0.6, (2, paths, steps // 60 + 2))
    at = np.arange(steps) / 60
    offset = np.array([[np.interp(at, np.arange(k.size), k) for k in axis] for axis in knots])
    along = trunk.along()
    joins, leaves = rng.uniform(0, 0.35, (paths, 1)), rng.uniform(0.6, 1.0, (paths, 1))
    exists = trunk.exists & (along >= joins) & (along < leaves)
    return replace(trunk, x=trunk.x + offset[0], y=trunk.y + offset[1], exists=exists)


def _ink(
    rng: np.random.Generator, walks: _Walks, radius: NDArray[np.floating], labels: tuple[float, float]
) -> tuple[NDArray[Any], ...]:
    """Flat arrays of the existing points: x, y, radius class, layer, index, dendrite, axon, and
    whether a path begins, whose it is, and how far along it.
    """
    paths, steps = walks.x.shape
    layer = np.broadcast_to(rng.choice(3, (paths, 1), p=(0.45, 0.35, 0.2)), walks.x.shape)
    beads = 1 + 0.5 * np.repeat(rng.normal(size=(paths, steps // 7 + 1)), 7, axis=1)[:, :steps]
    index = rng.uniform(0.014, 0.024, (paths, 1)) * np.clip(beads, 0.3, 2.2)
    bright = rng.uniform(0.5, 1.1, (paths, 1))
    # Thin ends of dendrites hold little of the stain.
    begins = walks.exists & (np.cumsum(walks.exists, axis=1) == 1)
    thick = np.minimum(np.asarray(RADII_UM)[radius.astype(int)] / 0.9, 1.0)
    along = walks.start_um[:, None] + STEP_UM * np.arange(steps)
    inked = (radius, layer, index, bright * labels[0] * thick, bright * labels[1])
    columns: tuple[NDArray[Any], ...] = (walks.x, walks.y, *inked, begins, walks.cell[:, None], along)
    return tuple(np.broadcast_to(column, walks.x.shape)[walks.exists] for column in columns)
