"""An engine that comes back with other models is not used; answers nobody promised are no predictions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zmq

from acq_isl.errors import WireError
from acq_isl.manifest import Manifest
from acq_isl.stack import Prediction, StackInfo, StackKey, StageTimes
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.codec import Frame, decode, encode, prediction_of, result_of, slice_frames
from acq_isl.stream.connection import ConnectionSettings
from acq_isl.stream.messages import Beat, Hello, Offer, Result
from acq_isl.stream.model_registry import ServedModel
from acq_isl.stream.promises import other_models, require_promised
from acq_isl.stream.server import EngineServer
from acq_isl.stream.spool import Spool
from doubles import serving as fake

QUICK = ConnectionSettings(beat_s=0.05, silence_s=10.0, reconnect_s=0.02, reconnect_max_s=0.05)
INFO = StackInfo(StackKey(0, "A1", "Phase"), (0.0, 1.0, 2.0), (4, 5), 0.3)


def offer(name: str = "a", manifest: Manifest | str | None = None, sha256: str = "") -> Offer:
    text = manifest if isinstance(manifest, str) else (manifest or fake.manifest()).model_dump_json()
    return Offer(name=name, manifest=text, model_sha256=sha256, engine="fake")


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ((offer("b", fake.manifest("other weights")),), ""),
        ((offer(manifest=fake.manifest(labels=("axons",))),), "labels: nuclei -> axons"),
        ((offer(manifest=fake.manifest(pixel_size_um=0.6)),), "pixel size"),
        ((offer(manifest="[1, 2"),), "nobody here can read"),
        ((offer(manifest="{}"),), "nobody here can read"),
        ((offer(), offer("b", fake.manifest(labels=("axons",)))), ""),
    ],
)
def test_what_a_client_relies_on_must_stay(now: tuple[Offer, ...], told: str) -> None:
    found = other_models((offer(),), now)
    assert told in found and bool(told) == bool(found)


def test_of_models_that_nobody_here_can_read_only_the_same_is_used() -> None:
    """A server of a newer version may say more of its models than this one knows."""
    before = (offer(manifest="{}", sha256="ab"),)
    assert other_models(before, (offer(manifest="{}", sha256="ab"),)) == ""
    assert "nobody here can read" in other_models(before, (offer(sha256="cd"),))
    lie = offer(manifest=fake.manifest(labels=("axons",)), sha256="ab")
    assert "labels" in other_models((offer(sha256="ab"),), (lie,))


def result(**changes: object) -> tuple[Result, tuple[memoryview, ...]]:
    plane = np.zeros((1, 4, 5), np.float32)
    prediction = replace(Prediction(INFO, ("nuclei",), plane, plane, "", "", ""), **changes)
    message, buffers = decode(result_of(1, prediction, 0.0))
    assert isinstance(message, Result)
    return message, buffers


def test_a_prediction_has_the_labels_of_its_model() -> None:
    offers = (offer("a"), offer("b", fake.manifest(labels=("axons",))))
    require_promised(offers, result()[0])
    require_promised(offers, result(labels=("axons",), model="b")[0])
    require_promised((offer(manifest="{}"),), result()[0])  # nobody knows them
    for lie in (result(labels=("axons",)), result(model="b")):
        with pytest.raises(WireError, match="other labels"):
            require_promised(offers, lie[0])


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["mean", "spread"])
def test_what_is_not_a_number_is_no_prediction(where: str, number: float) -> None:
    planes = np.zeros((1, 4, 5), np.float32)
    planes[0, 2, 3] = number
    message, buffers = result(**{where: planes})
    with pytest.raises(WireError, match="not numbers"):
        prediction_of(message, buffers, INFO)
    with pytest.raises(WireError, match="not a number"):
        result(times=StageTimes(infer_ms=number))


def test_an_engine_that_comes_back_with_other_labels_gets_nothing_until_the_right_one_is_back(
    tmp_path: Path,
) -> None:
    right, wrong, again = (
        fake.MeanEngine(),
        fake.MeanEngine(fake.manifest(labels=("axons",))),
        fake.MeanEngine(fake.manifest("newer weights")),
    )
    settings = ClientSettings(memory_bytes=4 << 20, link=QUICK)
    with ExitStack() as opened:
        with EngineServer([ServedModel(right, "m", "ab", "fake")], fake.ANY_PORT) as first:
            client = EngineClient(first.endpoint, spool=Spool(tmp_path), settings=settings)
            opened.enter_context(client)
            assert client.wait_connected(20)
        with EngineServer([ServedModel(wrong, "m", "cd", "fake")], first.endpoint):
            for z in range(fake.PLANES):
                client.put(fake.slice_of(0, z))
            fake.wait_until(lambda: "other models" in client.transport)
        assert not wrong.asked
        with EngineServer([ServedModel(again, "m", "ef", "fake")], first.endpoint):
            outcomes = client.drain(20)
    assert [type(outcome) for outcome in outcomes] == [Prediction]
    assert again.asked == [0]


class GarblingServer(EngineServer):
    """Its first answer is cut short on the way."""

    garbled = False

    def _send(self, identity: bytes | None, frames: Sequence[Frame] | None) -> None:
        if frames and not self.garbled and b'"RESULT"' in bytes(frames[0]):
            self.garbled, frames = True, frames[:1]
        super()._send(identity, frames)


def test_an_answer_that_cannot_be_understood_is_asked_for_again(tmp_path: Path) -> None:
    """It used to keep its place at the engine for good; two of them, and nothing was predicted any more."""
    settings = ClientSettings(memory_bytes=4 << 20, link=QUICK)
    with (
        GarblingServer([ServedModel(fake.MeanEngine(), "m", "ab", "fake")], fake.ANY_PORT) as server,
        EngineClient(server.endpoint, spool=Spool(tmp_path), settings=settings) as client,
    ):
        for time in range(3):
            for z in range(fake.PLANES):
                client.put(fake.slice_of(time, z))
        outcomes = client.drain(30)
    assert [type(outcome) for outcome in outcomes] == [Prediction] * 3
    assert server.garbled and client.counts.reconnects == 1


class Firehose:
    """A socket on which the same message never ends."""

    def __init__(self, message: Sequence[Frame]) -> None:
        self._message, self.heard = message, 0

    def recv_multipart(self, *options: object, **more: object) -> list[zmq.Frame]:
        self.heard += 1
        return [zmq.Frame(frame) for frame in (b"somebody", *self._message)]

    def send_multipart(self, *options: object, **more: object) -> None:
        """Nobody reads."""


@pytest.mark.parametrize(
    ("message", "heard"),
    [
        ([b"nonsense"], 32),
        (encode(Hello(session="0f" * 16, attempt=1)), 32),
        (encode(Beat(sent_s=0.0)), 32),
        (slice_frames(1, fake.slice_of(0, 0)), 256),
    ],
)
def test_talk_that_is_no_work_gets_little_of_the_servers_time(message: list[Frame], heard: int) -> None:
    """`benchmarks/fuzz.py` measures what that is good for: the latency of others."""
    with EngineServer([ServedModel(fake.MeanEngine())], fake.ANY_PORT) as open_server:
        pass  # what it needs is there, and its thread has ended
    hose = Firehose(message)
    open_server._socket = hose  # type: ignore[assignment]
    open_server._unfinished = SimpleNamespace(note=lambda frames: None)  # type: ignore[assignment]
    open_server._receive()
    assert hose.heard == heard
