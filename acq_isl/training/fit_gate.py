"""A gate that follows harm: ``MODEL`` in, ``MODEL`` with an estimate of what predictions cost out.

    python -m acq_isl.training.fit_gate MODEL.onnx [--out OTHER.onnx] [--fields 64]

Fields of the simulated microscope, and of optics at random, are predicted as they are and under conditions of
random strength; what each costs in mean correlation with the truth is regressed on how stack and prediction
look (`acq_isl.training.window_cost`). The limit, and what is said of it, come from fields left out. Run it
after `acq_isl.training.calibrate`: the SD is among what is looked at.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import assert_never

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from acq_isl.compatibility import Refuse, Resample, Sort, Use, check
from acq_isl.engines.gate import COST
from acq_isl.engines.image_quality import check_image_quality
from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.errors import ExperimentError, ModelError, StackRefused
from acq_isl.manifest import Gate, GateJudgement, Manifest, Tolerated
from acq_isl.processing.normalize import inverse_contrast, resample, resize
from acq_isl.processing.statistics import pearson
from acq_isl.stack import Float32Image, StackInfo, StackKey, Uint16Image, ZStack
from acq_isl.training.calibrate import write_manifest
from acq_isl.training.conditions import AS_IS, TABLE, Condition, draw
from acq_isl.training.data.source_simulated import LABELS, SimulationConfig, simulate
from acq_isl.training.ood_gate import WINDOW_PX
from acq_isl.training.window_cost import STATISTICS, CostFit, Rows, kernels, with_cost, with_statistics

HARMFUL, HARMLESS = 0.07, 0.02
"""Costs in mean r above which a stack should be refused, and below which it should not."""
_SEED = 91
_FIELDS, _SIDE_PX, _DRAWN = 64, 256, 28
TOLERABLE: dict[Tolerated, Condition] = {
    "polarity": TABLE["inverted, said so before"],
    "half the z range": TABLE["z step x.5"],
}
"""Of what a model may bear that was not trained for it, the conditions by which that is known."""
_LEAST_SCENES = 8
_CENTRES, _WIDTH, _RIDGE = 600, 1.0, 1e-4
_MOST_COST, _LEAST_COST = 0.2, -0.02  # what lies beyond is as bad, or noise
_LIMITS = np.arange(0.025, 0.0651, 0.0025)
_MOST_REFUSED, _MOST_FLAGGED = 0.10, 0.05  # of harmless stacks; of the windows of stacks as they are
_FOLDS = 8
_FARTHER = 1.2
_LEAST_TRUTH = 1e-3  # between the darkest and the brightest pixel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A (z, y, x) uint16 stack as it should be, on the model's planes and pixels, and (label, y, x) its truth
    from 0 to 1, NaN or constant where a label is not known."""

    name: str
    stack: Uint16Image
    truth: Float32Image


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A scene under a condition: what that costs in mean r, the statistics of its windows, (window, F), and
    medians of the distances that the model had before, (K,)."""

    scene: str
    kind: str
    cost: float
    windows: Rows
    distances: Rows


class Judge:
    """Predicts scenes under conditions, in ONNX Runtime on one thread, with statistics of their windows."""

    def __init__(self, file: ModelFile) -> None:
        self.manifest = file.info.manifest
        before = self.manifest.gate.names if self.manifest.gate else ()
        self.names = tuple(name for name in before if name != COST)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        content = with_statistics(file.content, self.manifest)
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def try_all(self, scene: Scene, number: int) -> list[Case]:
        """A scene as it is, under what may be tolerated, and under conditions at random."""
        rng = np.random.default_rng([_SEED + 1, number])
        drawn = [draw(rng) for _ in range(_DRAWN)]
        found = list(self.cases(scene, [*TOLERABLE.items(), *drawn], number))
        logger.info("%s: %d stacks", scene.name, len(found))
        return found

    def cases(self, scene: Scene, conditions: Iterable[tuple[str, Condition]], seed: int) -> Iterator[Case]:
        """Of the conditions that metadata and image quality let pass."""
        rng = np.random.default_rng([_SEED, seed])
        clean = self._look(scene, TABLE[AS_IS], rng)
        if clean is None or not math.isfinite(clean[0]):
            return
        yield Case(scene.name, AS_IS, 0.0, *clean[1:])
        for kind, condition in conditions:
            found = self._look(scene, condition, rng)
            if found is not None and math.isfinite(found[0]):
                yield Case(scene.name, kind, clean[0] - found[0], *found[1:])

    def mean_r(self, scene: Scene, condition: Condition, rng: np.random.Generator) -> float:
        """Over the labels, whatever metadata and image quality say; 0 where there is no contrast at all."""
        stack, truth = self._spoil(scene, condition, rng)
        seen = self._pass(stack)
        pixels = stack.pixels if seen is None else seen
        try:
            return self._predict(np.ascontiguousarray(pixels), truth)[0]
        except StackRefused:
            return 0.0

    def _look(
        self, scene: Scene, condition: Condition, rng: np.random.Generator
    ) -> tuple[float, Rows, Rows] | None:
        """Mean r over the labels, statistics, and medians of distances; None if refused without a gate."""
        stack, truth = self._spoil(scene, condition, rng)
        pixels = self._pass(stack)
        return None if pixels is None else self._predict(np.ascontiguousarray(pixels), truth)

    def _spoil(
        self, scene: Scene, condition: Condition, rng: np.random.Generator
    ) -> tuple[ZStack, Float32Image]:
        pixels = np.ascontiguousarray(condition.perturb(scene.stack, rng))
        return say(self.manifest, scene.name, pixels, condition), condition.follow(scene.truth)

    def _pass(self, stack: ZStack) -> Uint16Image | None:
        """The stack as the model wants it; None if metadata or image quality refuse it."""
        verdict = check(self.manifest, stack.info)
        try:
            check_image_quality(stack)
        except StackRefused:
            return None
        match verdict:
            case Refuse():
                return None
            case Use():
                return stack.pixels
            case Sort() | Resample():
                return resample(stack, verdict)
            case _:
                assert_never(verdict)

    def _predict(self, pixels: Uint16Image, truth: Float32Image) -> tuple[float, Rows, Rows]:
        step = self.manifest.size_step_px
        size = pixels.shape[1:]
        missing = [max(WINDOW_PX, self.manifest.least_side_px) - side for side in size]
        wide = np.pad(pixels, ((0, 0), *((0, max(more, 0)) for more in missing)), "symmetric")
        rows, columns = (side // step * step for side in wide.shape[1:])
        counts = np.ascontiguousarray(wide[:, :rows, :columns], "<u2")
        inv_sd = inverse_contrast(counts, self.manifest.high_pass_um / self.manifest.pixel_size_um)
        feeds = {
            "stack": counts.view(np.uint8).reshape(1, *counts.shape, 2),
            "inv_sd": np.full(1, inv_sd, np.float32),
        }
        wanted = ["mean", STATISTICS, *(["distance"] if self.names else [])]
        mean, statistics, *distance = self._session.run(wanted, feeds)
        if distance and distance[0].shape[2:] != statistics.shape[2:]:
            raise ModelError(
                "no cost can be estimated beside the distances of this model",
                wanted=f"windows of {WINDOW_PX} px, half a window apart",
                got=f"a grid of {distance[0].shape[2:]} on {counts.shape[1:]} px",
                fix="train or export the model again with this version of acq-isl",
            )
        part = slice(0, min(rows, size[0])), slice(0, min(columns, size[1]))
        medians = [np.median(values, axis=(1, 2))[: len(self.names)] for values in (d[0] for d in distance)]
        return (
            mean_r(mean[0][:, *part], sized(truth, size)[:, *part]),
            statistics[0].reshape(statistics.shape[1], -1).T.astype(np.float64),
            np.asarray(medians[0] if medians else [], np.float64),
        )


def say(manifest: Manifest, name: str, pixels: Uint16Image, condition: Condition) -> ZStack:
    """A stack under a condition, with what it then says of itself."""
    info = StackInfo(
        StackKey(0, name, "light"), manifest.z_offsets_um, pixels.shape[1:], manifest.pixel_size_um,
        modality=manifest.modality, polarity=manifest.polarity,
    )  # fmt: skip
    return ZStack(condition.say(info), pixels, (0.0,) * len(pixels))


def sized(truth: Float32Image, size: tuple[int, int]) -> Float32Image:
    """(label, y, x) truth with as many rows and columns as the prediction has."""
    if truth.shape[1:] == size:
        return truth
    return np.stack([resize(np.asarray(image, np.float32), size) for image in truth])


def mean_r(predicted: Float32Image, truth: Float32Image) -> float:
    """Mean correlation over the labels, (label, y, x) each; NaN without any. A prediction that is the same
    everywhere counts 0, and a label whose truth is not known, or the same everywhere, does not."""
    found = [
        pearson(p, t)
        for p, t in zip(predicted, truth, strict=True)
        if np.isfinite(t).all() and np.ptp(t) > _LEAST_TRUTH
    ]
    return float(np.mean(np.nan_to_num(found))) if found else math.nan


def simulated_scenes(manifest: Manifest, fields: int, seed: int = _SEED) -> Iterator[Scene]:
    """On the model's planes and pixels, half in the light of the simulated microscope, half in any."""
    pixel_um, step_um = manifest.pixel_size_um, manifest.z_step_um or 1.0
    config = SimulationConfig(
        seed=seed, fields=0, held_out=fields, side_px=_SIDE_PX, planes=manifest.planes,
        pixel_um=(0.97 * pixel_um, 1.03 * pixel_um), z_step_um=(0.9 * step_um, 1.1 * step_um),
        focus_um=(-1.0, 1.0), reversed_z=0.0, live=0.5,
    )  # fmt: skip
    for index in range(fields):
        pair = simulate(config, index)
        true = dict(zip(LABELS, pair.labels / np.float32(255), strict=True))
        unknown = np.full(pair.stack.shape[1:], np.nan, np.float32)
        truth = np.stack([true.get(label, unknown) for label in manifest.label_names])
        yield Scene(f"simulated {seed}-{index}", pair.stack, truth)


