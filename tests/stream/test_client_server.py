"""Client and server together, over real sockets: every stack ends up predicted, refused, or on disk."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zmq

from acq_isl.errors import EngineError, SliceLost, StackRefused, WireError
from acq_isl.manifest import Label, Manifest
from acq_isl.stack import Outcome, Prediction, Refusal, Slice, StackInfo, StackKey, Unpredicted, ZStack
from acq_isl.stream import overflow, sessions
from acq_isl.stream.accounts import SliceAccounts
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.client_thread import Patience
from acq_isl.stream.codec import Frame, decode, encode, result_of, slice_frames
from acq_isl.stream.connection import ConnectionSettings
from acq_isl.stream.messages import (
    Alive,
    Beat,
    Bye,
    Done,
    Expired,
    Failed,
    Hello,
    MemoryOffer,
    Message,
    Refused,
    Result,
    SliceSent,
    Welcome,
)
from acq_isl.stream.model_registry import ServedModel
from acq_isl.stream.overflow import OverflowMemory
from acq_isl.stream.pending_queue import PendingQueue
from acq_isl.stream.server import EngineServer, ServerSettings
from acq_isl.stream.sessions import SessionLimits
from acq_isl.stream.shared_memory import SharedMemory
from acq_isl.stream.sockets import ClientKeys, ServerKeys
from acq_isl.stream.spool import Spool

PLANES, ROWS, COLUMNS = 3, 64, 80
STACK_BYTES = PLANES * ROWS * COLUMNS * 2
BLOCK_BYTES = 32768  # what a stack takes in the ring, with its header and rounding
ANY_PORT = "tcp://127.0.0.1:*"
MANIFEST = Manifest(
    name="mean",
    version="1",
    licence="BSD-3-Clause",
    description="mean over z",
    modality="phase contrast",
    polarity="dark",
    pixel_size_um=0.3,
    z_offsets_um=(-1.0, 0.0, 1.0),
    high_pass_um=0.0,
    labels=(Label(name="nuclei", marker="DAPI"),),
    min_tile_px=8,
    halo_px=0,
    size_step_px=1,
    trained_on="nothing",
)
QUICK = ConnectionSettings(beat_s=0.05, silence_s=10.0, reconnect_s=0.02, reconnect_max_s=0.05)


@dataclass
class MeanEngine:
    """Predicts the mean over z; remembers what it was asked."""

    manifest: Manifest = MANIFEST
    asked: list[int] = field(default_factory=list)

    def predict(self, stack: ZStack) -> Prediction:
        self.asked.append(stack.info.key.time)
        mean = stack.pixels.mean(axis=0, dtype=np.float32)[None] / 65535
        return Prediction(stack.info, ("nuclei",), mean, np.zeros_like(mean), "ab", "mean 1", "fake")

    def close(self) -> None:
        """Nothing to free."""


@dataclass
class GateEngine(MeanEngine):
    """Predicts when the gate is open."""

    gate: threading.Event = field(default_factory=threading.Event)
    busy: threading.Event = field(default_factory=threading.Event)

    def predict(self, stack: ZStack) -> Prediction:
        self.busy.set()
        if not self.gate.wait(30):
            raise EngineError("nobody opened the gate")
        return super().predict(stack)


class OddEngine(MeanEngine):
    """Refuses time 0, fails on time 1, answers nonsense at time 2, predicts all others."""

    def predict(self, stack: ZStack) -> Prediction:
        prediction = super().predict(stack)
        match stack.info.key.time:
            case 0:
                raise StackRefused("too few planes", wanted="13", got="3", fix="acquire 13 planes")
            case 1:
                raise ZeroDivisionError("a bug of the engine")
            case 2:
                return replace(prediction, mean=prediction.mean[:, :5])
        return prediction


def info(time_: int = 0, planes: int = PLANES) -> StackInfo:
    z_um = tuple(float(z) for z in range(planes))
    return StackInfo(StackKey(time_, "A1", "Phase"), z_um, (ROWS, COLUMNS), 0.3, 1.0, 2.0, 8.0)


def pixels(time_: int, z: int) -> np.ndarray:
    return np.full((ROWS, COLUMNS), 1000 * time_ + 100 * z + 7, np.uint16)


def slice_of(time_: int, z: int) -> Slice:
    return Slice(info(time_), z, pixels(time_, z), 1.75e9 + time_ + 0.01 * z)


def put_stack(client: EngineClient, time_: int, planes: int = PLANES) -> None:
    for z in range(planes):
        client.put(slice_of(time_, z))


def expected(time_: int) -> np.ndarray:
    stack = np.stack([pixels(time_, z) for z in range(PLANES)])
    return stack.mean(axis=0, dtype=np.float32)[None] / 65535


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("the condition did not come true")
        time.sleep(0.002)


def check_predicted(outcomes: list[Outcome], times: range) -> None:
    """Each stack was predicted once, from its own pixels."""
    predictions = [outcome for outcome in outcomes if isinstance(outcome, Prediction)]
    assert sorted(p.info.key.time for p in outcomes) == list(times), outcomes
    assert len(predictions) == len(outcomes)
    for prediction in predictions:
        assert np.array_equal(prediction.mean, expected(prediction.info.key.time))


@contextmanager
def connected(
    engine: MeanEngine, folder: Path, bind: str = ANY_PORT, credit: int = 2, **settings: object
) -> Iterator[EngineClient]:
    """A client and the server it is connected to."""
    limits = SessionLimits(credit=credit)
    with (
        EngineServer([ServedModel(engine, "", "ab", "fake")], bind, ServerSettings(limits)) as server,
        EngineClient(server.endpoint, spool=Spool(folder), settings=client_settings(**settings)) as client,
    ):
        wait_until(lambda: client.connected)
        yield client


def client_settings(**changes: object) -> ClientSettings:
    return replace(ClientSettings(memory_bytes=8 << 20, link=QUICK), **changes)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.mark.parametrize(
    "scheme, share_memory, travels",
    [
        ("tcp", True, "shared memory"),
        ("tcp", False, "tcp"),
        pytest.param(
            "ipc", False, "ipc", marks=pytest.mark.skipif(os.name == "nt", reason="ipc needs Unix sockets")
        ),
    ],
)
def test_interleaved_stacks_are_predicted(
    folder: Path, tmp_path: Path, scheme: str, share_memory: bool, travels: str
) -> None:
    bind = ANY_PORT if scheme == "tcp" else f"ipc://{tmp_path / 'engine'}"
    with connected(MeanEngine(), folder, bind, share_memory=share_memory) as client:
        assert client.transport == travels
        for first in range(0, 6, 2):
            for z in range(PLANES):
                client.put(slice_of(first, z))
                client.put(slice_of(first + 1, z))
        outcomes = client.drain(20)
        counts = client.counts
    check_predicted(outcomes, range(6))
    assert (counts.captured, counts.sent, counts.stacks, counts.predicted) == (18, 18, 6, 6)
    assert (counts.lost, counts.spooled, counts.duplicates, counts.reconnects) == (0, 0, 0, 0)
    assert counts.bytes_copied == 6 * STACK_BYTES, "each pixel is copied once in this process"


def test_a_server_that_cannot_map_the_memory_gets_the_pixels_through_the_socket(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in another container: same host, but nothing under the name that the client offers."""

    def nothing_there(offer: MemoryOffer) -> None:
        raise WireError("no such memory")

    monkeypatch.setattr(sessions, "SharedMemoryView", nothing_there)
    with connected(MeanEngine(), folder) as client:
        assert client.transport == "tcp"
        put_stack(client, 0)
        check_predicted(client.drain(20), range(1))


