"""Event lists: our own, and the checks a user's own list must pass before anything moves."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from acq_isl.errors import ActionRefused, ExperimentError
from acq_isl.hooks.hardware import Hardware, nearest
from acq_isl.hooks.metadata import read_metadata
from acq_isl.hooks.progress import AxesKey, axes_key, axes_text
from acq_isl.rules import Limits
from acq_isl.stack import StackKey, StackRequest

Event = dict[str, Any]

_KEYS = ("axes", "x", "y", "z", "exposure", "config_group", "min_start_time", "timeout_ms")
_FILE_NAME = re.compile(r"[^\W_][\w .-]{0,99}")
_DEVICE_KEYS = ("properties", "stage_positions", "camera")


_AGAIN = "~"  # no position's name has it


def announced_key(request: StackRequest) -> StackKey:
    """What a stack is called in the dataset; one that is imaged again has axes of its own there."""
    if not request.attempt:
        return request.key
    return replace(request.key, position=f"{request.key.position}{_AGAIN}{request.attempt + 1}")


def planned_position(name: str) -> str:
    """The position that a stack in the dataset was planned at, whichever attempt it is."""
    return name.partition(_AGAIN)[0]


def stack_events(request: StackRequest, first: int = 0) -> list[Event]:
    """The events of one stack from slice ``first`` on, in the order of its slices.

    Only the first one carries x, y, preset and exposure: the Python backend sends whatever an event
    carries to the devices again, which costs 10 ms and more per slice.
    """
    key = announced_key(request)
    events: list[Event] = [
        {
            "axes": {"time": key.time, "position": key.position, "channel": key.channel, "z": index},
            "z": float(z),
        }
        for index, z in enumerate(request.z_um)
        if index >= first
    ]
    events[0] |= {
        "x": float(request.x_um),
        "y": float(request.y_um),
        "config_group": [request.group, request.preset],
        "exposure": float(request.exposure_ms),
    }
    return events


def check_label(what: str, text: str) -> None:
    """ExperimentError for a name the Java bridge cannot carry: it takes '@' for a reference and hangs."""
    if "@" in text:
        raise ExperimentError(f"{what} must not contain '@'", got=text, fix=text.replace("@", "_at_"))


def check_name(name: str) -> None:
    """ExperimentError for an acquisition whose folder and files cannot have its name, or lie elsewhere."""
    if not _FILE_NAME.fullmatch(name):
        raise ExperimentError(
            f"the acquisition cannot be called {name[:120]!r}",
            wanted="at most 100 letters, digits, spaces, '_', '-' and '.', the first a letter or a digit",
            fix="give it another name; its folder is a matter of 'directory'",
        )


def find_requests(events: Sequence[Event]) -> list[StackRequest]:
    """The stacks a user's events make up, as far as they can be told, for the capture hook."""
    stacks: defaultdict[StackKey, dict[int, Event]] = defaultdict(dict)
    for event in events:
        slice_ = read_metadata({"Axes": event["axes"]})
        stacks[slice_.key][slice_.z_index] = event
    requests = []
    for key, by_z in stacks.items():
        slices = [by_z[index] for index in sorted(by_z)]
        if sorted(by_z) != list(range(len(by_z))) or (len(slices) > 1 and not all("z" in e for e in slices)):
            continue
        first = slices[0]
        group, preset = first.get("config_group", ("", key.channel))
        z_um = tuple(float(event.get("z", 0.0)) for event in slices)
        place = (float(first.get("x", 0.0)), float(first.get("y", 0.0)))
        requests.append(StackRequest(key, *place, z_um, group, preset, float(first.get("exposure", 0.0))))
    return requests


def split_batches(events: Sequence[Event]) -> list[list[Event]]:
    """Lists that can be submitted whole: a new one at each start time and around events with properties."""
    lists: list[list[Event]] = []
    for event in events:
        alone = "properties" in event or (bool(lists) and "properties" in lists[-1][-1])
        starts = lists and event.get("min_start_time") != lists[-1][0].get("min_start_time")
        if not lists or alone or starts:
            lists.append([])
        lists[-1].append(event)
    return lists


