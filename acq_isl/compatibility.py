"""Whether a stack is fit for a model, by what its metadata say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from acq_isl.manifest import SLACK, Manifest
from acq_isl.stack import StackInfo

# Ratios of the stack's pixel size to the model's; from the mismatch measurements in docs/design.md.
_USE_RATIO = (0.9, 1.1)
_RESAMPLE_RATIO = (0.6, 1.6)
_Z_STEP_RATIO = (0.5, 2.0)
_USE_Z_STEP_RATIO = (0.8, 1.25)


@dataclass(frozen=True, slots=True)
class Use:
    """The stack fits as it is; ``notes`` are things nobody could check."""

    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resample:
    """The stack fits after resampling; ``warnings`` say what was changed, and what nobody could check."""

    xy_scale: float
    """Factor on rows and columns (2 means twice as many pixels)."""
    z_um: tuple[float, ...]
    """Stage z of the planes to interpolate."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """No prediction can be trusted; ``fix`` says what to change."""

    reason: str
    fix: str


Verdict = Use | Resample | Refuse


def check(manifest: Manifest, info: StackInfo) -> Verdict:
    """Decide from metadata alone whether a model may be used on a stack.

    Tolerances: pixel size ratio .9-1.1 use, .6-1.6 resample, else refuse; z step within a factor 1.25
    use, 2 resample, else refuse; reversed order, missing planes, other modality or polarity refuse. More
    planes than needed, or half a step too little range, resample. Both ends of a range belong to it.
    """
    unfit = _check_optics(manifest, info) or _check_order(info)
    if unfit is not None:
        return unfit
    scale, planes = _xy_scale(manifest, info), _z_planes(manifest, info)
    if isinstance(scale, Refuse):
        return scale
    if isinstance(planes, Refuse):
        return planes
    z_um, z_warning = planes
    xy_warning = (
        f"pixels of {info.pixel_size_um:g} um were resampled to the model's {manifest.pixel_size_um:g} um"
    )
    warnings = (xy_warning,) * (scale != 1.0) + (z_warning,) * bool(z_warning)
    notes = _unchecked(manifest, info)
    return Resample(scale, z_um, warnings + notes) if warnings else Use(notes)


def _unchecked(manifest: Manifest, info: StackInfo) -> tuple[str, ...]:
    facts = {
        "kind of transmitted light": (info.modality, manifest.modality),
        "contrast polarity": (info.polarity, manifest.polarity),
    }
    unstated = [fact for fact, stated in facts.items() if "unknown" in stated]
    return tuple(f"the {fact} was not stated, so it was not checked" for fact in unstated)


def _within(ratio: float, bounds: tuple[float, float]) -> bool:
    low, high = bounds
    return low * (1 - SLACK) <= ratio <= high * (1 + SLACK)


def _check_optics(manifest: Manifest, info: StackInfo) -> Refuse | None:
    if "unknown" not in (info.modality, manifest.modality) and info.modality != manifest.modality:
        return Refuse(
            f"the stack is {info.modality}, the model was trained on {manifest.modality}",
            f"acquire {manifest.modality}, or choose a model for {info.modality}",
        )
    if "unknown" not in (info.polarity, manifest.polarity) and info.polarity != manifest.polarity:
        return Refuse(
            f"contrast is inverted: dense matter is {info.polarity} here, {manifest.polarity} in training",
            f"use optics with {manifest.polarity} contrast, or a model trained on {info.polarity} contrast",
        )
    if not np.isfinite(info.pixel_size_um) or info.pixel_size_um <= 0:
        return Refuse(
            f"the pixel size is not known (it reads {info.pixel_size_um:g} um)",
            "set the pixel size calibration in Micro-Manager for this objective and binning",
        )
    return None


def _check_order(info: StackInfo) -> Refuse | None:
    z = np.asarray(info.z_um, dtype=float)
    steps = np.diff(z)
    if not z.size or not np.isfinite(z).all():
        return Refuse(
            "the z of the planes is not known",
            "give the stage z of each slice in micrometres; check that the core has a focus device",
        )
    if steps.size and bool(np.all(steps < 0)):
        return Refuse(
            "the planes are in reversed order: z falls from slice to slice",
            "acquire the stack from low to high z (go_up: true)",
        )
    if bool(np.any(steps <= 0)):
        return Refuse(
            "the planes are not in order: z must rise from slice to slice",
            "acquire each plane once, from low to high z",
        )
    return None


def _xy_scale(manifest: Manifest, info: StackInfo) -> float | Refuse:
    ratio = info.pixel_size_um / manifest.pixel_size_um
    if _within(ratio, _USE_RATIO):
        return 1.0
    if _within(ratio, _RESAMPLE_RATIO):
        return ratio
    low, high = (manifest.pixel_size_um * bound for bound in _RESAMPLE_RATIO)
    return Refuse(
        f"pixels are {info.pixel_size_um:g} um, the model was trained at {manifest.pixel_size_um:g} um",
        f"use an objective or binning with pixels of {low:.2g} to {high:.2g} um, best "
        f"{manifest.pixel_size_um:g} um, or correct the pixel size calibration in Micro-Manager",
    )


def _z_planes(manifest: Manifest, info: StackInfo) -> tuple[tuple[float, ...], str] | Refuse:
    """Stage z of the planes to use and what to say of them, empty if they are used as they are."""
    wanted, have = np.asarray(manifest.z_offsets_um), np.asarray(info.z_um, dtype=float)
    middle = (have[0] + have[-1]) / 2
    if len(wanted) == 1:
        only = f"only the middle of {len(have)} planes is used, the model knows no other" * (len(have) > 1)
        return (float(middle),), only
    refusal = _refuse_planes(manifest, info)
    steps = np.diff(have) if len(have) > 1 else np.zeros(1)
    step = float(steps.mean())
    if steps.max() > 1.5 * steps.min():
        uneven = f"planes are missing: z steps vary from {steps.min():.2g} to {steps.max():.2g} um"
        return Refuse(uneven, refusal.fix)
    if len(have) == len(wanted) and _within(step / manifest.z_step_um, _USE_Z_STEP_RATIO):
        return info.z_um, ""
    # Half a step of tolerance: a plane may be asked for just outside the first or last one.
    if (have[-1] - have[0] + step) / 2 < wanted[-1] * (1 - SLACK):
        return refusal
    if not _within(step / manifest.z_step_um, _Z_STEP_RATIO):
        coarse = f"the z step is {step:.2g} um, the model was trained at {manifest.z_step_um:.2g} um"
        return Refuse(coarse, refusal.fix)
    planes = np.clip(wanted + middle, have[0], have[-1])
    warning = (
        f"{info.planes} planes {step:.2g} um apart were resampled to the model's "
        f"{manifest.planes} planes {manifest.z_step_um:.2g} um apart"
    )
    return tuple(float(z) for z in planes), warning


def _refuse_planes(manifest: Manifest, info: StackInfo) -> Refuse:
    have = f"{info.planes} plane{'s' * (info.planes != 1)} over {info.z_um[-1] - info.z_um[0]:.3g} um"
    wanted = f"{manifest.planes} over {manifest.z_offsets_um[-1] - manifest.z_offsets_um[0]:.3g} um"
    return Refuse(
        f"the stack has {have}, the model needs {wanted}",
        f"acquire {manifest.planes} equidistant planes {manifest.z_step_um:.2g} um apart",
    )