def test_times_name_every_stage(folder: Path) -> None:
    with connected(MeanEngine(), folder) as client:
        now_s = time.time()
        for z in range(PLANES):
            client.put(replace(slice_of(0, z), captured_s=now_s - 0.1 + 0.05 * z))
        (outcome,) = client.drain(20)
    assert isinstance(outcome, Prediction)
    assert outcome.times.expose_ms == pytest.approx(100, abs=0.1)
    assert outcome.times.transfer_ms > 0
    assert outcome.times.wait_ms >= 0
    assert outcome.times.infer_ms > 0


def test_the_client_knows_the_engine(folder: Path) -> None:
    with connected(MeanEngine(), folder) as client:
        assert client.manifest == MANIFEST
        assert client.engine is not None
        assert (client.engine.engine, client.engine.model_sha256) == ("fake", "ab")


def test_slices_leave_before_their_stack_is_complete(folder: Path) -> None:
    with connected(MeanEngine(), folder) as client:
        put_stack(client, 0, planes=PLANES - 1)
        wait_until(lambda: client.counts.sent == PLANES - 1)
        client.put(slice_of(0, PLANES - 1))
        check_predicted(client.drain(20), range(1))


def test_refused_failed_and_nonsense(folder: Path) -> None:
    with connected(OddEngine(), folder) as client:
        for time_ in range(4):
            put_stack(client, time_)
        outcomes = {outcome.info.key.time: outcome for outcome in client.drain(20)}
        counts = client.counts
    refused, failed, nonsense, good = (outcomes[time_] for time_ in range(4))
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.fix) == ("too few planes; wanted: 13; got: 3", "acquire 13 planes")
    for outcome, said in ((failed, "ZeroDivisionError: a bug"), (nonsense, "mean of a prediction")):
        assert isinstance(outcome, Unpredicted)
        assert said in outcome.reason
        assert Spool(folder).read(Path(outcome.where)).complete
    assert isinstance(good, Prediction), "the server lives on after a failure"
    assert (counts.refused, counts.failed, counts.unpredicted, counts.predicted) == (1, 2, 2, 1)
    assert counts.spooled_for == (("failed", 2),)


