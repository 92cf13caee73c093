"""What prediction costs on the processor: network, the work around it, memory, and the first prediction.

    python benchmarks/host.py [--int8 FOLDER] [--model demo]

Two tables. The engines take turns within each round, so that a busy machine hardly changes the ratios. Memory
and first predictions are those of fresh processes; the time of Python's own start is not in them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.engines.openvino.engine import OpenVinoEngine
from acq_isl.engines.predictor import Predictor, Shares
from acq_isl.engines.selection import sample_stack
from acq_isl.stack import ZStack

REFERENCE = "onnxruntime fp32"
_ALONE = """
import sys, time
began_s = time.perf_counter()
from benchmarks_host import engines
from acq_isl.engines.model_file import read_model
model, name, side, trunk = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
file = read_model(model)
engine = engines(file, trunk)[name]()
loaded_s = time.perf_counter()
from acq_isl.engines.selection import sample_stack
stack = sample_stack(file, side)
made_s = time.perf_counter()
engine.rehearse(stack)
first_s = time.perf_counter() - made_s + loaded_s - began_s
with open("/proc/self/status") as status:
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
print(first_s, peak / 1024)
"""


def engines(file: ModelFile, trunk: str) -> dict[str, Callable[[], Predictor]]:
    """Ways to run a model, by name; int8 if there is a folder with a quantised network."""
    found: dict[str, Callable[[], Predictor]] = {
        REFERENCE: lambda: OnnxEngine(file.info.where),
        "openvino fp32": lambda: OpenVinoEngine(file, precision="fp32"),
        "openvino bf16": lambda: OpenVinoEngine(file, precision="bf16"),
    }
    if trunk:
        folder = Path(trunk)
        content = (folder / "network.xml").read_bytes(), (folder / "network.bin").read_bytes()
        found["openvino int8"] = lambda: OpenVinoEngine(file, precision="int8", trunk=content)
    return found


def measured(
    opened: dict[str, Predictor], stack: ZStack, rounds: int
) -> dict[str, list[tuple[Shares, Shares]]]:
    """Shares of each engine and round, of stacks that come at once and of stacks looked at as they came."""
    runs: dict[str, list[tuple[Shares, Shares]]] = {name: [] for name in opened}
    for turn in range(rounds + 1):
        for name, engine in opened.items():
            _, at_once = engine.rehearse(stack)
            gathered = engine.begin_statistics(stack.info)
            for z, plane in enumerate(stack.pixels[:-1]):
                gathered.add(z, plane)
            _, as_it_came = engine.predict_timed(stack, gathered, "warn")  # it is made up
            if turn:
                runs[name].append((at_once, as_it_came))
    return runs


def around(shares: Shares) -> float:
    """Work around the network as a share of the network's time."""
    return (shares.total_ms - shares.network_ms) / shares.network_ms


def rows(runs: dict[str, list[tuple[Shares, Shares]]]) -> Iterator[tuple[str, ...]]:
    reference = [one.network_ms for one, _ in runs[REFERENCE]]
    for name, pairs in runs.items():
        once = [one for one, _ in pairs]
        ratios = [other / one.network_ms for other, one in zip(reference, once, strict=True)]
        middle = {
            part: statistics.median(getattr(one, f"{part}_ms") for one in once)
            for part in ("network", "prepare", "tile", "finish")
        }
        yield (
            name,
            f"{middle['network']:.0f}",
            f"{statistics.median(ratios):.2f} x",
            *(f"{middle[part]:.1f}" for part in ("prepare", "tile", "finish")),
            f"{statistics.median(around(one) for one in once):.1%}",
            f"{statistics.median(around(other) for _, other in pairs):.1%}",
        )


def alone(model: str, name: str, side: int, trunk: str) -> tuple[float, float]:
    """Seconds from the start of Python's work to the first prediction, and peak memory in MiB."""
    here = Path(__file__).parent
    code = f"import sys; sys.path.insert(0, {str(here)!r}); import host as benchmarks_host\n"
    code += "sys.modules['benchmarks_host'] = benchmarks_host\n" + _ALONE
    command = [sys.executable, "-c", code, model, name, str(side), trunk]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    first_s, peak_mib = said.split()
    return float(first_s), float(peak_mib)


def table(title: str, columns: Sequence[str], lines: Iterator[tuple[str, ...]]) -> None:
    shown = Table(title=title)
    for index, column in enumerate(columns):
        shown.add_column(column, justify="right" if index else "left")
    for line in lines:
        shown.add_row(*line)
    Console(width=120).print(shown)


def main(
    model: str = "demo", side: int = 1024, rounds: int = 7, int8: str = "", memory_px: int = 2048
) -> None:
    file = read_model(model)
    ways = engines(file, int8)
    with ExitStack() as opened:
        loaded = {name: opened.enter_context(way()) for name, way in ways.items()}
        runs = measured(loaded, sample_stack(file, side), rounds)
    load = f"; {os.getloadavg()[0]:.1f} processes were running" if hasattr(os, "getloadavg") else ""
    size = f"{file.info.manifest.planes} x {side} x {side}"
    table(
        f"{file.info.manifest.name}, {size}; ms, medians of {rounds}{load}",
        ("engine", "network", "speed", "prepare", "tiles", "finish", "around", "around, seen arriving"),
        rows(runs),
    )
    fresh = []
    for name in ways:
        alone(model, name, memory_px, int8)  # fills the cache of compiled networks
        first_s, peak_mib = alone(model, name, memory_px, int8)
        alone(model, name, side, int8)
        small_s, _ = alone(model, name, side, int8)
        fresh.append((name, f"{small_s:.2f}", f"{first_s:.2f}", f"{peak_mib:.0f}"))
    table(
        "fresh processes, compiled networks in the cache",
        ("engine", f"first at {side} px, s", f"first at {memory_px} px, s", f"peak at {memory_px} px, MiB"),
        iter(fresh),
    )


if __name__ == "__main__":
    typer.run(main)
