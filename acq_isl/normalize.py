"""Intensity, pixel size and z of a stack, brought to what a model was trained on. Pure."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy import ndimage

from acq_isl.errors import StackRefused
from acq_isl.fit import Resample
from acq_isl.stack import Float32Image, Uint16Image, ZStack

_BLOCK_PX = 4
_PLANES_SAMPLED = 4
_FULL_SCALE = 65535
_LEAST_SD = 0.5


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
    for plane in (pixels[pick] for pick in picks):
        if min(plane.shape) < _BLOCK_PX or high_pass_px <= 0:
            variances.append(float(plane.astype(np.float64).var()))
        else:
            variances.append(_variance_around_background(plane, high_pass_px))
    return float(np.sqrt(np.mean(variances)))


def _variance_around_background(plane: Uint16Image, high_pass_px: float) -> float:
    """Mean square of counts minus background: within the blocks, plus of the block means around it.

    Splitting it spares all arithmetic on full-size float images, and sums of integers are exact.
    """
    rows, columns = (side // _BLOCK_PX * _BLOCK_PX for side in plane.shape)
    cut = plane[:rows, :columns]
    sums = np.add.reduce([cut[i::_BLOCK_PX] for i in range(_BLOCK_PX)], dtype=np.uint32)
    sums = np.add.reduce([sums[:, i::_BLOCK_PX] for i in range(_BLOCK_PX)])
    squares = int(np.square(cut, dtype=np.uint32).sum(dtype=np.uint64))
    within = squares * _BLOCK_PX**2 - int(np.square(sums, dtype=np.uint64).sum())
    means = sums / float(_BLOCK_PX**2)
    means -= means.mean()  # keeps a constant plane exactly constant
    background = ndimage.gaussian_filter(means, high_pass_px / _BLOCK_PX, mode="reflect")
    return within / (_BLOCK_PX**2 * cut.size) + float(np.mean(np.square(means - background)))


def inverse_contrast(pixels: Uint16Image, high_pass_px: float) -> np.float32:
    """1 / `contrast_sd`, what a network is handed to normalise a stack with.

    Raises
    ------
    StackRefused
        The stack is constant or nearly so: its contrast is less than half a count.
    """
    sd = contrast_sd(pixels, high_pass_px)
    if sd < _LEAST_SD:
        raise StackRefused(
            "there is no contrast in the stack",
            wanted=f"counts that vary by at least {_LEAST_SD:g} (SD) around their local background",
            got=f"{sd:.2g}",
            fix="check that the shutter opens and light reaches the camera; raise exposure or bit depth",
        )
    return np.float32(1 / sd)


def resample(stack: ZStack, how: Resample) -> Uint16Image:
    """Bring a stack to a model's planes and pixel size.

    Planes are interpolated linearly in z. Rows and columns are interpolated with a triangle filter,
    which is widened where pixels are lost, so that nothing folds back (anti-aliasing). One plane is
    in work at a time.

    Parameters
    ----------
    stack : ZStack
    how : Resample
        The verdict of `acq_isl.manifest.check` on this stack.

    Returns
    -------
    (z, y, x) uint16
        ``len(how.z_um)`` planes; rows and columns times ``how.xy_scale``, rounded, at least 1.
    """
    rows, columns = (max(round(side * how.xy_scale), 1) for side in stack.info.shape)
    out = np.empty((len(how.z_um), rows, columns), np.uint16)
    places = np.interp(how.z_um, stack.info.z_um, np.arange(stack.info.planes))
    for target, place in zip(out, places, strict=True):
        below = math.floor(place)
        share = np.float32(place - below)
        plane = stack.pixels[below].astype(np.float32)
        if share > 0:
            plane += share * (stack.pixels[below + 1] - plane)
        target[:] = np.clip(np.rint(resize(plane, (rows, columns))), 0, _FULL_SCALE)
    return out


def map_back(values: Float32Image, shape: tuple[int, int]) -> Float32Image:
    """Bring predicted labels to the grid of the stack they were predicted from.

    Parameters
    ----------
    values : (label, h, w) float32
    shape : (int, int)
        Rows and columns of the stack.

    Returns
    -------
    (label, y, x) float32
        ``values`` itself if the grid is the same already.
    """
    if values.shape[1:] == shape:
        return values
    return np.stack([resize(plane, shape) for plane in values])


def resize(image: Float32Image, shape: tuple[int, int]) -> Float32Image:
    """Interpolate an image to another number of pixels over the same field of view.

    Linear where pixels are gained; where they are lost, a triangle twice as wide as a new pixel, so
    that structures too fine for it are averaged out instead of folding back.

    Parameters
    ----------
    image : (y, x) float32
    shape : (int, int)
        Rows and columns wanted.

    Returns
    -------
    (y, x) float32
    """
    if image.shape == shape:
        return image
    rows, columns = shape
    # Pillow widens its triangle by itself where it shrinks; eight times as fast as scikit-image here.
    resized = Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(resized)
