"""A useq-schema sequence becomes the stacks to acquire. Pure.

useq-schema describes every image as an event; acq-isl acquires whole stacks, so consecutive events that
differ only in z are gathered into one `StackRequest`, in the order of the events. An autofocus event
belongs to the stack that it comes before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import useq

from acq_isl.errors import ExperimentError
from acq_isl.experiment.supported import check_points, refuse_unsupported, refuse_without_focus
from acq_isl.stack import Autofocus, Modality, Polarity, StackKey, StackRequest

# Names become axes of the dataset and file names on every platform; the Java bridge chokes on '@'.
_LATE, _LATE_S = 1.05, 0.5  # an interval up to so much longer than planned was kept
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the stage stands, and width and height of what it sees: what fills the gaps of a sequence."""

    x_um: float
    y_um: float
    z_um: float
    fov_um: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Optics:
    """How light is transmitted, for `StackInfo`."""

    modality: Modality = "unknown"
    polarity: Polarity = "unknown"


@dataclass(frozen=True, slots=True)
class Cycle:
    """Stacks of one time point that follow each other.

    It starts ``start_s`` seconds, at the earliest, after the last cycle that ``restarts`` the clock, as the
    times of a single position do.
    """

    time: int
    start_s: float
    requests: tuple[StackRequest, ...]
    restarts: bool = False


def cycles(sequence: useq.MDASequence, place: Place, optics: Optics) -> tuple[Cycle, ...]:
    """Stacks of an overview sequence, by time point.

    Missing coordinates are taken from ``place``, and so is the field size of a grid without one. Where a
    position has times of its own, a time comes again in a later cycle.

    Raises
    ------
    ExperimentError
        A setting that is not performed, no channel or exposure, z not innermost, time not outermost, a name
        that cannot be a file name.
    """
    stacks = _stacks(_complete(sequence, place), optics, predict=True)
    parts: list[tuple[int, useq.MDAEvent, list[StackRequest]]] = []
    for event, request in stacks:
        time = request.key.time
        if not parts or parts[-1][0] != time or event.reset_event_timer:
            parts.append((time, event, []))
        parts[-1][2].append(request)
    found = [
        Cycle(time, first.min_start_time or 0.0, tuple(requests), bool(first.reset_event_timer))
        for time, first, requests in parts
    ]
    _refuse_twins([request for cycle in found for request in cycle.requests])
    if sequence.time_plan is not None and len({cycle.time for cycle in found}) != len(found):
        raise ExperimentError(
            "time is not the outermost axis of the overview",
            got=f"axis_order {''.join(sequence.axis_order)}",
            fix="put t first, for example axis_order: tpgcz",
        )
    return tuple(found)


def interval_kept(planned_s: float, real_s: float) -> bool:
    """Whether a time point came when it should, after the one before it."""
    return planned_s <= 0 or real_s <= planned_s * _LATE + _LATE_S


def visits(sequence: useq.MDASequence, field: StackRequest, time: int) -> tuple[StackRequest, ...]:
    """Stacks of a revisit: every channel and z of ``sequence`` at the place of an overview field.

    The z of the revisit is relative to the middle of the field's own stack.

    Raises
    ------
    ExperimentError
        As `cycles`; also when the revisit has positions or a grid of its own.
    """
    if sequence.stage_positions or sequence.grid_plan or sequence.time_plan:
        raise ExperimentError(
            "the revisit names positions, a grid or times of its own",
            fix="leave stage_positions, grid_plan and time_plan out of revisit: it goes to the chosen fields",
        )
    middle_um = (min(field.z_um) + max(field.z_um)) / 2
    here = useq.AbsolutePosition(x=field.x_um, y=field.y_um, z=middle_um, name=field.key.position)
    placed = _unfocused(sequence.replace(stage_positions=(here,)))
    stacks = _stacks(placed, Optics("fluorescence", "unknown"), predict=False)
    requests = [replace(request, key=replace(request.key, time=time)) for _, request in stacks]
    _refuse_twins(requests)
    return tuple(_focus_again(request) for request in requests)


def count_images(sequence: useq.MDASequence) -> int:
    """Images of a sequence at one place."""
    return sum(not _focuses(event) for event in sequence)