def test_no_more_stacks_at_the_server_than_credit(folder: Path) -> None:
    engine = GateEngine()
    with connected(engine, folder, credit=1) as client:
        for time_ in range(3):
            put_stack(client, time_)
        assert engine.busy.wait(10)
        wait_until(lambda: client.counts.sent == PLANES)
        engine.gate.set()
        outcomes = client.drain(20)
    check_predicted(outcomes, range(3))
    assert engine.asked == [0, 1, 2], "in the order in which they began"


def test_what_does_not_fit_in_memory_waits_on_disk_and_is_predicted_later(folder: Path) -> None:
    engine = GateEngine()
    with connected(engine, folder, memory_bytes=4 * BLOCK_BYTES) as client:
        for time_ in range(8):
            put_stack(client, time_)
            # At most two are at the engine and one in memory; wait for the disk as a camera would not.
            wait_until(lambda n=time_: client.counts.spooled >= n - 2)  # type: ignore[misc]
        wait_until(lambda: len(Spool(folder).list()) == client.counts.spooled >= 5)
        engine.gate.set()
        outcomes = client.drain(20)
        counts = client.counts
    check_predicted(outcomes, range(8))
    assert sorted(engine.asked) == list(range(8)), "nothing was predicted twice"
    assert counts.replayed == counts.spooled
    assert dict(counts.spooled_for) == {"memory full": counts.spooled}
    assert Spool(folder).list() == ()


def test_without_an_engine_everything_is_kept_on_disk(folder: Path) -> None:
    with EngineClient("tcp://127.0.0.1:1", spool=Spool(folder), settings=client_settings()) as client:
        for time_ in range(3):
            put_stack(client, time_)
        outcomes = client.drain(0.1)
        assert not client.connected
        counts = client.counts
    assert [type(outcome) for outcome in outcomes] == [Unpredicted] * 3
    for time_, outcome in enumerate(outcomes):
        assert isinstance(outcome, Unpredicted)
        assert "no engine" in outcome.reason
        back = Spool(folder).read(Path(outcome.where))
        assert back.info == info(time_)
        assert np.array_equal(back.pixels[2], pixels(time_, 2))
    assert (counts.spooled, counts.unpredicted, counts.lost, counts.sent) == (3, 3, 0, 0)


def test_what_waits_long_without_an_engine_leaves_the_memory(folder: Path) -> None:
    settings = client_settings(patience=Patience(absent_s=0.01))
    with EngineClient("tcp://127.0.0.1:1", spool=Spool(folder), settings=settings) as client:
        put_stack(client, 0)
        wait_until(lambda: client.counts.spooled_for == (("no engine", 1),))
        assert client.poll() == []
        (outcome,) = client.drain(0.0)
    assert isinstance(outcome, Unpredicted)
    assert len(Spool(folder).list()) == 1


def test_an_engine_that_comes_late_predicts_memory_and_disk(folder: Path, free_port: str) -> None:
    settings = client_settings(memory_bytes=4 * BLOCK_BYTES)
    with EngineClient(free_port, spool=Spool(folder), settings=settings) as client:
        for time_ in range(6):
            put_stack(client, time_)
            wait_until(lambda n=time_: client.counts.spooled >= n - 2)  # type: ignore[misc]
        with EngineServer([ServedModel(MeanEngine())], free_port):
            outcomes = client.drain(20)
    check_predicted(outcomes, range(6))


