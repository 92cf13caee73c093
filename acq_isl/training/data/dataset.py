"""Normalised fields on disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from acq_isl.errors import PairRefused
from acq_isl.processing.normalize import contrast_sd
from acq_isl.stack import Uint16Image
from acq_isl.training.data.geometry import Geometry, bring_to_model
from acq_isl.training.data.pairs import Checks, Item
from acq_isl.training.data.register import load_checked
from acq_isl.training.network import Normalise

_FOREGROUND = 77  # of 255
_SAMPLED = 2**18
_PERCENTILES = (1.0, 99.8)
_LAYOUT = 1  # of the folder of one field; a new number makes all of them anew

Range = tuple[float, float]


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A field ready for training."""

    x: NDArray[np.float16]
    """(z, y, x): the normalised stack."""
    y: NDArray[np.uint8]
    """(label, y, x): truth times 255."""
    foreground: NDArray[np.int32]
    """(n, 2): rows and columns of pixels bright in one of the first labels."""
    valid: NDArray[np.bool_] | None = None
    """(label, y, x): where the truth is known; None: everywhere."""
    name: str = ""
    live: bool = False

    @property
    def present(self) -> tuple[bool, ...]:
        """Which labels there are."""
        if self.valid is None:
            return (True,) * len(self.y)
        return tuple(bool(known.any()) for known in self.valid)


