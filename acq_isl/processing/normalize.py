"""Intensity, pixel size and z of a stack, brought to what a model was trained on, and back. Pure."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft

from acq_isl.compatibility import Resample, Sort
from acq_isl.errors import StackRefused
from acq_isl.stack import Float32Image, Uint16Image, ZStack

_BLOCK_PX = 4
_PIXELS_IN_CACHE = 1 << 17  # a megabyte of doubles
_TRUNCATE_SD = 4.0
_PLANES_SAMPLED = 4
_FULL_SCALE = 65535
_LEAST_SD = 0.5


def contrast_sd(pixels: Uint16Image, high_pass_px: float) -> float:
    """Contrast of a stack: SD of the counts around their local background.

    The same number normalises stacks in training and in use, so gain, offset and exposure cancel. It
    is one number per stack, not per tile, so that tiling cannot change a prediction. Estimated on four
    planes spread over the stack; the background is a Gaussian of block means, which keeps it cheap.

    ``pixels`` are (z, y, x) uint16, ``high_pass_px`` is the sigma of the Gaussian background; 0 removes the
    mean of the plane only.
    """
    return _measure(pixels, high_pass_px).sd


class ContrastMeter:
    """`contrast_sd` of a stack of so many planes of a shape (rows, columns), which come in any order."""

    def __init__(self, planes: int, shape: tuple[int, int], high_pass_px: float) -> None:
        self._picks = frozenset(np.linspace(0, planes - 1, _PLANES_SAMPLED).round().astype(int).tolist())
        self._variances: dict[int, float] = {}
        self._lost: Float32Image | None = None
        if min(shape) >= _BLOCK_PX and high_pass_px > 0:
            responses = (_gaussian_response(high_pass_px / _BLOCK_PX, side // _BLOCK_PX) for side in shape)
            self._lost = (1 - np.outer(*responses)).astype(np.float32)

    def add(self, z: int, plane: Uint16Image) -> None:
        """Take the plane number ``z``; most planes are not looked at."""
        if z in self._picks:
            if self._lost is None:
                self._variances[z] = float(plane.astype(np.float64).var())
            else:
                self._variances[z] = _variance_around_background(plane, self._lost)

    @property
    def sd(self) -> float:
        """Contrast in counts; ValueError while a plane that is looked at is missing."""
        missing = self._picks - self._variances.keys()
        if missing:
            raise ValueError(f"planes {sorted(missing)} have not been seen")
        return math.sqrt(sum(self._variances[z] for z in sorted(self._picks)) / len(self._picks))

    @property
    def inverse(self) -> np.float32:
        """1 / `sd`, to normalise a stack with; StackRefused if its contrast is less than half a count."""
        sd = self.sd
        if sd < _LEAST_SD:
            raise StackRefused(
                "there is no contrast in the stack",
                wanted=f"counts that vary by at least {_LEAST_SD:g} (SD) around their local background",
                got=f"{sd:.2g}",
                fix="check that the shutter opens and light reaches the camera; raise exposure or bit depth",
            )
        return np.float32(1 / sd)


def _variance_around_background(plane: Uint16Image, lost: Float32Image) -> float:
    """Mean square of counts minus background: within the blocks, plus of the block means around it.

    Splitting it spares all arithmetic on full-size float images, and sums of integers are exact. A cosine
    transform turns the Gaussian, which reflects at the border, into factors, and keeps the mean square;
    ``lost`` is what the Gaussian takes off each cosine.
    """
    rows, columns = (side * _BLOCK_PX for side in lost.shape)
    sums, squares = _sums(plane[:rows, :columns])
    within = squares * _BLOCK_PX**2 - int(np.vecdot(sums, sums).astype(np.uint64).sum())
    means = sums / float(_BLOCK_PX**2)
    means -= means.mean()  # keeps a constant plane exactly constant
    waves = fft.dctn(means.astype(np.float32), norm="ortho", overwrite_x=True)
    waves *= lost
    around = np.vecdot(waves, waves).sum(dtype=np.float64) / waves.size
    return float(within / (_BLOCK_PX**2 * rows * columns) + around)


def _sums(plane: Uint16Image) -> tuple[NDArray[np.float64], int]:
    """Sum of each block, and the sum of all squares; sides are multiples of the block."""
    height, width = plane.shape
    sums = np.empty((height // _BLOCK_PX, width // _BLOCK_PX))
    squares = 0
    step = max(_PIXELS_IN_CACHE // width // _BLOCK_PX, 1) * _BLOCK_PX
    for first in range(0, height, step):
        part = plane[first : first + step].astype(np.float64)  # in which these integers are exact
        # Row by row: longer products are shared among threads by BLAS, which spin on the camera's cores.
        squares += int(np.vecdot(part, part).sum())
        lines = np.add.reduce(part.reshape(-1, _BLOCK_PX, width), axis=1)
        blocks = lines.reshape(len(lines), -1, _BLOCK_PX)
        out = sums[first // _BLOCK_PX : first // _BLOCK_PX + len(lines)]
        np.add(blocks[..., 0] + blocks[..., 1], blocks[..., 2] + blocks[..., 3], out=out)
    return sums, squares


def _gaussian_response(sigma: float, size: int) -> NDArray[np.float64]:
    """What a Gaussian, as long as scipy's, leaves of each cosine of a line that is reflected at its ends."""
    radius = int(_TRUNCATE_SD * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * np.square(offsets / sigma))
    # A line and its reflection repeat after twice its length.
    around = np.bincount(offsets % (2 * size), weights / weights.sum(), 2 * size)
    return np.asarray(fft.rfft(around).real[:size])


