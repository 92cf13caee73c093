"""How unlike the training set a stack looks: distances computed in the exported graph.

Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
Attacks", NeurIPS 2018, use the Mahalanobis distance of deep features; here they are pooled in windows.
Deep features alone miss a wrong magnification or a blur that the network shrugs off, so a second distance
compares how contrast, sharpness and the likeness of planes change through focus. Neither sees an inverted
contrast, under which all of that stays as it is: a third one, a linear discriminant (Fisher 1936),
weighs a stack against its negative.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

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
_MOST_LIMIT = 10.0
_LEAST_ODDS = 3.0  # natural logarithm: 20 to 1 that it is the negative
_LEAST_SCALE = 0.1  # of what is usual among statistics; dead units vary by nothing at all
_FOLDS = 5
_EPS = 1e-3

logger = logging.getLogger(__name__)

Rows = NDArray[np.float64]
_Fit = TypeVar("_Fit", "FeatureNormal", "PolarityDiscriminant")


@dataclass(frozen=True, slots=True, eq=False)
class FeatureNormal:
    """A normal distribution of feature vectors: ``(f - mean) @ whitening`` has unit covariance. Mean is (F,),
    whitening (F, F) float64."""

    mean: Rows
    whitening: Rows

    @classmethod
    def fit(cls, rows: Rows) -> FeatureNormal:
        """Fit to (window, F) vectors."""
        mean, scale, covariance = _shrunk_covariance(rows)
        values, vectors = np.linalg.eigh(covariance)
        return cls(mean, vectors / np.sqrt(values) / scale[:, None])

    def distance(self, rows: Rows) -> Rows:
        """Mahalanobis distance over the root of F, (window,): about 1 for what was fitted."""
        found: Rows = np.sqrt(np.mean(((rows - self.mean) @ self.whitening) ** 2, axis=1))
        return found


@dataclass(frozen=True, slots=True, eq=False)
class PolarityDiscriminant:
    """Log odds that odd statistics come from the negative; ``-rows @ weights``. Under inversion the
    statistics change their sign, so the two classes lie symmetric about 0."""

    weights: Rows

    @classmethod
    def fit(cls, rows: Rows) -> PolarityDiscriminant:
        """Fisher's linear discriminant between (window, F) vectors and their negatives."""
        mean, scale, covariance = _shrunk_covariance(rows)
        return cls(2 * np.linalg.solve(covariance, mean / scale) / scale)

    def distance(self, rows: Rows) -> Rows:
        """Log odds, (window,): positive where the negative is likelier."""
        found: Rows = -(rows @ self.weights)
        return found


def _shrunk_covariance(rows: Rows) -> tuple[Rows, Rows, Rows]:
    """Mean and scale, (F,), and covariance after scaling, (F, F), of (window, F) vectors.

    The covariance is shrunk towards a multiple of the identity after Ledoit and Wolf, "A well-conditioned
    estimator for large-dimensional covariance matrices", J. Multivariate Analysis 88 (2004): there are fewer
    independent windows than entries in it.
    """
    from sklearn.covariance import ledoit_wolf

    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    scale = np.maximum(scale, _LEAST_SCALE * np.sqrt(np.mean(scale**2)) + 1e-6)
    return mean, scale, ledoit_wolf((rows - mean) / scale, assume_centered=True)[0]


class GateHead(nn.Module):
    """The distances of each window of a stack, (N, K, h, w), from what the network has computed anyway; None
    is a distance that is left out."""

    def __init__(
        self,
        step_px: int,
        features: FeatureNormal | None,
        focus: FeatureNormal | None,
        polarity: PolarityDiscriminant | None,
    ) -> None:
        super().__init__()
        self.step_px = step_px
        fits = (features, focus, polarity)
        self.names = tuple(name for name, fit in zip(NAMES, fits, strict=True) if fit is not None)
        for name, normal in (("features", features), ("focus", focus)):
            if normal is not None:
                self.register_buffer(f"{name}_mean", torch.tensor(normal.mean, dtype=torch.float32))
                self.register_buffer(f"{name}_whitening", torch.tensor(normal.whitening, dtype=torch.float32))
        if polarity is not None:
            self.register_buffer("polarity", torch.tensor(polarity.weights, dtype=torch.float32))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        """Distances of a normalised (N, Z, H, W) stack with its coarsest activations (N, C, h, w)."""
        *described, odd = window_statistics(x, features, self.step_px)
        distances = []
        for name, rows in zip(NAMES, described, strict=False):
            if name not in self.names:
                continue
            mean, whitening = self.get_buffer(f"{name}_mean"), self.get_buffer(f"{name}_whitening")
            # Features last, then back: one matrix product for all windows.
            white = (rows.permute(0, 2, 3, 1) - mean) @ whitening  # (N, h, w, F)
            distances.append((white.square().sum(dim=-1) / white.shape[-1]).sqrt())
        if "polarity" in self.names:
            distances.append(-(odd.permute(0, 2, 3, 1) @ self.get_buffer("polarity")))
        return torch.stack(distances, dim=1)  # (N, K, h, w)


