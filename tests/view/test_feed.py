"""The feed, its messages and its bounds: pure parts, and one feed on real sockets."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from acq_isl import events
from acq_isl.commands import GoTo, Pause, Stop
from acq_isl.errors import ExperimentError, WireError
from acq_isl.events import Decided, Event, LabelStyle, PlannedField, Predicted, RunStarted, RunStatus, Seen
from acq_isl.stack import Prediction, Slice, StackInfo, StackKey, StackRequest
from acq_isl.view.feed import Feed
from acq_isl.view.feed.address import FeedAddress, read_address, running_folder
from acq_isl.view.feed.encode import MessageMaker
from acq_isl.view.feed.messages import Message, decode, encode, slot
from acq_isl.view.feed.previews import average, eight_bit, preview_of, thin
from acq_isl.view.feed.queues import EventQueue, LatestState
from acq_isl.view.feed.reader import FeedReader
from acq_isl.view.feed.requests import read_request

RUN = "0" * 32
LIMIT_S = 10.0


def info(name: str = "p0", side: int = 32) -> StackInfo:
    return StackInfo(StackKey(0, name, "Phase"), (0.0, 1.0), (side, side), 0.5, 10.0, 20.0)


def seen(name: str = "p0", side: int = 32) -> Seen:
    pixels = np.arange(side * side, dtype=np.uint16).reshape(side, side)
    return preview_of(Slice(info(name, side), 0, pixels, 5.0), predict=True)


def predicted(name: str = "p0", value: float = 0.5, side: int = 32) -> Predicted:
    mean = np.full((2, side, side), value, np.float32)
    one = Prediction(info(name, side), ("nuclei", "axons"), mean, mean / 2, "0", "m", "e")
    return Predicted.of(one, (), 0.0)


def started(fields: int = 2) -> RunStarted:
    requests = (
        StackRequest(StackKey(0, f"p{n}", "Phase"), 100.0 * n, 0.0, (0.0, 2.0), "Channel", "Phase", 10)
        for n in range(fields)
    )
    planned = tuple(PlannedField.of(request) for request in requests)
    labels = (LabelStyle("nuclei", "#56b4e9"), LabelStyle("axons", "#cc79a7"))
    return RunStarted("test", "now", "folder", "scope", "model", labels, planned, (16.0, 16.0))


def message(seq: int, name: str = "p0", *, pictures: bool = True) -> Message:
    event: Event = seen(name) if pictures else Decided(None, "rule", "what", "why", "done")
    (made,) = MessageMaker(RUN).messages(event, seq)
    return replace(made, sent=seq)


# --- messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event, kind",
    [
        (started(), RunStarted),
        (seen(), Seen),
        (predicted(), Predicted),
        (Decided(None, "operator", "pause", "wanted", "done"), Decided),
    ],
)
def test_a_message_arrives_as_it_was_sent(event: Event, kind: type) -> None:
    (sent,) = MessageMaker(RUN).messages(event, 1)
    got = decode([bytes(frame) for frame in encode(sent)])
    assert isinstance(got.event, kind) and got.event == sent.event
    assert (got.run, got.seq, got.sent) == (sent.run, sent.seq, sent.sent)
    assert all(np.array_equal(a, b) for a, b in zip(got.images, sent.images, strict=True))


def test_predictions_travel_as_eight_bits() -> None:
    (sent,) = MessageMaker(RUN).messages(predicted(value=0.5), 1)
    mean, uncertainty = sent.images
    assert mean.dtype == np.uint8 and np.all(mean == 128) and np.all(uncertainty == 64)
    assert isinstance(sent.event, Predicted) and sent.event.prediction is None


def test_a_picture_of_a_large_field_says_where_it_lies() -> None:
    (sent,) = MessageMaker(RUN).messages(predicted(side=1030), 1)
    event = sent.event
    assert isinstance(event, Predicted) and event.shape == (343, 343) and event.pixel_size_um == 1.5
    assert (event.x_um, event.y_um) == (10.0 - 0.25, 20.0 - 0.25)


def broken(frames: list[bytes], change: Callable[[dict[str, Any], dict[str, Any]], object]) -> list[bytes]:
    """Frames whose header, or the event in it, was changed."""
    header = json.loads(frames[0])
    change(header, header["event"])
    return [json.dumps(header).encode(), *frames[1:]]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda h, e: h.update(version=1), "version"),
        (lambda h, e: h.update(extra=1), "extra"),
        (lambda h, e: h.update(run="x"), "run"),
        (lambda h, e: h.pop("event"), "event"),
        (lambda h, e: e.update(kind="news"), "kind"),
        (lambda h, e: e.update(extra=1), "extra"),
        (lambda h, e: e["key"].update(extra=1), "extra"),
        (lambda h, e: e.update(shape=[32, 33]), "do not fit"),
        (lambda h, e: e.update(shape=[32, -1]), "shape"),
        (lambda h, e: e.update(shape=[1 << 20, 1 << 20]), "shape"),
        (lambda h, e: e.pop("x_um"), "x_um"),
        (lambda h, e: e.update(low="NaN"), "low"),
        (lambda h, e: e.update(low=float("nan")), "low"),
        (lambda h, e: e.update(pixels=[[1]]), "pixels"),
    ],
)
def test_a_strange_message_is_refused(
    change: Callable[[dict[str, Any], dict[str, Any]], object], words: str
) -> None:
    frames = [bytes(frame) for frame in encode(MessageMaker(RUN).messages(seen(), 1)[0])]
    with pytest.raises(WireError, match=words):
        decode(broken(frames, change))


@given(st.lists(st.binary(max_size=200), max_size=4))
@settings(max_examples=50)
def test_noise_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(WireError):
        decode(frames)
    with pytest.raises(WireError):
        read_request(b"".join(frames))


# --- pictures --------------------------------------------------------------------------------------


@given(rows=st.integers(1, 1500), columns=st.integers(1, 1500))
@settings(max_examples=30, deadline=None)
def test_both_ways_of_reducing_give_the_same_shape(rows: int, columns: int) -> None:
    small = thin(np.zeros((rows, columns), np.uint16))
    assert small.shape == average(np.zeros((2, rows, columns), np.float32)).shape[1:]
    assert max(small.shape) <= 512 and min(small.shape) >= 1


def test_averaging_keeps_the_mean_and_the_place() -> None:
    image = np.zeros((1, 1024, 1024), np.float32)
    image[0, 512:, 512:] = 0.5
    reduced = average(image)
    assert reduced.shape == (1, 512, 512)
    assert reduced[0, 255, 255] == 0 and reduced[0, 256, 256] == 0.5


def test_what_is_no_number_is_black() -> None:
    shown = eight_bit(np.array([np.nan, -1.0, 0.0, 0.5, 1.0, 7.0, np.inf]))
    assert shown.tolist() == [0, 0, 0, 128, 255, 255, 255]


# --- bounds ----------------------------------------------------------------------------------------


def test_the_queue_gives_notes_and_then_the_newest_picture_and_counts_what_it_drops() -> None:
    queue = EventQueue(max_bytes=3 * 2 * 32 * 32, max_notes=2)
    for n in range(5):
        queue.put(seen(f"p{n}"))
    for n in range(3):
        queue.put(events.Step("overview", n, 3, ""))
    assert queue.dropped == 2 + 1
    taken: list[str | int] = []
    while (found := queue.take()) is not None:
        event = found[1]
        assert isinstance(event, Seen | events.Step)
        taken.append(event.key.position if isinstance(event, Seen) else event.done)
    assert taken == [1, 2, "p4", "p3", "p2"]


def test_the_latest_state_keeps_the_newest_of_each_field_within_its_bytes() -> None:
    state: LatestState[Message] = LatestState(max_bytes=2 * 2 * 32 * 32, max_decisions=2)
    assert state.put(message(5)) and not state.put(message(4)) and state.put(message(6))
    for seq, name in ((7, "p1"), (8, "p2")):
        state.put(message(seq, name))
    for seq in (9, 10, 11):
        state.put(message(seq, pictures=False))
    assert (state.replaced, state.forgotten) == (1, 1)
    assert [kept.seq for kept in state.present()] == [10, 11, 8, 7]
    assert [kept.seq for kept in state.present(since=10)] == [11]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_viewer_never_waits_with_more_than_its_bytes(steps: list[tuple[int, bool]], pictures: int) -> None:
    waiting: LatestState[Message] = LatestState(pictures * 2 * 32 * 32)
    put = 0
    for seq, (field, picture) in enumerate(steps, start=1):
        waiting.put(message(seq, f"p{field}", pictures=picture))
        put += picture
    taken = waiting.take()
    with_images = [item for item in taken if item.images]
    assert sum(item.nbytes for item in taken) <= pictures * 2 * 32 * 32
    assert len(with_images) + waiting.skipped == put
    assert [item.seq for item in with_images] == sorted((item.seq for item in with_images), reverse=True)
    assert len({slot(item) for item in taken}) == len(taken)
    assert len(waiting) == 0


# --- on sockets ------------------------------------------------------------------------------------


def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not in time: {what}"
        time.sleep(0.005)


def follow(reader: FeedReader, into: dict[object, Message], condition: Callable[[], bool], what: str) -> None:
    def look() -> bool:
        for one in reader.take():
            into[slot(one)] = one
        return condition()

    until(look, what)


def test_a_late_viewer_gets_the_present_state(tmp_path: Path) -> None:
    with Feed(tmp_path) as feed:
        feed.handle(started())
        for name in ("p0", "p1"):
            feed.handle(seen(name))
            feed.handle(predicted(name))
        feed.handle(events.Step("overview", 2, 2, "imaged p1"))
        got: dict[object, Message] = {}
        with FeedReader(read_address(tmp_path)) as late:
            wanted = {("run_started",), ("run_status",)}
            wanted |= {(kind, StackKey(0, n, "Phase")) for kind in ("seen", "outcome") for n in ("p0", "p1")}
            follow(late, got, lambda: wanted <= set(got), "everything told so far")
            assert late.alive
            status = got[("run_status",)].event
            assert isinstance(status, RunStatus) and status.state == "running"


def test_a_viewer_sees_how_the_run_ended(tmp_path: Path) -> None:
    got: dict[object, Message] = {}

    def ended() -> bool:
        status = got.get(("run_status",))
        return status is not None and isinstance(status.event, RunStatus) and status.event.state == "failed"

    with Feed(tmp_path) as feed:
        reader = FeedReader(feed.address)
        with reader:
            feed.handle(started())
            follow(reader, got, lambda: ("run_started",) in got, "the plan")
            feed.handle(events.RunEnded("the stage is stuck", ""))
            feed.__exit__(None, None, None)
            follow(reader, got, ended, "the end")
            assert not (tmp_path / "live.json").exists()


def test_telling_does_not_wait_for_a_viewer_that_does_not_look(tmp_path: Path) -> None:
    with Feed(tmp_path) as feed, FeedReader(feed.address, max_bytes=8 * 2 * 32 * 32) as idle:
        for n in range(300):
            feed.handle(seen(f"p{n}"))
        got: dict[object, Message] = {}
        newest = ("seen", StackKey(0, "p299", "Phase"))
        follow(idle, got, lambda: newest in got, "the newest picture")
        until(lambda: idle.skipped + len(got) > 8, "counted pictures")


@pytest.mark.skipif(os.name != "posix", reason="rights of files are POSIX's")
def test_only_the_owner_can_read_the_address(tmp_path: Path) -> None:
    with Feed(tmp_path):
        assert (tmp_path / "live.json").stat().st_mode & 0o077 == 0


def test_commands_reach_the_run_with_the_right_token_only(tmp_path: Path) -> None:
    with Feed(tmp_path) as feed, FeedReader(feed.address) as reader:
        assert reader.send(Pause()).taken
        assert reader.send(GoTo(x_um=1, y_um=2)).taken
        refused = reader.send(Stop(), token=feed.address.read_token)
        assert not refused.taken and "wrong token" in refused.text
        assert feed.commands() == (Pause(), GoTo(x_um=1, y_um=2))
        assert feed.commands() == ()


def test_commands_that_pile_up_are_refused(tmp_path: Path) -> None:
    with Feed(tmp_path) as feed, FeedReader(feed.address) as reader:
        answers = [reader.send(Pause()) for _ in range(18)]
        assert [one.taken for one in answers] == [True] * 16 + [False] * 2
        assert "wait already" in answers[-1].text


def test_a_nonsense_request_is_answered_and_survived(tmp_path: Path) -> None:
    with Feed(tmp_path) as feed, zmq.Context() as context, context.socket(zmq.DEALER) as requests:
        requests.linger = 0
        requests.connect(feed.address.desk)
        for words in (b"", b"{}", b'{"type": "GIVE"}', b"\xff" * 100):
            requests.send(words)
            assert requests.poll(LIMIT_S * 1000)
            assert not json.loads(requests.recv())["taken"]
        with FeedReader(feed.address) as reader:
            assert reader.send(Pause()).taken


def test_a_run_that_is_gone_is_told(tmp_path: Path) -> None:
    address = FeedAddress(
        run=RUN,
        feed="tcp://127.0.0.1:9",
        desk="tcp://127.0.0.1:9",
        read_token="r" * 20,
        operator_token="o" * 20,
    )
    with FeedReader(address) as reader:
        assert not reader.alive
        assert not reader.wait(0.01)
    with pytest.raises(ExperimentError, match="no run is going on"):
        read_address(tmp_path)
    with pytest.raises(ExperimentError, match="no run is going on"):
        running_folder(tmp_path)


def test_the_newest_run_that_goes_on_is_found(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b", "c")):
        (tmp_path / name).mkdir()
        if name != "c":
            (tmp_path / name / "live.json").write_text("{}")
            os.utime(tmp_path / name / "live.json", (number, number))
    assert running_folder(tmp_path) == tmp_path / "b"
    assert running_folder(tmp_path / "a") == tmp_path / "a"


def test_what_went_out_before_the_subscription_is_asked_for(tmp_path: Path) -> None:
    """The run answers at once, the subscription comes later: nothing between the two may be missed."""
    with Feed(tmp_path) as feed:
        feed.handle(started())
        got: dict[object, Message] = {}
        with FeedReader(feed.address) as reader:
            follow(reader, got, lambda: ("run_status",) in got, "a status")
    status = got[("run_status",)]

    def sent(number: int) -> Message:
        return replace(status, sent=number)

    late = FeedReader(feed.address)
    late._arrived(sent(1), live=False)
    assert late._ask_since is None, "answered"
    late._arrived(sent(4), live=True)
    assert late._ask_since == 1 and late.missed == 0
    late._arrived(sent(2), live=False)
    assert late._ask_since == 1, "an answer from before what is missing"
    late._arrived(sent(4), live=False)
    assert late._ask_since is None
