"""What a simulated image costs, step by step, on one core: ``python benchmarks/sim_speed.py``.

Set OMP_NUM_THREADS=1. Processor time of the rendering thread (`time.thread_time`), so that a loaded machine
distorts less; wall time beside it. "new optics" is what comes once per field of view; "slice" is what each
plane of a stack, and each live image at a new focus, costs after that. Best and median of some repetitions.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import fft

from acq_isl.sim.optics.illumination import (
    DIC,
    LIVE_PHASE_CONTRAST,
    Brightfield,
    Oblique,
    PhaseContrast,
    Transmitted,
)
from acq_isl.sim.optics.resampling import resample
from acq_isl.sim.optics.transmitted import TransmittedField
from acq_isl.sim.scope.camera import Camera, CameraSettings
from acq_isl.sim.specimen.synthetic import SyntheticSpecimen
from acq_isl.sim.view import View

OPTICS: dict[str, Transmitted] = {
    "phase contrast, live": LIVE_PHASE_CONTRAST,
    "phase contrast, training": PhaseContrast(),
    "oblique": Oblique(coarse_points=60, grid_um_na=LIVE_PHASE_CONTRAST.grid_um_na),
    "bright field": Brightfield(),
    "DIC": DIC(),
}


def timed(work: Callable[[int], object], repetitions: int) -> tuple[float, float, float]:
    """Best and median processor time, and median wall time, in ms."""
    work(-1)
    spent, wall = [], []
    for n in range(repetitions):
        started, clock = time.thread_time(), time.perf_counter()
        work(n)
        spent.append(1e3 * (time.thread_time() - started))
        wall.append(1e3 * (time.perf_counter() - clock))
    return min(spent), float(np.median(spent)), float(np.median(wall))


def row(name: str, times: tuple[float, float, float], note: str = "") -> None:
    best, middle, wall = times
    sys.stdout.write(f"{name:28} {best:8.1f} {middle:8.1f} {wall:8.1f}  {note}\n")
    sys.stdout.flush()


def steps(field: TransmittedField) -> dict[str, Callable[[int], object]]:
    """The parts of a slice, each on its own."""
    imaging, fields = field.imaging, field.fields
    spectrum, beams = fields.spectra[0], imaging.beams
    without = replace(fields, coarse=())
    image = imaging.image(fields, 0.0)
    return {
        f"{len(beams)} transforms of {imaging.shape[0]}": lambda n: [
            fft.ifft2(spectrum, imaging.shape) for _ in beams
        ],
        "all of the fine points": lambda n: imaging.image(without, n / 7),
        "fine points and correction": lambda n: imaging.image(fields, n / 7),
        "onto camera pixels": lambda n: resample(field.rows, image, field.columns),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--repetitions", type=int, default=13)
    options = parser.parse_args()
    view = View(0.0, 0.0, 0.0, "Phase", 0.3, (options.side, options.side))
    sys.stdout.write(f"{'CPU ms':28} {'best':>8} {'median':>8} {'wall':>8}\n")
    for name, optics in OPTICS.items():
        specimen = SyntheticSpecimen(0, optics)
        specimen.truth(view)  # objects and raster, the same for all optics

        def again(n: int, optics: Transmitted = optics, specimen: SyntheticSpecimen = specimen) -> None:
            # Another binning label of the same place is another field, of the same size.
            specimen.prepare(replace(view, sensor_origin_px=(n + 1, 0)))

        row(f"{name}: new optics", timed(again, 2))
        row(
            f"{name}: slice",
            timed(lambda n, s=specimen: s.render(replace(view, z_um=n / 7)), options.repetitions),
        )
    specimen = SyntheticSpecimen(0)
    row("objects of a new region", timed(lambda n: specimen.truth(replace(view, x_um=2000.0 * (n + 2))), 2))
    for channel in ("DAPI", "NFH"):
        stained = replace(view, channel=channel)
        row(f"{channel}: image", timed(lambda n, v=stained: specimen.render(replace(v, z_um=n / 7)), 5))
    specimen.render(view)
    for name, work in steps(specimen._field(view)).items():
        row(f"  {name}", timed(work, options.repetitions))
    camera, light = Camera(CameraSettings()), specimen.render(view)
    row(
        "camera",
        timed(lambda n: camera.read(light, flux=1.0, bit_depth=16, frame=(n + 2, 0)), options.repetitions),
    )


if __name__ == "__main__":
    main()
