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
    got = ", ".join(f"{distance.name} {distance.value:.3g}, limit {distance.limit:.3g}" for distance in far)
    if policy == "refuse" and any(distance.name not in excused for distance in far):
        raise StackRefused(
            f"stack {key} does not look like those the model was trained on",
            wanted="distances to the training set within their limits",
            got=got,
            fix="check focus, z range, illumination and objective; for another kind of specimen use a model "
            "trained or adapted for it (`acq-isl adapt`)",
        )
    return (f"the stack does not look like those the model was trained on ({got}): do not trust its labels",)
