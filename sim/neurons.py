"""Which cells lie where: the objects of one square of an endless, seeded neuron culture, in micrometres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Bytes = NDArray[np.uint8]

REGION_UM = 307.2
"""Edge of a region; objects are drawn per region, from its own random numbers."""
REACH_UM = 140.0
"""No object extends further than this beyond the region it belongs to."""
LAYER_HEIGHTS_UM = (1.33, 4.0, 6.67)
"""Heights above the glass at which matter is thought to lie, lowest first."""
RADII_UM = (0.18, 0.28, 0.42, 0.65, 1.0, 1.5)
"""Radius classes of neurites."""
STEP_UM = 0.3


@dataclass(frozen=True, slots=True)
class Culture:
    """How dense and how optically strong the culture is; 1 is the ordinary amount.

    Parameters
    ----------
    density : float
        Neurons per area.
    debris : float
        Beads, droplets and dead cells per area.
    carpet : float
        Path of the unresolved layer of fine processes on the glass.
    index : float
        Refractive index differences of all matter.
    height : float
        Heights of the layers.
    """

    density: float = 1.0
    debris: float = 1.0
    carpet: float = 1.0
    index: float = 1.0
    height: float = 1.0


@dataclass(frozen=True, slots=True)
class Cell:
    """A soma with its nucleus, or the flat disc of a glial cell. Lengths in um, angle in radians."""

    x: float
    y: float
    long: float
    short: float
    angle: float
    thickness: float
    index: float
    layer: int
    nucleus: float
    """Size of the nucleus relative to the soma."""
    nucleus_index: float
    """Index difference of the nucleus relative to the cytoplasm."""
    dna: float
    """Brightness of the nuclear stain, 0..1."""
    mtubules: float
    """Brightness of the dendrite stain in the soma, 0..1."""
    wobble: tuple[float, ...]
    """Amplitudes and phases of the outline's second to fourth harmonic."""


@dataclass(frozen=True, slots=True, eq=False)
class Strokes:
    """Points along all neurites, `STEP_UM` apart, relative to the region's corner; arrays of one length."""

    x: Singles
    y: Singles
    radius: Bytes
    layer: Bytes
    index: Singles
    dendrite: Singles
    axon: Singles


@dataclass(frozen=True, slots=True, eq=False)
class Beads:
    """Spheres: debris, droplets, lumps of dead cells, nucleoli; arrays of one length."""

    x: Floats
    y: Floats
    radius: Floats
    index: Floats
    layer: Bytes
    dna: Floats
    mtubules: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Everything whose middle or origin lies in one square of the plane with its corner at (x, y) um."""

    x: float
    y: float
    cells: tuple[Cell, ...]
    strokes: Strokes
    beads: Beads


def grow_region(seed: int, column: int, row: int, culture: Culture) -> Region:
    """Draw the objects of one region; the same arguments always give the same objects.

    Parameters
    ----------
    seed : int
    column, row : int
        The region covers x from ``column * REGION_UM`` and y from ``row * REGION_UM``.
    culture : Culture
    """
    rng = np.random.default_rng([seed, _natural(column), _natural(row)])
    origin = np.array([column * REGION_UM, row * REGION_UM])
    places = _places(rng, culture.density) + origin
    neurons = tuple(_neuron(rng, x, y, culture) for x, y in places)
    glia = tuple(_glia(rng, origin + rng.uniform(0, REGION_UM, 2), culture) for _ in range(rng.poisson(10)))
    strokes = _strokes(rng, neurons, origin, culture)
    return Region(origin[0], origin[1], neurons + glia, strokes, _beads(rng, neurons, origin, culture))


def _natural(value: int) -> int:
    return 2 * value if value >= 0 else -2 * value - 1


def _places(rng: np.random.Generator, density: float) -> Floats:
    """Neurons stand in clusters of very different size, with a few alone."""
    wanted: list[Floats] = [rng.uniform(0, REGION_UM, (rng.poisson(14 * density), 2))]
    for _ in range(rng.poisson(10 * density)):
        count = int(rng.integers(2, 17))
        aspect, angle = rng.uniform(1, 4), rng.uniform(0, np.pi)
        spread = 5.0 * np.sqrt(count) * np.array([np.sqrt(aspect), 1 / np.sqrt(aspect)])
        local = rng.normal(size=(count, 2)) * spread * 0.6
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        wanted.append(rng.uniform(0, REGION_UM, 2) + local @ turn)
    kept: list[Floats] = []
    for place in np.clip(np.concatenate(wanted), 0, REGION_UM):
        distance = rng.uniform(6.0, 9.5)
        if not kept or np.min(np.sum((np.array(kept) - place) ** 2, axis=1)) > distance**2:
            kept.append(place)
    return np.array(kept).reshape(-1, 2)


def _wobble(rng: np.random.Generator, amount: float) -> tuple[float, ...]:
    return tuple(rng.normal(0, amount, 3) / (1.0, 1.4, 2.0)) + tuple(rng.uniform(0, 2 * np.pi, 3))


def _neuron(rng: np.random.Generator, x: float, y: float, culture: Culture) -> Cell:
    long = rng.uniform(4.2, 6.3)
    return Cell(
        x, y, long, long * rng.uniform(0.6, 0.95), rng.uniform(0, np.pi),
        thickness=rng.uniform(5, 9), index=culture.index * rng.uniform(0.007, 0.02),
        layer=int(rng.choice(3, p=(0.25, 0.5, 0.25))), nucleus=rng.uniform(0.62, 0.8),
        nucleus_index=culture.index * rng.uniform(-0.006, 0.002), dna=rng.uniform(0.35, 0.75),
        mtubules=rng.uniform(0.35, 0.9), wobble=_wobble(rng, 0.05),
    )  # fmt: skip


def _glia(rng: np.random.Generator, place: Floats, culture: Culture) -> Cell:
    long = rng.uniform(11, 24)
    return Cell(
        float(place[0]), float(place[1]), long, long * rng.uniform(0.5, 0.95), rng.uniform(0, np.pi),
        thickness=rng.uniform(0.6, 1.6), index=culture.index * rng.uniform(0.006, 0.014), layer=0,
        nucleus=rng.uniform(0.3, 0.45), nucleus_index=culture.index * 0.003, dna=rng.uniform(0.08, 0.25),
        mtubules=rng.uniform(0.02, 0.12), wobble=_wobble(rng, 0.13),
    )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class _Walks:
    """Paths of many neurites at once: (path, step) positions, and which steps exist."""

    x: Floats
    y: Floats
    exists: NDArray[np.bool_]

    def along(self) -> Floats:
        """Fraction of each path's length, (path, step)."""
        total = np.maximum(self.exists.sum(axis=1, keepdims=True), 1)
        return np.arange(self.x.shape[1])[None] / total


