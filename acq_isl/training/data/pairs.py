"""Training pairs as they were recorded, and what is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from acq_isl.base import StrictModel
from acq_isl.errors import PairRefused
from acq_isl.manifest import AnyPlanes, Tolerated
from acq_isl.processing.normalize import contrast_sd
from acq_isl.readers.recording import require_finite
from acq_isl.stack import Modality, Polarity, Uint16Image
from acq_isl.training.data.registration import find_shift_in

Truth = NDArray[Any]

_LEAST_SD = 0.5
_NOTHING_COMMON = 4.5
_ALIKE_HERE = 3.0  # where a pair is expected to agree there are fewer chances to agree by chance
_LARGE_PX = 400


@dataclass(frozen=True, slots=True)
class Nominal:
    """What the model is trained for; simulated fields vary around it on purpose."""

    planes: int
    pixel_size_um: float
    z_step_um: float
    modality: Modality = "unknown"
    polarity: Polarity = "unknown"
    tolerates: frozenset[Tolerated] = frozenset()
    any_planes: AnyPlanes | None = None

    @property
    def z_offsets_um(self) -> tuple[float, ...]:
        """Height of each plane above the middle one, in micrometres."""
        return tuple(self.z_step_um * (plane - (self.planes - 1) / 2) for plane in range(self.planes))


class Checks(StrictModel):
    """When a pair is worth a warning, and when it is refused."""

    shift_warn_um: float = Field(default=2.0, gt=0)
    """Shift between a label and the structure seen in the stack, where the two agree well enough to tell."""
    shift_refuse_um: float = Field(default=6.0, gt=0)
    saturated_warn: float = Field(default=0.01, ge=0, le=1)
    """Share of pixels at the top of the range."""
    saturated_refuse: float = Field(default=0.2, ge=0, le=1)
    register_labels: bool = False
    """Move labels that are surely shifted to where the structure is."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """One field of view: a (z, y, x) stack at rising ``z_um``, and a (y, x) image of each label recorded.
    ``truth_range`` is what in the labels stands for 0 and 1; None: unknown, the training set decides.
    ``valid`` says, (y, x), where a label can be trusted that cannot be everywhere."""

    stack: Uint16Image
    labels: Mapping[str, Truth]
    pixel_size_um: float
    z_um: tuple[float, ...]
    truth_range: tuple[float, float] | None = None
    valid: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)

    def columns(self, first: int, stop: int) -> Recording:
        """Only the columns ``first`` to ``stop``."""
        return replace(
            self,
            stack=self.stack[:, :, first:stop],
            labels={name: image[:, first:stop] for name, image in self.labels.items()},
            valid={name: image[:, first:stop] for name, image in self.valid.items()},
        )

    @property
    def z_step_um(self) -> float:
        """Mean distance of the planes; 0 for a single one."""
        return (self.z_um[-1] - self.z_um[0]) / max(len(self.z_um) - 1, 1)

    @property
    def digest(self) -> str:
        """SHA-256 of the stack's pixels: the same for a copy under another name or compression."""
        content = hashlib.sha256(str(self.stack.shape).encode())
        content.update(np.ascontiguousarray(self.stack).tobytes())
        return content.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A field that can be read."""

    name: str
    """Different from all others: plate, well and field."""
    well: str | None
    """Plate and well; None if nobody knows."""
    stamp: str
    """Changes when the files change."""
    load: Callable[[], Recording]
    simulated: bool = False
    live: bool = False
    """In the light of the simulated microscope itself."""
    labels: tuple[str, ...] = ()
    """Labels there may be."""
    plate: str = ""
    field: str = ""
    """What other time points of the same place share; empty: the name."""

    @property
    def place(self) -> str:
        """The field of view, whenever it was recorded."""
        return self.field or self.name


def examine(recording: Recording, name: str, checks: Checks) -> list[str]:
    """Warnings about a pair; `PairRefused` if sizes differ, it is constant, saturated or shifted too far."""
    stack = recording.stack
    if stack.ndim != 3 or 0 in stack.shape:
        raise PairRefused(f"{name}: the stack has the wrong shape", wanted="(z, y, x)", got=str(stack.shape))
    for label, image in recording.labels.items():
        if image.shape != stack.shape[1:]:
            raise PairRefused(
                f"{name}: {label} and the stack do not have the same size",
                wanted=f"{stack.shape[1]} x {stack.shape[2]} pixels",
                got=" x ".join(map(str, image.shape)),
                fix="register and crop them to the same field",
            )
        require_finite(image, f"{name}: {label}")
        # A camera's image is never constant; a truth that is known may be, where there is no cell.
        if recording.truth_range is None and image.min() == image.max():
            raise _constant(f"{name}: {label}")
    if contrast_sd(stack, 0) < _LEAST_SD:
        raise _constant(f"{name}: the stack")
    for z, plane in enumerate(stack):  # what a copy that broke off leaves of a file
        if plane.min() == plane.max():
            raise _constant(f"{name}: plane {z} of the stack")
    warnings = _saturated(f"{name}: the stack", stack, checks)
    for label, image in recording.labels.items():
        if recording.truth_range is None:
            warnings += _saturated(f"{name}: {label}", image, checks)
    if recording.truth_range is None:
        warnings += _registered(recording, name, checks)
    return warnings


def _constant(what: str) -> PairRefused:
    return PairRefused(
        f"{what} is constant: nothing can be learned from it",
        fix="check shutter, exposure and channel, or leave this field out",
    )


def _saturated(what: str, image: NDArray[Any], checks: Checks) -> list[str]:
    """Pixels at the largest value found: cameras of 12 bits saturate at 4095."""
    share = float(np.mean(image == image.max())) if image.dtype.kind in "iu" else 0.0
    if share > checks.saturated_refuse:
        raise PairRefused(
            f"{what} is saturated",
            wanted=f"at most {checks.saturated_refuse:.0%} of the pixels at the brightest value",
            got=f"{share:.0%}",
            fix="record with less light or gain, or raise checks.saturated_refuse",
        )
    if share > checks.saturated_warn:
        return [f"{what} is partly saturated: {share:.1%} of its pixels have the brightest value"]
    return []


def _registered(recording: Recording, name: str, checks: Checks) -> list[str]:
    if min(recording.stack.shape[1:]) < 64:
        return []
    found = {label: find_shift_in(recording.stack, image) for label, image in recording.labels.items()}
    warnings = []
    for label, shift in found.items():
        shift_um = shift.length_px * recording.pixel_size_um
        if not shift.is_worth_moving(recording.pixel_size_um, checks.shift_warn_um):
            continue
        text = f"{shift_um:.1f} um ({shift.shift_px[0]} rows, {shift.shift_px[1]} columns)"
        if shift_um > checks.shift_refuse_um:
            raise PairRefused(
                f"{name}: {label} and the stack are not registered",
                wanted=f"a shift of at most {checks.shift_refuse_um:g} um",
                got=text,
                fix="use --register, or raise checks.shift_refuse_um if you know better",
            )
        warnings.append(f"{name}: {label} seems to be shifted against the stack by {text}; see --register")
    large = min(recording.stack.shape[1:]) >= _LARGE_PX
    alike = any(shift.peak >= _NOTHING_COMMON or shift.here >= _ALIKE_HERE for shift in found.values())
    if found and large and not alike:
        warnings.append(
            f"{name}: no label resembles anything in the stack; check that they show the same field"
        )
    return warnings
