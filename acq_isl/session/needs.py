"""What the actions of an experiment need: looked for on the microscope before anything moves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import assert_never

from acq_isl.errors import ActionRefused, ExperimentError
from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.planning import Cycle
from acq_isl.hooks import Hardware, OpenMicroscope, check_function
from acq_isl.rules.actions import (
    Need,
    NeedsAutofocus,
    NeedsFunction,
    NeedsOperator,
    NeedsPixelToStage,
    NeedsPreset,
    NeedsProperty,
)
from acq_isl.rules.light import LightLedger
from acq_isl.rules.pixels import PixelToStage


def pixel_to_stage(experiment: Experiment, scope: OpenMicroscope) -> PixelToStage | None:
    """Where pixels lie on the stage: as measured, as Micro-Manager knows it, or as simulated; else None."""
    if experiment.pixel_to_stage is not None:
        return experiment.pixel_to_stage
    known = Hardware(scope.core).pixel_to_stage()
    if known is None and scope.simulated is not None:
        return PixelToStage.nominal(float(scope.core.get_pixel_size_um()))
    return known


def check_need(need: Need, experiment: Experiment, scope: OpenMicroscope) -> Iterator[str]:
    """ExperimentError or ActionRefused if something is not there; yields what is not sure, for people."""
    hardware = Hardware(scope.core)
    match need:
        case NeedsPreset(group=group, preset=preset):
            hardware.require_preset(group, preset, experiment.limits)
        case NeedsProperty(device=device, name=name, value=value):
            hardware.require_property_value(device, name, value)
        case NeedsFunction(name=name, arguments=arguments):
            check_function(name, arguments, experiment.folder)
        case NeedsOperator():
            yield "a trigger pauses the run until somebody goes on, in the page (--web) or in the window"
        case NeedsAutofocus(device=device):
            hardware.require_autofocus(device)
        case NeedsPixelToStage():
            if pixel_to_stage(experiment, scope) is None:
                raise ExperimentError(
                    "nobody has measured where pixels lie on the stage, so no object can be centred",
                    fix="acq-isl affine EXPERIMENT measures it; write the result into the experiment",
                )
            if experiment.pixel_to_stage is None and scope.simulated is None:
                yield (
                    "objects are centred by Micro-Manager's pixel size affine, whose residual is not known; "
                    "acq-isl affine measures it"
                )
        case _:
            assert_never(need)


def check_light(experiment: Experiment, plan: Sequence[Cycle]) -> None:
    """ExperimentError if the overview alone would exceed a budget of light."""
    limits = experiment.limits.light
    budgeted = {preset for budget in limits.budgets for preset in budget.presets}
    planned = [request for cycle in plan for request in cycle.requests if request.preset in budgeted]
    ledger = LightLedger(limits)
    for request in planned:
        try:
            ledger.check(request)
        except ActionRefused as error:
            what = "the overview alone would exceed a budget of light"
            fix = "raise limits.light.budgets, or plan less"
            raise ExperimentError(what, wanted=error.wanted, got=error.got, fix=fix) from error
        ledger.book(request, len(request.z_um))
