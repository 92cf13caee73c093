"""How sharp, bright and right a model's labels are in the simulator, on cultures it was not trained on.

    python benchmarks/sharpness.py [MODEL ...] [--seeds 201 202 203]

Three fields of each culture, 512 px, default light and camera; two of others with 5 % of the neurons dying:

* r           Pearson over all pixels, mean of the fields
* p99         99th percentile of the prediction over that of the truth, all fields together
* F1 @.5      nuclei of at least 20 um2 at IoU .5, Otsu's threshold on both sides
* by place    nuclei: local maxima above the best of some thresholds, within 5 um of a cell that has one
* dead        the same with the label `dead`, against dying and dead cells whose stain is at least a quarter
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from skimage.filters import threshold_otsu

from acq_isl import load_engine
from acq_isl.experiment.simulated import Life
from acq_isl.processing.segmentation import object_score, segment, smooth, spots
from acq_isl.sim.scope.camera import Camera
from acq_isl.sim.specimen.synthetic import SyntheticSpecimen
from acq_isl.sim.specimen.truth import Rectangle
from acq_isl.sim.view import CameraSettings, View
from acq_isl.stack import StackInfo, StackKey, ZStack

SIDE, PIXEL_UM, STEP_UM, PLANES = 512, 0.3, 1.5, 13
PLACES = ((0.0, 0.0), (220.0, -150.0), (-300.0, 120.0))
LEVELS = tuple(np.arange(0.1, 0.71, 0.05).round(2).tolist())
NEAR_UM, APART_UM, ROUND_UM = 5.0, 2.4, 0.9
_MARKED = 0.25

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Scene:
    """A field, its true labels and its cells: row, column, and brightness of each label."""

    stack: ZStack
    truth: dict[str, Image]
    cells: NDArray[np.float64]
    markers: list[dict[str, float]]

    def marked(self, label: str) -> NDArray[np.float64]:
        """Places of the cells that a label truly shows."""
        return self.cells[[marker[label] >= _MARKED for marker in self.markers]]


def photograph(seed: int, place: tuple[float, float], life: Life | None = None) -> Scene:
    """One stack of a culture, as the simulated microscope records it."""
    specimen = SyntheticSpecimen(seed, life=life)
    camera, (x, y) = Camera(CameraSettings(), seed=seed), place
    z_um = tuple(STEP_UM * (plane - (PLANES - 1) / 2) for plane in range(PLANES))
    views = [View(x, y, z, "Phase", PIXEL_UM, (SIDE, SIDE)) for z in z_um]
    frames = [
        camera.read(specimen.render(view), flux=1.0, bit_depth=16, frame=(0, at))
        for at, view in enumerate(views)
    ]
    info = StackInfo(
        StackKey(0, f"culture {seed}", "Phase"), z_um, (SIDE, SIDE), PIXEL_UM,
        modality="phase contrast", polarity="dark",
    )  # fmt: skip
    cells = specimen.cells(Rectangle.around(x, y, (SIDE * PIXEL_UM, SIDE * PIXEL_UM)))
    where = [((cell.y_um - y), (cell.x_um - x)) for cell in cells]
    return Scene(
        ZStack(info, np.stack(frames).astype(np.uint16), (0.0,) * PLANES), specimen.truth(views[0]),
        np.array(where).reshape(-1, 2) / PIXEL_UM + SIDE / 2 - 0.5, [dict(cell.markers) for cell in cells],
    )  # fmt: skip


def count_near(found: NDArray[np.intp], cells: NDArray[np.float64]) -> int:
    """Pairs of a spot and a cell within reach, one to one."""
    if not len(found) or not len(cells):
        return 0
    away = cdist(found, cells) * PIXEL_UM
    away[away > NEAR_UM] = 1e6
    rows, columns = linear_sum_assignment(away)
    return int(np.count_nonzero(away[rows, columns] <= NEAR_UM))


def by_place(
    images: Sequence[NDArray[np.float32]], scenes: Sequence[Scene], label: str
) -> tuple[float, float]:
    """Best F1 by place and the threshold it has."""
    best = (0.0, 0.0)
    for level in LEVELS:
        right = total = 0
        for image, scene in zip(images, scenes, strict=True):
            soft = ndimage.gaussian_filter(image, ROUND_UM / PIXEL_UM)
            found = spots(soft, round(APART_UM / PIXEL_UM))
            found = found[soft[tuple(found.T)] > level]
            right += count_near(found, scene.marked(label))
            total += len(found) + len(scene.marked(label))
        best = max(best, (2 * right / max(total, 1), level))
    return best


def objects_f1(images: Sequence[Image], truths: Sequence[Image]) -> float:
    """F1 at IoU .5, of all fields together."""
    matched = total = 0
    for pair in zip(images, truths, strict=True):
        both = (smooth(image, PIXEL_UM) for image in pair)
        predicted, true = (segment(one, float(threshold_otsu(one)), 20.0, PIXEL_UM) for one in both)
        score = object_score(predicted, true)
        matched, total = matched + score.matched, total + score.found + score.true
    return 2 * matched / max(total, 1)


def score(model: str, scenes: Sequence[Scene], dying: Sequence[Scene]) -> None:
    """Print one model's rows."""
    engine = load_engine(model, backend="onnxruntime")
    seen = [engine.predict(scene.stack) for scene in scenes]
    say(f"\n{model}\n| label | r | p99 | F1 @.5 | by place (above) |\n|---|---|---|---|---|")
    for label in seen[0].labels:
        images, truths = [one.label(label) for one in seen], [scene.truth[label] for scene in scenes]
        r = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images, truths, strict=True)])
        bright = float(np.percentile(truths, 99))
        p99 = f"{np.percentile(images, 99) / bright:.2f}" if bright > _MARKED else "rare"
        objects = "| |"
        if label == "nuclei":
            placed, level = by_place(images, scenes, label)
            objects = f"{objects_f1(images, truths):.2f} | {placed:.2f} ({level:.2f}) |"
        say(f"| {label} | {r:.3f} | {p99} | {objects}")
    if "dead" in seen[0].labels:
        ill = [engine.predict(scene.stack).label("dead") for scene in dying]
        placed, level = by_place(ill, dying, "dead")
        say(f"dead cells where 5 % are dying, by place: F1 {placed:.2f} (above {level:.2f})")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["demo"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[201, 202, 203])
    options = parser.parse_args()
    scenes = [photograph(seed, place) for seed in options.seeds for place in PLACES]
    ill = Life(prevalence=0.05)
    dying = [photograph(seed + 1000, place, ill) for seed in options.seeds for place in PLACES[:2]]
    for model in options.models:
        name = model if model == "demo" else str(Path(model))
        score(name, scenes, dying)


if __name__ == "__main__":
    main()
