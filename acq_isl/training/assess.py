"""What a trained network predicts, and how far from a border it is sure of it."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from acq_isl.processing.normalize import contrast_sd
from acq_isl.training.data.source_simulated import Pair
from acq_isl.training.network import LiveNetwork

_HALO_TOLERANCE, _MARGIN_TOLERANCE = 2e-6, 1e-2

Images = NDArray[np.float32]


def predict(network: LiveNetwork, x: NDArray[np.floating]) -> tuple[Images, Images]:
    """Mean, at least 0, and uncalibrated spread, each (label, y, x), of a normalised (z, y, x) stack."""
    with torch.no_grad():
        mean, spread, _ = network.with_bottom(torch.from_numpy(x.astype(np.float32))[None])
    return mean[0].clamp(min=0).numpy(), spread[0].numpy()


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
