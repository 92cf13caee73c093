"""What a neuron culture is made of, in micrometres; no pixels, no light."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Places = NDArray[np.int32]

REGION_UM = 307.2
"""Edge of a region; objects are drawn per region, from its own random numbers."""
REACH_UM = 140.0
"""No object extends further than this beyond the region it belongs to."""
LAYER_HEIGHTS_UM = (1.33, 4.0, 6.67)
"""Heights above the glass at which matter is thought to lie, lowest first."""
RADII_UM = (0.18, 0.28, 0.42, 0.65, 1.0, 1.5)
"""Radius classes of neurites."""
STEP_UM = 0.3
_FLAT_UM = 2.0


@dataclass(frozen=True, slots=True)
class Culture:
    """How dense and how optically strong the culture is; 1 is the ordinary amount.

    ``carpet`` is the optical path of unresolved fine processes on the glass, ``index`` of all matter.
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
    dead: float = 0.0
    """Brightness of the stain for dead cells in the nucleus, 0..1."""

    @property
    def is_neuron(self) -> bool:
        """Not glia, which lies flat."""
        return self.thickness > _FLAT_UM


@dataclass(frozen=True, slots=True, eq=False)
class Strokes:
    """Points along all neurites, `STEP_UM` apart, relative to the region's corner; arrays of one length.

    Points of a path follow each other. ``cell`` is the number of the cell in `Region.cells` that a point
    grows from, -1 for what passes by; ``along`` its distance from the soma along the path, in um.
    """

    x: Singles
    y: Singles
    radius: Bytes
    layer: Bytes
    index: Singles
    dendrite: Singles
    axon: Singles
    path: Places
    cell: Places
    along: Singles


@dataclass(frozen=True, slots=True, eq=False)
class Beads:
    """Spheres: debris, droplets, lumps of dead cells, nucleoli; arrays of one length.

    ``cell`` is the number of the cell in `Region.cells` that a sphere belongs to, -1 for none; ``dead`` the
    brightness of the stain for dead cells.
    """

    x: Floats
    y: Floats
    radius: Floats
    index: Floats
    layer: Bytes
    dna: Floats
    mtubules: Floats
    dead: Floats
    cell: Places


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Everything whose middle or origin lies in one square of the plane with its corner at (x, y) um."""

    x: float
    y: float
    cells: tuple[Cell, ...]
    strokes: Strokes
    beads: Beads


Table = TypeVar("Table", Strokes, Beads)


def select(table: Table, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Table:
    """Some rows of all arrays of a table."""
    return replace(table, **{column.name: getattr(table, column.name)[rows] for column in fields(table)})


def join(first: Table, second: Table) -> Table:
    """Two tables one after the other."""
    names = [column.name for column in fields(first)]
    return replace(
        first, **{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names}
    )


def regions_around(edges_um: tuple[float, float, float, float], reach_um: float) -> Iterator[tuple[int, int]]:
    """Column and row of each region that may reach into a rectangle of these left, top, right, bottom."""
    left, top, right, bottom = edges_um

    def touched(low: float, high: float) -> range:
        return range(int((low - reach_um) // REGION_UM), int((high + reach_um) // REGION_UM) + 1)

    for row in touched(top, bottom):
        for column in touched(left, right):
            yield column, row


def to_seed(value: int) -> int:
    """Whole numbers as seeds, which must not be negative: 0, -1, 1, -2, 2 become 0, 1, 2, 3, 4."""
    return 2 * value if value >= 0 else -2 * value - 1
