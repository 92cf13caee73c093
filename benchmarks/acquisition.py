"""How much longer does an acquisition take with the hook attached? Engine on, off, dead, killed half-way.

    python benchmarks/acquisition.py [--stacks 6] [--rounds 5] [--exposure-ms 10]

13 slices of 1024x1024 per stack to NDTiff, all ways in turn within each round, so that a busy machine is
busy for all of them. Times are medians over rounds; the ratios are what counts.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pycromanager
import typer
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from acq_isl.actions import Limits
from acq_isl.hooks import CaptureHook, GuardedAcquisition
from acq_isl.hooks.events import stack_events
from acq_isl.sim import CameraSettings, ScopeSettings, SimulatedScope, View
from acq_isl.stack import Float32Image, StackKey, StackRequest
from acq_isl.stream.client import EngineClient
from acq_isl.stream.held import ClientCounts
from acq_isl.stream.process import EngineProcess
from acq_isl.stream.spool import Spool

PLANES, SIDE, Z_STEP_UM = 13, 1024, 1.5


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
    """One picture a plane, made beforehand: nothing but the acquisition is timed."""

    channels = ("Phase",)

    def __init__(self) -> None:
        noise = np.random.default_rng(0).normal(size=(SIDE, SIDE))
        texture = ndimage.gaussian_filter(noise, 2)
        light = (0.5 + 0.05 * texture / texture.std()).astype(np.float32)
        self._planes = [np.roll(light, 5 * index, axis=0) for index in range(PLANES)]

    def render(self, view: View) -> Float32Image:
        return self._planes[round(view.z_um / Z_STEP_UM) + PLANES // 2]

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


def ways(
    stacks: list[StackRequest], model: str
) -> dict[str, Callable[[Path, str], tuple[float, ClientCounts | None]]]:
    """Every way of acquiring the same stacks; each gives seconds and what became of the slices."""

    def with_engine(path: Path, name: str) -> tuple[float, ClientCounts | None]:
        with (
            EngineProcess(model) as engine,
            EngineClient(engine.endpoint, spool=Spool(path / "spool")) as client,
        ):
            wait_for(client)
            seconds = plain(path, name, stacks, hook(client))
            client.drain(120)
            return seconds, client.counts

    def dead(path: Path, name: str) -> tuple[float, ClientCounts | None]:
        with EngineClient("tcp://127.0.0.1:9", spool=Spool(path / "spool")) as client:
            seconds = plain(path, name, stacks, hook(client))
            client.drain(1)
            return seconds, client.counts

    def killed(path: Path, name: str) -> tuple[float, ClientCounts | None]:
        half = stacks[len(stacks) // 2].exposure_ms * PLANES * len(stacks) / 2e3
        with (
            EngineProcess(model) as engine,
            EngineClient(engine.endpoint, spool=Spool(path / "spool")) as client,
        ):
            wait_for(client)
            killer = threading.Timer(half, psutil.Process(engine.pid).kill)
            killer.start()
            seconds = plain(path, name, stacks, hook(client))
            killer.join()
            client.drain(1)
            return seconds, client.counts

    def through_the_guard(path: Path, name: str) -> tuple[float, ClientCounts | None]:
        with (
            EngineProcess(model) as engine,
            EngineClient(engine.endpoint, spool=Spool(path / "spool")) as client,
        ):
            wait_for(client)
            seconds = guarded(path, name, stacks, client)
            client.drain(120)
            return seconds, client.counts

    return {
        "plain Pycro-Manager": lambda path, name: (plain(path, name, stacks, None), None),
        "hook, engine on": with_engine,
        "hook, engine dead": dead,
        "hook, engine killed half-way": killed,
        "guard, no engine": lambda path, name: (guarded(path, name, stacks, None), None),
        "guard, engine on": through_the_guard,
    }


def wait_for(client: EngineClient, limit_s: float = 30.0) -> None:
    deadline = time.monotonic() + limit_s
    while not client.connected and time.monotonic() < deadline:
        time.sleep(0.01)


def main(stacks: int = 6, rounds: int = 5, exposure_ms: float = 10.0, model: str = "demo") -> None:
    plan = requests(stacks, exposure_ms)
    seconds: dict[str, list[float]] = {}
    fate: dict[str, ClientCounts | None] = {}
    with scope(), tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds + 1):  # the first round warms up
            for index, (name, way) in enumerate(ways(plan, model).items()):
                taken, fate[name] = way(Path(folder), f"run{turn}_{index}")
                if turn:
                    seconds.setdefault(name, []).append(taken)
    show(seconds, fate, stacks)


def show(seconds: dict[str, list[float]], fate: dict[str, ClientCounts | None], stacks: int) -> None:
    table = Table(title=f"{stacks} stacks of {PLANES} x {SIDE} x {SIDE} to NDTiff")
    for title in (
        "way",
        "s",
        "slices/s",
        "time / plain",
        "captured",
        "predicted",
        "spooled",
        "lost",
        "copied/slice",
    ):
        table.add_column(title, justify="left" if title == "way" else "right")
    plain_s = seconds["plain Pycro-Manager"]
    for name, taken in seconds.items():
        # Ratio round by round: what disturbs the machine disturbs all ways of a round alike.
        ratio = statistics.median(one / other for one, other in zip(taken, plain_s, strict=True))
        middle = statistics.median(taken)
        counts = fate[name]
        row = ["-"] * 5
        if counts is not None:
            copied = counts.bytes_copied / max(counts.captured, 1) / 2**20
            row = [str(counts.captured), str(counts.predicted * PLANES), str(counts.unpredicted * PLANES)]
            row += [str(counts.lost), f"{copied:.2f} MiB"]
        table.add_row(name, f"{middle:.3f}", f"{stacks * PLANES / middle:.0f}", f"{ratio:.3f}", *row)
    Console(width=140).print(table)


if __name__ == "__main__":
    typer.run(main)
