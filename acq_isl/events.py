"""What happens in a run: one vocabulary of frozen events, from the session to every viewer and the web page.

A session hands its events to an `EventHandler` on its own thread and goes on at once, so the handler must
return quickly, never raise, and never change what it is given.

Events are plain dataclasses: making one checks nothing and costs nothing on the thread of the camera. Where
they are received, `Event` is a tagged union of pydantic, with the bounds stated here. Arrays (`Seen.pixels`,
`Predicted.prediction`) stand beside an event in the process that made it; they are no part of its JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import Field
from pydantic_core import core_schema

from acq_isl.record import Counts, StageLatency
from acq_isl.rules.label_names import LabelStyle
from acq_isl.rules.measurements import Measured
from acq_isl.rules.rankings import Choice
from acq_isl.rules.series import Curve
from acq_isl.stack import Prediction, Refusal, StackKey, StackRequest, StageTimes, Uint16Image, Unpredicted

MAX_SIDE_PX = 1024
MAX_LABELS = 32
MAX_FIELDS = 20_000
MAX_LINES = 64
MAX_NAME, MAX_TEXT = 256, 8192

Phase = Literal["overview", "predict", "revisit"]
RunState = Literal["running", "paused", "stopping", "ended", "failed"]
OVER: tuple[RunState, ...] = ("ended", "failed")

_Name = Annotated[str, Field(max_length=MAX_NAME)]
_Text = Annotated[str, Field(max_length=MAX_TEXT)]
_Side = Annotated[int, Field(ge=1, le=MAX_SIDE_PX)]
_Real = Annotated[float, Field(allow_inf_nan=False)]
_Numbers = Annotated[tuple[Measured, ...], Field(max_length=MAX_LINES)]


class _Beside:
    """Marks what travels beside the JSON: not written to it, and nothing but null is read from it."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.none_schema()


@dataclass(frozen=True, slots=True)
class Bound:
    """One limit of the experiment: what, lowest, highest; ``low`` is None where only a highest is set."""

    what: str
    low: float | None
    high: float


