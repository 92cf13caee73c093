"""Is an int8 form of a model as good as fp32? Judged on the user's own stacks, whatever made it.

The upper half of every stack calibrates, the lower half judges: no pixel does both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from acq_isl.engines.predictor import Predictor
from acq_isl.errors import StackRefused
from acq_isl.manifest import Manifest
from acq_isl.processing.segmentation import Mask, object_score, segment
from acq_isl.stack import Float32Image, Prediction, ZStack

LEAST_PEARSON = 0.995
MOST_F1_LOST = 0.01
COUNTED = "nuclei"
ABOVE = 0.2
_MIN_AREA_UM2 = 20.0
_LEAST_COUNTED = 20  # fewer tell nothing about an F1


@dataclass(frozen=True, slots=True)
class Judgement:
    """How far int8 is from fp32.

    Parameters
    ----------
    pearson : dict of str to float
        Correlation of the mean of each label, the lowest of all stacks; empty if int8 refused the first one.
    f1 : float or None
        Nuclei found in int8 matched with those found in fp32, all stacks together; None without nuclei.
    nuclei : int
        Nuclei found in fp32.
    reason : str
        Why int8 is not to be used; empty if it may be.
    """

    pearson: dict[str, float]
    f1: float | None
    nuclei: int
    reason: str


def halves(stack: ZStack) -> tuple[ZStack, ZStack]:
    """Upper and lower rows; StackRefused if there is one row only."""
    middle = stack.info.shape[0] // 2
    parts = stack.pixels[:, :middle], stack.pixels[:, middle:]
    if middle < 1:
        raise StackRefused(f"stack {stack.info.key} has a single row", fix="give a whole field of view")
    first, second = (
        ZStack(
            replace(stack.info, shape=(part.shape[1], part.shape[2])),
            np.ascontiguousarray(part),
            stack.captured_s,
        )
        for part in parts
    )
    return first, second


def judge(engines: tuple[Predictor, Predictor], stacks: Sequence[ZStack], above: float = ABOVE) -> Judgement:
    """Compare int8 with fp32.

    Parameters
    ----------
    engines : (Predictor, Predictor)
        fp32 and int8.
    stacks : sequence of ZStack
        None of whose pixels set int8's ranges.
    above : float
        Predicted intensity that makes a nucleus.

    Raises
    ------
    StackRefused
        fp32 refuses a stack. That int8 refuses one which fp32 takes is an objection to int8.
    """
    full, low = engines
    manifest = full.manifest
    pearson: dict[str, float] = {}
    found, true, matched = 0, 0, 0
    refused = ""
    for stack in stacks:
        wanted = full.predict(stack)
        try:
            got = low.predict(stack)
        except StackRefused as refusal:
            detail = f"; {refusal.got}" if refusal.got else ""
            refused = f"int8 refuses a stack that fp32 takes: {refusal.what}{detail}"
            break
        for index, name in enumerate(manifest.label_names):
            correlation = _pearson(wanted.mean[index], got.mean[index])
            pearson[name] = min(pearson.get(name, 1.0), correlation)
        if COUNTED in manifest.label_names:
            score = object_score(_objects(got, above), _objects(wanted, above))
            found, true, matched = found + score.found, true + score.true, matched + score.matched
    f1 = 2 * matched / (found + true) if true else None
    return Judgement(pearson, f1, true, refused or objection(pearson, f1, true, manifest))


def objection(pearson: dict[str, float], f1: float | None, counted: int, manifest: Manifest) -> str:
    """Why int8 is not to be used; empty if it is."""
    low = [f"{name} {value:.4f}" for name, value in pearson.items() if not value >= LEAST_PEARSON]
    if low:
        return f"correlation with fp32 below {LEAST_PEARSON:g}: {', '.join(low)}"
    if COUNTED not in manifest.label_names:
        return ""
    if f1 is None or counted < _LEAST_COUNTED:
        return (
            f"only {counted} {COUNTED} in the lower halves of these stacks, {_LEAST_COUNTED} are needed "
            "to judge; give more stacks"
        )
    return (
        ""
        if f1 >= 1 - MOST_F1_LOST
        else f"F1 of {COUNTED} against fp32 is {f1:.3f}, not {1 - MOST_F1_LOST:g}"
    )


def _objects(prediction: Prediction, above: float) -> Mask:
    mean = prediction.mean[prediction.labels.index(COUNTED)]
    return segment(mean, above, _MIN_AREA_UM2, prediction.info.pixel_size_um)


def _pearson(first: Float32Image, second: Float32Image) -> float:
    a, b = (values.astype(np.float64).ravel() - values.mean(dtype=np.float64) for values in (first, second))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float(np.array_equal(first, second))
