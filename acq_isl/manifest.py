"""What a model expects and gives, and whether a stack is fit for it.

The manifest is JSON, kept inside the model file (ONNX ``metadata_props``), so that a bare model file
is enough to run, to check, and to refuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acq_isl.errors import ModelError
from acq_isl.stack import Modality, Polarity, StackInfo

MANIFEST_KEY = "acq_isl_manifest"
FORMAT = "acq-isl-model/1"

# Ratios of the stack's pixel size to the model's; from the mismatch measurements in docs/design.md.
_USE_RATIO = 1.1
_RESAMPLE_RATIO = 1.6
_Z_STEP_RATIO = 2.0
_USE_Z_STEP_RATIO = 1.25


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Label(_Strict):
    """One predicted structure."""

    name: str
    """Bare name, such as ``nuclei``."""
    marker: str
    """The stain the truth of training stands for, such as ``DAPI``."""
    color: str = "#ffffff"
    """Display hue as ``#rrggbb``, colour-blind safe within one model."""


class Manifest(_Strict):
    """What must be true of a stack, and what comes out.

    The input is one channel, ``planes`` slices in the order of increasing ``z_offsets_um``.
    """

    format: Literal["acq-isl-model/1"] = "acq-isl-model/1"
    name: str
    version: str
    licence: str
    description: str
    modality: Modality
    polarity: Polarity
    """Whether dense matter looks dark or bright in focus."""
    pixel_size_um: float = Field(gt=0)
    z_offsets_um: tuple[float, ...] = Field(min_length=1)
    """Planes relative to the middle of the stack, in micrometres of stage travel, strictly increasing."""
    high_pass_um: float = Field(ge=0)
    """Sigma of the Gaussian background that is removed, in micrometres of specimen."""
    labels: tuple[Label, ...] = Field(min_length=1)
    min_tile_px: int = Field(gt=0)
    halo_px: int = Field(ge=0)
    """Pixels at a tile border whose prediction depends on what is outside of the tile."""
    size_step_px: int = Field(gt=0)
    """Tile sides must be multiples of this."""
    spread_scale: tuple[float, ...] = ()
    """Per label, factor fitted on held-out pixels that turns the network's spread into one SD."""
    trained_on: str
    metrics: dict[str, float] = {}

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

    Tolerances: pixel size ratio .9-1.1 use, .6-1.6 resample, else refuse; z step within a factor 2
    resample, else refuse; reversed order, missing planes, other modality or polarity refuse.
    """
    optics = _check_optics(manifest, info) or _check_order(info)
    if optics is not None:
        return optics
    scale, refusal = _xy_scale(manifest, info)
    if refusal is not None:
        return refusal
    z_um, z_warning, refusal = _z_planes(manifest, info)
    if refusal is not None:
        return refusal
    warnings = []
    if scale != 1.0:
        warnings.append(
            f"pixel size {info.pixel_size_um:g} um was resampled to the model's {manifest.pixel_size_um:g} um"
        )
    if z_warning:
        warnings.append(z_warning)
    if warnings:
        return Resample(scale, z_um, tuple(warnings))
    return Use(_unchecked(info))


def _unchecked(info: StackInfo) -> tuple[str, ...]:
    notes = []
    if info.modality == "unknown":
        notes.append("the kind of transmitted light was not stated, so it was not checked")
    if info.polarity == "unknown":
        notes.append("the contrast polarity was not stated, so it was not checked")
    return tuple(notes)


def _check_optics(manifest: Manifest, info: StackInfo) -> Refuse | None:
    if info.modality not in ("unknown", manifest.modality):
        return Refuse(
            f"the stack is {info.modality}, the model was trained on {manifest.modality}",
            f"acquire {manifest.modality}, or choose a model for {info.modality}",
        )
    if "unknown" not in (info.polarity, manifest.polarity) and info.polarity != manifest.polarity:
        return Refuse(
            f"contrast is inverted: dense matter is {info.polarity} here, {manifest.polarity} in training",
            f"use the optics with {manifest.polarity} contrast, or a model trained on {info.polarity} contrast",
        )
    if not np.isfinite(info.pixel_size_um) or info.pixel_size_um <= 0:
        return Refuse(
            f"the pixel size is not known (it reads {info.pixel_size_um:g} um)",
            "set the pixel size calibration in Micro-Manager for this objective and binning",
        )
    return None


def _check_order(info: StackInfo) -> Refuse | None:
    steps = np.diff(np.asarray(info.z_um, dtype=float))
    if steps.size and bool(np.all(steps < 0)):
        return Refuse(
            "the planes are in reversed order: z falls from slice to slice",
            "acquire the stack from low to high z (go_up: true)",
        )
    if steps.size and bool(np.any(steps <= 0)):
        return Refuse(
            "the planes are not in order: z must rise from slice to slice",
            "acquire each plane once, from low to high z",
        )
    return None


def _xy_scale(manifest: Manifest, info: StackInfo) -> tuple[float, Refuse | None]:
    ratio = info.pixel_size_um / manifest.pixel_size_um
    if 1 / _USE_RATIO <= ratio <= _USE_RATIO:
        return 1.0, None
    if 1 / _RESAMPLE_RATIO <= ratio <= _RESAMPLE_RATIO:
        return ratio, None
    return ratio, Refuse(
        f"pixels are {info.pixel_size_um:g} um, the model was trained at {manifest.pixel_size_um:g} um",
        "use the objective or binning whose pixel size is within a factor 1.6 of the model's "
        f"({manifest.pixel_size_um / _RESAMPLE_RATIO:.2g} to {manifest.pixel_size_um * _RESAMPLE_RATIO:.2g} um)",
    )


def _z_planes(manifest: Manifest, info: StackInfo) -> tuple[tuple[float, ...], str, Refuse | None]:
    wanted = np.asarray(manifest.z_offsets_um, dtype=float)
    have = np.asarray(info.z_um, dtype=float)
    middle = (have[0] + have[-1]) / 2
    if len(wanted) == 1 and len(have) == 1:
        return tuple(have), "", None
    if len(have) == 1 or len(wanted) == 1:
        return (), "", _refuse_planes(manifest, info)
    steps = np.diff(have)
    if steps.max() > 1.5 * steps.min():
        return (), "", Refuse(
            f"planes are missing: z steps vary from {steps.min():.2g} to {steps.max():.2g} um",
            "acquire equidistant planes",
        )
    ratio = float(steps.mean() / manifest.z_step_um)
    if len(have) == len(wanted) and 1 / _USE_Z_STEP_RATIO <= ratio <= _USE_Z_STEP_RATIO:
        return tuple(have), "", None
    # Half a step of tolerance: a plane may be asked for just outside the first or last one.
    reach = (wanted[-1] - wanted[0]) / 2
    if (have[-1] - have[0]) / 2 + steps.mean() / 2 < reach * 0.98:
        return (), "", _refuse_planes(manifest, info)
    if not 1 / _Z_STEP_RATIO <= ratio <= _Z_STEP_RATIO:
        return (), "", Refuse(
            f"the z step is {steps.mean():.2g} um, the model was trained at {manifest.z_step_um:.2g} um",
            f"acquire {manifest.planes} planes {manifest.z_step_um:.2g} um apart",
        )
    planes = np.clip(wanted + middle, have[0], have[-1])
    warning = (
        f"{info.planes} planes {steps.mean():.2g} um apart were resampled to the model's "
        f"{manifest.planes} planes {manifest.z_step_um:.2g} um apart"
    )
    return tuple(float(z) for z in planes), warning, None


def _refuse_planes(manifest: Manifest, info: StackInfo) -> Refuse:
    span = info.z_um[-1] - info.z_um[0]
    wanted_span = manifest.z_offsets_um[-1] - manifest.z_offsets_um[0]
    return Refuse(
        f"the stack has {info.planes} plane{'s' * (info.planes != 1)} over {span:.3g} um, the model needs "
        f"{manifest.planes} over {wanted_span:.3g} um",
        f"acquire {manifest.planes} planes {manifest.z_step_um:.2g} um apart",
    )
