"""A ridge regression on local features of the light: what one stained image gives without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float32]
_SCALES_PX = (1.0, 2.0, 4.0, 8.0)
_FLAT_PX = 60.0
_RIDGE = 1.0
_SAMPLED = 2**17


def features(stack: NDArray[np.uint16]) -> Image:
    """(feature, y, x) of a (z, y, x) stack: brightness, edges, roughness and curvature of its mean and, of
    several planes, its variance through focus, at four scales."""
    planes = stack.astype(np.float32)
    planes = planes - np.stack([ndimage.gaussian_filter(plane, _FLAT_PX) for plane in planes])
    planes /= max(float(planes.std()), 1e-6)
    images = [planes.mean(axis=0)] + [np.log(planes.var(axis=0) + 1e-3)] * (len(planes) > 1)
    found = []
    for image in images:
        for scale in _SCALES_PX:
            smooth = ndimage.gaussian_filter(image, scale)
            rough = ndimage.gaussian_filter(np.square(image - smooth), scale)
            edges = ndimage.gaussian_gradient_magnitude(image, scale)
            found += [smooth, edges, np.sqrt(rough), ndimage.gaussian_laplace(image, scale)]
    return np.stack(found).astype(np.float32)


Pair = tuple[NDArray[np.uint16], NDArray[Any], NDArray[np.bool_] | None]
"""A (z, y, x) stack, a (y, x) label, and where the label is known; None: everywhere."""


def fit_ridge(pairs: Sequence[Pair]) -> Callable[[NDArray[np.uint16]], Image]:
    """Fit labels of stacks; the fit gives the label of another stack."""
    rng, xs, ys = np.random.default_rng(0), [], []
    for stack, label, valid in pairs:
        x, y = features(stack).reshape(-1, label.size), label.ravel().astype(np.float64)
        known = np.arange(label.size) if valid is None else np.flatnonzero(valid)
        chosen = rng.permutation(known)[: _SAMPLED // len(pairs)]
        xs.append(x[:, chosen])
        ys.append(y[chosen])
    x, y = np.concatenate(xs, axis=1).astype(np.float64), np.concatenate(ys)
    middle, spread = x.mean(axis=1, keepdims=True), x.std(axis=1, keepdims=True) + 1e-9
    scaled = (x - middle) / spread
    weights = np.linalg.solve(scaled @ scaled.T + _RIDGE * np.eye(len(x)), scaled @ (y - y.mean()))

    def guess(stack: NDArray[np.uint16]) -> Image:
        own = features(stack)
        flat = (own.reshape(len(own), -1) - middle) / spread
        return (weights @ flat + y.mean()).reshape(stack.shape[1:]).astype(np.float32)

    return guess