def _focus_again(request: StackRequest) -> StackRequest:
    """The focus of a revisit is its own: it begins where the overview's was found."""
    if request.autofocus is None:
        return request
    site = f"{request.autofocus.site} again at {request.key.time}"
    return replace(request, autofocus=replace(request.autofocus, site=site))


def _complete(sequence: useq.MDASequence, place: Place) -> useq.MDASequence:
    """The sequence with what it leaves to the microscope, and as if it had never been iterated over."""
    grid = _sized(sequence.grid_plan, place)
    fixed = grid is not None and not grid.is_relative
    given = sequence.stage_positions
    if isinstance(given, useq.WellPlatePlan):
        # The offset of a point in a well is relative in z too, and a plate says nothing of its height.
        if not len(given):
            raise ExperimentError("stage_positions: no well is selected", fix="give selected_wells")
        check_points("stage_positions: well_points_plan", given.well_points_plan)
        plan = given.replace(well_points_plan=_sized(given.well_points_plan, place))
        given = tuple(each.replace(z=place.z_um + (each.z or 0.0)) for each in plan)
    filled = tuple(
        _placed(each, sequence.z_plan, place, fixed) for each in given or (useq.AbsolutePosition(),)
    )
    return _unfocused(sequence.replace(grid_plan=grid, stage_positions=filled))


def _placed(position: useq.AbsolutePosition, z_plan: Any, place: Place, fixed: bool) -> useq.AbsolutePosition:
    """A position with all coordinates, save x and y where the grid has them: useq would warn.

    Its own grid, times or channels get the ``z_plan`` of all: useq would image them plane by plane.
    """
    own = position.sequence
    if own is not None:
        grid = _sized(own.grid_plan, place)
        if (grid or own.time_plan or own.channels) and own.autofocus_plan is None:
            own = own.replace(z_plan=own.z_plan or z_plan)
        own = _unfocused(own.replace(grid_plan=grid))
        fixed = fixed if grid is None else not grid.is_relative
    return position.replace(
        x=place.x_um if position.x is None and not fixed else position.x,
        y=place.y_um if position.y is None and not fixed else position.y,
        z=place.z_um if position.z is None else position.z,
        sequence=own,
    )


def _unfocused(sequence: useq.MDASequence) -> useq.MDASequence:
    """With an autofocus plan that has seen no event: it remembers the last one of an earlier iteration."""
    plan = sequence.autofocus_plan
    return sequence if plan is None else sequence.replace(autofocus_plan=plan.model_dump())


def _sized(grid: Any, place: Place) -> Any:
    """A plan of points with a field size: useq takes 1 um if there is none, the same spot every time."""
    if grid is None or isinstance(grid, useq.RelativePosition):
        return grid
    if None not in (grid.fov_width, grid.fov_height):
        return grid
    width, height = place.fov_um
    if not (width > 0 and height > 0):
        raise ExperimentError(
            "a grid needs the pixel size, which is not calibrated for this objective and binning",
            fix="Micro-Manager: Devices > Pixel Size Calibration; or give the grid fov_width and fov_height",
        )
    return grid.replace(fov_width=grid.fov_width or width, fov_height=grid.fov_height or height)


def _stacks(
    sequence: useq.MDASequence, optics: Optics, *, predict: bool
) -> Iterator[tuple[useq.MDAEvent, StackRequest]]:
    refuse_unsupported(sequence)
    focused: dict[str, Autofocus] = {}
    for _, group in groupby(_events(sequence), key=_stack_index):
        events = list(group)
        images = [event for event in events if not _focuses(event)]
        channel = _channel(sequence, images[0])
        request = _request(images, channel, optics, predict=predict)
        site = images[0].pos_name or f"p{images[0].index.get('p', 0):02d}"
        if images[0] is not events[0]:
            focus = _autofocus(site, events[0], _focus_um(sequence, images[0], channel))
            focused[site] = replace(focus, due=False)
            request = replace(request, autofocus=focus)
        elif site in focused:
            request = replace(request, autofocus=focused[site])
        held = len(images) > 1 and images[0].keep_shutter_open
        yield images[0], replace(request, keep_shutter_open=held)
    if not focused:
        refuse_without_focus(sequence)


