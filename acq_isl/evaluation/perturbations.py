"""Stacks as no microscope should deliver them: the nine perturbations under which a model is tested. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from acq_isl.processing.normalize import resize
from acq_isl.stack import Float32Image, Uint16Image

_SHIFT_PLANES = 6
_BLUR_PX = 2.0
_FULL_SCALE = 65535

Perturbation = Callable[[Uint16Image], Uint16Image]


def zoom(images: np.ndarray, factor: float) -> Float32Image:
    """(n, y, x) images as another magnification shows them; larger than before, the middle is kept."""
    rows, columns = (round(side * factor) for side in images.shape[1:])
    grown = np.stack([resize(np.asarray(image, np.float32), (rows, columns)) for image in images])
    if factor <= 1:
        return grown
    top, left = (rows - images.shape[1]) // 2, (columns - images.shape[2]) // 2
    return grown[:, top : top + images.shape[1], left : left + images.shape[2]]


def _choose_planes(number: Callable[[np.ndarray, int], np.ndarray]) -> Perturbation:
    """Planes by a function of their own number and the middle's; beyond the ends the last one is repeated."""

    def perturb(stack: Uint16Image) -> Uint16Image:
        chosen = number(np.arange(len(stack)), len(stack) // 2)
        planes: Uint16Image = stack[np.clip(chosen, 0, len(stack) - 1)]
        return planes

    return perturb


def _magnify(factor: float) -> Perturbation:
    return lambda stack: _to_counts(zoom(stack, factor))


def _invert(stack: Uint16Image) -> Uint16Image:
    return (int(stack.max()) + int(stack.min()) - stack.astype(np.int32)).astype(np.uint16)


def _blur(stack: Uint16Image) -> Uint16Image:
    return _to_counts(ndimage.gaussian_filter(stack.astype(np.float32), (0, _BLUR_PX, _BLUR_PX)))


def _to_counts(values: Float32Image) -> Uint16Image:
    return np.clip(np.rint(values), 0, _FULL_SCALE).astype(np.uint16)


ZOOMS = {"magnification x.5": 0.5, "magnification x2": 2.0}
"""Perturbations that change what part of the field is seen, so that the truth must follow."""
AS_TRAINED = "as trained"
PERTURBATIONS: dict[str, Perturbation] = {
    AS_TRAINED: lambda stack: stack,
    "z reversed": lambda stack: stack[::-1],
    "z shifted 6 planes": _choose_planes(lambda z, middle: z + _SHIFT_PLANES),
    "one plane repeated": _choose_planes(np.full_like),
    "z step x2": _choose_planes(lambda z, middle: middle + 2 * (z - middle)),
    **{name: _magnify(factor) for name, factor in ZOOMS.items()},
    "contrast inverted": _invert,
    "blur 2 px": _blur,
}
"""What is done to a (z, y, x) uint16 stack, by name, while its metadata stay as they are."""
