"""Whether a stack looks like those a model was trained on: the distances its network gives, judged. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from acq_isl.errors import StackRefused
from acq_isl.manifest import Gate
from acq_isl.stack import Distance, Float32Image, StackKey

Policy = Literal["refuse", "warn"]
"""What becomes of a stack beyond a limit: ``warn`` predicts it all the same, for experts who look at it."""

COST = "cost"
"""Of the distances: an estimate of what predictions on such a stack lose, in hundredths of r."""
_FIX = (
    "check focus, z range, illumination and objective; for another kind of specimen use a model "
    "trained or adapted for it (`acq-isl adapt`)"
)
RESAMPLED = frozenset({"focus"})
"""Distances that resampling itself changes, since it softens: beyond their limit they only warn then."""


def measure_distances(gate: Gate, windows: Sequence[Float32Image]) -> tuple[Distance, ...]:
    """Of a whole stack: medians over the windows of its tiles, (tile, K, h, w) float32, so dust counts
    little.
    """
    names = gate.names
    values = np.concatenate([np.moveaxis(w, 1, 0).reshape(len(names), -1) for w in windows], axis=1)
    medians = np.median(values, axis=1).tolist()
    return tuple(Distance(*parts) for parts in zip(names, medians, gate.limits, strict=True))


def judge_distances(
    key: StackKey, distances: Sequence[Distance], policy: Policy, excused: frozenset[str] = frozenset()
) -> tuple[str, ...]:
    """Warnings for distances beyond their limits; StackRefused if that is the policy for any not excused."""
    far = [distance for distance in distances if distance.beyond]
    if not far:
        return ()
    got = ", ".join(map(_describe, far))
    refused = policy == "refuse" and any(distance.name not in excused for distance in far)
    cost = next((distance.value for distance in far if distance.name == COST), None)
    if refused and cost is not None:
        raise StackRefused(
            f"stack {key} is not predicted: predictions on such a stack cost about {_as_r(cost)} r",
            wanted="a stack on which the model is about as good as where it was tested",
            got=got,
            fix=_FIX,
        )
    if refused:
        raise StackRefused(
            f"stack {key} does not look like those the model was trained on",
            wanted="distances to the training set within their limits",
            got=got,
            fix=_FIX,
        )
    return (f"the stack does not look like those the model was trained on ({got}): do not trust its labels",)


def _describe(distance: Distance) -> str:
    if distance.name == COST:
        return f"an estimated cost of {_as_r(distance.value)} r, limit {distance.limit / 100:.3f}"
    return f"{distance.name} {distance.value:.3g}, limit {distance.limit:.3g}"


def _as_r(hundredths: float) -> str:
    return f"{hundredths / 100:.2f}".replace("0.", ".", 1)
