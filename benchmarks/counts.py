"""How true counts are, on the simulated microscope: ``python benchmarks/counts.py [MODEL] [--seeds 1 2 3]``.

Nine fields of 512 px of each culture, as in the demo. True is what the true label shows, counted as for the
calibration, and beside it the cells that the specimen knows. Bars: bias at most 5 %, one stated SD holds for
60 to 76 % of the fields and two for 92 %, r at least .97, the three fullest of nine fields found in 8 of 9.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxNetwork
from acq_isl.engines.predictor import Predictor
from acq_isl.processing.counting import count_on_stain
from acq_isl.rules import MeanIntensity, ObjectCount
from acq_isl.rules.measurements import measure
from acq_isl.sim import CameraSettings, Rectangle, SyntheticSpecimen, View
from acq_isl.sim.scope.camera import Camera
from acq_isl.stack import StackInfo, StackKey, ZStack

SIDE_PX, PIXEL_UM, MARKED, BEST = 512, 0.3, 0.25, 3
Values = NDArray[np.float64]


def field(predictor: Predictor, seed: int, number: int) -> tuple[float, ...]:
    """Count, its SD, mean intensity, objects of the true label, cells."""
    specimen, camera, z_um = (
        SyntheticSpecimen(seed),
        Camera(CameraSettings(), seed=seed),
        np.arange(-9, 9.1, 1.5),
    )
    side_um = SIDE_PX * PIXEL_UM
    x_um, y_um = (number % 3 - 1) * side_um, (number // 3 - 1) * side_um
    views = [View(x_um, y_um, float(z), "Phase", PIXEL_UM, (SIDE_PX, SIDE_PX)) for z in z_um]
    frames = [
        camera.read(specimen.render(view), flux=1.0, bit_depth=16, frame=(number, plane))
        for plane, view in enumerate(views)
    ]
    info = StackInfo(StackKey(0, f"{seed}-{number}", "Phase"), tuple(z_um.tolist()), views[0].shape, PIXEL_UM)
    prediction, _ = predictor.rehearse(ZStack(info, np.stack(frames).astype(np.uint16), (0.0,) * info.planes))
    counted = measure(prediction, ObjectCount(label="nuclei", above=0.2))
    mean = measure(prediction, MeanIntensity(label="nuclei")).value
    cells = specimen.cells(Rectangle.around(x_um, y_um, (side_um, side_um)))
    marked = sum(cell.markers["nuclei"] >= MARKED for cell in cells)
    return (
        counted.value,
        counted.doubt,
        mean,
        count_on_stain(specimen.truth(views[0])["nuclei"], PIXEL_UM),
        marked,
    )


def fullest(found: Values, true: Values) -> int:
    """How many of the three best of a culture are among the truly best, equals shared."""
    chosen = np.argsort(-found, kind="stable")[:BEST]
    return int(np.count_nonzero(true[chosen] >= np.sort(true)[-BEST]))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    model = read_model(options.model)
    with Predictor(model.info, OnnxNetwork(model)) as predictor:
        rows = np.array([[field(predictor, seed, n) for n in range(9)] for seed in options.seeds], float)
    count, sd, mean = rows[..., 0], rows[..., 1], rows[..., 2]
    say(
        "| true | fields | bias | RMS | within 1 SD | 2 SD | r | best 3 of 9 | r of mean intensity |\n|"
        + "---|" * 9
    )
    for name, true in (("label", rows[..., 3]), ("cells", rows[..., 4])):
        away = np.abs(count - true) / sd
        best = sum(fullest(f, t) for f, t in zip(count, true, strict=True))
        r, r_mean = (np.corrcoef(values.ravel(), true.ravel())[0, 1] for values in (count, mean))
        say(
            f"| {name} | {true.size} | {(count - true).mean() / true.mean():+.1%} "
            f"| {np.sqrt(np.mean((count - true) ** 2)):.1f} of {true.mean():.1f} | {np.mean(away <= 1):.0%} "
            f"| {np.mean(away <= 2):.0%} | {r:.3f} | {best} of {BEST * len(rows)} | {r_mean:.3f} |"
        )


if __name__ == "__main__":
    main()
