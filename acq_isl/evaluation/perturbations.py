"""Stacks as no microscope should deliver them: the nine perturbations under which a model is tested. Pure."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from acq_isl.stack import Uint16Image
from acq_isl.training.conditions import Condition, blur, invert, magnify, repeat, zoom

__all__ = ["AS_TRAINED", "PERTURBATIONS", "ZOOMS", "Perturbation", "zoom"]

_SHIFT_PLANES = 6

Perturbation = Callable[[Uint16Image], Uint16Image]


def _choose_planes(number: Callable[[np.ndarray, int], np.ndarray]) -> Perturbation:
    """Planes by a function of their own number and the middle's; beyond the ends the last one is repeated."""

    def perturb(stack: Uint16Image) -> Uint16Image:
        chosen = number(np.arange(len(stack)), len(stack) // 2)
        planes: Uint16Image = stack[np.clip(chosen, 0, len(stack) - 1)]
        return planes

    return perturb


def _certain(condition: Condition) -> Perturbation:
    """A condition that leaves nothing to chance."""
    return lambda stack: condition.perturb(stack, np.random.default_rng(0))


ZOOMS = {"magnification x.5": 0.5, "magnification x2": 2.0}
"""Perturbations that change what part of the field is seen, so that the truth must follow."""
AS_TRAINED = "as trained"
PERTURBATIONS: dict[str, Perturbation] = {
    AS_TRAINED: lambda stack: stack,
    "z reversed": lambda stack: stack[::-1],
    "z shifted 6 planes": _choose_planes(lambda z, middle: z + _SHIFT_PLANES),
    "one plane repeated": _certain(repeat(0)),
    "z step x2": _choose_planes(lambda z, middle: middle + 2 * (z - middle)),
    **{name: _certain(magnify(factor)) for name, factor in ZOOMS.items()},
    "contrast inverted": _certain(invert()),
    "blur 2 px": _certain(blur(2.0)),
}
"""What is done to a (z, y, x) uint16 stack, by name, while its metadata stay as they are."""
