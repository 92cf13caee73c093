"""Recordings of any pixel size and z step, brought to the ones of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acq_isl.compatibility import Resample
from acq_isl.errors import PairRefused
from acq_isl.processing.normalize import resample, resize
from acq_isl.readers.recording import describe_gap
from acq_isl.stack import StackInfo, StackKey, Uint16Image, ZStack
from acq_isl.training.data.pairs import Nominal, Recording

_SAME_PIXEL = (0.9, 1.1)
_SAME_STEP = (0.8, 1.25)


@dataclass(frozen=True, slots=True)
class Geometry:
    """What every field is brought to; sides are cut to multiples of ``step_px``."""

    nominal: Nominal
    high_pass_px: float
    labels: tuple[str, ...]
    step_px: int


def bring_to_model(recording: Recording, geometry: Geometry, name: str) -> Uint16Image:
    """The stack at the model's pixel size and planes, as it will be in use; sides multiples of the step."""
    nominal, stack = geometry.nominal, recording.stack
    scale = _xy_scale(recording, nominal)
    missing = describe_gap(recording.z_um)
    if missing:
        raise PairRefused(f"{name}: {missing}", fix="leave it out, or record it again")
    z_um = np.asarray(recording.z_um) - (recording.z_um[0] + recording.z_um[-1]) / 2
    planes = _planes(z_um, nominal, name)
    if scale != 1.0 or planes is not None:
        chosen = tuple(float(z) for z in (z_um if planes is None else planes))
        info = StackInfo(
            StackKey(0, name, "training"), tuple(map(float, z_um)), stack.shape[1:], recording.pixel_size_um
        )
        stack = resample(ZStack(info, stack, (0.0,) * len(stack)), Resample(scale, chosen, ()))
    return _cut(stack, geometry.step_px, name)


def _xy_scale(recording: Recording, nominal: Nominal) -> float:
    scale = recording.pixel_size_um / nominal.pixel_size_um
    return 1.0 if _SAME_PIXEL[0] <= scale <= _SAME_PIXEL[1] else scale


def _planes(z_um: NDArray[np.floating], nominal: Nominal, name: str) -> NDArray[np.floating] | None:
    """z of the planes to interpolate; None: they are used as they are."""
    wanted = np.asarray(nominal.z_um)
    step = float(np.diff(z_um).mean()) if len(z_um) > 1 else 0.0
    if nominal.planes == 1:
        return None if len(z_um) == 1 else np.zeros(1)
    if len(z_um) == nominal.planes and _SAME_STEP[0] <= step / nominal.z_step_um <= _SAME_STEP[1]:
        return None
    if z_um[-1] + step / 2 < wanted[-1] * 0.995:
        raise PairRefused(
            f"{name} has too few planes",
            wanted=f"{nominal.planes} planes {nominal.z_step_um:g} um apart",
            got=f"{len(z_um)} planes {step:g} um apart",
            fix="change planes and z_step_um, or leave it out",
        )
    planes: NDArray[np.floating] = np.clip(wanted, z_um[0], z_um[-1])
    return planes


def fit_image(image: NDArray[Any], recording: Recording, geometry: Geometry) -> NDArray[Any]:
    """A label image at the place of `bring_to_model`'s pixels."""
    scale = _xy_scale(recording, geometry.nominal)
    if scale != 1.0:
        rows, columns = (max(round(side * scale), 1) for side in image.shape)
        image = resize(image.astype(np.float32), (rows, columns))
    return _cut(image, geometry.step_px, "label")


def _cut(image: NDArray[Any], step: int, name: str) -> NDArray[Any]:
    rows, columns = (side // step * step for side in image.shape[-2:])
    if not rows or not columns:
        raise PairRefused(f"{name} is too small", wanted=f"{step} pixels", got=str(image.shape[-2:]))
    return image[..., :rows, :columns]
