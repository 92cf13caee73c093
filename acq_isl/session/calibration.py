"""A few fields of a microscope in transmitted light and in the stains, for a model to be calibrated on.

What is imaged is planned, checked and told before anything moves, as for a run. Imaged fields stay in the
folder: an interrupted calibration images only what is not there.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import useq

from acq_isl.compatibility import Refuse, check
from acq_isl.errors import ExperimentError, StorageError
from acq_isl.experiment.experiment import Experiment, NoEngine
from acq_isl.experiment.planning import Cycle, visits
from acq_isl.hooks import GuardedAcquisition, OpenMicroscope
from acq_isl.manifest import Manifest
from acq_isl.session.focus import FocusKeeper
from acq_isl.session.measured import MeasuredRun
from acq_isl.session.preflight import camera_of, prepare
from acq_isl.session.runner import safety_of
from acq_isl.session.saved_plan import SavedPlan
from acq_isl.stack import StackInfo, StackRequest
from acq_isl.training.data.pairs import Item, Nominal, Recording
from acq_isl.training.data.sources import project

Tell = Callable[[int, int, str], None]
"""Told how many of how many stacks are imaged, and the last one."""


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """Overview stacks of the fields, the stain that shows each label, and doubts about the experiment."""

    experiment: Experiment
    fields: tuple[StackRequest, ...]
    truth: Mapping[str, str]
    pixel_size_um: float
    doubts: tuple[str, ...]

    def stains(self, field: StackRequest) -> tuple[StackRequest, ...]:
        """The stacks of a field's stains, about the middle of its own."""
        revisit = self.experiment.revisit
        return () if revisit is None else visits(revisit, field, field.key.time)

    @property
    def light(self) -> tuple[tuple[str, int, float], ...]:
        """Exposures of a field by channel, with the ms of each."""
        field = self.fields[0]
        stacks = (field, *self.stains(field))
        return tuple((each.preset, len(each.z_um), each.exposure_ms) for each in stacks)


def plan_calibration(
    experiment: Experiment,
    scope: OpenMicroscope,
    truth: Mapping[str, str],
    fields: int,
    exposure_ms: float | None = None,
) -> CalibrationPlan:
    """What to image: so many fields of the overview, spread over it, a grid made larger if need be.

    ``truth`` names the channel of each label's stain, exposed as in the revisit, or for ``exposure_ms``.
    `ExperimentError` and `ActionRefused` as for a run; too few positions; an exposure that nobody knows.
    """
    changed = experiment.model_copy(
        update={
            "engine": NoEngine(), "choose": None, "triggers": (), "truth": dict(truth),
            "overview": _widen(experiment.overview, fields),
            "revisit": _stains(experiment, tuple(dict.fromkeys(truth.values())), exposure_ms),
        }
    )  # fmt: skip
    cycles, doubts = prepare(changed, scope)
    light = cycles[0].requests[0].key.channel
    found = [request for request in cycles[0].requests if request.key.channel == light]
    if len(found) < fields:
        raise ExperimentError(
            "the overview has too few fields", wanted=str(fields), got=str(len(found)),
            fix="add positions, or a grid_plan with rows and columns, or lower --fields",
        )  # fmt: skip
    spread = np.linspace(0, len(found) - 1, fields).round().astype(int)
    chosen = tuple(found[at] for at in spread)
    told = tuple(doubt for doubt in doubts if not doubt.startswith("revisit"))  # here it is not for a choice
    return CalibrationPlan(changed, chosen, dict(truth), camera_of(scope).pixel_size_um, told)


def _widen(overview: useq.MDASequence, fields: int) -> useq.MDASequence:
    """The overview at one time, its grid of rows and columns large enough for the fields."""
    once = overview.replace(time_plan=None)
    grid, places = once.grid_plan, max(len(once.stage_positions), 1)
    if not isinstance(grid, useq.GridRowsColumns) or grid.rows * grid.columns * places >= fields:
        return once
    columns = math.ceil(math.sqrt(fields / places))
    rows = math.ceil(fields / places / columns)
    return once.replace(grid_plan=grid.replace(rows=max(rows, grid.rows), columns=max(columns, grid.columns)))


