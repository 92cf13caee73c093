"""A recording as it is learned from and judged by: holes left out, labels moved if that is asked, checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from acq_isl.training.data.pairs import Checks, Item, Recording, Truth, examine
from acq_isl.training.data.registration import SURE_PEAK, find_shift_in

_LEAST_HOLE, _MOST_HOLE = 1e-3, 0.5  # of the field
_RECTANGLE = 0.95  # of its bounding box: what somebody cut out, and no background between cells


def load_checked(item: Item, checks: Checks) -> tuple[Recording, list[str]]:
    """Read a pair and what is to be known of it. Raises as sources and `examine` do."""
    recording, said = leave_out_holes(item.load(), item.name)
    if checks.register_labels and not item.simulated:
        recording, moved = register(recording, item.name, checks)
        said += moved
    return recording, said + examine(recording, item.name, checks)


def find_hole(image: Truth) -> NDArray[np.bool_] | None:
    """Where rectangles of a (y, x) image of integers hold one value far below all others; None: nowhere."""
    if image.dtype.kind not in "iu" or image.min() == image.max():
        return None
    hole = image == image.min()
    rest = image[~hole]
    if not _LEAST_HOLE < hole.mean() < _MOST_HOLE or rest.min() - image.min() <= np.median(rest) - rest.min():
        return None
    numbers, _ = ndimage.label(hole)
    boxes = sum(numbers[box].size for box in ndimage.find_objects(numbers))
    return hole if hole.sum() >= _RECTANGLE * boxes else None


def leave_out_holes(recording: Recording, name: str) -> tuple[Recording, list[str]]:
    """The recording with holes of its labels filled and marked as not known, and what was found."""
    labels, valid, said = dict(recording.labels), dict(recording.valid), list[str]()
    for label, image in recording.labels.items() if recording.truth_range is None else ():
        hole = find_hole(image)
        if hole is not None:
            labels[label] = np.where(hole, np.median(image[~hole]), image).astype(image.dtype)
            valid[label] = valid.get(label, np.ones(image.shape, bool)) & ~hole
            said.append(f"{name}: {label} has a hole of {hole.mean():.1%} of the field, which is left out")
    return replace(recording, labels=labels, valid=valid), said


def register(recording: Recording, name: str, checks: Checks) -> tuple[Recording, list[str]]:
    """The recording with labels that are surely shifted moved by whole pixels to where the structure is, what
    comes in from outside marked as not known; and what was done. A truth that is known is left alone."""
    labels, valid, said = dict(recording.labels), dict(recording.valid), list[str]()
    for label, image in recording.labels.items() if recording.truth_range is None else ():
        found = find_shift_in(recording.stack, image)
        rows, columns = found.shift_px
        if found.is_worth_moving(recording.pixel_size_um, checks.shift_warn_um):
            known = valid.get(label, np.ones(image.shape, bool))
            labels[label] = _moved(image, (-rows, -columns), np.median(image))
            valid[label] = _moved(known, (-rows, -columns), False)
            said.append(
                f"{name}: {label} was moved by {-rows} rows and {-columns} columns onto the structure"
            )
        elif found.peak < SURE_PEAK:
            said.append(f"{name}: {label} resembles nothing clearly enough to be registered; it stays")
    return replace(recording, labels=labels, valid=valid), said


def _moved(image: NDArray[Any], by_px: tuple[int, int], outside: float) -> NDArray[Any]:
    """By rows and columns; ``outside`` is what comes in."""
    out = np.full_like(image, outside)
    to, of = zip(
        *(_overlap(shift, side) for shift, side in zip(by_px, image.shape, strict=True)), strict=True
    )
    out[to] = image[of]
    return out


def _overlap(shift: int, side: int) -> tuple[slice, slice]:
    """Where a line that is moved lies, and what of it."""
    return slice(max(shift, 0), side + min(shift, 0)), slice(max(-shift, 0), side + min(-shift, 0))
