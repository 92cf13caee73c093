"""What a session knows at its end becomes the record of the run."""

from __future__ import annotations

import importlib.metadata
import itertools
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from acq_isl.errors import AcqIslError, ExperimentError
from acq_isl.events import Bound
from acq_isl.experiment.experiment import Experiment, NoEngine, measurements
from acq_isl.experiment.planning import Cycle, interval_kept
from acq_isl.processing.display import reduced, stretched
from acq_isl.processing.statistics import pearson
from acq_isl.record import Comparison, FieldRecord, RunRecord, StageLatency
from acq_isl.rules import Limits, Measurement
from acq_isl.rules.light import LightLedger, explain_light
from acq_isl.session.fields import Field
from acq_isl.session.grading.scores import object_f1, pair_labels, to_bright_end
from acq_isl.session.trust import truth_of
from acq_isl.stack import Float32Image, Prediction, StackKey, StackRequest, StageTimes, Uint16Image

_THUMBNAIL_PX = 384
_ROUNDING = 1e-9
_STAGES = ("expose", "transfer", "wait", "infer", "decode", "turn")
_FLOOR_UM, _DISPLACED_UM = 1.2, 1.0
PACKAGES = ("acq-isl", "pycromanager", "pymmcore", "numpy", "pyzmq", "onnxruntime", "zarr", "useq-schema")


@dataclass(frozen=True, slots=True)
class Stored:
    """How to read back what is on disk; both raise AcqIslError."""

    images: Callable[[StackRequest], Uint16Image]  # measured slices of a request, (z, y, x) uint16
    prediction: Callable[[StackKey, str], Prediction]
    """Prediction of a stack by its key and by a model's name, in full, with labels called as in the run."""


class RunParts(Protocol):
    """What a `Session`, or what is on disk of one, knows of a run."""

    @property
    def fields(self) -> dict[StackKey, Field]: ...
    @property
    def asked(self) -> list[StackRequest]: ...
    @property
    def acquired(self) -> list[StackRequest]: ...
    @property
    def decide_ms(self) -> list[float]: ...
    @property
    def warnings(self) -> list[str]: ...
    @property
    def cycles(self) -> Sequence[Cycle]: ...
    @property
    def dropped(self) -> set[StackKey]:
        """Stacks of the plan that an action decided to leave out."""
        ...

    @property
    def light(self) -> LightLedger: ...
    @property
    def began(self) -> list[tuple[Cycle, float]]:
        """Every cycle with the second at which it began, as far as it is known."""
        ...


def run_files(folder: Path) -> dict[str, str]:
    """What is in a run folder, and where."""
    sets = sorted(path.name for path in folder.glob("measured_*") if path.is_dir())
    named = {f"measured data (NDTiff){f' {n}' * (n > 1)}": name for n, name in enumerate(sets, 1)}
    others = {
        "predictions (OME-Zarr)": "predictions.ome.zarr",
        "decisions": "decisions.jsonl",
        "measurements (table)": "measurements.csv",
        "light per field and object (table)": "dose.csv",
        "decisions of the recovery": "recovery.jsonl",
        "experiment as run": "experiment.yaml",
        "true cells": "truth.json",
        "pairs for adapting the model": "pairs.yaml",
        "stacks that wait for an engine": "spool",
        "report of the run itself": "report_before_recovery.html",
    }
    for path in sorted((*folder.glob("experiment_*.yaml"), *folder.glob("decisions_damaged_*.jsonl"))):
        others[path.stem.replace("_", " ")] = path.name
    there = {what: name for what, name in others.items() if (folder / name).exists()}
    return named | there