def test_a_server_that_stops_and_comes_back_gets_what_it_did_not_answer(folder: Path, free_port: str) -> None:
    gate, second = GateEngine(), MeanEngine()
    with EngineClient(free_port, spool=Spool(folder), settings=client_settings()) as client:
        with EngineServer([ServedModel(gate)], free_port):
            put_stack(client, 0)
            put_stack(client, 1, planes=2)  # interrupted in the middle
            assert gate.busy.wait(10)
            wait_until(lambda: client.counts.sent == PLANES + 2)
            threading.Timer(0.05, gate.gate.set).start()  # its answer comes when nobody sends it any more
        wait_until(lambda: not client.connected)
        client.put(slice_of(1, 2))
        put_stack(client, 2)
        with EngineServer([ServedModel(second)], free_port):
            outcomes = client.poll() + client.drain(20)
            counts = client.counts
    check_predicted(outcomes, range(3))
    assert counts.reconnects == 1
    assert counts.lost == 0


def test_incomplete_stacks_end_and_give_their_credit_back(folder: Path) -> None:
    with connected(MeanEngine(), folder, credit=1) as client:
        put_stack(client, 0, planes=2)
        wait_until(lambda: client.counts.sent == 2)
        (outcome,) = client.drain(20)
        assert isinstance(outcome, Unpredicted)
        assert "only 2 of 3 slices" in outcome.reason
        assert Spool(folder).read(Path(outcome.where)).present == (0, 1)
        client.put(slice_of(0, 2))  # too late
        put_stack(client, 1)
        check_predicted(client.drain(20), range(1, 2))
        counts = client.counts
    assert counts.duplicates == 0
    assert ("not wanted", "came after drain", 1) in counts.slices.reasons
    assert str(counts.slices) == (
        "6 slices captured = 3 predicted + 2 spooled (2 incomplete) + 1 not wanted (1 came after drain)"
    )


def test_a_stack_whose_slices_stop_coming_ends_by_itself(folder: Path) -> None:
    with connected(MeanEngine(), folder, patience=Patience(stack_timeout_s=0.05)) as client:
        put_stack(client, 0, planes=1)
        outcomes: list[Outcome] = []
        wait_until(lambda: outcomes.extend(client.poll()) or outcomes)
    assert isinstance(outcomes[0], Unpredicted)


def test_duplicates_are_counted_and_change_nothing(folder: Path) -> None:
    with connected(MeanEngine(), folder) as client:
        client.put(slice_of(0, 0))
        client.put(replace(slice_of(0, 0), pixels=pixels(9, 0)))
        client.put(slice_of(0, 1))
        client.put(slice_of(0, 2))
        client.put(slice_of(0, 1))
        check_predicted(client.drain(20), range(1))
        assert (client.counts.captured, client.counts.duplicates) == (5, 2)
        assert (client.counts.slices.predicted, client.counts.slices.open) == (3, 0)


@pytest.mark.parametrize(
    "bad",
    [
        replace(slice_of(0, 0), pixels=np.zeros((ROWS, COLUMNS), np.float32)),
        replace(slice_of(0, 0), pixels=np.zeros((ROWS, COLUMNS + 1), np.uint16)),
        replace(slice_of(0, 0), z_index=PLANES),
        replace(slice_of(0, 0), info=replace(info(), shape=(1 << 20, 1 << 20))),
    ],
)
def test_put_never_raises_and_what_it_cannot_take_is_lost_loudly(folder: Path, bad: Slice) -> None:
    with connected(MeanEngine(), folder) as client:
        client.put(bad)
        put_stack(client, 1)
        with pytest.raises(SliceLost, match="1 captured slice "):
            client.drain(20)
        assert client.counts.lost == 1
        assert {outcome.info.key.time for outcome in client.poll()} >= {1}, "outcomes are not lost with it"


