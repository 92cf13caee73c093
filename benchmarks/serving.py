"""An engine that is too slow for its camera: how old a prediction is when it comes, and what a swap costs.

    python benchmarks/serving.py [--stacks 60] [--engine-ms 50] [--camera-ms 20]

The engine sleeps, so that the order of work is measured and not the processor.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from acq_isl.manifest import Label, Manifest
from acq_isl.stack import Outcome, Prediction, Slice, StackInfo, StackKey, ZStack
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.messages import Wanted
from acq_isl.stream.model_registry import ServedModel
from acq_isl.stream.server import EngineServer, ServerSettings
from acq_isl.stream.spool import Spool
from acq_isl.stream.swap import swap

PLANES, SIDE = 13, 256
_MANIFEST = Manifest(
    name="sleep",
    version="1",
    licence="BSD-3-Clause",
    description="sleeps",
    modality="unknown",
    polarity="unknown",
    pixel_size_um=0.3,
    z_offsets_um=tuple(float(z - PLANES // 2) for z in range(PLANES)),
    high_pass_um=0.0,
    labels=(Label(name="nuclei", marker="DAPI"),),
    min_tile_px=8,
    halo_px=0,
    size_step_px=1,
    trained_on="nothing",
)


@dataclass
class Sleeper:
    """Takes its time for every stack, and longer to be loaded."""

    seconds: float
    sha256: str
    manifest: Manifest = _MANIFEST

    def predict(self, stack: ZStack) -> Prediction:
        time.sleep(self.seconds)
        plane = np.zeros((1, *stack.info.shape), np.float32)
        return Prediction(stack.info, ("nuclei",), plane, plane, self.sha256, "sleep", "none")

    def close(self) -> None:
        """Nothing to free."""


def stream(client: EngineClient, stacks: int, camera_s: float) -> list[tuple[float, Outcome]]:
    """Put stacks as a camera does; every outcome with the time at which it came."""
    pixels = np.zeros((SIDE, SIDE), np.uint16)
    z_um = tuple(map(float, range(PLANES)))
    found: list[tuple[float, Outcome]] = []
    for number in range(stacks):
        info = StackInfo(StackKey(number, "A1", "Phase"), z_um, (SIDE, SIDE), 0.3)
        due_s = time.monotonic() + camera_s
        for z in range(PLANES):
            client.put(Slice(info, z, pixels, time.time()))
        while (left_s := due_s - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.002))
            found += [(time.time(), one) for one in client.poll()]
    deadline_s = time.monotonic() + 60
    while len(found) < stacks and time.monotonic() < deadline_s:
        time.sleep(0.002)
        found += [(time.time(), one) for one in client.poll()]
    return found


def measure(wanted: Wanted, swapping: bool, options: argparse.Namespace) -> str:
    """One line of the table."""
    engine_s = options.engine_ms / 1e3

    def load(model: str) -> ServedModel:
        time.sleep(10 * engine_s)
        return ServedModel(Sleeper(engine_s, model), "", model)

    settings = ServerSettings(load=load)
    with (
        tempfile.TemporaryDirectory() as folder,
        EngineServer(
            [ServedModel(Sleeper(engine_s, "old"), "", "old")], "tcp://127.0.0.1:*", settings
        ) as server,
        EngineClient(server.endpoint, spool=Spool(folder), settings=ClientSettings(wanted=wanted)) as client,
    ):
        client.wait_connected(10)
        asking = threading.Thread(target=swap, args=(server.endpoint, "new"))
        if swapping:
            asking.start()
        began_s = time.time()
        found = stream(client, options.stacks, options.camera_ms / 1e3)
        if swapping:
            asking.join()
        counts = client.counts
    recorded_s = began_s + options.stacks * options.camera_ms / 1e3
    during = [at_s for at_s, _ in found if at_s <= recorded_s]
    newest = [(at_s, one.info.key.time) for at_s, one in found if at_s <= recorded_s]
    ages_ms = [(at_s - began_s) * 1e3 - (number + 1) * options.camera_ms for at_s, number in newest]
    gaps_ms = np.diff([began_s, *during]) * 1e3
    by_hash = [sum(getattr(one, "model_sha256", "") == name for _, one in found) for name in ("old", "new")]
    return _row(
        f"{wanted.work}{', swap' if swapping else ''}",
        f"{np.median(ages_ms):.0f} / {np.percentile(ages_ms, 95):.0f}",
        f"{gaps_ms.max():.0f}",
        f"{counts.predicted} of {counts.stacks}",
        f"{by_hash[0]} + {by_hash[1]}",
        str(counts.withdrawn),
        str(counts.lost),
    )


def _row(*cells: str) -> str:
    widths = (12, 22, 12, 12, 12, 10, 5)
    return "| " + " | ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stacks", type=int, default=60)
    parser.add_argument("--engine-ms", type=float, default=50.0, help="of one prediction")
    parser.add_argument("--camera-ms", type=float, default=20.0, help="of one stack")
    options = parser.parse_args(arguments)
    say = sys.stdout.write
    say(
        _row("work", "age p50 / p95, ms", "max gap, ms", "predicted", "old + new", "given back", "lost")
        + "\n"
    )
    for work, swapping in (("bulk", False), ("live", False), ("live", True)):
        wanted = Wanted(work="live" if work == "live" else "bulk")
        say(measure(wanted, swapping, options) + "\n")


if __name__ == "__main__":
    main()
