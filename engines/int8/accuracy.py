"""Is an int8 form of a model as good as fp32? Measured on the user's own stacks, whatever made it."""

from __future__ import annotations

from collections.abc import Sequence

from acq_isl.base import StrictModel
from acq_isl.engines.agreement import correlation
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import StackRefused
from acq_isl.manifest import Manifest
from acq_isl.processing.segmentation import Mask, object_score, segment
from acq_isl.stack import Prediction, ZStack

LEAST_PEARSON = 0.995
MOST_F1_LOST = 0.01
COUNTED = "nuclei"
ABOVE = 0.2
_MIN_AREA_UM2 = 20.0
_LEAST_COUNTED = 20  # fewer tell nothing about an F1


class Accuracy(StrictModel):
    """How far int8 is from fp32."""

    pearson: dict[str, float]
    """Correlation of the mean of each label, the lowest of all stacks; empty if int8 refused the first."""
    f1: float | None
    """Nuclei found in int8 matched with those found in fp32, all stacks together; None without nuclei."""
    nuclei: int
    """Nuclei found in fp32."""
    above: float
    """Predicted intensity that makes a nucleus."""
    reason: str = ""
    """Why int8 is not to be used; empty if it may be."""
    distance: float = 0.0
    """Largest change of the gate's distance as a share of its limit; 0 if there is none, or not measured."""


def measure_accuracy(
    engines: tuple[Predictor, Predictor], stacks: Sequence[ZStack], above: float = ABOVE
) -> Accuracy:
    """Compare engines in fp32 and int8 on stacks none of whose pixels set int8's ranges.

    StackRefused if fp32 refuses a stack. That int8 refuses one which fp32 takes is an objection to int8.
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
            pearson[name] = min(pearson.get(name, 1.0), correlation(wanted.mean[index], got.mean[index]))
        if COUNTED in manifest.label_names:
            score = object_score(_find_nuclei(got, above), _find_nuclei(wanted, above))
            found, true, matched = found + score.found, true + score.true, matched + score.matched
    f1 = 2 * matched / (found + true) if true else None
    reason = refused or find_objection(pearson, f1, true, manifest)
    return Accuracy(pearson=pearson, f1=f1, nuclei=true, above=above, reason=reason)


def find_objection(pearson: dict[str, float], f1: float | None, counted: int, manifest: Manifest) -> str:
    """Why int8 is not to be used; empty if it may be."""
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
    if f1 < 1 - MOST_F1_LOST:
        return f"F1 of {COUNTED} against fp32 is {f1:.3f}, not {1 - MOST_F1_LOST:g}"
    return ""


def _find_nuclei(prediction: Prediction, above: float) -> Mask:
    mean = prediction.mean[prediction.labels.index(COUNTED)]
    return segment(mean, above, _MIN_AREA_UM2, prediction.info.pixel_size_um)
