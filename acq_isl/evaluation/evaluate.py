"""A model is held against images it has not seen: label by label, well by well, with floor and ceiling."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acq_isl.compatibility import Refuse, Resample, check
from acq_isl.engines.model_file import ModelInfo, read_model
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.errors import PairRefused, StackRefused
from acq_isl.evaluation import baselines
from acq_isl.evaluation.gate_test import Trial
from acq_isl.evaluation.ground_truth import Truths
from acq_isl.evaluation.results import CEILING, FLOOR, MODEL, Report, Score, Settings, ShownField, SplitUnit
from acq_isl.evaluation.scores import (
    PixelScore,
    Segmenter,
    SpreadScore,
    added,
    foreground_threshold,
    object_scores,
    otsu,
    pixel_score,
    spread_score,
)
from acq_isl.processing.normalize import resample, resize
from acq_isl.processing.segmentation import Mask, ObjectScore
from acq_isl.protocols import Engine
from acq_isl.stack import Float32Image, StackInfo, StackKey, Uint16Image, ZStack
from acq_isl.training.data.pairs import Checks, Item, Recording, examine

_SHOWN = 6
_TRUTH = "truth"
_UNKNOWN = "the model file does not say what it was trained on, so nobody knows that this is new"
_Tell = Callable[[str], None]


@dataclass(slots=True)
class _Part:
    """One label of one field, one way; images are kept for labels with objects, in half precision."""

    unit: str
    label: str
    way: str
    pixels: PixelScore
    spread: SpreadScore | None = None
    image: NDArray[np.float16] | None = None
    pixel_size_um: float = 1.0
    objects: Mapping[float, ObjectScore] = field(default_factory=dict)


def evaluate(
    model: Path | str, items: Sequence[Item], settings: Settings, tell: _Tell = lambda _: None
) -> Report:
    """Evaluate a model on recorded pairs.

    Parameters
    ----------
    model : path or str
        As for `acq_isl.engines.load_engine`; pairs go through the reference engine as stacks of a run do.
    items : sequence of Item
    settings : Settings
    tell : callable
        Hears the name of each field before its turn.

    Returns
    -------
    Report

    Raises
    ------
    PairRefused
        No pair can be scored, a well is wanted where none is known, or no stain fits a label.
    ModelError, EngineError
    """
    began_s = time.monotonic()
    file = read_model(model)
    units = _units(items, settings.split_unit)
    truths = Truths.of(file.info.manifest, items, settings)
    parts: list[_Part] = []
    shown: list[ShownField] = []
    refused: list[tuple[str, str]] = []
    leaks = seen_in_training(file.info, items)
    warnings = [_UNKNOWN] * (file.info.manifest.training is None)
    # A stack that the gate would refuse is scored all the same: what it is worth is the question here.
    with OnnxEngine(model, threads=settings.threads, gate="warn") as engine:
        trial = Trial(file, settings.threads)
        try:
            for item in items:
                tell(item.name)
                try:
                    recording = item.load()
                    warnings += examine(recording, item.name, Checks())
                    made = _field(engine, recording, truths, settings, (units[item.name], item.name))
                    trial.add(*_on_grid(engine, recording, made[1]))
                except (PairRefused, StackRefused) as error:
                    refused.append((item.name, str(error)))
                    continue
                parts += made[0]
                warnings += [f"{item.name}: {text}" for text in made[2]]
                if len(shown) < _SHOWN and made[1].unit not in {one.unit for one in shown}:
                    shown.append(made[1])
            conditions = trial.results()
        finally:
            trial.close()
        name = engine.name
    if not parts:
        raise _nothing(refused)
    scores = _added(_with_objects(parts, truths))
    return Report(
        file.info, name, settings, scores, conditions, truths.words, tuple(shown), tuple(refused),
        leaks, tuple(dict.fromkeys(warnings)), time.monotonic() - began_s,
    )  # fmt: skip


def _units(items: Sequence[Item], split_unit: SplitUnit) -> dict[str, str]:
    """Held-out unit by field."""
    unknown = [item.name for item in items if item.well is None] if split_unit == "well" else []
    if unknown:
        raise PairRefused(
            "nobody knows from which wells these fields are",
            wanted="a well for every field",
            got=f"none for {', '.join(unknown[:5])}",
            fix="put the well into the folder or file names, or use --split-unit field and say so",
        )
    return {item.name: (item.well or item.name) if split_unit == "well" else item.name for item in items}


def seen_in_training(info: ModelInfo, items: Iterable[Item]) -> tuple[str, ...]:
    """Which of these fields the model was trained on, by its own account."""
    training = info.manifest.training
    if training is None:
        return ()
    listed, found = list(items), []
    for what, known, names in (
        ("fields", training.fields, {item.name for item in listed}),
        ("wells", training.wells, {item.well for item in listed if item.well}),
    ):
        both = sorted(names & set(known))
        if both:
            found.append(f"not held out: the model was trained on these {what}: {', '.join(both[:8])}")
    return tuple(found)


def _nothing(refused: list[tuple[str, str]]) -> PairRefused:
    got = "; ".join(f"{name}: {why}" for name, why in refused[:3]) or "no fields"
    return PairRefused(
        "no field could be scored", wanted="at least one", got=got, fix="see the reasons above"
    )


def stack_of(recording: Recording, name: str, engine: Engine) -> ZStack:
    """What an engine is shown of a recording; modality and polarity are taken on trust."""
    planes, rows, columns = recording.stack.shape
    manifest = engine.manifest
    z_um = tuple(recording.z_step_um * (plane - (planes - 1) / 2) for plane in range(planes))
    info = StackInfo(
        StackKey(0, name, "transmitted"), z_um, (rows, columns), recording.pixel_size_um,
        modality=manifest.modality, polarity=manifest.polarity,
    )  # fmt: skip
    return ZStack(info, recording.stack, (0.0,) * planes)


def _field(
    engine: Engine, recording: Recording, truths: Truths, settings: Settings, names: tuple[str, str]
) -> tuple[list[_Part], ShownField, tuple[str, ...]]:
    """Score every label of one field, of these names of unit and field, in every way; with warnings."""
    unit, name = names
    displaced_px = settings.registration_um / recording.pixel_size_um
    prediction = engine.predict(stack_of(recording, name, engine))
    scaled = truths.scaled(recording)
    parts: list[_Part] = []
    shown: dict[str, tuple[Float32Image, Float32Image, Float32Image]] = {}
    floor = baselines.structure(recording.stack, recording.pixel_size_um)
    for label, truth in scaled.items():
        index = prediction.labels.index(label)
        mean, spread = prediction.mean[index], prediction.spread[index]
        shown[label] = truth, mean, spread
        ways = {
            _TRUTH: truth,
            MODEL: mean,
            FLOOR: baselines.fitted(floor, truth),
            CEILING: baselines.second_reading(truth, displaced_px, seed=len(parts)),
        }
        others = {f"real {key}": image for key, image in scaled.items() if key != label}
        ways |= {way: baselines.fitted(image, truth) for way, image in others.items()}
        valid = truths.valid(recording, label)
        for way, image in ways.items():
            keep = label in truths.objects and way in (_TRUTH, MODEL, FLOOR, CEILING)
            parts.append(
                _Part(
                    unit, label, way, pixel_score(image, truth, valid),
                    spread_score(mean, spread, truth, truth > otsu([truth])) if way == MODEL else None,
                    image.astype(np.float16) if keep else None, recording.pixel_size_um,
                )
            )  # fmt: skip
    middle = recording.stack[len(recording.stack) // 2]
    return parts, ShownField(name, unit, recording.pixel_size_um, middle, shown), prediction.warnings


def _on_grid(
    engine: Engine, recording: Recording, shown: ShownField
) -> tuple[Uint16Image, dict[str, Float32Image]]:
    """Stack and truths on the model's planes and pixels."""
    stack = stack_of(recording, shown.name, engine)
    verdict = check(engine.manifest, stack.info)
    if isinstance(verdict, Refuse):
        raise StackRefused(verdict.reason, fix=verdict.fix)
    pixels = resample(stack, verdict) if isinstance(verdict, Resample) else recording.stack
    shape = pixels.shape[1], pixels.shape[2]
    return pixels, {label: resize(images[0], shape) for label, images in shown.labels.items()}


