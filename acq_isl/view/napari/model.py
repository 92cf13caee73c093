"""What a window shows of a run: fields at their places, the newest of each, which one is in large. Pure.

Owned by the thread of the window. It knows neither napari nor Qt, so it is tested without a display.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from numpy.typing import NDArray

from acq_isl.processing.display import Box
from acq_isl.view.feed.messages import (
    Decided,
    Light,
    NotPredicted,
    Parcel,
    Plan,
    PlannedField,
    Predicted,
    Ranked,
    Status,
)
from acq_isl.view.napari.mosaic import Places, placed

PICTURE_BYTES = 256 << 20
"""Pictures kept in full, so that a click shows a field again; beyond that the map alone remembers."""
_DECISIONS = 200
_RANGE_FIELDS = 32
_UNANSWERED = 3  # overview fields that may pass without a prediction before the light itself is followed


@dataclass(frozen=True, slots=True, eq=False)
class Measurement:
    """A measured plane, (y, x) uint16, with what is known of it."""

    message: Light
    pixels: NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Predicted labels (label, y, x) uint8 and doubt (y, x) uint8, 255 for 1.0, with what is known."""

    message: Predicted
    mean: NDArray[Any]
    doubt: NDArray[Any]

    def plane(self, label: str) -> NDArray[Any] | None:
        """A label's (y, x) picture; None if it was not predicted."""
        names = self.message.labels
        return self.mean[names.index(label)] if label in names else None


@dataclass(slots=True, eq=False)
class FieldView:
    """All that is known of one stage position at its newest time point.

    ``box`` is where it is drawn, in micrometres; ``planned`` is None for a place an operator went to.
    """

    name: str
    box: Box
    planned: PlannedField | None
    time: int = -1
    light: Measurement | None = None
    predicted: Prediction | None = None
    measured: dict[str, Measurement] = field(default_factory=dict)
    refused: NotPredicted | None = None
    ranked: Ranked | None = None
    _seq: dict[str, int] = field(default_factory=dict)

    def newer(self, message: Light | Predicted | NotPredicted | Ranked) -> bool:
        """Whether a message is news; what belongs to an earlier time point goes when a later one begins."""
        if message.key.time < self.time:
            return False
        if message.key.time > self.time:
            self.time = message.key.time
            self.light = self.predicted = self.refused = self.ranked = None
            self.measured.clear()
            self._seq.clear()
        outcome = isinstance(message, Predicted | NotPredicted)
        place = "outcome" if outcome else f"{message.type} {message.key.channel}"
        if self._seq.get(place, -1) >= message.seq:
            return False
        self._seq[place] = message.seq
        return True

    @property
    def shift_um(self) -> tuple[float, float]:
        """What to add to stage coordinates (x, y) to come to where the field is drawn; 0, 0 if to scale."""
        if self.planned is None:
            return 0.0, 0.0
        middle = self.box.x + self.box.width / 2, self.box.y + self.box.height / 2
        return middle[0] - self.planned.x_um, middle[1] - self.planned.y_um

    @property
    def nbytes(self) -> int:
        """Of all pictures."""
        lights = [*self.measured.values(), *([self.light] if self.light else [])]
        predicted = self.predicted.mean.nbytes + self.predicted.doubt.nbytes if self.predicted else 0
        return predicted + sum(one.pixels.nbytes for one in lights)

    def forget_pictures(self) -> None:
        """Give the memory back; numbers and reasons stay."""
        self.light = self.predicted = None
        self.measured.clear()


@dataclass(slots=True)
class Changes:
    """What has to be drawn anew."""

    plan: bool = False
    fields: set[str] = field(default_factory=set)
    """Fields with a new picture."""
    outlines: bool = False
    words: bool = False


