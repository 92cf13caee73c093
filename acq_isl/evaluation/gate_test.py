"""Does the model's gate notice stacks that do not fit? The predicted spread does not, as shown beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.model_file import ModelFile, answers
from acq_isl.engines.onnx import OnnxNetwork
from acq_isl.evaluation.perturbations import AS_TRAINED, CONDITIONS, ZOOMS, zoomed
from acq_isl.evaluation.scores import PixelScore, auroc, pixel_score
from acq_isl.manifest import Manifest
from acq_isl.processing.normalize import inverse_contrast
from acq_isl.stack import Float32Image, Uint16Image

_LONGEST_PX = 1280
_TILE_PX = 256
_WINDOWS = 3  # of 128 px at a pitch of 64: a tile of 256 px


@dataclass(frozen=True, slots=True)
class Condition:
    """What one condition did.

    Parameters
    ----------
    name : str
    pearson : mapping of label to float
        All pixels of all fields together.
    loss : float
        Mean Pearson as trained, less that under this condition.
    gate : float
        AUROC of the model's distances, each relative to its limit, the largest of them; tiles of about
        256 px under this condition against tiles as trained. NaN without a gate.
    spread : float
        The same of the mean predicted spread.
    flagged : float
        Share of the tiles beyond a limit of the gate; as trained these are false alarms.
    tiles : int
    """

    name: str
    pearson: Mapping[str, float]
    loss: float
    gate: float
    spread: float
    flagged: float
    tiles: int


@dataclass(slots=True)
class _Seen:
    pixels: dict[str, PixelScore] = field(default_factory=dict)
    distances: list[NDArray[np.floating]] = field(default_factory=list)
    spreads: list[NDArray[np.floating]] = field(default_factory=list)


class Trial:
    """Runs a model under every condition, field by field; owns its session."""

    def __init__(self, model: ModelFile, threads: int | None) -> None:
        self._manifest: Manifest = model.info.manifest
        self._network = OnnxNetwork(model, threads=threads)
        self._seen = {name: _Seen() for name in CONDITIONS}

    def add(self, stack: Uint16Image, truths: Mapping[str, Float32Image]) -> None:
        """Try one field, already on the model's planes and pixels; ``truths`` by label, from 0 to 1."""
        labels = [name for name in self._manifest.label_names if name in truths]
        true = np.stack([truths[label] for label in labels])
        for name, change in CONDITIONS.items():
            changed = change(stack)
            follow = zoomed(true, ZOOMS[name]) if name in ZOOMS else true
            rows, columns = (slice(*self._cut(side)) for side in changed.shape[1:])
            if min(rows.stop - rows.start, columns.stop - columns.start) < self._manifest.min_tile_px:
                continue
            self._run(
                self._seen[name],
                changed[:, rows, columns],
                dict(zip(labels, follow[:, rows, columns], strict=True)),
            )

    def results(self) -> tuple[Condition, ...]:
        """All conditions so far, as trained first; empty if no field was large enough."""
        clean = self._seen[AS_TRAINED]
        if not clean.pixels:
            return ()
        before = _mean_pearson(clean)
        return tuple(
            Condition(
                name,
                {label: score.pearson for label, score in seen.pixels.items()},
                before - _mean_pearson(seen),
                _apart(_distances(clean), _distances(seen), same=name == AS_TRAINED),
                _apart(_spreads(clean), _spreads(seen), same=name == AS_TRAINED),
                float(np.mean(_distances(seen) > 1)) if seen.distances else float("nan"),
                _spreads(seen).size,
            )
            for name, seen in self._seen.items()
            if seen.pixels
        )

    def close(self) -> None:
        self._network.close()

    def _cut(self, side: int) -> tuple[int, int]:
        """The middle of an axis, a multiple of the size step and no longer than fits in memory."""
        step = self._manifest.size_step_px
        length = min(side, self._manifest.max_tile_px or _LONGEST_PX, _LONGEST_PX) // step * step
        start = (side - length) // 2
        return start, start + length

    def _run(self, seen: _Seen, stack: Uint16Image, truths: Mapping[str, Float32Image]) -> None:
        manifest = self._manifest
        inv_sd = inverse_contrast(stack, manifest.high_pass_um / manifest.pixel_size_um)
        counts = np.ascontiguousarray(stack, "<u2")
        outputs = self._network.run(
            counts.view(np.uint8).reshape(1, *counts.shape, 2), np.full(1, inv_sd, np.float32)
        )
        named = dict(zip(answers(manifest), outputs, strict=True))
        inner = slice(manifest.blank_px, -manifest.blank_px or None)
        for label, truth in truths.items():
            mean = named["mean"][0, manifest.label_names.index(label)]
            score = pixel_score(mean[inner, inner], truth[inner, inner])
            seen.pixels[label] = seen.pixels[label] + score if label in seen.pixels else score
        seen.spreads.append(_tiled(named["spread"][0, :, inner, inner].mean(axis=0), _TILE_PX, np.mean))
        if manifest.gate is not None:
            limits = np.asarray(manifest.gate.limits)
            tiles = [_tiled(distance, _WINDOWS, np.median) for distance in named["distance"][0]]
            seen.distances.append((np.stack(tiles) / limits[:, None]).max(axis=0))


def _tiled(
    image: NDArray[np.floating], side: int, summary: Callable[..., np.floating]
) -> NDArray[np.floating]:
    """One number for each whole tile of an image, at least for one."""
    rows, columns = (range(0, max(length - side, 0) + 1, side) for length in image.shape)
    return np.array([summary(image[r : r + side, c : c + side]) for r in rows for c in columns])


def _distances(seen: _Seen) -> NDArray[np.floating]:
    return np.concatenate([*seen.distances, np.zeros(0)])


def _spreads(seen: _Seen) -> NDArray[np.floating]:
    return np.concatenate([*seen.spreads, np.zeros(0)])


def _apart(clean: NDArray[np.floating], strange: NDArray[np.floating], *, same: bool) -> float:
    """AUROC; as trained, one half of the tiles against the other."""
    return auroc(clean[::2], clean[1::2]) if same else auroc(clean, strange)


def _mean_pearson(seen: _Seen) -> float:
    return float(np.mean([score.pearson for score in seen.pixels.values()]))
