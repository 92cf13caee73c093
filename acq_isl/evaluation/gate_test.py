"""Does the model's gate notice stacks that do not fit? The predicted SD does not, as shown beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.model_file import ModelFile, output_names
from acq_isl.engines.onnx import OnnxNetwork
from acq_isl.evaluation.perturbations import AS_TRAINED, PERTURBATIONS, ZOOMS, zoom
from acq_isl.evaluation.scores import PixelScore, auroc, score_pixels
from acq_isl.processing.normalize import inverse_contrast
from acq_isl.stack import Float32Image, Uint16Image

_LONGEST_PX = 1280
_TILE_PX = 256
_WINDOWS = 3  # of 128 px at a pitch of 64: a tile of 256 px

_Values = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class PerturbationScore:
    """What one perturbation did to all fields together.

    ``loss`` is the mean Pearson as trained less that under this perturbation. ``gate`` is the AUROC of the
    largest of the model's distances, each relative to its limit: perturbed tiles of about 256 px against
    tiles as trained; NaN without a gate. ``std`` is the same of the mean predicted SD. ``flagged`` is the
    share of tiles beyond a limit of the gate; as trained these are false alarms.
    """

    name: str
    pearson: Mapping[str, float]
    loss: float
    gate: float
    std: float
    flagged: float
    tiles: int


@dataclass(slots=True)
class _Found:
    """Of one perturbation so far: pixels by label, and of each tile the distance and the mean SD."""

    pixels: dict[str, PixelScore] = field(default_factory=dict)
    distances: _Values = field(default_factory=lambda: np.zeros(0))
    stds: _Values = field(default_factory=lambda: np.zeros(0))

    @property
    def pearson(self) -> float:
        return float(np.mean([score.pearson for score in self.pixels.values()]))


class GateTest:
    """Runs a model under every perturbation, field by field; owns its session."""

    def __init__(self, model: ModelFile, threads: int | None) -> None:
        self._manifest = model.info.manifest
        self._network = OnnxNetwork(model, threads=threads)
        self._found = {name: _Found() for name in PERTURBATIONS}

    def add(self, stack: Uint16Image, truths: Mapping[str, Float32Image]) -> None:
        """Test one field on the model's planes and pixels, (z, y, x); truths by label, (y, x) from 0 to 1."""
        labels = [name for name in self._manifest.label_names if name in truths]
        truth = np.stack([truths[label] for label in labels])
        for name, perturb in PERTURBATIONS.items():
            perturbed = perturb(stack)
            seen = zoom(truth, ZOOMS[name]) if name in ZOOMS else truth
            rows, columns = (self._middle(side) for side in perturbed.shape[1:])
            if min(rows.stop - rows.start, columns.stop - columns.start) >= self._manifest.min_tile_px:
                true = dict(zip(labels, seen[:, rows, columns], strict=True))
                self._run(self._found[name], perturbed[:, rows, columns], true)

    def results(self) -> tuple[PerturbationScore, ...]:
        """All perturbations so far, as trained first; empty if no field was large enough."""
        clean = self._found[AS_TRAINED]
        if not clean.pixels:
            return ()
        return tuple(
            PerturbationScore(
                name,
                {label: score.pearson for label, score in found.pixels.items()},
                clean.pearson - found.pearson,
                _separation(clean.distances, found.distances),
                _separation(clean.stds, found.stds),
                float(np.mean(found.distances > 1)) if found.distances.size else float("nan"),
                found.stds.size,
            )
            for name, found in self._found.items()
            if found.pixels
        )

    def close(self) -> None:
        self._network.close()

    def _middle(self, side: int) -> slice:
        """The middle of an axis, a multiple of the size step and no longer than fits in memory."""
        step = self._manifest.size_step_px
        length = min(side, self._manifest.max_tile_px or _LONGEST_PX, _LONGEST_PX) // step * step
        start = (side - length) // 2
        return slice(start, start + length)

    def _run(self, found: _Found, stack: Uint16Image, truths: Mapping[str, Float32Image]) -> None:
        manifest = self._manifest
        inv_sd = inverse_contrast(stack, manifest.high_pass_um / manifest.pixel_size_um)
        counts = np.ascontiguousarray(stack, "<u2")
        outputs = self._network.run(
            counts.view(np.uint8).reshape(1, *counts.shape, 2), np.full(1, inv_sd, np.float32)
        )
        named = dict(zip(output_names(manifest), outputs, strict=True))
        inner = slice(manifest.blank_px, -manifest.blank_px or None)
        for label, truth in truths.items():
            mean = named["mean"][0, manifest.label_names.index(label)]
            score = score_pixels(mean[inner, inner], truth[inner, inner])
            found.pixels[label] = found.pixels[label] + score if label in found.pixels else score
        stds = _summarise_tiles(named["spread"][0, :, inner, inner].mean(axis=0), _TILE_PX, np.mean)
        found.stds = np.concatenate([found.stds, stds])
        if manifest.gate is not None:
            limits = np.asarray(manifest.gate.limits)
            tiles = [_summarise_tiles(distance, _WINDOWS, np.median) for distance in named["distance"][0]]
            distances = (np.stack(tiles) / limits[:, None]).max(axis=0)
            found.distances = np.concatenate([found.distances, distances])


def _summarise_tiles(image: _Values, side: int, summary: Callable[..., np.floating]) -> _Values:
    """One number for each whole tile of an image, at least for one."""
    rows, columns = (range(0, max(length - side, 0) + 1, side) for length in image.shape)
    return np.array([summary(image[r : r + side, c : c + side]) for r in rows for c in columns])


def _separation(clean: _Values, strange: _Values) -> float:
    """AUROC of perturbed tiles against tiles as trained; of these, one half against the other."""
    return auroc(clean[::2], clean[1::2]) if strange is clean else auroc(clean, strange)
