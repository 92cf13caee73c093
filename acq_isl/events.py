"""What happens in a run, as it happens: one frozen event each. The only way to watch a run.

A session hands its events to an `EventHandler` on its own thread and goes on at once, so the handler must
return quickly, never raise, and never change what it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from acq_isl.record import Counts, StageLatency
from acq_isl.rules.label_names import LabelStyle
from acq_isl.rules.measurements import Measured
from acq_isl.rules.rules import Choice
from acq_isl.stack import Prediction, Refusal, StackInfo, StackKey, StackRequest, Uint16Image, Unpredicted

Phase = Literal["overview", "predict", "revisit"]
RunState = Literal["running", "paused", "stopping", "ended", "failed"]


@dataclass(frozen=True, slots=True)
class Bound:
    """One limit of the experiment: what, lowest, highest; ``low`` is None where only a highest is set."""

    what: str
    low: float | None
    high: float


@dataclass(frozen=True, slots=True)
class RunStarted:
    """Everything is open and the first field is next.

    Parameters
    ----------
    name : str
        Of the experiment.
    started : str
        ISO 8601 local time with offset.
    folder : str
        Run folder.
    scope, model : str
        For people; ``model`` is empty without an engine.
    labels : tuple of LabelStyle
    fields : tuple of StackRequest
        Overview stacks, in the order of acquisition.
    fov_um : (float, float)
        Width and height of a field of view in micrometres.
    limits : tuple of Bound
    choice : str
        What fields are chosen by, for people; empty if none are.
    models : int
        How many models predict each field.
    """

    name: str
    started: str
    folder: str
    scope: str
    model: str
    labels: tuple[LabelStyle, ...]
    fields: tuple[StackRequest, ...]
    fov_um: tuple[float, float]
    limits: tuple[Bound, ...] = ()
    choice: str = ""
    models: int = 1


@dataclass(frozen=True, slots=True)
class Step:
    """How far the run is.

    Parameters
    ----------
    phase : str
    done, total : int
        Stacks.
    text : str
        What has just happened, for people.
    """

    phase: Phase
    done: int
    total: int
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A measured plane, reduced for display. Told on the acquisition's image thread.

    Parameters
    ----------
    info : StackInfo
        The stack it is from; ``info.modality`` tells transmitted light from fluorescence.
    z_um : float
        Stage z of the plane.
    pixels : (y, x) uint16
        Every n-th camera pixel in both directions, a copy.
    pixel_size_um : float
        Distance of neighbouring pixels of this picture in the specimen.
    predict : bool
        Whether the stack is for prediction (an overview stack), or measured only (fluorescence).
    """

    info: StackInfo
    z_um: float
    pixels: Uint16Image
    pixel_size_um: float
    predict: bool = True


@dataclass(frozen=True, slots=True)
class FieldImaged:
    """All slices of a stack were captured and handed to storage."""

    request: StackRequest


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """A model's prediction arrived; if there are several, the others' have news of their own.

    Parameters
    ----------
    prediction : Prediction
        As it is, not copied.
    measured : tuple of Measured
        What the rules measured on it.
    decide_ms : float
        How long that took.
    """

    prediction: Prediction
    measured: tuple[Measured, ...]
    decide_ms: float


@dataclass(frozen=True, slots=True)
class NotPredicted:
    """A stack was refused by a model, or waits for an engine."""

    outcome: Refusal | Unpredicted


FieldRanked = Choice


@dataclass(frozen=True, slots=True)
class FieldsRanked:
    """The fields of one time point were ranked, best first."""

    fields: tuple[FieldRanked, ...]


@dataclass(frozen=True, slots=True)
class Decided:
    """A rule (or a person) decided something on a field, and what became of it.

    Parameters
    ----------
    key : StackKey or None
        The field's stack; None if it is not about one.
    rule : str
        Name of the trigger; ``"operator"`` for a person.
    what, why : str
    done : str
        ``"done"``, ``"nothing"``, ``"refused: ..."`` and so on.
    """

    key: StackKey | None
    rule: str
    what: str
    why: str
    done: str


@dataclass(frozen=True, slots=True)
class Figures:
    """Where the run stands, in numbers; told after every stack and while the session waits.

    Parameters
    ----------
    counts : Counts
        Slices by what became of them.
    late : int
        Slices captured whose outcome is not there yet.
    latencies : tuple of StageLatency
    engine : str
        State of the engine, for people, such as ``"predicting"`` or ``"does not answer"``.
    remaining_s : float or None
        Estimate; None before anything is known.
    """

    counts: Counts
    late: int
    latencies: tuple[StageLatency, ...]
    engine: str
    remaining_s: float | None


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The run paused, went on, or is about to stop, and why."""

    state: RunState
    why: str


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The run is over.

    Parameters
    ----------
    failure : str
        Empty if it ended in order.
    report : str
        Path of the report; empty if there is none.
    """

    failure: str
    report: str


Event = (
    RunStarted
    | Step
    | Seen
    | FieldImaged
    | Predicted
    | NotPredicted
    | FieldsRanked
    | Decided
    | Figures
    | StateChanged
    | RunEnded
)
EventHandler = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """Nobody watches."""


# Names that these had before.
News = Event
Tell = EventHandler
untold = ignore_event
