"""What viewers cost and what they see: ``python benchmarks/view.py``.

Viewers are processes of their own that follow the feed as the napari window and the web page do; "frozen"
is one more that is stopped (SIGSTOP) and never reads. Two tables:

* feed: predictions of 512 x 512 pixels with three labels, told 60 times a second. updates/s that each
  viewer took, and the time from telling to having it decoded (p50, p95), over all viewers. tell: time the
  session spends to tell one (p50, p99). skipped: pictures replaced by newer ones before a viewer took them.
* acquisition: the simulated microscope, guarded, 13 slices of 1 ms a stack, a prediction told after each
  stack; slices per second, median and best of the rounds, and the ratios of both to a run
  that nobody can watch. On a machine that does other work as well the best is the one to look at.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from acq_isl.actions import Limits
from acq_isl.experiment import SimulatedMicroscope
from acq_isl.hooks import GuardedAcquisition, open_microscope
from acq_isl.news import Predicted, RunStarted
from acq_isl.record import Measured
from acq_isl.stack import Prediction, Slice, StackInfo, StackKey, StackRequest
from acq_isl.view.address import FeedAddress, read_address
from acq_isl.view.feed import Feed
from acq_isl.view.messages import Predicted as PredictedSent
from acq_isl.view.previews import WatchedSink
from acq_isl.view.reader import FeedReader

LABELS = ("nuclei", "dendrites", "axons")
RATE_HZ = 60.0
CASES = ((0, False), (1, False), (4, False), (4, True))


def watch(address: FeedAddress, ready: Connection) -> None:
    """A viewer: takes what is new until told to stop, then says what it took."""
    latencies: list[float] = []
    with FeedReader(address) as reader:
        while not reader.alive:
            time.sleep(0.01)
        ready.send("watching")
        while not ready.poll():
            reader.wait(0.05)
            for one in reader.take():
                if isinstance(one.message, PredictedSent):
                    latencies.append(time.time() - one.message.measured[0].value)
        ready.send((latencies, reader.skipped, reader.missed))


@contextmanager
def viewers(address: FeedAddress, count: int, frozen: bool) -> Iterator[list[Connection]]:
    """Processes that follow a feed; the frozen one comes on top and is not in the list."""
    context = multiprocessing.get_context("spawn")
    running = []
    for _ in range(count + frozen):
        ours, theirs = context.Pipe()
        process = context.Process(target=watch, args=(address, theirs), daemon=True)
        process.start()
        running.append((process, ours))
    for _, ours in running:
        if not ours.poll(60):
            raise SystemExit("a viewer did not start")
        ours.recv()
    if frozen:
        os.kill(running[-1][0].pid or 0, signal.SIGSTOP)
    try:
        yield [ours for _, ours in running[:count]]
    finally:
        for process, _ in running:
            process.kill()
            process.join(10)


def prediction(key: StackKey, side: int) -> Prediction:
    rng = np.random.default_rng(0)
    mean = rng.random((len(LABELS), side, side), np.float32)
    info = StackInfo(key, tuple(map(float, range(13))), (side, side), 0.3)
    return Prediction(info, LABELS, mean, mean / 4, "0", "m", "e")


def told(one: Prediction) -> Predicted:
    return Predicted(one, (Measured("told", time.time(), "s", 0.0),), 0.0)


def feed_row(count: int, frozen: bool, seconds: float) -> tuple[str, ...]:
    one = prediction(StackKey(0, "p0", "Phase"), 512)
    spent: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Feed(Path(folder)) as feed:
        with viewers(read_address(Path(folder)), count, frozen) as connections:
            began = time.monotonic()
            while (now := time.monotonic()) - began < seconds:
                before = time.perf_counter()
                feed.tell(told(one))
                spent.append((time.perf_counter() - before) * 1e3)
                time.sleep(max(0.0, now + 1 / RATE_HZ - time.monotonic()))
            for connection in connections:
                connection.send("stop")
            found: list[Any] = [connection.recv() for connection in connections]
        dropped = feed.dropped
    latencies = [1e3 * value for taken, _, _ in found for value in taken]
    rates = [len(taken) / seconds for taken, _, _ in found]
    tell = f"{np.percentile(spent, 50):.3f} / {np.percentile(spent, 99):.3f}"
    if not found:
        return (name(count, frozen), "-", "-", tell, "-", str(dropped))
    times = f"{np.percentile(latencies, 50):.0f} / {np.percentile(latencies, 95):.0f}"
    skipped = sum(s for _, s, _ in found) + sum(m for _, _, m in found)
    return (
        name(count, frozen),
        f"{min(rates):.0f} to {max(rates):.0f}",
        times,
        tell,
        str(skipped),
        str(dropped),
    )


class Nowhere:
    """A sink that forgets."""

    copies = True

    def put(self, slice_: Slice) -> None:
        pass


def acquisition(count: int | None, frozen: bool, stacks: int) -> float:
    """Slices per second; ``count`` is None for a run without a feed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(open_microscope(SimulatedMicroscope()))
        sink: Any = Nowhere()
        feed = None
        if count is not None:
            feed = stack.enter_context(Feed(folder))
            feed.tell(RunStarted("b", "now", str(folder), "s", "m", (), (), (1.0, 1.0)))
            sink = WatchedSink(sink, feed.tell)
            stack.enter_context(viewers(read_address(folder), count, frozen))
        scope = stack.enter_context(GuardedAcquisition(folder, "measured", sink=sink, limits=Limits()))
        one = prediction(StackKey(0, "p0", "Phase"), 512)
        scope.acquire(request(0))
        began = time.perf_counter()
        for number in range(1, stacks + 1):
            scope.acquire(request(number))
            if feed is not None:
                feed.tell(told(one))
        return 13 * stacks / (time.perf_counter() - began)


def request(number: int) -> StackRequest:
    z_um = tuple(round(-9 + 1.5 * plane, 3) for plane in range(13))
    return StackRequest(StackKey(0, f"p{number}", "Phase"), 0.0, 0.0, z_um, "Channel", "Phase", 1.0)


def name(count: int, frozen: bool) -> str:
    return f"{count} viewer{'s' * (count != 1)}{' and a frozen one' if frozen else ''}"


def table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        title,
        *("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in [head, *rows]),
    ]
    sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row of the first table")
    parser.add_argument("--stacks", type=int, default=20, help="of each round of the second table")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    cases = [case for case in CASES if not case[1] or os.name == "posix"]
    head = ("feed", "updates/s each", "latency ms p50/p95", "tell ms p50/p99", "skipped", "dropped")
    table("", head, [feed_row(*case, given.seconds) for case in cases])
    rates: dict[tuple[int | None, bool], list[float]] = {}
    for _ in range(given.rounds):  # in turn, so that a busy moment of the machine meets all of them
        for case in [(None, False), *cases]:
            rates.setdefault(case, []).append(acquisition(*case, given.stacks))
    base = rates[None, False]
    rows = [
        (
            "no feed" if count is None else name(count, frozen),
            f"{statistics.median(found):.1f}",
            f"{statistics.median(found) / statistics.median(base):.3f}",
            f"{max(found):.1f}",
            f"{max(found) / max(base):.3f}",
        )
        for (count, frozen), found in rates.items()
    ]
    table("", ("acquisition", "slices/s", "ratio", "best", "ratio of best"), rows)


if __name__ == "__main__":
    main()
