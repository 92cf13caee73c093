"""Does the gate follow harm? ``python benchmarks/gate.py [MODEL] [--recorded FOLDER]``.

Every condition of `acq_isl.training.conditions.TABLE` is done to fields of the simulated microscope, of
cultures that no model and no gate was fitted to, and to the halves of a recorded field where it is there.
The engine says whether it refuses the stack, the truth what the condition costs in mean correlation, on
average on that kind of field. Bars: at least 90 % refused under conditions that cost more than .07, at most
10 % under those that cost less than .02, at most 5 % of the windows of stacks as they are beyond a limit.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.agreement import as_bytes
from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.engines.onnx import OnnxNetwork
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import StackRefused
from acq_isl.manifest import Manifest
from acq_isl.processing.normalize import inverse_contrast
from acq_isl.sim import CameraSettings, SyntheticSpecimen, View
from acq_isl.sim.scope.camera import Camera
from acq_isl.stack import ZStack
from acq_isl.training.conditions import AS_IS, TABLE
from acq_isl.training.fit_gate import HARMFUL, HARMLESS, Judge, Scene, mean_r, say, sized

SIDE_PX, SEEDS = 384, (31, 32, 33)
STAINS = {"nuclei": "dapi", "dendrites": "map2", "axons": "nfh"}
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one field under one condition; ``cost`` in mean r, ``why`` is empty if accepted."""

    material: str
    condition: str
    cost: float
    why: str


def live_scenes(manifest: Manifest, seeds: Sequence[int]) -> Iterator[Scene]:
    """One field of each culture, as the simulated microscope shows it."""
    for seed in seeds:
        specimen, camera = SyntheticSpecimen(seed), Camera(CameraSettings(), seed=seed)
        shape, pixel_um = (SIDE_PX, SIDE_PX), manifest.pixel_size_um
        views = [View(400.0, -300.0, z, "Phase", pixel_um, shape) for z in manifest.z_offsets_um]
        frames = [
            camera.read(specimen.render(view), flux=1.0, bit_depth=16, frame=(0, plane))
            for plane, view in enumerate(views)
        ]
        truth = specimen.truth(views[0])
        yield Scene(
            f"culture {seed}", np.stack(frames).astype(np.uint16), _stacked(manifest, truth, views[0].shape)
        )


def recorded_scenes(manifest: Manifest, folder: Path) -> Iterator[Scene]:
    """The halves of the recorded field, its truth from the 1st to the 99.8th percentile."""
    import tifffile

    stack = tifffile.imread(folder / "phase_contrast.ome.tif")
    truth = {}
    for label, name in STAINS.items():
        image = tifffile.imread(folder / f"{name}.ome.tif").astype(np.float32)
        low, high = np.percentile(image, (1, 99.8))
        truth[label] = np.clip((image - low) / (high - low), 0, 1)
    whole, middle = _stacked(manifest, truth, stack.shape[1:]), stack.shape[1] // 2
    for half, rows in (("first half", slice(0, middle)), ("second half", slice(middle, None))):
        yield Scene(half, np.ascontiguousarray(stack[:, rows]), np.ascontiguousarray(whole[:, rows]))


def _stacked(manifest: Manifest, truth: dict[str, Values], shape: tuple[int, ...]) -> Values:
    unknown = np.full(shape, np.nan, np.float32)
    return np.stack([truth.get(label, unknown) for label in manifest.label_names])


def judge(file: ModelFile, material: str, scenes: Iterator[Scene]) -> Iterator[Verdict]:
    """Every field under every condition, as an engine would see it."""
    measure = Judge(file)
    with Predictor(file.info, OnnxNetwork(file, threads=1)) as engine:
        for scene in scenes:
            clean = measure.mean_r(scene, TABLE[AS_IS], np.random.default_rng(0))
            for number, (name, condition) in enumerate(TABLE.items()):
                pixels = condition.perturb(scene.stack, np.random.default_rng(number))
                stack = say(file.info.manifest, scene.name, np.ascontiguousarray(pixels), condition)
                why, mean = _ask(engine, stack)
                if mean is None:
                    r = measure.mean_r(scene, condition, np.random.default_rng(number))
                else:
                    r = mean_r(mean, sized(condition.follow(scene.truth), mean.shape[1:]))
                yield Verdict(material, name, clean - r, why)
            tell(f"{scene.name}: mean r {clean:.3f}")