def add_cost(model: Path | str, scenes: Iterable[Scene], judged_on: str, out: Path) -> Manifest:
    """Fit a cost to scenes and write the model file with it; returns its new manifest.

    Raises
    ------
    ExperimentError
        Too few scenes, or nothing in them that costs anything: no limit can be right.
    ModelError
        The model cannot be used, or has no tags.
    StorageError
        The file cannot be written.
    """
    file = read_model(model)
    judge = Judge(file)
    cases = [case for number, scene in enumerate(scenes) for case in judge.try_all(scene, number)]
    return write_cost(file, judge, cases, judged_on, out)


def write_cost(file: ModelFile, judge: Judge, cases: Sequence[Case], judged_on: str, out: Path) -> Manifest:
    """`add_cost` of cases that were tried before."""
    fit, gate = fit_cost(cases, judge, judged_on)
    tolerates = frozenset(
        what for what in TOLERABLE if _surely_harmless([case.cost for case in cases if case.kind == what])
    )
    manifest = judge.manifest.model_copy(update={"gate": gate, "tolerates": tolerates})
    write_manifest(with_cost(file.content, manifest, fit), manifest, out)
    return manifest


def _surely_harmless(costs: Sequence[float]) -> bool:
    """Whether a condition costs less than `HARMLESS` on average, by two standard errors."""
    if len(costs) < _LEAST_SCENES:
        return False
    return float(np.mean(costs) + 2 * np.std(costs) / math.sqrt(len(costs))) < HARMLESS


