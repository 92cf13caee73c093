"""Stacks as no microscope should deliver them: the nine conditions under which a model is tried. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from acq_isl.processing.normalize import resize
from acq_isl.stack import Float32Image, Uint16Image

_SHIFT_PLANES = 6
_BLUR_PX = 2.0
_FULL_SCALE = 65535

Change = Callable[[Uint16Image], Uint16Image]


def _as_trained(stack: Uint16Image) -> Uint16Image:
    return stack


def _reversed(stack: Uint16Image) -> Uint16Image:
    return stack[::-1]


def _planes(stack: Uint16Image, wanted: np.ndarray) -> Uint16Image:
    """Planes by number; beyond the ends the last one is repeated."""
    taken: Uint16Image = stack[np.clip(wanted, 0, len(stack) - 1)]
    return taken


def _shifted(stack: Uint16Image) -> Uint16Image:
    return _planes(stack, np.arange(len(stack)) + _SHIFT_PLANES)


def _repeated(stack: Uint16Image) -> Uint16Image:
    return _planes(stack, np.full(len(stack), len(stack) // 2))


def _coarse(stack: Uint16Image) -> Uint16Image:
    middle = len(stack) // 2
    return _planes(stack, middle + 2 * (np.arange(len(stack)) - middle))


def _inverted(stack: Uint16Image) -> Uint16Image:
    return (int(stack.max()) + int(stack.min()) - stack.astype(np.int32)).astype(np.uint16)


def _blurred(stack: Uint16Image) -> Uint16Image:
    return _counts(np.stack([ndimage.gaussian_filter(plane.astype(np.float32), _BLUR_PX) for plane in stack]))


def _counts(values: Float32Image) -> Uint16Image:
    return np.clip(np.rint(values), 0, _FULL_SCALE).astype(np.uint16)


def zoomed(images: np.ndarray, factor: float) -> Float32Image:
    """(n, y, x) images as another magnification shows them; larger than before, the middle is kept."""
    rows, columns = (round(side * factor) for side in images.shape[1:])
    grown = np.stack([resize(np.asarray(image, np.float32), (rows, columns)) for image in images])
    if factor <= 1:
        return grown
    top, left = (rows - images.shape[1]) // 2, (columns - images.shape[2]) // 2
    return grown[:, top : top + images.shape[1], left : left + images.shape[2]]


def _zoom(factor: float) -> Change:
    return lambda stack: _counts(zoomed(stack, factor))


ZOOMS = {"magnification x.5": 0.5, "magnification x2": 2.0}
"""Conditions that change what part of the field is seen, so that the truth must follow."""
AS_TRAINED = "as trained"
CONDITIONS: dict[str, Change] = {
    AS_TRAINED: _as_trained,
    "z reversed": _reversed,
    "z shifted 6 planes": _shifted,
    "one plane repeated": _repeated,
    "z step x2": _coarse,
    **{name: _zoom(factor) for name, factor in ZOOMS.items()},
    "contrast inverted": _inverted,
    "blur 2 px": _blurred,
}
"""What is done to a (z, y, x) uint16 stack, by name, while its metadata stay as they are."""
