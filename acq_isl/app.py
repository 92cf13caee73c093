"""One run, put together from its parts: the place where everything is opened, and closed again."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from acq_isl.broadcast import Broadcast, bounds, choice, expected_slices
from acq_isl.engines import describe
from acq_isl.errors import EngineError, StorageError
from acq_isl.experiment import Experiment, LocalEngine, NoEngine, RemoteEngine, SimulatedMicroscope
from acq_isl.faults import of_engine
from acq_isl.figures import Gauge
from acq_isl.hooks import GuardedAcquisition, OpenMicroscope, Safety, call_user_function, open_microscope
from acq_isl.instruments import Instruments
from acq_isl.ledger import Ledger
from acq_isl.ledger import read as read_ledger
from acq_isl.manifest import Manifest
from acq_isl.marking import marked
from acq_isl.news import LabelStyle, RunEnded, RunStarted, Tell, untold
from acq_isl.plan import Cycle
from acq_isl.preflight import check_labels, new_folder, prepare, simulated
from acq_isl.record import RunRecord
from acq_isl.report import write_report
from acq_isl.session import Session
from acq_isl.stack import Outcome, Slice, StackInfo, StackKey, Unpredicted
from acq_isl.store import PredictionStore, field_name, load
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.keys import client_keys
from acq_isl.stream.link import LinkSettings
from acq_isl.stream.process import SERVE, EngineProcess
from acq_isl.stream.spool import Spool
from acq_isl.summary import Kept, Origin, summarise, versions
from acq_isl.view.notebook import run_html
from acq_isl.view.previews import WatchedSink

_REMOTE_WAIT_S = 5.0
_COMPUTING_S, _FAULTY_S = 60.0, 10.0
_DISK_S = 10.0
_STORE = "predictions.ome.zarr"
_FILES = (
    ("measured data (NDTiff)", "measured_1"),
    ("predictions (OME-Zarr)", _STORE),
    ("decisions", "decisions.jsonl"),
    ("experiment as run", "experiment.yaml"),
    ("stacks that wait for an engine", "spool"),
)


@dataclass(frozen=True, slots=True, eq=False)
class RunResult:
    """Where a run is and what came of it.

    Parameters
    ----------
    folder : Path
        Measured data, predictions, decisions, experiment, report.
    report : Path
        One HTML file.
    record : RunRecord
    """

    folder: Path
    report: Path
    record: RunRecord

    def _repr_html_(self) -> str:
        return run_html(self.record, str(self.folder), str(self.report))

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the chosen fields, best first."""
        chosen = sorted((f.rank or 0, f.info.key.position) for f in self.record.fields if f.chosen)
        return tuple(name for _, name in chosen)


class WithoutEngine:
    """Stands in for a client when no engine is wanted: every stack is measured data only."""

    copies = True  # it looks at the announcement only, so nobody needs to copy pixels for it

    def __init__(self) -> None:
        self._infos: dict[StackKey, StackInfo] = {}

    def put(self, slice_: Slice) -> None:
        self._infos[slice_.info.key] = slice_.info

    def poll(self) -> list[Outcome]:
        return []

    def drain(self, timeout_s: float) -> list[Outcome]:
        infos, self._infos = self._infos, {}
        return [Unpredicted(info, "this run has no engine", "the measured data") for info in infos.values()]


def run(experiment: Experiment, *, sim: bool = False, watch: Tell = untold) -> RunResult:
    """Run an experiment from the first field to the report.

    Parameters
    ----------
    experiment : Experiment
    sim : bool
        On a simulated microscope, whatever the experiment names.
    watch : callable
        Told of everything that happens, on the thread on which it happens; must return quickly.

    Raises
    ------
    AcqIslError
        The run could not be started or ended early. What was captured until then is kept, and a
        report of it is written; the error's notes say where.
    """
    experiment = simulated(experiment) if sim else experiment
    with open_microscope(experiment.microscope) as scope:
        plan = prepare(experiment, scope)
        folder = new_folder(experiment)
        try:
            return _carry_out(experiment, scope, plan, folder, watch)
        except BaseException as error:
            error.add_note(f"what was captured until then is in {folder}")
            raise