def _ask(engine: Predictor, stack: ZStack) -> tuple[str, Values | None]:
    """Why the engine refuses a stack, in short, or its means."""
    try:
        return "", engine.predict(stack).mean
    except StackRefused as error:
        by_gate = "is not predicted" in error.what or "does not look like" in error.what
        return (error.got if by_gate and error.got else error.what.partition(": ")[2] or error.what), None


def flag_windows(file: ModelFile, scenes: Iterable[Scene]) -> float:
    """Share of windows of stacks as they are beyond any limit."""
    manifest, flags = file.info.manifest, []
    network = OnnxNetwork(file, threads=1)
    if manifest.gate is None:
        return 0.0
    for scene in scenes:
        inverse = inverse_contrast(scene.stack, manifest.high_pass_um / manifest.pixel_size_um)
        outputs = network.run(as_bytes(scene.stack[None]), np.full(1, inverse, np.float32))
        distance = outputs[network.outputs.index("distance")][0]
        flags.append((distance > np.array(manifest.gate.limits)[:, None, None]).any(axis=0).ravel())
    return float(np.concatenate(flags).mean())


def rates(found: Sequence[Verdict]) -> dict[str, float]:
    """Shares refused, averaged over conditions: those that cost much and little on their material."""
    shares: dict[str, list[float]] = {"harmful": [], "harmless": []}
    for material in dict.fromkeys(one.material for one in found):
        for name in TABLE:
            own = [one for one in found if (one.material, one.condition) == (material, name)]
            cost, refused = mean([one.cost for one in own]), mean([bool(one.why) for one in own])
            if cost > HARMFUL:
                shares["harmful"].append(refused)
            elif cost < HARMLESS:
                shares["harmless"].append(refused)
    return {what: mean(values) for what, values in shares.items()}


def rows(found: Sequence[Verdict]) -> Iterator[str]:
    """The table: by condition and material the cost, the share refused, whether that is right, and why."""
    for name in TABLE:
        cells = [name]
        for material in dict.fromkeys(one.material for one in found):
            own = [one for one in found if (one.material, one.condition) == (material, name)]
            cost, refused = mean([one.cost for one in own]), sum(bool(one.why) for one in own)
            right = refused == len(own) if cost > HARMFUL else refused == 0 if cost < HARMLESS else None
            verdict = {True: "right", False: "wrong", None: "either"}[right]
            why = next((one.why for one in own if one.why), "")
            cells += [f"{cost:+.3f}", f"{refused} of {len(own)}", verdict, why]
        yield f"| {' | '.join(cells)} |"


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--recorded", type=Path, default=Path("../shared/data/isl_condition_b"))
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    options = parser.parse_args()
    file = read_model(options.model)
    simulated = list(live_scenes(file.info.manifest, options.seeds))
    materials = {"simulated": simulated} if simulated else {}
    if options.recorded.is_dir():
        materials["recorded"] = list(recorded_scenes(file.info.manifest, options.recorded))
    found = [one for material, scenes in materials.items() for one in judge(file, material, iter(scenes))]
    wanted = len(TABLE) * sum(map(len, materials.values()))
    assert len(TABLE) >= 45 and len(found) == wanted, f"{len(found)} of {wanted} verdicts"
    assert all(math.isfinite(one.cost) for one in found)
    heads = ["condition", *(f"{m}: {what}" for m in materials for what in ("cost", "refused", "", "why"))]
    tell(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for row in rows(found):
        tell(row)
    for material, scenes in (*materials.items(), ("all", [])):
        own = [one for one in found if material in ("all", one.material)]
        each = rates(own)
        harmful, harmless = ([bool(o.why) for o in own if test(o.cost)] for test in (is_harmful, is_harmless))
        tell(
            f"{material}: refused {each['harmful']:.0%} under conditions that cost more than {HARMFUL:g} "
            f"({mean(harmful):.0%} of {len(harmful)} single stacks), {each['harmless']:.0%} under those that "
            f"cost less than {HARMLESS:g} ({mean(harmless):.0%} of {len(harmless)})"
            + (f"; {flag_windows(file, scenes):.1%} of clean windows" if scenes else "")
        )


def is_harmful(cost: float) -> bool:
    return cost > HARMFUL


def is_harmless(cost: float) -> bool:
    return cost < HARMLESS


if __name__ == "__main__":
    main()
