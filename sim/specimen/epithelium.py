"""Which cells of an adherent, epithelial-like culture lie where, in micrometres; no pixels, no light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from acq_isl.sim.specimen.cells import REGION_UM, Beads, Floats, to_seed
from acq_isl.sim.specimen.neurons import draw_remains, make_rows

State = Literal["spread", "rounded", "metaphase", "anaphase"]

REACH_UM = 80.0
"""No cell extends further than this beyond the region that its middle lies in."""
HARMONICS = (2, 3, 4, 5)
"""Of the outline of a cell that has room."""
_STREAM = 6151  # apart from the random numbers of neurons
_WAVES = 32
_COVERED = ((0.0, 0.15, 0.41, 0.69, 0.94, 1.0), (0.0, 0.1, 0.3, 0.6, 0.9, 1.0))
"""Share of the glass that is covered, measured, and of that on which cells were seeded: they reach beyond."""
_APART = 0.72  # of the mean distance: the least one
_TRIES = 4


@dataclass(frozen=True, slots=True)
class Monolayer:
    """How much of the glass is covered, and by what.

    ``confluency`` is the share of the glass that living cells cover, 0 to 1; ``cell_um`` the distance of
    neighbours where they touch; ``mitotic``, ``rounded`` and ``dead`` are numbers relative to that of living
    cells; of ``debris``, ``granules``, ``index`` (of all matter) and ``height`` (of cells) 1 is ordinary.
    """

    confluency: float = 0.6
    cell_um: float = 24.0
    mitotic: float = 0.03
    rounded: float = 0.02
    dead: float = 0.04
    debris: float = 1.0
    granules: float = 1.0
    index: float = 1.0
    height: float = 1.0


@dataclass(frozen=True, slots=True)
class AdherentCell:
    """A living cell: outline where it has room, nucleus, thickness. Lengths in um, angles in radians."""

    x: float
    y: float
    angle: float
    long: float
    short: float
    wobble: tuple[float, ...]
    """Amplitudes of `HARMONICS`, then their phases."""
    nucleus_long: float
    nucleus_short: float
    thickness: float
    """Over the nucleus; of a round cell, its diameter."""
    lamella: float
    """Thickness away from the nucleus."""
    index: float
    nucleus_index: float
    """Index difference of the nucleus relative to the cytoplasm."""
    rim: float
    """Index of the nuclear envelope, as of a wall of 1 um."""
    dna: float
    """Brightness of the nuclear stain, 0..1."""
    state: State

    @property
    def is_round(self) -> bool:
        """Rounded up: it touches the glass in one place only."""
        return self.state != "spread"

    @property
    def divides(self) -> bool:
        """Its chromatin is condensed and there is no nucleus."""
        return self.state in ("metaphase", "anaphase")


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """All cells and spheres whose middle lies in one region of the plane."""

    cells: tuple[AdherentCell, ...]
    beads: Beads
    remains: tuple[int, ...]
    """Numbers, in ``beads``, of the nuclei of dead cells; each stands after the body it lies in."""


def grow_patch(seed: int, column: int, row: int, culture: Monolayer) -> Patch:
    """Draw the objects of one region; the same arguments always give the same objects."""
    rng = np.random.default_rng([seed, to_seed(column), to_seed(row), _STREAM])
    origin = np.array([column * REGION_UM, row * REGION_UM])
    places = _scatter(rng, culture.cell_um) + origin
    there = _is_inhabited(places, seed, rng, culture)
    cells = tuple(_draw_cell(rng, x, y, culture) for x, y in places[there])
    beads, remains = _draw_spheres(rng, cells, origin, culture)
    return Patch(cells, beads, remains)


def _scatter(rng: np.random.Generator, cell_um: float) -> Floats:
    """Places not too close to each other, nor to the region's border, beyond which are others."""
    apart = _APART * cell_um
    tries = int(_TRIES * (REGION_UM / apart) ** 2)
    chosen = np.empty((tries, 2))
    count = 0
    for place in rng.uniform(apart / 2, REGION_UM - apart / 2, (tries, 2)):
        if not count or np.min(np.sum((chosen[:count] - place) ** 2, axis=1)) > apart**2:
            chosen[count] = place
            count += 1
    return chosen[:count]