def _walk(rng: np.random.Generator, start: Floats, angle: Floats, length_um: Floats, calm: float) -> _Walks:
    """Random walks with correlated curvature, in steps of `STEP_UM`, from (path, 2) starts."""
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
    return _Walks(x, y, np.arange(steps)[None] < (length_um / STEP_UM)[:, None])


def _strokes(
    rng: np.random.Generator, neurons: tuple[Cell, ...], origin: Floats, culture: Culture
) -> Strokes:
    parts = []
    dendrites, thick = _dendrites(rng, neurons)
    twigs, thin = _twigs(rng, dendrites)
    for walks, start in ((dendrites, thick), (twigs, thin)):
        radius = np.clip(start[:, None] - np.floor(2.5 * walks.along()), 0, 5)
        parts.append(_ink(rng, walks, radius, (rng.uniform(0.7, 1.0), rng.uniform(0.05, 0.2))))
    for walks, axon in _axons(rng, neurons, origin):
        radius = np.broadcast_to(rng.choice(3, (len(walks.x), 1), p=(0.35, 0.4, 0.25)), walks.x.shape)
        parts.append(_ink(rng, walks, radius, (rng.uniform(0.05, 0.15), axon)))
    x, y, radius, layer, index, dendrite, axon_weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    x, y = x - origin[0], y - origin[1]
    inside = (np.minimum(x, y) > -REACH_UM) & (np.maximum(x, y) < REGION_UM + REACH_UM)
    singles = [column[inside].astype(np.float32) for column in (x, y, culture.index * index, dendrite, axon_weight)]
    small = [column[inside].astype(np.uint8) for column in (radius, layer)]
    return Strokes(*singles[:2], *small, *singles[2:])


