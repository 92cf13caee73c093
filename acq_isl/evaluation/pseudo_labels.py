"""Labels that are mostly what better models predict: a smaller one learns more from them than from stains.

Knowledge distillation after Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015,
for regression: a prediction has neither a stain's noise nor what cannot be seen in transmitted light.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
import yaml

from acq_isl.engines import describe
from acq_isl.engines.model_file import ModelInfo
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.errors import ExperimentError, PairRefused, StackRefused, StorageError
from acq_isl.evaluation.evaluate import seen_in_training, stack_of
from acq_isl.evaluation.ground_truth import Truths
from acq_isl.evaluation.results import Settings
from acq_isl.manifest import Manifest
from acq_isl.protocols import Engine
from acq_isl.stack import Float32Image
from acq_isl.training.data.pairs import Item, Recording

PAIRS = "taught.yaml"
_STACK = "stack.ome.tif"


@dataclass(frozen=True, slots=True)
class Lesson:
    """How to teach.

    Parameters
    ----------
    share : float
        Of the prediction in a label, above 0, at most 1; the rest is truth.
    held_out : collection of str
        Names of fields or wells that keep their true labels.
    threads : int, optional
    """

    share: float = 0.7
    held_out: Collection[str] = ()
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Taught:
    """What was written.

    Parameters
    ----------
    pairs : Path
        ``data`` and ``split`` for a training file.
    taught : tuple of str
        Fields whose labels are blends.
    untouched : tuple of (str, str)
        Fields whose labels are the true ones, and why.
    left_out : tuple of (str, str)
        Fields that could not be read, and why.
    leaks : tuple of str
        What is held out here, but a teacher was trained on: scores of it would be worth nothing.
    """

    pairs: Path
    taught: tuple[str, ...]
    untouched: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]
    leaks: tuple[str, ...]


_USUAL = Lesson()


def teach(
    models: Sequence[Path | str],
    items: Sequence[Item],
    folder: Path,
    lesson: Lesson = _USUAL,
    tell: Callable[[str], None] = lambda _: None,
) -> Taught:
    """Write pairs whose labels are share x prediction + (1 - share) x truth.

    Labels are float32 counts: predictions are brought to those of the stains, so that a student's
    ``truth_range`` is one of counts, by which it can be evaluated. Where a truth cannot be trusted, the label
    is the prediction alone. Fields held out, with other time points of their places, and those that a model
    refuses keep their true labels, without those that a file cannot say where to trust. Fields that cannot be
    read are left out. Labels that no pair shows are not taught.

    Parameters
    ----------
    models : sequence of path or str
        As for `acq_isl.engines.load_engine`; the means of several are averaged.
    items : sequence of Item
    folder : Path
        Empty or not there yet.
    lesson : Lesson
    tell : callable
        Hears the name of each field before its turn.

    Raises
    ------
    ExperimentError
        A share out of range, models with other labels, or a folder with something in it.
    PairRefused
        A name that is held out does not exist, or no stain fits a label.
    ModelError, EngineError
    """
    _require(lesson, items, folder)
    held_out = _held_out(items, lesson.held_out)
    taught: list[str] = []
    untouched: list[tuple[str, str]] = []
    left_out: list[tuple[str, str]] = []
    infos = [describe(model) for model in models]
    about: dict[str, object] = {"share": lesson.share, "teachers": [_named(info) for info in infos]}
    with ExitStack() as stack:
        engines = [stack.enter_context(OnnxEngine(model, threads=lesson.threads)) for model in models]
        truths = Truths.of(_alike(engines), items, Settings())
        for number, item in enumerate(items):
            tell(item.name)
            try:
                recording = item.load()
            except (PairRefused, StorageError) as error:
                left_out.append((item.name, str(error)))
                continue
            reason = "held out" if item.name in held_out else ""
            blended = reason or _blended(engines, recording, item.name, truths, lesson.share)
            if isinstance(blended, str):
                untouched.append((item.name, blended))
                _write(folder / _place(item, number), recording, _true(recording, truths), {})
            else:
                taught.append(item.name)
                _write(folder / _place(item, number), recording, blended, about)
    found = _list(folder, items, tuple(truths.keys), held_out, lesson.held_out)
    kept = [item for item in items if item.name in held_out]
    leaks = dict.fromkeys(leak for info in infos for leak in seen_in_training(info, kept))
    return Taught(found, tuple(taught), tuple(untouched), tuple(left_out), tuple(leaks))


def _named(info: ModelInfo) -> dict[str, str]:
    return {"model": f"{info.manifest.name} {info.manifest.version}", "sha256": info.sha256}


def _held_out(items: Sequence[Item], names: Collection[str]) -> set[str]:
    """Names of all fields held out: what is seen at a place at another time is the same field."""
    named = set(names)
    places = {item.place for item in items if {item.name, item.well} & named}
    return {item.name for item in items if item.place in places}


def _require(lesson: Lesson, items: Sequence[Item], folder: Path) -> None:
    if not 0 < lesson.share <= 1:
        raise ExperimentError(
            "the teachers' share is out of range", wanted="above 0, to 1", got=f"{lesson.share:g}"
        )
    if folder.exists() and any(folder.iterdir()):
        raise ExperimentError(f"{folder} has something in it", fix="name a new folder")
    missing = set(lesson.held_out) - {name for item in items for name in (item.name, item.well)}
    if missing:
        raise PairRefused("what is to be held out does not exist", got=", ".join(sorted(missing)))
    named = {name: any(item.well == name for item in items) for name in lesson.held_out}
    if len(set(named.values())) > 1:
        raise ExperimentError("wells and fields are held out", fix="name wells only, or fields only")
    wells: dict[str, str] = {}
    for well in (item.well for item in items if item.well):
        other = wells.setdefault(_safe(well), well)
        if other != well:
            raise PairRefused(
                f"the wells {other} and {well} would be written as one", fix="give the plates other names"
            )


def _alike(engines: Sequence[Engine]) -> Manifest:
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


def _blended(
    engines: Sequence[Engine], recording: Recording, name: str, truths: Truths, share: float
) -> dict[str, Float32Image] | str:
    """Labels by name, or why a teacher refuses the field."""
    try:
        predictions = [engine.predict(stack_of(recording, name, engine)) for engine in engines]
    except StackRefused as refusal:
        return str(refusal)
    labels = {}
    for label, truth in truths.scaled(recording).items():
        mean = np.mean([one.mean[one.labels.index(label)] for one in predictions], axis=0, dtype=np.float32)
        blend = share * mean + (1 - share) * truth
        valid = truths.valid(recording, label)
        blend = blend if valid is None else np.where(valid, blend, mean)
        labels[label] = _counts(blend, truths, label)
    return labels


def _true(recording: Recording, truths: Truths) -> dict[str, Float32Image]:
    """True labels as counts, of those known everywhere: a TIFF file cannot say where it is to be trusted."""
    labels = {}
    for label, scaled in truths.scaled(recording).items():
        valid = truths.valid(recording, label)
        if valid is None or valid.all():
            own = recording.truth_range is not None
            stain = recording.labels[truths.keys[label]]
            labels[label] = _counts(scaled, truths, label) if own else stain.astype(np.float32)
    return labels


def _counts(scaled: Float32Image, truths: Truths, label: str) -> Float32Image:
    low, high = truths.ranges[label]
    return np.asarray(low + scaled * (high - low), np.float32)


def _safe(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip(".-") or "field"


def _place(item: Item, number: int) -> str:
    """Folder of a field below that of its well; numbers keep apart names of odd characters."""
    field = f"{number:04d}-{_safe(item.name)}"
    return f"wells/{_safe(item.well)}/{field}" if item.well else f"fields/{field}"


def _write(
    folder: Path, recording: Recording, labels: dict[str, Float32Image], about: dict[str, object]
) -> None:
    folder.mkdir(parents=True)
    lengths = {"PhysicalSizeX": recording.pixel_size_um, "PhysicalSizeY": recording.pixel_size_um}
    deep = lengths | {"PhysicalSizeZ": recording.z_step_um} if recording.z_step_um else lengths
    tifffile.imwrite(folder / _STACK, recording.stack, ome=True, metadata={"axes": "ZYX"} | deep)
    said = {"Description": json.dumps({"acq_isl_taught": about})} if about else {}
    for label, image in labels.items():
        metadata = {"axes": "YX"} | lengths | said
        tifffile.imwrite(folder / f"{_safe(label)}.ome.tif", image, ome=True, metadata=metadata)


def _list(
    folder: Path,
    items: Sequence[Item],
    labels: Sequence[str],
    held_out: Collection[str],
    named: Collection[str],
) -> Path:
    """Write the sources, and the split with the same wells or fields held out."""
    data = []
    for top, names, some in (
        ("wells", "{well}/{field}/", any(item.well for item in items)),
        ("fields", "{field}/", not all(item.well for item in items)),
    ):
        files = {label: f"{names}{_safe(label)}.ome.tif" for label in labels}
        source = {"folder": str((folder / top).resolve()), "stack": names + _STACK, "labels": files}
        data += [{"kind": "tiff"} | source] if some else []
    content: dict[str, object] = {"data": data}
    if held_out:
        wells = sorted({_safe(item.well) for item in items if item.well in named and item.well})
        fields = [
            _place(i, n).partition("/")[2]
            for n, i in enumerate(items)
            if i.name in held_out and i.well not in named and (folder / _place(i, n)).is_dir()
        ]
        content["split"] = {"by": "well" if wells else "field", "held_out": wells or fields}
    path = folder / PAIRS
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path
