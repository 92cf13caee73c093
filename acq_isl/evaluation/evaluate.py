"""A model is held against images it has not seen: label by label, well by well, with floor and ceiling."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.model_file import ModelInfo, read_model
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.errors import ExperimentError, PairRefused, StackRefused, StorageError
from acq_isl.evaluation.baselines import expose_again, fit_line
from acq_isl.evaluation.gate_test import GateTest
from acq_isl.evaluation.ground_truth import GroundTruth, shows_anything
from acq_isl.evaluation.results import CEILING, FLOOR, MODEL, Report, Score, Settings, ShownField, SplitUnit
from acq_isl.evaluation.scores import (
    find_objects,
    foreground_threshold,
    otsu_threshold,
    score_blocks,
    score_objects,
    score_pixels,
    score_std,
)
from acq_isl.processing.counting import count_on_stain
from acq_isl.protocols import Engine
from acq_isl.rules import ObjectCount
from acq_isl.rules.measurements import measure
from acq_isl.stack import Float32Image, Prediction
from acq_isl.training.data.geometry import fit, make_stack
from acq_isl.training.data.pairs import Item, Recording
from acq_isl.training.data.register import load_checked
from acq_isl.training.data.registration import structure

_SHOWN = 6
_BLOCK_UM = 40.0
_COUNTED_ABOVE = 0.2  # of models that do not say how their objects are counted
_FLOOR_UM = 1.2
_TRUTH = "truth"
_BARE = "shows nothing but noise in the real stain, so there is nothing to agree with; no cells in it?"
_UNKNOWN = "the model file does not say what it was trained on, so nobody knows that this is new"


@dataclass(slots=True)
class _Part:
    """One label of one field, one way; images are kept for labels with objects, in half precision."""

    score: Score
    pixel_size_um: float
    image: NDArray[np.float16] | None

    @property
    def float_image(self) -> Float32Image:
        return np.asarray(self.image, np.float32)


def evaluate(
    model: Path | str,
    items: Sequence[Item],
    settings: Settings,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Evaluate a model, through the reference engine, on recorded pairs; ``tell`` hears each field's name.
    `PairRefused`: no pair can be scored, a well is wanted where none is known, or no stain fits a label.
    Raises `ModelError`, `EngineError` too."""
    began_s = time.monotonic()
    file = read_model(model)
    units = _name_units(items, settings.split_unit)
    truth = GroundTruth.match(file.info.manifest, items, settings)
    parts: list[_Part] = []
    shown: list[ShownField] = []
    refused: list[tuple[str, str]] = []
    bare, images = list[str](), 0
    warnings = [_UNKNOWN] * (file.info.manifest.training is None)
    with (
        _open_engine(model, settings) as engine,
        closing(GateTest(file, settings.threads)) as gate_test,
    ):
        for item in items:
            tell(item.name)
            try:
                recording, said = load_checked(item, settings.checks)
                warnings += said
                scored = _score_field(engine, recording, truth, settings, (units[item.name], item.name))
                true = {label: images[0] for label, images in scored[1].labels.items()}
                bare += [f"{item.name}: {label} {_BARE}" for label in true if not shows_anything(true[label])]
                images += len(true)
                if settings.perturb:
                    fitted = fit(replace(recording, labels=true), item.name, engine.manifest)
                    gate_test.add(fitted.stack, fitted.labels)
            except (PairRefused, StorageError, StackRefused) as error:
                refused.append((item.name, str(error)))
                continue
            parts += scored[0]
            warnings += [f"{item.name}: {text}" for text in scored[2]]
            if len(shown) < _SHOWN and scored[1].unit not in {field.unit for field in shown}:
                shown.append(scored[1])
        perturbations, name = gate_test.results(), engine.way
    _require_cells(refused, images, len(bare))
    return Report(
        file.info, name, settings, _pool_units(_with_objects(parts, truth)), perturbations, truth.origins,
        tuple(shown), tuple(refused), find_leaks(file.info, items), tuple(dict.fromkeys(warnings + bare)),
        time.monotonic() - began_s,
    )  # fmt: skip


def _open_engine(model: Path | str, settings: Settings) -> OnnxEngine:
    """One that also scores what the gate would refuse: what that is worth is the question here."""
    engine = OnnxEngine(model, threads=settings.threads, gate="warn")
    engine.use_views(settings.views)
    return engine


def _require_cells(refused: Sequence[tuple[str, str]], images: int, bare: int) -> None:
    """`PairRefused` if no image of a stain was scored, or none shows a cell."""
    if not images:
        got = "; ".join(f"{name}: {why}" for name, why in refused[:3]) or "no fields"
        raise PairRefused(
            "no field could be scored", wanted="at least one", got=got, fix="see the reasons above"
        )
    if bare == images:
        raise PairRefused(
            "no stain shows a cell",
            wanted="stained cells in at least one field",
            got=f"noise and uneven light in {images} images",
            fix="check that the stain was imaged, or evaluate on fields with cells",
        )


