"""Whether planned, captured or stored planes fit a model, by what their metadata say. The one decision.

Dry runs ask it of planned stacks, engines of captured ones, training, adapting, evaluating and readers of
stored ones, so that what is refused in one place is refused in all. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from acq_isl.manifest import SLACK, AnyPlanes, Tolerated
from acq_isl.stack import Modality, Polarity, StackInfo

# Ratios of the stack's pixel size to the model's; from the mismatch measurements in docs/design.md.
_USE_RATIO = (0.9, 1.1)
_RESAMPLE_RATIO = (0.6, 1.6)
_Z_STEP_RATIO = (0.5, 2.0)
_USE_Z_STEP_RATIO = (0.8, 1.25)
_UNEVEN = 1.5
_EVENLY = 0.1  # of a step: what a stage may be off
_COST = "it costs less than .02 of the mean correlation with the truth"


class Wanted(Protocol):
    """The stacks that a model is for: a `Manifest`, or what a training is for."""

    @property
    def modality(self) -> Modality: ...
    @property
    def polarity(self) -> Polarity: ...
    @property
    def pixel_size_um(self) -> float: ...
    @property
    def z_offsets_um(self) -> tuple[float, ...]:
        """Planes relative to the middle of the stack, rising."""
        ...

    @property
    def z_step_um(self) -> float: ...
    @property
    def any_planes(self) -> AnyPlanes | None:
        """Absent: stacks must have these planes."""
        ...

    @property
    def tolerates(self) -> frozenset[Tolerated]:
        """What may differ, as it was measured to cost little."""
        ...


@dataclass(frozen=True, slots=True)
class Use:
    """The stack fits as it is; ``notes`` are things nobody could check."""

    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sort:
    """The stack fits once its planes are in order; ``notes`` say so, and what nobody could check."""

    order: tuple[int, ...]
    """Numbers of the planes, by rising z."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resample:
    """The stack fits after resampling; ``warnings`` say what was changed, and what nobody could check."""

    xy_scale: float
    """Factor on rows and columns (2 means twice as many pixels)."""
    z_um: tuple[float, ...]
    """Stage z of the planes to interpolate between those of the stack, which need not be in order."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Refuse:
    """No prediction can be trusted; ``fix`` says what to change."""

    reason: str
    fix: str


Verdict = Use | Sort | Resample | Refuse


@np.errstate(over="ignore")
def check(model: Wanted, info: StackInfo) -> Verdict:
    """Decide from metadata alone whether a model may be used on a stack, whatever the order of its planes.

    Tolerances: pixel size ratio .9-1.1 use, .6-1.6 resample, else refuse; z step within a factor 1.25
    use, 2 resample, else refuse; missing or repeated planes, other modality or polarity refuse. More
    planes than needed, or half a step too little range, resample. Both ends of a range belong to it.
    Planes that are not in order of z are sorted. What a model was measured to bear is used, with a note.
    Models for any planes take one or more, evenly spaced or not, as far apart as they were trained for.
    """
    unfit = _check_optics(model, info) or check_heights(info.z_um, evenly=model.any_planes is None)
    if unfit is not None:
        return unfit
    order = np.argsort(info.z_um)
    rising = np.asarray(info.z_um, dtype=float)[order]
    scale = _xy_scale(model, info)
    taken = model.any_planes
    planes = _z_planes(model, rising) if taken is None else _spread(taken, len(model.z_offsets_um), rising)
    if isinstance(scale, Refuse):
        return scale
    if isinstance(planes, Refuse):
        return planes
    z_um, z_warning = planes
    xy_warning = (
        f"pixels of {info.pixel_size_um:g} um were resampled to the model's {model.pixel_size_um:g} um"
    )
    warnings = (xy_warning,) * (scale != 1.0) + (z_warning,) * bool(z_warning)
    in_order = bool(np.all(np.diff(order) == 1))
    notes = (*("the planes were sorted by z",) * (not in_order), *_unchecked(model, info))
    if warnings:
        return Resample(scale, z_um, warnings + notes)
    return Use(notes) if in_order else Sort(tuple(order.tolist()), notes)


@np.errstate(over="ignore")
def check_heights(z_um: Sequence[float], *, evenly: bool = True) -> Refuse | None:
    """What is wrong with the z of planes, in any order, whatever the model; None if nothing is."""
    steps = np.diff(np.sort(np.asarray(z_um, dtype=float)))
    if not len(z_um) or not np.isfinite(z_um).all():
        return Refuse(
            "the z of the planes is not known",
            "give the stage z of each slice in micrometres; check that the core has a focus device",
        )
    twice = int(np.count_nonzero(steps <= 0))
    if twice:
        which = "all" if twice == len(steps) else "some"
        return Refuse(
            f"{which} of the {len(z_um)} planes have the same z",
            "acquire each plane once; check that the focus device moves",
        )
    if evenly and steps.size and steps.max() > _UNEVEN * steps.min():
        return Refuse(
            f"planes are missing: z steps vary from {steps.min():.2g} to {steps.max():.2g} um",
            "acquire equidistant planes, none left out",
        )
    return None


def _unchecked(model: Wanted, info: StackInfo) -> tuple[str, ...]:
    facts = {
        "kind of transmitted light": (info.modality, model.modality),
        "contrast polarity": (info.polarity, model.polarity),
    }
    unstated = [fact for fact, stated in facts.items() if "unknown" in stated]
    notes = [f"the {fact} was not stated, so it was not checked" for fact in unstated]
    if _inverted(model, info):
        notes.append(f"contrast is inverted, which this model was measured to bear: {_COST}")
    return tuple(notes)


def _inverted(model: Wanted, info: StackInfo) -> bool:
    return "unknown" not in (info.polarity, model.polarity) and info.polarity != model.polarity


def _within(ratio: float, bounds: tuple[float, float]) -> bool:
    low, high = bounds
    return low * (1 - SLACK) <= ratio <= high * (1 + SLACK)


def _check_optics(model: Wanted, info: StackInfo) -> Refuse | None:
    if "unknown" not in (info.modality, model.modality) and info.modality != model.modality:
        return Refuse(
            f"the stack is {info.modality}, the model was trained on {model.modality}",
            f"acquire {model.modality}, or choose a model for {info.modality}",
        )
    if _inverted(model, info) and "polarity" not in model.tolerates:
        return Refuse(
            f"contrast is inverted: dense matter is {info.polarity} here, {model.polarity} in training",
            f"use optics with {model.polarity} contrast, or a model trained on {info.polarity} contrast",
        )
    if not np.isfinite(info.pixel_size_um) or info.pixel_size_um <= 0:
        return Refuse(
            f"the pixel size is not known (it reads {info.pixel_size_um:g} um)",
            "set the pixel size calibration in Micro-Manager for this objective and binning",
        )
    return None


def _xy_scale(model: Wanted, info: StackInfo) -> float | Refuse:
    ratio = info.pixel_size_um / model.pixel_size_um
    if _within(ratio, _USE_RATIO):
        return 1.0
    if _within(ratio, _RESAMPLE_RATIO):
        return ratio
    low, high = (model.pixel_size_um * bound for bound in _RESAMPLE_RATIO)
    return Refuse(
        f"pixels are {info.pixel_size_um:g} um, the model was trained at {model.pixel_size_um:g} um",
        f"use an objective or binning with pixels of {low:.2g} to {high:.2g} um, best "
        f"{model.pixel_size_um:g} um, or correct the pixel size calibration in Micro-Manager",
    )


def _z_planes(model: Wanted, have: NDArray[np.float64]) -> tuple[tuple[float, ...], str] | Refuse:
    """Stage z of the planes to use, of rising ones, and what to say of them, empty if used as they are."""
    wanted = np.asarray(model.z_offsets_um)
    middle = (have[0] + have[-1]) / 2
    if len(wanted) == 1:
        only = f"only the middle of {len(have)} planes is used, the model knows no other" * (len(have) > 1)
        return (float(middle),), only
    step = float(np.diff(have).mean()) if len(have) > 1 else 0.0
    equidistant = f"acquire {len(wanted)} equidistant planes {model.z_step_um:.2g} um apart"
    if len(have) == len(wanted) and _within(step / model.z_step_um, _USE_Z_STEP_RATIO):
        return tuple(have.tolist()), ""
    bearable = "half the z range" in model.tolerates and len(have) == len(wanted)
    if bearable and 0.5 * (1 - SLACK) <= step / model.z_step_um < 1:
        note = f"planes {step:.2g} um apart were used as if {model.z_step_um:.2g} um, which this model was"
        return tuple(have.tolist()), f"{note} measured to bear: {_COST}"
    # Half a step of tolerance: a plane may be asked for just outside the first or last one.
    if (have[-1] - have[0] + step) / 2 < wanted[-1] * (1 - SLACK):
        got = f"{len(have)} plane{'s' * (len(have) != 1)} over {have[-1] - have[0]:.3g} um"
        needs = f"{len(wanted)} over {wanted[-1] - wanted[0]:.3g} um"
        return Refuse(f"the stack has {got}, the model needs {needs}", equidistant)
    if not _within(step / model.z_step_um, _Z_STEP_RATIO):
        coarse = f"the z step is {step:.2g} um, the model was trained at {model.z_step_um:.2g} um"
        return Refuse(coarse, equidistant)
    planes = np.clip(wanted + middle, have[0], have[-1])
    warning = (
        f"{len(have)} planes {step:.2g} um apart were resampled to the model's "
        f"{len(wanted)} planes {model.z_step_um:.2g} um apart"
    )
    return tuple(planes.tolist()), warning


def _spread(
    taken: AnyPlanes, count: int, have: NDArray[np.float64]
) -> tuple[tuple[float, ...], str] | Refuse:
    """As `_z_planes`, of a model that takes any: so many planes, from the first to the last of the stack."""
    span, most = have[-1] - have[0], taken.most_step_um
    widest = max(*np.diff(have), span / max(count - 1, 1), 0.0)
    if widest > most * (1 + SLACK):
        return Refuse(
            f"planes are up to {widest:.3g} um apart, the model was trained for {most:g} um at most",
            f"acquire planes at most {most:g} um apart over {most * (count - 1):g} um or less, or only one",
        )
    places = np.linspace(have[0], have[-1], count)
    if len(have) == 1 and count > 1:
        return tuple(places.tolist()), "a single plane was shown, the model looks at more where there are"
    if len(have) == count and np.abs(have - places).max() <= _EVENLY * span / max(count - 1, 1):
        return tuple(have.tolist()), ""
    return tuple(
        places.tolist()
    ), f"{len(have)} planes over {span:.3g} um were spread over the model's {count}"