def test_a_full_disk_and_no_engine_is_a_loss_that_is_raised(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    with EngineClient("tcp://127.0.0.1:1", spool=Spool(folder), settings=client_settings()) as client:
        put_stack(client, 0)
        with pytest.raises(SliceLost, match=r"3 captured slices .* neither predicted nor kept on disk"):
            client.drain(0.05)
        (outcome,) = client.poll()
        assert isinstance(outcome, Unpredicted)
        assert "No space left" in outcome.reason
        assert outcome.where == ""


def test_more_than_memory_and_disk_can_hold_is_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    monkeypatch.setattr(overflow, "free_bytes", lambda place: 0)
    settings = client_settings(memory_bytes=2 * BLOCK_BYTES)
    with (
        pytest.raises(SliceLost),
        EngineClient("tcp://127.0.0.1:1", spool=Spool(folder), settings=settings) as client,
    ):
        for time_ in range(3):
            put_stack(client, time_)
        assert client.counts.lost == PLANES
        assert client.counts.captured == 3 * PLANES


def test_leaving_early_keeps_what_was_captured(folder: Path) -> None:
    engine = GateEngine()
    with EngineServer([ServedModel(engine)], ANY_PORT) as server:
        with EngineClient(server.endpoint, spool=Spool(folder), settings=client_settings()) as client:
            put_stack(client, 0)
            assert engine.busy.wait(10)
        engine.gate.set()
    (outcome,) = client.poll()
    assert isinstance(outcome, Unpredicted)
    assert outcome.reason == "the client was closed first"
    assert Path(outcome.where).exists()


def test_several_clients_share_an_engine(folder: Path) -> None:
    engine = MeanEngine()
    with EngineServer([ServedModel(engine)], ANY_PORT) as server:
        clients = [
            EngineClient(server.endpoint, spool=Spool(folder / str(n)), settings=client_settings())
            for n in (0, 1)
        ]
        with clients[0], clients[1]:
            for time_ in range(4):
                put_stack(clients[time_ % 2], time_)
            outcomes = [client.drain(20) for client in clients]
    check_predicted(outcomes[0], range(0, 4, 2))
    check_predicted(outcomes[1], range(1, 4, 2))


# ---- one end alone, against hand-made messages


class RawClient:
    """Speaks the protocol word by word."""

    def __init__(self, endpoint: str) -> None:
        self.context = zmq.Context()
        self.endpoint = endpoint
        self.connect()

    def connect(self) -> None:
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, 10_000)
        self.socket.connect(self.endpoint)

    def reconnect(self) -> None:
        self.socket.close()
        self.connect()

    def say(self, frames: list[Frame]) -> None:
        self.socket.send_multipart(frames)

    def ask(self, frames: list[Frame]) -> Message:
        self.say(frames)
        return self.hear()

    def hear(self) -> Message:
        return decode(self.socket.recv_multipart())[0]

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(linger=0)


HELLO = encode(Hello(session="ab" * 16, attempt=1))
BEAT = encode(Beat(sent_s=1.0))


def raw_stack(stack: int) -> list[list[Frame]]:
    return [slice_frames(stack, slice_of(stack, z)) for z in range(PLANES)]


def test_heartbeats_are_answered_during_inference() -> None:
    engine = GateEngine()
    with EngineServer([ServedModel(engine)], ANY_PORT) as server, RawClient(server.endpoint) as raw:
        raw.ask(HELLO)
        for frames in raw_stack(0):
            raw.say(frames)
        assert engine.busy.wait(10)
        assert isinstance(raw.ask(BEAT), Alive)
        engine.gate.set()
        assert isinstance(raw.hear(), Result)


def test_an_answer_is_sent_again_until_it_is_confirmed_and_computed_once() -> None:
    engine = MeanEngine()
    with EngineServer([ServedModel(engine)], ANY_PORT) as server, RawClient(server.endpoint) as raw:
        raw.ask(HELLO)
        for frames in raw_stack(0):
            raw.say(frames)
        assert isinstance(raw.hear(), Result)
        raw.reconnect()
        welcome = raw.ask(HELLO)
        assert isinstance(welcome, Welcome)
        assert welcome.held == (0,)
        assert isinstance(raw.hear(), Result)
        for frames in raw_stack(0):
            raw.say(frames)  # late: ignored
        raw.say(encode(Done(stack=0)))
        assert isinstance(raw.ask(BEAT), Alive)
        raw.reconnect()
        welcome = raw.ask(HELLO)
        assert isinstance(welcome, Welcome)
        assert welcome.held == ()
        assert isinstance(raw.ask(BEAT), Alive), "and no second answer before it"
    assert engine.asked == [0]


