"""What really lies in a specimen: its cells, one by one, with place and state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from acq_isl.sim.specimen.aging import AgedRegion
from acq_isl.sim.specimen.cells import LAYER_HEIGHTS_UM, REGION_UM, Cell, to_seed
from acq_isl.sim.view import History

CellState = Literal["alive", "dying", "dead"]
CellKind = Literal["neuron", "glia", "epithelial", "remains"]


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Part of the specimen in micrometres; an edge belongs to it on the low side only."""

    left: float
    top: float
    right: float
    bottom: float

    @classmethod
    def around(cls, x_um: float, y_um: float, size_um: tuple[float, float]) -> Rectangle:
        """By its middle, height and width."""
        height, width = (side / 2 for side in size_um)
        return cls(x_um - width, y_um - height, x_um + width, y_um + height)

    def holds(self, x_um: float, y_um: float) -> bool:
        return self.left <= x_um < self.right and self.top <= y_um < self.bottom


@dataclass(frozen=True, slots=True)
class CellTruth:
    """A cell as it really is."""

    id: str
    """The same at all times, whoever asks."""
    kind: CellKind
    """``remains`` is what is left of a cell that died before time 0."""
    x_um: float
    y_um: float
    """Middle of the soma in the specimen."""
    z_um: float
    """Position of the focus drive that has it in focus."""
    radius_um: float
    nucleus_radius_um: float
    """Of discs with the same area."""
    state: CellState
    markers: Mapping[str, float]
    """Brightness of each label in the soma, 0 to 1, such as ``{"nuclei": 0.6, "dead": 0.0}``."""


@runtime_checkable
class KnowsCells(Protocol):
    """A specimen that knows its cells one by one, and labels on the scale that models are trained on."""

    def cells(self, area: Rectangle, time_s: float, history: History) -> tuple[CellTruth, ...]:
        """All cells with their middle in an area at a time, after what was done."""


def list_cells(aged: AgedRegion, height: float, focus_um: float) -> Iterator[CellTruth]:
    """Cells of a region, and then its remains.

    ``height`` is that of the `Culture`, ``focus_um`` the height above the glass that is in focus at 0.
    """
    region, beads = aged.region, aged.region.beads
    place = "_".join(str(to_seed(round(edge / REGION_UM))) for edge in (region.x, region.y))
    z_um = [height * layer - focus_um for layer in LAYER_HEIGHTS_UM]
    for number, (cell, progress) in enumerate(zip(region.cells, aged.progress, strict=True)):
        yield _cell_truth(f"{place}_{number}", cell, float(progress), z_um[cell.layer])
    # Remains are drawn as a ball and its nucleus, in this order.
    for number, at in enumerate(np.flatnonzero((beads.dead > 0) & (beads.cell < 0))):
        ball, nucleus = (float(radius) for radius in beads.radius[at - 1 : at + 1])
        markers = _markers(float(beads.dna[at]), float(beads.mtubules[at - 1]), float(beads.dead[at]))
        x_um, y_um = float(beads.x[at - 1]), float(beads.y[at - 1])
        z = z_um[int(beads.layer[at])]
        yield CellTruth(f"{place}_r{number}", "remains", x_um, y_um, z, ball, nucleus, "dead", markers)


def _cell_truth(name: str, cell: Cell, progress: float, z_um: float) -> CellTruth:
    radius = float(np.sqrt(cell.long * cell.short))
    state: CellState = "alive" if progress < 0 else "dying" if progress < 1 else "dead"
    kind: CellKind = "neuron" if cell.is_neuron else "glia"
    return CellTruth(
        name, kind, cell.x, cell.y, z_um, radius, radius * cell.nucleus, state,
        _markers(cell.dna, cell.mtubules, cell.dead),
    )  # fmt: skip


def _markers(dna: float, mtubules: float, dead: float) -> dict[str, float]:
    # Neurofilament shows the soma as faintly as acq_isl.sim.specimen.raster draws it.
    markers = {"nuclei": dna, "dendrites": mtubules, "axons": 0.06 * mtubules, "dead": dead}
    return {label: min(light, 1.0) for label, light in markers.items()}
