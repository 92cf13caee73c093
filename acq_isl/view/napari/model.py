"""What a window shows of a run: fields at their places, the newest of each, which one is in large. Pure.

Owned by the thread of the window. It knows neither napari nor Qt, so it is tested without a display.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, deque
from dataclasses import dataclass
from statistics import median
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from acq_isl import events
from acq_isl.processing.display import Box, Layout
from acq_isl.view.feed.messages import Message
from acq_isl.view.napari.mosaic import placed

PICTURE_BYTES = 256 << 20
"""Pictures kept in full, so that a click shows a field again; beyond that the map alone remembers."""
_DECISIONS = 200
_RANGE_FIELDS = 32
_LEAST_TOP = 26  # a tenth of what a label can be
_UNANSWERED = 3  # overview fields that may pass without a prediction before the light itself is followed


FieldEvent = events.Seen | events.Predicted | events.NotPredicted | events.FieldRanked | events.FieldFailed


@dataclass(frozen=True, slots=True, eq=False)
class SeenPlane:
    """A measured plane, (y, x) uint16, with its event."""

    event: events.Seen
    pixels: NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class PredictedLabels:
    """Predicted labels (label, y, x) uint8 and uncertainty (y, x) uint8, 255 for 1.0, with their event."""

    event: events.Predicted
    mean: NDArray[Any]
    uncertainty: NDArray[Any]

    def plane(self, label: str) -> NDArray[Any] | None:
        """A label's (y, x) picture; None if it was not predicted."""
        names = self.event.labels
        return self.mean[names.index(label)] if label in names else None


@dataclass(slots=True, eq=False)
class FieldView:
    """All that is known of one stage position at its newest time point.

    ``box`` is where it is drawn, in micrometres; ``planned`` is None for a place an operator went to.
    """

    name: str
    box: Box
    planned: events.PlannedField | None
    time: int = -1
    light: SeenPlane | None = None
    predicted: PredictedLabels | None = None
    measured: dict[str, SeenPlane] = dataclasses.field(default_factory=dict)
    refused: events.NotPredicted | None = None
    ranked: events.FieldRanked | None = None
    failed: events.FieldFailed | None = None
    _seq: dict[str, int] = dataclasses.field(default_factory=dict)

    def newer(self, event: FieldEvent, seq: int) -> bool:
        """Whether an event is new; what belongs to an earlier time point goes when a later one begins."""
        if event.key.time < self.time:
            return False
        if event.key.time > self.time:
            self.time = event.key.time
            self.light = self.predicted = self.refused = self.ranked = self.failed = None
            self.measured.clear()
            self._seq.clear()
        outcome = isinstance(event, events.Predicted | events.NotPredicted)
        place = "outcome" if outcome else f"{event.kind} {event.key.channel}"
        if self._seq.get(place, -1) >= seq:
            return False
        self._seq[place] = seq
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
        planes = [plane.pixels for plane in (self.light, *self.measured.values()) if plane]
        if self.predicted is not None:
            planes += [self.predicted.mean, self.predicted.uncertainty]
        return sum(plane.nbytes for plane in planes)

    def forget_pictures(self) -> None:
        """Give the memory back; numbers and reasons stay."""
        self.light = self.predicted = None
        self.measured.clear()


@dataclass(slots=True)
class Changes:
    """What has to be drawn anew."""

    plan: bool = False
    fields: set[str] = dataclasses.field(default_factory=set)
    """Fields with a new picture."""
    outlines: bool = False
    words: bool = False