def _stains(experiment: Experiment, channels: Sequence[str], exposure_ms: float | None) -> useq.MDASequence:
    revisit = experiment.revisit or useq.MDASequence(axis_order=tuple("tpgcz"))
    known = {channel.config: channel for channel in revisit.channels}
    found: list[Any] = []
    for name in channels:
        group = experiment.overview.channels[0].group
        channel = known.get(name) or useq.Channel(config=name, group=group, exposure=exposure_ms)
        exposure = exposure_ms or channel.exposure
        if exposure is None:
            raise ExperimentError(
                f"nobody says how long {name} is exposed",
                fix=f"give --exposure, or revisit: {{channels: [{{config: {name}, exposure: 50}}]}}",
            )
        found.append(channel.replace(exposure=exposure))
    return revisit.replace(channels=tuple(found))


def fit_model(plan: CalibrationPlan, manifest: Manifest) -> Nominal:
    """The stacks that the model will be for: with the pixels of the microscope, and with its planes if they
    are as many as the model's, else with those. `ExperimentError`: stacks that cannot be brought to it."""
    request, optics = plan.fields[0], plan.experiment.optics
    planes = len(request.z_um)
    step = abs(request.z_um[-1] - request.z_um[0]) / max(planes - 1, 1)
    own = planes == manifest.planes and step > 0
    nominal = Nominal(
        manifest.planes, plan.pixel_size_um,
        step if own else manifest.z_step_um or 1.0,
        optics.modality, optics.polarity, any_planes=manifest.any_planes,
    )  # fmt: skip
    camera = StackInfo(request.key, request.z_um, (1, 1), plan.pixel_size_um)
    verdict = check(nominal, camera)
    if isinstance(verdict, Refuse):
        raise ExperimentError(f"{manifest.name} cannot be calibrated: {verdict.reason}", fix=verdict.fix)
    return nominal


def image_fields(plan: CalibrationPlan, scope: OpenMicroscope, folder: Path, tell: Tell) -> None:
    """Image what the folder has not yet, guarded as in a run; raises as `GuardedAcquisition`."""
    experiment = plan.experiment
    before = MeasuredRun(folder)
    stacks = [(field, *plan.stains(field)) for field in plan.fields]
    total = sum(map(len, stacks))
    left = [own for own in stacks if any(before.planes(request.key) < len(request.z_um) for request in own)]
    done = total - sum(map(len, left))
    tell(done, total, "")
    if not left:
        return
    with GuardedAcquisition(
        folder, "measured", limits=experiment.limits, safety=safety_of(experiment)
    ) as microscope:
        focus = FocusKeeper(microscope, "stop", lambda *_: None)
        for field, *_ in left:
            found = focus.find(field)
            for request in () if found is None else (found, *plan.stains(found)):
                microscope.acquire(request)
                done += 1
                tell(done, total, str(request.key))


def keep_plan(plan: CalibrationPlan, scope: str, folder: Path) -> CalibrationPlan:
    """The plan with the fields that an earlier call in this folder set out to image, if there was one."""
    if (folder / "plan.json").exists():
        before = SavedPlan.read(folder)
        fields = before.cycles[0].requests
        same = [request.preset for request in fields[:1]] == [plan.fields[0].preset]
        if len(fields) != len(plan.fields) or not same:
            raise StorageError(
                f"{folder} holds another calibration", wanted=f"{len(plan.fields)} fields",
                got=str(len(fields)), fix="give another --output, or the same --fields",
            )  # fmt: skip
        return CalibrationPlan(plan.experiment, fields, plan.truth, plan.pixel_size_um, plan.doubts)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.yaml").write_text(plan.experiment.to_yaml(), encoding="utf-8")
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    SavedPlan(started=started, scope=scope, cycles=(Cycle(0, 0.0, plan.fields),)).write(folder)
    return plan


def imaged_pairs(plan: CalibrationPlan, folder: Path) -> tuple[Item, ...]:
    """The fields as pairs for training, in the order of imaging."""
    measured = MeasuredRun(folder)

    def item(field: StackRequest) -> Item:
        def load() -> Recording:
            stack = measured.stack(field)
            stains = {request.preset: request for request in plan.stains(field)}
            labels = {label: project(measured.images(stains[stain])) for label, stain in plan.truth.items()}
            order = np.argsort(stack.info.z_um)
            heights = tuple(stack.info.z_um[at] for at in order)
            return Recording(stack.pixels[order], labels, stack.info.pixel_size_um, heights)

        name = f"{folder.name}/{field.key.position}"
        return Item(name, None, f"{folder.resolve()} {field}", load, labels=tuple(plan.truth))

    return tuple(item(field) for field in plan.fields)