def _carry_out(
    experiment: Experiment,
    scope: OpenMicroscope,
    plan: tuple[Cycle, ...],
    folder: Path,
    watch: Tell,
) -> RunResult:
    """Run with everything open; the report is written however it ends."""
    (folder / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    started, began = datetime.datetime.now().astimezone().isoformat(timespec="seconds"), time.monotonic()
    record: RunRecord | None = None
    failure = ""
    report = folder / "report.html"
    with Broadcast(folder, watch) as cast:
        session: Session | None = None
        try:
            with _opened(experiment, folder, plan, cast) as parts:
                cast.tell(parts.news(started, folder, scope, plan))
                session = Session(experiment, plan, parts.instruments)
                session.run()
        except BaseException as error:
            failure = f"the run ended early: {error or type(error).__name__}"
            raise
        finally:
            if session is not None:
                # Only now is everything on disk that the pictures are read from.
                origin = parts.origin(started, time.monotonic() - began, scope.description)
                kept = Kept(parts.microscope.images, lambda key: load(folder / _STORE, field_name(key)))
                record = _with_ending(summarise(experiment, session, kept, origin), folder, failure)
                record = marked(record, experiment, session, kept, scope.simulated)
                write_report(report, record)
            cast.tell(RunEnded(failure, str(report) if record is not None else ""))
    return RunResult(folder, report, record)


def _with_ending(record: RunRecord, folder: Path, failure: str) -> RunRecord:
    try:
        decisions = read_ledger(folder / "decisions.jsonl")
    except StorageError as error:
        decisions, failure = (), f"{failure}; {error}".removeprefix("; ")
    warnings = (failure, *record.warnings) if failure else record.warnings
    return replace(record, decisions=decisions, warnings=warnings)


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """What is open during a run."""

    experiment: Experiment
    instruments: Instruments
    microscope: GuardedAcquisition
    source: EngineClient | WithoutEngine
    manifest: Manifest | None
    model: str
    warnings: tuple[str, ...]

    def news(self, started: str, folder: Path, scope: OpenMicroscope, plan: tuple[Cycle, ...]) -> RunStarted:
        core = scope.core
        pixel_um = core.get_pixel_size_um()
        return RunStarted(
            name=self.experiment.name,
            started=started,
            folder=str(folder),
            scope=scope.description,
            model=self.model,
            labels=tuple(LabelStyle(one.name, one.color) for one in self.manifest.labels)
            if self.manifest
            else (),
            fields=tuple(request for cycle in plan for request in cycle.requests),
            fov_um=(core.get_image_width() * pixel_um, core.get_image_height() * pixel_um),
            limits=bounds(self.experiment.limits),
            choice=choice(self.experiment),
        )

    def origin(self, started: str, duration_s: float, scope: str) -> Origin:
        colors = {label.name: label.color for label in self.manifest.labels} if self.manifest else {}
        return Origin(
            started=started,
            duration_s=duration_s,
            scope=scope,
            model=self.model,
            model_colors=colors,
            versions=versions(),
            files=dict(_FILES),
            warnings=self.warnings,
            captured=self.microscope.captured,
            lost=_lost(self.source),
        )


@contextmanager
def _opened(
    experiment: Experiment, folder: Path, plan: tuple[Cycle, ...], cast: Broadcast
) -> Iterator[_Parts]:
    """Open everything a run needs, innermost what must be closed first: the acquisition."""
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger(folder / "decisions.jsonl"))
        source, manifest, model, warnings = _engine(experiment, folder, stack)
        colors = {label.name: label.color for label in manifest.labels} if manifest else {}
        store = stack.enter_context(PredictionStore(folder / _STORE, colors, timeout_s=_DISK_S))
        sink, safety = WatchedSink(source, cast.tell), _safety(experiment)
        microscope = stack.enter_context(
            GuardedAcquisition(folder, "measured", sink=sink, limits=experiment.limits, safety=safety)
        )
        counters = (lambda: microscope.captured, lambda: _lost(source))
        gauge = Gauge(cast.tell, counters, lambda: _state(source), expected_slices(experiment, plan))
        instruments = Instruments(
            microscope, source, store, ledger, call_user_function, gauge.tell, cast.orders
        )
        warnings = (*warnings, *cast.warnings)
        yield _Parts(experiment, instruments, microscope, source, manifest, model, warnings)


def _safety(experiment: Experiment) -> Safety:
    # A slow computer takes seconds to compute a new field; that is no stuck microscope.
    match experiment.microscope:
        case SimulatedMicroscope(faults=faults):
            return Safety(watchdog_s=_FAULTY_S if faults else _COMPUTING_S)
        case _:
            return Safety()


def _lost(source: EngineClient | WithoutEngine) -> int:
    return source.counts.lost if isinstance(source, EngineClient) else 0


def _state(source: EngineClient | WithoutEngine) -> str:
    """State of the engine, for people."""
    if isinstance(source, WithoutEngine):
        return "no engine in this run"
    welcome = source.engine
    return "does not answer; stacks wait on disk" if welcome is None else f"ready, {welcome.engine}"


def _serve_command(experiment: Experiment) -> tuple[str, ...]:
    """How the engine's process is started: with its planted faults, where there are some."""
    microscope = experiment.microscope
    planted = of_engine(microscope.faults) if isinstance(microscope, SimulatedMicroscope) else ()
    return (*SERVE, *(word for fault in planted for word in ("--fault", str(fault))))


def _engine(
    experiment: Experiment, folder: Path, stack: ExitStack
) -> tuple[EngineClient | WithoutEngine, Manifest | None, str, tuple[str, ...]]:
    """The way to the engine; a run without one goes on, acquires everything and says so."""
    match experiment.engine:
        case NoEngine():
            return WithoutEngine(), None, "", ("this run has no engine: nothing was predicted",)
        case LocalEngine(threads=threads):
            info = describe(experiment.model)
            try:
                command = _serve_command(experiment)
                process = EngineProcess(experiment.model, threads=threads, command=command)
                address = stack.enter_context(process).endpoint
            except EngineError as error:
                return WithoutEngine(), None, "", (f"the engine did not start: {error}",)
            manifest, sha256 = info.manifest, info.sha256
            client = stack.enter_context(EngineClient(address, spool=Spool(folder / "spool")))
        case RemoteEngine(address=address, keys=keys):
            link = LinkSettings(keys=client_keys(keys) if keys is not None else None)
            settings = ClientSettings(link=link)
            client = EngineClient(address, spool=Spool(folder / "spool"), settings=settings)
            stack.enter_context(client)
            deadline_s = time.monotonic() + _REMOTE_WAIT_S
            while (welcome := client.engine) is None and time.monotonic() < deadline_s:
                time.sleep(0.02)
            if welcome is None:
                waiting = f"no engine answered at {address} at the start; stacks wait in the spool for it"
                return client, None, "", (waiting,)
            manifest, sha256 = Manifest.from_json(welcome.manifest), welcome.model_sha256
            check_labels(experiment, manifest.label_names)
    return client, manifest, f"{manifest.name} {manifest.version} ({sha256[:12]})", ()
