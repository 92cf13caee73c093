"""What can be made to go wrong on purpose in a simulated run, and when. Pure; `acq_isl.sim` does it."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from acq_isl.errors import ExperimentError

_CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)
MANY = "+"  # between the numbers of a list in a fault's text, as in at=3+7
Axes = Literal["xy", "z", "xyz"]


def _many(value: object) -> bool:
    return isinstance(value, tuple)


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class _Planted:
    """When a fault acts. The parameters that all faults have.

    Parameters
    ----------
    after : int
        Exposures (of an engine fault: stacks) that pass before it sets in.
    until : int, optional
        Exposures after which it is over. Default: never.
    after_s, until_s : float
        The same in seconds since the opening, by the specimen's clock (an engine's: by its own).
    """

    after: Annotated[int, Field(ge=0)] = 0
    until: Annotated[int, Field(ge=0)] | None = None
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
                words.append(f"{field.name}={MANY.join(map(str, value)) if _many(value) else value}")
        return f"{kind}:{','.join(words)}" if words else kind


@dataclass(frozen=True, slots=True, config=_CONFIG)
class FocusDrift(_Planted):
    """The specimen leaves the focus while the focus drive believes it stands still.

    Parameters
    ----------
    um_per_min : float
        Micrometres a minute, by the specimen's clock, by which the true focus runs ahead of the reported
        one; the sign is the way.
    """

    um_per_min: float
    kind: Literal["focus-drift"] = dataclasses.field(default="focus-drift", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class StageBacklash(_Planted):
    """After a change of direction the stage first takes up the play of its spindle.

    Parameters
    ----------
    um : float
        The play: how far the two positions lie apart that one reported position can mean.
    axes : "xy", "z" or "xyz"
    """

    um: Annotated[float, Field(gt=0)]
    axes: Axes = "xy"
    kind: Literal["stage-backlash"] = dataclasses.field(default="stage-backlash", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class SettleTime(_Planted):
    """The stage reports that it has arrived, and creeps on.

    Parameters
    ----------
    ms : float
        Milliseconds after which 95 % of the way that was left is done; the way left decays exponentially.
    um : float
        Way left on arrival, in micrometres; less after a shorter move.
    axes : "xy", "z" or "xyz"
    """

    ms: Annotated[float, Field(gt=0)]
    um: Annotated[float, Field(gt=0)] = 2.0
    axes: Axes = "xy"
    kind: Literal["settle-time"] = dataclasses.field(default="settle-time", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class LampFlicker(_Planted):
    """The lamp is a little brighter or darker in every exposure.

    Parameters
    ----------
    sd : float
        Standard deviation of the brightness from exposure to exposure, as a part of it.
    """

    sd: Annotated[float, Field(gt=0)]
    kind: Literal["lamp-flicker"] = dataclasses.field(default="lamp-flicker", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class DroppedFrames(_Planted):
    """The camera exposes and delivers nothing: a single image fails, a sequence is one image short.

    Parameters
    ----------
    every : int, optional
        Every how manieth exposure.
    at : tuple of int
        These exposures, counted from 0.
    probability : float
        Each exposure with this probability, drawn from the seed.
    """

    every: Annotated[int, Field(ge=1)] | None = None
    at: tuple[Annotated[int, Field(ge=0)], ...] = ()
    probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    kind: Literal["dropped-frames"] = dataclasses.field(default="dropped-frames", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class StuckShutter(_Planted):
    """The shutter stays as it is stuck, and reports what it was told.

    Parameters
    ----------
    stuck : "closed" or "open"
        Closed: no light in any image. Open: light also between exposures, which costs dose.
    """

    stuck: Literal["closed", "open"] = "closed"
    kind: Literal["stuck-shutter"] = dataclasses.field(default="stuck-shutter", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class PresetFails(_Planted):
    """A configuration preset cannot be set: the core raises, as for a device that does not answer.

    Parameters
    ----------
    name : str
        Preset, in whatever group.
    times : int, optional
        How many attempts fail. Pycro-Manager tries six times. Default: all.
    """

    name: Annotated[str, Field(min_length=1)]
    times: Annotated[int, Field(ge=1)] | None = None
    kind: Literal["preset-fails"] = dataclasses.field(default="preset-fails", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class HardwareTimeout(_Planted):
    """A device does not get ready: stage and wheel stay busy, a camera delivers no image.

    Parameters
    ----------
    device : str
        Label of the device, such as ``XY``, ``Z``, ``Camera`` or ``Filter``.
    times : int, optional
        How many waits end in vain. Default: all.
    wait_s : float, optional
        Seconds until the core gives up. Default: the core's own time-out, 5 s. Longer than anybody waits
        is a device that hangs.
    """

    device: Annotated[str, Field(min_length=1)]
    times: Annotated[int, Field(ge=1)] | None = None
    wait_s: Annotated[float, Field(ge=0)] | None = None
    kind: Literal["hardware-timeout"] = dataclasses.field(default="hardware-timeout", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class BufferOverflow(_Planted):
    """The circular buffer of the core is full: the core says so instead of giving an image of a sequence.

    Parameters
    ----------
    times : int, optional
        How often. Pycro-Manager stops the first time. Default: always.
    """

    times: Annotated[int, Field(ge=1)] | None = None
    kind: Literal["buffer-overflow"] = dataclasses.field(default="buffer-overflow", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class EngineSlow(_Planted):
    """Every prediction takes longer.

    Parameters
    ----------
    ms : float
    """

    ms: Annotated[float, Field(gt=0)]
    kind: Literal["engine-slow"] = dataclasses.field(default="engine-slow", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class EngineDead(_Planted):
    """The process of the engine ends in the middle of a prediction, without a word."""

    kind: Literal["engine-dead"] = dataclasses.field(default="engine-dead", kw_only=True)


@dataclass(frozen=True, slots=True, config=_CONFIG)
class EngineWrong(_Planted):
    """The engine answers with something else than a prediction of its stack.

    Parameters
    ----------
    how : "error", "nan" or "noise"
        It raises; it gives numbers that are none; it gives smooth labels that have nothing to do with the
        stack, which only a comparison with the truth can tell.
    """

    how: Literal["error", "nan", "noise"] = "error"
    kind: Literal["engine-wrong"] = dataclasses.field(default="engine-wrong", kw_only=True)


ScopeFault = (
    FocusDrift
    | StageBacklash
    | SettleTime
    | LampFlicker
    | DroppedFrames
    | StuckShutter
    | PresetFails
    | HardwareTimeout
    | BufferOverflow
)
EngineFault = EngineSlow | EngineDead | EngineWrong
Fault = ScopeFault | EngineFault


def of_scope(faults: Sequence[Fault]) -> tuple[ScopeFault, ...]:
    """The faults of the microscope among these."""
    return tuple(one for one in faults if isinstance(one, ScopeFault))


def of_engine(faults: Sequence[Fault]) -> tuple[EngineFault, ...]:
    """The faults of the engine among these."""
    return tuple(one for one in faults if isinstance(one, EngineFault))


def _kinds() -> dict[str, Any]:
    """Class of each fault by its kind."""
    return {one.__dataclass_fields__["kind"].default: one for one in get_args(Fault)}


def _spelled_out(raw: Any) -> Any:
    """A fault's short text, or its keys, checked; what is neither is left to pydantic."""
    if isinstance(raw, str):
        raw = _keys_of(raw)
    if not isinstance(raw, Mapping):
        return raw
    kinds = _kinds()
    kind = raw.get("kind")
    if kind not in kinds:
        raise ValueError(f"there is no fault {kind!r}; {_near(str(kind), list(kinds))}")
    names = list(kinds[kind].__dataclass_fields__)
    for key in raw:
        if key not in names:
            raise ValueError(f"{kind} has no {key!r}; {_near(str(key), [n for n in names if n != 'kind'])}")
    return raw


def _keys_of(text: str) -> dict[str, Any]:
    kind, _, rest = text.partition(":")
    kind = kind.strip()
    keys: dict[str, Any] = {"kind": kind}
    if kind not in _kinds():
        return keys
    fields = dataclasses.fields(_kinds()[kind])
    unnamed = [f.name for f in fields if not f.kw_only]
    for word in filter(None, (one.strip() for one in rest.split(","))):
        name, equals, value = (part.strip() for part in word.partition("="))
        if not equals:
            if not unnamed:
                raise ValueError(f"{kind}: what is {word!r}? Write name=value")
            name, value = unnamed[0], word
        if name in unnamed:
            unnamed.remove(name)
        keys[name] = tuple(value.split(MANY)) if name == "at" else value
    return keys


def _near(wrong: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(wrong, valid, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(valid))}"


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
