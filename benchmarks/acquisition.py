"""How much longer does an acquisition take with the hook attached? Engine on, off, dead, killed half-way.

    python benchmarks/acquisition.py [--stacks 1] [--rounds 15] [--exposure-ms 10]

13 slices of 1024x1024 per stack to NDTiff, all ways in turn within each round, so that a busy machine is
busy for all of them; the ratio of the medians is what counts. One stack leaves the engine idle until its last
slice; with several, back to back, the engine computes while the next one is acquired.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pycromanager
import typer
from rich.console import Console
from rich.table import Table
from scipy import stats

from acq_isl.hooks import CaptureHook, GuardedAcquisition
from acq_isl.hooks.events import stack_events
from acq_isl.rules.actions import Limits
from acq_isl.sim import CameraSettings, ScopeSettings, SimulatedScope, SyntheticSpecimen, View
from acq_isl.stack import Float32Image, StackKey, StackRequest
from acq_isl.stream.client import EngineClient
from acq_isl.stream.pending_stack import ClientCounts
from acq_isl.stream.process import EngineProcess
from acq_isl.stream.spool import Spool

PLANES, SIDE, Z_STEP_UM = 13, 1024, 1.5
PLAIN = "plain Pycro-Manager"


def requests(stacks: int, exposure_ms: float) -> list[StackRequest]:
    z_um = tuple(Z_STEP_UM * (index - PLANES // 2) for index in range(PLANES))
    return [
        StackRequest(
            StackKey(0, f"p{index:02d}", "Phase"),
            0.0,
            0.0,
            z_um,
            "Channel",
            "Phase",
            exposure_ms,
            "phase contrast",
            "dark",
        )
        for index in range(stacks)
    ]


class Scene:
    """A simulated culture, rendered once in the first round, which is not timed."""

    channels = ("Phase",)

    def __init__(self) -> None:
        self._specimen = SyntheticSpecimen(seed=1)
        self._planes: dict[float, Float32Image] = {}

    def render(self, view: View) -> Float32Image:
        if view.z_um not in self._planes:
            self._planes[view.z_um] = self._specimen.render(view)
        return self._planes[view.z_um]

    def truth(self, view: View) -> dict[str, Float32Image]:
        return {}


def scope() -> SimulatedScope:
    camera = CameraSettings().noiseless()
    return SimulatedScope(
        Scene(), settings=ScopeSettings(shape=(SIDE, SIDE), camera=camera, buffer_size_mb=128)
    )


def plain(folder: Path, name: str, stacks: list[StackRequest], hook: CaptureHook | None) -> float:
    """Seconds from the first event to the closed dataset, with Pycro-Manager's own Acquisition."""
    options = {} if hook is None else {"image_process_fn": hook}
    began = time.perf_counter()
    with pycromanager.Acquisition(str(folder), name, show_display=False, **options) as acquisition:
        for request in stacks:
            acquisition.acquire(stack_events(request))
    return time.perf_counter() - began


def guarded(folder: Path, name: str, stacks: list[StackRequest], client: EngineClient | None) -> float:
    """The same through the guard, which also waits for every slice of a stack before the next one."""
    began = time.perf_counter()
    with GuardedAcquisition(folder, name, limits=Limits(), sink=client) as scope:
        for request in stacks:
            scope.acquire(request)
    return time.perf_counter() - began


def hook(client: EngineClient) -> CaptureHook:
    return CaptureHook(client, planes=PLANES, modality="phase contrast", polarity="dark")


Way = Callable[[Path, str], tuple[float, ClientCounts | None]]


def ways(stacks: list[StackRequest], model: str, spool: Path, opened: ExitStack) -> dict[str, Way]:
    """Every way of acquiring the same stacks; each gives seconds and what became of the slices.

    The engine that is on stays on, idle while the others are timed.
    """
    engine = opened.enter_context(EngineProcess(model))
    live = opened.enter_context(EngineClient(engine.endpoint, spool=Spool(spool / "live")))
    deaf = opened.enter_context(EngineClient("tcp://127.0.0.1:9", spool=Spool(spool / "deaf")))
    wait_for(live)

    def plain_way(path: Path, name: str) -> tuple[float, None]:
        return plain(path, name, stacks, None), None

    def on(path: Path, name: str) -> tuple[float, ClientCounts]:
        seconds = plain(path, name, renamed(stacks, name), hook(live))
        live.drain(120)
        return seconds, live.counts

    def dead(path: Path, name: str) -> tuple[float, ClientCounts]:
        seconds = plain(path, name, renamed(stacks, name), hook(deaf))
        deaf.drain(0.1)
        return seconds, deaf.counts

    def killed(path: Path, name: str) -> tuple[float, ClientCounts]:
        half_s = stacks[0].exposure_ms * PLANES * len(stacks) / 2e3
        with (
            EngineProcess(model) as engine,
            EngineClient(engine.endpoint, spool=Spool(path / "spool")) as client,
        ):
            wait_for(client)
            killer = threading.Timer(half_s, psutil.Process(engine.pid).kill)
            killer.start()
            seconds = plain(path, name, stacks, hook(client))
            killer.join()
            client.drain(0.1)
            return seconds, client.counts

    def guard_off(path: Path, name: str) -> tuple[float, None]:
        return guarded(path, name, stacks, None), None

    def guard_on(path: Path, name: str) -> tuple[float, ClientCounts]:
        seconds = guarded(path, name, renamed(stacks, name), live)
        live.drain(120)
        return seconds, live.counts

    return {
        PLAIN: plain_way,
        "hook, engine on": on,
        "hook, engine dead": dead,
        "hook, engine killed half-way": killed,
        "guard, no engine": guard_off,
        "guard, engine on": guard_on,
    }


