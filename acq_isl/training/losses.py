"""The loss over labels that not every sample has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def pixel_nll(mean: Tensor, log_variance: Tensor, target: Tensor, beta: float) -> Tensor:
    """beta-NLL of each pixel, see `acq_isl.training.network.beta_nll`."""
    nll = 0.5 * (log_variance + (target - mean) ** 2 / log_variance.exp())
    return (beta * log_variance.detach()).exp() * nll  # (N, L, H, W)


def over_labels(pixels: Tensor, weight: Tensor, total: Callable[[Tensor], Tensor], size: int = 1) -> Tensor:
    """Mean over the known pixels of each label, summed over labels.

    A label counts fully wherever it is known, whatever other labels the samples lack.

    Parameters
    ----------
    pixels : (N, L, H, W) float32
        Loss of each pixel.
    weight : (N, L, H, W) float32
        0 where the truth is not known.
    total : callable
        Sums over the processes that train together.
    size : int
        Number of these; their gradients are averaged.
    """
    known = total(weight.sum(dim=(0, 2, 3))).clamp(min=1)  # (L,)
    # where: what is not known may be anything, even NaN
    chosen = torch.where(weight > 0, pixels * weight, 0.0).sum(dim=(0, 2, 3))  # (L,)
    return size * (chosen / known).sum()
