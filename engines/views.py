"""Several views of one stack, whose predictions are averaged: mirrored, focus reversed. Pure.

A view changes nothing that a label depends on, so what differs between predictions is error, of which
the mean takes a part away. Each view costs one prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.stack import Float32Image, Uint16Image

MOST_VIEWS = 8


@dataclass(frozen=True, slots=True)
class View:
    """What is shown to the network of a (z, y, x) stack, and how its (label, y, x) answer is turned back."""

    name: str
    show: Callable[[Uint16Image], Uint16Image]
    turn_back: Callable[[Float32Image], Float32Image]


def first_views(count: int) -> tuple[View, ...]:
    """So many views, the stack as it is first; ValueError if there are not so many."""
    if not 1 <= count <= MOST_VIEWS:
        raise ValueError(f"there are 1 to {MOST_VIEWS} views, not {count}")
    return _VIEWS[:count]


def average(means: Sequence[Float32Image], stds: Sequence[Float32Image]) -> tuple[Float32Image, Float32Image]:
    """Mean and SD, (label, y, x), of views that are equally likely: within a view and between views."""
    mean: Float32Image = np.asarray(np.mean(means, axis=0), np.float32)
    squares = [np.square(std) + np.square(own - mean) for own, std in zip(means, stds, strict=True)]
    return mean, np.asarray(np.sqrt(np.mean(squares, axis=0)), np.float32)


def _view(name: str, z: int, y: int, x: int) -> View:
    """Axes with a step of -1 are reversed."""

    def reverse(image: NDArray[Any], *steps: int) -> NDArray[Any]:
        return np.ascontiguousarray(image[tuple(slice(None, None, step) for step in steps)])

    return View(name, lambda stack: reverse(stack, z, y, x), lambda image: reverse(image, 1, y, x))


# Mirrored first: on the recorded field views with the focus reversed add nothing (docs/models.md).
_VIEWS = (
    _view("as it is", 1, 1, 1),
    _view("turned", 1, -1, -1),
    _view("mirrored in x", 1, 1, -1),
    _view("mirrored in y", 1, -1, 1),
    _view("focus reversed", -1, 1, 1),
    _view("turned, focus reversed", -1, -1, -1),
    _view("mirrored in x, focus reversed", -1, 1, -1),
    _view("mirrored in y, focus reversed", -1, -1, 1),
)
