"""How unlike the training set a stack looks: distances computed in the exported graph.

Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
Attacks", NeurIPS 2018, use the Mahalanobis distance of deep features; here they are pooled in windows.
Deep features alone miss a wrong magnification or a blur that the network shrugs off, so a second distance
compares how contrast, sharpness and the likeness of planes change through focus. Neither sees an inverted
contrast, under which all of that stays as it is: a third one, a linear discriminant (Fisher 1936),
weighs a stack against its negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from acq_isl.errors import ExperimentError
from acq_isl.manifest import Gate
from acq_isl.training.network import LiveNetwork

NAMES = ("features", "focus", "polarity")
"""Of the distances: of the network's coarsest activations, of the planes' statistics, to the negative."""
WINDOW_PX = 128
_SAMPLE_PX = 4  # statistics of planes are taken from one pixel in 4x4
_LAGS = (1, 3, 6)
_ODD_GAIN = 2.0
_LEAST_WINDOWS = 40
_FOLDS = 5
_EPS = 1e-3

Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Normal:
    """A normal distribution of feature vectors.

    Parameters
    ----------
    mean : (F,) float64
    whitening : (F, F) float64
        ``(f - mean) @ whitening`` has unit covariance.
    """

    mean: Rows
    whitening: Rows

    @classmethod
    def fit(cls, rows: Rows) -> Normal:
        """Fit to (window, F) vectors.

        The covariance is shrunk towards a multiple of the identity after Ledoit and Wolf, "A
        well-conditioned estimator for large-dimensional covariance matrices", J. Multivariate Analysis
        88 (2004): there are fewer independent windows than entries in it.
        """
        from sklearn.covariance import ledoit_wolf

        mean, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-6
        values, vectors = np.linalg.eigh(ledoit_wolf((rows - mean) / scale, assume_centered=True)[0])
        return cls(mean, vectors / np.sqrt(values) / scale[:, None])

    def distance(self, rows: Rows) -> Rows:
        """Mahalanobis distance over the root of F, (window,): about 1 for what was fitted."""
        found: Rows = np.sqrt(np.mean(((rows - self.mean) @ self.whitening) ** 2, axis=1))
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Polarity:
    """Log odds that odd statistics come from the negative; ``-rows @ weights``.

    Under inversion the statistics change their sign, so the two classes lie symmetric about 0.
    """

    weights: Rows

    @classmethod
    def fit(cls, rows: Rows) -> Polarity:
        """Fisher's linear discriminant between (window, F) vectors and their negatives."""
        from sklearn.covariance import ledoit_wolf

        scale = rows.std(axis=0) + 1e-6
        covariance = ledoit_wolf((rows - rows.mean(axis=0)) / scale, assume_centered=True)[0]
        return cls(2 * np.linalg.solve(covariance, rows.mean(axis=0) / scale) / scale)

    def distance(self, rows: Rows) -> Rows:
        """Log odds, (window,): positive where the negative is likelier."""
        found: Rows = -(rows @ self.weights)
        return found


class GateHead(nn.Module):
    """The distances of each window of a stack, (N, 3, h, w), from what the network has computed anyway."""

    def __init__(self, step_px: int, features: Normal, focus: Normal, polarity: Polarity) -> None:
        super().__init__()
        self.step_px = step_px
        for name, normal in (("features", features), ("focus", focus)):
            self.register_buffer(f"{name}_mean", torch.tensor(normal.mean, dtype=torch.float32))
            self.register_buffer(f"{name}_whitening", torch.tensor(normal.whitening, dtype=torch.float32))
        self.register_buffer("polarity", torch.tensor(polarity.weights, dtype=torch.float32))

    def forward(self, x: Tensor, bottom: Tensor) -> Tensor:
        """Distances of a normalised (N, Z, H, W) stack with its coarsest activations (N, C, h, w)."""
        *described, odd = window_statistics(x, bottom, self.step_px)
        distances = []
        for name, rows in zip(NAMES, described, strict=False):
            mean, whitening = self.get_buffer(f"{name}_mean"), self.get_buffer(f"{name}_whitening")
            # Features last, then back: one matrix product for all windows.
            white = (rows.permute(0, 2, 3, 1) - mean) @ whitening  # (N, h, w, F)
            distances.append((white.square().sum(dim=-1) / white.shape[-1]).sqrt())
        distances.append(-(odd.permute(0, 2, 3, 1) @ self.get_buffer("polarity")))
        return torch.stack(distances, dim=1)  # (N, 3, h, w)


