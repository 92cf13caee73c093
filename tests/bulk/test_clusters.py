"""The same unit on a Dask or Ray cluster; a worker that is killed in the middle changes nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from acq_isl.bulk.executors import Dask, Ray
from acq_isl.bulk.run import predict_stored
from acq_isl.bulk.work import Chunk, Done
from acq_isl.errors import EngineError
from doubles import tiny_model
from doubles.stored_plate import digest, job, write_plate

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]


class Kill:
    """Kills one of these processes once, when the first field is done."""

    def __init__(self, wanted: str) -> None:
        self._wanted, self.killed = wanted, 0

    def __call__(self, chunk: Chunk, done: Done) -> None:
        for process in psutil.process_iter(["cmdline"]):
            words = " ".join(process.info["cmdline"] or ())
            if not self.killed and self._wanted in words and process.pid != os.getpid():
                self.killed = process.pid
                os.kill(process.pid, signal.SIGKILL)


@pytest.fixture
def alone(tmp_path: Path) -> tuple[Path, Path, dict[str, str]]:
    """A model, a plate, and what one process makes of it."""
    model, plate = tiny_model.write(tmp_path), write_plate(tmp_path / "plate.ome.zarr")
    predict_stored([plate], job(model, tmp_path / "alone", measure=True))
    return model, plate, digest(tmp_path / "alone")


def test_dask(alone: tuple[Path, Path, dict[str, str]], tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed", reason="needs the extra [dask]")
    model, plate, expected = alone
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        pids = [info["pid"] for info in cluster.scheduler.identity()["workers"].values() if "pid" in info]
        workers = pids or [worker.pid for worker in cluster.workers.values()]
        killed = []

        def kill(chunk: Chunk, done: Done) -> None:
            if not killed:
                killed.append(workers[0])
                os.kill(workers[0], signal.SIGKILL)

        out = tmp_path / "out"
        todo = job(model, out, measure=True)
        summary = predict_stored([plate], todo, Dask(cluster.scheduler_address), watch=kill)
    assert killed and summary.complete, summary.failed
    assert digest(out) == expected


@pytest.fixture
def ray_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray cluster of two processors."""
    pytest.importorskip("ray", reason="needs the extra [ray]")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    start = ["start", "--head", "--block", "--num-cpus=2", f"--port={port}", "--include-dashboard=false"]
    run = "from ray.scripts.scripts import main; main()"
    with subprocess.Popen([sys.executable, "-c", run, *start], stdout=subprocess.PIPE, text=True) as head:
        assert head.stdout is not None
        for line in head.stdout:
            if "Ray runtime started" in line:
                break
        yield f"127.0.0.1:{port}"
        head.terminate()


def test_ray(alone: tuple[Path, Path, dict[str, str]], ray_address: str, tmp_path: Path) -> None:
    model, plate, expected = alone
    kill, out = Kill("ray::do_chunk"), tmp_path / "out"
    summary = predict_stored([plate], job(model, out, measure=True), Ray(ray_address), watch=kill)
    assert kill.killed and summary.complete, summary.failed
    assert digest(out) == expected


def test_a_cluster_that_is_not_there_is_told(
    alone: tuple[Path, Path, dict[str, str]], tmp_path: Path
) -> None:
    pytest.importorskip("distributed", reason="needs the extra [dask]")
    model, plate, _ = alone
    with pytest.raises(EngineError, match="no Dask cluster at"):
        predict_stored([plate], job(model, tmp_path / "out"), Dask("tcp://127.0.0.1:9"))
