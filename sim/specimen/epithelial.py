"""An endless, seeded culture of adherent, epithelial-like cells, seen through wave optics."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from acq_isl.sim.optics.fluorescence import Stain
from acq_isl.sim.optics.illumination import Brightfield, Transmitted
from acq_isl.sim.specimen.cache import ResultCache
from acq_isl.sim.specimen.cells import LAYER_HEIGHTS_UM, regions_around, to_seed
from acq_isl.sim.specimen.computed import ComputedSpecimen
from acq_isl.sim.specimen.culture import Moment
from acq_isl.sim.specimen.epithelial_raster import draw_epithelium
from acq_isl.sim.specimen.epithelium import REACH_UM, AdherentCell, Monolayer, Patch, grow_patch
from acq_isl.sim.specimen.raster import Raster, Window
from acq_isl.sim.specimen.sensor import Sensor
from acq_isl.sim.specimen.truth import CellTruth, Rectangle
from acq_isl.sim.view import UNTOUCHED, History

FOCUS_UM = 2.0
"""Height above the glass that is in focus at ``z_um = 0``: the nuclei of spread cells."""
STAINS = (
    Stain("DAPI", "nuclei", 0.461, 120_000.0),
    Stain("CellMask", "cells", 0.572, 90_000.0),
    Stain("PI", "dead", 0.636, 90_000.0),
)
_PATCHES_KEPT = 32


class EpithelialSpecimen(ComputedSpecimen):
    """Spread cells that touch, round ones, mitoses and dead ones; see `ComputedSpecimen`.

    True labels are ``nuclei`` (DNA of living and dead cells), ``cells`` (the glass that living cells cover)
    and ``dead``. ``optics`` are `Brightfield` by default. Nothing changes with time.
    """

    def __init__(
        self,
        seed: int = 0,
        optics: Transmitted | None = None,
        culture: Monolayer | None = None,
        sensor: Sensor | None = None,
    ) -> None:
        self.culture = culture or Monolayer()
        heights = tuple(self.culture.height * height for height in LAYER_HEIGHTS_UM)
        super().__init__(seed, optics or Brightfield(), sensor or Sensor(seed), STAINS, (heights, FOCUS_UM))
        self._patches: ResultCache[Patch] = ResultCache(_PATCHES_KEPT)

    def cells(
        self, area: Rectangle, time_s: float = 0.0, history: History = UNTOUCHED
    ) -> tuple[CellTruth, ...]:
        """All cells with their middle in an area, and dead ones."""
        found = [
            cell
            for place in regions_around((area.left, area.top, area.right, area.bottom), 0.0)
            for cell in self._list(*place)
        ]
        return tuple(cell for cell in found if area.holds(cell.x_um, cell.y_um))

    def _list(self, column: int, row: int) -> Iterator[CellTruth]:
        patch = self._patch(column, row)
        place = f"{to_seed(column)}_{to_seed(row)}"
        heights = [height - FOCUS_UM for height in self._heights_um]
        for number, cell in enumerate(patch.cells):
            yield _cell_truth(f"{place}_{number}", cell, heights[int(cell.is_round)])
        beads = patch.beads
        for number, at in enumerate(patch.remains):
            x_um, y_um = float(beads.x[at - 1]), float(beads.y[at - 1])
            body, nucleus = float(beads.radius[at - 1]), float(beads.radius[at])
            markers = {"nuclei": float(beads.dna[at]), "cells": 0.0, "dead": float(beads.dead[at])}
            z_um = heights[int(beads.layer[at])]
            yield CellTruth(f"{place}_r{number}", "remains", x_um, y_um, z_um, body, nucleus, "dead", markers)

    def _draw(self, window: Window, now: Moment | None) -> Raster:
        patches = [self._patch(*place) for place in regions_around(window.edges_um, REACH_UM)]
        return draw_epithelium(patches, window, self.seed, self.culture)

    def _patch(self, column: int, row: int) -> Patch:
        return self._patches.get((column, row), lambda: grow_patch(self.seed, column, row, self.culture))


def _cell_truth(name: str, cell: AdherentCell, z_um: float) -> CellTruth:
    radius = float(np.sqrt(cell.long * cell.short))
    nucleus = float(np.sqrt(cell.nucleus_long * cell.nucleus_short))
    markers = {"nuclei": cell.dna, "cells": 1.0, "dead": 0.0}
    return CellTruth(
        name, "epithelial", float(cell.x), float(cell.y), z_um, radius, nucleus, "alive", markers
    )
