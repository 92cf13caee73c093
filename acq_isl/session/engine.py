"""The engine of a run: a process of ours, a server elsewhere, or none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import assert_never

from acq_isl.errors import EngineError, ModelError
from acq_isl.experiment.experiment import Experiment, LocalEngine, NoEngine, RemoteEngine, SimulatedMicroscope
from acq_isl.experiment.faults import of_engine
from acq_isl.experiment.planning import Cycle
from acq_isl.manifest import Manifest
from acq_isl.rules.label_names import Labels, RunModel
from acq_isl.rules.pixels import PixelToStage
from acq_isl.session.engine_keeper import EngineKeeper
from acq_isl.session.engine_ladder import rungs
from acq_isl.session.preflight import check_models, local_labels
from acq_isl.session.saved_plan import SavedPlan
from acq_isl.session.sense import Camera
from acq_isl.stack import Outcome, Slice, StackInfo, StackKey, Unpredicted
from acq_isl.stream.accounts import SliceAccounts
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.client_thread import Patience
from acq_isl.stream.connection import ConnectionSettings
from acq_isl.stream.messages import Wanted, Welcome
from acq_isl.stream.process import SERVE, EngineProcess, Rung
from acq_isl.stream.sockets import client_keys
from acq_isl.stream.spool import Spool

_REMOTE_WAIT_S = 5.0


class WithoutEngine:
    """Stands in for a client when no engine is wanted: every stack is measured data only."""

    copies = True  # it looks at the announcement only, so nobody needs to copy pixels for it

    def __init__(self) -> None:
        self._infos: dict[StackKey, StackInfo] = {}
        self.accounts = SliceAccounts()

    def put(self, slice_: Slice) -> None:
        self.accounts.capture()
        self.accounts.end("spooled", "in the measured data: this run has no engine")
        self._infos[slice_.info.key] = slice_.info

    def poll(self) -> list[Outcome]:
        return []

    def discard(self, key: StackKey, again: bool = True) -> None:
        self._infos.pop(key, None)

    def drain(self, timeout_s: float) -> list[Outcome]:
        infos, self._infos = self._infos, {}
        return [Unpredicted(info, "this run has no engine", "the measured data") for info in infos.values()]


def state(source: EngineClient | WithoutEngine) -> str:
    """State of the engine, for people."""
    if isinstance(source, WithoutEngine):
        return "no engine in this run"
    welcome = source.engine
    return "does not answer; stacks wait on disk" if welcome is None else f"ready, {welcome.engine}"


def _serve_command(experiment: Experiment, field_px: tuple[int, int]) -> tuple[str, ...]:
    """How the engine's process is started: for this camera, and with its planted faults, if any."""
    microscope = experiment.microscope
    planted = of_engine(microscope.faults) if isinstance(microscope, SimulatedMicroscope) else ()
    rows, columns = field_px
    faults = (word for fault in planted for word in ("--fault", str(fault)))
    engine = experiment.engine
    views = ("--views", str(engine.views)) if isinstance(engine, LocalEngine) and engine.views > 1 else ()
    return (*SERVE, "--field", f"{rows}x{columns}", *views, *_sizes(experiment), *faults)


def _sizes(experiment: Experiment) -> tuple[str, ...]:
    """That the engine weighs the deadline, where there is a smaller model to keep it with."""
    engine, deadline_ms = experiment.engine, experiment.deadline_ms
    if not isinstance(engine, LocalEngine) or engine.smaller_model is None or deadline_ms is None:
        return ()
    return ("--smaller", engine.smaller_model, "--deadline", f"{deadline_ms:g}")


def _rungs(process: EngineProcess, settings: LocalEngine) -> list[Rung]:
    """The ladder, once it is known which engines there are."""
    return rungs(process.engines, settings)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run is going to acquire, with which camera, and where it is kept."""

    cycles: tuple[Cycle, ...]
    camera: Camera
    folder: Path
    doubts: tuple[str, ...] = ()  # what preflight remarked
    saved: SavedPlan | None = None  # of a run that was cut off, and goes on
    pixel_to_stage: PixelToStage | None = None  # None if nobody has measured it


@dataclass(frozen=True, slots=True, eq=False)
class OpenedEngine:
    """The way to a run's engine, the labels, and what is to be warned of."""

    source: EngineClient | WithoutEngine
    labels: Labels
    warnings: tuple[str, ...] = ()
    why: str = ""  # this engine, and how close it is to ONNX Runtime, as far as our own process says


