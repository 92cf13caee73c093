"""A pool of servers: who is asked, what becomes of one that is gone, and a real server of the protocol."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from acq_isl.engines import load_engine
from acq_isl.engines.backend import Candidate, LoadOptions
from acq_isl.engines.fallback import FallbackEngine
from acq_isl.engines.fleet.backend import VARIABLE, FleetBackend
from acq_isl.engines.fleet.network import BULK, LIVE, FleetNetwork, Patience
from acq_isl.engines.fleet.protocol import ServerBusy, ServerGone
from acq_isl.engines.fleet.repository import served_name, write_config, write_repository
from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import EngineError
from doubles import tiny_model

TILES, INV_SD = np.zeros((1, 5, 32, 32, 2), np.uint8), np.ones(1, np.float32)


@dataclass
class FakeServer:
    """Answers with its number of requests, unless it has something else to say."""

    address: str
    says: EngineError | None = None
    asked: list[int] = field(default_factory=list)  # priorities
    looks: threading.Event = field(default_factory=threading.Event)

    def is_ready(self) -> bool:
        self.looks.set()
        return self.says is None

    def infer(self, inputs, outputs, *, priority, timeout_s):
        if self.says is not None:
            raise self.says
        self.asked.append(priority)
        return tuple(np.full(1, len(self.asked), np.float32) for _ in outputs)

    def close(self) -> None:
        pass


@contextmanager
def fleet(servers: list[FakeServer], patience: Patience, **options: object) -> Iterator[FleetNetwork]:
    with closing(FleetNetwork(servers, ("mean",), patience, **options)) as network:
        yield network


def test_servers_take_turns_and_one_that_is_gone_comes_back() -> None:
    one, two = FakeServer("one:1"), FakeServer("two:1")
    with fleet([one, two], LIVE) as network:
        for _ in range(4):
            network.run(TILES, INV_SD)
        assert (one.asked, two.asked) == ([1, 1], [1, 1])
        one.says = ServerGone("killed")
        for _ in range(3):
            network.run(TILES, INV_SD)
        assert (len(one.asked), len(two.asked), network.name) == (2, 5, "fleet two:1 fp16")
        one.says = None
        one.looks.clear()
        assert one.looks.wait(5)
        until = time.monotonic() + 5
        while len(one.asked) == 2 and time.monotonic() < until:
            network.run(TILES, INV_SD)
        assert len(one.asked) == 3


def test_live_work_is_given_back_and_bulk_work_is_waited_for() -> None:
    busy = FakeServer("one:1", ServerBusy("the queue is full"))
    with fleet([busy], LIVE) as network, pytest.raises(EngineError, match="queue is full"):
        network.run(TILES, INV_SD)
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            busy.says = None

    with fleet([busy], BULK, sleep=sleep) as network:
        network.run(TILES, INV_SD)
    assert (busy.asked, len(waits)) == ([2], 3)


def test_live_work_waits_no_longer_for_two_slow_servers_than_for_one() -> None:
    class Slow(FakeServer):
        def infer(self, inputs, outputs, *, priority, timeout_s):
            self.asked.append(timeout_s)
            time.sleep(timeout_s)
            raise ServerGone("no answer in time")

    slow = [Slow("one:1"), Slow("two:1")]
    began = time.monotonic()
    with fleet(slow, Patience(priority=1, request_s=0.2, total_s=0.2)) as network, pytest.raises(EngineError):
        network.run(TILES, INV_SD)
    assert time.monotonic() - began < 0.35 + 1.0 and len(slow[0].asked + slow[1].asked) == 1


def test_another_engine_takes_over_and_the_first_climbs_back(tmp_path: Path) -> None:
    model = tiny_model.write(tmp_path)
    back, local = threading.Event(), OnnxEngine(model, threads=1)

    class Answers(FakeServer):
        def infer(self, inputs, outputs, *, priority, timeout_s):
            super().infer(inputs, outputs, priority=priority, timeout_s=timeout_s)
            return local.network.run(inputs["stack"], inputs["inv_sd"])

    server = Answers("one:1")

    def open_remote() -> Predictor:
        return Predictor(local.model, FleetNetwork([server], local.network.outputs, LIVE))

    candidates = [
        Candidate("fleet fp16", open_remote, back=back.is_set),
        Candidate("onnxruntime fp32", lambda: OnnxEngine(model, threads=1)),
    ]
    with FallbackEngine(candidates, look_s=0.01) as engine:
        assert engine.predict(tiny_model.stack()).engine == "fleet one:1 fp16"
        server.says = ServerGone("killed")
        fallen = engine.predict(tiny_model.stack())
        assert fallen.engine == "onnxruntime cpu fp32" and "fleet one:1 fp16 failed" in fallen.warnings[-1]
        server.says = None
        assert engine.predict(tiny_model.stack()).engine == "onnxruntime cpu fp32"  # not asked, not used
        back.set()
        until = time.monotonic() + 10
        while engine.name != "fleet one:1 fp16" and time.monotonic() < until:
            time.sleep(0.005)
        again = engine.predict(tiny_model.stack())
        assert again.engine == "fleet one:1 fp16"
        assert not any("failed" in warning for warning in again.warnings)
        server.says = ServerGone("killed again")
        assert engine.predict(tiny_model.stack()).engine == "onnxruntime cpu fp32"
    local.close()


def test_without_a_server_or_the_client_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    reason = FleetBackend().unavailable()
    assert reason is not None and VARIABLE in reason.fix and not reason.broken


def test_the_repository_is_the_model_and_its_queues(tmp_path: Path) -> None:
    model = tiny_model.write(tmp_path)
    place = write_repository(model, tmp_path / "repository")
    assert place.name == f"tiny_{read_model(model).info.sha256[:12]}"
    assert (place / "1" / "model.onnx").read_bytes() == model.read_bytes()
    pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs the extra [fleet]")
    from google.protobuf import text_format

    config = text_format.Parse((place / "config.pbtxt").read_text(), pb2.ModelConfig())
    live, bulk = (config.dynamic_batching.priority_queue_policy[level] for level in (1, 2))
    assert (live.timeout_action, live.default_timeout_microseconds, live.max_queue_size) == (0, 2_000_000, 32)
    assert (bulk.timeout_action, bulk.default_timeout_microseconds, bulk.max_queue_size) == (1, 0, 0)
    assert config.dynamic_batching.default_priority_level == 2
    assert [output.name for output in config.output] == ["mean", "spread"]
    assert config.optimization.execution_accelerators.gpu_execution_accelerator[0].name == "tensorrt"
    gated = tiny_model.write(tmp_path, manifest=tiny_model.GATED, defect=tiny_model.gated)
    text = write_config(read_model(gated), tmp_path / "plans")
    assert '"distance"' in text and f'value: "{(tmp_path / "plans").as_posix()}"' in text


# --- a real server of the protocol ------------------------------------------------------------------

KSERVE = os.environ.get("ACQ_ISL_KSERVE", "")
SERVER = Path(__file__).parents[2] / "benchmarks" / "kserve_server.py"
needs_kserve = pytest.mark.skipif(
    not KSERVE, reason="ACQ_ISL_KSERVE names no Python with kserve and onnxruntime installed"
)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def kserve(repository: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [KSERVE, str(SERVER), str(repository), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def predict_until(engine: FallbackEngine, wanted: str, seconds: float = 60) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = engine.predict(tiny_model.stack()).engine
        if wanted in found:
            break
        time.sleep(0.1)
    return found


@needs_kserve
@pytest.mark.slow
def test_four_microscopes_share_a_server_that_is_killed_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tritonclient.grpc", reason="needs the extra [fleet]")
    model, port = tiny_model.write(tmp_path), free_port()
    write_repository(model, tmp_path / "repository")
    monkeypatch.setenv(VARIABLE, f"127.0.0.1:{port}")
    file = read_model(model)
    (remote,) = FleetBackend().candidates(file, LoadOptions(1))
    local = Candidate("onnxruntime fp32", lambda: OnnxEngine(file, threads=1))
    with load_engine(model, backend="onnxruntime", threads=1) as engine:
        expected = engine.predict(tiny_model.stack())
    with ExitStack() as opened:
        first = opened.enter_context(kserve(tmp_path / "repository", port))
        until = time.monotonic() + 60
        while not remote.back() and time.monotonic() < until:
            time.sleep(0.1)
        scopes = [opened.enter_context(FallbackEngine([remote, local], look_s=0.1)) for _ in range(4)]
        done: Counter[int] = Counter()
        stop = time.monotonic() + 3

        def acquire(number: int) -> None:
            while time.monotonic() < stop:
                prediction = scopes[number].predict(tiny_model.stack())
                assert prediction.engine == f"fleet 127.0.0.1:{port} fp16"
                np.testing.assert_allclose(prediction.mean, expected.mean, atol=1e-5)
                done[number] += 1

        threads = [threading.Thread(target=acquire, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(done) == 4 and min(done.values()) > 0.5 * max(done.values())
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert all("onnxruntime" in scope.predict(tiny_model.stack()).engine for scope in scopes)
        opened.enter_context(kserve(tmp_path / "repository", port))
        assert all("fleet" in predict_until(scope, "fleet") for scope in scopes)
    assert served_name(file.info).startswith("tiny_")
