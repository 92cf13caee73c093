"""What a stated doubt is worth.

    python benchmarks/doubt.py [MODEL ...] [--seeds 1 2 3] [--recorded FOLDER]

Nine fields of 512 px of each simulated culture, to none of which a model is fitted, and the recorded field:

* covers      share of pixels whose truth is within one stated SD: all, truth above .3, prediction above .3
* ranks       Spearman of SD and error among the pixels whose truth is above .3, mean of the fields
* bright/dark mean SD where the truth is above .3, over that elsewhere
* blurred, .. mean SD where the truth is above .3, over that of the stack as it is: more than 1 is right

Bars: covers .60 to .76 where the truth is bright, grows, ranks above 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from scipy import ndimage
from scipy.stats import spearmanr

from acq_isl import load_engine
from acq_isl.protocols import Engine
from acq_isl.sim import CameraSettings, SyntheticSpecimen, View
from acq_isl.sim.scope.camera import Camera
from acq_isl.stack import StackInfo, StackKey, ZStack

SIDE_PX, PIXEL_UM, STEP_UM, PLANES, BRIGHT = 512, 0.3, 1.5, 13, 0.3
Z_UM = tuple(STEP_UM * (plane - (PLANES - 1) / 2) for plane in range(PLANES))
STAINS = {"nuclei": "dapi", "dendrites": "map2", "axons": "nfh"}
EVERY_PX = 3  # ranks of neighbouring pixels are the same

Image = NDArray[np.float32]
Counts = NDArray[np.uint16]
Field = tuple[Counts, dict[str, Image]]


def simulated(seed: int, number: int) -> Field:
    """Counts and truth of one field, as in the demo."""
    specimen, camera = SyntheticSpecimen(seed), Camera(CameraSettings(), seed=seed)
    side_um = SIDE_PX * PIXEL_UM
    x_um, y_um = (number % 3 - 1) * side_um, (number // 3 - 1) * side_um
    views = [View(x_um, y_um, z, "Phase", PIXEL_UM, (SIDE_PX, SIDE_PX)) for z in Z_UM]
    frames = [
        camera.read(specimen.render(view), flux=1.0, bit_depth=16, frame=(number, plane))
        for plane, view in enumerate(views)
    ]
    return np.stack(frames).astype(np.uint16), dict(specimen.truth(views[0]))


def recorded(folder: Path) -> Field:
    """The field of Condition B; labels clipped at percentiles 1 and 99.8."""
    truth = {}
    for label, stain in STAINS.items():
        image = tifffile.imread(folder / f"{stain}.ome.tif").astype(np.float32)
        low, high = np.percentile(image, (1, 99.8))
        truth[label] = np.clip((image - low) / (high - low), 0, 1)
    return tifffile.imread(folder / "phase_contrast.ome.tif"), truth


def _blurred(counts: Counts) -> Counts:
    return ndimage.gaussian_filter(counts, (0, 3, 3)).astype(np.uint16)


def _one_plane(counts: Counts) -> Counts:
    noise = np.random.default_rng(0).normal(0, 0.1 * counts[6].std(), counts.shape)
    return np.clip(counts[6] + noise, 0, 65535).astype(np.uint16)


def _noisy(counts: Counts) -> Counts:
    noise = np.random.default_rng(1).normal(0, counts.std(), counts.shape)
    return np.clip(counts + noise, 0, 65535).astype(np.uint16)


SPOILT: dict[str, Callable[[Counts], Counts]] = {
    "blurred": _blurred, "one plane": _one_plane, "noisy": _noisy,
}  # fmt: skip


def predict(engine: Engine, counts: Counts) -> dict[str, tuple[Image, Image]]:
    """Mean and SD by label."""
    info = StackInfo(
        StackKey(0, "field", "Phase"), Z_UM, counts.shape[1:], PIXEL_UM,
        modality="phase contrast", polarity="dark",
    )  # fmt: skip
    found = engine.predict(ZStack(info, np.ascontiguousarray(counts), (0.0,) * PLANES))
    pairs = zip(found.mean, found.spread, strict=True)
    return dict(zip(found.labels, pairs, strict=True))


def judge(engine: Engine, fields: Sequence[Field]) -> Iterator[str]:
    """Rows of the table, one a label."""
    found: dict[str, list[list[float]]] = {}
    for counts, truth in fields:
        plain = predict(engine, counts)
        worse = [predict(engine, spoil(counts)) for spoil in SPOILT.values()]
        for label in (label for label in plain if label in truth):
            mean, sd = plain[label]
            bright = truth[label] > BRIGHT
            if not bright.any():
                continue
            error = np.abs(mean - truth[label])
            held = error <= sd
            ranks = spearmanr(sd[bright][::EVERY_PX], error[bright][::EVERY_PX]).statistic
            row = [
                held.mean(),
                held[bright].mean(),
                float(np.nan),
                ranks,
                sd[bright].mean() / sd[~bright].mean(),
            ]
            if (mean > BRIGHT).any():
                row[2] = held[mean > BRIGHT].mean()
            row += [one[label][1][bright].mean() / sd[bright].mean() for one in worse]
            found.setdefault(label, []).append([float(value) for value in row])
    for label, rows in found.items():
        yield f"| {label} | " + " | ".join(f"{value:.2f}" for value in np.nanmean(rows, axis=0)) + " |"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["demo"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--recorded", type=Path, help="folder of the recorded field")
    options = parser.parse_args()
    sets = {"simulated": [simulated(seed, number) for seed in options.seeds for number in range(9)]}
    if options.recorded is not None:
        sets["recorded"] = [recorded(options.recorded)]
    columns = ("covers all", "truth bright", "prediction bright", "ranks", "bright/dark", *SPOILT)
    for model in options.models:
        engine = load_engine(model, backend="onnxruntime", gate="warn")  # also of what it would refuse
        for name, fields in sets.items():
            say(f"\n{model}, {name}, {len(fields)} fields\n| label | {' | '.join(columns)} |")
            say("|---" * (len(columns) + 1) + "|")
            for row in judge(engine, fields):
                say(row)


if __name__ == "__main__":
    main()
