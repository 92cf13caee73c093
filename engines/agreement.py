"""How far a form of a network is from its fp32 master, as ONNX Runtime computes that on the processor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from scipy import ndimage

from acq_isl.engines.model_file import output_names
from acq_isl.manifest import Gate, Manifest
from acq_isl.processing.statistics import pearson
from acq_isl.stack import Float32Image, Uint16Image

_FATAL_ONLY = 4
LEAST_SD = 0.02  # of an image of intensities, 0 to 1; less is as good as flat


@dataclass(frozen=True, slots=True)
class Agreement:
    """Differences to fp32 over all test tiles."""

    max_abs: dict[str, float]
    """Largest absolute difference of each output."""
    pearson: dict[str, float]
    """`correlation` of the mean of each label over all pixels."""
    rms: float
    """Of the mean's or spread's difference as a share of its SD, or of `LEAST_SD`; the larger one."""
    distance: float = 0.0
    """Largest change of a distance's median over a tile, which the gate looks at, as a share of its limit, or
    of 1 where that is larger, since limits may be 0; 0 without a gate."""

    @property
    def least_pearson(self) -> float:
        return min(self.pearson.values())

    def flat(self) -> dict[str, float]:
        """One mapping, for notes and tables."""
        return {
            **{f"max |d {k}|": v for k, v in self.max_abs.items()},
            **{f"pearson {k}": v for k, v in self.pearson.items()},
            **({"distance / limit": self.distance} if self.distance else {}),
        }


def agreement(
    master: bytes, other: bytes, manifest: Manifest, *, stacks: Uint16Image | None = None
) -> Agreement:
    """Run two ONNX forms of a model on the same tiles, (n, z, h, w) uint16, or on `sample_tiles`.

    Both have the inputs and outputs of acq-isl models; outputs of ``other`` may be float16.
    """
    feeds = as_inputs(sample_tiles(manifest) if stacks is None else stacks)
    wanted, got = (_run(content, output_names(manifest), feeds) for content in (master, other))
    return compare(wanted, got, manifest)


def compare(wanted: tuple[Float32Image, ...], got: tuple[Float32Image, ...], manifest: Manifest) -> Agreement:
    """Outputs of two networks, each in the order of `output_names`; what is no number is infinitely far."""
    off = [np.nan_to_num(np.abs(w - g), nan=np.inf) for w, g in zip(wanted, got, strict=True)]
    names = zip(output_names(manifest), off, strict=True)
    return Agreement(
        {name: float(values.max()) for name, values in names},
        {
            name: correlation(wanted[0][:, index], got[0][:, index])
            for index, name in enumerate(manifest.label_names)
        },
        max(_rms(d) / max(float(w.std()), LEAST_SD) for d, w in zip(off[:2], wanted[:2], strict=True)),
        0.0 if manifest.gate is None else _gate_change(wanted[2], got[2], manifest.gate),
    )


def _rms(values: Float32Image) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def correlation(master: Float32Image, other: Float32Image) -> float:
    """Pearson correlation; 1 for equal images, else 0 if one is constant or not finite."""
    return 1.0 if np.array_equal(master, other) else float(np.nan_to_num(pearson(master, other)))


def _gate_change(wanted: Float32Image, got: Float32Image, gate: Gate) -> float:
    medians = [np.median(values, axis=(2, 3)) for values in (wanted, got)]
    scale = np.maximum(np.abs(gate.limits), 1.0)
    return float(np.nan_to_num(np.abs(medians[1] - medians[0]) / scale, nan=np.inf).max())


def sample_tiles(manifest: Manifest, count: int = 2, side_px: int | None = None) -> Uint16Image:
    """Blobs that go in and out of focus on an uneven background, (count, z, h, w) uint16; always the same."""
    rng = np.random.default_rng(0)
    side = side_px or manifest.least_side_px
    tiles = np.empty((count, manifest.planes, side, side), np.uint16)
    for tile in tiles:
        grain = rng.normal(size=(side, side))
        slope = np.linspace(-1, 1, side) * 2000
        for plane, image in enumerate(tile):
            blur = 1 + abs(plane - manifest.planes // 2) / 2
            blobs = ndimage.gaussian_filter(grain, blur, mode="wrap")
            shot = rng.normal(scale=60, size=(side, side))
            image[:] = np.clip(24000 + slope + 3000 * blobs / blobs.std() + shot, 0, 65535)
    return tiles


def as_bytes(tiles: Uint16Image) -> NDArray[np.uint8]:
    """Counts as a model takes them: two bytes each, (..., 2), the lower one first."""
    return np.ascontiguousarray(tiles, "<u2").view(np.uint8).reshape(*tiles.shape, 2)


def inverse_contrasts(tiles: Uint16Image) -> Float32Image:
    """1 / SD of each tile."""
    contrast = tiles.std(axis=(1, 2, 3), dtype=np.float64)
    inverse: Float32Image = (1 / np.maximum(contrast, 0.5)).astype(np.float32)
    return inverse


def as_inputs(tiles: Uint16Image) -> dict[str, NDArray[np.uint8] | Float32Image]:
    """Inputs of a model for tiles, each normalised by its own contrast."""
    return {"stack": as_bytes(tiles), "inv_sd": inverse_contrasts(tiles)}


def _run(
    content: bytes, names: tuple[str, ...], feeds: dict[str, NDArray[np.uint8] | Float32Image]
) -> tuple[Float32Image, ...]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return tuple(np.asarray(values, np.float32) for values in session.run(list(names), feeds))