def fit_cost(cases: Sequence[Case], judge: Judge, judged_on: str) -> tuple[CostFit, Gate]:
    """The estimate, and the gate with its limit; `ExperimentError` if no limit can be right."""
    costs = np.array([case.cost for case in cases])
    harmful, harmless = costs > HARMFUL, costs < HARMLESS
    scenes = list(dict.fromkeys(case.scene for case in cases))
    if len(scenes) < _LEAST_SCENES or min(harmful.sum(), harmless.sum()) < 2 * _LEAST_SCENES:
        raise ExperimentError(
            "no cost can be estimated from these fields",
            wanted=f"{_LEAST_SCENES} fields, and {2 * _LEAST_SCENES} stacks each that cost much and little",
            got=f"{len(scenes)} fields, {harmful.sum()} stacks that cost more than {HARMFUL:g} r "
            f"and {harmless.sum()} that cost less than {HARMLESS:g}",
            fix="use more fields, or hold the model against their stain first: it may be of no use on them",
        )
    windows = np.concatenate([case.windows for case in cases])
    of = np.repeat(np.arange(len(cases)), [len(case.windows) for case in cases])
    solve = _Solver.of(windows, costs[of])
    held = np.zeros(len(of))
    for fold in range(min(_FOLDS, len(scenes))):
        left = np.isin([case.scene for case in cases], scenes[fold::_FOLDS])[of]
        held[left] = solve.fit(~left).estimate(windows[left])
    estimated = np.array([np.median(held[of == number]) for number in range(len(cases))])
    clean = held[np.array([case.kind == AS_IS for case in cases])[of]]
    limit = _choose_limit(estimated, clean, harmless)
    above = estimated > limit
    judgement = GateJudgement(
        judged_on=judged_on,
        harmful=int(harmful.sum()), caught=float(above[harmful].mean()),
        harmless=int(harmless.sum()), refused=float(above[harmless].mean()),
        clean_windows=float(np.mean(clean > limit)),
        correlation=float(np.corrcoef(estimated, costs)[0, 1]),
    )  # fmt: skip
    names, limits = _widen(judge, cases, harmless)
    alarms = judgement.clean_windows
    gate = Gate(names=(*names, COST), limits=(*limits, 100 * limit), false_alarms=alarms, judged=judgement)
    return solve.fit(np.ones(len(of), bool)), gate


