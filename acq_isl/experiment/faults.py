"""What can be made to go wrong on purpose in a simulated run, and when. Pure; `acq_isl.sim` does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from acq_isl.errors import ExperimentError, suggest

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
MANY = "+"  # between the numbers of a list in a fault's text, as in at=3+7
Axes = Literal["xy", "z", "xyz"]


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class _Planted:
    """When a fault acts: in exposures (of an engine: stacks), and in seconds of the specimen (the engine)."""

    after: Annotated[int, Field(ge=0)] = 0
    """How many pass before it sets in."""
    until: Annotated[int, Field(ge=0)] | None = None
    """After how many it is over. Default: never."""
    after_s: Annotated[float, Field(ge=0)] = 0.0
    until_s: Annotated[float, Field(ge=0)] | None = None

    def active(self, count: int, seconds: float) -> bool:
        """Whether it acts on exposure number ``count`` (from 0), ``seconds`` after the opening."""
        begun = count >= self.after and seconds >= self.after_s
        over = (self.until is not None and count >= self.until) or (
            self.until_s is not None and seconds >= self.until_s
        )
        return begun and not over

    def __str__(self) -> str:
        """As it is written on the command line; `acq_isl.experiment.faults` reads it."""
        kind, words = "", []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "kind":
                kind = str(value)
            elif value != field.default:
                text = MANY.join(map(str, value)) if isinstance(value, tuple) else value
                words.append(f"{field.name}={text}")
        return f"{kind}:{','.join(words)}" if words else kind


@dataclass(frozen=True, slots=True, config=_CONFIG)
class FocusDrift(_Planted):
    """The specimen leaves the focus while the focus drive believes it stands still."""

    um_per_min: float
    """How fast the true focus runs ahead of the reported one, by the specimen's clock, with its sign."""
    kind: Literal["focus-drift"] = dataclasses.field(default="focus-drift", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class StageBacklash(_Planted):
    """After a change of direction the stage first takes up the play of its spindle."""

    um: Annotated[float, Field(gt=0)]
    """The play: how far the two positions lie apart that one reported position can mean."""
    axes: Axes = "xy"
    kind: Literal["stage-backlash"] = dataclasses.field(default="stage-backlash", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class SettleTime(_Planted):
    """The stage reports that it has arrived, and creeps on."""

    ms: Annotated[float, Field(gt=0)]
    """After which 95 % of the way that was left is done; the way left decays exponentially."""
    um: Annotated[float, Field(gt=0)] = 2.0
    """Way left on arrival; less after a shorter move."""
    axes: Axes = "xy"
    kind: Literal["settle-time"] = dataclasses.field(default="settle-time", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class LampFlicker(_Planted):
    """The lamp is a little brighter or darker in every exposure."""

    sd: Annotated[float, Field(gt=0)]
    """Standard deviation of the brightness from exposure to exposure, as a part of it."""
    kind: Literal["lamp-flicker"] = dataclasses.field(default="lamp-flicker", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class DroppedFrames(_Planted):
    """The camera exposes and delivers nothing: a single image fails, a sequence is one image short."""

    every: Annotated[int, Field(ge=1)] | None = None
    """One exposure in so many."""
    at: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """These exposures, counted from 0."""
    probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of each exposure, drawn from the seed."""
    kind: Literal["dropped-frames"] = dataclasses.field(default="dropped-frames", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class StuckShutter(_Planted):
    """The shutter stays as it is stuck, and reports what it was set to."""

    stuck: Literal["closed", "open"] = "closed"
    """Closed: no light in any image. Open: light also between exposures, which costs dose."""
    kind: Literal["stuck-shutter"] = dataclasses.field(default="stuck-shutter", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class PresetFails(_Planted):
    """A configuration preset cannot be set: the core raises, as for a device that does not answer."""

    name: Annotated[str, Field(min_length=1)]
    """Preset, in whatever group."""
    times: Annotated[int, Field(ge=1)] | None = None
    """How many attempts fail. Pycro-Manager tries six times. Default: all."""
    kind: Literal["preset-fails"] = dataclasses.field(default="preset-fails", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class HardwareTimeout(_Planted):
    """A device does not get ready: stage and wheel stay busy, a camera delivers no image."""

    device: Annotated[str, Field(min_length=1)]
    """Label of the device, such as ``XY``, ``Z``, ``Camera`` or ``Filter``."""
    times: Annotated[int, Field(ge=1)] | None = None
    """How many waits end in vain. Default: all."""
    wait_s: Annotated[float, Field(ge=0)] | None = None
    """Until the core gives up. Default: its own time-out, 5 s. A very long one is a device that hangs."""
    kind: Literal["hardware-timeout"] = dataclasses.field(default="hardware-timeout", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class BufferOverflow(_Planted):
    """The circular buffer of the core is full: the core says so instead of giving an image of a sequence."""

    times: Annotated[int, Field(ge=1)] | None = None
    """How often. Pycro-Manager stops the first time. Default: always."""
    kind: Literal["buffer-overflow"] = dataclasses.field(default="buffer-overflow", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class FocusFails(_Planted):
    """The autofocus device finds no focus."""

    times: Annotated[int, Field(ge=1)] | None = None
    """How many attempts fail. Default: all."""
    kind: Literal["focus-fails"] = dataclasses.field(default="focus-fails", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class EngineSlow(_Planted):
    """Every prediction takes longer."""

    ms: Annotated[float, Field(gt=0)]
    kind: Literal["engine-slow"] = dataclasses.field(default="engine-slow", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class EngineDead(_Planted):
    """The process of the engine ends in the middle of a prediction, without a word."""

    kind: Literal["engine-dead"] = dataclasses.field(default="engine-dead", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class EngineWrong(_Planted):
    """The engine answers with something else than a prediction of its stack."""

    how: Literal["error", "nan", "noise"] = "error"
    """It raises; it gives numbers that are none; it gives smooth labels that have nothing to do with the
    stack, which only a comparison with the truth can tell."""
    kind: Literal["engine-wrong"] = dataclasses.field(default="engine-wrong", kw_only=True)


StageFault = FocusDrift | StageBacklash | SettleTime
CameraFault = LampFlicker | DroppedFrames | BufferOverflow
ScopeFault = StageFault | CameraFault | StuckShutter | PresetFails | HardwareTimeout | FocusFails
EngineFault = EngineSlow | EngineDead | EngineWrong
Fault = ScopeFault | EngineFault


def of_scope(faults: Sequence[Fault]) -> tuple[ScopeFault, ...]:
    """The faults of the microscope among these."""
    return tuple(fault for fault in faults if isinstance(fault, ScopeFault))


def of_engine(faults: Sequence[Fault]) -> tuple[EngineFault, ...]:
    """The faults of the engine among these."""
    return tuple(fault for fault in faults if isinstance(fault, EngineFault))


def _kinds() -> dict[str, Any]:
    """Class of each fault by its kind."""
    return {fault.__dataclass_fields__["kind"].default: fault for fault in get_args(Fault)}


def _spelled_out(raw: Any) -> Any:
    """A fault's short text, or its keys, checked; what is neither is left to pydantic."""
    if isinstance(raw, str):
        raw = _keys_of(raw)
    if not isinstance(raw, Mapping):
        return raw
    kinds = _kinds()
    kind = raw.get("kind")
    if kind not in kinds:
        raise ValueError(f"there is no fault {kind!r}; {suggest(str(kind), list(kinds))}")
    names = list(kinds[kind].__dataclass_fields__)
    for key in raw:
        if key not in names:
            raise ValueError(f"{kind} has no {key!r}; {suggest(str(key), [n for n in names if n != 'kind'])}")
    return raw


def _keys_of(text: str) -> dict[str, Any]:
    kind, _, rest = text.partition(":")
    kind = kind.strip()
    keys: dict[str, Any] = {"kind": kind}
    if kind not in _kinds():
        return keys
    fields = dataclasses.fields(_kinds()[kind])
    unnamed = [f.name for f in fields if not f.kw_only]
    for word in filter(None, (word.strip() for word in rest.split(","))):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            if not unnamed:
                raise ValueError(f"{kind}: what is {word!r}? Write name=value")
            name, value = unnamed[0], word
        if name in unnamed:
            unnamed.remove(name)
        keys[name] = tuple(value.split(MANY)) if name == "at" else value
    return keys


FaultText = Annotated[Fault, Field(discriminator="kind"), BeforeValidator(_spelled_out)]
"""For a pydantic model: a fault as its short text or its keys."""


def parse_fault(text: str) -> Fault:
    """Read ``kind:value,name=value``; a value without a name is that of the next parameter in order.

    Raises
    ------
    ExperimentError
        There is no such fault, parameter or value; names the nearest.
    """
    try:
        found: Fault = TypeAdapter(FaultText).validate_python(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        message = first["msg"].removeprefix("Value error, ")
        raise ExperimentError(
            f"the fault {text!r} cannot be planted",
            got=f"{where}: {message}" if where else message,
            fix="write it like focus-drift:2 or stuck-shutter:after=30",
        ) from error
    return found
