"""Intensity, pixel size and z of a stack, brought to what a model was trained on. Pure."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from acq_isl.stack import Uint16Image

_BLOCK_PX = 4
_PLANES_SAMPLED = 4


def contrast_sd(pixels: Uint16Image, high_pass_px: float) -> float:
    """Contrast of a stack: SD of the counts around their local background.

    The same number normalises stacks in training and in use, so gain, offset and exposure cancel. It
    is one number per stack, not per tile, so that tiling cannot change a prediction. Estimated on four
    planes spread over the stack; the background is a Gaussian of block means, which keeps it cheap.

    Parameters
    ----------
    pixels : (z, y, x) uint16
    high_pass_px : float
        Sigma of the Gaussian background in pixels; 0 removes the mean of the plane only.

    Returns
    -------
    float
        Counts; 0 for a constant stack.
    """
    picks = np.unique(np.linspace(0, len(pixels) - 1, _PLANES_SAMPLED).round().astype(int))
    variances = []
    for plane in pixels[picks].astype(np.float32):
        rows, columns = (max(side // _BLOCK_PX, 1) * _BLOCK_PX for side in plane.shape)
        if min(plane.shape) < _BLOCK_PX or high_pass_px <= 0:
            variances.append(float(plane.var()))
            continue
        cut = plane[:rows, :columns]
        blocks = cut.reshape(rows // _BLOCK_PX, _BLOCK_PX, columns // _BLOCK_PX, _BLOCK_PX).mean(axis=(1, 3))
        background = ndimage.gaussian_filter(blocks, high_pass_px / _BLOCK_PX, mode="reflect")
        residual = cut - np.repeat(np.repeat(background, _BLOCK_PX, 0), _BLOCK_PX, 1)
        variances.append(float(np.mean(np.square(residual))))
    return float(np.sqrt(np.mean(variances)))