@dataclass(frozen=True, slots=True)
class PlannedField:
    """An overview stack of the plan: the middle of its field of view and of its z on the stage."""

    key: StackKey
    x_um: _Real
    y_um: _Real
    z_um: _Real
    planes: Annotated[int, Field(ge=1)]

    @classmethod
    def of(cls, request: StackRequest) -> Self:
        z_um = (min(request.z_um) + max(request.z_um)) / 2
        return cls(request.key, request.x_um, request.y_um, z_um, len(request.z_um))


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Everything is open and the first field is next.

    ``started`` is ISO 8601 local time with offset, ``folder`` the run folder, ``fields`` the overview stacks
    in the order of acquisition, ``fov_um`` width and height of a field of view in micrometres, ``models`` how
    many predict each field. ``scope``, ``model`` (empty without an engine) and ``choice`` (what fields are
    chosen by; empty if none are) are for people.
    """

    name: _Text
    started: _Name
    folder: _Text
    scope: _Text
    model: _Text
    labels: Annotated[tuple[LabelStyle, ...], Field(max_length=MAX_LABELS)]
    fields: Annotated[tuple[PlannedField, ...], Field(max_length=MAX_FIELDS)]
    fov_um: tuple[_Real, _Real]
    limits: Annotated[tuple[Bound, ...], Field(max_length=MAX_LINES)] = ()
    choice: _Text = ""
    models: int = 1
    kind: Literal["run_started"] = "run_started"


@dataclass(frozen=True, slots=True)
class Step:
    """How far the run is: ``done`` of ``total`` stacks of a phase, and what has just happened, for people."""

    phase: Phase
    done: int
    total: int
    text: _Text
    kind: Literal["step"] = "step"


@dataclass(frozen=True, slots=True)
class TimePointBegan:
    """Time point ``number`` of ``total``, from 1; when it was planned and began, seconds after the first."""

    number: int
    total: int
    planned_s: _Real
    began_s: _Real
    kind: Literal["time_point_began"] = "time_point_began"


@dataclass(frozen=True, slots=True)
class Seen:
    """A measured plane, reduced for display. Made on the acquisition's image thread.

    ``key.channel`` names the light; ``predict`` is False for what is measured only, such as fluorescence. The
    middle of the picture is at ``x_um``, ``y_um``, ``z_um`` on the stage, its pixels are ``pixel_size_um``
    apart in the specimen, ``shape`` is rows and columns. It was captured at Unix time ``captured_s`` and is
    best displayed between ``low`` and ``high`` counts, the full range until the feed has looked. ``pixels``:
    (y, x) uint16, every n-th camera pixel in both directions, a copy.
    """

    key: StackKey
    predict: bool
    x_um: _Real
    y_um: _Real
    z_um: _Real
    pixel_size_um: _Real
    shape: tuple[_Side, _Side]
    captured_s: _Real
    low: _Real = 0.0
    high: _Real = 65535.0
    kind: Literal["seen"] = "seen"
    pixels: Annotated[Uint16Image | None, _Beside(), Field(exclude=True)] = field(
        default=None, compare=False, repr=False
    )


@dataclass(frozen=True, slots=True)
class FieldImaged:
    """All slices of a stack were captured and handed to storage."""

    request: StackRequest
    kind: Literal["field_imaged"] = "field_imaged"


@dataclass(frozen=True, slots=True)
class FieldFailed:
    """Something went wrong at a field: ``what`` was done about it, such as ``skip this stack``, and why."""

    key: StackKey
    what: _Text
    why: _Text
    kind: Literal["field_failed"] = "field_failed"


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predicted labels of an overview stack: computed, never measured.

    If several models predict, each has an event of its own in the session; the feed merges them. Place, pixel
    size and shape are of the pictures, as in `Seen`. ``measured`` is what rules measured on it; measuring and
    deciding took ``decide_ms``. ``model`` is the name by which the model was asked for, ``prediction`` all of
    it, not copied.
    """

    key: StackKey
    x_um: _Real
    y_um: _Real
    pixel_size_um: _Real
    shape: tuple[_Side, _Side]
    labels: Annotated[tuple[_Name, ...], Field(min_length=1, max_length=MAX_LABELS)]
    measured: _Numbers
    warnings: Annotated[tuple[_Text, ...], Field(max_length=MAX_LINES)]
    engine: _Name
    times: StageTimes
    decide_ms: _Real = 0.0
    model: _Name = ""
    kind: Literal["predicted"] = "predicted"
    prediction: Annotated[Prediction | None, _Beside(), Field(exclude=True)] = field(
        default=None, compare=False, repr=False
    )

    @classmethod
    def of(cls, prediction: Prediction, measured: tuple[Measured, ...], decide_ms: float) -> Self:
        info = prediction.info
        return cls(
            key=info.key,
            x_um=info.x_um,
            y_um=info.y_um,
            pixel_size_um=info.pixel_size_um,
            shape=info.shape,
            labels=prediction.labels,
            measured=measured,
            warnings=prediction.warnings,
            engine=prediction.engine,
            times=prediction.times,
            decide_ms=decide_ms,
            model=prediction.model,
            prediction=prediction,
        )


@dataclass(frozen=True, slots=True)
class NotPredicted:
    """A stack was refused by a model, or waits for an engine (``state``), why, and what to do."""

    key: StackKey
    state: Literal["refused", "waits"]
    reason: _Text
    fix: _Text
    model: _Name = ""
    kind: Literal["not_predicted"] = "not_predicted"

    @classmethod
    def of(cls, outcome: Refusal | Unpredicted) -> Self:
        if isinstance(outcome, Refusal):
            return cls(outcome.info.key, "refused", outcome.reason, outcome.fix, outcome.model)
        fix = f"it waits in {outcome.where}"
        return cls(outcome.info.key, "waits", outcome.reason, fix, outcome.model)


