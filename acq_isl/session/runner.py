"""One run, put together from its parts: the place where everything is opened, and closed again."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from acq_isl.errors import AcqIslError
from acq_isl.events import (
    Decided,
    EventHandler,
    PlannedField,
    RunEnded,
    RunStarted,
    StateChanged,
    ignore_event,
)
from acq_isl.experiment.experiment import Experiment, SimulatedMicroscope, measurements
from acq_isl.experiment.planning import Cycle, count_images
from acq_isl.hooks import (
    GuardedAcquisition,
    OpenMicroscope,
    RenewingAcquisition,
    Safety,
    StopSignals,
    UserMeasurements,
    call_user_function,
    open_microscope,
)
from acq_isl.protocols import RunView
from acq_isl.record import RunRecord
from acq_isl.report.report import write_report
from acq_isl.rules.label_names import Labels
from acq_isl.rules.plugins import broken_plugins
from acq_isl.rules.series import well_name
from acq_isl.session.dose_table import FILE as DOSES
from acq_isl.session.dose_table import write_doses
from acq_isl.session.engine import RunPlan, WithoutEngine, open_engine, state
from acq_isl.session.evidence import note_run, vouch_files, vouch_stored
from acq_isl.session.grade import grade, true_cells
from acq_isl.session.measured import MeasuredRun
from acq_isl.session.needs import pixel_to_stage
from acq_isl.session.notify import Notifier
from acq_isl.session.preflight import camera_of, new_folder, prepare, simulated
from acq_isl.session.progress import ProgressMeter
from acq_isl.session.resume import Resumption, resumable
from acq_isl.session.saved_plan import SavedPlan
from acq_isl.session.session import Session
from acq_isl.session.so_far import read_decisions
from acq_isl.session.summary import Stored, describe_bounds, describe_choice, run_files, summarise, versions
from acq_isl.session.time_lapse import TimeLapse
from acq_isl.session.tools import SessionTools
from acq_isl.session.trust import write_pairs
from acq_isl.session.truth import write_truth
from acq_isl.session.views import Views
from acq_isl.stack import Prediction, StackKey
from acq_isl.storage.decision_log import Ledger
from acq_isl.storage.prediction_store import PredictionStore, find, load
from acq_isl.stream.client import EngineClient
from acq_isl.view.feed.previews import WatchedSink


def expected_slices(experiment: Experiment, plan: tuple[Cycle, ...]) -> tuple[int, int]:
    """Slices a run will take, as far as can be known: of the overview, and of revisits of chosen fields."""
    overview = revisit = 0
    for cycle in plan:
        overview += sum(len(request.z_um) for request in cycle.requests)
        if experiment.choose is not None and experiment.revisit is not None:
            positions = [request.key.position for request in cycle.requests]
            fields = experiment.choose.most(len(positions), len(set(map(well_name, positions))))
            revisit += fields * count_images(experiment.revisit)
    return overview, revisit


_COMPUTING_S, _FAULTY_S = 60.0, 10.0
_DISK_S = 10.0
_STORE = "predictions.ome.zarr"


@dataclass(frozen=True, slots=True, eq=False)
class RunResult:
    """Where a run is and what came of it."""

    folder: Path
    """Measured data, predictions, decisions, experiment, report."""
    report: Path
    """One HTML file."""
    record: RunRecord
    stopped: bool = False
    """An operator ended it before everything was imaged."""

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the chosen fields, best first."""
        chosen = sorted((f.rank or 0, f.info.key.position) for f in self.record.fields if f.chosen)
        return tuple(name for _, name in chosen)


def run(
    experiment: Experiment,
    *,
    sim: bool = False,
    watch: EventHandler = ignore_event,
    views: Sequence[RunView] = (),
    resume: Path | None = None,
) -> RunResult:
    """Run an experiment from the first field to the report.

    Parameters
    ----------
    sim : bool
        On a simulated microscope, whatever the experiment names.
    watch : callable
        Gets every event, one after the other on a thread of its own; must return quickly, for the run waits.
        One that takes longer than two seconds, or raises, gets no more.
    views : sequence of RunView
        Get the events on threads of their own, whatever time they take; see `acq_isl.protocols.RunView`.
    resume : Path, optional
        Folder of a run that was cut off: go on with the fields that it did not image, in the same folder.

    Raises
    ------
    AcqIslError
        The run could not be started or ended early. What was captured until then is kept, and a
        report of it is written; the error's notes say where.
    StoppedBySignal
        A KeyboardInterrupt: Ctrl-C, SIGTERM, SIGHUP or a closed terminal ended it, with the same care.
    """
    experiment = simulated(experiment) if sim else experiment
    with StopSignals() as signals, open_microscope(experiment.microscope) as scope:
        saved = None if resume is None else resumable(resume, experiment)
        cycles, doubts = prepare(experiment, scope, saved.cycles if saved else ())
        folder = new_folder(experiment) if resume is None else resume.resolve()
        plan = RunPlan(cycles, camera_of(scope), folder, doubts, saved, pixel_to_stage(experiment, scope))
        try:
            return _carry_out(experiment, scope, plan, Views(folder, watch, views), signals)
        except BaseException as error:
            error.add_note(f"what was captured until then is in {folder}")
            raise