def thin(fields: Sequence[Field], every: int) -> tuple[Field, ...]:
    """With every so many of their planes."""
    return tuple(replace(field, x=field.x[::every]) for field in fields)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A field on disk: ``x.npy``, ``labels.npy``, ``valid.npy`` in the folder. ``digest`` is of its stack's
    pixels as recorded, ``present`` says which labels it has, ``truth_range`` what stands for 0 and 1 if the
    field says so itself, ``live`` as in its `Item`."""

    name: str
    digest: str
    folder: Path
    present: tuple[bool, ...]
    truth_range: Range | None
    warnings: tuple[str, ...]
    live: bool = False


def prepare(item: Item, geometry: Geometry, checks: Checks, folder: Path) -> Prepared:
    """Read, check and normalise a field by the module that the exported graph runs too, or find it done.
    Raises `PairRefused` and `StorageError` as sources and `examine` do."""
    settings = f"{_LAYOUT} {item.stamp} {asdict(geometry)} {checks.model_dump_json()}"
    place = folder / hashlib.sha256(settings.encode()).hexdigest()[:24]
    if not (place / "about.json").is_file():
        partial = place.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(item, geometry, checks, partial)
        partial.replace(place)
    about = json.loads((place / "about.json").read_text(encoding="utf-8"))
    low_high = about["truth_range"]
    present = tuple(name in about["labels"] for name in geometry.labels)
    truth_range = None if low_high is None else (float(low_high[0]), float(low_high[1]))
    return Prepared(
        item.name, about["digest"], place, present, truth_range, tuple(about["warnings"]), item.live
    )


def _write(item: Item, geometry: Geometry, checks: Checks, folder: Path) -> None:
    recording, warnings = load_checked(item, checks)
    fitted = bring_to_model(recording, geometry, item.name)
    shape = fitted.stack.shape[1:]
    labels = [fitted.labels.get(name, np.zeros(shape, np.uint8)) for name in geometry.labels]
    everywhere = np.ones(shape, bool)
    valid = [
        fitted.valid.get(name, everywhere) if name in fitted.labels else ~everywhere
        for name in geometry.labels
    ]
    if not any(where.any() for where in valid):
        raise PairRefused(
            f"{item.name} has none of the labels", wanted=", ".join(geometry.labels), fix="leave it out"
        )
    np.save(folder / "x.npy", normalised(fitted.stack, geometry.high_pass_px))
    np.save(folder / "labels.npy", np.stack(labels))
    np.save(folder / "valid.npy", np.stack(valid))
    about = {
        "name": item.name,
        "digest": recording.digest,
        "labels": [name for name in geometry.labels if name in recording.labels],
        "truth_range": recording.truth_range,
        "warnings": warnings,
    }
    (folder / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def normalised(stack: Uint16Image, high_pass_px: float) -> NDArray[np.float16]:
    """What the network is given of a (z, y, x) stack of counts."""
    inv_sd = torch.tensor([1 / max(contrast_sd(stack, high_pass_px), 1e-6)], dtype=torch.float32)
    with torch.no_grad():
        counts = torch.from_numpy(stack.astype(np.float32))[None]
        x: NDArray[Any] = Normalise(len(stack), high_pass_px)(counts, inv_sd)[0].numpy()
    return x.astype(np.float16)


def truth_ranges(prepared: Sequence[Prepared], labels: Sequence[str]) -> tuple[Range, ...]:
    """Per label, what stands for 0 and 1: first and 99.8th percentile of the whole training set. Never of
    single fields: a field without cells would be stretched until its background is bright. Fields that say it
    themselves, simulated ones, do not count unless there are no others."""
    ranges = []
    for at, name in enumerate(labels):
        having = [field for field in prepared if field.present[at]]
        own = [field.truth_range for field in having if field.truth_range is not None]
        pooled = [_sample(field, at) for field in having if field.truth_range is None]
        if not pooled and not own:
            raise PairRefused(f"no field that is trained on has the label {name}", fix="correct the split")
        low, high = np.percentile(np.concatenate(pooled), _PERCENTILES) if pooled else own[0] or (0.0, 1.0)
        if high <= low:
            raise PairRefused(
                f"{name} is constant in nearly all of the training set", fix="check its channel"
            )
        ranges.append((float(low), float(high)))
    return tuple(ranges)


def _sample(field: Prepared, at: int) -> NDArray[np.float32]:
    values = np.load(field.folder / "labels.npy", mmap_mode="r")[at]
    known = values[np.load(field.folder / "valid.npy", mmap_mode="r")[at]]
    sample: NDArray[np.float32] = known[:: max(known.size // _SAMPLED, 1)].astype(np.float32)
    return sample


def open_field(prepared: Prepared, ranges: Sequence[Range], first_labels: int = 2) -> Field:
    """All of it stays on disk and is read patch by patch, so that there may be more than the memory holds:
    the stack, and the truth, which is scaled once for a training set."""
    settings = f"{_LAYOUT} {[*ranges]} {prepared.present} {prepared.truth_range} {first_labels}"
    truth = prepared.folder / f"truth-{hashlib.sha256(settings.encode()).hexdigest()[:16]}"
    if not truth.is_dir():
        _write_truth(prepared, ranges, first_labels, truth)
    x, y, bright, valid = (
        np.load(file, mmap_mode="r")
        for file in (
            prepared.folder / "x.npy",
            truth / "y.npy",
            truth / "bright.npy",
            prepared.folder / "valid.npy",
        )
    )
    return Field(x, y, bright, None if valid.all() else valid, prepared.name, prepared.live)


def _write_truth(prepared: Prepared, ranges: Sequence[Range], first_labels: int, folder: Path) -> None:
    """Truth scaled, and where it is bright; the processes of a group may do so at once."""
    raw = np.load(prepared.folder / "labels.npy", mmap_mode="r")
    valid = np.load(prepared.folder / "valid.npy", mmap_mode="r")
    y = np.zeros(raw.shape, np.uint8)
    for at, span in enumerate(ranges):
        if prepared.present[at]:
            low, high = prepared.truth_range or span
            shares = (raw[at].astype(np.float32) - np.float32(low)) / np.float32(high - low)
            y[at] = np.rint(255 * np.clip(shares, 0, 1))
    bright = np.argwhere((y * valid)[:first_labels].max(axis=0) > _FOREGROUND).astype(np.int32)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    partial.mkdir(exist_ok=True)
    np.save(partial / "y.npy", y)
    np.save(partial / "bright.npy", bright)
    try:
        partial.replace(folder)
    except OSError:
        if not folder.is_dir():  # else another process was as quick
            raise
        shutil.rmtree(partial)
