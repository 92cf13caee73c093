"""An experiment is checked against the microscope and the model before anything moves."""

from __future__ import annotations

import datetime
import difflib
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from acq_isl.engines import describe
from acq_isl.errors import ExperimentError, ModelError, StorageError
from acq_isl.experiment.experiment import Experiment, LocalEngine, SimulatedMicroscope, measurements
from acq_isl.experiment.planning import Cycle, Optics, Place, cycles, visits
from acq_isl.hooks import Hardware, OpenMicroscope
from acq_isl.manifest import Manifest
from acq_isl.rules.actions import Limits
from acq_isl.rules.label_names import Labels, RunModel
from acq_isl.rules.measurements import ObjectMeasurement, check_countable
from acq_isl.rules.over_time import innermost
from acq_isl.session.explain import lint_labels
from acq_isl.session.functions import lint_functions
from acq_isl.session.needs import check_need
from acq_isl.session.sense import Camera, check_fit, find_doubts, refuse_errors
from acq_isl.session.trust import check_bar, check_stacks, truth_of
from acq_isl.stack import StackRequest
from acq_isl.stream.model_registry import changes, named


def simulated(experiment: Experiment) -> Experiment:
    """The same experiment on a simulated microscope."""
    if isinstance(experiment.microscope, SimulatedMicroscope):
        return experiment
    return experiment.model_copy(update={"microscope": SimulatedMicroscope()})


def prepare(
    experiment: Experiment, scope: OpenMicroscope, plan: tuple[Cycle, ...] = ()
) -> tuple[tuple[Cycle, ...], tuple[str, ...]]:
    """The overview stacks of an experiment, checked as far as possible before anything moves, and doubts.

    They are those of ``plan``, if there is one already, else of the experiment's overview, from where it is.
    ExperimentError, ActionRefused or ModelError names what cannot be had, and the nearest that can.
    """
    core = scope.core
    width, height = core.get_image_width(), core.get_image_height()
    pixel_um = core.get_pixel_size_um()
    x_um, y_um, z_um = core.get_x_position(), core.get_y_position(), core.get_position()
    place = Place(x_um, y_um, z_um, (width * pixel_um, height * pixel_um))
    optics = Optics(experiment.optics.modality, experiment.optics.polarity)
    plan = plan or cycles(experiment.overview, place, optics)
    if experiment.choose is not None and len({cycle.time for cycle in plan}) < len(plan):
        raise ExperimentError(
            "choose ranks the fields of a time point, and a position has times of its own",
            fix="give all positions the same time_plan, or leave choose out",
        )
    camera = camera_of(scope)
    doubts = find_doubts(experiment, plan, camera)
    hardware = Hardware(core)
    planned = list(_all_requests(experiment, plan))
    for request in planned:
        _check_reach(request, scope.reach)
        hardware.require_preset(request.group, request.preset, experiment.limits)
        hardware.require_devices(request)
    refuse_errors(lint_functions(experiment))
    needs = {need: None for trigger in experiment.triggers for need in trigger.do.needs()}
    unsure = [doubt for need in needs for doubt in check_need(need, experiment, scope)]
    _check_budgeted(experiment, hardware, {request.group for request in planned})
    doubts = (*_missing_limits(experiment), *unsure, *doubts)
    if isinstance(experiment.engine, LocalEngine):
        doubts += check_models(experiment, plan, local_labels(experiment), camera)
    return plan, doubts


def _check_budgeted(experiment: Experiment, hardware: Hardware, groups: Collection[str]) -> None:
    """ExperimentError for a budget of a preset that there is not: it would never hold."""
    light = experiment.limits.light
    named = {preset for budget in light.budgets for preset in budget.presets} | set(light.irradiance_mw_cm2)
    there = {preset for group in groups for preset in hardware.presets(group)}
    if unknown := sorted(named - there):
        raise ExperimentError(
            f"limits.light names a preset that there is not: {unknown[0]}",
            wanted=f"some of {', '.join(sorted(there))}",
            fix="correct its name, or its budget would never hold",
        )


def camera_of(scope: OpenMicroscope) -> Camera:
    """What the camera is set to."""
    core = scope.core
    return Camera((core.get_image_height(), core.get_image_width()), core.get_pixel_size_um())


def check_models(
    experiment: Experiment, plan: tuple[Cycle, ...], labels: Labels, camera: Camera
) -> tuple[str, ...]:
    """What models would remark on a plan; ExperimentError for a label or a stack that is not for them."""
    check_labels(experiment, labels)
    return (*refuse_errors(lint_labels(experiment, labels)), *check_fit(labels, plan, camera))