@dataclass(frozen=True, slots=True)
class FieldRanked(Choice):
    """Where a field stands, and whether it was chosen."""

    kind: Literal["field_ranked"] = "field_ranked"

    @classmethod
    def of(cls, choice: Choice) -> Self:
        return cls(choice.key, choice.rank, choice.chosen, choice.measured, choice.reason)


@dataclass(frozen=True, slots=True)
class FieldsRanked:
    """The fields of one time point were ranked, best first; the feed sends them one by one."""

    fields: Annotated[tuple[Choice, ...], Field(max_length=MAX_FIELDS)]
    kind: Literal["fields_ranked"] = "fields_ranked"


@dataclass(frozen=True, slots=True)
class Decided:
    """A rule decided something on a field (None: about none), and what became of it.

    ``rule`` is the trigger's name, ``"operator"`` for a person, ``"autofocus"`` where no focus was found;
    ``done`` is ``"done"``, ``"nothing"``, ``"refused: ..."`` and so on; ``time_s`` is Unix time, 0 until the
    feed has stamped it.
    """

    key: StackKey | None
    rule: _Name
    what: _Text
    why: _Text
    done: _Text
    time_s: _Real = 0.0
    kind: Literal["decided"] = "decided"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the run stands, in numbers; after every stack and while the session waits.

    ``counts`` are slices by what became of them, ``late`` those captured whose outcome is not there yet,
    ``engine`` its state for people, ``remaining_s`` an estimate, None before anything is known.
    """

    counts: Counts
    late: int
    latencies: Annotated[tuple[StageLatency, ...], Field(max_length=16)]
    engine: _Text
    remaining_s: float | None
    kind: Literal["progress"] = "progress"


@dataclass(frozen=True, slots=True)
class CurveChanged(Curve):
    """A measurement of a place over time, all of it that is drawn; of runs with several time points."""

    kind: Literal["curve_changed"] = "curve_changed"

    @classmethod
    def of(cls, curve: Curve) -> Self:
        return cls(curve.level, curve.place, curve.name, curve.unit, curve.points, curve.left_out)


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The run paused, went on, or is about to stop, and why."""

    state: RunState
    why: _Text
    kind: Literal["state_changed"] = "state_changed"


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over; ``failure`` is empty if it ended in order, ``report`` (a path) if there is none."""

    failure: _Text
    report: _Text
    kind: Literal["run_ended"] = "run_ended"


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What all events so far amount to, sent twice a second, so that silence means that a run is gone.

    ``dropped`` counts pictures the feed dropped, ``elapsed_s`` is since the start, ``sent_s`` Unix time,
    ``report`` a path once there is one; ``why`` explains ``state``. ``time_point`` is None before the first,
    ``late_time_points`` counts those whose interval could not be kept.
    """

    state: RunState = "running"
    why: _Text = ""
    step: Step = Step("overview", 0, 0, "")
    progress: Progress = Progress(Counts(), 0, (), "", None)
    report: _Text = ""
    elapsed_s: _Real = 0.0
    dropped: int = 0
    sent_s: _Real = 0.0
    time_point: TimePointBegan | None = None
    late_time_points: int = 0
    kind: Literal["run_status"] = "run_status"


Event = Annotated[
    RunStarted
    | Step
    | TimePointBegan
    | Seen
    | FieldImaged
    | FieldFailed
    | Predicted
    | NotPredicted
    | FieldRanked
    | FieldsRanked
    | Decided
    | Progress
    | CurveChanged
    | StateChanged
    | RunEnded
    | RunStatus,
    Field(discriminator="kind"),
]
EventHandler = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """Nobody watches."""


# Names that these had before.
Figures = Progress
News = Event
Tell = EventHandler
untold = ignore_event