def summarise(experiment: Experiment, session: RunParts, stored: Stored, record: RunRecord) -> RunRecord:
    """Complete the record of a run, also of one that ended early, with what the session knows."""
    fields = [field for field in session.fields.values() if field.answers]
    predictions = [prediction for field in fields for prediction in field.predictions]
    warnings = [*record.warnings, *session.warnings, *late_intervals(session.began)]
    records = [_record(field, stored, warnings) for field in fields]
    comparisons = _comparisons(experiment, session, stored, warnings)
    return replace(
        record,
        engine=", ".join(sorted({prediction.engine for prediction in predictions})),
        fields=tuple(field for field in records if field is not None),
        comparisons=comparisons,
        counts=replace(record.counts, requested=sum(len(request.z_um) for request in session.asked)),
        latencies=latencies([prediction.times for prediction in predictions], session.decide_ms),
        response=_latency("response", [field.response_ms for field in fields if field.predictions]),
        shortfall=shortfall(experiment, session),
        light=_light(experiment, session),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def latencies(times: Sequence[StageTimes], decide_ms: Sequence[float]) -> tuple[StageLatency, ...]:
    """Median and 95th percentile of every stage, in milliseconds; nothing without predictions."""
    if not times:
        return ()
    samples = {stage: [getattr(stages, f"{stage}_ms") for stages in times] for stage in _STAGES}
    samples["decide"] = list(decide_ms) or [0.0]
    found = (_latency(stage, values) for stage, values in samples.items())
    return tuple(latency for latency in found if latency is not None)


def _latency(stage: str, values_ms: Sequence[float]) -> StageLatency | None:
    finite = [value for value in values_ms if math.isfinite(value)]
    if not finite:
        return None
    return StageLatency(stage, *(float(np.percentile(finite, percent)) for percent in (50, 95)))


def shortfall(experiment: Experiment, session: RunParts) -> str:
    """What a run lacks of the predictions that its experiment requires, for people; empty if nothing."""
    planned = [request.key for cycle in session.cycles for request in cycle.requests if request.predict]
    planned = [key for key in planned if key not in session.dropped]
    if isinstance(experiment.engine, NoEngine) or not planned:
        return ""
    fields = (session.fields.get(key) for key in planned)
    predicted = sum(field is not None and field.status == "predicted" for field in fields)
    if predicted and predicted >= experiment.require * len(planned) - _ROUNDING:
        return ""
    if not predicted:
        return "no field was predicted"
    found = f"only {predicted} of {len(planned)} fields {'were' if predicted > 1 else 'was'} predicted"
    wanted = f"{experiment.require:.0%} of them" if experiment.require < 1 else "all of them"
    return f"{found}; the experiment requires {wanted} (require)"


def _light(experiment: Experiment, session: RunParts) -> tuple[str, ...]:
    """What light was spent, and what was avoided against imaging everything, for people."""
    planned = [request for cycle in session.cycles for request in cycle.requests]
    visits = len({(request.key.time, request.key.position) for request in planned})
    presets = {request.preset for request in planned}
    return tuple(explain_light(session.light, experiment.limits.light, visits, presets))


def late_intervals(began: Sequence[tuple[Cycle, float]]) -> list[str]:
    """Intervals between time points that were not kept, planned and real, for people."""
    pairs = [(a, b) for a, b in itertools.pairwise(began) if not b[0].restarts]
    gaps = [(b[0].start_s - a[0].start_s, b[1] - a[1]) for a, b in pairs]
    late = [gap for gap in gaps if not interval_kept(*gap)]
    if not late:
        return []
    planned, real = (_span([gap[side] for gap in late]) for side in (0, 1))
    many = f"{len(late)} of {len(gaps)} intervals between time points"
    return [f"{many} could not be kept: planned {planned} s, really {real} s"]


def _span(values: Sequence[float]) -> str:
    return " to ".join(dict.fromkeys(f"{end(values):.3g}" for end in (min, max)))


def describe_bounds(limits: Limits) -> tuple[Bound, ...]:
    """The limits of an experiment, for people."""
    found = [Bound(f"{axis} um", *values) for axis, values in limits.stage.items()]
    if limits.exposure_ms is not None:
        found.append(Bound("exposure ms", None, limits.exposure_ms))
    return tuple(found)


def describe_choice(experiment: Experiment) -> str:
    """What fields are chosen by, for people."""
    return experiment.choose.title if experiment.choose else ""


def versions() -> dict[str, str]:
    """Versions of Python, the system, and the packages a prediction depends on."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # such as pymmcore, beside a Java Micro-Manager
            continue
    return found


def _record(field: Field, stored: Stored, warnings: list[str]) -> FieldRecord | None:
    outcome, choice = field.outcome, field.choice
    if outcome is None:
        return None
    try:
        picture = thumbnail(stored.images(field.request))
    except AcqIslError as error:
        picture = np.zeros((16, 16), np.uint8)
        warnings.append(f"no picture of {field.request.key}: {error.what}")
    without = field.without if len(field.models) > 1 else ()
    if choice is None:
        return FieldRecord(outcome.info, picture, outcome, without=without)
    chosen = choice.measured, choice.rank, choice.chosen, choice.reason
    return FieldRecord(outcome.info, picture, outcome, *chosen, without)


def thumbnail(stack: Uint16Image) -> NDArray[np.uint8]:
    """Sharpest plane of a stack, (z, y, x) uint16, for display: (y, x) uint8, at most 384 pixels a side."""
    # The plane with most detail between neighbouring pixels; noise adds the same to all planes.
    detail = [float(np.var(np.diff(plane[::2, ::2].astype(np.float32), axis=0))) for plane in stack]
    plane = reduced(stack[int(np.argmax(detail))], _THUMBNAIL_PX)
    low, high = np.percentile(plane, (0.5, 99.5))
    return stretched(plane, low, max(high, low + 1.0))


def _comparisons(
    experiment: Experiment, session: RunParts, stored: Stored, warnings: list[str]
) -> tuple[Comparison, ...]:
    acquired, rules = {request.key: request for request in session.acquired}, measurements(experiment)
    found: list[Comparison] = []
    for field in session.fields.values():
        floor: Float32Image | None = None
        by_label = {label: made.model for made in field.predictions for label in made.labels}
        for label, channel in {**truth_of(experiment), **experiment.truth}.items():
            key = StackKey(field.request.key.time, field.request.key.position, channel)
            if key not in acquired or label not in by_label:
                continue
            try:
                prediction = stored.prediction(field.request.key, by_label[label])
                images = stored.images(acquired[key])
                if floor is None:
                    floor = _structure(stored.images(field.request), prediction.info.pixel_size_um)
                compared = compare(prediction, label, images, acquired[key].preset, rules)
                found.append(weigh(compared, floor))
            except AcqIslError as error:
                warnings.append(f"{label} at {key} was not compared: {error.what}")
    return tuple(found)


def _structure(stack: Uint16Image, pixel_um: float) -> Float32Image:
    """Log variance over z of a transmitted-light stack: where anything is, without having learnt what."""
    from acq_isl.training.data.registration import structure

    return structure(stack, _FLOOR_UM / pixel_um)


def weigh(comparison: Comparison, structure: Float32Image) -> Comparison:
    """A comparison with its floor, what ``structure`` of the stack scores, and its ceiling."""
    from acq_isl.evaluation.baselines import expose_again

    stain, away_px = (
        np.asarray(comparison.measured, np.float32),
        _DISPLACED_UM / comparison.info.pixel_size_um,
    )
    floor, ceiling = pearson(structure, stain), pearson(expose_again(stain, away_px, seed=0), stain)
    return replace(comparison, floor=floor, ceiling=ceiling)


def compare(
    prediction: Prediction, label: str, measured: Uint16Image, channel: str, rules: Sequence[Measurement]
) -> Comparison:
    """Hold a predicted label against the stain, (z, y, x) uint16; ExperimentError if the sizes differ."""
    # The truth of training is a maximum projection, so the same is compared here.
    stain, predicted = measured.max(axis=0), prediction.label(label)
    if stain.shape != predicted.shape:
        raise ExperimentError(
            "predicted and measured image cannot be compared pixel by pixel",
            wanted=f"a measured image of {predicted.shape} (rows, columns)",
            got=f"{stain.shape}",
            fix="image the fluorescence with the camera ROI and binning of the overview",
        )
    (pair,) = pair_labels(prediction, {label: to_bright_end(stain)}, rules)
    objects = object_f1(pair), pair.found, pair.true
    return Comparison(
        prediction.info, label, channel, predicted, stain, pearson(predicted, stain), *objects,
        amplitude=pair.amplitude,
    )  # fmt: skip
