"""Events of a run, on the way to whoever watches."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from acq_isl import events
from acq_isl.commands import Command, GoTo, Pause, Resume, Stop
from acq_isl.events import Event, Progress, StateChanged
from acq_isl.session import views as views_module
from acq_isl.session.operator import Operator, Stopped
from acq_isl.session.progress import ProgressMeter
from acq_isl.session.views import CLOSE_S, Views, ViewThread
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
from acq_isl.view.feed.previews import WatchedSink, preview_of
from acq_isl.view.feed.queues import EventQueue


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


KINDS = get_args(get_args(Event)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_events_are_frozen_and_told_apart_by_their_kind(kind: type) -> None:
    assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    names = [re.sub("(?<!^)(?=[A-Z])", "_", one.__name__).lower() for one in KINDS]
    assert {one.__dataclass_fields__["kind"].default for one in KINDS} == set(names)


def test_arrays_are_no_part_of_the_json_nor_read_from_it() -> None:
    union: TypeAdapter[Event] = TypeAdapter(Event)
    event = preview_of(Slice(info(planes=1), 0, np.ones((8, 8), np.uint16), 0.0), predict=True)
    text = union.dump_json(event)
    assert b"pixels" not in text.replace(b"pixel_size_um", b"") and event.pixels is not None
    back = union.validate_json(text)
    assert back == event and isinstance(back, events.Seen) and back.pixels is None
    with pytest.raises(ValidationError):
        union.validate_json(text.removesuffix(b"}") + b',"pixels":[[1]]}')


def test_the_names_of_before_are_still_there() -> None:
    assert (events.News, events.Tell, events.Figures) == (Event, events.EventHandler, Progress)


# --- the watched sink ------------------------------------------------------------------------------


class Kept:
    copies = True

    def __init__(self) -> None:
        self.slices: list[Slice] = []

    def put(self, slice_: Slice) -> None:
        self.slices.append(slice_)


def test_the_sink_gets_every_slice_and_viewers_the_middle_one() -> None:
    sink, emitted = Kept(), list[Event]()
    watched = WatchedSink(sink, emitted.append)
    assert watched.copies
    for z in range(5):
        watched.put(Slice(info(planes=5), z, np.full((8, 8), z, np.uint16), 0.0))
    assert [one.z_index for one in sink.slices] == [0, 1, 2, 3, 4]
    (middle,) = emitted
    assert (
        isinstance(middle, events.Seen)
        and middle.z_um == 2.0
        and middle.pixels is not None
        and np.all(middle.pixels == 2)
    )
    assert middle.predict


def test_a_picture_shown_is_a_copy_of_every_nth_pixel() -> None:
    emitted = list[Event]()
    pixels = np.arange(2048 * 2048, dtype=np.uint32).astype(np.uint16).reshape(2048, 2048)
    WatchedSink(Kept(), emitted.append).put(Slice(info(planes=1, side=2048), 0, pixels, 0.0))
    (one,) = emitted
    assert isinstance(one, events.Seen) and one.pixels is not None
    assert one.pixels.shape == (512, 512) and one.pixel_size_um == 2.0
    assert np.array_equal(one.pixels, pixels[::4, ::4]) and not np.shares_memory(one.pixels, pixels)


def test_fluorescence_is_shown_but_not_sent_to_the_engine() -> None:
    sink, emitted = Kept(), list[Event]()
    WatchedSink(sink, emitted.append).put_measured(Slice(info(planes=1), 0, np.ones((8, 8), np.uint16), 0.0))
    assert not sink.slices
    assert isinstance(emitted[0], events.Seen) and not emitted[0].predict


# --- progress --------------------------------------------------------------------------------------


class Watched:
    def __init__(self, slices: tuple[int, int] = (12, 2), models: int = 1) -> None:
        self.events: list[Event] = []
        self.now = 0.0
        self.captured = 0
        counters = (lambda: self.captured, lambda: 0)
        self.meter = ProgressMeter(
            self.events.append, counters, lambda: "ready", slices, lambda: self.now, models=models
        )

    def emit(self, *happened: Event, after_s: float = 1.0) -> Progress:
        for event in happened:
            self.now += after_s
            self.meter.handle(event)
        return self.meter.progress()


def test_every_slice_is_counted_once() -> None:
    bench = Watched()
    progress = bench.emit(*(events.FieldImaged(request(f"p{n}")) for n in range(3)))
    assert (progress.counts.requested, progress.late, progress.counts.predicted) == (9, 9, 0)
    progress = bench.emit(
        events.Predicted.of(prediction("p0"), (), 7.0),
        events.NotPredicted.of(Refusal(info("p1"), "too bright", "less light")),
        events.FieldImaged(request("p9", 1, predict=False)),
    )
    counts = progress.counts
    assert (counts.predicted, counts.refused, counts.not_for_prediction, progress.late) == (3, 3, 1, 3)
    assert {one.stage: one.p50_ms for one in progress.latencies} == {
        "expose": 1.0,
        "transfer": 2.0,
        "wait": 3.0,
        "infer": 4.0,
        "decode": 5.0,
        "turn": 0.0,
        "decide": 7.0,
    }


def test_of_several_models_the_last_answer_counts_the_slices() -> None:
    bench = Watched(models=2)
    a = events.Predicted.of(dataclasses.replace(prediction("p0"), model="a"), (), 7.0)
    late = events.NotPredicted.of(Unpredicted(info("p0"), "too late", "spool", "b"))
    b = events.Predicted.of(dataclasses.replace(prediction("p0"), model="b"), (), 7.0)
    progress = bench.emit(events.FieldImaged(request("p0")), a)
    assert (progress.counts.predicted, progress.late) == (0, 3), "an answer is missing"
    progress = bench.emit(late)
    assert (progress.counts.predicted, progress.counts.spooled, progress.late) == (0, 3, 0)
    progress = bench.emit(b)  # an engine came later
    assert (progress.counts.predicted, progress.counts.spooled, progress.late) == (3, 0, 0)


def test_remaining_time_follows_the_slower_of_camera_and_engine() -> None:
    bench = Watched((12, 2))
    assert bench.meter.progress().remaining_s is None
    progress = bench.emit(events.FieldImaged(request("p0")), after_s=3.0)
    assert progress.remaining_s == pytest.approx(9 + 2)
    for n in range(1, 4):
        bench.emit(events.FieldImaged(request(f"p{n}")), after_s=3.0)
    progress = bench.emit(events.Predicted.of(prediction("p0"), (), 0.0), after_s=0.0)
    assert progress.remaining_s == pytest.approx(9 * 12 / 3 + 2)


def test_pauses_do_not_count_as_work() -> None:
    bench = Watched((6, 0))
    bench.emit(events.FieldImaged(request("p0")), after_s=3.0)
    before = bench.meter.progress().remaining_s
    bench.emit(StateChanged("paused", ""), after_s=0.0)
    bench.now += 1000.0
    assert bench.meter.progress().remaining_s == before
    assert bench.emit(StateChanged("running", ""), after_s=0.0).remaining_s == before


def test_progress_is_sent_at_most_five_times_a_second() -> None:
    bench = Watched()
    for _ in range(100):
        bench.emit(events.Step("overview", 0, 0, ""), after_s=0.01)
    assert 4 <= sum(isinstance(one, Progress) for one in bench.events) <= 5


# --- operator --------------------------------------------------------------------------------------


class Operated:
    """An operator who gives one batch of commands at every look."""

    def __init__(self, *batches: tuple[Command, ...]) -> None:
        self.batches = list(batches)
        self.notes: list[tuple[str, str]] = []
        self.events: list[Event] = []
        self.waited = 0
        visit: Callable[[GoTo], str] = lambda command: f"been at {command.x_um:g}"  # noqa: E731
        self.operator = Operator(
            lambda: self.batches.pop(0) if self.batches else (),
            visit,
            lambda what, done: self.notes.append((what, done)),
            self.events.append,
        )

    def listen(self) -> None:
        self.operator.listen(self.wait)

    def wait(self, seconds: float) -> None:
        self.waited += 1
        if self.waited > 50:
            raise AssertionError("nobody resumes")


def test_a_pause_lasts_until_resumed() -> None:
    bench = Operated((Pause(),), (), (), (Resume(),))
    bench.listen()
    assert bench.waited == 3 and not bench.operator.paused
    assert bench.notes == [("pause", "done"), ("go on", "done")]
    assert [one.state for one in bench.events if isinstance(one, StateChanged)] == ["paused", "running"]


def test_going_somewhere_pauses_there() -> None:
    bench = Operated((GoTo(x_um=5, y_um=6),), (Resume(),))
    bench.listen()
    assert bench.notes[0] == ("go to x 5 um, y 6 um", "been at 5")
    assert bench.waited == 1


@pytest.mark.parametrize("commands", [[(Stop(),)], [(Pause(),), (Stop(),)], [(Stop(), Pause())]])
def test_stop_ends_the_run_also_from_a_pause(commands: list[tuple[Command, ...]]) -> None:
    bench = Operated(*commands)
    with pytest.raises(Stopped):
        bench.listen()
    assert bench.operator.stopping
    states = [one.state for one in bench.events if isinstance(one, StateChanged)]
    assert states[-1] == "stopping"


# --- views -----------------------------------------------------------------------------------------


class Recorder:
    """A view that keeps what it gets, and fails or waits where it is told to."""

    def __init__(self, fails_in: str = "", wait: threading.Event | None = None) -> None:
        self.calls: list[str] = []
        self.steps: list[int] = []
        self.began = threading.Event()
        self._fails_in, self._wait = fails_in, wait

    def setup(self) -> None:
        self._call("setup")

    def handle(self, event: Event) -> None:
        self.began.set()
        if self._wait is not None:
            self._wait.wait(10)
        self._call("handle")
        if isinstance(event, events.Step):
            self.steps.append(event.done)

    def close(self) -> None:
        self._call("close")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self._fails_in:
            raise RuntimeError("the window is gone")


def step(number: int) -> events.Step:
    return events.Step("overview", number, 9, "")


def test_a_view_gets_every_event_in_order_between_setup_and_close(tmp_path: Path) -> None:
    view = Recorder()
    with Views(tmp_path, events.ignore_event, [view]) as views:
        for number in range(100):
            views.handle(step(number))
    assert view.steps == list(range(100))
    assert view.calls == ["setup", *["handle"] * 100, "close"]


@pytest.mark.parametrize(
    "fails_in, calls",
    [
        ("setup", ["setup"]),
        ("handle", ["setup", "handle", "close"]),
        ("close", ["setup", "handle", "handle", "close"]),
    ],
)
def test_a_view_that_fails_is_logged_once_and_harms_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fails_in: str, calls: list[str]
) -> None:
    bad, good = Recorder(fails_in), Recorder()
    with Views(tmp_path, events.ignore_event, [bad, good]) as views:
        views.handle(step(1))
        views.handle(step(2))
    assert bad.calls == calls and good.steps == [1, 2]
    assert len([line for line in caplog.messages if "the view Recorder failed" in line]) == 1


def test_a_view_that_is_stuck_costs_pictures_of_its_own_and_never_the_runs_time() -> None:
    go_on = threading.Event()
    view = Recorder(wait=go_on)
    thread = ViewThread(view, EventQueue(max_bytes=2 * 128, max_notes=4))
    plane = Slice(info(planes=1), 0, np.zeros((8, 8), np.uint16), 0.0)
    with thread:
        thread.handle(step(0))
        assert view.began.wait(CLOSE_S)
        for number in range(1, 10):
            thread.handle(step(number))
            thread.handle(preview_of(plane, predict=True))
        assert thread.dropped == 5 + 7
        go_on.set()
    assert view.steps == [0, 6, 7, 8, 9] and view.calls.count("handle") == 7


@pytest.mark.parametrize("what", ["raises", "ends the process", "never returns"])
def test_a_watcher_that_fails_does_not_harm_the_run(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the session nor the camera's thread waits for it: it gets no more events, the others do."""
    monkeypatch.setattr(views_module, "WATCH_S", 0.05)
    heard, go_on, sink, view = list[Event](), threading.Event(), Kept(), Recorder()

    def watch(event: Event) -> None:
        heard.append(event)
        match what:
            case "raises":
                raise RuntimeError("the window is gone")
            case "ends the process":
                raise SystemExit(3)
            case _:
                go_on.wait()

    with Views(tmp_path, watch, [view]) as views:
        watched = WatchedSink(sink, views.handle)
        for number in range(3):
            views.handle(step(number))
            watched.put(Slice(info(planes=1), 0, np.ones((8, 8), np.uint16), 0.0))
    go_on.set()
    assert (len(heard), len(sink.slices), view.steps) == (1, 3, [0, 1, 2])


def test_a_run_without_a_feed_goes_on_and_says_so(tmp_path: Path) -> None:
    view = Recorder()
    with Views(tmp_path / "not there", events.ignore_event, [view]) as views:
        views.handle(step(1))
        assert views.commands() == ()
    (warning,) = views.warnings
    assert "nobody can watch this run" in warning and view.steps == [1]
