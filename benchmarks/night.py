"""A time-lapse of eight hours, compressed, with a fault of the engine every half hour: what became of it.

    python benchmarks/night.py OUT [--model FILE] [--hours 8] [--time-scale 300]

A whole run: fields every ten minutes of the specimen's time, and an engine that is in turn stopped for a
while, flooded, and killed. Then ``acq-isl recover`` predicts what waits. Prints the counts, and what the run
told.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import typer
from hostile import flood

import acq_isl
from acq_isl.engines.model_file import read_model
from acq_isl.events import Decided, Event, TimePointBegan

_EVERY_MIN = 10
_FAULT_EVERY = 3  # time points
_ASLEEP_S = 3.0
EXPERIMENT = """
name: night
microscope:
  kind: simulated
  camera_px: [256, 256]
  time_scale: {scale}
  specimen: {{kind: synthetic, seed: 1, life: {{prevalence: 0.03, drift_um_h: 4, growth_um_h: 15}}}}
optics: {{modality: {modality}, polarity: {polarity}}}
overview:
  axis_order: tpgcz
  time_plan: {{interval: {interval}, loops: {loops}}}
  z_plan: {{range: {range_um}, step: {step_um}}}
  channels: [{{config: Phase, exposure: 5}}]
model: {model}
engine: {{kind: local, threads: 1}}
output: {out}
"""


def engines() -> list[psutil.Process]:
    """The engine of this process, if it is there."""
    return [child for child in psutil.Process().children() if "serve" in child.cmdline()]


def stop() -> None:
    for engine in engines():
        engine.suspend()
        time.sleep(_ASLEEP_S)
        engine.resume()


def kill() -> None:
    for engine in engines():
        engine.kill()


def flood_it() -> None:
    for engine in engines():
        for connection in engine.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                flood(f"tcp://127.0.0.1:{connection.laddr.port}", _ASLEEP_S)


def main(out: Path, model: str = "demo", hours: float = 8.0, time_scale: float = 300.0) -> None:
    manifest = read_model(model).info.manifest
    loops = round(hours * 60 / _EVERY_MIN)
    text = EXPERIMENT.format(
        scale=time_scale,
        modality=manifest.modality,
        polarity=manifest.polarity,
        interval=_EVERY_MIN * 60 / time_scale,
        loops=loops,
        range_um=manifest.z_step_um * (manifest.planes - 1),
        step_um=manifest.z_step_um,
        model=model,
        out=out.as_posix(),
    )
    faults = itertools.cycle([stop, flood_it, stop, flood_it, kill])
    told: list[str] = []
    threads: list[threading.Thread] = []

    def strike(fault: Callable[[], None]) -> None:
        told.append(fault.__name__)
        threads.append(threading.Thread(target=fault))
        threads[-1].start()

    def watch(event: Event) -> None:
        if isinstance(event, TimePointBegan) and event.number % _FAULT_EVERY == 0:
            strike(next(faults))
        elif isinstance(event, Decided) and event.rule == "engine":
            told.append(f"the run: {event.what}: {event.done}")

    began_s = time.monotonic()
    result = acq_isl.run(acq_isl.Experiment.from_text(text), watch=watch)
    for thread in threads:
        thread.join()
    counts = result.record.counts
    sys.stdout.write(f"{loops} time points in {time.monotonic() - began_s:.0f} s: {counts}\n")
    sys.stdout.write("\n".join(told) + "\n")
    command = [sys.executable, "-m", "acq_isl", "recover", str(result.folder)]
    sys.stdout.write(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    if counts.open or counts.lost:
        raise SystemExit("slices were forgotten or lost")


if __name__ == "__main__":
    typer.run(main)