def to_plain(value: Any) -> Any:
    """A value as plain JSON types: numpy scalars and arrays become numbers and lists."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(entry) for entry in value]
    return value


class EventRules:
    """What an event may hold, checked against the microscope and the limits before anything moves."""

    def __init__(self, hardware: Hardware, limits: Limits) -> None:
        self._hardware = hardware
        self._limits = limits
        self._axis_types: dict[str, type] = {}
        self._submitted: set[AxesKey] = set()

    def exposure_ms(self) -> float:
        """What the camera is set to."""
        return self._hardware.exposure_ms()

    def check(self, events: Any) -> list[Event]:
        """A user's event, or list or tuple of events, as plain copies that are safe to submit.

        ExperimentError if they would be lost, overwritten, or hang Pycro-Manager; names the event and the
        fix. ActionRefused if they would leave the limits.
        """
        if isinstance(events, Mapping):
            events = [events]
        if not isinstance(events, list | tuple) or not events:
            raise ExperimentError(
                "events must be a list",
                wanted="a list of event dictionaries, not empty",
                got=f"{type(events).__name__}" if not isinstance(events, list | tuple) else "an empty list",
                fix="a generator is used up at once anyway, and an error in it hangs: pass list(events)",
            )
        cleaned = [self.check_event(event) for event in events]
        keys = [axes_key(event["axes"]) for event in cleaned]
        self._check_unique(keys)
        self._check_types(keys, dict(self._axis_types))
        return cleaned

    def note_submitted(self, keys: Sequence[AxesKey]) -> None:
        """Remember what was submitted, so that nothing is overwritten later."""
        self._submitted.update(keys)
        self._check_types(keys, self._axis_types)

    def note_withdrawn(self, keys: Iterable[AxesKey]) -> None:
        """These were submitted, and not imaged: they may be submitted again."""
        self._submitted.difference_update(keys)

    def check_event(self, event: Any) -> Event:
        """One event as a plain copy; raises as `check`."""
        if not isinstance(event, Mapping):
            raise ExperimentError("an event must be a dictionary", got=type(event).__name__)
        clean: Event = to_plain(event)
        axes = self._axes(clean)
        what = f"the event {axes_text(axes_key(axes))}"
        for key in clean:
            if key not in (*_KEYS, *_DEVICE_KEYS):
                raise ExperimentError(
                    f"{what} has the unsupported key {key!r}", fix=_why(key, (*_KEYS, *_DEVICE_KEYS))
                )
        self._check_numbers(what, clean)
        self._check_devices(what, clean)
        return clean

    def _axes(self, event: Event) -> dict[str, int | str]:
        axes = event.get("axes")
        if not isinstance(axes, dict) or not axes:
            raise ExperimentError(
                "an event has no axes", wanted="'axes': {'z': 0} or the like", got=str(event)[:200]
            )
        for name, value in axes.items():
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise ExperimentError(
                    f"the axis {name!r} has a value that is neither a whole number nor a name",
                    got=f"{value!r}",
                    fix="number the slices in 'axes' and put micrometres into the event's 'z'",
                )
            check_label(f"the axis {name!r}", str(value))
        return axes

    def _check_types(self, keys: Iterable[AxesKey], types: dict[str, type]) -> None:
        """Numbers or names on one axis, not both; ``types`` is what is known, and is added to."""
        for name, value in (item for key in keys for item in key):
            if types.setdefault(name, type(value)) is not type(value):
                raise ExperimentError(
                    f"the axis {name!r} has both numbers and names",
                    got=repr(value),
                    fix="use one kind of value per axis, in the whole acquisition",
                )

    def _check_unique(self, keys: Sequence[AxesKey]) -> None:
        seen: set[AxesKey] = set()
        for key in keys:
            if key in seen or key in self._submitted:
                raise ExperimentError(
                    f"two events have the axes {axes_text(key)}; the second image would replace the first",
                    fix="give each event its own axes, for instance another time",
                )
            seen.add(key)

    def _check_numbers(self, what: str, event: Event) -> None:
        limits = self._limits
        for name, bounds in (("x", limits.x_um), ("y", limits.y_um), ("z", limits.z_um)):
            if name in event:
                check_place(what, name, _number(what, name, event[name]), bounds)
        if ("x" in event) != ("y" in event):
            raise ExperimentError(
                f"{what} moves only one of x and y, which is ignored", fix="give both x and y"
            )
        for name in ("exposure", "min_start_time", "timeout_ms"):
            if name in event and _number(what, name, event[name]) < 0:
                raise ExperimentError(f"{what} has a negative {name}", got=str(event[name]))
        if "exposure" in event:
            check_exposure(what, event["exposure"], limits)

    def _check_devices(self, what: str, event: Event) -> None:
        if "config_group" in event:
            group, preset = _entry(what, "config_group", event["config_group"], 2)
            self._hardware.require_preset(group, preset, self._limits)
        for entry in event.get("properties", ()):
            device, name, _value = _entry(what, "properties", entry, 3)
            self._hardware.require_property(device, name)
        for entry in event.get("stage_positions", ()):
            device, position = _entry(what, "stage_positions", entry, 2)
            self._hardware.require_device(device)
            value = _number(what, device, position)
            if device == self._hardware.focus_device:
                check_place(what, "z", value, self._limits.z_um)
        if "camera" in event:
            self._hardware.require_device(event["camera"])


def check_place(what: str, axis: str, value: float, bounds: tuple[float, float] | None) -> None:
    """ActionRefused for a stage position outside the limits, ExperimentError for one that is no number."""
    if not math.isfinite(value):
        raise ExperimentError(f"{what} has a {axis} that is not a number", got=str(value))
    if bounds is not None and not bounds[0] <= value <= bounds[1]:
        raise ActionRefused(
            f"{what} lies outside of the limits",
            wanted=f"{axis} from {bounds[0]:g} to {bounds[1]:g} um",
            got=f"{value:g} um",
            fix=f"move it, or widen limits.{axis}_um if the stage is free there",
        )


def check_exposure(what: str, exposure_ms: float, limits: Limits) -> None:
    """ExperimentError for no exposure at all, ActionRefused for one that is longer than allowed."""
    if not (math.isfinite(exposure_ms) and exposure_ms > 0):
        raise ExperimentError(f"{what} has no exposure", wanted="more than 0 ms", got=f"{exposure_ms:g} ms")
    if limits.exposure_ms is not None and exposure_ms > limits.exposure_ms:
        raise ActionRefused(
            f"{what} is exposed too long",
            wanted=f"at most {limits.exposure_ms:g} ms",
            got=f"{exposure_ms:g} ms",
            fix="shorten the exposure, or raise limits.exposure_ms",
        )


def _number(what: str, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExperimentError(f"{what}: {name} must be a number", got=repr(value))
    return float(value)


def _entry(what: str, name: str, entry: Any, length: int) -> list[Any]:
    if not isinstance(entry, list) or len(entry) != length:
        wanted = {"config_group": "[group, preset]", "properties": "[[device, property, value], ...]"}
        raise ExperimentError(
            f"{what}: {name} is malformed",
            wanted=wanted.get(name, "[[device, position], ...]"),
            got=repr(entry),
        )
    return entry


_REASONS: dict[str, str] = {
    "tags": "Pycro-Manager's Python backend hangs on tags; keep your notes in a file, or in the axes",
    "slm_pattern": "the Python backend cannot set SLM patterns",
    "row": "put row into 'axes'",
    "col": "put column into 'axes'",
}


def _why(key: str, valid: Sequence[str]) -> str:
    return _REASONS.get(key, f"did you mean {nearest(key, valid)}?")