def window_statistics(x: Tensor, bottom: Tensor, step_px: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled activations, even and odd statistics of planes of each window, (N, F, h, w) each."""
    a = x[:, :, ::_SAMPLE_PX, ::_SAMPLE_PX]  # (N, Z, H/4, W/4)
    b = x[:, :, ::_SAMPLE_PX, 1::_SAMPLE_PX]
    c = x[:, :, 2::_SAMPLE_PX, ::_SAMPLE_PX]
    power = _windows(a.square(), _SAMPLE_PX)
    fine, coarse = _windows((a - b).square(), _SAMPLE_PX), _windows((a - c).square(), _SAMPLE_PX)
    deviation = power.sqrt()
    like = [
        _windows(a[:, lag:] * a[:, :-lag], _SAMPLE_PX) / (deviation[:, lag:] * deviation[:, :-lag] + _EPS)
        for lag in _LAGS
        if lag < x.shape[1]
    ]
    logs = [torch.log(values + _EPS) for values in (power, fine, coarse)]
    # Bright and dark differ little: all pixels count, and two sharpnesses tell structure from noise.
    soft = F.avg_pool2d(x, 2)
    odd = [_windows(torch.tanh(_ODD_GAIN * part), px) for part, px in ((x, 1), (soft, 2))]
    return _windows(bottom, step_px), torch.cat([*logs, *like], dim=1), torch.cat(odd, dim=1)


def _windows(values: Tensor, step_px: int) -> Tensor:
    cells = WINDOW_PX // step_px
    return F.avg_pool2d(values, cells, stride=cells // 2)


Described = tuple[Rows, Rows, Rows]


def describe(network: LiveNetwork, stack: Tensor) -> Described:
    """`window_statistics` of a normalised (Z, H, W) stack, each (h, w, F) for h x w windows."""
    with torch.no_grad():
        x = stack[None].float()
        found = window_statistics(x, network.with_bottom(x)[2], network.config.size_step_px)
    features, focus, odd = (values[0].permute(1, 2, 0).double().numpy() for values in found)
    return features, focus, odd


def fit_gate(
    network: LiveNetwork, stacks: Iterable[Tensor], false_alarms: float = 0.03
) -> tuple[GateHead, Gate]:
    """Fit the distances and their limits to the normalised stacks a network was trained on.

    Each stack is also shown a little larger, smaller, thicker, thinner, noisier and softer: what the
    manifest's tolerances let pass is usual. Limits are quantiles of windows that the fit did not see: on
    its own windows a fit with many axes always looks too good.

    Parameters
    ----------
    network : LiveNetwork
    stacks : iterable of (Z, H, W) float32
        From `Normalise`; sides at least `WINDOW_PX` and multiples of the network's size step.
    false_alarms : float
        Share of usual windows that may lie above a limit.

    Raises
    ------
    ExperimentError
        Too few windows to know what is usual.
    """
    described = [tuple(describe(network, seen) for seen in _tolerated(stack)) for stack in stacks]
    count = sum(one[0][0].shape[0] * one[0][0].shape[1] for one in described)
    if count < _LEAST_WINDOWS:
        raise ExperimentError(
            "the training fields are too few to say what an unusual stack is",
            wanted=f"{_LEAST_WINDOWS} windows of {WINDOW_PX} px",
            got=str(count),
            fix="train on more or larger fields",
        )
    fits: list[Normal | Polarity] = []
    limits, alarms = [], np.zeros(0, bool)
    ways: tuple[Callable[[Rows], Normal | Polarity], ...] = (Normal.fit, Normal.fit, Polarity.fit)
    for kind, fit in enumerate(ways):
        grids = [[seen[kind] for seen in one] for one in described]
        held = _held_out(grids, fit)
        fits.append(fit(np.concatenate([_rows(grid) for one in grids for grid in one])))
        # Several distances share the alarms. Odds below even are no alarm, however rare.
        limit = float(np.quantile(held, 1 - false_alarms / len(NAMES)))
        limits.append(max(limit, 0.0) if kind == 2 else limit)
        alarms = (held > limits[-1]) | (alarms if alarms.size else np.zeros(len(held), bool))
    features, focus, polarity = fits
    head = GateHead(network.config.size_step_px, features, focus, polarity)  # type: ignore[arg-type]
    return head, Gate(names=NAMES, limits=tuple(limits), false_alarms=float(alarms.mean()))


def _tolerated(stack: Tensor) -> Iterator[Tensor]:
    """A normalised (Z, H, W) stack as it is, and as it may look within the tolerances of its metadata."""
    yield stack
    planes = stack.shape[0]
    middle, at = (planes - 1) / 2, torch.arange(planes)
    for scale in (0.93, 1.07):
        sides = [max(round(side * scale) // 16 * 16, WINDOW_PX) for side in stack.shape[1:]]
        yield F.interpolate(stack[None], sides, mode="bilinear", antialias=True)[0]
        z = (middle + scale**2 * (at - middle)).clamp(0, planes - 1)
        low = z.floor().long().clamp(max=max(planes - 2, 0))
        part = (z - low)[:, None, None]
        yield stack[low] * (1 - part) + stack[(low + 1).clamp(max=planes - 1)] * part
    noise = np.random.default_rng(0).standard_normal(tuple(stack.shape), np.float32)
    yield stack + 0.1 * torch.from_numpy(noise)
    yield 0.8 * stack + 0.2 * F.avg_pool2d(stack[None], 3, stride=1, padding=1)[0]


def _rows(grid: Rows) -> Rows:
    return grid.reshape(-1, grid.shape[-1])


def _held_out(grids: list[list[Rows]], fit: Callable[[Rows], Normal | Polarity]) -> Rows:
    """Distances of windows as they are from fits without their neighbourhood, in both directions."""
    distances = []
    for axis in (0, 1):
        for part in range(_FOLDS):
            kept, left = [], []
            for seen in grids:
                for nth, grid in enumerate(seen):
                    within = np.arange(grid.shape[axis]) * _FOLDS // grid.shape[axis] == part
                    kept.append(_rows(np.compress(~within, grid, axis)))
                    if nth == 0:
                        left.append(_rows(np.compress(within, grid, axis)))
            if sum(map(len, left)):
                distances.append(fit(np.concatenate(kept)).distance(np.concatenate(left)))
    return np.concatenate(distances)
