"""The engine of a run: a process of ours, a server elsewhere, or none."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from acq_isl.engines import describe
from acq_isl.errors import EngineError
from acq_isl.experiment import Experiment, LocalEngine, NoEngine, RemoteEngine, SimulatedMicroscope
from acq_isl.faults import of_engine
from acq_isl.manifest import Manifest
from acq_isl.preflight import check_labels
from acq_isl.stack import Outcome, Slice, StackInfo, StackKey, Unpredicted
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.keys import client_keys
from acq_isl.stream.link import LinkSettings
from acq_isl.stream.process import SERVE, EngineProcess
from acq_isl.stream.spool import Spool

_REMOTE_WAIT_S = 5.0


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


def lost(source: EngineClient | WithoutEngine) -> int:
    """Slices that are neither held nor on disk."""
    return source.counts.lost if isinstance(source, EngineClient) else 0


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
    return (*SERVE, "--field", f"{rows}x{columns}", *faults)


def open_engine(
    experiment: Experiment, folder: Path, field_px: tuple[int, int], stack: ExitStack
) -> tuple[EngineClient | WithoutEngine, Manifest | None, str, tuple[str, ...]]:
    """The way to the engine; a run without one goes on, acquires everything and says so.

    Parameters
    ----------
    experiment : Experiment
    folder : Path
        Of the run; its spool lies there.
    field_px : (int, int)
        Rows and columns of the camera.
    stack : ExitStack
        Closes what is opened.

    Returns
    -------
    source, manifest, model, warnings
        The manifest is None where no engine is known yet; ``model`` is for people.
    """
    match experiment.engine:
        case NoEngine():
            return WithoutEngine(), None, "", ("this run has no engine: nothing was predicted",)
        case LocalEngine(threads=threads):
            info = describe(experiment.model)
            try:
                command = _serve_command(experiment, field_px)
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