def _is_inhabited(
    places: Floats, seed: int, rng: np.random.Generator, culture: Monolayer
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Islands: where a smooth random field that belongs to the plane is high, by chance a little beyond."""
    waves = np.random.default_rng([seed, _STREAM])
    angle = waves.uniform(0, 2 * np.pi, _WAVES)
    length = culture.cell_um * waves.uniform(3, 9, _WAVES)
    phase = waves.uniform(0, 2 * np.pi, _WAVES)
    along = places @ np.stack([np.cos(angle), np.sin(angle)]) / length
    field = np.sqrt(2 / _WAVES) * np.cos(2 * np.pi * along + phase).sum(axis=1)
    field = (field + 0.4 * rng.normal(size=len(places))) / np.hypot(1, 0.4)
    share = float(np.interp(culture.confluency, *_COVERED))
    inhabited: np.ndarray[tuple[int], np.dtype[np.bool_]] = field > special.ndtri(1 - share)
    return inhabited


def _draw_cell(rng: np.random.Generator, x: float, y: float, culture: Monolayer) -> AdherentCell:
    chance = rng.random()
    state: State = "spread"
    if chance < culture.mitotic:
        state = "metaphase" if rng.random() < 0.6 else "anaphase"
    elif chance < culture.mitotic + culture.rounded:
        state = "rounded"
    unit = culture.cell_um / 24.0
    aspect = np.exp(rng.normal(0, 0.25))
    size = culture.cell_um * rng.uniform(0.62, 0.95)
    nucleus, flat = unit * rng.uniform(5.5, 8.5), rng.uniform(0.65, 1.0)
    wobble = tuple(rng.normal(0, 0.11, 4) / (1.0, 1.1, 1.3, 1.6)) + tuple(rng.uniform(0, 2 * np.pi, 4))
    radius = unit * rng.uniform(6.5, 9.0)
    spread = state == "spread"
    return AdherentCell(
        x, y, rng.uniform(0, np.pi),
        long=size * np.sqrt(aspect) if spread else radius,
        short=size / np.sqrt(aspect) if spread else radius,
        wobble=wobble if spread else (0.0,) * 8,
        nucleus_long=nucleus if spread else 0.6 * radius,
        nucleus_short=nucleus * flat if spread else 0.6 * radius,
        thickness=culture.height * (rng.uniform(3.0, 7.0) if spread else 1.7 * radius),
        lamella=culture.height * rng.uniform(0.5, 2.5),
        index=culture.index * rng.uniform(0.012, 0.028),
        nucleus_index=culture.index * rng.uniform(-0.009, 0.004),
        rim=culture.index * rng.uniform(0.003, 0.03),
        dna=rng.uniform(0.4, 0.8) if state in ("spread", "rounded") else rng.uniform(0.8, 1.0),
        state=state,
    )  # fmt: skip


def _draw_spheres(
    rng: np.random.Generator, cells: tuple[AdherentCell, ...], origin: Floats, culture: Monolayer
) -> tuple[Beads, tuple[int, ...]]:
    """Debris, blebs, nucleoli and granules of cells, and dead cells, which lie anywhere."""
    rows: list[Floats] = []
    for count, low, high in ((60, 0.2, 0.6), (10, 0.7, 2.0)):
        n = int(rng.poisson(count * culture.debris))
        place, radius = origin + rng.uniform(0, REGION_UM, (n, 2)), rng.uniform(low, high, n)
        rows.append(make_rows(place, radius, rng.uniform(0.02, 0.06, n), rng.choice(3, n)))
    for cell in cells:
        rows += _draw_parts(rng, cell, culture)
    remains = []
    for _ in range(int(rng.poisson(culture.dead * len(cells)))):
        remains.append(sum(map(len, rows)) + 1)
        dead = draw_remains(rng, origin + rng.uniform(0, REGION_UM, 2))
        dead[:, 2] *= culture.cell_um / 24.0 * 1.3
        dead[1, 5] = min(dead[1, 5], 1.0)
        rows.append(dead)
    x, y, radius, index, layer, dna, body = np.concatenate(rows).T
    owner = np.full(len(x), -1, np.int32)
    beads = Beads(x, y, radius, culture.index * index, layer.astype(np.uint8), dna, body, dna, owner)
    return beads, tuple(remains)


def _draw_parts(rng: np.random.Generator, cell: AdherentCell, culture: Monolayer) -> list[Floats]:
    middle = np.array([cell.x, cell.y])
    parts = []
    if cell.state in ("spread", "rounded"):
        n = int(rng.integers(1, 5))
        place = middle + rng.normal(0, 0.3 * cell.nucleus_short, (n, 2))
        size = cell.nucleus_short / 5.5 * rng.uniform(0.6, 1.7, n)
        parts.append(make_rows(place, size, rng.uniform(0.006, 0.03, n), int(cell.is_round)))
    n = int(rng.poisson(7 * culture.granules))
    angle, away = rng.uniform(0, 2 * np.pi, n), rng.uniform(1.1, 2.2, n) * cell.nucleus_long
    place = middle + away[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    parts.append(make_rows(place, rng.uniform(0.25, 0.7, n), rng.uniform(-0.02, 0.06, n), int(cell.is_round)))
    n = int(rng.poisson(0.7))
    angle = rng.uniform(0, 2 * np.pi, n)
    edge = np.stack([np.cos(angle), np.sin(angle)], axis=1) * cell.long
    parts.append(make_rows(middle + edge, rng.uniform(0.6, 2.0, n), rng.uniform(0.01, 0.03, n), 0))
    return parts
