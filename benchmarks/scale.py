"""What grows with what: ``python benchmarks/scale.py [AXIS ...] [--png docs/images/scale.png]``.

Each axis is taken alone. Times are of the processor (this process, all its threads), the least of a few runs,
without Python's collector of garbage, so that a busy machine hardly matters. "growth" is the exponent between
the two largest sizes: 1 is as fast as the input, 2 its square. Where it is above 1.25 (caches of the
processor take their share), and the time is one that anybody notices, the last column says so and the exit
code is 1.
"""

from __future__ import annotations

import argparse
import gc
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import useq
from PIL import Image, ImageDraw, ImageFont

from acq_isl.engines.image_quality import StackStatistics
from acq_isl.engines.pipeline import worker_threads
from acq_isl.events import PlannedField, Predicted, RunStarted
from acq_isl.experiment.planning import Optics, Place, cycles
from acq_isl.processing.tiling import TileRule, blend, plan_tiles
from acq_isl.rules.label_names import LabelStyle
from acq_isl.stack import Prediction, StackInfo, StackKey, ZStack
from acq_isl.view.feed import Feed
from acq_isl.view.feed.address import read_address
from acq_isl.view.feed.encode import MessageMaker
from acq_isl.view.feed.messages import decode, encode
from acq_isl.view.feed.previews import reduce_prediction
from acq_isl.view.feed.reader import FeedReader
from acq_isl.view.napari.mosaic import placed

GROWTH, NOTICED_MS = 1.25, 20.0
_FOV_UM = (300.0, 300.0)
_RULE = TileRule(128, 32, 16)
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe and Ito
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that is done, along one axis; ``make`` prepares the work for a size."""

    axis: str
    what: str
    sizes: tuple[int, ...]
    make: Callable[[int, ExitStack], Work]
    linear: float = 1.0  # input grows with the size to this power


def least_ms(work: Work, runs: int) -> float:
    """Least processor time of so many runs, after one to warm up."""
    work()
    found = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(runs):
            began = time.process_time()
            work()
            found.append(time.process_time() - began)
    finally:
        gc.enable()
    return min(found) * 1e3


def stack(side: int, planes: int) -> ZStack:
    """Grain, (z, y, x) uint16."""
    rng = np.random.default_rng(0)
    z_um = tuple(1.5 * plane for plane in range(planes))
    info = StackInfo(StackKey(0, "p0", "Phase"), z_um, (side, side), 0.3)
    pixels = rng.integers(20_000, 30_000, (planes, side, side), np.uint16)
    return ZStack(info, pixels, (0.0,) * planes)


def prediction(labels: int, side: int = 512) -> Prediction:
    values = np.random.default_rng(1).random((labels, side, side), np.float32)
    names = tuple(f"label {number}" for number in range(labels))
    info = StackInfo(StackKey(0, "p0", "Phase"), (0.0,), (side, side), 0.3)
    return Prediction(info, names, values, values, "0" * 64, "model 1", "engine")


def look_at_stack(side: int, planes: int) -> Work:
    """What an engine looks at before it computes."""
    whole = stack(side, planes)

    def look() -> None:
        with worker_threads(1) as parallel_map:
            StackStatistics(whole.info, 67.0).complete(whole, parallel_map)

    return look


def cut_and_blend(side: int, opened: ExitStack) -> Work:
    """A field's tiles, blended again."""
    plan = plan_tiles((side, side), _RULE, tile_px=1280, border_px=16)
    tile = np.ones((3, *plan.tile_shape), np.float32)
    out = np.zeros((3, side, side), np.float32)
    return lambda: [blend(out, tile, plan, each) for each in plan.tiles]


