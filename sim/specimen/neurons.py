"""Which cells lie where: the objects of one square of an endless, seeded neuron culture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from acq_isl.sim.specimen.cells import REGION_UM, Beads, Cell, Culture, Floats, Region, to_seed
from acq_isl.sim.specimen.neurites import grow_neurites


def grow_region(seed: int, column: int, row: int, culture: Culture) -> Region:
    """Draw the objects of one region; the same arguments always give the same objects.

    The region covers x from ``column * REGION_UM`` and y from ``row * REGION_UM``.
    """
    rng = np.random.default_rng([seed, to_seed(column), to_seed(row)])
    origin = np.array([column * REGION_UM, row * REGION_UM])
    places = _place_neurons(rng, culture.density) + origin
    neurons = tuple(_draw_neuron(rng, x, y, culture) for x, y in places)
    glia = tuple(
        _draw_glia(rng, origin + rng.uniform(0, REGION_UM, 2), culture) for _ in range(rng.poisson(10))
    )
    strokes = grow_neurites(rng, neurons, origin, culture)
    return Region(origin[0], origin[1], neurons + glia, strokes, _draw_beads(rng, neurons, origin, culture))


def _place_neurons(rng: np.random.Generator, density: float) -> Floats:
    """Neurons stand in clusters of very different size, touching each other, with a few alone."""
    candidates: list[Floats] = [rng.uniform(0, REGION_UM, (rng.poisson(14 * density), 2))]
    for _ in range(rng.poisson(9 * density)):
        count = int(np.clip(rng.lognormal(2.1, 0.8), 2, 45))
        aspect, angle = rng.uniform(1, 4), rng.uniform(0, np.pi)
        # An ellipse with 60 um^2 per cell; candidates that come too close are left out below.
        axes = np.sqrt(count * 60.0 / np.pi) * np.array([np.sqrt(aspect), 1 / np.sqrt(aspect)])
        radius, turn = np.sqrt(rng.random(2 * count)), rng.uniform(0, 2 * np.pi, 2 * count)
        local = axes * np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        candidates.append(rng.uniform(0, REGION_UM, 2) + local @ rotation)
    chosen: list[Floats] = []
    for place in np.concatenate(candidates):
        distance = rng.uniform(6.0, 9.0)
        if not chosen or np.min(np.sum((np.array(chosen) - place) ** 2, axis=1)) > distance**2:
            chosen.append(place)
    return np.array(chosen).reshape(-1, 2)


def _draw_wobble(rng: np.random.Generator, amount: float) -> tuple[float, ...]:
    return tuple(rng.normal(0, amount, 3) / (1.0, 1.4, 2.0)) + tuple(rng.uniform(0, 2 * np.pi, 3))


def _draw_neuron(rng: np.random.Generator, x: float, y: float, culture: Culture) -> Cell:
    long = rng.uniform(4.2, 6.3)
    return Cell(
        x, y, long, long * rng.uniform(0.6, 0.95), rng.uniform(0, np.pi),
        thickness=rng.uniform(5, 9), index=culture.index * rng.uniform(0.007, 0.02),
        layer=int(rng.choice(3, p=(0.25, 0.5, 0.25))), nucleus=rng.uniform(0.62, 0.8),
        nucleus_index=culture.index * rng.uniform(-0.006, 0.002), dna=rng.uniform(0.35, 0.75),
        mtubules=rng.uniform(0.45, 0.95), wobble=_draw_wobble(rng, 0.05),
    )  # fmt: skip


def _draw_glia(rng: np.random.Generator, place: Floats, culture: Culture) -> Cell:
    long = rng.uniform(11, 24)
    return Cell(
        float(place[0]), float(place[1]), long, long * rng.uniform(0.5, 0.95), rng.uniform(0, np.pi),
        thickness=rng.uniform(0.6, 1.6), index=culture.index * rng.uniform(0.006, 0.014), layer=0,
        nucleus=rng.uniform(0.3, 0.45), nucleus_index=culture.index * 0.003, dna=rng.uniform(0.08, 0.25),
        mtubules=rng.uniform(0.02, 0.12), wobble=_draw_wobble(rng, 0.13),
    )  # fmt: skip


def _draw_beads(
    rng: np.random.Generator, neurons: tuple[Cell, ...], origin: Floats, culture: Culture
) -> Beads:
    rows: list[Floats] = []
    cells: list[int] = []
    for count, low, high in ((420, 0.2, 0.6), (48, 0.7, 2.0)):
        n = int(rng.poisson(count * culture.debris))
        place = origin + rng.uniform(0, REGION_UM, (n, 2))
        radius, index = rng.uniform(low, high, n), rng.uniform(0.03, 0.08, n)
        rows.append(make_rows(place, radius, index, rng.choice(3, n)))
    for _ in range(int(rng.poisson(14 * culture.debris))):
        rows.append(draw_remains(rng, origin + rng.uniform(0, REGION_UM, 2)))
    loose = sum(map(len, rows))
    for number, cell in enumerate(neurons):
        n = int(rng.integers(1, 4))
        cells += [number] * n
        place = np.array([cell.x, cell.y]) + rng.normal(0, 0.22 * cell.short, (n, 2))
        rows.append(make_rows(place, rng.uniform(0.5, 0.9, n), np.full(n, 0.02), cell.layer))
    table = np.concatenate(rows)
    x, y, radius, index, layer, dna, mtubules = table.T
    owner = np.array([-1] * loose + cells, np.int32)
    # Only the nuclei of dead cells hold DNA here; the stain for dead cells shows the same.
    return Beads(
        x, y, radius, culture.index * index, layer.astype(np.uint8), dna, mtubules, dna.clip(0, 1), owner
    )


def make_rows(place: Floats, radius: Floats, index: Floats, layer: int | NDArray[np.int64]) -> Floats:
    """Beads without any stain: x, y, radius, index, layer, and two zeros."""
    n = len(place)
    return np.column_stack([place, radius, index, np.broadcast_to(layer, n), np.zeros((n, 2))])


def draw_remains(rng: np.random.Generator, place: Floats) -> Floats:
    """A shrunken ball with a bright, compact nucleus and lumps of condensed matter."""
    size, layer = rng.uniform(2.1, 4.6), rng.integers(0, 3)
    ball = [*place, size, rng.uniform(0.012, 0.03), layer, 0.0, rng.uniform(0.3, 0.9)]
    middle = place + rng.normal(0, 0.15 * size, 2)
    nucleus = [*middle, 0.65 * size, 0.008, layer, rng.uniform(0.8, 1.3), 0.0]
    n = int(rng.integers(4, 17))
    around = place + rng.normal(0, 0.5 * size, (n, 2))
    lumps = make_rows(around, rng.uniform(0.3, 1.1, n), rng.uniform(0.02, 0.06, n), int(layer))
    return np.vstack([ball, nucleus, lumps])
