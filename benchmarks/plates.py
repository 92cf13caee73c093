"""What a whole plate costs, and how that grows: ``python benchmarks/plates.py [--fields 12] [--rounds 2]``.

Fields of 13 x 1024 x 1024 in an OME-Zarr plate. First the processor's time of each part of one chunk on one
thread, which other programs on the machine hardly change; then one worker against two (one thread each), in
turns; then what that means for 100 plates of 384 wells and 4 fields, marked as computed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import zarr

from acq_isl.bulk.executors import Here, Place, Processes
from acq_isl.bulk.find import find_chunks
from acq_isl.bulk.output import Output
from acq_isl.bulk.run import predict_stored
from acq_isl.bulk.unit import Unit, open_engine
from acq_isl.bulk.work import Chunk, Done, Job, Settings
from acq_isl.engines import describe
from acq_isl.engines.model_file import read_model
from acq_isl.engines.selection import sample_stack

SIDE_PX, PIXEL_UM, Z_STEP_UM = 1024, 0.3, 1.5
PLATES, WELLS, FIELDS = 100, 384, 4
GPUS = (1, 2, 4, 8, 16, 32, 64)
_SKIPPED = 3
PER_GPU = 4  # worker processes, so that one reads while another computes
NETWORK_MS = (0.3, 3.0)  # a field on an H100 and on an RTX 3090, docs/engines.md: estimates from rooflines
STORAGES = {"10 Gbit/s": 1.0e9, "parallel file system": 10.0e9}  # bytes a second, all together


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one chunk: seconds of one core, and bytes."""

    read_s: float
    predict_s: float
    host_s: float
    """Of `predict_s`, what is not the network."""
    write_s: float
    read_bytes: float
    written_bytes: float


def write_plate(path: Path, fields: int) -> Path:
    """A plate of made-up fields, compressed as zarr does it by default."""
    pixels = sample_stack(read_model("demo"), SIDE_PX).pixels
    rng = np.random.default_rng(1)
    scale = {"type": "scale", "scale": [1, Z_STEP_UM, PIXEL_UM, PIXEL_UM]}
    axes = [{"name": "c", "type": "channel"}]
    axes += [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    wells = [f"A/{number + 1}" for number in range(fields)]
    for well in wells:
        image = zarr.open_group(path / well / "0", mode="w", zarr_format=3)
        noise = rng.integers(0, 64, pixels.shape, dtype=np.uint16)
        image.create_array("0", data=(pixels + noise)[None], chunks=(1, 1, SIDE_PX, SIDE_PX))
        image.attrs["ome"] = {
            "version": "0.5",
            "multiscales": [
                {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}
            ],
            "omero": {"channels": [{"label": "Phase"}]},
        }
        group = zarr.open_group(path / well, mode="a", zarr_format=3)
        group.attrs["ome"] = {"version": "0.5", "well": {"images": [{"path": "0"}]}}
    plate = {"wells": [{"path": well, "rowIndex": 0, "columnIndex": 0} for well in wells]}
    zarr.open_group(path, mode="a", zarr_format=3).attrs["ome"] = {"version": "0.5", "plate": plate}
    return path


def job(out: Path) -> Job:
    info = describe("demo")
    settings = Settings(
        model=info.manifest.name, model_sha256=info.sha256, engine="onnxruntime fp32", gate="warn"
    )
    return Job("demo", settings, out, 1)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(plate: Path, out: Path) -> Cost:
    """Each chunk in this process, by the processor's clock; the first is not counted."""
    todo = job(out)
    engine = open_engine(todo)
    unit = Unit(todo, engine, clock=time.process_time)
    with Output(out, todo.settings).opened([plate]):
        done = [unit.do(chunk) for chunk in find_chunks([plate]).chunks][1:]
    times = engine.predict(sample_stack(read_model("demo"), SIDE_PX)).times
    engine.close()
    read, predict, write = (
        statistics.median(getattr(each, part) for each in done) for part in ("read_s", "predict_s", "write_s")
    )
    host = times.decode_ms / (times.decode_ms + times.infer_ms)
    count = len(done) + 1
    return Cost(read, predict, host * predict, write, size(plate) / count, size(out) / count)


@dataclass(frozen=True, slots=True)
class Rate:
    """Fields a second, and seconds of a core for each."""

    per_s: float
    core_s: float


def rate(plate: Path, out: Path, place: Place) -> Rate:
    """Once all workers have done a field, so that their start is not counted."""
    at: list[tuple[float, float]] = []

    def note(chunk: Chunk, done: Done) -> None:
        at.append((time.perf_counter(), _core_s()))

    summary = predict_stored([plate], job(out), place, watch=note)
    if not summary.complete:
        raise SystemExit(f"not all was predicted: {summary.failed + summary.refused}")
    (began, before), (ended, after), count = at[_SKIPPED - 1], at[-1], len(at) - _SKIPPED
    return Rate(count / (ended - began), (after - before) / count)


def _core_s() -> float:
    """Of this process and its children."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children())]
    return sum(each.user + each.system for each in times)


def hours(cost: Cost, gpus: int, network_ms: float, bytes_per_s: float) -> float:
    """Of all plates: as long as the slowest of workers, GPUs and the storage takes."""
    chunks = PLATES * WELLS * FIELDS
    chain_s = cost.read_s + cost.host_s + network_ms / 1e3 + cost.write_s
    workers_s = chunks * chain_s / (gpus * PER_GPU)
    gpus_s = chunks * network_ms / 1e3 / gpus
    storage_s = chunks * (cost.read_bytes + cost.written_bytes) / bytes_per_s
    return max(workers_s, gpus_s, storage_s) / 3600


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fields", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plate = write_plate(folder / "plate.ome.zarr", options.fields)
        cost = measure(plate, folder / "cost")
        say(
            "| one chunk, one thread | read | network | around it | write | bytes read | written |\n|"
            + "---|" * 7
        )
        say(
            f"| s of a core | {cost.read_s:.3f} | {cost.predict_s - cost.host_s:.3f} | {cost.host_s:.3f} "
            f"| {cost.write_s:.3f} | {cost.read_bytes / 1e6:.1f} MB | {cost.written_bytes / 1e6:.1f} MB |"
        )
        ways: dict[str, Place] = {"one": Here(), "two": Processes(2)}
        rates: dict[str, list[Rate]] = {"one": [], "two": []}
        for turn in range(options.rounds):
            for way, place in list(ways.items())[:: 1 if turn % 2 else -1]:
                rates[way].append(rate(plate, folder / f"{way}{turn}", place))
        say(
            "\n| round | one worker, fields/s | two | ratio | s of a core a field, one | two |\n|"
            + "---|" * 6
        )
        for turn, (one, two) in enumerate(zip(*rates.values(), strict=True)):
            ratio = two.per_s / one.per_s
            say(
                f"| {turn + 1} | {one.per_s:.3f} | {two.per_s:.3f} | {ratio:.2f} "
                f"| {one.core_s:.2f} | {two.core_s:.2f} |"
            )
    fast, slow = NETWORK_MS
    say(f"\nCOMPUTED, {PLATES * WELLS * FIELDS} chunks, hours:\n")
    columns = [f"{net:g} ms, {name}" for net in (fast, slow) for name in STORAGES]
    say("| GPUs | " + " | ".join(columns) + " |\n|" + "---|" * (1 + len(columns)))
    for gpus in GPUS:
        found = [hours(cost, gpus, net, speed) for net in (fast, slow) for speed in STORAGES.values()]
        say(f"| {gpus} | " + " | ".join(f"{each:.1f}" for each in found) + " |")


if __name__ == "__main__":
    main()
