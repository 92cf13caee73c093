"""What of a useq-schema sequence acq-isl does not perform, refused by its name before anything moves. Pure.

Everything that is not refused here is planned (`acq_isl.experiment.planning`) or says nothing about images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice, pairwise
from typing import Any

import useq

from acq_isl.errors import ExperimentError

_MOST_IMAGES = 1_000_000
_AXES = {"t": "time_plan", "p": "stage_positions", "g": "grid_plan", "c": "channels", "z": "z_plan"}


def refuse_unsupported(sequence: useq.MDASequence) -> None:
    """ExperimentError for a setting that would not be performed, of a sequence or of a position's own."""
    own_channels = [position.sequence is not None and position.sequence.channels
                    for position in sequence.stage_positions]  # fmt: skip
    if not sequence.channels and not (own_channels and all(own_channels)):
        fix = "add channels, such as channels: [{config: Phase, exposure: 10}]"
        raise _refusal("the sequence", "names no channel", fix)
    images = 0
    for where, own in _sequences(sequence):
        images += _count(where, own)
        if own.setup is not None:
            raise _refusal(
                f"{where}setup", "is not performed", "make a preset of it, and set that before the run"
            )
        check_points(f"{where}grid_plan", own.grid_plan)
        _check_axes(where, own)
        _check_times(where, own.time_plan)
        for channel in own.channels:
            if channel.z_offset and own.z_plan is None and sequence.z_plan is None:
                fix = "z_plan: {relative: [0]}"
                raise _refusal(f"{where}channels: z_offset of {channel.config}", "needs a z_plan", fix)
    if images > _MOST_IMAGES:
        what = f"plans {images:.3g} images, more than {_MOST_IMAGES:.0e}"
        raise _refusal("the sequence", what, "plan several runs")
    for position in sequence.stage_positions:
        if position.properties:
            name = f"stage_positions: properties of {position.name or 'a position'}"
            raise _refusal(name, "are not set", "make a preset of them, and a run for each")


def check_points(where: str, plan: object) -> None:
    """ExperimentError for points that say more than useq-schema looks at, or that are one spot."""
    if plan is not None and not isinstance(plan, useq.RelativePosition):
        _check_steps(where, plan)
    looked_at = {"x", "y", "fov_width", "fov_height"}
    if where.endswith("well_points_plan"):
        looked_at |= {"z", "name"}
    if isinstance(plan, useq.RandomPoints):
        where, plan = f"{where}: start_at", plan.start_at
    if isinstance(plan, useq.RelativePosition):
        for name in sorted(plan.model_fields_set - looked_at):
            raise _refusal(f"{where}: {name}", "is not looked at by useq-schema", "leave it out")


def _check_steps(where: str, plan: Any) -> None:
    """A field of no size, which useq-schema takes for 1 um, or one that overlaps its neighbour wholly."""
    for name in ("fov_width", "fov_height"):
        size = getattr(plan, name)
        if size is not None and not 0 < size < math.inf:
            raise _refusal(
                f"{where}: {name}", f"({size:g} um) is no size", "leave it out: the camera's is taken"
            )
    if not isinstance(plan, useq.RandomPoints) and not all(share < 100 for share in plan.overlap):
        what = f"({max(plan.overlap):g} per cent) leaves no step from field to field"
        raise _refusal(f"{where}: overlap", what, "give per cent of a field, such as overlap: 10")


def refuse_without_focus(sequence: useq.MDASequence) -> None:
    """ExperimentError if autofocus is planned that never comes to be performed."""
    for where, own in _sequences(sequence):
        if own.autofocus_plan is not None:
            axes = ", ".join(own.autofocus_plan.axes) or "none"
            what = f"({axes}) never changes, so nothing would be focused"
            raise _refusal(f"{where}autofocus_plan: axes", what, "axes: [p], to focus at each position")


def _sequences(sequence: useq.MDASequence) -> Iterator[tuple[str, useq.MDASequence]]:
    """A sequence and those of its positions, each with where it is written."""
    yield "", sequence
    for number, position in enumerate(sequence.stage_positions):
        if position.sequence is not None:
            yield f"stage_positions[{number}]: sequence: ", position.sequence


def _check_axes(where: str, sequence: useq.MDASequence) -> None:
    held = [axis for axis in sequence.keep_shutter_open_across if axis != "z"]
    if held:
        what = f"({', '.join(held)}) is not performed: the light would burn while the run decides"
        raise _refusal(f"{where}keep_shutter_open_across", what, "keep_shutter_open_across: [z]")
    plan = sequence.autofocus_plan
    if plan is not None and (wrong := [axis for axis in plan.axes if axis not in "tpgc"]):
        what = f"({', '.join(wrong)}) is not performed: a stack has one focus"
        raise _refusal(f"{where}autofocus_plan: axes", what, "axes: [p], to focus at each position")
    if (
        plan is not None
        and plan.autofocus_motor_offset is not None
        and not math.isfinite(plan.autofocus_motor_offset)
    ):
        raise _refusal(
            f"{where}autofocus_plan: autofocus_motor_offset", "is no number", "give it in the motor's units"
        )
    for axis, name in _AXES.items():
        if getattr(sequence, name) and axis not in sequence.axis_order:
            order = "".join(sequence.axis_order)
            raise _refusal(f"{where}{name}", f"is not in axis_order {order}", "axis_order: tpgcz")


def _check_times(where: str, plan: useq.TimePlan | None) -> None:
    phases = plan.phases if isinstance(plan, useq.MultiPhaseTimePlan) else (plan,)
    if any(phase and phase.prioritize_duration and "prioritize_duration" in phase.model_fields_set
           for phase in (plan, *phases)):  # fmt: skip
        what = "is not performed: late time points are taken, and told, never left out"
        raise _refusal(f"{where}time_plan: prioritize_duration", what, "leave it out, or plan fewer loops")
    if any(later < earlier for phase in phases if phase for earlier, later in pairwise(islice(phase, 2))):
        raise _refusal(
            f"{where}time_plan", "goes back in time", "give intervals and durations of 0 s or more"
        )


def _count(where: str, sequence: useq.MDASequence) -> int:
    """Images of a sequence, about, before anybody iterates over them."""
    images = max(len(sequence.stage_positions), 1) * max(len(sequence.channels), 1)
    for name in ("time_plan", "grid_plan", "z_plan"):
        plan = getattr(sequence, name)
        if plan is None:
            continue
        try:
            size = plan.num_timepoints() if name == "time_plan" else plan.num_positions()
            images *= size
            if name != "z_plan" and images <= _MOST_IMAGES:
                size = sum(1 for _ in plan)
        except (ArithmeticError, ValueError) as error:
            raise _refusal(f"{where}{name}", f"cannot be planned: {error}", "correct its numbers") from error
        if size < 1:
            raise _refusal(f"{where}{name}", "plans nothing", "correct its numbers, or leave it out")
    return images


def _refusal(name: str, what: str, fix: str) -> ExperimentError:
    return ExperimentError(f"{name} {what}", fix=fix)