def _with_objects(parts: list[_Part], truths: Truths) -> list[_Part]:
    """Add object scores: one threshold for all fields together, one segmenter for every way."""
    for label in truths.objects:
        ways = {
            way: [part for part in parts if part.label == label and part.way == way]
            for way in (_TRUTH, MODEL, FLOOR, CEILING)
        }
        thresholds = {way: _threshold(own) for way, own in ways.items()}
        thresholds[CEILING] = thresholds[_TRUTH]
        true = [_objects(part, thresholds[_TRUTH]) for part in ways[_TRUTH]]
        for way in (MODEL, FLOOR, CEILING):
            for part, wanted in zip(ways[way], true, strict=True):
                part.objects = object_scores(_objects(part, thresholds[way]), wanted)
    return [part for part in parts if part.way != _TRUTH]


def _threshold(parts: list[_Part]) -> float:
    images = [_single(part) for part in parts]
    return foreground_threshold(images, parts[0].pixel_size_um) if images else 0.0


def _objects(part: _Part, above: float) -> Mask:
    return Segmenter(above, part.pixel_size_um)(_single(part))


def _single(part: _Part) -> Float32Image:
    return np.asarray(part.image, np.float32)


def _added(parts: list[_Part]) -> tuple[Score, ...]:
    """Fields of the same unit together."""
    groups: dict[tuple[str, str, str], list[_Part]] = {}
    for part in parts:
        groups.setdefault((part.unit, part.label, part.way), []).append(part)
    scores = []
    for key, group in groups.items():
        pixels, spread = group[0].pixels, group[0].spread
        for part in group[1:]:
            pixels = pixels + part.pixels
            spread = spread + part.spread if spread is not None and part.spread is not None else None
        objects = {iou: added([part.objects[iou] for part in group]) for iou in group[0].objects}
        scores.append(Score(*key, len(group), pixels, spread, objects))
    return tuple(scores)
