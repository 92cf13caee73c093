"""What adapting the demo model is worth with 1, 2, 4 and 8 fields, beside training from scratch.

    python benchmarks/adapt.py OUT --recorded ../shared/data/isl_condition_b

Three tasks, each by the command ``acq-isl adapt`` itself, once a seed and k: a new microscope (DIC; the demo
model has seen phase contrast and oblique light only), a new label (dying and dead cells), and a recorded
field whose columns 0-299 are cut into four pieces, tested on columns 340-703. Simulated fields are of
specimens and a camera that the demo model has not seen: 384 px, 8 to learn from, one that decides when to
stop, 6 to be tested on. A finished run is kept in OUT and not run again.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import yaml

from acq_isl.experiment.simulated import Life
from acq_isl.sim.optics.illumination import DIC, LIVE_PHASE_CONTRAST, Transmitted
from acq_isl.sim.scope.camera import Camera, CameraSettings
from acq_isl.sim.specimen.cells import Culture
from acq_isl.sim.specimen.sensor import Sensor
from acq_isl.sim.specimen.synthetic import SyntheticSpecimen
from acq_isl.sim.view import View

DEMO = resources.files("acq_isl.models") / "demo.onnx"
LABELS = ("nuclei", "dendrites", "axons")
SIDE_PX, PIXEL_UM, Z_UM = 384, 0.3, 1.5 * (np.arange(13) - 6)
TRAIN, HELD_OUT, KS = 8, 7, (1, 2, 4, 8)
LEAST = 0.002  # share of pixels in which a label must be seen
FULL = 60000
STARTS = ("as it is", "adapted", "from scratch")


@dataclass(frozen=True)
class Task:
    """Something to adapt to."""

    name: str
    label: str | None
    labels: tuple[str, ...]
    ks: tuple[int, ...]
    held_out: tuple[str, ...]
    make: Callable[[Path], None]
    modality: str = "phase contrast"


def simulated(seed: int, optics: Transmitted, labels: tuple[str, ...], life: Life) -> Callable[[Path], None]:
    """Writes the fields of one microscope, each of another specimen."""

    def make(folder: Path) -> None:
        camera = Camera(CameraSettings(), seed=seed)
        found = (one for one in _fields(seed, optics, labels, life, camera))
        for number, (stack, truth) in zip(range(TRAIN + HELD_OUT), found, strict=False):
            write(folder, f"{number:02d}", stack, truth)

    return make


def _fields(
    seed: int, optics: Transmitted, labels: tuple[str, ...], life: Life, camera: Camera
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    number = 0
    while True:
        rng = np.random.default_rng([seed, number])
        culture = Culture(*rng.uniform(0.7, 1.3, 5))
        specimen = SyntheticSpecimen(seed + number, optics, culture, Sensor(seed), life)
        x_um, y_um = (float(value) for value in rng.uniform(-5000, 5000, 2))
        views = [View(x_um, y_um, float(z), "Phase", PIXEL_UM, (SIDE_PX, SIDE_PX)) for z in Z_UM]
        truth = {name: image for name, image in specimen.truth(views[0]).items() if name in labels}
        number += 1
        if min(float((image > 0.3).mean()) for image in truth.values()) < LEAST:
            continue
        planes = [
            camera.read(specimen.render(view), flux=1.0, bit_depth=16, frame=(number, z))
            for z, view in enumerate(views)
        ]
        yield np.stack(planes), {name: np.rint(FULL * image) for name, image in truth.items()}


def recorded(source: Path) -> Callable[[Path], None]:
    """Writes four pieces of columns 0-299, and columns 340-703."""

    def make(folder: Path) -> None:
        stack = tifffile.imread(source / "phase_contrast.ome.tif")
        files = zip(LABELS, ("dapi", "map2", "nfh"), strict=True)
        truth = {name: tifffile.imread(source / f"{file}.ome.tif") for name, file in files}
        half = stack.shape[1] // 2
        pieces = {
            "00": np.s_[:half, :150], "01": np.s_[half:, 150:300], "02": np.s_[half:, :150],
            "03": np.s_[:half, 150:300], "test": np.s_[:, 340:704],
        }  # fmt: skip
        for name, cut in pieces.items():
            write(folder, name, stack[(slice(None), *cut)], {n: image[cut] for n, image in truth.items()})

    return make


def write(folder: Path, name: str, stack: np.ndarray, truth: dict[str, np.ndarray]) -> None:
    tifffile.imwrite(folder / f"{name}_stack.tif", stack.astype(np.uint16), photometric="minisblack")
    for label, image in truth.items():
        tifffile.imwrite(folder / f"{name}_{label}.tif", image.astype(np.uint16))


def tasks(source: Path | None) -> Iterator[Task]:
    held = tuple(f"{number:02d}" for number in range(TRAIN, TRAIN + HELD_OUT))
    dying = simulated(72000, LIVE_PHASE_CONTRAST, ("dead",), Life(prevalence=0.4))
    yield Task("microscope", None, LABELS, KS, held, simulated(71000, DIC(), LABELS, Life()), "DIC")
    yield Task("label", "dead", ("dead",), KS, held, dying)
    if source is not None:
        yield Task("recorded", None, LABELS, (1, 2, 4), ("test",), recorded(source))


def run(task: Task, folder: Path, k: int, recipe: dict[str, Any]) -> Path:
    """One run of the command, unless it was done before; returns its table of units."""
    fields, out = folder / "fields", folder / f"seed-{recipe['seed']}-k-{k}"
    table = out / "transfer_units.csv"
    if table.exists():
        return table
    if not fields.exists():
        partial = folder / "fields.partial"
        partial.mkdir(parents=True, exist_ok=True)
        task.make(partial)
        partial.rename(fields)
    source = {
        "kind": "tiff", "folder": str(fields.resolve()), "stack": "{field}_stack.tif",
        "labels": {name: f"{{field}}_{name}.tif" for name in task.labels},
        "pixel_size_um": PIXEL_UM, "z_step_um": 1.5,
    }  # fmt: skip
    split = {"by": "field", "held_out": list(task.held_out)}
    pairs = folder / f"pairs-{recipe['seed']}.yaml"
    content = {"modality": task.modality, "data": [source], "split": split, "recipe": recipe}
    pairs.write_text(yaml.safe_dump(content), encoding="utf-8")
    command = ["-m", "acq_isl", "adapt", str(DEMO), "--pairs", str(pairs), "-o", str(out), "--k", str(k)]
    command += [] if task.label is None else ["--label", task.label]
    say(" ".join(["$ acq-isl", *command[2:]]))
    subprocess.run([sys.executable, *command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return table


def show(task: Task, tables: list[Path], seeds: int) -> None:
    """Means over fields and seeds, and what the same field and seed gained; +- is the SD over fields."""
    found: dict[tuple[int, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in tables:
        with path.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                at = (int(row["k"]), row["start"], row["label"])
                found[at][row["unit"]].append(float(row["pearson"]))
    units = len(next(iter(found.values())))
    say(f"\n{task.name}: Pearson on {units} held-out fields, {seeds} seeds, +- SD over fields\n")
    say(f"| k | label | {' | '.join(STARTS)} | adapted - from scratch | fields better |\n" + "|---" * 7 + "|")
    for k in task.ks:
        for label in (*task.labels, *(["mean"] if len(task.labels) > 1 else [])):
            names = task.labels if label == "mean" else (label,)
            values = [_by_unit(found, k if start != "as it is" else 0, start, names) for start in STARTS]
            gain = values[1] - values[2]
            cells = [_spread(one) for one in (*values, gain)]
            cells += [f"{int((gain > 0).sum())} of {len(gain)}"]
            say(f"| {k} | {label} | {' | '.join(cells)} |")


def _by_unit(found: Any, k: int, start: str, labels: tuple[str, ...]) -> np.ndarray:
    """Mean over seeds and labels, (unit,); empty where there is none."""
    each = [[np.mean(values) for values in found[k, start, label].values()] for label in labels]
    return np.mean(each, axis=0) if each[0] else np.zeros(0)


def _spread(values: np.ndarray) -> str:
    if not len(values):
        return ""
    return f"{values.mean():.3f}" + (f" +- {values.std(ddof=1):.3f}" if len(values) > 1 else "")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--recorded", type=Path, help="folder of the recorded field")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--task", choices=("microscope", "label", "recorded"), action="append")
    options = parser.parse_args()
    for task in tasks(options.recorded):
        if options.task and task.name not in options.task:
            continue
        folder = options.out / task.name
        recipes = [{"seed": seed, "steps": options.steps} for seed in range(options.seeds)]
        tables = [run(task, folder, k, recipe) for recipe in recipes for k in task.ks]
        show(task, tables, options.seeds)


if __name__ == "__main__":
    main()
