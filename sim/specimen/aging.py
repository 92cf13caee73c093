"""A region of a living culture at a later time: cells have moved, neurites grown, cells fallen apart."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from acq_isl.experiment.simulated import Life
from acq_isl.sim.specimen.cells import (
    RADII_UM,
    REACH_UM,
    REGION_UM,
    STEP_UM,
    Beads,
    Cell,
    Floats,
    Region,
    Strokes,
    join,
    select,
)
from acq_isl.sim.specimen.culture import (
    Fates,
    Moment,
    compute_drift_um,
    compute_duration_s,
    compute_onset_s,
    draw_fates,
    make_random,
)
from acq_isl.sim.specimen.neurites import walk

_HOUR_S = 3600.0
_FOLLOW_UM = 40.0  # along a neurite the soma's movement is felt this far
_MOST_GROWTH_UM = {"axon": 100.0, "dendrite": 20.0}
_DENDRITE_PACE = 0.2
_PIECE_UM = 2.5
_TABLE = 1 << 16


@dataclass(frozen=True, slots=True, eq=False)
class AgedRegion:
    """A region at one time; progress of dying, (cell,) float64, is below 0 alive, from 1 on dead."""

    region: Region
    progress: Floats


def age_region(region: Region, seed: int, life: Life, now: Moment | None) -> AgedRegion:
    """A region as drawn for time 0, at ``now``; None is time 0 with nobody dying."""
    if now is None or not region.cells:
        return AgedRegion(region, np.full(len(region.cells), -np.inf))
    fates = draw_fates(seed, region)
    began_s = compute_onset_s(fates, region, life, now)
    progress = (now.time_s - began_s) / compute_duration_s(fates, life)
    # What is dying neither crawls nor grows.
    awake_s = np.clip(began_s, 0.0, now.time_s)
    moved = compute_drift_um(fates, life, awake_s) if life.drift_um_h else np.zeros((2, len(awake_s)))
    cells = tuple(
        _age_cell(cell, x, y, p) for cell, y, x, p in zip(region.cells, *moved, progress, strict=True)
    )
    strokes = region.strokes
    if life.growth_um_h:
        strokes = _grow(strokes, make_random(seed, region, 1), life.growth_um_h * awake_s / _HOUR_S)
    strokes = _fragment(_carry(strokes, moved), progress, make_random(seed, region, 2))
    beads = join(_move_nucleoli(region, cells), _shed_blebs(region.cells, cells, fates, progress))
    return AgedRegion(Region(region.x, region.y, cells, _cut(strokes), beads), progress)


def _ease(value: NDArray[np.floating] | float) -> Floats:
    """0 below 0, 1 above 1, without a corner between."""
    part = np.clip(value, 0.0, 1.0)
    return np.asarray(part * part * (3 - 2 * part), np.float64)


def _age_cell(cell: Cell, dx: float, dy: float, progress: float) -> Cell:
    """A dying soma rounds up and shrinks, its nucleus condenses and shines, its stain for dendrites goes."""
    here = replace(cell, x=cell.x + dx, y=cell.y + dy)
    if progress <= 0:
        return here
    gone, mean = float(_ease(progress)), float(np.sqrt(cell.long * cell.short))

    def towards(now: float, end: float) -> float:
        return (1 - gone) * now + gone * end

    long, short = towards(cell.long, 0.6 * mean), towards(cell.short, 0.55 * mean)
    thickness = towards(cell.thickness, 1.1 * mean)
    shrunken = cell.long * cell.short * cell.thickness / (long * short * thickness)
    ruffled = 1 + 10 * gone * (1 - gone)  # blebs, in the middle of it
    return replace(
        here, long=long, short=short, thickness=thickness,
        # Water leaves, dry mass stays for the most part, so the index rises.
        index=cell.index * shrunken**0.6, nucleus=towards(cell.nucleus * mean, 0.4 * mean) / long,
        nucleus_index=towards(cell.nucleus_index, 0.012), dna=towards(cell.dna, 1.15),
        mtubules=cell.mtubules * (1 - 0.75 * gone), dead=float(_ease((progress - 0.2) / 0.6)),
        wobble=(*(ruffled * w for w in cell.wobble[:3]), *cell.wobble[3:]),
    )  # fmt: skip


def _of_owner(strokes: Strokes, of_cell: NDArray[np.floating], otherwise: float) -> Floats:
    """A value of the cell that each point belongs to."""
    return np.where(strokes.cell >= 0, of_cell[strokes.cell], otherwise)


def _carry(strokes: Strokes, moved: Floats) -> Strokes:
    felt = np.exp(-strokes.along / _FOLLOW_UM)
    y, x = (_of_owner(strokes, along, 0.0) * felt for along in moved)
    return replace(strokes, x=(strokes.x + x).astype(np.float32), y=(strokes.y + y).astype(np.float32))


def _grow(strokes: Strokes, rng: np.random.Generator, grown_um: Floats) -> Strokes:
    """Paths of cells go on where they ended, as far as each cell has grown."""
    ends = np.flatnonzero(np.diff(strokes.path, append=-1) & (strokes.cell >= 0))
    before = np.maximum(ends - 4, 0)
    before = np.where(strokes.path[before] == strokes.path[ends], before, ends - 1)
    angle = np.arctan2(strokes.y[ends] - strokes.y[before], strokes.x[ends] - strokes.x[before])
    is_axon = strokes.axon[ends] > strokes.dendrite[ends]
    most = np.where(is_axon, _MOST_GROWTH_UM["axon"], _MOST_GROWTH_UM["dendrite"])
    start = np.stack([strokes.x[ends], strokes.y[ends]], axis=1).astype(np.float64)
    # Walked to the full length at any time, so that a tip goes on where it went before.
    walks = walk(rng, start, angle.astype(np.float64), most, 8.0)
    pace = np.where(is_axon, 1.0, _DENDRITE_PACE) * grown_um[strokes.cell[ends]]
    length_um = STEP_UM * np.arange(1, walks.x.shape[1] + 1)
    path, step = np.nonzero(walks.exists & (length_um[None] <= pace[:, None]))
    tip = ends[path]
    added = select(strokes, tip)
    columns = (walks.x[path, step], walks.y[path, step], strokes.along[tip] + length_um[step])
    x, y, along = (column.astype(np.float32) for column in columns)
    return join(strokes, replace(added, x=x, y=y, along=along))


def _fragment(strokes: Strokes, progress: Floats, rng: np.random.Generator) -> Strokes:
    """Neurites of dying cells swell into beads with gaps between; those of dead ones vanish by and by."""
    dice, dying = rng.random(_TABLE), _of_owner(strokes, progress, -1.0)
    if not (dying > 0).any():
        return strokes
    piece = np.floor(strokes.along / _PIECE_UM).astype(np.int64)
    luck = dice[(strokes.path * 131 + piece) % _TABLE]
    broken = _ease(dying)
    within = np.abs(strokes.along / _PIECE_UM - piece - 0.5)
    there = (luck > 0.75 * broken + 0.25 * np.clip((dying - 1) / 4, 0, 1)) & (within < 0.5 - 0.25 * broken)
    there |= dying <= 0
    swollen = strokes.radius + ((broken > 0.4) & (strokes.radius < len(RADII_UM) - 1))
    pale = 1 - 0.5 * broken
    left = select(strokes, there)
    dendrite, axon = ((stain * pale[there]).astype(np.float32) for stain in (left.dendrite, left.axon))
    return replace(left, radius=swollen[there].astype(np.uint8), dendrite=dendrite, axon=axon)


def _cut(strokes: Strokes) -> Strokes:
    low, high = np.minimum(strokes.x, strokes.y), np.maximum(strokes.x, strokes.y)
    inside = (low > -REACH_UM) & (high < REGION_UM + REACH_UM)
    return select(strokes, inside)


def _move_nucleoli(region: Region, cells: tuple[Cell, ...]) -> Beads:
    """Nucleoli stay where they are in their cell."""
    beads, owned = region.beads, region.beads.cell >= 0
    owner = beads.cell[owned]
    scale = np.array([new.long / old.long for new, old in zip(cells, region.cells, strict=True)])[owner]
    old, new = (np.array([(cell.x, cell.y) for cell in some])[owner].T for some in (region.cells, cells))
    place = np.stack([beads.x, beads.y])
    place[:, owned] = new + (place[:, owned] - old) * scale
    return replace(beads, x=place[0], y=place[1])


def _shed_blebs(before: tuple[Cell, ...], now: tuple[Cell, ...], fates: Fates, progress: Floats) -> Beads:
    """Blebs about dying cells, (bleb,) spheres of dense matter."""
    dying = np.flatnonzero(progress > 0.1)
    angle, far, size = (column[dying] for column in fates.blebs)
    here = [now[number] for number in dying]
    x, y, long = np.array([(cell.x, cell.y, cell.long) for cell in here]).reshape(-1, 3).T[:, :, None]
    radius = np.broadcast_to(size * _ease((progress[dying, None] - 0.1) / 0.5), angle.shape)
    optical = np.array([before[number].index for number in dying])[:, None] * 2.5
    layer = np.array([cell.layer for cell in here], np.uint8)[:, None]
    columns = {
        "x": x + far * long * np.cos(angle),
        "y": y + far * long * np.sin(angle),
        "radius": radius,
        "index": optical,
        "layer": layer,
        "cell": dying[:, None].astype(np.int32),
    }
    flat = {name: np.broadcast_to(column, angle.shape).ravel() for name, column in columns.items()}
    none = np.zeros(angle.size)
    return Beads(**flat, dna=none, mtubules=none, dead=none)
