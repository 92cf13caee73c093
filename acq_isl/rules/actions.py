"""What may be done to the microscope on behalf of a rule, and within which limits. Pure."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

from pydantic import Field, model_validator

from acq_isl.base import StrictModel
from acq_isl.errors import ActionRefused
from acq_isl.rules.measurements import Measured
from acq_isl.rules.objects import FoundObject
from acq_isl.rules.plugins import PluginPoint
from acq_isl.stack import Prediction, StackInfo, StackKey, StackRequest

FUNCTION = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
Bounds = tuple[float, float]


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

    @property
    def stage(self) -> dict[str, Bounds]:
        """Stage range by axis, ``x``, ``y`` and ``z``, in micrometres, where one is given."""
        given = {"x": self.x_um, "y": self.y_um, "z": self.z_um}
        return {axis: bounds for axis, bounds in given.items() if bounds is not None}

    @model_validator(mode="after")
    def _ordered(self) -> Limits:
        for axis, (low, high) in self.stage.items():
            if not low <= high:
                raise ValueError(f"{axis}_um: the lowest value comes first, got {low:g} and {high:g}")
        return self


class ActionTools(Protocol):
    """What an action may ask of the microscope; every call is held to the limits of the experiment."""

    def set_preset(self, group: str, preset: str) -> None:
        """Select a configuration preset; ActionRefused if the limits do not allow it."""

    def acquire(self, request: StackRequest) -> None:
        """Image a stack, unless it was imaged before; ActionRefused if the limits do not allow it."""

    def call(self, function: str) -> str:
        """Run the user's ``package.module:name`` with the decision; what became of it, in words."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a trigger made of one field."""

    key: StackKey
    rule: str
    """Name of the trigger."""
    what: str
    """For people; ``"nothing"`` if the trigger does not fire, and ``action`` is None."""
    why: str
    value: float
    """In the unit of the measurement; NaN without a prediction."""
    threshold: float
    action: Action | None
    measured: tuple[Measured, ...] = ()
    """Of each threshold of its condition that had a number, in the order in which they are written."""
    objects: tuple[FoundObject, ...] = ()
    """Those that a trigger per object acts on, the highest value of its first threshold first."""


@dataclass(frozen=True, slots=True, eq=False)
class Occasion:
    """Why and where an action is carried out: the overview stack, its prediction, and the decision on it."""

    field: StackRequest
    prediction: Prediction
    decision: Decision


class Action(PluginPoint):
    """Plug-in point: something to do on the microscope when a trigger fires.

    A kind of your own derives from this class and is an entry point in ``acq_isl.actions``.
    """

    plugin_group: ClassVar[str] = "acq_isl.actions"

    @classmethod
    def built_in(cls) -> tuple[type[Action], ...]:
        return SetPreset, ImageField, Call

    @property
    @abstractmethod
    def title(self) -> str:
        """What it does, for people, such as ``set Channel to DAPI``."""

    def check(self, info: StackInfo, limits: Limits) -> None:
        """ActionRefused if it would leave the limits; ``info`` is the stack that triggered it.

        Nothing is done before this has passed. `ActionTools` checks every single step as well.
        """

    @abstractmethod
    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        """Do it, between two stacks; returns what became of it, such as ``done``. May raise AcqIslError."""


class SetPreset(Action):
    """Select a configuration preset before the next event."""

    kind: Literal["set_preset"] = "set_preset"
    group: str = Field(min_length=1)
    preset: str = Field(min_length=1)

    @property
    def title(self) -> str:
        return f"set {self.group} to {self.preset}"

    def check(self, info: StackInfo, limits: Limits) -> None:
        check_preset(self.title, self.group, self.preset, limits)

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        tools.set_preset(self.group, self.preset)
        return "done"


class ImageField(Action):
    """Image this field in fluorescence now, before the next event."""

    kind: Literal["image"] = "image"
    channels: tuple[str, ...] = Field(min_length=1)
    """Presets, imaged in this order."""
    exposure_ms: float = Field(gt=0, allow_inf_nan=False)
    z_offsets_um: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    """Planes relative to the middle of the stack that triggered, in micrometres."""
    group: str = Field(default="Channel", min_length=1)
    """Micro-Manager configuration group of the presets."""

    @property
    def title(self) -> str:
        planes = f", {len(self.z_offsets_um)} planes" if len(self.z_offsets_um) > 1 else ""
        return f"image this field in {', '.join(self.channels)} ({self.exposure_ms:g} ms{planes})"

    def check(self, info: StackInfo, limits: Limits) -> None:
        for channel in self.channels:
            check_preset(self.title, self.group, channel, limits)
        _check_exposure(self.title, self.exposure_ms, limits)
        _check_place(self.title, info.x_um, info.y_um, self._z_um(info.z_um), limits)

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        field = occasion.field
        z_um, light = self._z_um(field.z_um), self.exposure_ms
        stack = replace(field, z_um=z_um, group=self.group, exposure_ms=light, predict=False)
        stack = replace(stack, modality="fluorescence", polarity="unknown")
        for channel in self.channels:
            tools.acquire(replace(stack, key=replace(field.key, channel=channel), preset=channel))
        return "done"

    def _z_um(self, stack_z_um: Sequence[float]) -> tuple[float, ...]:
        middle = (min(stack_z_um) + max(stack_z_um)) / 2
        return tuple(middle + offset for offset in self.z_offsets_um)


class Call(Action):
    """Run a function of the user's, ``def act(decision, prediction)``: a `Decision` and a `Prediction`.

    It is looked for beside the experiment file, then among installed packages. What it returns, if anything,
    is written down as what became of the decision.
    """

    arguments: ClassVar[tuple[str, ...]] = ("decision", "prediction")
    kind: Literal["call"] = "call"
    function: str = Field(pattern=FUNCTION)
    """``package.module:name``."""

    @property
    def title(self) -> str:
        return f"call {self.function}"

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        return tools.call(self.function)


def check_request(request: StackRequest, limits: Limits) -> None:
    """ActionRefused if a stack would leave the limits; says which, what was asked for, and what to change."""
    what = f"acquire {request.key}"
    check_preset(what, request.group, request.preset, limits)
    _check_exposure(what, request.exposure_ms, limits)
    _check_place(what, request.x_um, request.y_um, request.z_um, limits)


def check_preset(what: str, group: str, preset: str, limits: Limits) -> None:
    """ActionRefused if a preset is not among those that the limits allow; ``what`` wants it, for people."""
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
    places = {"x": (x_um,), "y": (y_um,), "z": tuple(z_um)}
    for axis, (low, high) in limits.stage.items():
        for value in places[axis]:
            if not low <= value <= high:
                raise ActionRefused(
                    f"not done: {what}",
                    wanted=f"{axis} from {low:g} to {high:g} um",
                    got=f"{value:g} um",
                    fix=f"move the field, or widen limits.{axis}_um in the experiment if the stage is free",
                )
