"""What may be done to the microscope on behalf of a rule, and within which limits. Pure."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from acq_isl.base import StrictModel
from acq_isl.errors import ActionRefused
from acq_isl.rules.light import LightLimits
from acq_isl.rules.measurements import Measured
from acq_isl.rules.objects import FoundObject
from acq_isl.rules.pixels import PixelToStage
from acq_isl.rules.plugins import PluginPoint
from acq_isl.stack import Prediction, StackInfo, StackKey, StackRequest

FUNCTION = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
Bounds = tuple[float, float]


class NotifyLimits(StrictModel):
    """Who may be told of a run; nobody else is."""

    hosts: tuple[str, ...] = ()
    """Hosts of webhooks, such as ``hooks.slack.com`` or ``localhost:8080``."""
    addresses: tuple[str, ...] = ()
    """Of e-mail."""
    smtp: str = ""
    """Server that takes e-mail, as ``host:port``."""
    sender: str = ""
    """Address that e-mail comes from."""


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
    properties: dict[str, Bounds | tuple[str, ...]] = Field(default_factory=dict)
    """Properties that actions may set, as ``Device.Property``: lowest and highest value, or all values."""
    light: LightLimits = LightLimits()
    """Budgets of light, and what a millisecond of it costs."""
    notify: NotifyLimits = NotifyLimits()
    """Hosts and addresses that actions may write to."""

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

    @property
    def pixel_to_stage(self) -> PixelToStage:
        """How pixels of the field lie on the stage; ActionRefused if nobody has measured it."""

    def set_preset(self, group: str, preset: str) -> None:
        """Select a configuration preset; ActionRefused if the limits do not allow it."""

    def set_property(self, device: str, name: str, value: str) -> None:
        """Set a device property; ActionRefused if it is not among the limits' properties."""

    def move(self, x_um: float, y_um: float, z_um: float | None) -> None:
        """Go to a place and wait until the stages are there; ActionRefused beyond the limits."""

    def acquire(self, request: StackRequest) -> None:
        """Image a stack, unless it was imaged before; ActionRefused beyond limits or budgets of light."""

    def focus(self, field: StackRequest, device: str) -> float:
        """Find the focus of a field, which is kept for its later stacks; how far above the plan, in um."""

    def wait(self, seconds: float) -> None:
        """Let time pass; the operator is listened to."""

    def pause(self, why: str) -> None:
        """Acquire nothing more until the operator goes on."""

    def stop(self, why: str) -> None:
        """End the run in order."""

    def change(self, change: PlanChange) -> str:
        """Change what is left of the plan; what that means, in words."""

    def notify(self, message: Message) -> str:
        """Tell somebody, on a thread of its own; what is on its way, in words."""

    def call(self, function: str) -> str:
        """Run the user's ``package.module:name`` with the decision; what became of it, in words."""


@dataclass(frozen=True, slots=True)
class PlanChange:
    """What is to be different from the next stack on; None is as it was."""

    interval_s: float | None = None
    exposure_ms: float | None = None
    channels: tuple[str, ...] | None = None
    """Presets of the overview that are imaged from here on, and no others."""


@dataclass(frozen=True, slots=True)
class Message:
    """What somebody is told; ``webhook`` is a URL, ``email`` holds addresses."""

    text: str
    webhook: str = ""
    email: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NeedsPreset:
    """A configuration preset that the microscope must have."""

    group: str
    preset: str


@dataclass(frozen=True, slots=True)
class NeedsProperty:
    """A device property that the microscope must have, and the value it shall get."""

    device: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class NeedsFunction:
    """A function of the user's, and what it is called with."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NeedsAutofocus:
    """An autofocus device; empty for the one that is selected."""

    device: str = ""


@dataclass(frozen=True, slots=True)
class NeedsPixelToStage:
    """Where pixels lie on the stage."""


@dataclass(frozen=True, slots=True)
class NeedsOperator:
    """Somebody who goes on with the run."""


Need = NeedsOperator | NeedsPreset | NeedsProperty | NeedsFunction | NeedsAutofocus | NeedsPixelToStage


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
        from acq_isl.rules import doing, imaging  # which derive from this class

        return (*imaging.ACTIONS, *doing.ACTIONS)

    @property
    @abstractmethod
    def title(self) -> str:
        """What it does, for people, such as ``set Channel to DAPI``."""

    def check(self, info: StackInfo, limits: Limits) -> None:
        """ActionRefused if it would leave the limits; ``info`` is the stack that triggered it.

        Nothing is done before this has passed. `ActionTools` checks every single step as well.
        """

    def needs(self) -> tuple[Need, ...]:
        """What must be there; looked for before anything moves."""
        return ()

    @abstractmethod
    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        """Do it, between two stacks; returns what became of it, such as ``done``. May raise AcqIslError."""


def check_request(request: StackRequest, limits: Limits) -> None:
    """ActionRefused if a stack would leave the limits; says which, what was asked for, and what to change."""
    what = f"acquire {request.key}"
    check_preset(what, request.group, request.preset, limits)
    check_exposure(what, request.exposure_ms, limits)
    check_place(what, request.x_um, request.y_um, request.z_um, limits)


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


def check_exposure(what: str, exposure_ms: float, limits: Limits) -> None:
    if limits.exposure_ms is not None and not exposure_ms <= limits.exposure_ms:
        raise ActionRefused(
            f"not done: {what}",
            wanted=f"at most {limits.exposure_ms:g} ms exposure",
            got=f"{exposure_ms:g} ms",
            fix="shorten the exposure, or raise limits.exposure_ms in the experiment",
        )


def check_place(what: str, x_um: float, y_um: float, z_um: Sequence[float], limits: Limits) -> None:
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


def check_property(what: str, device: str, name: str, value: str, limits: Limits) -> None:
    """ActionRefused if a property may not be set to a value; only what is listed may."""
    entry = f"{device}.{name}"
    allowed = limits.properties.get(entry)
    if allowed is None:
        raise ActionRefused(
            f"not done: {what}",
            wanted=f"one of the properties {', '.join(limits.properties) or '(none is listed)'}",
            got=entry,
            fix=f"add {entry} to limits.properties in the experiment if it is safe",
        )
    if isinstance(allowed[0], str):
        within = value in allowed
    else:
        within = _is_number(value) and allowed[0] <= float(value) <= allowed[1]
    if not within:
        told = (
            ", ".join(map(str, allowed)) if isinstance(allowed[0], str) else f"{allowed[0]} to {allowed[1]}"
        )
        fix = f"correct the value, or limits.properties.{entry} if it is safe"
        raise ActionRefused(f"not done: {what}", wanted=f"{entry}: {told}", got=value, fix=fix)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def check_message(message: Message, limits: NotifyLimits) -> None:
    """ActionRefused if somebody is to be told who is not listed, or cannot be."""
    host = urlsplit(message.webhook).netloc
    strangers = [host] if message.webhook and host not in limits.hosts else []
    strangers += [address for address in message.email if address not in limits.addresses]
    if strangers:
        raise ActionRefused(
            "nobody is told",
            wanted=f"one of {', '.join((*limits.hosts, *limits.addresses)) or 'nobody: none is listed'}",
            got=", ".join(strangers),
            fix="add them to limits.notify (hosts, addresses) if they may know of the run",
        )
    if message.email and not (limits.smtp and limits.sender):
        raise ActionRefused("e-mail cannot be sent", fix="give limits.notify smtp (host:port) and sender")
