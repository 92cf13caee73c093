"""A server as a child process: it starts, says where, dies, is killed, and never outlives its parent."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from acq_isl.errors import EngineError
from acq_isl.stack import Prediction, Slice, StackInfo, StackKey, Unpredicted
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.connection import ConnectionSettings
from acq_isl.stream.process import EngineProcess
from acq_isl.stream.spool import Spool

SERVER = """
import argparse, time
from pathlib import Path
import numpy as np
from acq_isl.manifest import Label, Manifest
from acq_isl.stream.model_registry import ServedModel
from acq_isl.stream.process import Parent, serve
from acq_isl.stack import Prediction

class Mean:
    why = "fake: as ONNX Runtime on a stored stack"
    manifest = Manifest(
        name="mean", version="1", licence="BSD-3-Clause", description="mean over z", modality="unknown",
        polarity="dark", pixel_size_um=0.3, z_offsets_um=(-1.0, 0.0, 1.0), high_pass_um=0.0,
        labels=(Label(name="nuclei", marker="DAPI"),), min_tile_px=8, halo_px=0, size_step_px=1,
        trained_on="nothing",
    )
    def predict(self, stack):
        time.sleep(0.02)
        mean = stack.pixels.mean(axis=0, dtype=np.float32)[None]
        return Prediction(stack.info, ("nuclei",), mean, np.zeros_like(mean), "ab", "mean", "fake")
    def close(self):
        Path(options.model).with_name("closed").touch()

parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--bind")
parser.add_argument("--threads")
parser.add_argument("--announce", type=Path)
parser.add_argument("--stop-with-stdin", action="store_true")
options = parser.parse_args()
if options.model.endswith("damaged"):
    raise SystemExit("the model file is damaged")
if options.model.endswith("slow"):
    time.sleep(60)
parent = Parent(options.announce, options.stop_with_stdin)
serve([ServedModel(Mean(), rungs=("fake", "slower"))], options.bind, parent=parent)
"""
PARENT = """
import sys
from acq_isl.stream.process import EngineProcess
process = EngineProcess(sys.argv[2], command=(sys.executable, sys.argv[1]))
process.__enter__()
print(process.pid, flush=True)
sys.stdin.read()
"""
PLANES = 3
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    return sys.executable, str(script)


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("the condition did not come true")
        time.sleep(0.005)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that nobody has waited for yet counts)."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def slice_of(time_: int, z: int) -> Slice:
    info = StackInfo(StackKey(time_, "A", "Phase"), (0.0, 1.0, 2.0), (64, 64), 0.3)
    return Slice(info, z, np.full((64, 64), 100 * time_ + z, np.uint16), time.time())


def client_of(endpoint: str, folder: Path) -> EngineClient:
    link = ConnectionSettings(beat_s=0.05, reconnect_s=0.02, reconnect_max_s=0.05)
    return EngineClient(
        endpoint, spool=Spool(folder), settings=ClientSettings(memory_bytes=4 << 20, link=link)
    )


def test_it_serves_gives_way_and_ends(tmp_path: Path, command: tuple[str, str]) -> None:
    with EngineProcess(tmp_path / "model", command=command, threads=1) as process:
        assert process.why == "fake: as ONNX Runtime on a stored stack"  # a run keeps it in its record
        assert process.engines == ("fake", "slower")
        assert process.endpoint.startswith("tcp://127.0.0.1:")
        assert process.running
        child = psutil.Process(process.pid)
        assert child.nice() >= 10 or sys.platform == "win32"
        with client_of(process.endpoint, tmp_path / "spool") as client:
            for z in range(PLANES):
                client.put(slice_of(1, z))
            (outcome,) = client.drain(20)
    assert isinstance(outcome, Prediction)
    assert np.all(outcome.mean == 101)
    assert not process.running
    assert (tmp_path / "closed").exists(), "it ended by itself and closed its engine"
    process.stop()
    assert list(tmp_path.glob("acq-isl-engine-*")) == []


def test_killed_in_the_middle_of_a_stack_and_restarted(tmp_path: Path, command: tuple[str, str]) -> None:
    """Law of the issue: with a restart every stack ends up predicted, once."""
    with EngineProcess(tmp_path / "model", command=command) as first:
        bind = first.endpoint
        with client_of(bind, tmp_path / "spool") as client:
            wait_until(lambda: client.connected)
            for time_ in range(3):
                for z in range(PLANES):
                    client.put(slice_of(time_, z))
            client.put(slice_of(3, 0))
            psutil.Process(first.pid).kill()
            client.put(slice_of(3, 1))
            wait_until(lambda: not client.connected)
            client.put(slice_of(3, 2))
            for z in range(PLANES):
                client.put(slice_of(4, z))
            with EngineProcess(tmp_path / "model", command=command, bind=bind):
                outcomes = client.drain(20)
                counts = client.counts
    assert sorted(outcome.info.key.time for outcome in outcomes) == [0, 1, 2, 3, 4]
    for outcome in outcomes:
        assert isinstance(outcome, Prediction)
        assert np.all(outcome.mean == 100 * outcome.info.key.time + 1)
    assert (counts.captured, counts.predicted, counts.lost, counts.reconnects) == (15, 5, 0, 1)


def test_killed_and_not_restarted(tmp_path: Path, command: tuple[str, str]) -> None:
    """Law of the issue: without an engine every stack is predicted or on disk."""
    with (
        EngineProcess(tmp_path / "model", command=command) as process,
        client_of(process.endpoint, tmp_path / "spool") as client,
    ):
        wait_until(lambda: client.connected)
        for time_ in range(3):
            for z in range(PLANES):
                client.put(slice_of(time_, z))
            if time_ == 1:
                psutil.Process(process.pid).kill()
        wait_until(lambda: not client.connected)
        outcomes = client.drain(0.1)
        assert client.counts.lost == 0
    assert sorted(outcome.info.key.time for outcome in outcomes) == [0, 1, 2]
    for outcome in outcomes:
        if isinstance(outcome, Unpredicted):
            assert Spool(tmp_path / "spool").read(Path(outcome.where)).complete
    assert isinstance(outcomes[-1], Unpredicted)


def test_one_that_cannot_start_says_why(tmp_path: Path, command: tuple[str, str]) -> None:
    with (
        pytest.raises(EngineError, match=r"before serving.*the model file is damaged"),
        EngineProcess(tmp_path / "damaged", command=command),
    ):
        pass


def test_one_that_takes_too_long_is_ended(tmp_path: Path, command: tuple[str, str]) -> None:
    process = EngineProcess(tmp_path / "slow", command=command, startup_timeout_s=0.2)
    with pytest.raises(EngineError, match=r"within 0.2 s"), process:
        pass
    assert not process.running


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    with (
        pytest.raises(EngineError, match="could not be started"),
        EngineProcess("model", command=(str(tmp_path / "nothing"),)),
    ):
        pass


@posix
def test_it_ends_when_its_parent_is_killed(tmp_path: Path, command: tuple[str, str]) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    arguments = [sys.executable, str(script), command[1], str(tmp_path / "model")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        assert psutil.pid_exists(server)
        parent.kill()
    wait_until(lambda: gone(server))


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_cleanly(tmp_path: Path, command: tuple[str, str], number: signal.Signals) -> None:
    announce = tmp_path / "endpoint.json"
    arguments = [*command, "--model", str(tmp_path / "model"), "--bind", "tcp://127.0.0.1:*"]
    with subprocess.Popen([*arguments, "--announce", str(announce)], stderr=subprocess.PIPE) as process:
        wait_until(announce.exists)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert (tmp_path / "closed").exists()