def _name_units(items: Sequence[Item], split_unit: SplitUnit) -> dict[str, str]:
    """Held-out unit by field."""
    if split_unit == "field":
        return {item.name: item.name for item in items}
    unknown = [item.name for item in items if item.well is None]
    if unknown:
        raise PairRefused(
            "nobody knows from which wells these fields are",
            wanted="a well for every field",
            got=f"none for {', '.join(unknown[:5])}",
            fix="put the well into the folder or file names, or use --split-unit field and say so",
        )
    return {item.name: item.well or item.name for item in items}


def find_leaks(info: ModelInfo, items: Iterable[Item]) -> tuple[str, ...]:
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


def _score_field(
    engine: Engine, recording: Recording, truth: GroundTruth, settings: Settings, names: tuple[str, str]
) -> tuple[list[_Part], ShownField, tuple[str, ...]]:
    """Score every label of one field, of these names of unit and field, in every way; with warnings."""
    unit, name = names
    pixel_um = recording.pixel_size_um
    prediction = engine.predict(make_stack(recording, name, engine.manifest))
    true = truth.scale(recording)
    parts: list[_Part] = []
    shown: dict[str, tuple[Float32Image, Float32Image, Float32Image]] = {}
    floor = structure(recording.stack, _FLOOR_UM / pixel_um)
    for label, image in true.items():
        index = prediction.labels.index(label)
        mean, std = prediction.mean[index], prediction.spread[index]
        shown[label] = image, mean, std
        ways = {
            _TRUTH: image,
            MODEL: mean,
            FLOOR: fit_line(floor, image),
            CEILING: expose_again(image, settings.registration_um / pixel_um, seed=len(parts)),
        }
        kept = set(ways) if label in truth.objects else set()
        ways |= {f"real {key}": fit_line(other, image) for key, other in true.items() if key != label}
        valid = truth.valid(recording, label)
        for way, guess in ways.items():
            score = Score(unit, label, way, score_pixels(guess, image, valid))
            if way in (MODEL, FLOOR):
                blocks = score_blocks(guess, image, valid, round(_BLOCK_UM / pixel_um))
                score = replace(score, blocks=blocks)
            if way == MODEL:
                bright = image > otsu_threshold([image])
                counted = _count(prediction, label, image, name) if label in truth.objects else ()
                score = replace(score, std=score_std(mean, std, image, bright), counted=counted)
            parts.append(_Part(score, pixel_um, guess.astype(np.float16) if way in kept else None))
    middle = recording.stack[len(recording.stack) // 2]
    return parts, ShownField(name, unit, pixel_um, middle, shown), prediction.warnings


def _count(
    prediction: Prediction, label: str, true: Float32Image, name: str
) -> tuple[tuple[str, float, float, float], ...]:
    """Objects of a field as its rules would count them, and those of its stain; none of a network."""
    try:
        found = measure(prediction, ObjectCount(label=label, above=_COUNTED_ABOVE))
    except ExperimentError:
        return ()
    return ((name, found.value, found.doubt, float(count_on_stain(true, prediction.info.pixel_size_um))),)


def _with_objects(parts: Sequence[_Part], truth: GroundTruth) -> list[Score]:
    """All scores, with objects: one threshold for all fields together, one segmenter for every way."""
    for label in truth.objects:
        ways = {
            way: [part for part in parts if (part.score.label, part.score.way) == (label, way)]
            for way in (_TRUTH, MODEL, FLOOR, CEILING)
        }
        if not ways[_TRUTH]:
            continue
        thresholds = {
            way: foreground_threshold([part.float_image for part in own], own[0].pixel_size_um)
            for way, own in ways.items()
        }
        thresholds[CEILING] = thresholds[_TRUTH]
        found = {
            way: [find_objects(part.float_image, thresholds[way], part.pixel_size_um) for part in own]
            for way, own in ways.items()
        }
        for way in (MODEL, FLOOR, CEILING):
            for part, objects, true in zip(ways[way], found[way], found[_TRUTH], strict=True):
                part.score = replace(part.score, objects=score_objects(objects, true))
    return [part.score for part in parts if part.score.way != _TRUTH]


def _pool_units(scores: Sequence[Score]) -> tuple[Score, ...]:
    """Fields of the same unit together."""
    pooled: dict[tuple[str, str, str], Score] = {}
    for score in scores:
        key = score.unit, score.label, score.way
        pooled[key] = pooled[key] + score if key in pooled else score
    return tuple(pooled.values())