def window_statistics(x: Tensor, features: Tensor, step_px: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pooled activations, even and odd statistics of planes of each window, (N, F, h, w) each."""
    a = x[:, :, ::_SAMPLE_PX, ::_SAMPLE_PX]  # (N, Z, H/4, W/4)
    b = x[:, :, ::_SAMPLE_PX, 1::_SAMPLE_PX]
    c = x[:, :, 2::_SAMPLE_PX, ::_SAMPLE_PX]
    power = _pool_windows(a.square(), _SAMPLE_PX)
    fine, coarse = _pool_windows((a - b).square(), _SAMPLE_PX), _pool_windows((a - c).square(), _SAMPLE_PX)
    rms = power.sqrt()
    like = [
        _pool_windows(a[:, lag:] * a[:, :-lag], _SAMPLE_PX) / (rms[:, lag:] * rms[:, :-lag] + _EPS)
        for lag in _LAGS
        if lag < x.shape[1]
    ]
    logs = [torch.log(values + _EPS) for values in (power, fine, coarse)]
    # Bright and dark differ little: all pixels count, and two sharpnesses tell structure from noise.
    soft = F.avg_pool2d(x, 2)
    odd = [_pool_windows(torch.tanh(_ODD_GAIN * part), px) for part, px in ((x, 1), (soft, 2))]
    return _pool_windows(features, step_px), torch.cat([*logs, *like], dim=1), torch.cat(odd, dim=1)


def _pool_windows(values: Tensor, step_px: int) -> Tensor:
    cells = WINDOW_PX // step_px
    return F.avg_pool2d(values, cells, stride=cells // 2)


Described = tuple[Rows, Rows, Rows]


def describe(network: LiveNetwork, stack: Tensor) -> Described:
    """`window_statistics` of a normalised (Z, H, W) stack, each (h, w, F) for h x w windows."""
    with torch.no_grad():
        x = stack[None].float()
        found = window_statistics(x, network.predict_with_features(x)[2], network.config.size_step_px)
    features, focus, odd = (values[0].permute(1, 2, 0).double().numpy() for values in found)
    return features, focus, odd


def fit_gate(
    network: LiveNetwork, stacks: Iterable[Tensor], false_alarms: float = 0.03
) -> tuple[GateHead, Gate]:
    """Fit the distances and their limits to normalised (Z, H, W) stacks a network was trained on.

    Each stack is also shown a little larger, smaller, thicker, thinner, noisier and softer: what the
    manifest's tolerances let pass is usual. Limits are quantiles of windows that the fit did not see: on
    its own windows a fit with many axes always looks too good. ``false_alarms`` is the share of usual windows
    that may lie above a limit. `ExperimentError`: too few windows to know what is usual.
    """
    step_px = network.config.size_step_px
    described = [tuple(describe(network, seen) for seen in _vary(stack, step_px)) for stack in stacks]
    count = sum(seen[0][0][..., 0].size for seen in described)
    if count < _LEAST_WINDOWS:
        raise ExperimentError(
            "the training fields are too few to say what an unusual stack is",
            wanted=f"{_LEAST_WINDOWS} windows of {WINDOW_PX} px",
            got=str(count),
            fix="train on more or larger fields",
        )
    grids = [[[seen[kind] for seen in stack] for stack in described] for kind in range(len(NAMES))]
    features, features_held = _fit_held_out(grids[0], FeatureNormal.fit)
    focus, focus_held = _fit_held_out(grids[1], FeatureNormal.fit)
    polarity, polarity_held = _fit_held_out(grids[2], PolarityDiscriminant.fit)
    held = dict(zip(NAMES, (features_held, focus_held, polarity_held), strict=True))
    # Several distances share the alarms. Odds that are nearly even are no alarm, however rare.
    limits = {name: float(np.quantile(found, 1 - false_alarms / len(NAMES))) for name, found in held.items()}
    limits["polarity"] = max(limits["polarity"], _LEAST_ODDS)
    limits = leave_out(limits, float(np.mean(-polarity_held > limits["polarity"])))
    head = GateHead(
        network.config.size_step_px,
        features if "features" in limits else None,
        focus if "focus" in limits else None,
        polarity if "polarity" in limits else None,
    )
    alarms = np.any([held[name] > limit for name, limit in limits.items()], axis=0)
    return head, Gate(names=head.names, limits=tuple(limits.values()), false_alarms=float(alarms.mean()))


def leave_out(limits: Mapping[str, float], told: float) -> dict[str, float]:
    """Limits that can be right; why others are left out is told. ``told`` is the share of negatives that the
    one of polarity finds. `ExperimentError` if neither features nor focus is left."""
    why = {
        name: f"its limit would be {limit:.3g}, where about 1 is usual"
        for name, limit in limits.items()
        if not (math.isfinite(limit) and 0 < limit <= _MOST_LIMIT)
    }
    if "polarity" not in why and told < 0.5:
        why["polarity"] = f"it would know only {told:.0%} of the windows' negatives from the windows"
    left = {name: limit for name, limit in limits.items() if name not in why}
    if not left.keys() & {"features", "focus"}:
        raise ExperimentError(
            "the training fields are too few or too unlike each other to say what an unusual stack is",
            wanted=f"limits of at most {_MOST_LIMIT:g}; a distance is about 1 for what is usual",
            got=", ".join(f"{name}: {reason}" for name, reason in why.items()),
            fix="train on more or larger fields",
        )
    for name, reason in why.items():
        logger.warning("the gate has no check of %s: %s", name, reason)
    return left


def _vary(stack: Tensor, step_px: int) -> Iterator[Tensor]:
    """A normalised (Z, H, W) stack as it is, and as it may look within the tolerances of its metadata."""
    yield stack
    planes = stack.shape[0]
    middle, at = (planes - 1) / 2, torch.arange(planes)
    for scale in (0.93, 1.07):
        sides = [max(round(side * scale) // step_px * step_px, WINDOW_PX) for side in stack.shape[1:]]
        yield F.interpolate(stack[None], sides, mode="bilinear", antialias=True)[0]
        z = (middle + scale**2 * (at - middle)).clamp(0, planes - 1)
        low = z.floor().long().clamp(max=max(planes - 2, 0))
        part = (z - low)[:, None, None]
        yield stack[low] * (1 - part) + stack[(low + 1).clamp(max=planes - 1)] * part
    noise = np.random.default_rng(0).standard_normal(tuple(stack.shape), np.float32)
    yield stack + 0.1 * torch.from_numpy(noise)
    yield 0.8 * stack + 0.2 * F.avg_pool2d(stack[None], 3, stride=1, padding=1)[0]


def _flatten(grid: Rows) -> Rows:
    """(h, w, F) to (window, F)."""
    return grid.reshape(-1, grid.shape[-1])


def _fit_held_out(grids: list[list[Rows]], fit: Callable[[Rows], _Fit]) -> tuple[_Fit, Rows]:
    """A fit to all windows, and distances of windows as they are from fits without their neighbourhood.
    Neighbourhoods are cut in both directions; ``grids`` are (h, w, F), of each stack as it is and varied."""
    distances = []
    for axis in (0, 1):
        for part in range(_FOLDS):
            kept, left = [], []
            for seen in grids:
                for nth, grid in enumerate(seen):
                    within = np.arange(grid.shape[axis]) * _FOLDS // grid.shape[axis] == part
                    kept.append(_flatten(np.compress(~within, grid, axis)))
                    if nth == 0:
                        left.append(_flatten(np.compress(within, grid, axis)))
            if sum(map(len, left)):
                distances.append(fit(np.concatenate(kept)).distance(np.concatenate(left)))
    return fit(np.concatenate([_flatten(grid) for seen in grids for grid in seen])), np.concatenate(distances)