def inverse_contrast(pixels: Uint16Image, high_pass_px: float) -> np.float32:
    """1 / `contrast_sd`; see `ContrastMeter.inverse`."""
    return _measure(pixels, high_pass_px).inverse


def _measure(pixels: Uint16Image, high_pass_px: float) -> ContrastMeter:
    meter = ContrastMeter(len(pixels), (pixels.shape[1], pixels.shape[2]), high_pass_px)
    for z, plane in enumerate(pixels):
        meter.add(z, plane)
    return meter


def resample(stack: ZStack, how: Sort | Resample) -> Uint16Image:
    """Bring a stack to a model's planes and pixel size.

    Planes are put in order of z and interpolated linearly in z, rows and columns as in `resize`, one plane
    at a time. ``how`` is what `acq_isl.compatibility.check` says of the stack.

    Returns
    -------
    (z, y, x) uint16
        ``len(how.z_um)`` planes; rows and columns times ``how.xy_scale``, rounded, at least 1. All planes
        of a stack that is only sorted, pixels as they are.
    """
    if isinstance(how, Sort):
        return stack.pixels[list(how.order)]
    rows, columns = (max(round(side * how.xy_scale), 1) for side in stack.info.shape)
    out = np.empty((len(how.z_um), rows, columns), np.uint16)
    order = np.argsort(stack.info.z_um)
    places = np.interp(how.z_um, np.asarray(stack.info.z_um)[order], np.arange(stack.info.planes))
    for target, place in zip(out, places, strict=True):
        below = math.floor(place)
        share = np.float32(place - below)
        plane = stack.pixels[order[below]].astype(np.float32)
        if share > 0:
            plane += share * (stack.pixels[order[below + 1]] - plane)
        target[:] = np.clip(np.rint(resize(plane, (rows, columns))), 0, _FULL_SCALE)
    return out


def all_finite(values: Float32Image) -> bool:
    """Whether there is no NaN and no infinity in (..., y, x); half a millisecond for 3 x 1024 x 1024.

    A sum of squares carries every one of them, and needs no array of booleans.
    """
    with np.errstate(over="ignore"):
        # Row by row: longer products are shared among threads by BLAS, which spin on the camera's cores.
        fine = np.isfinite(np.vecdot(values, values)).all()
    return bool(fine or np.isfinite(values).all())  # squares of numbers may overflow


def map_back(values: Float32Image, shape: tuple[int, int]) -> Float32Image:
    """Bring predicted labels, (label, h, w), to the grid of their stack, (label, y, x)."""
    if values.shape[1:] == shape:
        return values
    return np.stack([resize(plane, shape) for plane in values])


def resize(image: Float32Image, shape: tuple[int, int]) -> Float32Image:
    """Interpolate an image, (y, x) float32, to other rows and columns over the same field of view.

    Linear where pixels are gained; where they are lost, a triangle twice as wide as a new pixel, so
    that structures too fine for it are averaged out instead of folding back.
    """
    if image.shape == shape:
        return image
    # Pillow widens its triangle by itself where it shrinks; eight times as fast as scikit-image here.
    return np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BILINEAR))