def test_slices_of_a_half_sent_stack_are_sent_again_after_a_new_greeting() -> None:
    with EngineServer([ServedModel(MeanEngine())], ANY_PORT) as server, RawClient(server.endpoint) as raw:
        raw.ask(HELLO)
        raw.say(raw_stack(0)[0])
        raw.reconnect()
        raw.ask(HELLO)
        for frames in raw_stack(0):
            raw.say(frames)
        assert isinstance(raw.hear(), Result)


@pytest.mark.parametrize(
    "frames", [[b"hello"], [b"", b""], [b"{}"], [HELLO[0], b"payload"], [b"\x80\x04K\x01."]]
)
def test_hostile_messages_are_turned_away_and_the_server_lives_on(frames: list[bytes]) -> None:
    with EngineServer([ServedModel(MeanEngine())], ANY_PORT) as server, RawClient(server.endpoint) as raw:
        assert isinstance(raw.ask(list(frames)), Bye)
        assert isinstance(raw.ask(HELLO), Welcome)


def test_slices_without_a_greeting_are_ignored() -> None:
    with EngineServer([ServedModel(MeanEngine())], ANY_PORT) as server, RawClient(server.endpoint) as raw:
        for frames in raw_stack(0):
            raw.say(frames)
        assert isinstance(raw.ask(HELLO), Welcome)
        assert isinstance(raw.ask(BEAT), Alive)


def test_more_stacks_than_credit_fail() -> None:
    limits = SessionLimits(credit=1)
    with (
        EngineServer([ServedModel(GateEngine())], ANY_PORT, ServerSettings(limits=limits)) as server,
        RawClient(server.endpoint) as raw,
    ):
        raw.ask(HELLO)
        raw.say(raw_stack(0)[0])
        answer = raw.ask(raw_stack(1)[0])
    assert isinstance(answer, Failed)
    assert "credit" in answer.reason


def test_an_incomplete_stack_fails_at_the_server_after_a_while() -> None:
    limits = SessionLimits(stack_timeout_s=0.05)
    with (
        EngineServer([ServedModel(MeanEngine())], ANY_PORT, ServerSettings(limits=limits)) as server,
        RawClient(server.endpoint) as raw,
    ):
        raw.ask(HELLO)
        answer = raw.ask(raw_stack(0)[0])
    assert isinstance(answer, Failed)
    assert "2 of 3 slices never came" in answer.reason


def test_too_many_clients_are_told_so() -> None:
    limits = SessionLimits(clients=1)
    with (
        EngineServer([ServedModel(MeanEngine())], ANY_PORT, ServerSettings(limits=limits)) as server,
        RawClient(server.endpoint) as first,
        RawClient(server.endpoint) as second,
    ):
        assert isinstance(first.ask(HELLO), Welcome)
        other = encode(Hello(session="cd" * 16, attempt=1))
        assert isinstance(second.ask(other), Bye)
        first.say(encode(Bye()))
        wait_until(lambda: isinstance(second.ask(other), Welcome))


