"""Which recorded stain is the truth of which label, and which of its counts stand for 0 and 1."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from acq_isl.errors import PairRefused, StorageError
from acq_isl.evaluation.results import Settings
from acq_isl.manifest import Label, Manifest
from acq_isl.stack import Float32Image
from acq_isl.training.data.pairs import Item, Recording
from acq_isl.training.data.register import leave_out_holes

_PERCENTILES = (1.0, 99.8)
_SAMPLED_PX = 2**18
_BLOCK_PX, _LEAST_BLOCKS, _MORE_THAN_NOISE = 8, 6, 1.5

_Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The truth of every label that was recorded, all by label. ``keys`` are names of recorded stains,
    ``ranges`` counts that stand for 0 and 1 where the recording does not say it itself, ``origins`` where
    they come from, for people. ``objects`` are labels with separate objects."""

    keys: Mapping[str, str]
    ranges: Mapping[str, _Range]
    objects: tuple[str, ...]
    origins: Mapping[str, str]

    @classmethod
    def match(cls, manifest: Manifest, items: Sequence[Item], settings: Settings) -> Self:
        """Match stains with labels and find their ranges; `PairRefused` if nothing matches."""
        recorded = tuple(dict.fromkeys(name for item in items for name in item.labels))
        keys = match_stains(manifest.labels, recorded, settings.truth_of)
        own = {label.name: label.truth_range for label in manifest.labels if settings.truth_range == "model"}
        pooled = _pool_ranges(items, {name: key for name, key in keys.items() if own.get(name) is None})
        ranges, origins = {}, {}
        for name, key in keys.items():
            low, high = ranges[name] = own.get(name) or pooled[name]
            origin = "percentiles {:g} and {:g} of all pairs evaluated here together".format(*_PERCENTILES)
            origin = origin if name in pooled else "the model file's range"
            origins[name] = f"{key} from {low:.6g} to {high:.6g} counts, {origin}"
        nuclei = tuple(name for name in keys if name.casefold().startswith("nuclei"))
        return cls(keys, ranges, tuple(n for n in settings.objects if n in keys) or nuclei, origins)

    def scale(self, recording: Recording) -> dict[str, Float32Image]:
        """By label, (y, x) float32 from 0 to 1, of the stains that this field has."""
        images = {}
        for label, key in self.keys.items():
            if key in recording.labels:
                low, high = recording.truth_range or self.ranges[label]
                values = (recording.labels[key].astype(np.float32) - low) / np.float32(high - low)
                images[label] = np.clip(values, 0, 1)
        return images

    def valid(self, recording: Recording, label: str) -> NDArray[np.bool_] | None:
        """Where a label's truth can be trusted; None: everywhere."""
        return recording.valid.get(self.keys[label])


def shows_anything(image: NDArray[Any]) -> bool:
    """Whether a (y, x) stain shows more than noise and uneven light: blocks differ by more than pixels of
    white noise would make them. True of images too small to tell."""
    height, width = (side // _BLOCK_PX for side in image.shape)
    if min(height, width) < _LEAST_BLOCKS:
        return True
    cut = np.asarray(image, np.float64)[: height * _BLOCK_PX, : width * _BLOCK_PX]
    blocks = cut.reshape(height, _BLOCK_PX, width, _BLOCK_PX)
    means = blocks.mean(axis=(1, 3))
    y, x = (
        grid.ravel() for grid in np.meshgrid(*(np.linspace(-1, 1, n) for n in means.shape), indexing="ij")
    )
    light = np.column_stack([np.ones_like(x), x, y, x * x, x * y, y * y])
    around = means.ravel() - light @ np.linalg.lstsq(light, means.ravel())[0]
    noise = float(np.sqrt(np.mean((np.diff(cut, axis=1)) ** 2) / 2)) / _BLOCK_PX
    return bool(around.std() > _MORE_THAN_NOISE * noise)


def match_stains(
    labels: Iterable[Label], recorded: Sequence[str], chosen: Mapping[str, str]
) -> dict[str, str]:
    """Name of the recorded stain by label: as chosen, or of the label's own name, or of its marker.
    `PairRefused` if a chosen name is unknown, or no stain fits any label."""
    labels, found = tuple(labels), {}
    known = {name.casefold(): name for name in recorded}
    names = [label.name for label in labels]
    wrong = [f"{a}={b}" for a, b in chosen.items() if a not in names or b.casefold() not in known]
    for label in labels:
        words = (label.name.casefold(), *re.findall(r"[\w-]+", label.marker.casefold()))
        if label.name in chosen:
            words = (chosen[label.name].casefold(),)
        fitting = next((known[word] for word in words if word in known), None)
        if fitting is not None:
            found[label.name] = fitting
    if wrong or not found:
        raise PairRefused(
            "it is not clear which recorded stain is the truth of which label"
            + (f": {', '.join(wrong)}" if wrong else ""),
            wanted="stains for " + ", ".join(f"{label.name} ({label.marker})" for label in labels),
            got=", ".join(recorded) or "no stains",
            fix="say it with --truth LABEL=STAIN",
        )
    return found


def _pool_ranges(items: Sequence[Item], keys: Mapping[str, str]) -> dict[str, _Range]:
    """Percentiles over all fields together, of recordings that do not say it themselves."""
    samples: dict[str, list[NDArray[Any]]] = {label: [] for label in keys}
    for item in items if keys else ():
        try:
            recording, _ = leave_out_holes(item.load(), item.name)
        except (PairRefused, StorageError):
            continue  # told with its reason when its turn comes to be scored
        for label, key in keys.items():
            if key in recording.labels:
                image = np.asarray(recording.labels[key])
                image = image[recording.valid[key]] if key in recording.valid else image.ravel()
                samples[label].append(image[:: max(image.size // _SAMPLED_PX, 1)])
    ranges = {}
    for label, parts in samples.items():
        low, high = (
            np.percentile(np.concatenate(parts, dtype=np.float64), _PERCENTILES) if parts else (0.0, 1.0)
        )
        ranges[label] = (float(low), float(high) if high > low else float(low) + 1.0)
    return ranges