def positions(count: int, times: int = 1) -> useq.MDASequence:
    """A square of named places, three planes each."""
    columns = math.ceil(math.sqrt(count))
    return useq.MDASequence(
        axis_order="tpgcz",
        stage_positions=[
            {"x": 300.0 * (n % columns), "y": 300.0 * (n // columns), "z": 0.0, "name": f"p{n:05d}"}
            for n in range(count)
        ],
        channels=[{"config": "Phase", "exposure": 10}],
        z_plan={"range": 3, "step": 1.5},
        time_plan={"interval": 60, "loops": times} if times > 1 else None,
    )


def plan(sequence: useq.MDASequence) -> Work:
    return lambda: cycles(sequence, Place(0, 0, 0, _FOV_UM), Optics())


def started(count: int) -> RunStarted:
    """What viewers are told at the start of a run of so many fields."""
    columns = math.ceil(math.sqrt(count))
    fields = tuple(
        PlannedField(StackKey(0, f"p{n:05d}", "Phase"), 300.0 * (n % columns), 300.0 * (n // columns), 0.0, 3)
        for n in range(count)
    )
    label = LabelStyle("nuclei", "#56b4e9")
    return RunStarted(
        "run", "2026-11-28T12:00:00+00:00", "runs/1", "simulated", "m 1", (label,), fields, _FOV_UM
    )


def page_payload(count: int, opened: ExitStack) -> Work:
    """The plan of a run as every viewer gets and reads it."""
    event = started(count)

    def send_and_read() -> None:
        (message,) = MessageMaker("0" * 32).messages(event, 1)
        decode([bytes(frame) for frame in encode(message)])

    return send_and_read


def merge(models: int, opened: ExitStack) -> Work:
    """Answers of so many models to one field, on their way to viewers."""
    answer, begun = Predicted.of(prediction(2), (), 0.0), replace(started(1), models=models)

    def answers() -> None:
        maker = MessageMaker("0" * 32)
        maker.messages(begun, 1)
        for number in range(models):
            maker.messages(replace(answer, model=f"m{number}"), number)

    return answers


def show(viewers: int, opened: ExitStack) -> Work:
    """A prediction told to so many viewers, and taken by all of them."""
    folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
    feed = opened.enter_context(Feed(folder))
    readers = [opened.enter_context(FeedReader(read_address(folder))) for _ in range(viewers)]
    while not all(reader.alive for reader in readers):
        time.sleep(0.01)
    event = Predicted.of(prediction(3), (), 0.0)

    def tell() -> None:
        feed.handle(event)
        for reader in readers:
            while not any(isinstance(each.event, Predicted) for each in reader.take()):
                reader.wait(0.05)

    return tell


LINES = (
    Line("field", "look at 13 planes", (256, 512, 1024, 2048, 4096), lambda n, _: look_at_stack(n, 13), 2),
    Line("field", "tiles", (256, 512, 1024, 2048, 4096), cut_and_blend, 2),
    Line("planes", "look at 1024 px", (1, 3, 7, 13, 31), lambda n, _: look_at_stack(1024, n)),
    Line("labels", "preview", (1, 2, 4, 8), lambda n, _: _preview(n)),
    Line("models", "merge answers", (1, 2, 3, 4), merge),
    Line("viewers", "tell and take", (0, 1, 2, 5, 10), show),
    Line("positions", "plan", (10, 100, 1000, 10_000), lambda n, _: plan(positions(n))),
    Line("positions", "map", (10, 100, 1000, 10_000), lambda n, _: _map(n)),
    Line("positions", "page's plan", (10, 100, 1000, 10_000), page_payload),
    Line("times", "plan", (1, 10, 100, 1000), lambda n, _: plan(positions(10, n))),
)


def _preview(labels: int) -> Work:
    event = Predicted.of(prediction(labels, 1024), (), 0.0)
    return lambda: reduce_prediction(event)


def _map(count: int) -> Work:
    fields = started(count).fields
    return lambda: placed(fields, _FOV_UM)


@dataclass(frozen=True, slots=True)
class Cost:
    line: Line
    took_ms: tuple[float, ...]

    @property
    def growth(self) -> float:
        """Exponent between the two largest sizes, against the input's own."""
        (n0, n1), (t0, t1) = self.line.sizes[-2:], self.took_ms[-2:]
        return math.log(max(t1, 1e-3) / max(t0, 1e-3)) / math.log(n1 / n0) / self.line.linear

    @property
    def too_fast(self) -> bool:
        """Whether it grows faster than its input, and anybody would notice."""
        return self.growth > GROWTH and self.took_ms[-1] > NOTICED_MS


def measure(lines: Sequence[Line], runs: int) -> Iterator[Cost]:
    for line in lines:
        took = []
        for size in line.sizes:
            with ExitStack() as opened:
                took.append(least_ms(line.make(size, opened), runs))
        yield Cost(line, tuple(took))


def draw(costs: Sequence[Cost], path: Path) -> None:
    """Time against size, both logarithmic, each line as a share of its own largest size."""
    width, height, left, top = 900, 520, 70, 30
    picture = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    across, up = 520, height - 2 * top - 20
    span = 3.0  # decades each way

    def at(share: float, ms_share: float) -> tuple[float, float]:
        x = left + across * (1 + max(math.log10(share), -span) / span)
        y = top + up * (-max(math.log10(max(ms_share, 1e-9)), -span) / span)
        return x, y

    pen.line([at(1e-3, 1e-3), at(1, 1)], "#bbbbbb", 2)
    pen.text((left + 6, top - 22), "time / time at the largest size; grey: as its input", "black", font)
    for number, cost in enumerate(costs):
        color, linear = _COLORS[number % len(_COLORS)], cost.line.linear
        pairs = zip(cost.line.sizes, cost.took_ms, strict=True)
        places = [at((n / cost.line.sizes[-1]) ** linear, ms / cost.took_ms[-1]) for n, ms in pairs if n > 0]
        pen.line(places, color, 3 if number < len(_COLORS) else 1)
        text = f"{cost.line.axis}: {cost.line.what}, {cost.took_ms[-1]:.3g} ms at {cost.line.sizes[-1]}"
        pen.text((left + across + 16, top + 24 * number), text, color, font)
    pen.rectangle((left, top, left + across, top + up), outline="#888888")
    pen.text((left, height - 32), "input / largest input", "black", font)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, "PNG")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("axes", nargs="*", help=", ".join(dict.fromkeys(line.axis for line in LINES)))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--png", type=Path)
    chosen = parser.parse_args()
    lines = [line for line in LINES if not chosen.axes or line.axis in chosen.axes]
    costs = []
    sys.stdout.write("| axis | what | ms of the processor, by size | growth |  |\n|---|---|---|---|---|\n")
    for cost in measure(lines, chosen.runs):
        costs.append(cost)
        pairs = zip(cost.line.sizes, cost.took_ms, strict=True)
        by_size = ", ".join(f"{size}: {ms:.3g}" for size, ms in pairs)
        told = "FASTER THAN ITS INPUT" if cost.too_fast else ""
        sys.stdout.write(
            f"| {cost.line.axis} | {cost.line.what} | {by_size} | {cost.growth:.2f} | {told} |\n"
        )
        sys.stdout.flush()
    if chosen.png is not None:
        draw(costs, chosen.png)
    raise SystemExit(any(cost.too_fast for cost in costs))


if __name__ == "__main__":
    main()
