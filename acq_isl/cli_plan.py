"""What ``--dry-run`` shows: the stacks of an experiment, checked, with nothing moved."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.planning import Cycle
from acq_isl.hooks import open_microscope
from acq_isl.session.preflight import prepare, simulated


def show_plan(out: Console, experiment: Experiment, *, sim: bool) -> None:
    """Check an experiment against the microscope and print its stacks."""
    experiment = simulated(experiment) if sim else experiment
    with open_microscope(experiment.microscope) as scope:
        plan = prepare(experiment, scope)
        core = scope.core
        size = core.get_image_width() * core.get_image_height() * core.get_bytes_per_pixel()
        out.print(f"{escape(scope.description)}: nothing was moved")
    _table(out, plan, size)


def _table(out: Console, plan: tuple[Cycle, ...], bytes_per_slice: int) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("time", "position", "channel", "x um", "y um", "z um", "slices", "exposure ms"):
        table.add_column(title, justify="right")
    slices, exposed_ms = 0, 0.0
    for cycle in plan:
        for request in cycle.requests:
            z = request.z_um
            depth = f"{z[0]:g} to {z[-1]:g}" if len(z) > 1 else f"{z[0]:g}"
            place = (f"{request.x_um:.1f}", f"{request.y_um:.1f}", depth)
            name = (str(request.key.time), request.key.position, request.key.channel)
            table.add_row(*name, *place, str(len(z)), f"{request.exposure_ms:g}")
            slices += len(z)
            exposed_ms += len(z) * request.exposure_ms
    out.print(table)
    size = slices * bytes_per_slice / 2**20
    out.print(f"overview: {slices} slices, {size:.0f} MiB, {exposed_ms / 1e3:.1f} s of light")
