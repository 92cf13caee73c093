"""Faults of the engine and of the way to it, at random moments of a run: what became of every slice.

    python benchmarks/engine_faults.py [FAULT ...] [--seeds 30] [--fields 20] [--table FILE] [--first 0]
                                       [--model FILE --others FILE --others FILE]

Each seed acquires the fields twice, in random order: without an engine, and with one to which something
happens. Then what waits on disk is predicted as ``acq-isl recover`` does. Every stack must have one
prediction in the end, by the right model, and every slice must be counted once; where that is not so, the
seed counts as broken and is told. All faults take turns, so a table that was ended early has as many seeds of
each. Namespaces and full disks (tmpfs) need root on Linux; elsewhere these rows are left out, and say so.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import typer
from hostile import Lie, LyingEngine, Relay, Way
from soak import scope

from acq_isl.engines import load_engine
from acq_isl.engines.model_file import read_model
from acq_isl.errors import AcqIslError, SliceLost
from acq_isl.hooks import GuardedAcquisition
from acq_isl.manifest import Manifest
from acq_isl.rules.actions import Limits
from acq_isl.session.predict_spool import LocalModels, predict_spool
from acq_isl.stack import Outcome, Prediction, StackKey, StackRequest
from acq_isl.storage.prediction_store import stored
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.connection import ConnectionSettings
from acq_isl.stream.model_registry import ModelRegistry, ServedModel
from acq_isl.stream.process import SERVE, EngineProcess
from acq_isl.stream.sockets import ClientKeys, client_keys, make_keys
from acq_isl.stream.spool import Spool

_SIDE = 256
_DRAIN_S = 60.0
_TITLES = (
    "fault", "seeds", "captured", "predicted", "refused", "spooled", "lost",
    "predicted in the end", "twice", "broken", "time / no engine, median [quartiles]",
)  # fmt: skip


@dataclass
class Rig:
    """What a fault may break: the engine, and the folders of this seed's client and of the engine's cache."""

    engine: EngineProcess
    spool: Path
    cache: Path
    models: tuple[Path, ...]  # the right one, one of other weights, one of other labels
    rng: random.Random
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.engine.pid)

    def restart(self) -> None:
        """Start the engine again at its address, once it has ended."""
        while self.engine.running:
            time.sleep(0.01)
        self.engine.restart()


@dataclass(frozen=True)
class Planted:
    """A fault that waits for its moment, and how the client finds the engine meanwhile."""

    strike: Callable[[], object]  # on a thread of its own; ends when the fault is over
    address: str = ""
    share_memory: bool = True
    keys: ClientKeys | None = None


Fault = Callable[[Rig], AbstractContextManager[Planted]]


@contextmanager
def killed(rig: Rig) -> Iterator[Planted]:
    def strike() -> None:
        rig.process.kill()
        time.sleep(1)
        rig.restart()

    yield Planted(strike)


@contextmanager
def stopped(rig: Rig) -> Iterator[Planted]:
    def strike() -> None:
        rig.process.suspend()
        time.sleep(10)
        rig.process.resume()

    yield Planted(strike)


@contextmanager
def slow(rig: Rig) -> Iterator[Planted]:
    """It gets a tenth of the time."""

    def strike() -> None:
        process = rig.process
        while not rig.over.is_set():
            process.suspend()
            time.sleep(0.18)
            process.resume()
            rig.over.wait(0.02)

    yield Planted(strike)


@contextmanager
def restarted(rig: Rig) -> Iterator[Planted]:
    def strike() -> None:
        rig.process.send_signal(signal.SIGTERM)
        rig.restart()

    yield Planted(strike)


def another(number: int) -> Fault:
    """For five seconds somebody serves another model at the same address."""

    @contextmanager
    def plant(rig: Rig) -> Iterator[Planted]:
        def strike() -> None:
            rig.process.send_signal(signal.SIGTERM)
            rig.process.wait(60)
            with EngineProcess(rig.models[number], bind=rig.engine.endpoint, threads=1):
                time.sleep(5)
            rig.restart()

        yield Planted(strike)

    return plant


def lying(kind: Lie) -> Fault:
    """From a moment on a third of the answers are lies."""

    @contextmanager
    def plant(rig: Rig) -> Iterator[Planted]:
        with LyingEngine(rig.engine.endpoint, kind, rig.rng) as between:
            yield Planted(between.lie, between.address)

    return plant


def cut(how: Way) -> Fault:
    """The way to the engine, on which pixels travel through the socket, is bad for eight seconds."""

    @contextmanager
    def plant(rig: Rig) -> Iterator[Planted]:
        with Relay(rig.engine.endpoint) as relay:

            def strike() -> None:
                relay.way = how
                rig.over.wait(8)
                relay.way = "open"

            yield Planted(strike, relay.address, share_memory=False)

    return plant


@contextmanager
def unplugged(rig: Rig) -> Iterator[Planted]:
    """An engine in a network of its own, whose cable is out for eight seconds."""
    name = f"isl{os.getpid() % 10000}"
    here, there = f"{name}a", f"{name}b"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as undo:
        make_keys(Path(folder) / "keys")
        undo.callback(ip, "netns", "del", name)
        ip("netns", "add", name)
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        ip("addr", "add", "10.77.0.1/24", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", name, "addr", "add", "10.77.0.2/24", "dev", there)
        ip("-n", name, "link", "set", there, "up")
        keys = str(Path(folder) / "keys")
        command = ("ip", "netns", "exec", name, *SERVE, "--keys", keys)
        bind = "tcp://10.77.0.2:5599"
        engine = undo.enter_context(EngineProcess(rig.models[0], bind=bind, threads=1, command=command))

        def strike() -> None:
            ip("link", "set", here, "down")
            rig.over.wait(8)
            ip("link", "set", here, "up")

        yield Planted(strike, engine.endpoint, share_memory=False, keys=client_keys(Path(keys)))


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def flooded(rig: Rig) -> Iterator[Planted]:
    """Somebody sends nonsense as fast as possible, from a process of its own, for five seconds."""

    def strike() -> None:
        code = f"import hostile; hostile.flood({rig.engine.endpoint!r}, 5)"
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)

    yield Planted(strike)


@contextmanager
def unlinked(rig: Rig) -> Iterator[Planted]:
    """Shared memory is shrunk, which must not work, and the folder of the spool is removed."""

    def strike() -> None:
        for path in Path("/proc/self/fd").iterdir():
            with suppress(FileNotFoundError):
                if "memfd:" in str(path.readlink()):
                    try:
                        os.truncate(path, 0)
                    except OSError:
                        continue
                    raise SystemExit("shared memory could be truncated")
        shutil.rmtree(rig.spool, ignore_errors=True)

    yield Planted(strike)


def full(side: str) -> Fault:
    """The disk of the spool is full while the engine sleeps, or that of the engine's cache as it starts."""

    @contextmanager
    def plant(rig: Rig) -> Iterator[Planted]:
        folder = rig.spool if side == "microscope" else rig.cache
        with tmpfs(folder):

            def strike() -> None:
                with suppress(OSError), (folder / "fills_it").open("wb") as file:
                    while True:
                        file.write(bytes(1 << 20))
                if side == "microscope":
                    stopped_for = rig.process
                    stopped_for.suspend()
                    time.sleep(6)
                    stopped_for.resume()
                else:
                    rig.process.kill()
                    rig.restart()

            yield Planted(strike)

    return plant


