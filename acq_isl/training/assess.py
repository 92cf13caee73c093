"""What a trained network is worth on held-out fields, and what its file must say about it."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from acq_isl.manifest import Label, Manifest
from acq_isl.normalize import contrast_sd
from acq_isl.training.config import TrainConfig
from acq_isl.training.dataset import Field
from acq_isl.training.network import LiveNetwork
from acq_isl.training.simulate import Pair

_HALO_TOLERANCE, _MARGIN_TOLERANCE = 2e-6, 1e-2
_NUCLEUS = 0.25
_NUCLEUS_PX = 40

Images = NDArray[np.float32]


def predict(network: LiveNetwork, x: NDArray[np.floating]) -> tuple[Images, Images]:
    """Mean, at least 0, and uncalibrated spread, each (label, y, x), of a normalised (z, y, x) stack."""
    with torch.no_grad():
        mean, log_variance = network(torch.from_numpy(x.astype(np.float32))[None])
    return mean[0].clamp(min=0).numpy(), (0.5 * log_variance[0]).exp().numpy()


def calibrate(network: LiveNetwork, fields: list[Field]) -> tuple[float, ...]:
    """Per label, the factor that makes the RMS of error / spread 1 on held-out pixels."""
    squares = []
    for field in fields:
        mean, spread = predict(network, field.x)
        error = mean - field.y.astype(np.float32) / 255
        squares.append(np.mean((error / spread) ** 2, axis=(1, 2)))
    return tuple(float(np.sqrt(v)) for v in np.mean(squares, axis=0))


def assess(
    network: LiveNetwork, fields: list[Field], labels: tuple[Label, ...], scale: tuple[float, ...]
) -> dict[str, float]:
    """Pearson over all held-out pixels together, coverage of one SD, and nuclei counted in both images."""
    predicted = [predict(network, field.x) for field in fields]
    metrics = {}
    for index, label in enumerate(labels):
        truth = np.concatenate([field.y[index].ravel() / 255 for field in fields])
        mean = np.concatenate([m[index].ravel() for m, _ in predicted])
        spread = np.concatenate([s[index].ravel() for _, s in predicted]) * scale[index]
        if np.ptp(truth) > 0 and np.ptp(mean) > 0:
            metrics[f"simulated pearson {label.name}"] = float(np.corrcoef(truth, mean)[0, 1])
        metrics[f"simulated coverage of 1 SD {label.name}"] = float(np.mean(np.abs(mean - truth) < spread))
    metrics["simulated nuclei, true"] = float(sum(count(field.y[0] / 255) for field in fields))
    metrics["simulated nuclei, predicted"] = float(sum(count(mean[0]) for mean, _ in predicted))
    return metrics


def count(nuclei: NDArray[np.floating]) -> int:
    """Bright connected areas above a quarter that are at least 3.6 um^2 large."""
    areas = np.bincount(ndimage.label(nuclei > _NUCLEUS)[0].ravel())[1:]
    return int(np.sum(areas >= _NUCLEUS_PX))


def measure_halo(network: LiveNetwork, pair: Pair) -> int:
    """Distance from a tile's border beyond which mean and spread equal the untiled ones to 2e-6.

    Rounded up to the size step, and one step more: other fields reach a little further than the one measured.
    """
    step = network.config.size_step_px
    difference = _cut_off(network, pair).max(axis=0)
    sides = range(min(difference.shape))
    at_distance = [max(difference[d, d:].max(), difference[d:, d].max()) for d in sides]
    wrong = np.flatnonzero(np.array(at_distance) > _HALO_TOLERANCE)
    return step * (math.ceil((int(wrong[-1]) + 1 if wrong.size else 0) / step) + 1)


def measure_margin(network: LiveNetwork, pair: Pair) -> int:
    """Distance from a field's border beyond which what lies outside changes the mean by less than 1 % RMS."""
    squares = np.square(_cut_off(network, pair)[: network.config.labels]).mean(axis=0)
    sides = range(min(squares.shape))
    at_distance = [max(squares[d, d:].mean(), squares[d:, d].mean()) for d in sides]
    wrong = np.flatnonzero(np.sqrt(at_distance) > _MARGIN_TOLERANCE)
    return int(wrong[-1]) + 1 if wrong.size else 0


def _cut_off(network: LiveNetwork, pair: Pair) -> Images:
    """How far mean and spread of a tile are from those of the whole field, (2 * label, y, x).

    Measured, from raw counts on: the tile begins at a third of the field, on the network's lattice, and is
    predicted alone. Includes the local background.
    """
    step = network.config.size_step_px
    sd = max(contrast_sd(pair.stack, network.config.high_pass_px), 1e-6)
    counts = torch.from_numpy(pair.stack.astype(np.float32))[None]
    start = (counts.shape[2] // 3 // step) * step

    def of(part: torch.Tensor) -> Images:
        with torch.no_grad():
            x = network.normalise(part, torch.tensor([1 / sd], dtype=torch.float32))
        return np.concatenate(predict(network, x[0].numpy()))

    apart: Images = np.abs(of(counts[:, :, start:, start:]) - of(counts)[:, start:, start:])
    return apart


def manifest_of(
    config: TrainConfig,
    scale: tuple[float, ...],
    metrics: dict[str, float],
    halo_px: int,
    margin_px: int | None = None,
) -> Manifest:
    """What the model file says about itself."""
    middle = (config.simulation.planes - 1) / 2
    return Manifest(
        name=config.name, version=config.version, licence=config.licence, description=config.description,
        modality="phase contrast", polarity="dark", pixel_size_um=config.pixel_size_um,
        z_offsets_um=tuple(config.z_step_um * (plane - middle) for plane in range(config.simulation.planes)),
        high_pass_um=config.high_pass_um, labels=config.labels,
        min_tile_px=8 * config.network.size_step_px, halo_px=halo_px, margin_px=margin_px,
        size_step_px=config.network.size_step_px, spread_scale=scale,
        trained_on=f"{config.simulation.fields} simulated fields, no recorded image",
        metrics=metrics,
    )  # fmt: skip
