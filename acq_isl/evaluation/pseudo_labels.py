"""Labels that are mostly what better models predict: a smaller one learns more from them than from stains.

Knowledge distillation after Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015,
for regression: a prediction has neither a stain's noise nor what cannot be seen in transmitted light.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import yaml

from acq_isl.engines import describe
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.errors import ExperimentError, PairRefused, StackRefused, StorageError
from acq_isl.evaluation.evaluate import find_leaks
from acq_isl.evaluation.ground_truth import GroundTruth
from acq_isl.evaluation.results import Settings
from acq_isl.manifest import Manifest
from acq_isl.protocols import Engine
from acq_isl.stack import Float32Image
from acq_isl.training.data.geometry import make_stack
from acq_isl.training.data.pairs import Item, Recording

PAIRS = "taught.yaml"
_STACK = "stack.ome.tif"


@dataclass(frozen=True, slots=True)
class Blend:
    """How labels are made: ``share`` of the prediction, above 0, at most 1, and the rest of the truth.
    ``held_out`` are names of fields or wells that keep their true labels."""

    share: float = 0.7
    held_out: Collection[str] = ()
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """What was written.

    ``pairs`` is a file with ``data`` and ``split`` for a training. Fields are ``blended``, ``untouched``
    (with their true labels, and why) or ``left_out`` (not readable, and why). ``leaks`` says what is held
    out here, but a teacher was trained on: scores of it would be worth nothing.
    """

    pairs: Path
    blended: tuple[str, ...]
    untouched: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]
    leaks: tuple[str, ...]


_USUAL = Blend()


def write_pseudo_labels(
    models: Sequence[Path | str],
    items: Sequence[Item],
    folder: Path,
    blend: Blend = _USUAL,
    tell: Callable[[str], None] = lambda _: None,
) -> PseudoLabels:
    """Write pairs whose labels are share x prediction + (1 - share) x truth, in float32 counts of the stains.

    In counts, a student's ``truth_range`` is one by which it can be evaluated. Predictions of several models
    are averaged. Where a truth cannot be trusted, the label is the prediction alone. Fields held out, with
    other time points of their places, and those that a model refuses keep their true labels, without those
    that a file cannot say where to trust. Fields that cannot be read are left out, and so are labels that no
    pair shows. `ExperimentError`: a share out of range, models with other labels, or a folder with something
    in it. `PairRefused`: a name that is held out does not exist, or no stain fits a label.
    """
    _check(blend, items, folder)
    held_out = _find_held_out(items, blend.held_out)
    blended: list[str] = []
    untouched: list[tuple[str, str]] = []
    left_out: list[tuple[str, str]] = []
    infos = [describe(model) for model in models]
    teachers = [{"model": f"{i.manifest.name} {i.manifest.version}", "sha256": i.sha256} for i in infos]
    about = {"share": blend.share, "teachers": teachers}
    with ExitStack() as stack:
        engines = [stack.enter_context(OnnxEngine(model, threads=blend.threads)) for model in models]
        truth = GroundTruth.match(_common_manifest(engines), items, Settings())
        for number, item in enumerate(items):
            tell(item.name)
            try:
                recording = item.load()
                reason = "held out" if item.name in held_out else ""
                labels = {} if reason else _blend(engines, recording, item.name, truth, blend.share)
            except (PairRefused, StorageError) as error:
                left_out.append((item.name, str(error)))
                continue
            except StackRefused as refusal:
                reason = str(refusal)
            if reason:
                untouched.append((item.name, reason))
                labels = _true_labels(recording, truth)
            else:
                blended.append(item.name)
            _write_field(folder / _place(item, number), recording, labels, {} if reason else about)
    pairs = _write_pairs(folder, items, tuple(truth.keys), blend.held_out)
    kept = [item for item in items if item.name in held_out]
    leaks = tuple(dict.fromkeys(leak for info in infos for leak in find_leaks(info, kept)))
    return PseudoLabels(pairs, tuple(blended), tuple(untouched), tuple(left_out), leaks)


def _check(blend: Blend, items: Sequence[Item], folder: Path) -> None:
    if not 0 < blend.share <= 1:
        raise ExperimentError(
            "the teachers' share is out of range", wanted="above 0, to 1", got=f"{blend.share:g}"
        )
    if folder.exists() and any(folder.iterdir()):
        raise ExperimentError(f"{folder} has something in it", fix="name a new folder")
    missing = set(blend.held_out) - {name for item in items for name in (item.name, item.well)}
    if missing:
        raise PairRefused("what is to be held out does not exist", got=", ".join(sorted(missing)))
    wells = {item.well for item in items if item.well}
    if len({name in wells for name in blend.held_out}) > 1:
        raise ExperimentError("wells and fields are held out", fix="name wells only, or fields only")
    written: dict[str, str] = {}
    for well in sorted(wells):
        other = written.setdefault(_file_name(well), well)
        if other != well:
            raise PairRefused(
                f"the wells {other} and {well} would be written as one", fix="give the plates other names"
            )


def _find_held_out(items: Sequence[Item], names: Collection[str]) -> set[str]:
    """Names of all fields held out: what is seen at a place at another time is the same field."""
    places = {item.place for item in items if {item.name, item.well} & set(names)}
    return {item.name for item in items if item.place in places}


def _common_manifest(engines: Sequence[Engine]) -> Manifest:
    first, *others = (engine.manifest for engine in engines)
    for other in others:
        if set(other.label_names) != set(first.label_names):
            raise ExperimentError(
                "the teachers predict different labels",
                wanted=", ".join(first.label_names),
                got=", ".join(other.label_names),
                fix="teach with models of the same labels",
            )
    return first


def _blend(
    engines: Sequence[Engine], recording: Recording, name: str, truth: GroundTruth, share: float
) -> dict[str, Float32Image]:
    """Labels by name, in counts; `StackRefused` if a teacher refuses the field."""
    predictions = [engine.predict(make_stack(recording, name, engine.manifest)) for engine in engines]
    labels = {}
    for label, scaled in truth.scale(recording).items():
        mean = np.mean([one.mean[one.labels.index(label)] for one in predictions], axis=0, dtype=np.float32)
        blend = share * mean + (1 - share) * scaled
        valid = truth.valid(recording, label)
        labels[label] = _to_counts(blend if valid is None else np.where(valid, blend, mean), truth, label)
    return labels


def _true_labels(recording: Recording, truth: GroundTruth) -> dict[str, Float32Image]:
    """True labels as counts, of those known everywhere: a TIFF file cannot say where it is to be trusted."""
    labels = {}
    for label, scaled in truth.scale(recording).items():
        valid = truth.valid(recording, label)
        if valid is None or valid.all():
            own = recording.truth_range is not None
            stain = recording.labels[truth.keys[label]]
            labels[label] = _to_counts(scaled, truth, label) if own else stain.astype(np.float32)
    return labels


def _to_counts(scaled: Float32Image, truth: GroundTruth, label: str) -> Float32Image:
    low, high = truth.ranges[label]
    return np.asarray(low + scaled * (high - low), np.float32)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip(".-") or "field"


def _place(item: Item, number: int) -> str:
    """Folder of a field below that of its well; numbers keep apart names of odd characters."""
    field = f"{number:04d}-{_file_name(item.name)}"
    return f"wells/{_file_name(item.well)}/{field}" if item.well else f"fields/{field}"


def _write_field(
    folder: Path, recording: Recording, labels: Mapping[str, Float32Image], about: Mapping[str, object]
) -> None:
    folder.mkdir(parents=True)
    lengths = {"PhysicalSizeX": recording.pixel_size_um, "PhysicalSizeY": recording.pixel_size_um}
    heights = {"PositionZ": list(recording.z_um), "PositionZUnit": ["µm"] * len(recording.z_um)}
    deep = {"axes": "ZYX", "PhysicalSizeZ": recording.z_step_um or 1.0, "Plane": heights} | lengths
    tifffile.imwrite(folder / _STACK, recording.stack, ome=True, metadata=deep)
    marks = {"Description": json.dumps({"acq_isl_taught": about})} if about else {}
    for label, image in labels.items():
        metadata = {"axes": "YX"} | lengths | marks
        tifffile.imwrite(folder / f"{_file_name(label)}.ome.tif", image, ome=True, metadata=metadata)


def _write_pairs(folder: Path, items: Sequence[Item], labels: Sequence[str], named: Collection[str]) -> Path:
    """Write the sources, and the split with the same wells or fields held out."""
    data = []
    for top, names, some in (
        ("wells", "{well}/{field}/", any(item.well for item in items)),
        ("fields", "{field}/", not all(item.well for item in items)),
    ):
        files = {label: f"{names}{_file_name(label)}.ome.tif" for label in labels}
        source = {"folder": str((folder / top).resolve()), "stack": names + _STACK, "labels": files}
        data += [{"kind": "tiff"} | source] if some else []
    content: dict[str, object] = {"data": data}
    held_out = _find_held_out(items, named)
    if held_out:
        wells = sorted({_file_name(item.well) for item in items if item.well in named and item.well})
        fields = [
            _place(item, number).partition("/")[2]
            for number, item in enumerate(items)
            if item.name in held_out and item.well not in named and (folder / _place(item, number)).is_dir()
        ]
        content["split"] = {"by": "well" if wells else "field", "held_out": wells or fields}
    path = folder / PAIRS
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path
