"""Whether there is a picture in a stack at all: what metadata cannot tell. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from acq_isl.errors import StackRefused
from acq_isl.stack import Float32Image, Uint16Image, ZStack

# The recorded field of condition B has .2 % of its pixels at the upper end and .5 % at the lower one.
_CLIPPED_SHARE = 0.02
_FEW_PX = 64
_BLOCK_PX = 64
_FAR_PX = 4
# White noise stays below .10 on fields up to 2048x2048; the recorded field is at .80 to .85.
_LEAST_STRUCTURE = 0.15


def check_content(stack: ZStack) -> None:
    """Refuse a stack that is dark, constant, clipped, repeated, or nothing but camera noise.

    Normalisation would blow each of these up to full contrast, and the network would predict cells
    from nothing. Costs a few milliseconds on 13 planes of 1024x1024.

    Parameters
    ----------
    stack : ZStack

    Raises
    ------
    StackRefused
    """
    low = stack.pixels.min(axis=(1, 2))
    high = stack.pixels.max(axis=(1, 2))
    flat = np.flatnonzero(low == high)
    if flat.size:
        raise StackRefused(
            f"stack {stack.info.key} has planes without any picture",
            wanted="counts that differ from pixel to pixel",
            got=f"{_planes(flat)} constant at {low[flat[0]]} counts",
            fix="check that the shutter opens, that light reaches the camera, and its exposure time",
        )
    _check_clipped(stack, int(low.min()), int(high.max()))
    _check_repeated(stack)
    _check_noise(stack)


def _check_clipped(stack: ZStack, low: int, high: int) -> None:
    for limit, end, fix in (
        (high, "brightest", "shorten the exposure or dim the lamp"),
        (low, "darkest", "lengthen the exposure or raise the camera's offset"),
    ):
        pixels = np.count_nonzero(stack.pixels == limit)
        share = pixels / stack.pixels.size
        # A few counts of contrast put many pixels on each of their few values without any clipping.
        if share > _CLIPPED_SHARE and pixels > _FEW_PX and high - low > 1 / _CLIPPED_SHARE:
            raise StackRefused(
                f"stack {stack.info.key} is clipped: many pixels are at its {end} value, {limit} counts",
                wanted=f"at most {_CLIPPED_SHARE:.0%} of the pixels",
                got=f"{share:.1%}",
                fix=fix,
            )


def _check_repeated(stack: ZStack) -> None:
    planes = stack.pixels
    # The first row rules out nearly every pair, so that whole planes are hardly ever compared.
    same = [
        z
        for z in range(1, len(planes))
        if np.array_equal(planes[z][0], planes[z - 1][0]) and np.array_equal(planes[z], planes[z - 1])
    ]
    if same:
        raise StackRefused(
            f"stack {stack.info.key} holds the same image more than once",
            wanted="a new image for every z",
            got=f"{_planes(np.asarray(same))} equal to the one before, pixel by pixel",
            fix="check that the focus drive moves between slices and that the camera delivers a new image",
        )


def _check_noise(stack: ZStack) -> None:
    middle = stack.pixels[len(stack.pixels) // 2]
    if min(middle.shape) < _BLOCK_PX + _FAR_PX:
        return  # too few pixels to tell
    structure = largest_structure(middle)
    if structure < _LEAST_STRUCTURE:
        raise StackRefused(
            f"stack {stack.info.key} shows camera noise only",
            wanted=f"neighbouring pixels that agree somewhere (structure of at least {_LEAST_STRUCTURE:g})",
            got=f"{structure:.2f}",
            fix="check light path and focus; if no cell is in the field, nothing is wrong",
        )


def largest_structure(plane: Uint16Image) -> float:
    """How much more alike pixels are to their neighbours than to pixels further off, at best.

    1 - D(1) / D(4) with D(k) the variance of the difference of pixels k columns apart (the structure
    function): 0 for white noise whatever its gain, offset and illumination, towards 1 for a smooth
    picture. The largest value of all 64x64 blocks, so that one cell in an empty field counts.

    Parameters
    ----------
    plane : (y, x) uint16
        At least 68x68.

    Returns
    -------
    float
    """
    counts = plane.astype(np.float32)
    near, far = (_difference_variance(counts, apart) for apart in (1, _FAR_PX))
    return float(np.max(1 - near / np.maximum(far, np.finfo(np.float32).tiny)))


def _difference_variance(counts: Float32Image, apart: int) -> Float32Image:
    """Variance of differences ``apart`` columns apart in every block, (rows / 64, columns / 64) float32."""
    difference = counts[:, _FAR_PX:] - counts[:, _FAR_PX - apart : -apart]
    return _block_means(np.square(difference)) - np.square(_block_means(difference))


def _block_means(values: Float32Image) -> Float32Image:
    rows, columns = (side // _BLOCK_PX for side in values.shape)
    cut = values[: rows * _BLOCK_PX, : columns * _BLOCK_PX]
    sums = cut.reshape(rows, _BLOCK_PX, -1).sum(axis=1).reshape(rows, columns, _BLOCK_PX).sum(axis=2)
    means: Float32Image = sums / np.float32(_BLOCK_PX**2)
    return means


def _planes(indices: NDArray[np.intp]) -> str:
    named = ", ".join(str(z + 1) for z in indices[:3]) + (", ..." if len(indices) > 3 else "")
    return f"plane{'s' * (len(indices) > 1)} {named}"