def renamed(stacks: list[StackRequest], name: str) -> list[StackRequest]:
    """The same stacks under names that the client has not seen yet."""
    return [replace(one, key=replace(one.key, position=f"{name}_{one.key.position}")) for one in stacks]


def wait_for(client: EngineClient, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not client.connected and time.monotonic() < deadline:
        time.sleep(0.01)


def main(stacks: int = 1, rounds: int = 15, exposure_ms: float = 10.0, model: str = "demo") -> None:
    plan = requests(stacks, exposure_ms)
    seconds: dict[str, list[float]] = {}
    fate: dict[str, ClientCounts | None] = {}
    with scope(), tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        all_ways = list(ways(plan, model, Path(folder), opened).items())
        for turn in range(rounds + 1):  # the first round warms up
            # Another way first each time: who comes after whom must not decide.
            shift = turn % len(all_ways)
            for name, way in all_ways[shift:] + all_ways[:shift]:
                run = f"run{turn}_{len(seconds.get(name, ()))}_{abs(hash(name)) % 1000}"
                taken, fate[name] = way(Path(folder), run)
                shutil.rmtree(next(Path(folder).glob(f"{run}_*")))
                if turn:
                    seconds.setdefault(name, []).append(taken)
    check(fate)
    show(seconds, fate, stacks)


def check(fate: dict[str, ClientCounts | None]) -> None:
    """A way whose engine is on must have predicted all it captured, or its row says nothing."""
    for name, counts in fate.items():
        idle = name.endswith("engine on") and counts and counts.predicted * PLANES != counts.captured
        if idle or (counts and counts.lost):
            raise SystemExit(f"{name}: {counts.slices if counts else ''}, so its times are of no use")


def show(seconds: dict[str, list[float]], fate: dict[str, ClientCounts | None], stacks: int) -> None:
    table = Table(title=f"{stacks} stack(s) of {PLANES} x {SIDE} x {SIDE} to NDTiff, opened and closed")
    titles = (
        "way",
        "ms, median",
        "quartiles",
        "time / plain, median [95 %]",
        "slices/s",
        "captured",
        "predicted",
        "spooled",
    )
    for title in (*titles, "lost", "copied/slice"):
        table.add_column(title, justify="left" if title == "way" else "right")
    for name in sorted(seconds, key=list(fate).index):
        low, middle, high = statistics.quantiles(seconds[name], n=4)
        counts = fate[name]
        row = ["-"] * 5
        if counts is not None:
            copied = counts.bytes_copied / max(counts.captured, 1) / 2**20
            row = [str(counts.captured), str(counts.predicted * PLANES), str(counts.unpredicted * PLANES)]
            row += [str(counts.lost), f"{copied:.2f} MiB"]
        quartiles = f"{low * 1e3:.0f}-{high * 1e3:.0f}"
        rate = stacks * PLANES / middle
        table.add_row(
            name, f"{middle * 1e3:.0f}", quartiles, ratio(seconds[name], seconds[PLAIN]), f"{rate:.0f}", *row
        )
    Console(width=150).print(table)


def ratio(way: list[float], plain: list[float]) -> str:
    """Time against plain in the same round, the median of all rounds, and its bootstrap interval."""
    ratios = np.divide(way, plain)
    if len(ratios) < 3 or np.ptp(ratios) == 0:
        return f"{np.median(ratios):.3f}"
    low, high = stats.bootstrap((ratios,), np.median, rng=0, method="percentile").confidence_interval
    return f"{np.median(ratios):.3f} [{low:.3f}-{high:.3f}]"


if __name__ == "__main__":
    typer.run(main)