class LiveModel:
    """A run as seen by one viewer.

    Parameters
    ----------
    max_bytes : int
        Of pictures kept in full; the fields looked at longest ago lose theirs first.
    """

    def __init__(self, max_bytes: int = PICTURE_BYTES) -> None:
        self._max_bytes = max_bytes
        self.plan: Plan | None = None
        self.status: Status | None = None
        self.places: Places | None = None
        self.fields: OrderedDict[str, FieldView] = OrderedDict()
        self.decisions: deque[Decided] = deque(maxlen=_DECISIONS)
        self.selected: str | None = None
        """Field the user has picked; None follows the run."""
        self.forgotten = 0
        """Fields whose pictures were given up for newer ones."""
        self._recent: OrderedDict[str, int] = OrderedDict()  # fields with pictures, longest unused first
        self._followed: tuple[int, str] | None = None
        self._lights: list[tuple[int, str]] = []
        self._changes = Changes()

    @property
    def newest(self) -> str | None:
        """The field to follow: of the newest prediction, or of the newest light if the engine lags behind."""
        followed = self._followed
        later = [light for light in self._lights if followed is None or light > followed]
        if later and (followed is None or len(later) > _UNANSWERED):
            return later[-1][1]
        return followed[1] if followed else None

    @property
    def shown(self) -> FieldView | None:
        """The field to show in large."""
        name = self.selected or self.newest
        return self.fields.get(name) if name else None

    @property
    def light_range(self) -> tuple[float, float] | None:
        """Counts to show transmitted light between: the middle of what the newest fields suggest."""
        lights = [one.light for name in list(self._recent)[-_RANGE_FIELDS:] if (one := self.fields[name])]
        messages = [light.message for light in lights if light is not None]
        if not messages:
            return None
        low, high = median(m.low for m in messages), median(m.high for m in messages)
        return low, max(high, low + 1.0)

    def take(self, parcel: Parcel) -> None:
        """Learn from a message; what is older than what is known changes nothing."""
        match parcel.message:
            case Plan() as plan:
                self._start(plan)
            case Status() as status:
                if self.status is None or status.seq > self.status.seq:
                    self.status = status
                    self._changes.words = True
            case Decided() as decided:
                self.decisions.append(decided)
                self._changes.words = True
            case Light() | Predicted() | NotPredicted() | Ranked() as message:
                self._about_field(message, parcel.pictures)

    def changes(self) -> Changes:
        """What has changed since the last call."""
        taken, self._changes = self._changes, Changes()
        return taken

    def select(self, name: str | None) -> None:
        """Show a field in large until told otherwise; None follows the run again."""
        if name is None or name in self.fields:
            self.selected = name
            self._changes.words = self._changes.outlines = True

    def at(self, x: float, y: float) -> FieldView | None:
        """The field drawn at a place of the map, in micrometres; of overlapping ones the nearest middle."""
        under = [one for one in self.fields.values() if _holds(one.box, x, y)]
        return min(under, key=lambda one: _distance(one.box, x, y), default=None)

    def _start(self, plan: Plan) -> None:
        if self.plan is not None and plan.seq <= self.plan.seq:
            return
        self.plan = plan
        first = {one.key.position: one for one in reversed(plan.fields)}
        order = dict.fromkeys(one.key.position for one in plan.fields)
        self.places = placed([first[name] for name in order], plan.fov_um)
        known = self.fields
        self.fields = OrderedDict(
            (name, FieldView(name, box, first[name]))
            for name, box in zip(order, self.places.boxes, strict=True)
        )
        for name, early in known.items():  # pictures that came before the plan
            if name in self.fields:
                early.box, early.planned = self.fields[name].box, self.fields[name].planned
            self.fields[name] = early
        self._changes = Changes(True, {n for n, one in known.items() if one.nbytes}, True, True)

    def _about_field(
        self, message: Light | Predicted | NotPredicted | Ranked, pictures: tuple[NDArray[Any], ...]
    ) -> None:
        name = message.key.position
        if name not in self.fields:
            if not isinstance(message, Light | Predicted):
                return
            self.fields[name] = FieldView(name, _box(message), None)
            self._changes.outlines = True
        one = self.fields[name]
        if not one.newer(message):
            return
        match message:
            case Light():
                self._see(one, Measurement(message, pictures[0]))
            case Predicted():
                one.predicted, one.refused = Prediction(message, *pictures), None
                self._follow(message.seq, name)
            case NotPredicted():
                one.refused, one.predicted = message, None
                self._changes.fields.add(name)
            case Ranked():
                one.ranked = message
        if isinstance(message, Light | Predicted):
            self._keep(name)
        if not isinstance(message, Light):
            self._changes.outlines = True
        self._changes.words = True

    def _see(self, one: FieldView, measurement: Measurement) -> None:
        message = measurement.message
        if message.predict or (one.planned is None and one.light is None):
            one.light = measurement
            self._lights = sorted([*self._lights, (message.seq, one.name)])[-_UNANSWERED - 1 :]
        else:
            one.measured[message.key.channel] = measurement
            self._follow(message.seq, one.name)

    def _follow(self, seq: int, name: str) -> None:
        if self._followed is None or seq > self._followed[0]:
            self._followed = (seq, name)

    def _keep(self, name: str) -> None:
        self._changes.fields.add(name)
        self._recent.pop(name, None)
        self._recent[name] = self.fields[name].nbytes
        total = sum(self._recent.values())
        while total > self._max_bytes and len(self._recent) > 1:
            oldest = next(other for other in self._recent if other != name)
            total -= self._recent.pop(oldest)
            self.fields[oldest].forget_pictures()
            self.forgotten += 1


def _box(message: Light | Predicted) -> Box:
    height, width = (side * message.pixel_size_um for side in message.shape)
    return Box(message.x_um - width / 2, message.y_um - height / 2, width, height)


def _holds(box: Box, x: float, y: float) -> bool:
    return box.x <= x < box.x + box.width and box.y <= y < box.y + box.height


def _distance(box: Box, x: float, y: float) -> float:
    return (box.x + box.width / 2 - x) ** 2 + (box.y + box.height / 2 - y) ** 2
