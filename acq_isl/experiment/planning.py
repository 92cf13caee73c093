"""A useq-schema sequence becomes the stacks to acquire. Pure.

useq-schema describes every image as an event; acq-isl acquires whole stacks, so consecutive events that
differ only in z are gathered into one `StackRequest`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import useq

from acq_isl.errors import ExperimentError
from acq_isl.stack import Modality, Polarity, StackKey, StackRequest

# Names become axes of the dataset and file names on every platform; the Java bridge chokes on '@'.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


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
    """All stacks of one time point; it starts so many seconds after the run, at the earliest."""

    time: int
    start_s: float
    requests: tuple[StackRequest, ...]


def cycles(sequence: useq.MDASequence, place: Place, optics: Optics) -> tuple[Cycle, ...]:
    """Stacks of an overview sequence, by time point.

    Missing coordinates are taken from ``place``, and so is the field size of a grid without one.

    Raises
    ------
    ExperimentError
        No channel or exposure, z not innermost, time not outermost, a name that cannot be a file name.
    """
    stacks = _stacks(_complete(sequence, place), optics, predict=True)
    found = []
    for time, group in groupby(stacks, key=lambda stack: stack[1].key.time):
        starts_s, requests = zip(*group, strict=True)
        found.append(Cycle(time, starts_s[0], requests))
    if len({cycle.time for cycle in found}) != len(found):
        raise ExperimentError(
            "time is not the outermost axis of the overview",
            got=f"axis_order {''.join(sequence.axis_order)}",
            fix="put t first, for example axis_order: tpgcz",
        )
    _refuse_twins([request for cycle in found for request in cycle.requests])
    return tuple(found)


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
    placed = sequence.replace(stage_positions=(here,))
    stacks = _stacks(placed, Optics("fluorescence", "unknown"), predict=False)
    requests = [replace(request, key=replace(request.key, time=time)) for _, request in stacks]
    _refuse_twins(requests)
    return tuple(requests)


def _complete(sequence: useq.MDASequence, place: Place) -> useq.MDASequence:
    # useq-schema takes a missing field size as 1 um, which would image the same spot again and again.
    grid = sequence.grid_plan
    if grid is not None and (grid.fov_width is None or grid.fov_height is None):
        width, height = place.fov_um
        grid = grid.replace(fov_width=grid.fov_width or width, fov_height=grid.fov_height or height)
        sequence = sequence.replace(grid_plan=grid)
    if isinstance(sequence.stage_positions, useq.WellPlatePlan):
        return sequence
    positions = tuple(sequence.stage_positions) or (useq.AbsolutePosition(),)
    filled = tuple(
        position.replace(
            x=place.x_um if position.x is None else position.x,
            y=place.y_um if position.y is None else position.y,
            z=place.z_um if position.z is None else position.z,
        )
        for position in positions
    )
    return sequence.replace(stage_positions=filled)


def _stacks(
    sequence: useq.MDASequence, optics: Optics, *, predict: bool
) -> Iterator[tuple[float, StackRequest]]:
    if not sequence.channels:
        raise ExperimentError(
            "the sequence names no channel",
            wanted="at least one, such as channels: [{config: Phase, exposure: 10}]",
            fix="add channels with the preset's name and its exposure in ms",
        )
    for _, group in groupby(sequence, key=_stack_index):
        events = list(group)
        yield events[0].min_start_time or 0.0, _request(events, optics, predict=predict)


def _stack_index(event: useq.MDAEvent) -> tuple[int, ...]:
    return tuple(event.index.get(axis, 0) for axis in ("t", "p", "g", "c"))


def _request(events: list[useq.MDAEvent], optics: Optics, *, predict: bool) -> StackRequest:
    first = events[0]
    channel = first.channel
    if channel is None or first.exposure is None:
        name = channel.config if channel else "the channel"
        fix = f"give it one in ms: {{config: {name}, exposure: 10}}"
        raise ExperimentError(f"{name} has no exposure", fix=fix)
    if first.x_pos is None or first.y_pos is None:
        raise ExperimentError("a position has no x and y", fix="give every stage position x, y and z in um")
    name = first.pos_name or f"p{first.index.get('p', 0):02d}"
    if "g" in first.index:
        name = f"{name}_{first.index['g']:03d}"
    if not _NAME.fullmatch(name):
        raise ExperimentError(
            f"the position name {name!r} cannot be a file name",
            wanted="letters, digits, '_', '-' and '.'",
            fix="rename the position",
        )
    key = StackKey(first.index.get("t", 0), name, channel.config)
    z_um = tuple(round(float(event.z_pos or 0.0), 4) for event in events)
    light = channel.group, channel.config, float(first.exposure), optics.modality, optics.polarity
    return StackRequest(key, float(first.x_pos), float(first.y_pos), z_um, *light, predict)


def _refuse_twins(requests: list[StackRequest]) -> None:
    seen: set[StackKey] = set()
    for request in requests:
        if request.key in seen:
            raise ExperimentError(
                f"the stack {request.key} is planned twice, or its z planes are not acquired in one go",
                wanted="z as the innermost axis and every position name only once",
                fix="use axis_order: tpgcz and give positions different names",
            )
        seen.add(request.key)