def _missing_limits(experiment: Experiment) -> tuple[str, ...]:
    """On a real microscope whatever is not limited is a risk that somebody should have decided to take."""
    limits = experiment.limits
    if isinstance(experiment.microscope, SimulatedMicroscope):
        return ()
    missing = [f"{axis}_um" for axis in "xyz" if axis not in limits.stage]
    missing += ["exposure_ms"] if limits.exposure_ms is None else []
    if not missing:
        return ()
    left = "only the microscope's own limits hold there; write down what is safe for specimen and objective"
    return (f"limits do not state {', '.join(missing)}: {left}",)


def _require_alike(experiment: Experiment, manifest: Manifest) -> None:
    """ModelError if the smaller model could not take the place of the model."""
    engine = experiment.engine
    smaller = engine.smaller_model if isinstance(engine, LocalEngine) else None
    if smaller is not None and (changed := changes(manifest, describe(smaller).manifest)):
        raise ModelError(
            f"the smaller model {smaller} cannot take the place of the model",
            wanted="the same labels, planes, pixel size and optics",
            got="; ".join(changed),
            fix="name another one, or leave out smaller_model",
        )


def local_labels(experiment: Experiment) -> Labels:
    """What models of our own engine predict; ModelError if one cannot be had, or two have one name."""
    if not experiment.models:
        info = describe(experiment.model)
        _require_alike(experiment, info.manifest)
        return Labels([RunModel("", info.manifest, info.sha256)])
    models = []
    for entry in experiment.models:
        name, file = named(entry)
        info = describe(file)
        models.append(RunModel(name or info.manifest.name, info.manifest, info.sha256))
    names = [model.asked_as for model in models]
    if len(set(names)) < len(names):
        raise ModelError(
            "the models of an experiment must have different names",
            got=", ".join(names),
            fix="give names: models: [mine=FILE, theirs=FILE]",
        )
    return Labels(models)


def _check_reach(request: StackRequest, reach: Limits) -> None:
    places = {"x": (request.x_um,), "y": (request.y_um,), "z": request.z_um}
    for axis, (low, high) in reach.stage.items():
        for value in places[axis]:
            if not low <= value <= high:
                raise ExperimentError(
                    f"the stage cannot go to {request.key}",
                    wanted=f"{axis} from {low:g} to {high:g} um",
                    got=f"{value:g} um",
                    fix="move the position",
                )


def _all_requests(experiment: Experiment, plan: tuple[Cycle, ...]) -> Iterator[StackRequest]:
    for cycle in plan:
        for field in cycle.requests:
            yield field
            yield from check_stacks(experiment, field)
            if experiment.revisit is not None:
                for visit in visits(experiment.revisit, field, cycle.time):
                    if visit.key == field.key:
                        raise ExperimentError(
                            f"the revisit images {visit.preset} again, which would overwrite the overview",
                            fix=f"leave {visit.preset} out of revisit, or make a second preset for it",
                        )
                    yield visit


def check_labels(experiment: Experiment, known: Labels) -> None:
    """ExperimentError for a label that no model predicts, naming the nearest, or for objects of a network."""
    labels = known.names
    rules = measurements(experiment)
    wanted = (
        {label for rule in rules for label in rule.labels} | set(experiment.truth) | set(truth_of(experiment))
    )
    for label in sorted(wanted - set(labels)):
        same = [name for name in labels if known.name_in_model(name) == label]
        near = same or difflib.get_close_matches(label, labels, n=1)
        models = " and ".join(experiment.model_files)
        raise ExperimentError(
            f"{models} predict no label {label!r}" + (", but one each of that name" if same else "")
            if known.several
            else f"the model {models} does not predict {label!r}",
            wanted=f"one of {', '.join(labels)}",
            fix=f"did you mean {' or '.join(map(repr, near))}?"
            if near
            else "correct the label, or use another model",
        )
    check_bar(experiment, known.counting)
    for rule in rules:
        inner = innermost(rule)
        if isinstance(inner, ObjectMeasurement):
            check_countable(inner.label, known.counting, inner.kind)
        if len({known.owner(label) for label in rule.labels}) > 1:
            raise ExperimentError(
                f"{rule.title} cannot be measured: its labels are predicted by different models",
                wanted="labels of one model",
                got=", ".join(rule.labels),
                fix="take a model that predicts all of them, or a rule with all: of a condition on each",
            )


def new_folder(experiment: Experiment) -> Path:
    """A new run folder below ``experiment.output``, named after time and experiment; StorageError if not."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H%M%S")
    name = re.sub(r"[^A-Za-z0-9]+", "-", experiment.name).strip("-").lower()
    for attempt in range(100):
        folder = experiment.output / (f"{stamp}_{name}" + (f"_{attempt}" if attempt else ""))
        try:
            folder.mkdir(parents=True, exist_ok=False)
        except FileExistsError:
            continue
        except OSError as error:
            what = f"the run folder {folder} cannot be made"
            raise StorageError(what, got=str(error), fix="give another --output") from error
        return folder.resolve()
    raise StorageError(f"no free name for a run in {experiment.output}", fix="give another --output")