@contextmanager
def tmpfs(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


FAULTS: dict[str, Fault] = {
    "killed": killed,
    "stopped for 10 s": stopped,
    "slow 10x": slow,
    "wrong shapes": lying("shapes"),
    "wrong: NaN": lying("nan"),
    "wrong: other labels": lying("labels"),
    "wrong: answers to nobody, twice, too early": lying("order"),
    "restarted": restarted,
    "restarted with other weights": another(1),
    "restarted with other labels": another(2),
    "cut off: connections dropped": cut("dropped"),
    "cut off: 300 ms late": cut("late"),
    "cut off: half-open": cut("half-open"),
    "cut off: cable out (namespace)": unplugged,
    "flooded": flooded,
    "memory shrunk, spool removed": unlinked,
    "disk full, microscope": full("microscope"),
    "disk full, engine": full("engine"),
}
NEEDS_ROOT = ("cut off: cable out (namespace)", "disk full, microscope", "disk full, engine")


@dataclass(frozen=True)
class Seed:
    """What one seed found."""

    captured: int
    predicted: int
    refused: int
    spooled: int
    lost: int
    in_the_end: int
    twice: int
    ratio: float


def requests(fields: int, manifest: Manifest) -> list[StackRequest]:
    light = (manifest.modality, manifest.polarity)
    names = [f"A{number}" for number in range(fields)]
    return [
        StackRequest(
            StackKey(0, name, "Phase"), 0.0, 0.0, manifest.z_offsets_um, "Channel", "Phase", 5.0, *light
        )
        for name in names
    ]


def acquire(folder: Path, plan: list[StackRequest], client: EngineClient | None) -> float:
    """Seconds for the fields, without what is done before and after."""
    with GuardedAcquisition(folder, "run", limits=Limits(), sink=client) as guard:
        began_s = time.perf_counter()
        for request in plan:
            guard.acquire(request)
        taken_s = time.perf_counter() - began_s
    return taken_s


def broken(
    folder: Path, plan: list[StackRequest], rig: Rig, fault: Fault, typical_s: float
) -> tuple[float, Seed]:
    """Acquire while something happens; seconds, and what became of everything."""
    moment_s = rig.rng.uniform(0.05, 0.95) * typical_s
    outcomes: list[Outcome] = []
    with ExitStack() as opened:
        planted = opened.enter_context(fault(rig))
        settings = ClientSettings(
            share_memory=planted.share_memory, link=ConnectionSettings(keys=planted.keys)
        )
        address = planted.address or rig.engine.endpoint
        client = opened.enter_context(EngineClient(address, spool=Spool(rig.spool), settings=settings))
        if not client.wait_connected(60):
            raise SystemExit(f"nobody answers: {client.transport}")
        failure: list[BaseException] = []

        def strike() -> None:
            try:
                if not rig.over.wait(moment_s):
                    planted.strike()
            except (Exception, SystemExit) as error:  # noqa: BLE001  told by the main thread
                failure.append(error)

        thread = threading.Thread(target=strike)
        thread.start()
        seconds = acquire(folder, plan, client)
        try:
            outcomes = client.drain(_DRAIN_S)
        except SliceLost:
            outcomes = client.poll()
        finally:
            rig.over.set()
            thread.join()
        if failure:
            raise failure[0]
    counts, recovered = client.counts.slices, recover(rig)
    found = Counter(one.info.key for one in outcomes if isinstance(one, Prediction)) + recovered
    right = {read_model(path).info.sha256 for path in rig.models[:2]}
    others = {
        one.model_name for one in outcomes if isinstance(one, Prediction) and one.model_sha256 not in right
    }
    if counts.open or others:
        raise SystemExit(f"broken: {counts}; predicted by {others or 'the right models'}")
    if any(isinstance(one, Prediction) and not np.isfinite(one.mean).all() for one in outcomes):
        raise SystemExit("broken: a prediction of NaN was taken")
    return seconds, Seed(
        counts.captured, counts.predicted, counts.refused, counts.spooled, counts.lost,
        sum(found[request.key] > 0 for request in plan), sum(number > 1 for number in found.values()), 0.0,
    )  # fmt: skip


def recover(rig: Rig) -> Counter[StackKey]:
    """Predict what waits on disk with the right model, and count by stack."""
    if not rig.spool.is_dir() or not Spool(rig.spool).list():
        return Counter()
    engine = load_engine(rig.models[0], threads=1, backend="onnxruntime")
    registry = ModelRegistry([ServedModel(engine, engine.manifest.name, engine.model.sha256, engine.name)])
    names = {path: Spool(rig.spool).read(path).info.key for path in Spool(rig.spool).list()}
    try:
        done = predict_spool(rig.spool, LocalModels(registry))
    finally:
        registry.close()
    if left := [one for one in done if not one.done]:
        raise SystemExit(f"broken: {left[0].results}")
    if len(stored(rig.spool / "predictions.ome.zarr")) != len(done):
        raise SystemExit("broken: what is stored is not what was predicted")
    return Counter(names.values())


def one_seed(
    seed: int, fault: Fault, rig: Rig, plan: list[StackRequest], folder: Path, typical_s: float
) -> Seed:
    """Both acquisitions, in random order."""
    rig.rng.seed(seed)
    rig.over.clear()
    for name in ("plain", "broken", "spool"):
        shutil.rmtree(folder / name, ignore_errors=True)
    if not rig.engine.running:  # an earlier seed failed
        rig.engine.restart()
    plain_first = rig.rng.random() < 0.5
    plain_s = acquire(folder / "plain", plan, None) if plain_first else 0.0
    with_s, found = broken(folder / "broken", plan, rig, fault, typical_s)
    if not plain_first:
        plain_s = acquire(folder / "plain", plan, None)
    return replace(found, ratio=with_s / plain_s)


def row(name: str, seeds: list[Seed], failed: int) -> str:
    cells: list[object] = [name, len(seeds) + failed]
    for what in ("captured", "predicted", "refused", "spooled", "lost", "in_the_end", "twice"):
        cells.append(sum(getattr(seed, what) for seed in seeds))
    ratios = [seed.ratio for seed in seeds] or [float("nan")]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return f"| {' | '.join(map(str, [*cells, failed]))} | {middle:.2f} [{low:.2f}-{high:.2f}] |\n"


def main(  # noqa: PLR0913, PLR0917  options of a command
    faults: Annotated[list[str] | None, typer.Argument()] = None,
    seeds: int = 30,
    fields: int = 20,
    model: str = "demo",
    others: Annotated[list[Path] | None, typer.Option(help="Of other weights, and of other labels.")] = None,
    table: Path | None = None,
    first: int = 0,
) -> None:
    may = [name for name in FAULTS if name not in NEEDS_ROOT or getattr(os, "geteuid", lambda: 1)() == 0]
    may = [name for name in may if others or not name.startswith("restarted with")]
    chosen = [name for name in may if not faults or name in faults]
    plan = requests(fields, read_model(model).info.manifest)
    results: dict[str, list[Seed]] = {name: [] for name in chosen}
    failed: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        folder = Path(name)
        os.environ["ACQ_ISL_CACHE"] = str(folder / "cache")
        opened.enter_context(scope(_SIDE))
        engine = opened.enter_context(EngineProcess(model, threads=1, startup_timeout_s=600))
        models = (Path(model), *(others or ()))
        rig = Rig(engine, folder / "spool", folder / "cache", models, random.Random(0))
        acquire(folder / "warm", plan, None)
        typical_s = acquire(folder / "warm", plan, None)
        for seed in range(first, first + seeds):
            for title in chosen:
                try:
                    done = one_seed(seed, FAULTS[title], rig, plan, folder, typical_s)
                except (SystemExit, AcqIslError) as error:
                    failed[title] += 1
                    sys.stderr.write(f"{title}, seed {seed}: {error}\n")
                else:
                    results[title].append(done)
            if table is not None:
                table.write_text(as_table(results, failed))
    sys.stdout.write(as_table(results, failed))


def as_table(results: dict[str, list[Seed]], failed: Counter[str]) -> str:
    rows = [row(name, seeds, failed[name]) for name, seeds in results.items()]
    rows += [f"| {name} | not run |\n" for name in FAULTS if name not in results]
    head = f"| {' | '.join(_TITLES)} |\n{'|---' * len(_TITLES)}|\n"
    return f"{head}{''.join(rows)}\nload {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores at the end\n"


if __name__ == "__main__":
    typer.run(main)