def _begin(experiment: Experiment, plan: RunPlan, scope: str) -> str:
    """Note what is to be done; when it was begun, first of all (ISO 8601)."""
    number = 1 + len(list(plan.folder.glob("experiment*.yaml")))
    name = "experiment.yaml" if number == 1 else f"experiment_{number}.yaml"
    (plan.folder / name).write_text(experiment.to_yaml(), encoding="utf-8")
    if plan.saved is not None:
        return plan.saved.started
    started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    SavedPlan(started=started, scope=scope, cycles=plan.cycles).write(plan.folder)
    return started


def _carry_out(
    experiment: Experiment, scope: OpenMicroscope, plan: RunPlan, views: Views, signals: StopSignals
) -> RunResult:
    """Run with everything open; the report is written however it ends."""
    folder = plan.folder
    started, began = _begin(experiment, plan, scope.description), time.monotonic()
    record: RunRecord | None = None
    failure = ""
    report = folder / "report.html"
    signals.tell = lambda why: views.handle(StateChanged("stopping", why))
    with views:
        session: Session | None = None
        try:
            with _opened(experiment, plan, views) as parts:
                views.handle(parts.start(started, scope, plan))
                session = _session(plan, parts, views)
                try:
                    session.run()
                finally:
                    signals.hold()
        except BaseException as error:
            failure = f"the run ended early: {error or type(error).__name__}"
            raise
        finally:
            if session is not None:
                # Only now is everything on disk that the pictures are read from.
                record = parts.record(started, time.monotonic() - began, scope.description)
                images = MeasuredRun(folder).images if plan.saved else parts.microscope.images
                stored = Stored(images, parts.stored(folder / _STORE))
                record = summarise(experiment, session, stored, record)
                record = _with_tables(record, experiment, session, stored, plan)
                record = _with_ending(record, folder, failure)
                record = grade(record, experiment, session, stored, scope.simulated)
                # The light of an earlier process is known to nobody, so such a truth would not be whole.
                known = None if plan.saved else scope.simulated
                if cells := true_cells(session, known, record.decisions):
                    write_truth(folder, cells)
                vouch_files(folder)
                write_report(report, record)
            failure = failure or (record.shortfall if record is not None else "")
            views.handle(RunEnded(failure, str(report) if record is not None else ""))
    return RunResult(folder, report, record, session.stopped)


def _session(plan: RunPlan, parts: _Parts, views: Views) -> Session:
    """A session at its beginning, or where an earlier one was cut off."""
    if plan.saved is None:
        return Session(parts.experiment, plan.cycles, parts.tools)
    earlier = Resumption(plan.folder, parts.experiment, parts.tools)
    session = Session(parts.experiment, earlier.plan, parts.tools)
    session.warnings.append(earlier.words)
    earlier.show(views.handle)
    earlier.hand_over(session, parts.source)
    return session


def _with_tables(
    record: RunRecord, experiment: Experiment, session: Session, stored: Stored, plan: RunPlan
) -> RunRecord:
    """Leave the tables of a run beside it; what they come to, or why they are not there, is in the record."""
    folder = plan.folder
    write_pairs(folder, experiment, plan.cycles[0].requests[0].key.channel)
    try:
        light = write_doses(folder, experiment, session, stored, plan.pixel_to_stage)
    except (AcqIslError, OSError) as error:
        return replace(record, warnings=(*record.warnings, f"{DOSES} was not written: {error}"))
    return replace(record, light=(*record.light, *light), files=run_files(folder))


def _with_ending(record: RunRecord, folder: Path, failure: str) -> RunRecord:
    decisions, problems = read_decisions(folder)
    failure = "; ".join(filter(None, (failure, *problems)))
    warnings = (failure, *record.warnings) if failure else record.warnings
    return replace(record, decisions=decisions, warnings=warnings)


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """What is open during a run."""

    experiment: Experiment
    folder: Path
    tools: SessionTools
    microscope: RenewingAcquisition
    source: EngineClient | WithoutEngine
    lapse: TimeLapse
    labels: Labels
    notes: list[str]  # warnings; the engine's keeper adds to them
    versions: dict[str, str]  # of the software, and what its engine was measured to be

    def stored(self, path: Path) -> Callable[[StackKey, str], Prediction]:
        """How to read a model's prediction of a stack back, with labels called as in this run."""
        return lambda key, model: self.labels.rename(load(path, find(path, key, model)[-1]))

    def start(self, started: str, scope: OpenMicroscope, plan: RunPlan) -> RunStarted:
        return RunStarted(
            name=self.experiment.name,
            started=started,
            folder=str(plan.folder),
            scope=scope.description,
            model=self.labels.titles,
            labels=self.labels.styles,
            fields=tuple(PlannedField.of(request) for cycle in plan.cycles for request in cycle.requests),
            fov_um=plan.camera.fov_um,
            limits=describe_bounds(self.experiment.limits),
            choice=describe_choice(self.experiment),
            models=len(self.labels.models),
        )

    def record(self, started: str, duration_s: float, scope: str) -> RunRecord:
        """What is known of the run without its session."""
        return RunRecord(
            name=self.experiment.name,
            started=started,
            duration_s=duration_s,
            scope=scope,
            model=self.labels.titles,
            model_colors=self.labels.colors,
            counts=self.source.accounts.counts,
            versions=self.versions,
            files=run_files(self.folder),
            warnings=(*self.notes, *self.lapse.warnings),
            curves=self.lapse.curves,
            experiment_yaml=self.experiment.to_yaml(),
            label_models=self.labels.by_model,
        )