def _dendrites(rng: np.random.Generator, neurons: tuple[Cell, ...]) -> tuple[_Walks, Floats]:
    count = rng.integers(2, 6, len(neurons))
    owner = np.repeat(np.arange(len(neurons)), count)
    angle = rng.uniform(0, 2 * np.pi, len(owner))
    place = np.array([(cell.x, cell.y) for cell in neurons]).reshape(-1, 2)[owner]
    rim = np.array([0.7 * cell.short for cell in neurons])[owner]
    start = place + rim[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    length = rng.uniform(15, 75, len(owner))
    return _walk(rng, start, angle, length, 5.0), rng.choice((3.0, 4.0, 5.0), len(owner), p=(0.55, 0.38, 0.07))


def _twigs(rng: np.random.Generator, parents: _Walks) -> tuple[_Walks, Floats]:
    which = rng.integers(0, max(len(parents.x), 1), int(0.8 * len(parents.x)))
    last = parents.exists.sum(axis=1)[which]
    at = (rng.uniform(0.2, 0.8, len(which)) * last).astype(int)
    x, y = parents.x[which, at], parents.y[which, at]
    ahead = np.minimum(at + 1, parents.x.shape[1] - 1)
    angle = np.arctan2(parents.y[which, ahead] - y, parents.x[which, ahead] - x)
    angle = angle + rng.choice((-1, 1), len(which)) * rng.uniform(0.4, 1.1, len(which))
    start = np.stack([x, y], axis=1)
    return _walk(rng, start, angle, rng.uniform(8, 40, len(which)), 3.0), np.full(len(which), 2.0)


def _axons(
    rng: np.random.Generator, neurons: tuple[Cell, ...], origin: Floats
) -> list[tuple[_Walks, float]]:
    place = np.array([(cell.x, cell.y) for cell in neurons]).reshape(-1, 2)
    own = _walk(rng, place, rng.uniform(0, 2 * np.pi, len(place)), rng.uniform(60, 230, len(place)), 8.0)
    passing_count = int(rng.poisson(90))
    passing = _walk(
        rng, origin + rng.uniform(0, REGION_UM, (passing_count, 2)),
        rng.uniform(0, 2 * np.pi, passing_count), rng.uniform(40, 260, passing_count), 8.0,
    )  # fmt: skip
    result = [(own, rng.uniform(0.5, 0.9)), (passing, rng.uniform(0.3, 0.9))]
    trunks = int(rng.integers(4, 16))
    trunk = _walk(
        rng, origin + rng.uniform(0, REGION_UM, (trunks, 2)), rng.uniform(0, 2 * np.pi, trunks),
        rng.uniform(120, 300, trunks), 14.0,
    )  # fmt: skip
    for _ in range(int(rng.integers(3, 10))):
        result.append((_beside(rng, trunk), rng.uniform(0.7, 1.0)))
    return result


def _beside(rng: np.random.Generator, trunk: _Walks) -> _Walks:
    """A copy of each path that wanders 0.3-0.9 um about it, as axons do in a bundle."""
    paths, steps = trunk.x.shape
    knots = rng.normal(0, 0.6, (2, paths, steps // 60 + 2))
    at = np.arange(steps) / 60
    offset = np.array([[np.interp(at, np.arange(k.size), k) for k in axis] for axis in knots])
    return _Walks(trunk.x + offset[0], trunk.y + offset[1], trunk.exists)


def _ink(
    rng: np.random.Generator, walks: _Walks, radius: NDArray[np.floating], labels: tuple[float, float]
) -> tuple[NDArray[np.floating], ...]:
    """Flat arrays of the existing points: x, y, radius class, layer, index, dendrite, axon."""
    paths, steps = walks.x.shape
    layer = np.broadcast_to(rng.choice(3, (paths, 1), p=(0.45, 0.35, 0.2)), walks.x.shape)
    beads = 1 + 0.5 * np.repeat(rng.normal(size=(paths, steps // 7 + 1)), 7, axis=1)[:, :steps]
    index = rng.uniform(0.014, 0.024, (paths, 1)) * np.clip(beads, 0.3, 2.2)
    bright = rng.uniform(0.5, 1.1, (paths, 1))
    columns = (walks.x, walks.y, radius, layer, index, bright * labels[0], bright * labels[1])
    return tuple(np.broadcast_to(column, walks.x.shape)[walks.exists] for column in columns)


def _beads(rng: np.random.Generator, neurons: tuple[Cell, ...], origin: Floats, culture: Culture) -> Beads:
    rows: list[Floats] = []
    for count, low, high in ((420, 0.2, 0.6), (48, 0.7, 2.0)):
        n = int(rng.poisson(count * culture.debris))
        place = origin + rng.uniform(0, REGION_UM, (n, 2))
        dark = np.zeros(n)
        rows.append(np.column_stack([place, rng.uniform(low, high, n), rng.uniform(0.03, 0.08, n),
                                     rng.choice(3, n), dark, dark]))  # fmt: skip
    for _ in range(int(rng.poisson(14 * culture.debris))):
        rows.append(_dead_cell(rng, origin + rng.uniform(0, REGION_UM, 2)))
    for cell in neurons:
        n = int(rng.integers(1, 4))
        place = (cell.x, cell.y) + rng.normal(0, 0.22 * cell.short, (n, 2))
        rows.append(np.column_stack([place, rng.uniform(0.5, 0.9, n), np.full(n, 0.02), np.full(n, cell.layer),
                                     np.zeros((n, 2))]))  # fmt: skip
    table = np.concatenate(rows)
    return Beads(table[:, 0], table[:, 1], table[:, 2], culture.index * table[:, 3], table[:, 4].astype(np.uint8),
                 table[:, 5], table[:, 6])  # fmt: skip


def _dead_cell(rng: np.random.Generator, place: Floats) -> Floats:
    """A shrunken ball with a bright, compact nucleus and lumps of condensed matter."""
    size, layer = rng.uniform(2.1, 4.6), rng.integers(0, 3)
    ball = [*place, size, rng.uniform(0.012, 0.03), layer, 0.0, rng.uniform(0.3, 0.9)]
    nucleus = [*(place + rng.normal(0, 0.15 * size, 2)), 0.65 * size, 0.008, layer, rng.uniform(0.8, 1.3), 0.0]
    n = int(rng.integers(4, 17))
    lumps = np.column_stack([place + rng.normal(0, 0.5 * size, (n, 2)), rng.uniform(0.3, 1.1, n),
                             rng.uniform(0.02, 0.06, n), np.full(n, layer), np.zeros((n, 2))])  # fmt: skip
    return np.vstack([ball, nucleus, lumps])
