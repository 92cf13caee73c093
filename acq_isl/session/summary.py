"""What a session knows at its end becomes the record of the run."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from acq_isl.errors import AcqIslError, ExperimentError
from acq_isl.experiment.experiment import Experiment, measurements
from acq_isl.processing.display import reduced, stretched
from acq_isl.processing.statistics import pearson
from acq_isl.record import Comparison, FieldRecord, RunRecord, StageLatency
from acq_isl.rules import Measurement
from acq_isl.session.grading.scores import object_f1, pair_labels, to_bright_end
from acq_isl.session.session import Field
from acq_isl.stack import Prediction, StackKey, StackRequest, StageTimes, Uint16Image

_THUMBNAIL_PX = 384
_STAGES = ("expose", "transfer", "wait", "infer", "decode")
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


def run_files(folder: Path) -> dict[str, str]:
    """What is in a run folder, and where."""
    sets = sorted(path.name for path in folder.glob("measured_*") if path.is_dir()) or ["measured_1"]
    named = {f"measured data (NDTiff){f' {n}' * (n > 1)}": name for n, name in enumerate(sets, 1)}
    others = {
        "predictions (OME-Zarr)": "predictions.ome.zarr",
        "decisions": "decisions.jsonl",
        "decisions of the recovery": "recovery.jsonl",
        "experiment as run": "experiment.yaml",
        "stacks that wait for an engine": "spool",
        "report of the run itself": "report_before_recovery.html",
    }
    later = ("recovery.jsonl", "report_before_recovery.html")
    there = {what: name for what, name in others.items() if name not in later or (folder / name).exists()}
    return named | there


def summarise(experiment: Experiment, session: RunParts, stored: Stored, record: RunRecord) -> RunRecord:
    """Complete the record of a run, also of one that ended early, with what the session knows."""
    fields = [field for field in session.fields.values() if field.answers]
    predictions = [prediction for field in fields for prediction in field.predictions]
    warnings = [*record.warnings, *session.warnings]
    records = [_record(field, stored, warnings) for field in fields]
    comparisons = _comparisons(experiment, session, stored, warnings)
    return replace(
        record,
        engine=", ".join(sorted({prediction.engine for prediction in predictions})),
        fields=tuple(field for field in records if field is not None),
        comparisons=comparisons,
        counts=replace(record.counts, requested=sum(len(request.z_um) for request in session.asked)),
        latencies=latencies([prediction.times for prediction in predictions], session.decide_ms),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def latencies(times: Sequence[StageTimes], decide_ms: Sequence[float]) -> tuple[StageLatency, ...]:
    """Median and 95th percentile of every stage, in milliseconds; nothing without predictions."""
    if not times:
        return ()
    samples = {stage: [getattr(stages, f"{stage}_ms") for stages in times] for stage in _STAGES}
    samples["decide"] = list(decide_ms) or [0.0]
    return tuple(
        StageLatency(stage, *(float(np.percentile(values, percent)) for percent in (50, 95)))
        for stage, values in samples.items()
    )


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
        by_label = {label: made.model for made in field.predictions for label in made.labels}
        for label, channel in experiment.truth.items():
            key = StackKey(field.request.key.time, field.request.key.position, channel)
            if key not in acquired or label not in by_label:
                continue
            try:
                prediction = stored.prediction(field.request.key, by_label[label])
                images = stored.images(acquired[key])
                found.append(compare(prediction, label, images, acquired[key].preset, rules))
            except AcqIslError as error:
                warnings.append(f"{label} at {key} was not compared: {error.what}")
    return tuple(found)


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
    return Comparison(prediction.info, label, channel, predicted, stain, pearson(predicted, stain), *objects)