@contextmanager
def _opened(experiment: Experiment, plan: RunPlan, views: Views) -> Iterator[_Parts]:
    """Open everything a run needs, innermost what must be closed first: the acquisition."""
    folder, notes = plan.folder, list(plan.doubts)

    def tell(what: str, why: str, done: str) -> None:
        notes.append(f"the engine: {why}; {what}: {done}")
        views.handle(Decided(None, "engine", what, why, done))
        ledger.write("engine", rule="engine", what=what, why=why, done=done)

    notifier = Notifier(experiment.limits.notify, notes.append)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(folder / "decisions.jsonl"))
        engine = open_engine(experiment, plan, stack, tell)
        source, labels, software = engine.source, engine.labels, versions()
        software |= {"engine": engine.why} if engine.why else {}
        notes += engine.warnings
        store = _store(folder, labels, plan, ledger)
        note_run(ledger, folder, experiment, labels, software)
        stack.enter_context(store)
        lapse = stack.enter_context(_time_lapse(experiment, plan, labels, views))
        sink, safety = WatchedSink(source, lapse.see), safety_of(experiment)
        guarded = partial(
            GuardedAcquisition, folder, "measured", sink=sink, limits=experiment.limits, safety=safety
        )
        microscope = stack.enter_context(RenewingAcquisition(guarded))
        counters = (lambda: microscope.captured, lambda: source.accounts.counts.lost)
        meter = _meter(experiment, plan, labels, lapse.handle, counters, lambda: state(source))
        call = partial(call_user_function, folder=experiment.folder)
        parts = microscope, source, store, ledger, call, meter.handle, views.commands
        tools = SessionTools(
            *parts, labels=labels, ask=stack.enter_context(UserMeasurements(experiment.folder))
        )
        tools = _equipped(tools, plan, stack.enter_context(notifier), source)
        notes += (*views.warnings, *map(str, broken_plugins()))
        yield _Parts(experiment, folder, tools, microscope, source, lapse, labels, notes, software)
        lapse.show_curves()


def _store(folder: Path, labels: Labels, plan: RunPlan, ledger: Ledger) -> PredictionStore:
    return PredictionStore(
        folder / _STORE,
        labels.store_colors,
        timeout_s=_DISK_S,
        extend=plan.saved is not None,
        on_stored=vouch_stored(ledger.note),
    )


def _time_lapse(experiment: Experiment, plan: RunPlan, labels: Labels, views: Views) -> TimeLapse:
    rules = [(rule, labels.owner(rule.first_label)) for rule in measurements(experiment)]
    return TimeLapse(views.handle, plan.folder, plan.cycles, rules)


def _meter(
    experiment: Experiment,
    plan: RunPlan,
    labels: Labels,
    emit: EventHandler,
    counters: tuple[Callable[[], int], Callable[[], int]],
    engine: Callable[[], str],
) -> ProgressMeter:
    slices, models = expected_slices(experiment, plan.cycles), len(labels.models)
    meter = ProgressMeter(emit, counters, engine, slices, models=models)
    if not any(cycle.restarts for cycle in plan.cycles):
        meter.last_start_s = plan.cycles[-1].start_s
    return meter


def _equipped(
    tools: SessionTools, plan: RunPlan, notifier: Notifier, source: EngineClient | WithoutEngine
) -> SessionTools:
    """With what actions need beside the microscope."""
    fov_um, affine = plan.camera.fov_um, plan.pixel_to_stage
    discard = source.discard
    return replace(tools, notify=notifier.send, pixel_to_stage=affine, fov_um=fov_um, discard=discard)


def safety_of(experiment: Experiment) -> Safety:
    """How patient the guard of an acquisition is."""
    # A slow computer takes seconds to compute a new field; that is no stuck microscope.
    microscope = experiment.microscope
    if isinstance(microscope, SimulatedMicroscope):
        return Safety(watchdog_s=_FAULTY_S if microscope.faults else _COMPUTING_S)
    return Safety()