class LiveModel:
    """A run as one viewer knows it; images of the fields looked at longest ago go beyond ``max_bytes``."""

    def __init__(self, max_bytes: int = PICTURE_BYTES) -> None:
        self._max_bytes = max_bytes
        self.plan: events.RunStarted | None = None
        self.status: events.RunStatus | None = None
        self._plan_seq = self._status_seq = -1
        self.places: Layout | None = None
        self.fields: OrderedDict[str, FieldView] = OrderedDict()
        self.decisions: deque[events.Decided] = deque(maxlen=_DECISIONS)
        self.curves: dict[tuple[str, str, str], events.CurveChanged] = {}
        """Measurements over time, by level, place and name."""
        self.curve_changes = 0
        self.selected: str | None = None
        """Field the user has picked; None follows the run."""
        self.tops: dict[str, int] = {}
        """Up to which value, of 255, to show each label: one scale for all fields."""
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
        lights = [light for name in list(self._recent)[-_RANGE_FIELDS:] if (light := self.fields[name].light)]
        if not lights:
            return None
        low, high = median(light.event.low for light in lights), median(light.event.high for light in lights)
        return low, max(high, low + 1.0)

    def take(self, message: Message) -> None:
        """Learn from a message; what is older than what is known changes nothing."""
        match message.event:
            case events.RunStarted() as plan:
                if message.seq > self._plan_seq:
                    self._plan_seq = message.seq
                    self._start(plan)
            case events.RunStatus() as status:
                if message.seq > self._status_seq:
                    self.status, self._status_seq = status, message.seq
                    self._changes.words = True
            case events.Decided() as decided:
                self.decisions.append(decided)
                self._changes.words = True
            case events.Seen() | events.Predicted() | events.NotPredicted() | events.FieldRanked() as event:
                self._learn_of_field(event, message)
            case events.FieldFailed() as event:
                self._learn_of_field(event, message)
            case events.CurveChanged() as curve:
                self.curves[curve.level, curve.place, curve.name] = curve
                self.curve_changes += 1
                self._changes.words = True
            case events.Step() | events.FieldImaged() | events.FieldsRanked() | events.TimePointBegan():
                pass  # the status says it
            case events.Progress() | events.StateChanged() | events.RunEnded():
                pass
            case event:
                assert_never(event)

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
        away = {}
        for field in self.fields.values():
            box = field.box
            if box.x <= x < box.x + box.width and box.y <= y < box.y + box.height:
                away[(box.x + box.width / 2 - x) ** 2 + (box.y + box.height / 2 - y) ** 2] = field
        return away[min(away)] if away else None

    def _start(self, plan: events.RunStarted) -> None:
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

    def _learn_of_field(
        self,
        event: FieldEvent,
        message: Message,
    ) -> None:
        name = event.key.position
        if name not in self.fields:
            if not isinstance(event, events.Seen | events.Predicted):
                return
            self.fields[name] = FieldView(name, _box(event), None)
            self._changes.outlines = True
        field = self.fields[name]
        if not field.newer(event, message.seq):
            return
        match event:
            case events.Seen():
                self._add_plane(field, SeenPlane(event, message.images[0]), message.seq)
            case events.Predicted():
                field.predicted, field.refused = PredictedLabels(event, *message.images), None
                self._rescale(field.predicted)
                self._follow(message.seq, name)
            case events.NotPredicted():
                field.refused, field.predicted = event, None
                self._changes.fields.add(name)
            case events.FieldRanked():
                field.ranked = event
            case events.FieldFailed():
                field.failed = event
            case _:
                assert_never(event)
        if isinstance(event, events.Seen | events.Predicted):
            self._keep(name)
        if not isinstance(event, events.Seen):
            self._changes.outlines = True
        self._changes.words = True

    def _rescale(self, predicted: PredictedLabels) -> None:
        """Up to the brightest that any field has of a label; what is hardly there is not blown up."""
        for name, mean in zip(predicted.event.labels, predicted.mean, strict=True):
            top = max(int(np.percentile(mean[::2, ::2], 99.5)), _LEAST_TOP)
            if top > 1.1 * self.tops.get(name, 0):
                self.tops[name] = top

    def _add_plane(self, field: FieldView, plane: SeenPlane, seq: int) -> None:
        event = plane.event
        if event.predict or (field.planned is None and field.light is None):
            field.light = plane
            self._lights = sorted([*self._lights, (seq, field.name)])[-_UNANSWERED - 1 :]
        else:
            field.measured[event.key.channel] = plane
            self._follow(seq, field.name)

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


def _box(event: events.Seen | events.Predicted) -> Box:
    height, width = (side * event.pixel_size_um for side in event.shape)
    return Box(event.x_um - width / 2, event.y_um - height / 2, width, height)
