"""Normalised fields in memory, and random patches from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from acq_isl.normalize import contrast_sd
from acq_isl.training.network import Normalise
from acq_isl.training.simulate import Pair

Singles = NDArray[np.float32]

_FOREGROUND = 77  # of 255


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A field ready for training.

    Parameters
    ----------
    x : (z, y, x) float16
        Normalised stack.
    y : (label, y, x) uint8
        Truth times 255.
    foreground : (n, 2) int32
        Rows and columns of pixels bright in some label.
    """

    x: NDArray[np.float16]
    y: NDArray[np.uint8]
    foreground: NDArray[np.int32]


def prepare(pairs: Iterable[Pair], normalise: Normalise, high_pass_px: float) -> list[Field]:
    """Normalise whole fields by the module that the exported graph runs too."""
    fields = []
    for pair in pairs:
        inv_sd = torch.tensor([1 / max(contrast_sd(pair.stack, high_pass_px), 1e-6)], dtype=torch.float32)
        with torch.no_grad():
            x = normalise(torch.from_numpy(pair.stack.astype(np.float32))[None], inv_sd)[0]
        bright = np.argwhere(pair.labels[:2].max(axis=0) > _FOREGROUND).astype(np.int32)
        fields.append(Field(x.numpy().astype(np.float16), pair.labels, bright))
    return fields


def batch(
    fields: list[Field], rng: np.random.Generator, size: int, patch_px: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random patches, half of them about foreground, turned, mirrored and disturbed.

    Returns
    -------
    x : (N, Z, P, P) float32
    y : (N, L, P, P) float32
        0..1.
    """
    xs, ys = [], []
    for at in range(size):
        field = fields[int(rng.integers(len(fields)))]
        row, column = _corner(field, rng, patch_px, at % 2 == 0)
        cut = (slice(None), slice(row, row + patch_px), slice(column, column + patch_px))
        x, y = field.x[cut].astype(np.float32), field.y[cut].astype(np.float32) / 255
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        if mirrored:
            x, y = x[:, :, ::-1], y[:, :, ::-1]
        x, y = np.rot90(x, turns, (1, 2)), np.rot90(y, turns, (1, 2))
        xs.append(disturbed(x, rng))
        ys.append(y)
    return torch.from_numpy(np.stack(xs)), torch.from_numpy(np.stack(ys))


def disturbed(x: Singles, rng: np.random.Generator) -> Singles:
    """The same normalised (z, y, x) patch with another tone curve, sharpness, gain and noise.

    Strong structures are simulated less faithfully than weak ones, and their contrast relative to the
    rest is what differs most between microscopes: hence the power law on the size of the contrast.
    """
    size = np.abs(x) + np.float32(1e-3)
    x = np.sign(x) * size ** np.float32(rng.uniform(0.85, 1.1)) * np.float32(rng.uniform(0.8, 1.25))
    if rng.random() < 0.3:
        sigma = rng.uniform(0.25, 0.7)
        x = ndimage.gaussian_filter(x, (0, sigma, sigma), truncate=2.0)
    noisy: Singles = x + rng.standard_normal(x.shape, np.float32) * np.float32(rng.uniform(0, 0.15))
    return noisy


def _corner(field: Field, rng: np.random.Generator, patch_px: int, on_foreground: bool) -> tuple[int, int]:
    room = np.array(field.y.shape[1:]) - patch_px
    if on_foreground and len(field.foreground):
        middle = field.foreground[int(rng.integers(len(field.foreground)))]
        corner = np.clip(middle - patch_px // 2 + rng.integers(-patch_px // 4, patch_px // 4, 2), 0, room)
    else:
        corner = rng.integers(0, room + 1)
    return int(corner[0]), int(corner[1])
