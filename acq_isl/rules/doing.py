"""Actions that image nothing: they set, move, wait, tell, or change what is left of the run. Pure."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from acq_isl.rules.actions import (
    FUNCTION,
    Action,
    ActionTools,
    Limits,
    Message,
    Need,
    NeedsAutofocus,
    NeedsFunction,
    NeedsOperator,
    NeedsPreset,
    NeedsProperty,
    Occasion,
    PlanChange,
    check_exposure,
    check_message,
    check_place,
    check_preset,
    check_property,
)
from acq_isl.stack import StackInfo


class SetPreset(Action):
    """Select a configuration preset before the next event."""

    kind: Literal["set_preset"] = "set_preset"
    group: str = Field(min_length=1)
    preset: str = Field(min_length=1)

    @property
    def title(self) -> str:
        return f"set {self.group} to {self.preset}"

    def needs(self) -> tuple[Need, ...]:
        return (NeedsPreset(self.group, self.preset),)

    def check(self, info: StackInfo, limits: Limits) -> None:
        check_preset(self.title, self.group, self.preset, limits)

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        tools.set_preset(self.group, self.preset)
        return "done"


class SetProperty(Action):
    """Set a device property that ``limits.properties`` lists, such as a valve or a lamp's power."""

    kind: Literal["set_property"] = "set_property"
    device: str = Field(min_length=1)
    name: str = Field(min_length=1)
    """Of the property."""
    value: str | float

    @property
    def title(self) -> str:
        return f"set {self.name} of {self.device} to {self._text}"

    @property
    def _text(self) -> str:
        return self.value if isinstance(self.value, str) else f"{self.value:g}"

    def needs(self) -> tuple[Need, ...]:
        return (NeedsProperty(self.device, self.name, self._text),)

    def check(self, info: StackInfo, limits: Limits) -> None:
        check_property(self.title, self.device, self.name, self._text, limits)

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        tools.set_property(self.device, self.name, self._text)
        return "done"


class Move(Action):
    """Move the stage, to a place or by a way from the field; the next stack moves it again."""

    kind: Literal["move"] = "move"
    to_um: tuple[float, float] | None = None
    """Stage x and y."""
    by_um: tuple[float, float] | None = None
    """From the middle of the field."""
    z_um: float | None = None
    """Stage z; as it is if not given."""

    @model_validator(mode="after")
    def _one_way(self) -> Move:
        if (self.to_um is None) == (self.by_um is None):
            raise ValueError("give either 'to_um' or 'by_um', not both and not neither")
        return self

    @property
    def title(self) -> str:
        x_um, y_um = self.to_um or self.by_um or (0.0, 0.0)
        height = "" if self.z_um is None else f", z {self.z_um:g} um"
        return f"move {'to' if self.to_um else 'by'} x {x_um:g} um, y {y_um:g} um{height}"

    def _place(self, info: StackInfo) -> tuple[float, float]:
        if self.to_um is not None:
            return self.to_um
        x_um, y_um = self.by_um or (0.0, 0.0)
        return info.x_um + x_um, info.y_um + y_um

    def check(self, info: StackInfo, limits: Limits) -> None:
        check_place(self.title, *self._place(info), () if self.z_um is None else (self.z_um,), limits)

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        tools.move(*self._place(occasion.prediction.info), self.z_um)
        return "done"


class FindFocus(Action):
    """Find the focus of this field with the autofocus device; its later stacks are imaged about it."""

    kind: Literal["autofocus"] = "autofocus"
    device: str = ""
    """Micro-Manager's autofocus device; the selected one if not given."""

    @property
    def title(self) -> str:
        return f"find the focus{f' with {self.device}' if self.device else ''}"

    def needs(self) -> tuple[Need, ...]:
        return (NeedsAutofocus(self.device),)

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        moved_um = tools.focus(occasion.field, self.device)
        return f"done: {moved_um:+.2f} um from the plan"


class Wait(Action):
    """Let time pass before the next stack."""

    kind: Literal["wait"] = "wait"
    seconds: float = Field(gt=0, le=86_400)

    @property
    def title(self) -> str:
        return f"wait {self.seconds:g} s"

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        tools.wait(self.seconds)
        return "done"


class PauseRun(Action):
    """Acquire nothing more until the operator goes on, in the page or the window."""

    kind: Literal["pause"] = "pause"

    @property
    def title(self) -> str:
        return "pause until the operator goes on"

    def needs(self) -> tuple[Need, ...]:
        return (NeedsOperator(),)

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        tools.pause(f"{occasion.decision.rule}: {occasion.decision.why}")
        return "done"


class StopRun(Action):
    """End the run in order: what was captured is predicted, kept and reported."""

    kind: Literal["stop"] = "stop"

    @property
    def title(self) -> str:
        return "stop the run"

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        tools.stop(f"stopped by the trigger {occasion.decision.rule!r}")
        return "done"


class ChangePlan(Action):
    """From the next stack on, image with another interval, exposure, or only some of the channels."""

    kind: Literal["change"] = "change"
    interval_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Between time points."""
    exposure_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Of the overview stacks."""
    channels: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Channels of the overview that are imaged from here on."""

    @model_validator(mode="after")
    def _something(self) -> ChangePlan:
        if self.interval_s is None and self.exposure_ms is None and self.channels is None:
            raise ValueError("give 'interval_s', 'exposure_ms' or 'channels'")
        return self

    @property
    def title(self) -> str:
        parts = [] if self.interval_s is None else [f"one time point every {self.interval_s:g} s"]
        parts += [] if self.exposure_ms is None else [f"{self.exposure_ms:g} ms exposure"]
        parts += [] if self.channels is None else [f"only {', '.join(self.channels)}"]
        return f"from here on {', '.join(parts)}"

    def check(self, info: StackInfo, limits: Limits) -> None:
        if self.exposure_ms is not None:
            check_exposure(self.title, self.exposure_ms, limits)

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        return tools.change(PlanChange(self.interval_s, self.exposure_ms, self.channels))


class Notify(Action):
    """Tell somebody: a line in the log, and a webhook or e-mail to those that ``limits.notify`` lists."""

    kind: Literal["notify"] = "notify"
    text: str = Field(default="", max_length=1000)
    """Said before what was found and where."""
    webhook: str = Field(default="", pattern=r"^(https?://.+)?$")
    """Gets the message as JSON, ``{"text": ...}``, by POST."""
    email: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"tell {', '.join(filter(None, ('the log', self.webhook, *self.email)))}"

    def check(self, info: StackInfo, limits: Limits) -> None:
        check_message(Message("", self.webhook, self.email), limits.notify)

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        decision = occasion.decision
        found = f"{decision.rule} at {decision.key}: {decision.why}"
        text = f"{self.text.rstrip('.')}. {found}" if self.text else found
        return tools.notify(Message(text, self.webhook, self.email))


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

    def needs(self) -> tuple[Need, ...]:
        return (NeedsFunction(self.function, self.arguments),)

    def carry_out(self, occasion: Occasion, tools: ActionTools) -> str:
        return tools.call(self.function)


ACTIONS: tuple[type[Action], ...] = (
    SetPreset,
    SetProperty,
    Move,
    FindFocus,
    Wait,
    PauseRun,
    StopRun,
    ChangePlan,
    Notify,
    Call,
)
