"""What a model expects and gives, and whether a stack is fit for it.

The manifest is JSON, kept inside the model file (ONNX ``metadata_props``), so that a bare model file
is enough to run, to check, and to refuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from acq_isl.errors import ModelError
from acq_isl.stack import Modality, Polarity, StackInfo

MANIFEST_KEY = "acq_isl_manifest"
FORMAT = "acq-isl-model/1"

# Ratios of the stack's pixel size to the model's; from the mismatch measurements in docs/design.md.
_USE_RATIO = (0.9, 1.1)
_RESAMPLE_RATIO = (0.6, 1.6)
_Z_STEP_RATIO = (0.5, 2.0)
_USE_Z_STEP_RATIO = (0.8, 1.25)
# Stages report what they reached, not what was asked for; a bound that was met on paper stays met.
_SLACK = 0.005

_Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Label(_Strict):
    """One predicted structure."""

    name: _Name
    """Bare name, such as ``nuclei``."""
    marker: str
    """The stain the truth of training stands for, such as ``DAPI``."""
    color: str = Field(default="#ffffff", pattern=r"^#[0-9a-fA-F]{6}$")
    """Display hue as ``#rrggbb``, colour-blind safe within one model."""


class Manifest(_Strict):
    """What must be true of a stack, and what comes out.

    The input is one channel, ``planes`` slices in the order of increasing ``z_offsets_um``.
    """

    format: Literal["acq-isl-model/1"] = "acq-isl-model/1"
    name: _Name
    version: str
    licence: str
    description: str
    modality: Modality
    polarity: Polarity
    """Whether dense matter looks dark or bright in focus."""
    pixel_size_um: float = Field(gt=0)
    z_offsets_um: tuple[float, ...] = Field(min_length=1)
    """Planes relative to the middle of the stack, in micrometres of stage travel, strictly increasing.

    The middle is halfway between the first and the last plane, so the offsets are symmetric about 0.
    """
    high_pass_um: float = Field(ge=0)
    """Sigma of the Gaussian background that is removed, in micrometres of specimen."""
    labels: tuple[Label, ...] = Field(min_length=1)
    min_tile_px: int = Field(gt=0)
    margin_px: int | None = Field(default=None, ge=0)
    """Pixels at a field's border that what lies outside changes by more than 1 % RMS; None: the halo."""
    halo_px: int = Field(ge=0)
    """Pixels at a tile border whose prediction depends on what is outside of the tile."""
    size_step_px: int = Field(gt=0)
    """Tile sides must be multiples of this."""
    spread_scale: tuple[float, ...] = ()
    """Per label, factor fitted on held-out pixels that turns the network's spread into one SD.

    For the record: the exported graph has applied it already.
    """
    trained_on: str
    metrics: dict[str, float] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        z, names = np.asarray(self.z_offsets_um), self.label_names
        if np.any(np.diff(z) <= 0):
            raise ValueError("z_offsets_um must rise from plane to plane")
        if abs(z[0] + z[-1]) > max(_SLACK * self.z_step_um, 1e-6):
            raise ValueError("z_offsets_um must be symmetric about 0, the middle of the stack")
        if len(set(names)) < len(names):
            raise ValueError(f"label names must differ: {', '.join(names)}")
        if self.spread_scale and len(self.spread_scale) != len(names):
            raise ValueError(f"spread_scale has {len(self.spread_scale)} values for {len(names)} labels")
        return self

    @property
    def planes(self) -> int:
        return len(self.z_offsets_um)

    @property
    def z_step_um(self) -> float:
        """Mean distance of neighbouring planes in micrometres, 0 for a single plane."""
        z = self.z_offsets_um
        return (z[-1] - z[0]) / (len(z) - 1) if len(z) > 1 else 0.0

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read the JSON form; ModelError names the first thing that is wrong."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ModelError(
                f"the model's manifest cannot be used: {where}: {first['msg']}",
                wanted=f"a manifest of format {FORMAT}",
                fix="export the model again with this version of acq-isl, or update acq-isl",
            ) from error


@dataclass(frozen=True, slots=True)
class Use:
    """The stack fits as it is; ``notes`` are things nobody could check."""

    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resample:
    """The stack fits after resampling.

    Parameters
    ----------
    xy_scale : float
        Factor on rows and columns (2 means twice as many pixels).
    z_um : tuple of float
        Stage z of the planes to interpolate, in micrometres.
    warnings : tuple of str
        What was changed, and what nobody could check.
    """

    xy_scale: float
    z_um: tuple[float, ...]
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

    Parameters
    ----------
    manifest : Manifest
    info : StackInfo

    Returns
    -------
    Use, Resample or Refuse
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
    notes = []
    if "unknown" in (info.modality, manifest.modality):
        notes.append("the kind of transmitted light was not stated, so it was not checked")
    if "unknown" in (info.polarity, manifest.polarity):
        notes.append("the contrast polarity was not stated, so it was not checked")
    return tuple(notes)


def _within(ratio: float, bounds: tuple[float, float]) -> bool:
    low, high = bounds
    return low * (1 - _SLACK) <= ratio <= high * (1 + _SLACK)


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
    if (have[-1] - have[0] + step) / 2 < wanted[-1] * (1 - _SLACK):
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