def open_engine(
    experiment: Experiment, plan: RunPlan, stack: ExitStack, tell: Callable[[str, str, str], None]
) -> OpenedEngine:
    """The way to the engine; a run without one goes on and acquires everything.

    The spool lies in the run's folder; ``stack`` closes what is opened; ``tell`` gets what is done to keep
    the engine running, as in `EngineKeeper`. The labels have no names where no engine is known yet.
    """
    folder = plan.folder
    spool = Spool(folder / "spool")
    match experiment.engine:
        case NoEngine():
            return OpenedEngine(WithoutEngine(), Labels(), ("this run has no engine: nothing was predicted",))
        case LocalEngine(threads=threads) as local:
            labels = local_labels(experiment)
            try:
                command = (*_serve_command(experiment, plan.camera.shape), *rungs((), local)[0].options)
                process = EngineProcess(experiment.model_files, threads=threads, command=command)
                address = stack.enter_context(process).endpoint
            except EngineError as error:
                return OpenedEngine(WithoutEngine(), Labels(), (f"the engine did not start: {error}",))
            ladder = partial(_rungs, process, local)
            stack.enter_context(EngineKeeper(process, tell, rungs=ladder))
            # It may be started again just now: stacks wait for it as long as the run does.
            patience = Patience(absent_s=experiment.prediction_timeout_s)
            settings = ClientSettings(patience=patience, wanted=choose_models(experiment, labels))
            client = stack.enter_context(EngineClient(address, spool=spool, settings=settings))
            return OpenedEngine(client, labels, why=process.why)
        case RemoteEngine(address=address, keys=keys):
            asked = Labels([RunModel(name) for name in experiment.models or ("",)])
            link = ConnectionSettings(keys=client_keys(keys) if keys is not None else None)
            settings = ClientSettings(link=link, wanted=choose_models(experiment, asked))
            client = stack.enter_context(EngineClient(address, spool=spool, settings=settings))
            if not client.wait_connected(_REMOTE_WAIT_S) or (welcome := client.engine) is None:
                return OpenedEngine(client, asked, (_nobody(address, asked),))
            labels = remote_labels(experiment, welcome)
            doubts = check_models(experiment, plan.cycles, labels, plan.camera)
            return OpenedEngine(client, labels, doubts)
        case _:
            assert_never(experiment.engine)


def ask_server(experiment: Experiment, cycles: tuple[Cycle, ...], camera: Camera) -> tuple[str, ...]:
    """What the models of a running server remark on a plan, for a dry run; errors as of `open_engine`."""
    if not isinstance(experiment.engine, RemoteEngine):
        return ()
    with TemporaryDirectory(prefix="acq-isl-dry-run-") as folder, ExitStack() as stack:
        plan = RunPlan(cycles, camera, Path(folder))
        return open_engine(experiment, plan, stack, lambda *_: None).warnings


def choose_models(experiment: Experiment, labels: Labels) -> Wanted:
    """What the engine is asked for with every stack."""
    models = labels.models if experiment.models else ()
    return Wanted(models=models, deadline_ms=experiment.deadline_ms)


def remote_labels(experiment: Experiment, welcome: Welcome) -> Labels:
    """What the models of a running server predict that an experiment names; ModelError if it has one not."""
    offers = {offer.name: offer for offer in welcome.models}
    models = []
    for name in experiment.models or ("",):
        offer = offers.get(name) if name else welcome.models[0]
        if offer is None:
            raise ModelError(
                f"the engine at this address has no model {name!r}",
                wanted=f"of {', '.join(offers)}",
                fix="correct 'models' in the experiment, or serve it: acq-isl serve --model NAME=FILE ...",
            )
        models.append(RunModel(name, Manifest.from_json(offer.manifest), offer.model_sha256))
    return Labels(models)


def _nobody(address: str, asked: Labels) -> str:
    words = f"no engine answered at {address} at the start; stacks wait in the spool for it"
    if asked.several:
        words += "; until it is known what the models predict, rules find a label only as MODEL/LABEL"
    return words
