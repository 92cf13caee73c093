"""The feed, its messages and its bounds: pure parts, and one feed on real sockets."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from acq_isl import events
from acq_isl.commands import GoTo, Pause, Stop
from acq_isl.errors import ExperimentError, WireError
from acq_isl.events import LabelStyle, RunStarted, Seen
from acq_isl.stack import Prediction, StackInfo, StackKey, StackRequest
from acq_isl.view.feed.address import FeedAddress, read_address, running_folder
from acq_isl.view.feed.encode import Translator
from acq_isl.view.feed.feed import Feed
from acq_isl.view.feed.messages import Decided, Light, Parcel, Plan, Predicted, Status, decode, encode, slot
from acq_isl.view.feed.previews import averaged, eight_bit, thinned
from acq_isl.view.feed.queues import Backlog, Newest, Shelf
from acq_isl.view.feed.reader import FeedReader
from acq_isl.view.feed.requests import read_request

RUN = "0" * 32
LIMIT_S = 10.0


def info(name: str = "p0", side: int = 32) -> StackInfo:
    return StackInfo(StackKey(0, name, "Phase"), (0.0, 1.0), (side, side), 0.5, 10.0, 20.0)


def seen(name: str = "p0", side: int = 32) -> Seen:
    return Seen(info(name, side), 0.0, np.arange(side * side, dtype=np.uint16).reshape(side, side), 0.5)


def predicted(name: str = "p0", value: float = 0.5, side: int = 32) -> events.Predicted:
    mean = np.full((2, side, side), value, np.float32)
    one = Prediction(info(name, side), ("nuclei", "axons"), mean, mean / 2, "0", "m", "e")
    return events.Predicted(one, (), 0.0)


def started(fields: int = 2) -> RunStarted:
    requests = tuple(
        StackRequest(StackKey(0, f"p{n}", "Phase"), 100.0 * n, 0.0, (0.0, 2.0), "Channel", "Phase", 10)
        for n in range(fields)
    )
    labels = (LabelStyle("nuclei", "#56b4e9"), LabelStyle("axons", "#cc79a7"))
    return RunStarted("test", "now", "folder", "scope", "model", labels, requests, (16.0, 16.0))


def parcel(seq: int, name: str = "p0", *, pictures: bool = True) -> Parcel:
    news = seen(name) if pictures else events.Decided(None, "rule", "what", "why", "done")
    (made,) = Translator(RUN).parcels(news, seq)
    return replace(made, message=made.message.model_copy(update={"sent": seq}))


# --- messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "news, kind",
    [
        (started(), Plan),
        (seen(), Light),
        (predicted(), Predicted),
        (events.Decided(None, "operator", "pause", "wanted", "done"), Decided),
    ],
)
def test_a_message_arrives_as_it_was_sent(news: events.Event, kind: type) -> None:
    (sent,) = Translator(RUN).parcels(news, 1)
    got = decode([bytes(frame) for frame in encode(sent)])
    assert isinstance(got.message, kind) and got.message == sent.message
    assert all(np.array_equal(a, b) for a, b in zip(got.pictures, sent.pictures, strict=True))


def test_predictions_travel_as_eight_bits_and_say_that_they_are_predicted() -> None:
    (sent,) = Translator(RUN).parcels(predicted(value=0.5), 1)
    mean, doubt = sent.pictures
    assert mean.dtype == np.uint8 and np.all(mean == 128) and np.all(doubt == 64)
    assert isinstance(sent.message, Predicted)
    assert sent.message.display_names == ("nuclei (predicted)", "axons (predicted)")


def broken(frames: list[bytes], change: Callable[[dict[str, object]], None]) -> list[bytes]:
    header = json.loads(frames[0])
    change(header)
    return [json.dumps(header).encode(), *frames[1:]]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda h: h.update(version=2), "version"),
        (lambda h: h.update(type="NEWS"), "type"),
        (lambda h: h.update(extra=1), "extra"),
        (lambda h: h.update(run="x"), "run"),
        (lambda h: h.update(shape=[32, 33]), "do not fit"),
        (lambda h: h.update(shape=[32, -1]), "shape"),
        (lambda h: h.update(shape=[1 << 20, 1 << 20]), "shape"),
        (lambda h: h.pop("low"), "low"),
        (lambda h: h.update(low="NaN"), "low"),
    ],
)
def test_a_strange_message_is_refused(change: Callable[[dict[str, object]], None], words: str) -> None:
    frames = [bytes(frame) for frame in encode(Translator(RUN).parcels(seen(), 1)[0])]
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
    small = thinned(np.zeros((rows, columns), np.uint16))
    assert small.shape == averaged(np.zeros((2, rows, columns), np.float32)).shape[1:]
    assert max(small.shape) <= 512 and min(small.shape) >= 1


def test_averaging_keeps_the_mean_and_the_place() -> None:
    image = np.zeros((1, 1024, 1024), np.float32)
    image[0, 512:, 512:] = 0.5
    reduced = averaged(image)
    assert reduced.shape == (1, 512, 512)
    assert reduced[0, 255, 255] == 0 and reduced[0, 256, 256] == 0.5


def test_what_is_no_number_is_black() -> None:
    shown = eight_bit(np.array([np.nan, -1.0, 0.0, 0.5, 1.0, 7.0, np.inf]))
    assert shown.tolist() == [0, 0, 0, 128, 255, 255, 255]


# --- bounds ----------------------------------------------------------------------------------------


def test_the_backlog_gives_the_newest_picture_first_and_counts_what_it_drops() -> None:
    backlog = Backlog(max_bytes=3 * 2 * 32 * 32, max_notes=2)
    for n in range(5):
        backlog.put(seen(f"p{n}"))
    for n in range(3):
        backlog.put(events.Step("overview", n, 3, ""))
    assert backlog.dropped == 2 + 1
    assert [one.done for _, one in backlog.notes() if isinstance(one, events.Step)] == [1, 2]
    names = []
    while (picture := backlog.picture()) is not None:
        assert isinstance(picture[1], Seen)
        names.append(picture[1].info.key.position)
    assert names == ["p4", "p3", "p2"]


def test_a_shelf_keeps_the_newest_of_each_field_within_its_bytes() -> None:
    shelf: Shelf[Parcel] = Shelf(max_bytes=2 * 2 * 32 * 32, max_decisions=2)
    assert shelf.put(parcel(5)) and not shelf.put(parcel(4)) and shelf.put(parcel(6))
    for seq, name in ((7, "p1"), (8, "p2")):
        shelf.put(parcel(seq, name))
    for seq in (9, 10, 11):
        shelf.put(parcel(seq, pictures=False))
    assert shelf.forgotten == 1
    assert [one.message.seq for one in shelf.present()] == [10, 11, 8, 7]
    assert [one.message.seq for one in shelf.present(since=10)] == [11]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_viewer_never_waits_with_more_than_its_bytes(steps: list[tuple[int, bool]], pictures: int) -> None:
    waiting: Newest[Parcel] = Newest(pictures * 2 * 32 * 32)
    put = 0
    for seq, (field, picture) in enumerate(steps, start=1):
        waiting.put(parcel(seq, f"p{field}", pictures=picture))
        put += picture
    taken = waiting.take()
    shown = [one for one in taken if one.pictures]
    assert sum(one.nbytes for one in taken) <= pictures * 2 * 32 * 32
    assert len(shown) + waiting.skipped == put
    assert [one.message.seq for one in shown] == sorted((one.message.seq for one in shown), reverse=True)
    assert len({slot(one.message) for one in taken}) == len(taken)
    assert len(waiting) == 0


# --- on sockets ------------------------------------------------------------------------------------


def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not in time: {what}"
        time.sleep(0.005)


def follow(reader: FeedReader, into: dict[object, Parcel], condition: Callable[[], bool], what: str) -> None:
    def look() -> bool:
        for one in reader.take():
            into[slot(one.message)] = one
        return condition()

    until(look, what)


def test_a_late_viewer_gets_the_present_state(tmp_path: Path) -> None:
    with Feed(tmp_path) as feed:
        feed.tell(started())
        for name in ("p0", "p1"):
            feed.tell(seen(name))
            feed.tell(predicted(name))
        feed.tell(events.Step("overview", 2, 2, "imaged p1"))
        got: dict[object, Parcel] = {}
        with FeedReader(read_address(tmp_path)) as late:
            wanted = {("PLAN",), ("STATUS",)}
            wanted |= {(kind, StackKey(0, n, "Phase")) for kind in ("LIGHT", "OUTCOME") for n in ("p0", "p1")}
            follow(late, got, lambda: wanted <= set(got), "everything told so far")
            assert late.alive
            status = got[("STATUS",)].message
            assert isinstance(status, Status) and status.state == "running"


def test_a_viewer_sees_how_the_run_ended(tmp_path: Path) -> None:
    got: dict[object, Parcel] = {}

    def ended() -> bool:
        status = got.get(("STATUS",))
        return status is not None and isinstance(status.message, Status) and status.message.state == "failed"

    with Feed(tmp_path) as feed:
        reader = FeedReader(feed.address)
        with reader:
            feed.tell(started())
            follow(reader, got, lambda: ("PLAN",) in got, "the plan")
            feed.tell(events.RunEnded("the stage is stuck", ""))
            feed.__exit__(None, None, None)
            follow(reader, got, ended, "the end")
            assert not (tmp_path / "live.json").exists()


def test_telling_does_not_wait_for_a_viewer_that_does_not_look(tmp_path: Path) -> None:
    with Feed(tmp_path) as feed, FeedReader(feed.address, max_bytes=8 * 2 * 32 * 32) as idle:
        for n in range(300):
            feed.tell(seen(f"p{n}"))
        got: dict[object, Parcel] = {}
        newest = ("LIGHT", StackKey(0, "p299", "Phase"))
        follow(idle, got, lambda: newest in got, "the newest picture")
        until(lambda: idle.skipped + len(got) > 8, "counted pictures")


@pytest.mark.skipif(os.name != "posix", reason="rights of files are POSIX's")
def test_only_the_owner_can_read_the_address(tmp_path: Path) -> None:
    with Feed(tmp_path):
        assert (tmp_path / "live.json").stat().st_mode & 0o077 == 0


def test_orders_reach_the_run_with_the_right_token_only(tmp_path: Path) -> None:
    with Feed(tmp_path) as feed, FeedReader(feed.address) as reader:
        assert reader.order(Pause()).taken
        assert reader.order(GoTo(x_um=1, y_um=2)).taken
        refused = reader.order(Stop(), token=feed.address.read_token)
        assert not refused.taken and "wrong token" in refused.text
        assert feed.orders() == (Pause(), GoTo(x_um=1, y_um=2))
        assert feed.orders() == ()


def test_orders_that_pile_up_are_refused(tmp_path: Path) -> None:
    with Feed(tmp_path) as feed, FeedReader(feed.address) as reader:
        answers = [reader.order(Pause()) for _ in range(18)]
        assert [one.taken for one in answers] == [True] * 16 + [False] * 2
        assert "wait already" in answers[-1].text


def test_nonsense_at_the_desk_is_answered_and_survived(tmp_path: Path) -> None:
    with Feed(tmp_path) as feed, zmq.Context() as context, context.socket(zmq.DEALER) as desk:
        desk.linger = 0
        desk.connect(feed.address.desk)
        for words in (b"", b"{}", b'{"type": "GIVE"}', b"\xff" * 100):
            desk.send(words)
            assert desk.poll(LIMIT_S * 1000)
            assert not json.loads(desk.recv())["taken"]
        with FeedReader(feed.address) as reader:
            assert reader.order(Pause()).taken


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
    """The desk answers at once, the subscription comes later: nothing between the two may be missed."""
    with Feed(tmp_path) as feed:
        feed.tell(started())
        got: dict[object, Parcel] = {}
        with FeedReader(feed.address) as reader:
            follow(reader, got, lambda: ("STATUS",) in got, "a status")
    status = got[("STATUS",)]

    def sent(number: int) -> Parcel:
        return replace(status, message=status.message.model_copy(update={"sent": number}))

    late = FeedReader(feed.address)
    late._arrived(sent(1), live=False)
    assert late._wanted_since is None, "answered"
    late._arrived(sent(4), live=True)
    assert late._wanted_since == 1 and late.missed == 0
    late._arrived(sent(2), live=False)
    assert late._wanted_since == 1, "an answer from before what is missing"
    late._arrived(sent(4), live=False)
    assert late._wanted_since is None