class LyingServer:
    """Greets, and answers the first slice of every stack at once, if it answers at all."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.answered: set[int] = set()
        self.confirmed: set[int] = set()

    def __enter__(self) -> LyingServer:
        self.context = zmq.Context()
        self.router = self.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.endpoint = f"tcp://127.0.0.1:{self.router.bind_to_random_port('tcp://127.0.0.1')}"
        return self

    def __exit__(self, *_: object) -> None:
        self.context.destroy(linger=0)

    def serve(self) -> None:
        """Answer what has arrived."""
        while self.router.poll(0):
            identity, *frames = self.router.recv_multipart()
            message, _ = decode(frames)
            match message:
                case Hello(attempt=attempt):
                    offer = ServedModel(MeanEngine()).offer
                    self.say(identity, encode(Welcome(attempt=attempt, credit=2, models=(offer,))))
                case SliceSent(stack=stack) if self.answer and stack not in self.answered:
                    self.answered.add(stack)
                    self.say(identity, self.lie(message))
                case Done(stack=stack):
                    self.confirmed.add(stack)

    def say(self, identity: bytes, frames: list[Frame]) -> None:
        self.router.send_multipart([identity, *frames])

    def lie(self, sent: SliceSent) -> list[Frame]:
        match self.answer:
            case "refused":
                return encode(Refused(stack=sent.stack, reason="I do not like it", fix=""))
            case "failed":
                return encode(Failed(stack=sent.stack, reason="I cannot"))
            case "late":
                return encode(Expired(stack=sent.stack))
        plane = np.zeros((1, *sent.info.shape), np.float32)
        return result_of(sent.stack, Prediction(sent.info, ("nuclei",), plane, plane, "", "", ""), 0.0)


@pytest.mark.parametrize("lie", ["refused", "failed", "late", "predicted"])
def test_an_answer_before_the_last_slice_loses_none(folder: Path, lie: str) -> None:
    with (
        LyingServer(lie) as server,
        EngineClient(server.endpoint, spool=Spool(folder), settings=client_settings()) as client,
    ):
        wait_until(lambda: server.serve() or client.connected)
        for stack in range(4):
            client.put(slice_of(stack, 0))
            wait_until(lambda n=stack: server.serve() or n in server.confirmed)  # type: ignore[misc]
            for z in range(1, PLANES):
                client.put(slice_of(stack, z))
        outcomes = client.drain(20)
        counts = client.counts
    assert [type(outcome) for outcome in outcomes] == [Unpredicted] * 4
    assert all(
        Spool(folder).read(Path(one.where)).complete for one in outcomes if isinstance(one, Unpredicted)
    )
    assert (counts.captured, counts.duplicates, counts.lost, counts.spooled) == (4 * PLANES, 0, 0, 4)


def test_a_stack_that_the_server_does_not_take_is_whole_on_disk(folder: Path) -> None:
    limits = SessionLimits(stack_bytes=STACK_BYTES - 1)
    with (
        EngineServer([ServedModel(MeanEngine())], ANY_PORT, ServerSettings(limits=limits)) as server,
        EngineClient(server.endpoint, spool=Spool(folder), settings=client_settings()) as client,
    ):
        wait_until(lambda: client.connected)
        for stack in range(4):
            client.put(slice_of(stack, 0))
            wait_until(lambda n=stack: client.counts.sent > n)  # type: ignore[misc]
            for z in range(1, PLANES):
                client.put(slice_of(stack, z))
        outcomes = client.drain(20)
        counts = client.counts
    assert ["larger than this server takes" in one.reason for one in outcomes] == [True] * 4  # type: ignore[union-attr]
    assert [Spool(folder).read(path).present for path in Spool(folder).list()] == [(0, 1, 2)] * 4
    assert (counts.captured, counts.duplicates, counts.lost) == (4 * PLANES, 0, 0)


def test_a_stack_that_cannot_be_sent_is_whole_on_disk(folder: Path) -> None:
    odd = replace(info(), key=StackKey(0, "a position with a very long name" * 10, "Phase"))
    with connected(MeanEngine(), folder) as client:
        for z in range(PLANES):
            client.put(replace(slice_of(0, z), info=odd))
            wait_until(lambda: not any(s.unsent for s in client._queue._stacks.values()))
        (outcome,) = client.drain(20)
        assert client.counts.duplicates == 0
    assert isinstance(outcome, Unpredicted) and "limited" in outcome.reason
    assert Spool(folder).read(Path(outcome.where)).complete


def test_hundreds_of_stacks_may_be_open_at_once(folder: Path) -> None:
    """As when z is the outermost axis: every position's first slice comes before any second one.

    There is memory for a few of them only; the others are captured to mapped files.
    """
    with connected(MeanEngine(), folder, memory_bytes=4 * BLOCK_BYTES) as client:
        for z in range(PLANES):
            for position in range(300):
                key = StackKey(0, f"position {position}", "Phase")
                client.put(replace(slice_of(0, z), info=replace(info(), key=key)))
        outcomes = client.drain(60)
        counts = client.counts
    assert [type(outcome) for outcome in outcomes] == [Prediction] * 300
    assert (counts.captured, counts.duplicates, counts.lost) == (300 * PLANES, 0, 0)
    assert list(folder.iterdir()) == [], "no file is left"


@pytest.mark.parametrize("room, kept", [(1 << 40, 12), (3 << 30, 12), (1 << 30, 3)])
def test_the_overflow_leaves_room_for_the_measured_data(folder: Path, room: int, kept: int) -> None:
    with SharedMemory(3 * BLOCK_BYTES, shared=False) as memory:
        more = OverflowMemory(folder, file_bytes=5 * BLOCK_BYTES, free=lambda place: room)
        queue = PendingQueue(memory, SliceAccounts(), overflow=more)
        for time_ in range(12):
            queue.put(slice_of(time_, 0))
        assert queue.slices_held == kept
        for stack in list(queue._stacks.values()):
            assert np.array_equal(stack.slices.pixels[0], pixels(stack.info.key.time, 0))
        files = len(more._files)
        queue.close_all("closed", "")
        for stack, reason in queue.to_write(no_engine=False, may_spill=False):
            queue.stored(stack, folder / f"{stack.id}.tif", reason)
        assert (files, more._files, queue.slices_held) == (2 * (kept == 12), [], 0)
        assert queue.accounts.counts.reasons[0][0] == ("lost" if kept == 3 else "spooled")


def test_a_slice_after_its_stack_timed_out_is_lost_loudly(folder: Path) -> None:
    with connected(MeanEngine(), folder, patience=Patience(stack_timeout_s=0.05)) as client:
        put_stack(client, 0, planes=1)
        outcomes: list[Outcome] = []
        wait_until(lambda: outcomes.extend(client.poll()) or outcomes)
        client.put(slice_of(0, 0))
        client.put(slice_of(0, 1))
        with pytest.raises(SliceLost, match="1 captured slice "):
            client.drain(20)
        assert (client.counts.duplicates, client.counts.lost) == (1, 1)


def test_a_server_that_falls_silent_is_noticed(folder: Path) -> None:
    """It takes messages but answers none: no broken connection tells, only the missing heartbeat."""
    settings = client_settings(link=replace(QUICK, silence_s=1.0))
    with (
        LyingServer("") as server,
        EngineClient(server.endpoint, spool=Spool(folder), settings=settings) as client,
    ):
        wait_until(lambda: server.serve() or client.connected)
        put_stack(client, 0)
        wait_until(lambda: not client.connected)
        assert "silent" in client.transport
        (outcome,) = client.drain(0.0)
        assert isinstance(outcome, Unpredicted)
        assert Path(outcome.where).exists()


@pytest.mark.parametrize(
    "bind", ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://192.168.1.20:5555", "tcp://eth0:*"]
)
def test_an_address_open_to_others_needs_keys(bind: str) -> None:
    with (
        pytest.raises(EngineError, match=r"open to other hosts.*SSH tunnel"),
        EngineServer([ServedModel(MeanEngine())], bind),
    ):
        pass


def test_a_port_that_is_taken_is_named() -> None:
    with (
        EngineServer([ServedModel(MeanEngine())], ANY_PORT) as server,
        pytest.raises(EngineError, match=r"cannot be served.*another port"),
        EngineServer([ServedModel(MeanEngine())], server.endpoint),
    ):
        pass


def test_an_address_that_is_none_is_named(folder: Path) -> None:
    with pytest.raises(EngineError, match="cannot be used"), EngineClient("nonsense", spool=Spool(folder)):
        pass


@pytest.mark.skipif(not zmq.has("curve"), reason="this ZMQ was built without CURVE")
def test_only_known_keys_are_let_in(folder: Path) -> None:
    server_public, server_secret = zmq.curve_keypair()
    known, stranger = zmq.curve_keypair(), zmq.curve_keypair()
    keys = ServerKeys(server_public, server_secret, allowed=(known[0],))
    with EngineServer([ServedModel(MeanEngine())], "tcp://0.0.0.0:*", ServerSettings(keys=keys)) as server:
        endpoint = server.endpoint.replace("0.0.0.0", "127.0.0.1")
        clients = {}
        for name, (public, secret) in {"known": known, "stranger": stranger}.items():
            link = replace(QUICK, keys=ClientKeys(server_public, public, secret))
            clients[name] = EngineClient(
                endpoint, spool=Spool(folder / name), settings=client_settings(link=link, share_memory=False)
            )
        with clients["known"] as client:
            put_stack(client, 0)
            check_predicted(client.drain(20), range(1))
        with clients["stranger"] as client:
            wait_until(lambda: "keys" in client.transport)
            put_stack(client, 0)
            assert [type(outcome) for outcome in client.drain(0.05)] == [Unpredicted]
        with EngineClient(endpoint, spool=Spool(folder / "none"), settings=client_settings()) as client:
            put_stack(client, 0)
            assert [type(outcome) for outcome in client.drain(0.2)] == [Unpredicted]


@pytest.fixture
def free_port() -> str:
    """An address at which nobody listens yet."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        port = socket.bind_to_random_port("tcp://127.0.0.1")
    return f"tcp://127.0.0.1:{port}"
