"""A long acquisition through the whole path, beside plain Pycro-Manager: memory, threads, files, latency.

    python benchmarks/soak.py OUT [--slices 100000] [--side 256] [--model FILE] [--plot soak.png]

Two processes acquire the same fields at the same time from simulated cores: one with Pycro-Manager alone, one
through guard, hook, wire, an engine in a process of its own, a rule, the ledger and the store of predictions.
Every few seconds each writes a line of a table into OUT, so a soak that is ended early counts as far as it
came. Data sets are closed and removed every so many stacks, in both. ``--slices 0`` reads what is there.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import pycromanager
import typer
from scipy import ndimage

from acq_isl.engines.model_file import read_model
from acq_isl.hooks import GuardedAcquisition, Safety
from acq_isl.hooks.events import stack_events
from acq_isl.manifest import Manifest
from acq_isl.rules.actions import Limits
from acq_isl.rules.measurements import MeanIntensity
from acq_isl.sim import CameraSettings, ScopeSettings, SimulatedScope, View
from acq_isl.stack import Float32Image, Prediction, Refusal, StackKey, StackRequest
from acq_isl.storage.decision_log import Ledger
from acq_isl.storage.prediction_store import PredictionStore
from acq_isl.stream.client import EngineClient
from acq_isl.stream.process import EngineProcess
from acq_isl.stream.spool import Spool

_SAMPLE_S = 5.0
_STACKS_A_PART = 500
_AHEAD = 4
_PATIENT = Safety(watchdog_s=120)  # on a busy machine nothing comes for seconds
_COLUMNS = (
    "way", "seconds", "slices", "rss_mib", "threads", "files",
    "engine_mib", "engine_threads", "engine_files", "latency_ms", "latency_p99_ms", "load",
)  # fmt: skip


class Grain:
    """A specimen that costs nothing: one plane of blobs, rolled by the height."""

    channels = ("Phase",)

    def __init__(self, side: int) -> None:
        grain = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(side, side)), 2)
        self._plane = (1 + 0.1 * grain / grain.std()).astype(np.float32)

    def render(self, view: View) -> Float32Image:
        return np.roll(self._plane, round(view.z_um))

    def truth(self, view: View) -> dict[str, Float32Image]:
        return {}


def requests(stacks: int, manifest: Manifest) -> Iterator[StackRequest]:
    """A time-lapse of one field, as the model wants it."""
    for time_ in range(stacks):
        key = StackKey(time_, "A1", "Phase")
        z_um, light = manifest.z_offsets_um, (manifest.modality, manifest.polarity)
        yield StackRequest(key, 0.0, 0.0, z_um, "Channel", "Phase", 1.0, *light)


class Sampler:
    """Writes what this process and its engine hold, on a thread of its own."""

    def __init__(self, path: Path, way: str, engine: int | None) -> None:
        self.slices = 0
        self.latency_ms: deque[float] = deque(maxlen=500)
        self._way, self._began_s = way, time.monotonic()
        self._processes = [psutil.Process()] + ([] if engine is None else [psutil.Process(engine)])
        self._file = path.open("w", newline="")
        self._table = csv.writer(self._file)
        self._table.writerow(_COLUMNS)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._file.close()

    def _run(self) -> None:
        while not self._stopping.wait(_SAMPLE_S):
            held: list[float] = []
            for process in self._processes:
                with process.oneshot():
                    mib = process.memory_info().rss / 2**20
                    held += [round(mib, 1), process.num_threads(), process.num_fds()]
            held += [0.0] * (6 - len(held))
            recent = list(self.latency_ms) or [0.0]
            latency = [round(float(np.percentile(recent, q)), 1) for q in (50, 99)]
            seconds = round(time.monotonic() - self._began_s, 1)
            load = round(os.getloadavg()[0], 1)
            self._table.writerow([self._way, seconds, self.slices, *held, *latency, load])
            self._file.flush()


@contextmanager
def scope(side: int) -> Iterator[None]:
    settings = ScopeSettings(shape=(side, side), camera=CameraSettings().noiseless(), buffer_size_mb=64)
    with SimulatedScope(Grain(side), settings=settings):
        yield


def parts(plan: Iterator[StackRequest]) -> Iterator[list[StackRequest]]:
    """The plan, cut where a data set is closed and the next one begun."""
    found: list[StackRequest] = []
    for request in plan:
        found.append(request)
        if len(found) == _STACKS_A_PART:
            yield found
            found = []
    if found:
        yield found


def plain(out: Path, slices: int, side: int, manifest: Manifest) -> dict[str, Any]:
    """Pycro-Manager's own acquisition, which is given a stack when the one before was saved."""
    with scope(side), Sampler(out / "plain.csv", "plain", None) as sampler:
        saved = threading.Semaphore(0)

        def note(axes: object, dataset: object) -> None:
            sampler.slices += 1
            saved.release()

        for number, part in enumerate(parts(requests(slices // manifest.planes, manifest))):
            folder = out / f"plain{number}"
            with pycromanager.Acquisition(
                str(folder), "plain", show_display=False, image_saved_fn=note
            ) as acquisition:
                for request in part:
                    acquisition.acquire(stack_events(request))
                    for _ in range(manifest.planes):
                        saved.acquire()
            shutil.rmtree(folder)
    return {}


def whole(out: Path, slices: int, side: int, model: str) -> dict[str, Any]:
    """The whole path; what came of every slice."""
    manifest = read_model(model).info.manifest
    with ExitStack() as opened:
        engine = opened.enter_context(EngineProcess(model, threads=1, startup_timeout_s=600))
        opened.enter_context(scope(side))
        client = opened.enter_context(EngineClient(engine.endpoint, spool=Spool(out / "spool")))
        ledger = opened.enter_context(Ledger(out / "decisions.jsonl"))
        sampler = opened.enter_context(Sampler(out / "whole.csv", "whole", engine.pid))
        measurement = MeanIntensity(label=manifest.labels[0].name)
        client.wait_connected(60)
        for number, part in enumerate(parts(requests(slices // manifest.planes, manifest))):
            folder = out / f"whole{number}"
            colors = {label.name: label.color for label in manifest.labels}
            with (
                PredictionStore(folder / "predictions.ome.zarr", colors) as store,
                GuardedAcquisition(folder, "whole", limits=Limits(), sink=client, safety=_PATIENT) as guard,
            ):

                def take(outcomes: list[Any]) -> None:
                    for outcome in outcomes:
                        if isinstance(outcome, Refusal):
                            raise SystemExit(f"refused, so nothing is soaked: {outcome.reason}")
                        if isinstance(outcome, Prediction):
                            sampler.latency_ms.append(outcome.times.engine_ms)
                            value, sd = measurement.measure(outcome)
                            ledger.note("measured", at=outcome.info.key.time, value=value, sd=sd)
                            store.put(outcome)

                for request in part:
                    guard.acquire(request)
                    sampler.slices += manifest.planes
                    while client.counts.stacks - client.counts.predicted > _AHEAD and client.wait(60):
                        take(client.poll())
                take(client.drain(120))
            shutil.rmtree(folder)
        return {"counts": str(client.counts.slices), "reconnects": client.counts.reconnects}


def rows(path: Path) -> dict[str, np.ndarray]:
    """The columns of a table as numbers."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    return {name: np.array([float(line[name]) for line in lines]) for name in _COLUMNS[1:]}


def summary(path: Path) -> str:
    """What a table says: growth is a line through all but the first tenth, where caches fill."""
    table = rows(path)
    slices = table["slices"]
    settled = slices > slices[-1] / 10

    def slope(name: str) -> str:
        per_slice = np.polyfit(slices[settled], table[name][settled], 1)[0]
        return f"{per_slice * 1e5:+.1f} MiB per 100,000 slices"

    def first_last(name: str) -> str:
        return f"{table[name][settled][0]:.0f} -> {table[name][-1]:.0f}"

    first, last = slices <= slices[-1] / 5, slices > slices[-1] * 0.9
    first &= settled
    words = [
        f"{slices[-1]:.0f} slices in {table['seconds'][-1]:.0f} s at load {np.median(table['load']):.1f}"
    ]
    words += [
        f"memory {slope('rss_mib')}",
        f"threads {first_last('threads')}",
        f"files {first_last('files')}",
    ]
    if table["engine_mib"].any():
        words += [f"engine: memory {slope('engine_mib')}", f"threads {first_last('engine_threads')}"]
        words += [f"files {first_last('engine_files')}"]
        p99 = [np.median(table["latency_p99_ms"][part]) for part in (first, last)]
        p50 = [np.median(table["latency_ms"][part]) for part in (first, last)]
        words.append(f"latency p50 {p50[0]:.0f} -> {p50[1]:.0f} ms, p99 {p99[0]:.0f} -> {p99[1]:.0f} ms")
    return f"{path.stem}: {'; '.join(words)}"


def plot(out: Path, picture: Path) -> None:
    """Memory of both, what is open, and latency, over slices."""
    import matplotlib.pyplot as plt

    plain_, whole_ = rows(out / "plain.csv"), rows(out / "whole.csv")
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    x = whole_["slices"] / 1e3
    axes[0].plot(plain_["slices"] / 1e3, plain_["rss_mib"], label="plain Pycro-Manager")
    axes[0].plot(x, whole_["rss_mib"], label="with acq-isl")
    axes[0].plot(x, whole_["engine_mib"], label="engine")
    axes[0].set_ylabel("resident memory, MiB")
    for name in ("threads", "files", "engine_threads", "engine_files"):
        axes[1].plot(x, whole_[name], label=name.replace("_", ", "))
    axes[1].set_ylabel("open")
    for name, label in (("latency_ms", "median"), ("latency_p99_ms", "99th percentile")):
        axes[2].plot(x, whole_[name], label=label)
    axes[2].set_ylabel("last slice to prediction, ms (last 500)")
    for one in axes:
        one.set_xlabel("thousand slices")
        one.set_ylim(bottom=0)
        one.legend()
    figure.savefig(picture, dpi=90)


def main(
    out: Path,
    slices: int = 100_000,
    side: int = 256,
    model: str = "demo",
    plot_: Annotated[Path | None, typer.Option("--plot")] = None,
    way: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if way:
        manifest = read_model(model).info.manifest
        found = plain(out, slices, side, manifest) if way == "plain" else whole(out, slices, side, model)
        (out / f"{way}.json").write_text(json.dumps(found))
        return
    if slices:
        command = [sys.executable, __file__, str(out), "--slices", str(slices), "--side", str(side)]
        both = [subprocess.Popen([*command, "--model", model, "--way", one]) for one in ("plain", "whole")]
        if any([child.wait() for child in both]):  # a list: both are waited for
            raise SystemExit("a soak failed; what it wrote until then is in its table")
    for one in ("plain", "whole"):
        sys.stdout.write(summary(out / f"{one}.csv") + "\n")
        if (out / f"{one}.json").exists():
            sys.stdout.write(f"{(out / f'{one}.json').read_text()}\n")
    if plot_ is not None:
        plot(out, plot_)


if __name__ == "__main__":
    typer.run(main)
