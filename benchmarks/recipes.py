"""What do the recipes of ``examples/recipes`` find, at which dose, beside chance and somebody who knows?

    python benchmarks/recipes.py [survey dying drug plate] [--seeds 5]

Each is run on the simulated microscope, once for every seed of its specimen, and held against the specimen:
fields drawn at random as many as were imaged in fluorescence, and the best so many. For the drug recipe it is
how many neurons live at the end: valve opened by the recipe, at a random visit, by somebody who knows which
neurons die, and never. Bars: ``dying`` finds 80 % at a fifth of the dose of imaging everything.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from acq_isl.errors import AcqIslError
from acq_isl.events import Event, FieldImaged, RunStarted
from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.simulated import SimulatedMicroscope, SyntheticSpecimen
from acq_isl.hooks import OpenMicroscope, open_microscope
from acq_isl.scorecard import Scorecard
from acq_isl.session import runner
from acq_isl.sim import Drug, History, KnowsCells, Rectangle, SimulatedScope
from acq_isl.stack import StackRequest

FOLDER = Path(__file__).parents[1] / "examples" / "recipes"
NAMES = ("survey", "dying", "drug", "plate")
FOUND, DOSE = 0.8, 0.2
THRESHOLD = 0.12  # of the drug recipe
DEAD = 0.25  # a cell with so much of the marker counts as dead, as in a run's scorecard


@dataclass(frozen=True, slots=True)
class Row:
    """Of one run: what was reached, by chance, by somebody who knows; share of the light of everything."""

    what: str
    reached: float
    random: float
    oracle: float
    light: float
    none: float = float("nan")


class Kept:
    """A hand on the microscope of a run, and which field was imaged when, on the specimen's clock."""

    def __init__(self) -> None:
        self._scope: SimulatedScope | None = None
        self.fov_um = (0.0, 0.0)
        self._visited: list[tuple[StackRequest, float]] = []
        self.drugs: tuple[Drug, ...] = ()

    def watch(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.fov_um = event.fov_um
        elif isinstance(event, FieldImaged) and event.request.predict and self._scope is not None:
            self._visited.append((event.request, self._scope.timeline.time_s))

    @contextmanager
    def open(self, settings: Any) -> Iterator[OpenMicroscope]:
        with open_microscope(settings) as opened:
            self._scope = opened.simulated
            yield opened
            if self._scope is not None:
                self.drugs = self._scope.timeline.history.drugs

    @property
    def specimen(self) -> KnowsCells:
        assert self._scope is not None and isinstance(self._scope.specimen, KnowsCells)
        return self._scope.specimen

    @property
    def rounds(self) -> list[list[tuple[StackRequest, float]]]:
        """What was visited at each time point."""
        times = sorted({request.key.time for request, _ in self._visited})
        return [[visit for visit in self._visited if visit[0].key.time == time] for time in times]


def load(name: str, seed: int, folder: Path) -> Experiment:
    experiment = Experiment.from_yaml(FOLDER / f"{name}.yaml")
    microscope = experiment.microscope
    assert isinstance(microscope, SimulatedMicroscope) and isinstance(microscope.specimen, SyntheticSpecimen)
    specimen = microscope.specimen.model_copy(update={"seed": seed})
    microscope = microscope.model_copy(update={"specimen": specimen})
    return experiment.model_copy(update={"microscope": microscope, "output": folder})


def run(name: str, seed: int, folder: Path) -> Row:
    kept = Kept()
    original = runner.open_microscope
    runner.open_microscope = kept.open
    try:
        result = runner.run(load(name, seed, folder), watch=kept.watch)
    finally:
        runner.open_microscope = original
    card = result.record.scorecard
    assert card is not None
    match name:
        case "drug":
            return score_drug(kept, card)
        case "plate":
            return score_plate(kept, card)
        case _:
            return score_cells(card)


def score_cells(card: Scorecard) -> Row:
    """Wanted cells that were imaged in fluorescence, of all there are."""
    cells, share = card.cells, light_share(card)
    if cells is None:
        return Row("nothing was imaged in fluorescence", 0.0, 0.0, 1.0, share)
    fields = f"{cells.fields} of {cells.of_fields} fields"
    what = f"{cells.imaged} of {cells.wanted} cells ({cells.label}) in {fields}"
    random, oracle = (value / cells.wanted for value in (cells.at_random, cells.at_best))
    return Row(what, cells.recall, random, oracle, share)


def light_share(card: Scorecard) -> float:
    light = card.light
    return sum(light.fluorescence_ms.values()) / light.all_fields_ms if light.all_fields_ms else 0.0


def dead_in(kept: Kept, request: StackRequest, history: History, at_s: float) -> tuple[int, int]:
    """Dead neurons and all neurons of a field."""
    width, height = kept.fov_um
    specimen = kept.specimen
    area = Rectangle.around(request.x_um, request.y_um, (height, width))
    cells = [cell for cell in specimen.cells(area, at_s, history) if cell.kind == "neuron"]
    return sum(cell.markers.get("dead", 0.0) >= DEAD for cell in cells), len(cells)


def score_drug(kept: Kept, card: Scorecard) -> Row:
    """Neurons alive at the end of the last visit, by when the valve was opened."""
    rounds = kept.rounds
    ends = [max(at_s for _, at_s in visited) for visited in rounds]
    places, last_s = [request for request, _ in rounds[0]], ends[-1]
    opened = [drug.time_s for drug in kept.drugs if drug.dose > 0]

    def dead(history: History, at_s: float) -> float:
        counts = np.array([dead_in(kept, place, history, at_s) for place in places])
        return float(counts[:, 0].sum() / counts[:, 1].sum())

    def alive(valve_s: float | None) -> float:
        return 1 - dead(History(drugs=() if valve_s is None else (Drug(valve_s, 1.0),)), last_s)

    shares = [dead(History(), end_s) for end_s in ends]
    above = [min(pair) > THRESHOLD for pair in itertools.pairwise(shares)]
    known_s = ends[above.index(True) + 1] if True in above else None
    told = ", ".join(f"{share:.0%}" for share in shares)
    said = f"valve at {opened[0] / 3600:.1f} h" if opened else "valve never opened"
    if known_s is not None:
        said += f" (by the truth {known_s / 3600:.1f} h)"
    random = float(np.mean([alive(end_s) for end_s in ends]))
    reached = alive(opened[0] if opened else None)
    what = f"{said}; truly dead without it: {told}"
    return Row(what, reached, random, alive(known_s), float("nan"), alive(None))


def score_plate(kept: Kept, card: Scorecard) -> Row:
    """Dead neurons in the fields that were followed after the first time point, of all on the plate."""
    first, *later = kept.rounds
    counts = {request.key.position: dead_in(kept, request, History(), 0.0)[0] for request, _ in first}
    best = sorted(counts.values(), reverse=True)
    followed = [[request.key.position for request, _ in visited] for visited in later]
    whole = max(sum(best) * len(followed), 1)
    found = sum(counts[name] for names in followed for name in names)
    share = sum(map(len, followed)) / (len(counts) * max(len(followed), 1))
    oracle = sum(sum(best[: len(names)]) for names in followed) / whole
    fields = " and ".join(str(len(names)) for names in followed)
    what = f"{found} of {whole} cells (dead) in {fields} of {len(counts)} fields followed"
    return Row(what, found / whole, share, oracle, light_share(card))


def show(name: str, rows: Sequence[Row]) -> bool:
    """Print what a recipe reached; whether its bar holds."""
    table = Table(title=name)
    for column in ("seed", "reached", "random", "oracle", "without", "light of all", "what"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for seed, row in enumerate(rows, 1):
        numbers = (row.reached, row.random, row.oracle, row.none, row.light)
        table.add_row(str(seed), *("" if np.isnan(v) else f"{v:.0%}" for v in numbers), row.what)
    Console(width=130).print(table)
    if name != "dying":
        return True
    holds = all(row.reached >= FOUND and row.light <= DOSE for row in rows)
    Console().print(
        f"bar (>= {FOUND:.0%} found at <= {DOSE:.0%} of the light): {'holds' if holds else 'does not hold'}"
    )
    return holds


def main(names: list[str] = typer.Argument(None), seeds: int = 5) -> None:  # noqa: B008
    held = True
    for name in names or NAMES:
        rows = []
        for seed in range(1, seeds + 1):
            with tempfile.TemporaryDirectory(prefix="recipe-") as folder:
                try:
                    rows.append(run(name, seed, Path(folder)))
                except AcqIslError as error:
                    Console(stderr=True).print(f"{name}, seed {seed}: {error}")
                    raise typer.Exit(1) from error
        held &= show(name, rows)
    raise typer.Exit(0 if held else 1)


if __name__ == "__main__":
    typer.run(main)
