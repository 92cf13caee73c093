"""Event of a run, on the way to whoever watches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from acq_isl import events
from acq_isl.commands import Command, GoTo, Pause, Resume, Stop
from acq_isl.events import Event, Figures, StateChanged
from acq_isl.session.operator import Operator, Stopped
from acq_isl.session.progress import ProgressMeter
from acq_isl.session.runner import Broadcast
from acq_isl.stack import (
    Prediction,
    Refusal,
    Slice,
    StackInfo,
    StackKey,
    StackRequest,
    StageTimes,
    Unpredicted,
)
from acq_isl.view.feed.previews import WatchedSink


def request(name: str = "p0", planes: int = 3, *, predict: bool = True) -> StackRequest:
    key = StackKey(0, name, "Phase")
    return StackRequest(
        key, 0.0, 0.0, tuple(map(float, range(planes))), "Channel", "Phase", 10, predict=predict
    )


def info(name: str = "p0", planes: int = 3, side: int = 8) -> StackInfo:
    return StackInfo(StackKey(0, name, "Phase"), tuple(map(float, range(planes))), (side, side), 0.5)


def prediction(name: str = "p0") -> Prediction:
    mean = np.zeros((1, 8, 8), np.float32)
    times = StageTimes(1.0, 2.0, 3.0, 4.0, 5.0)
    return Prediction(info(name), ("nuclei",), mean, mean, "0", "m", "e", times=times)


def test_news_are_frozen() -> None:
    for one in events.Event.__args__:  # type: ignore[attr-defined]
        assert dataclasses.is_dataclass(one) and one.__dataclass_params__.frozen  # type: ignore[attr-defined]


# --- the watched sink ------------------------------------------------------------------------------


class Kept:
    copies = True

    def __init__(self) -> None:
        self.slices: list[Slice] = []

    def put(self, slice_: Slice) -> None:
        self.slices.append(slice_)


def test_the_sink_gets_every_slice_and_viewers_the_middle_one() -> None:
    sink, seen = Kept(), list[Event]()
    watched = WatchedSink(sink, seen.append)
    assert watched.copies
    for z in range(5):
        watched.put(Slice(info(planes=5), z, np.full((8, 8), z, np.uint16), 0.0))
    assert [one.z_index for one in sink.slices] == [0, 1, 2, 3, 4]
    (middle,) = seen
    assert isinstance(middle, events.Seen) and middle.z_um == 2.0 and np.all(middle.pixels == 2)
    assert middle.predict


def test_a_picture_shown_is_a_copy_of_every_nth_pixel() -> None:
    seen = list[Event]()
    pixels = np.arange(2048 * 2048, dtype=np.uint32).astype(np.uint16).reshape(2048, 2048)
    WatchedSink(Kept(), seen.append).put(Slice(info(planes=1, side=2048), 0, pixels, 0.0))
    (one,) = seen
    assert isinstance(one, events.Seen)
    assert one.pixels.shape == (512, 512) and one.pixel_size_um == 2.0
    assert np.array_equal(one.pixels, pixels[::4, ::4]) and not np.shares_memory(one.pixels, pixels)


def test_fluorescence_is_shown_but_not_sent_to_the_engine() -> None:
    sink, seen = Kept(), list[Event]()
    WatchedSink(sink, seen.append).put_measured(Slice(info(planes=1), 0, np.ones((8, 8), np.uint16), 0.0))
    assert not sink.slices
    assert isinstance(seen[0], events.Seen) and not seen[0].predict


# --- figures ---------------------------------------------------------------------------------------


class Watched:
    def __init__(self, slices: tuple[int, int] = (12, 2), models: int = 1) -> None:
        self.news: list[Event] = []
        self.now = 0.0
        self.captured = 0
        counters = (lambda: self.captured, lambda: 0)
        self.gauge = ProgressMeter(
            self.news.append, counters, lambda: "ready", slices, lambda: self.now, models=models
        )

    def tell(self, *news: Event, after_s: float = 1.0) -> Figures:
        for one in news:
            self.now += after_s
            self.gauge.tell(one)
        return self.gauge.figures()


def test_every_slice_is_counted_once() -> None:
    bench = Watched()
    figures = bench.tell(*(events.FieldImaged(request(f"p{n}")) for n in range(3)))
    assert (figures.counts.requested, figures.late, figures.counts.predicted) == (9, 9, 0)
    figures = bench.tell(
        events.Predicted(prediction("p0"), (), 7.0),
        events.NotPredicted(Refusal(info("p1"), "too bright", "less light")),
        events.FieldImaged(request("p9", 1, predict=False)),
    )
    counts = figures.counts
    assert (counts.predicted, counts.refused, counts.not_for_prediction, figures.late) == (3, 3, 1, 3)
    assert {one.stage: one.p50_ms for one in figures.latencies} == {
        "expose": 1.0,
        "transfer": 2.0,
        "wait": 3.0,
        "infer": 4.0,
        "decode": 5.0,
        "decide": 7.0,
    }


def test_of_several_models_the_last_answer_counts_the_slices() -> None:
    bench = Watched(models=2)
    a = events.Predicted(dataclasses.replace(prediction("p0"), model="a"), (), 7.0)
    late = events.NotPredicted(Unpredicted(info("p0"), "too late", "spool", "b"))
    b = events.Predicted(dataclasses.replace(prediction("p0"), model="b"), (), 7.0)
    figures = bench.tell(events.FieldImaged(request("p0")), a)
    assert (figures.counts.predicted, figures.late) == (0, 3), "an answer is missing"
    figures = bench.tell(late)
    assert (figures.counts.predicted, figures.counts.spooled, figures.late) == (0, 3, 0)
    figures = bench.tell(b)  # an engine came later
    assert (figures.counts.predicted, figures.counts.spooled, figures.late) == (3, 0, 0)


def test_remaining_time_follows_the_slower_of_camera_and_engine() -> None:
    bench = Watched((12, 2))
    assert bench.gauge.figures().remaining_s is None
    figures = bench.tell(events.FieldImaged(request("p0")), after_s=3.0)
    assert figures.remaining_s == pytest.approx(9 + 2)
    for n in range(1, 4):
        bench.tell(events.FieldImaged(request(f"p{n}")), after_s=3.0)
    figures = bench.tell(events.Predicted(prediction("p0"), (), 0.0), after_s=0.0)
    assert figures.remaining_s == pytest.approx(9 * 12 / 3 + 2)


def test_pauses_do_not_count_as_work() -> None:
    bench = Watched((6, 0))
    bench.tell(events.FieldImaged(request("p0")), after_s=3.0)
    before = bench.gauge.figures().remaining_s
    bench.tell(StateChanged("paused", ""), after_s=0.0)
    bench.now += 1000.0
    assert bench.gauge.figures().remaining_s == before
    assert bench.tell(StateChanged("running", ""), after_s=0.0).remaining_s == before


def test_figures_are_told_at_most_five_times_a_second() -> None:
    bench = Watched()
    for _ in range(100):
        bench.tell(events.Step("overview", 0, 0, ""), after_s=0.01)
    assert 4 <= sum(isinstance(one, Figures) for one in bench.news) <= 5


# --- control ---------------------------------------------------------------------------------------


class Operated:
    """A control whose operator gives one batch of orders at every look."""

    def __init__(self, *batches: tuple[Command, ...]) -> None:
        self.batches = list(batches)
        self.notes: list[tuple[str, str]] = []
        self.news: list[Event] = []
        self.waited = 0
        visit: Callable[[GoTo], str] = lambda order: f"been at {order.x_um:g}"  # noqa: E731
        self.control = Operator(
            lambda: self.batches.pop(0) if self.batches else (),
            visit,
            lambda what, done: self.notes.append((what, done)),
            self.news.append,
        )

    def listen(self) -> None:
        self.control.listen(self.wait)

    def wait(self, seconds: float) -> None:
        self.waited += 1
        if self.waited > 50:
            raise AssertionError("nobody resumes")


def test_a_pause_lasts_until_resumed() -> None:
    bench = Operated((Pause(),), (), (), (Resume(),))
    bench.listen()
    assert bench.waited == 3 and not bench.control.paused
    assert bench.notes == [("pause", "done"), ("go on", "done")]
    assert [one.state for one in bench.news if isinstance(one, StateChanged)] == ["paused", "running"]


def test_going_somewhere_pauses_there() -> None:
    bench = Operated((GoTo(x_um=5, y_um=6),), (Resume(),))
    bench.listen()
    assert bench.notes[0] == ("go to x 5 um, y 6 um", "been at 5")
    assert bench.waited == 1


@pytest.mark.parametrize("orders", [[(Stop(),)], [(Pause(),), (Stop(),)], [(Stop(), Pause())]])
def test_stop_ends_the_run_also_from_a_pause(orders: list[tuple[Command, ...]]) -> None:
    bench = Operated(*orders)
    with pytest.raises(Stopped):
        bench.listen()
    assert bench.control.stopping
    states = [one.state for one in bench.news if isinstance(one, StateChanged)]
    assert states[-1] == "stopping"


# --- broadcast -------------------------------------------------------------------------------------


def test_a_watcher_that_fails_does_not_harm_the_run(tmp_path: Path) -> None:
    heard: list[Event] = []

    def watch(news: Event) -> None:
        heard.append(news)
        raise RuntimeError("the window is gone")

    with Broadcast(tmp_path, watch) as cast:
        cast.tell(events.Step("overview", 1, 2, ""))
        cast.tell(events.Step("overview", 2, 2, ""))
    assert len(heard) == 1


def test_a_run_without_a_feed_goes_on_and_says_so(tmp_path: Path) -> None:
    missing = tmp_path / "not there"
    with Broadcast(missing, events.ignore_event) as cast:
        cast.tell(events.Step("overview", 1, 2, ""))
        assert cast.orders() == ()
    (warning,) = cast.warnings
    assert "nobody can watch this run" in warning
