"""Recordings of any pixel size and z step, brought to the ones of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.compatibility import Refuse, Use, Wanted, check
from acq_isl.errors import PairRefused
from acq_isl.processing.normalize import resample, resize
from acq_isl.stack import StackInfo, StackKey, ZStack
from acq_isl.training.data.pairs import Nominal, Recording


@dataclass(frozen=True, slots=True)
class Geometry:
    """What every field is brought to; sides are cut to multiples of ``step_px``."""

    nominal: Nominal
    high_pass_px: float
    labels: tuple[str, ...]
    step_px: int


def make_stack(recording: Recording, name: str, model: Wanted) -> ZStack:
    """A recording as an engine is shown it; modality and polarity are taken on trust."""
    planes, rows, columns = recording.stack.shape
    info = StackInfo(
        StackKey(0, name, "transmitted"), recording.z_um, (rows, columns), recording.pixel_size_um,
        modality=model.modality, polarity=model.polarity,
    )  # fmt: skip
    return ZStack(info, recording.stack, (0.0,) * planes)


def fit(recording: Recording, title: str, model: Wanted) -> Recording:
    """Stack and labels on the model's planes and pixels, as in use; `PairRefused` if they do not fit it."""
    stack = make_stack(recording, title, model)
    verdict = check(model, stack.info)
    if isinstance(verdict, Refuse):
        raise PairRefused(f"{title}: {verdict.reason}", fix=f"{verdict.fix}; or leave it out")
    pixels = stack.pixels if isinstance(verdict, Use) else resample(stack, verdict)
    shape = pixels.shape[1], pixels.shape[2]
    if shape == stack.info.shape:
        return replace(recording, stack=pixels)
    labels = {name: resize(image.astype(np.float32), shape) for name, image in recording.labels.items()}
    valid = {name: resize(known.astype(np.float32), shape) > 0.999 for name, known in recording.valid.items()}
    return replace(recording, stack=pixels, labels=labels, valid=valid)


def bring_to_model(recording: Recording, geometry: Geometry, title: str) -> Recording:
    """`fit`, and sides cut to multiples of the step."""
    fitted = fit(recording, title, geometry.nominal)
    rows, columns = (side // geometry.step_px * geometry.step_px for side in fitted.stack.shape[1:])
    if not rows or not columns:
        got = str(fitted.stack.shape[1:])
        raise PairRefused(f"{title} is too small", wanted=f"{geometry.step_px} pixels", got=got)

    def cut(image: NDArray[Any]) -> NDArray[Any]:
        return image[..., :rows, :columns]

    return replace(
        fitted,
        stack=cut(fitted.stack),
        labels={name: cut(image) for name, image in fitted.labels.items()},
        valid={name: cut(known) for name, known in fitted.valid.items()},
    )
