"""How far a predicted image is from a measured one: numbers that can be added up over fields. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from acq_isl.processing.segmentation import Mask, ObjectScore, object_score, segment, smooth
from acq_isl.processing.statistics import (
    Amplitude,
    bright_end,
    pearson_of_sums,
    ratio_of_tops,
    slope_of_sums,
)
from acq_isl.stack import Float32Image

IOUS = (0.5, 0.3)
MIN_OBJECT_UM2 = 20.0
_RANKED_PX = 2**17  # ranks of more pixels tell nothing new and take seconds
_BINS = 512
_SSIM_WINDOW_PX = 7
LEVELS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75)
"""Where levels of the stain's brightness begin, by which the stated SD is judged."""


@dataclass(frozen=True, slots=True)
class _Sums:
    """Numbers that are added field by field."""

    def __add__(self, other: Self) -> Self:
        names = [each.name for each in fields(self)]
        return replace(self, **{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(frozen=True, slots=True)
class PixelScore(_Sums):
    """Agreement of two images pixel by pixel, as sums over one or more fields. Sums over ``n`` pixels of
    predicted (a) and true (b) intensity, of their squares and product, and of absolute differences;
    ``structure`` is structural similarity times pixels, ``tops`` are bright ends of both times pixels."""

    n: int
    a: float
    b: float
    aa: float
    bb: float
    ab: float
    absolute: float
    structure: float
    tops: NDArray[np.float64] = field(compare=False, default_factory=lambda: np.full(2, np.nan))

    @property
    def pearson(self) -> float:
        """Correlation over all pixels together; NaN where either image is constant."""
        return pearson_of_sums(self.n, self.a, self.b, self.aa, self.bb, self.ab)

    @property
    def amplitude(self) -> Amplitude:
        """How bright the prediction is; bright ends are means over fields."""
        tops = (self.tops / self.n).tolist() if self.n else (np.nan, np.nan)
        return Amplitude(slope_of_sums(self.n, self.a, self.b, self.aa, self.ab), ratio_of_tops(*tops))

    @property
    def ssim(self) -> float:
        """Structural similarity, mean over fields weighted with their pixels."""
        return self.structure / self.n

    @property
    def mae(self) -> float:
        """Mean absolute error, where 1 is the bright end of the truth."""
        return self.absolute / self.n


@dataclass(frozen=True, slots=True)
class StdScore(_Sums):
    """Whether the stated SD is the error's, as sums over one or more fields. Of ``n`` pixels, ``inside`` have
    an error within one stated SD; likewise in the foreground. ``ranks`` is the Spearman correlation of stated
    SD and absolute error, times pixels. ``levels`` are pixels, and those inside, by `LEVELS`, (2, level)."""

    n: int
    inside: int
    bright: int
    inside_bright: int
    ranks: float
    levels: NDArray[np.int64] = field(compare=False, default_factory=lambda: np.zeros((2, len(LEVELS)), int))

    @property
    def coverage(self) -> float:
        """Share of pixels within one stated SD; .68 if errors are normal and the SD is right."""
        return self.inside / self.n

    @property
    def coverage_foreground(self) -> float:
        """The same where the stain is bright; NaN where it is nowhere."""
        return self.inside_bright / self.bright if self.bright else float("nan")

    @property
    def rank_correlation(self) -> float:
        """Spearman correlation of stated SD and absolute error, mean over fields."""
        return self.ranks / self.n


def score_pixels(
    predicted: Float32Image, truth: Float32Image, valid: NDArray[np.bool_] | None = None
) -> PixelScore:
    """Compare two (y, x) images in which 0 is background and 1 the bright end of the truth.

    ``valid`` says where the truth can be trusted; everywhere if not given.

    Structural similarity after Wang et al., "Image Quality Assessment: From Error Visibility to Structural
    Similarity", IEEE Trans. Image Processing 13 (2004), with the fixed data range 1: a range taken from the
    images would make it depend on the brightest pixel. NaN for fields under 7 pixels.
    """
    from skimage.metrics import structural_similarity

    where = np.ones(truth.shape, bool) if valid is None else valid
    a, b = (np.asarray(image, np.float64)[where] for image in (predicted, truth))
    ssim = float("nan")
    if min(truth.shape) >= _SSIM_WINDOW_PX and a.size:
        ssim = float(structural_similarity(truth, predicted, data_range=1.0, full=True)[1][where].mean())
    sums = float(a.sum()), float(b.sum()), float(a @ a), float(b @ b), float(a @ b)
    tops = a.size * np.array([bright_end(a), bright_end(b)])
    return PixelScore(a.size, *sums, float(np.abs(a - b).sum()), ssim * a.size, tops)


def score_blocks(
    predicted: Float32Image, truth: Float32Image, valid: NDArray[np.bool_] | None, side_px: int
) -> tuple[PixelScore, ...]:
    """`score_pixels` of squares of this side, without structural similarity; the rest is left out."""
    rows, columns = (range(0, side - side_px + 1, side_px) for side in truth.shape)
    found = []
    for row in rows:
        for column in columns:
            at = slice(row, row + side_px), slice(column, column + side_px)
            where = np.ones((side_px, side_px), bool) if valid is None else valid[at]
            a, b = (np.asarray(image[at], np.float64)[where] for image in (predicted, truth))
            sums = float(a.sum()), float(b.sum()), float(a @ a), float(b @ b), float(a @ b)
            found.append(PixelScore(a.size, *sums, float(np.abs(a - b).sum()), float("nan")))
    return tuple(found)


def score_std(
    predicted: Float32Image, std: Float32Image, truth: Float32Image, bright: NDArray[np.bool_]
) -> StdScore:
    """Hold the stated SD of each pixel against its error; ``bright`` is the truth's foreground."""
    error = np.abs(predicted - truth)
    inside = error <= std
    step = max(error.size // _RANKED_PX, 1)
    ranks = stats.spearmanr(std.ravel()[::step], error.ravel()[::step]).statistic if np.ptp(std) else 0.0
    counts = int(inside.sum()), int(bright.sum()), int((inside & bright).sum())
    level = np.searchsorted(LEVELS, truth.ravel(), "right") - 1
    levels = np.stack([np.bincount(level[of], minlength=len(LEVELS)) for of in (..., inside.ravel())])
    return StdScore(error.size, *counts, float(ranks) * error.size, levels)


def find_objects(image: Float32Image, above: float, pixel_size_um: float) -> Mask:
    """Number the objects: smoothed by .5 um, above a threshold, split at waists, at least 20 um^2."""
    return segment(image, above, MIN_OBJECT_UM2, pixel_size_um)


def otsu_threshold(images: Sequence[Float32Image]) -> float:
    """Threshold that parts the pixels of all images together into two classes of least variance (Otsu 1979).
    0 if all pixels are equal."""
    from skimage.filters import threshold_otsu

    low = min(float(image.min()) for image in images)
    high = max(float(image.max()) for image in images)
    if not high > low:
        return 0.0
    edges = np.linspace(low, high, _BINS + 1)
    counts = sum(np.histogram(image, edges)[0] for image in images)
    return float(threshold_otsu(hist=(counts, (edges[1:] + edges[:-1]) / 2)))


def foreground_threshold(images: Sequence[Float32Image], pixel_size_um: float) -> float:
    """Otsu's threshold of images smoothed as objects are found in them."""
    return otsu_threshold([smooth(image, pixel_size_um) for image in images])


def score_objects(found: Mask, true: Mask) -> dict[float, ObjectScore]:
    """Found against true objects at each IoU of `IOUS`."""
    return {iou: object_score(found, true, iou) for iou in IOUS}


def add_objects(scores: Sequence[ObjectScore]) -> ObjectScore:
    """Objects of several fields together."""
    found, true, matched = (sum(getattr(s, name) for s in scores) for name in ("found", "true", "matched"))
    return ObjectScore(2 * matched / (found + true) if found + true else float("nan"), found, true, matched)


def auroc(normal: NDArray[np.floating], strange: NDArray[np.floating]) -> float:
    """Probability that a strange value lies above a normal one, ties half: .5 tells nothing apart. Area under
    the receiver operating characteristic, by ranks (Mann and Whitney 1947). NaN without values."""
    if not normal.size or not strange.size:
        return float("nan")
    return float(stats.mannwhitneyu(strange, normal).statistic / (normal.size * strange.size))
