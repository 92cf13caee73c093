"""What viewers cost and what they see: ``python benchmarks/view.py``.

Viewers are processes of their own that follow the feed as the napari window and the web page do; "frozen"
is one more that is stopped (SIGSTOP) and never reads. Two tables:

* feed: predictions of 512 x 512 pixels with three labels, told 60 times a second. updates/s that each
  viewer took, and the time from telling to having it decoded (p50, p95), over all viewers. tell: time the
  session spends to tell one (p50, p99). skipped: pictures replaced by newer ones before a viewer took them.
* acquisition: the simulated microscope, guarded, 13 slices of 1 ms a stack. Stacks take turns: one is watched
  (its plane and a prediction are told, and every viewer takes them), one is not, so that whatever else the
  machine does meets both alike. Slices per second from the median time of a stack, and the ratio of the two.
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

from acq_isl.events import Predicted
from acq_isl.experiment.experiment import SimulatedMicroscope
from acq_isl.hooks import GuardedAcquisition, open_microscope
from acq_isl.rules.actions import Limits
from acq_isl.rules.measurements import Measured
from acq_isl.stack import Prediction, Slice, StackInfo, StackKey, StackRequest
from acq_isl.view.feed import Feed
from acq_isl.view.feed.address import FeedAddress, read_address
from acq_isl.view.feed.previews import WatchedSink
from acq_isl.view.feed.reader import FeedReader

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
                if isinstance(one.event, Predicted):
                    latencies.append(time.time() - one.event.measured[0].value)
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


def stamped(one: Prediction) -> Predicted:
    return Predicted.of(one, (Measured("sent", time.time(), "s", 0.0),), 0.0)


def feed_row(count: int, frozen: bool, seconds: float) -> tuple[str, ...]:
    one = prediction(StackKey(0, "p0", "Phase"), 512)
    spent: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Feed(Path(folder)) as feed:
        with viewers(read_address(Path(folder)), count, frozen) as connections:
            began = time.monotonic()
            while (now := time.monotonic()) - began < seconds:
                before = time.perf_counter()
                feed.handle(stamped(one))
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


def acquisition_row(count: int, frozen: bool, stacks: int) -> tuple[str, ...]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(open_microscope(SimulatedMicroscope()))
        feed = stack.enter_context(Feed(folder))
        stack.enter_context(viewers(read_address(folder), count, frozen))
        watched = False
        sink = WatchedSink(Nowhere(), lambda event: feed.handle(event) if watched else None)
        scope = stack.enter_context(GuardedAcquisition(folder, "measured", sink=sink, limits=Limits()))
        one = prediction(StackKey(0, "p0", "Phase"), 512)
        spent_s: dict[bool, list[float]] = {False: [], True: []}
        for number in range(2 * stacks):
            watched = number % 2 == 1
            began = time.perf_counter()
            if watched:
                feed.handle(stamped(one))
            scope.acquire(request(number))
            spent_s[watched].append(time.perf_counter() - began)
    without, with_ = (13 / statistics.median(spent_s[watched][1:]) for watched in (False, True))
    return (name(count, frozen), f"{without:.1f}", f"{with_:.1f}", f"{with_ / without:.3f}")


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
    parser.add_argument("--stacks", type=int, default=60, help="watched and not watched, of each row")
    given = parser.parse_args()
    cases = [case for case in CASES if not case[1] or os.name == "posix"]
    head = ("feed", "updates/s each", "latency ms p50/p95", "tell ms p50/p99", "skipped", "dropped")
    table("", head, [feed_row(*case, given.seconds) for case in cases])
    head = ("acquisition", "slices/s not watched", "slices/s watched", "ratio")
    table("", head, [acquisition_row(*case, given.stacks) for case in cases])


if __name__ == "__main__":
    main()
