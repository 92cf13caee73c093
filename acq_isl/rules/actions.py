"""What may be done to the microscope on behalf of a rule, and within which limits. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from acq_isl.base import StrictModel
from acq_isl.errors import ActionRefused
from acq_isl.stack import StackInfo, StackRequest

_FUNCTION = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
Bounds = tuple[float, float]


class SetPreset(StrictModel):
    """Select a configuration preset before the next event."""

    kind: Literal["set_preset"] = "set_preset"
    group: str = Field(min_length=1)
    preset: str = Field(min_length=1)


class ImageField(StrictModel):
    """Image this field in fluorescence now, before the next event."""

    kind: Literal["image"] = "image"
    channels: tuple[str, ...] = Field(min_length=1)
    """Presets, imaged in this order."""
    exposure_ms: float = Field(gt=0, allow_inf_nan=False)
    z_offsets_um: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    """Planes relative to the middle of the stack that triggered, in micrometres."""
    group: str = Field(default="Channel", min_length=1)
    """Micro-Manager configuration group of the presets."""


class Call(StrictModel):
    """Run a function of the user's; it is given the `Decision`."""

    kind: Literal["call"] = "call"
    function: str = Field(pattern=_FUNCTION)
    """``package.module:name``."""


Action = Annotated[SetPreset | ImageField | Call, Field(discriminator="kind")]


class Limits(StrictModel):
    """What an experiment may do. Whatever is not given is left to the microscope's own limits."""

    x_um: Bounds | None = None
    y_um: Bounds | None = None
    z_um: Bounds | None = None
    """Stage range, lowest and highest, in micrometres."""
    exposure_ms: float | None = Field(default=None, gt=0)
    """Longest exposure of one slice, in milliseconds."""
    presets: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Allowed presets by configuration group; groups that are not listed are not restricted."""

    @model_validator(mode="after")
    def _ordered(self) -> Limits:
        for axis in ("x_um", "y_um", "z_um"):
            bounds = getattr(self, axis)
            if bounds is not None and not bounds[0] <= bounds[1]:
                raise ValueError(f"{axis}: the lowest value comes first, got {bounds[0]:g} and {bounds[1]:g}")
        return self


def describe(action: Action) -> str:
    """An action, for people."""
    match action:
        case SetPreset(group=group, preset=preset):
            return f"set {group} to {preset}"
        case ImageField(channels=channels, exposure_ms=exposure, z_offsets_um=z):
            planes = f", {len(z)} planes" if len(z) > 1 else ""
            return f"image this field in {', '.join(channels)} ({exposure:g} ms{planes})"
        case Call(function=function):
            return f"call {function}"


def check_action(action: Action, info: StackInfo, limits: Limits) -> None:
    """Refuse an action that would leave the limits; ``info`` is the stack that triggered it.

    Raises
    ------
    ActionRefused
        With the limit, what was asked for, and what to change.
    """
    what = describe(action)
    match action:
        case SetPreset(group=group, preset=preset):
            _check_preset(what, group, preset, limits)
        case ImageField(channels=channels, exposure_ms=exposure, z_offsets_um=offsets, group=group):
            for channel in channels:
                _check_preset(what, group, channel, limits)
            _check_exposure(what, exposure, limits)
            middle = (min(info.z_um) + max(info.z_um)) / 2
            _check_place(what, info.x_um, info.y_um, [middle + offset for offset in offsets], limits)
        case Call():
            pass  # the function is the user's own; what it asks of the microscope is checked there


def check_request(request: StackRequest, limits: Limits) -> None:
    """Refuse a stack that would leave the limits; as `check_action`."""
    what = f"acquire {request.key}"
    _check_preset(what, request.group, request.preset, limits)
    _check_exposure(what, request.exposure_ms, limits)
    _check_place(what, request.x_um, request.y_um, request.z_um, limits)


def _check_preset(what: str, group: str, preset: str, limits: Limits) -> None:
    allowed = limits.presets.get(group)
    if allowed is not None and preset not in allowed:
        raise ActionRefused(
            f"not done: {what}",
            wanted=f"{group} one of {', '.join(allowed) or 'nothing'}",
            got=preset,
            fix=f"add {preset} to limits.presets.{group} in the experiment if it is safe",
        )


def _check_exposure(what: str, exposure_ms: float, limits: Limits) -> None:
    if limits.exposure_ms is not None and not exposure_ms <= limits.exposure_ms:
        raise ActionRefused(
            f"not done: {what}",
            wanted=f"at most {limits.exposure_ms:g} ms exposure",
            got=f"{exposure_ms:g} ms",
            fix="shorten the exposure, or raise limits.exposure_ms in the experiment",
        )


def _check_place(what: str, x_um: float, y_um: float, z_um: Sequence[float], limits: Limits) -> None:
    places = (("x", (x_um,), limits.x_um), ("y", (y_um,), limits.y_um), ("z", tuple(z_um), limits.z_um))
    for axis, values, bounds in places:
        for value in values:
            if bounds is not None and not bounds[0] <= value <= bounds[1]:
                raise ActionRefused(
                    f"not done: {what}",
                    wanted=f"{axis} from {bounds[0]:g} to {bounds[1]:g} um",
                    got=f"{value:g} um",
                    fix=f"move the field, or widen limits.{axis}_um in the experiment if the stage is free",
                )