def _events(sequence: useq.MDASequence) -> Iterator[useq.MDAEvent]:
    try:
        yield from sequence
    except ExperimentError:
        raise
    except Exception as error:  # useq-schema trips over some combinations
        what = "useq-schema cannot say what images this sequence has"
        raise ExperimentError(what, got=f"{type(error).__name__}: {error}", fix="make it simpler") from error


def _focuses(event: useq.MDAEvent) -> bool:
    return isinstance(event.action, useq.HardwareAutofocus)


def _stack_index(event: useq.MDAEvent) -> tuple[int, ...]:
    return tuple(event.index.get(axis, 0) for axis in ("t", "p", "g", "c"))


def _channel(sequence: useq.MDASequence, event: useq.MDAEvent) -> useq.Channel:
    """The whole channel of an event, which useq's event has only half of."""
    position = sequence.stage_positions[event.index.get("p", 0)]
    own = position.sequence.channels if position.sequence is not None else ()
    return (own or sequence.channels)[event.index.get("c", 0)]


def _autofocus(site: str, event: useq.MDAEvent, z_um: float) -> Autofocus:
    action = event.action
    assert isinstance(action, useq.HardwareAutofocus)
    device, offset = action.autofocus_device_name or "", action.autofocus_motor_offset
    return Autofocus(site, z_um, True, device, offset, action.max_retries)


def _focus_um(sequence: useq.MDASequence, event: useq.MDAEvent, channel: useq.Channel) -> float:
    """Where the focus is thought to be; useq forgets the z plan of a position, and the channel's offset."""
    own = sequence.stage_positions[event.index.get("p", 0)].sequence
    plan = (own and own.z_plan) or sequence.z_plan
    z_um = float(event.z_pos or 0.0)
    if plan is None or not plan.is_relative or "z" not in event.index:
        return z_um
    return round(z_um - list(plan)[event.index["z"]] - channel.z_offset, 4)


def _request(
    events: list[useq.MDAEvent], channel: useq.Channel, optics: Optics, *, predict: bool
) -> StackRequest:
    first = events[0]
    if channel.exposure is None:
        fix = f"give it one in ms: {{config: {channel.config}, exposure: 10}}"
        raise ExperimentError(f"{channel.config} has no exposure", fix=fix)
    if first.x_pos is None or first.y_pos is None:
        raise ExperimentError("a position has no x and y", fix="give every stage position x, y and z in um")
    name = first.pos_name or f"p{first.index.get('p', 0):02d}"
    if "g" in first.index:
        name = f"{name}_{first.index['g']:03d}"
    z_um = tuple(round(float(event.z_pos or 0.0), 4) for event in events)
    place = float(first.x_pos), float(first.y_pos)
    if not all(map(math.isfinite, (*place, *z_um))):
        what = f"the position {name[:100]} lies nowhere"
        raise ExperimentError(what, got=f"x, y, z {[*place, *z_um]}", fix="give numbers in um")
    if not _NAME.fullmatch(name):
        raise ExperimentError(
            f"the position name {name[:200]!r} cannot be a file name",
            wanted="at most 100 letters, digits, '_', '-' and '.'",
            fix="rename the position",
        )
    key = StackKey(first.index.get("t", 0), name, channel.config)
    return StackRequest(
        key, *place, z_um, channel.group, channel.config, float(channel.exposure),
        optics.modality, optics.polarity, predict, channel.camera or "",
    )  # fmt: skip


def _refuse_twins(requests: Iterable[StackRequest]) -> None:
    seen: dict[StackKey, StackRequest] = {}
    for request in requests:
        twin = seen.setdefault(request.key, request)
        if twin is request and len(set(request.z_um)) == len(request.z_um):
            continue
        if set(twin.z_um) & set(request.z_um):
            what, fix = "is planned twice", "give positions different names, and each channel and z once"
        else:
            what = "is not acquired in one go: z is not the innermost axis"
            fix = "use axis_order: tpgcz, and give a position with a sequence of its own its own z_plan"
        raise ExperimentError(f"the stack {request.key} {what}", fix=fix)
