"""Image quality of a stack, which metadata cannot tell: dark, clipped, repeated, nothing but noise. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.pipeline import ParallelMap
from acq_isl.errors import EngineError, StackRefused
from acq_isl.processing.focus import contrast_at_scale, focus_offset
from acq_isl.processing.normalize import ContrastMeter
from acq_isl.stack import Float32Image, StackInfo, Uint16Image, ZStack

# The recorded field of condition B has .2 % of its pixels at the upper end and .5 % at the lower one.
_CLIPPED_SHARE = 0.02
_FEW_PX = 64
_BLOCK_PX = 64
_ROWS_AT_A_TIME = 128
_FAR_PX = 4
# White noise stays below .10 on fields up to 2048x2048; the recorded field is at .80 to .85.
_LEAST_STRUCTURE = 0.15
# A stack this deep changes with focus; looked at in the middle, in blocks of a few pixels.
_DEPTH_UM, _DEPTH_PX, _SOFT_PX, _MOST_ALIKE = 3.0, 512, 4, 0.99


class StackStatistics:
    """What has to be known of a stack before it is predicted, measured plane by plane, in any order.

    An engine process may add each slice as it arrives, so that little is left to do after the last one.
    ``high_pass_px`` is the model's, in pixels of the stack.
    """

    def __init__(self, info: StackInfo, high_pass_px: float) -> None:
        self._info = info
        self._contrast = ContrastMeter(info.planes, info.shape, high_pass_px)
        self._ranges: dict[int, _Range] = {}
        self._contrasts: dict[int, float] = {}

    def add(self, z: int, plane: Uint16Image) -> None:
        """Measure plane number ``z``, (y, x) uint16, once its pixels will not change any more."""
        if z not in self._ranges:
            self._ranges[z] = _Range.of(plane)
            self._contrast.add(z, plane)
            self._contrasts[z] = contrast_at_scale(plane, self._info.pixel_size_um)

    def complete(self, stack: ZStack, parallel_map: ParallelMap) -> None:
        """Measure the planes that are missing; EngineError if this is of another stack."""
        if stack.info != self._info:
            raise EngineError(
                f"what was measured for stack {self._info.key} was handed over with {stack.info.key}",
                fix="report this to the maker of the engine process",
            )
        missing = [z for z in range(len(stack.pixels)) if z not in self._ranges]
        parallel_map(lambda z: self.add(z, stack.pixels[z]), missing)

    @property
    def ranges(self) -> list[_Range]:
        """Of every plane in the order of z, once `complete`."""
        return [self._ranges[z] for z in range(self._info.planes)]

    @property
    def focus_offset_um(self) -> float | None:
        """As `acq_isl.processing.focus.focus_offset`, once `complete`."""
        return focus_offset(self._info.z_um, [self._contrasts[z] for z in range(self._info.planes)])

    @property
    def inverse_contrast(self) -> np.float32:
        """As `acq_isl.processing.normalize.ContrastMeter.inverse`, once `complete`."""
        return self._contrast.inverse


def check_image_quality(stack: ZStack, statistics: StackStatistics | None = None) -> None:
    """StackRefused if a stack is dark, constant, clipped, repeated, or nothing but camera noise.

    Normalisation would blow each of these up to full contrast, and cells be predicted from nothing.
    """
    ranges = [_Range.of(plane) for plane in stack.pixels] if statistics is None else statistics.ranges
    flat = np.array([z for z, span in enumerate(ranges) if span.low == span.high], np.intp)
    if flat.size:
        raise StackRefused(
            f"stack {stack.info.key} has planes without any picture",
            wanted="counts that differ from pixel to pixel",
            got=f"{_planes(flat)} constant at {ranges[flat[0]].low} counts",
            fix="check that the shutter opens, that light reaches the camera, and its exposure time",
        )
    _check_clipped(stack, ranges)
    _check_repeated(stack)
    _check_noise(stack)
    _check_depth(stack)


@dataclass(frozen=True, slots=True)
class _Range:
    """Smallest and largest count of a plane, and how many pixels have them."""

    low: int
    high: int
    low_px: int
    high_px: int

    @classmethod
    def of(cls, plane: Uint16Image) -> _Range:
        parts = [plane[first : first + _ROWS_AT_A_TIME] for first in range(0, len(plane), _ROWS_AT_A_TIME)]
        lows, highs = [int(part.min()) for part in parts], [int(part.max()) for part in parts]
        low, high = min(lows), max(highs)
        # Only parts whose own extreme is the plane's can hold it: few, unless the plane is clipped.
        at_low = (np.count_nonzero(p == low) for p, own in zip(parts, lows, strict=True) if own == low)
        at_high = (np.count_nonzero(p == high) for p, own in zip(parts, highs, strict=True) if own == high)
        return cls(low, high, int(sum(at_low)), int(sum(at_high)))


def _check_clipped(stack: ZStack, ranges: list[_Range]) -> None:
    low, high = min(span.low for span in ranges), max(span.high for span in ranges)
    at_high = sum(span.high_px for span in ranges if span.high == high)
    at_low = sum(span.low_px for span in ranges if span.low == low)
    for limit, pixels, end, fix in (
        (high, at_high, "brightest", "shorten the exposure or dim the lamp"),
        (low, at_low, "darkest", "lengthen the exposure or raise the camera's offset"),
    ):
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
    middle = stack.pixels[stack.info.middle]
    if min(middle.shape) < _BLOCK_PX + _FAR_PX:
        return  # too few pixels to tell
    structure = -math.inf
    for band in _bands(middle):
        structure = max(structure, largest_structure(band))
        if structure >= _LEAST_STRUCTURE:
            break  # one place is enough, and most fields of cells have one in their middle
    else:
        raise StackRefused(
            f"stack {stack.info.key} shows camera noise only",
            wanted=f"neighbouring pixels that agree somewhere (structure of at least {_LEAST_STRUCTURE:g})",
            got=f"{structure:.2f}",
            fix="check light path and focus; if no cell is in the field, nothing is wrong",
        )


def _check_depth(stack: ZStack) -> None:
    """Planes that differ by noise alone: the focus did not move, whatever z says.

    Contrast through focus changes: likeness of the first, middle and last plane is .0 to .8 in stacks of
    cells, .999 of one plane repeated with a tenth of its contrast in noise.
    """
    z_um = stack.info.z_um
    order = np.argsort(z_um)
    depth_um = z_um[order[-1]] - z_um[order[0]]
    if stack.info.planes < 3 or depth_um < _DEPTH_UM or min(stack.info.shape) < _BLOCK_PX:
        return
    first, middle, last = (_gradients(stack.pixels[z]) for z in (order[0], stack.info.middle, order[-1]))
    alike = min(_likeness(first, middle), _likeness(middle, last))
    if alike > _MOST_ALIKE:
        raise StackRefused(
            f"stack {stack.info.key} shows the same plane at every z, but for noise",
            wanted=f"likeness of first, middle and last plane of at most {_MOST_ALIKE:g}",
            got=f"{alike:.3f} over {depth_um:.3g} um",
            fix="check that the focus drive moves; if no cell is in the field, nothing is wrong",
        )


def _gradients(plane: Uint16Image) -> Float32Image:
    """Differences of block means in the plane's middle, in which noise and shading hardly show."""
    rows, columns = (slice(max((side - _DEPTH_PX) // 2, 0), (side + _DEPTH_PX) // 2) for side in plane.shape)
    part = plane[rows, columns].astype(np.float32)
    height, width = (side // _SOFT_PX for side in part.shape)
    cut = part[: height * _SOFT_PX, : width * _SOFT_PX]
    means = cut.reshape(height, _SOFT_PX, width, _SOFT_PX).mean(axis=(1, 3))
    differences: Float32Image = means[:, _SOFT_PX:] - means[:, :-_SOFT_PX]
    return differences


def _likeness(a: Float32Image, b: Float32Image) -> float:
    """Correlation about 0; 0 where there is nothing to compare."""
    norm = math.sqrt(float(np.vdot(a, a)) * float(np.vdot(b, b)))
    return float(np.vdot(a, b)) / norm if norm else 0.0


def _bands(plane: Uint16Image) -> list[Uint16Image]:
    """Rows of blocks, those in the middle first."""
    count = plane.shape[0] // _BLOCK_PX
    order = sorted(range(count), key=lambda band: abs(band - count // 2))
    return [plane[band * _BLOCK_PX : (band + 1) * _BLOCK_PX] for band in order]


def largest_structure(plane: Uint16Image) -> float:
    """How much more alike pixels are to their neighbours than to pixels further off, in the best 64x64 block.

    1 - D(1) / D(4), D(k) the variance of differences k columns apart (the structure function): 0 for white
    noise whatever its gain, offset and illumination, towards 1 for a smooth picture; (y, x) uint16, 64x68 or
    more.
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
