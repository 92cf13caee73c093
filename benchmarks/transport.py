"""What it costs to bring a stack to an engine in another process: ``python benchmarks/transport.py``.

Real client, real server process, an engine that only touches every page. Paths: shared memory (default
on one host), plain payload over TCP and over ipc. Columns:

* ms/stack   slices put back to back, wall time per stack over the run (two stacks in flight)
* GB/s       pixels brought to the engine per second
* transfer   last slice captured until the stack is complete at the engine, when slices come 10 ms apart
* put p50/95 time the camera's thread spends in ``put`` per slice, when slices come 10 ms apart
* CPU        processor time of the client's process per stack
* copied     bytes copied in the client per slice (the socket's own copies come on top)
* round trip last slice put until the prediction (one label, float32) is here
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from acq_isl.manifest import Label, Manifest
from acq_isl.stack import Prediction, Slice, StackInfo, StackKey, ZStack
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.process import EngineProcess
from acq_isl.stream.spool import Spool

PLANES = 13


MANIFEST = Manifest(
    name="touch",
    version="1",
    licence="BSD-3-Clause",
    description="touches every page",
    modality="unknown",
    polarity="unknown",
    pixel_size_um=0.3,
    z_offsets_um=tuple(float(z) for z in range(-6, 7)),
    high_pass_um=0.0,
    labels=(Label(name="nuclei", marker="none"),),
    min_tile_px=8,
    halo_px=0,
    size_step_px=1,
    trained_on="nothing",
)


class Touch:
    """Reads one number per page of the stack."""

    manifest = MANIFEST

    def predict(self, stack: ZStack) -> Prediction:
        touched = int(stack.pixels.reshape(-1)[::2048].astype(np.uint64).sum())
        plane = np.zeros((1, *stack.info.shape), np.float32)
        plane[0, 0, 0] = touched
        return Prediction(stack.info, ("nuclei",), plane, plane, "", "touch", "none")

    def close(self) -> None:
        """Nothing to free."""


@dataclass(frozen=True)
class Row:
    """One line of the table; milliseconds unless named otherwise."""

    path: str
    stack_ms: float
    gb_per_s: float
    transfer_ms: float
    put_p50_ms: float
    put_p95_ms: float
    cpu_ms: float
    copied_bytes: float
    round_trip_ms: float

    def __str__(self) -> str:
        return (
            f"| {self.path:13} | {self.stack_ms:8.1f} | {self.gb_per_s:5.2f} | {self.transfer_ms:8.2f} | "
            f"{self.put_p50_ms:5.2f} / {self.put_p95_ms:5.2f} | {self.cpu_ms:6.1f} | "
            f"{self.copied_bytes:10.0f} | {self.round_trip_ms:10.1f} |"
        )


HEAD = (
    "| path          | ms/stack |  GB/s | transfer | put p50/p95   |  CPU   |     copied | round trip |\n"
    "|---------------|----------|-------|----------|---------------|--------|------------|------------|"
)


@contextmanager
def connected(bind: str, share_memory: bool) -> Iterator[EngineClient]:
    command = (sys.executable, __file__, "--serve")
    with tempfile.TemporaryDirectory() as folder, EngineProcess("none", bind=bind, command=command) as engine:
        settings = ClientSettings(share_memory=share_memory)
        with EngineClient(engine.endpoint, spool=Spool(Path(folder)), settings=settings) as client:
            deadline_s = time.monotonic() + 20
            while not client.connected and time.monotonic() < deadline_s:
                time.sleep(0.01)
            yield client


def put_stack(client: EngineClient, number: int, image: np.ndarray, pause_s: float) -> list[float]:
    """Put one stack; milliseconds spent in each put."""
    info = StackInfo(StackKey(number, "A1", "Phase"), tuple(map(float, range(PLANES))), image.shape, 0.3)
    spent = []
    for z in range(PLANES):
        time.sleep(pause_s)
        slice_ = Slice(info, z, image, time.time())
        begin_s = time.perf_counter()
        client.put(slice_)
        spent.append((time.perf_counter() - begin_s) * 1e3)
    return spent


def measure(path: str, bind: str, share_memory: bool, stacks: int, side: int) -> Row:
    image = np.random.default_rng(0).integers(0, 65535, (side, side), dtype=np.uint16)
    with connected(bind, share_memory) as client:
        for number in range(4):  # fill the memory's pages once
            put_stack(client, number, image, 0.0)
        client.drain(60)
        puts: list[float] = []
        transfers, round_trips = [], []
        for number in range(4, 4 + stacks):
            puts += put_stack(client, number, image, 0.010)
            begin_s = time.perf_counter()
            (outcome,) = client.drain(60)
            round_trips.append((time.perf_counter() - begin_s) * 1e3)
            transfers.append(outcome.times.transfer_ms if isinstance(outcome, Prediction) else float("nan"))
        before = client.counts
        cpu_s, begin_s = time.process_time(), time.perf_counter()
        for number in range(4 + stacks, 4 + 2 * stacks):
            put_stack(client, number, image, 0.0)
            # A camera waits for no one, but this measures the way, not the waiting room.
            while client.counts.stacks - client.counts.predicted > 2:
                client.poll()
                time.sleep(0.0002)
        client.drain(60)
        wall_s, cpu_s = time.perf_counter() - begin_s, time.process_time() - cpu_s
        after = client.counts
    nbytes = stacks * PLANES * image.nbytes
    copied = (after.bytes_copied - before.bytes_copied) / (after.captured - before.captured)
    p50, p95 = np.percentile(puts, [50, 95])
    return Row(
        path,
        wall_s / stacks * 1e3,
        nbytes / wall_s / 1e9,
        float(np.median(transfers)),
        float(p50),
        float(p95),
        cpu_s / stacks * 1e3,
        copied,
        float(np.median(round_trips)),
    )


def half_float(side: int) -> str:
    """What it would cost to send float16: converting there and back, for three labels and their spread."""
    mean = np.random.default_rng(0).random((6, side, side), np.float32)
    spent = []
    for _ in range(5):
        begin_s = time.perf_counter()
        mean.astype(np.float16).astype(np.float32)
        spent.append((time.perf_counter() - begin_s) * 1e3)
    saved = mean.nbytes / 2
    return f"float16 for 3 labels: {min(spent):.1f} ms to convert, to save {saved / 1e6:.1f} MB"


def serve_here(arguments: list[str]) -> None:
    from acq_isl.stream.model_registry import ServedModel
    from acq_isl.stream.process import Parent, serve

    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--bind")
    parser.add_argument("--announce", type=Path)
    parser.add_argument("--stop-with-stdin", action="store_true")
    options = parser.parse_args(arguments)
    serve([ServedModel(Touch())], options.bind, parent=Parent(options.announce, options.stop_with_stdin))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stacks", type=int, default=20)
    parser.add_argument("--side", type=int, default=1024, help="rows and columns of a slice")
    options = parser.parse_args()
    say = sys.stdout.write
    say(
        f"{PLANES} x {options.side} x {options.side} uint16, {options.stacks} stacks, two processes\n{HEAD}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = [("shared memory", "tcp://127.0.0.1:*", True), ("tcp", "tcp://127.0.0.1:*", False)]
        if sys.platform != "win32":
            paths.append(("ipc", f"ipc://{folder}/engine", False))
        for path, bind, share_memory in paths:
            say(f"{measure(path, bind, share_memory, options.stacks, options.side)}\n")
            sys.stdout.flush()
    say(half_float(options.side) + "\n")


if __name__ == "__main__":
    if "--serve" in sys.argv:
        sys.argv.remove("--serve")
        serve_here(sys.argv[1:])
    else:
        main()
