"""What is changed at random in patches that are trained on, and in no others."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from scipy import ndimage
from torch.nn import functional as F

from acq_isl.base import StrictModel

Singles = NDArray[np.float32]


def _rising(value: tuple[float, float]) -> tuple[float, float]:
    if value[1] < value[0]:
        raise ValueError("the second number must not be below the first")
    return value


Range = Annotated[tuple[float, float], AfterValidator(_rising)]
_OFF = (1.0, 1.0)


class Augmentation(StrictModel):
    """How much; pairs are (low, high) of a uniform distribution. The defaults are for data of one microscope.
    Wider ranges, for data of several, are in ``examples/train.yaml``; those of the demo model in its own
    file, ``acq_isl/models/demo.yaml``."""

    flips: bool = True
    """Mirror and turn by quarters."""
    gamma: Range = (0.85, 1.1)
    """Power of the size of the contrast. Strong structures are simulated less faithfully than weak ones, and
    their contrast relative to the rest is what differs most between microscopes."""
    gain: Range = (0.8, 1.25)
    offset: Range = (0.0, 0.0)
    """In units of the stack's contrast; what a high-pass leaves of uneven light."""
    noise: Range = (0.0, 0.15)
    """SD, in the same unit."""
    blur: float = Field(default=0.3, ge=0, le=1)
    """Share of patches."""
    blur_px: Range = (0.25, 0.7)
    """Sigma."""
    invert: float = Field(default=0.0, ge=0, le=1)
    """Share of patches with inverted contrast. More than 0 makes a model for both polarities."""
    xy_scale: Range = _OFF
    """Magnification, of stack and labels."""
    z_shift: Range = (0.0, 0.0)
    """In planes; the last plane is repeated where there is none."""
    z_scale: Range = _OFF
    """Distance of planes."""
    plane_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Chance of each plane to be blank; one is always left."""
    fewer_planes: float = Field(default=0.0, ge=0, le=1)
    """Share of patches as if some of their planes had not been taken, for models that take any planes."""
    optics: float = Field(default=0.0, ge=0, le=1)
    """Share of patches as other optics might show them: what is finer than some pixels is strengthened or
    weakened by up to .6, and up to half of the mean over all planes gets into each."""
    spoilt: float = Field(default=0.0, ge=0, le=1)
    """Share of patches that are blurred by 1.5 to 6 px, made of one noisy plane, enlarged by 1.4 to 2.4, or
    noisy: what no microscope should give, so that the doubt learns what it looks like."""

    @property
    def reach(self) -> float:
        """How many pixels a side of a patch must be cut from for each of its own."""
        return 1 / min(self.xy_scale[0], 1.0) if self.xy_scale != _OFF else 1.0


def augment(
    x: Singles, y: Singles, patch_px: int, settings: Augmentation, rng: np.random.Generator
) -> tuple[Singles, Singles]:
    """Change a normalised patch (z, R, C) and truth and validity (c, R, C), which follow changes of place.
    Both come at least `Augmentation.reach` times as large as what is given back, (z or c, patch_px, patch_px)
    float32. What is switched off draws nothing from ``rng``."""
    if settings.xy_scale != _OFF:
        x, y = _scaled(x, y, patch_px, rng.uniform(*settings.xy_scale))
    if settings.flips:
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        if mirrored:
            x, y = x[:, :, ::-1], y[:, :, ::-1]
        x, y = np.rot90(x, turns, (1, 2)), np.rot90(y, turns, (1, 2))
    if settings.z_shift != (0.0, 0.0) or settings.z_scale != _OFF:
        x = _through_focus(x, rng.uniform(*settings.z_shift), rng.uniform(*settings.z_scale))
    if settings.optics > 0 and rng.random() < settings.optics:
        x = _other_optics(x, rng)
    x = _light(x, settings, rng)
    if settings.fewer_planes > 0 and rng.random() < settings.fewer_planes:
        x = _fewer_planes(x, rng)
    if settings.spoilt > 0 and rng.random() < settings.spoilt:
        return _SPOILERS[int(rng.integers(len(_SPOILERS)))](x, y, rng)
    return x, y


def _light(x: Singles, settings: Augmentation, rng: np.random.Generator) -> Singles:
    size = np.abs(x) + np.float32(1e-3)
    x = np.sign(x) * size ** np.float32(rng.uniform(*settings.gamma))
    gain = np.float32(rng.uniform(*settings.gain))
    if settings.offset != (0.0, 0.0):
        x = x + np.float32(rng.uniform(*settings.offset) / gain)
    if settings.invert > 0 and rng.random() < settings.invert:
        x = -x
    if rng.random() < settings.blur:
        sigma = rng.uniform(*settings.blur_px)
        x = ndimage.gaussian_filter(x, (0, sigma, sigma), truncate=2.0)
    # Before the gain: what is said to be of more contrast than it has brings its noise along.
    x = (x + _noise(x.shape, rng) * np.float32(rng.uniform(*settings.noise))) * gain
    if settings.plane_dropout > 0:
        blank = rng.random(len(x)) < settings.plane_dropout
        blank[int(rng.integers(len(x)))] = False
        x[blank] = 0
    return x.astype(np.float32, copy=False)


def _fewer_planes(x: Singles, rng: np.random.Generator) -> Singles:
    """Some planes, spread over all as `acq_isl.compatibility.check` has it, with the contrast there was."""
    count = int(rng.integers(1, max(len(x), 2)))
    taken = np.sort(rng.choice(len(x), count, replace=False))
    places = np.interp(np.linspace(taken[0], taken[-1], len(x)), taken, np.arange(count))
    spread = _between(x[taken], places, 0)
    changed: Singles = spread * (x.std() / max(spread.std(), np.float32(1e-3)))
    return changed


def _other_optics(x: Singles, rng: np.random.Generator) -> Singles:
    """Another transfer function; the contrast stays."""
    contrast, sigma = x.std(), rng.uniform(1.0, 5.0)
    fine = x - ndimage.gaussian_filter(x, (0, sigma, sigma), truncate=2.0)
    x = x + np.float32(rng.uniform(-0.6, 0.6)) * fine
    x = x + np.float32(rng.uniform(0.0, 0.5)) * (x.mean(axis=0) - x)
    changed: Singles = x * (contrast / max(x.std(), np.float32(1e-3)))
    return changed


def _blurred(x: Singles, y: Singles, rng: np.random.Generator) -> tuple[Singles, Singles]:
    sigma = rng.uniform(1.5, 6.0)
    return ndimage.gaussian_filter(x, (0, sigma, sigma), truncate=2.0), y


def _repeated(x: Singles, y: Singles, rng: np.random.Generator) -> tuple[Singles, Singles]:
    one = np.repeat(x[None, int(rng.integers(len(x)))], len(x), axis=0)
    return one + _noise(x.shape, rng) * np.float32(rng.uniform(0.0, 0.3)), y


def _enlarged(x: Singles, y: Singles, rng: np.random.Generator) -> tuple[Singles, Singles]:
    return _scaled(x, y, x.shape[-1], rng.uniform(1.4, 2.4))


def _noisy(x: Singles, y: Singles, rng: np.random.Generator) -> tuple[Singles, Singles]:
    return x + _noise(x.shape, rng) * np.float32(rng.uniform(0.4, 1.5)), y


_SPOILERS = (_blurred, _repeated, _enlarged, _noisy)


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> Singles:
    # A third of the time that numpy takes, which was a tenth of a training step.
    source = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise: Singles = torch.randn(shape, generator=source).numpy()
    return noise


def _scaled(x: Singles, y: Singles, patch_px: int, factor: float) -> tuple[Singles, Singles]:
    """Cut the middle ``patch_px / factor``, whole pixels, and bring it to the size of a patch."""
    side = max(round(patch_px / factor), 1)
    top, left = ((have - side) // 2 for have in x.shape[1:])
    cut = np.concatenate([x, y])[None, :, top : top + side, left : left + side]
    # Where pixels are lost, what is too fine for the new ones must not fold back.
    scaled: Singles = F.interpolate(
        torch.from_numpy(cut), size=(patch_px, patch_px), mode="bilinear", antialias=True
    )[0].numpy()
    return scaled[: len(x)], scaled[len(x) :]


def _through_focus(x: Singles, shift: float, scale: float) -> Singles:
    middle = (len(x) - 1) / 2
    return _between(x, middle + shift + scale * (np.arange(len(x)) - middle), 0)


def _between(image: Singles, places: NDArray[np.floating], axis: int) -> Singles:
    """Linear interpolation along an axis; the ends go on."""
    last = image.shape[axis] - 1
    places = np.clip(places, 0, last)
    below = np.minimum(places.astype(np.intp), max(last - 1, 0))
    shape = [1] * image.ndim
    shape[axis] = -1
    share = (places - below).astype(np.float32).reshape(shape)
    low, high = np.take(image, below, axis), np.take(image, np.minimum(below + 1, last), axis)
    between: Singles = low + share * (high - low)
    return between
