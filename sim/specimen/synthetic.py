"""An endless, seeded culture of neurons, seen through wave optics, that knows its own truth."""

from __future__ import annotations

from collections.abc import Iterator

from acq_isl.experiment.simulated import Life
from acq_isl.sim.optics.fluorescence import STAINS
from acq_isl.sim.optics.illumination import LIVE_PHASE_CONTRAST, Transmitted
from acq_isl.sim.specimen.aging import age_region
from acq_isl.sim.specimen.cache import ResultCache
from acq_isl.sim.specimen.cells import LAYER_HEIGHTS_UM, REACH_UM, Culture, Region, regions_around
from acq_isl.sim.specimen.computed import ComputedSpecimen
from acq_isl.sim.specimen.culture import Moment, find_moment
from acq_isl.sim.specimen.neurons import grow_region
from acq_isl.sim.specimen.raster import Raster, Window, draw_raster
from acq_isl.sim.specimen.sensor import Sensor
from acq_isl.sim.specimen.truth import CellTruth, Rectangle, list_cells
from acq_isl.sim.view import UNTOUCHED, History, View

FOCUS_UM = 4.0
"""Height above the glass that is in focus at ``z_um = 0``: the middle of the cells."""
_REGIONS_KEPT = 32


class SyntheticSpecimen(ComputedSpecimen):
    """Neurons on glass; see `ComputedSpecimen`.

    A picture depends on seed, place, time and what was done to the specimen (both in the `View`), not on
    what was looked at before. ``optics`` are `LIVE_PHASE_CONTRAST` by default. Without a ``life`` nothing
    changes with time.
    """

    def __init__(
        self,
        seed: int = 0,
        optics: Transmitted | None = None,
        culture: Culture | None = None,
        sensor: Sensor | None = None,
        life: Life | None = None,
    ) -> None:
        self.culture = culture or Culture()
        self.life = life or Life()
        heights = tuple(self.culture.height * height for height in LAYER_HEIGHTS_UM)
        super().__init__(
            seed, optics or LIVE_PHASE_CONTRAST, sensor or Sensor(seed), STAINS, (heights, FOCUS_UM)
        )
        self._regions: ResultCache[Region] = ResultCache(_REGIONS_KEPT)

    def cells(
        self, area: Rectangle, time_s: float = 0.0, history: History = UNTOUCHED
    ) -> tuple[CellTruth, ...]:
        """All cells with their middle in an area, and the remains of dead ones, at a time."""
        now = find_moment(self.life, time_s, history)
        # Cells drift over the borders of their region, but not as far as neurites reach.
        regions = list(self._around((area.left, area.top, area.right, area.bottom)))
        return tuple(
            cell
            for region in regions
            for cell in list_cells(
                age_region(region, self.seed, self.life, now), self.culture.height, FOCUS_UM
            )
            if area.holds(cell.x_um, cell.y_um)
        )

    def _moment(self, view: View) -> Moment | None:
        return find_moment(self.life, view.time_s, view.history)

    def _draw(self, window: Window, now: Moment | None) -> Raster:
        regions = (
            age_region(region, self.seed, self.life, now).region for region in self._around(window.edges_um)
        )
        return draw_raster(regions, window, self.seed, self.culture)

    def _around(self, edges_um: tuple[float, float, float, float]) -> Iterator[Region]:
        """Regions of which something may lie in a rectangle: left, top, right, bottom."""
        return (self._region(column, row) for column, row in regions_around(edges_um, REACH_UM))

    def _region(self, column: int, row: int) -> Region:
        return self._regions.get((column, row), lambda: grow_region(self.seed, column, row, self.culture))