def _choose_limit(estimated: Rows, clean: Rows, harmless: NDArray[np.bool_]) -> float:
    """The least limit under which few harmless stacks and few windows of clean ones are refused."""
    for limit in _LIMITS.tolist():
        if (estimated > limit)[harmless].mean() <= _MOST_REFUSED and np.mean(clean > limit) <= _MOST_FLAGGED:
            break
    return float(limit)


def _widen(
    judge: Judge, cases: Sequence[Case], harmless: NDArray[np.bool_]
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Limits of the distances that no stack lies beyond under a condition that costs little."""
    gate = judge.manifest.gate
    if gate is None or not judge.names:
        return (), ()
    found = np.array([case.distances for case in cases])[harmless]
    usual = np.quantile(found, 0.995, axis=0) * _FARTHER
    before = dict(zip(gate.names, gate.limits, strict=True))
    return judge.names, tuple(
        float(max(before[name], own)) for name, own in zip(judge.names, usual, strict=True)
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Solver:
    """Ridge regression on kernels about some of the windows; only the windows fitted to change."""

    start: CostFit
    near: Rows  # (window, H)
    costs: Rows

    @classmethod
    def of(cls, windows: Rows, costs: Rows) -> _Solver:
        mean, scale = windows.mean(axis=0), windows.std(axis=0) + 1e-3
        none = np.zeros(0)
        start = CostFit(mean, scale, none, none, _WIDTH / windows.shape[1], 0.0)
        z = start.whiten(windows)
        rng = np.random.default_rng(_SEED)
        chosen = rng.choice(len(z), min(_CENTRES, len(z)), replace=False)
        start = replace(start, centres=z[chosen])
        return cls(start, kernels(z, start.centres, start.width), np.clip(costs, _LEAST_COST, _MOST_COST))

    def fit(self, used: NDArray[np.bool_]) -> CostFit:
        """The estimate from some of the windows, (window,) bool."""
        near, costs = self.near[used], self.costs[used]
        out = float(costs.mean())
        square = near.T @ near + _RIDGE * len(near) * np.eye(near.shape[1])
        weights = np.asarray(np.linalg.solve(square, near.T @ (costs - out)), np.float64)
        return replace(self.start, out=out, weights=weights)


def main(words: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, help="by default the model itself")
    parser.add_argument("--fields", type=int, default=_FIELDS)
    options = parser.parse_args(words)
    before = read_model(options.model).info.manifest
    scenes = simulated_scenes(before, options.fields)
    judged_on = f"{options.fields} simulated fields, each left out of the fit"
    manifest = add_cost(options.model, scenes, judged_on, options.out or options.model)
    logger.info("gate: %s", manifest.gate)
    logger.info("tolerates: %s", ", ".join(sorted(manifest.tolerates)) or "nothing")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
