"""An engine that ends in the middle of a run is started again, a few times, and everybody is told."""

from __future__ import annotations

import os
import queue
import signal
import sys
import time
from pathlib import Path

import pytest

from acq_isl.errors import EngineError
from acq_isl.session.engine_keeper import RECOVERED_S, EngineKeeper
from acq_isl.stream.process import EngineProcess, Rung


class Process:
    """Ends again after every start, which may fail, once it has lived for ``lives_s``."""

    def __init__(self, *starts: bool, code: int | None = -9, lives_s: float = 0.0) -> None:
        self._code: int | None = code
        self._starts = list(starts)
        self.started: list[str] = []
        self.now_s = 0.0
        self.lives_s = lives_s

    @property
    def ended_with(self) -> int | None:
        self.now_s += self.lives_s
        return self._code

    def restart(self, rung: Rung | None = None) -> None:
        self.started.append("" if rung is None else rung.title)
        self.now_s += 2.0
        if not self._starts.pop(0):
            raise EngineError("it does not serve")

    def stop(self) -> None:
        self._code = None if self._code is None else 0


def watch(
    process: Process, notes: int, pauses_s: tuple[float, ...] = (0.0, 0.0)
) -> list[tuple[str, str, str]]:
    """What the keeper says, until it has said so much."""
    told: queue.Queue[tuple[str, str, str]] = queue.Queue()
    with EngineKeeper(process, lambda *note: told.put(note), pauses_s, lambda: process.now_s):
        return [told.get(timeout=30) for _ in range(notes)]


def test_it_is_started_a_few_times_and_then_left_alone() -> None:
    first, second, last = watch(Process(True, False), 3)
    assert first == (
        "start the engine again, 1 of 2",
        "its process ended with code -9 in the middle of the run",
        "done: it serves after 2.0 s",
    )
    assert second[0] == "start the engine again, 2 of 2" and second[2] == "failed: it does not serve"
    assert last[0] == "leave the engine alone" and "stacks wait; " in last[2]


def test_an_engine_that_served_for_long_may_be_started_as_often_again() -> None:
    process = Process(*[True] * 9, lives_s=RECOVERED_S + 1)
    assert [note[0][-6:] for note in watch(process, 3)] == ["1 of 2"] * 3


def test_a_running_engine_is_not_touched_and_the_end_does_not_wait() -> None:
    assert watch(Process(code=None), 0, (1e6,)) == []
    assert watch(Process(code=1), 0, (1e6,)) == []  # it leaves in the middle of a pause


def test_the_end_of_a_run_does_not_wait_for_an_engine_that_is_being_started(tmp_path: Path) -> None:
    """A real process: the first start serves and ends, the second never says that it serves."""
    script = tmp_path / "engine.py"
    script.write_text(
        "import json, pathlib, sys, time\n"
        "first = pathlib.Path(sys.argv[0]).with_name('first')\n"
        "if first.exists(): time.sleep(600)\n"
        "first.touch()\n"
        "place = pathlib.Path(sys.argv[sys.argv.index('--announce') + 1])\n"
        "place.with_suffix('.tmp').write_text(json.dumps({'endpoint': 'tcp://127.0.0.1:1', 'pid': 1}))\n"
        "place.with_suffix('.tmp').replace(place)\n"
    )
    engine = EngineProcess("a model", startup_timeout_s=300.0, command=(sys.executable, str(script)))
    told: list[tuple[str, str, str]] = []
    with engine:
        first = engine.pid
        with EngineKeeper(engine, lambda *note: told.append(note), (0.0,)):
            deadline = time.monotonic() + 30
            while engine.pid == first and time.monotonic() < deadline:
                time.sleep(0.02)
            assert engine.pid != first
    assert not engine.running
    assert told and told[0][2].startswith("failed: the engine")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL on Windows")
def test_a_killed_engine_predicts_the_rest_of_the_run(tmp_path: Path) -> None:
    """A real engine, killed after the first prediction of a real run."""
    import psutil

    import acq_isl
    from acq_isl.events import Decided, Event, Predicted

    text = f"""
name: killed
microscope: {{kind: simulated, specimen: {{kind: synthetic, seed: 1}}, camera_px: [160, 160]}}
optics: {{modality: phase contrast, polarity: dark}}
overview:
  grid_plan: {{rows: 1, columns: 6}}
  z_plan: {{range: 18, step: 1.5}}
  channels: [{{config: Phase, exposure: 5}}]
engine: {{kind: local, threads: 1}}
output: {tmp_path.as_posix()}
"""
    told: list[Decided] = []
    killed: list[int] = []

    def watch(event: Event) -> None:
        if isinstance(event, Predicted) and not killed:
            engines = [child for child in psutil.Process().children() if "serve" in child.cmdline()]
            killed.extend(engine.pid for engine in engines)
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        elif isinstance(event, Decided):
            told.append(event)

    result = acq_isl.run(acq_isl.Experiment.from_text(text), watch=watch)
    counts = result.record.counts
    assert len(killed) == 1 and (counts.predicted, counts.spooled, counts.lost) == (6 * 13, 0, 0)
    (restart,) = [event for event in told if event.rule == "engine"]
    assert "code -9" in restart.why and restart.done.startswith("done: it serves after")
    assert any("start the engine again, 1 of 3" in warning for warning in result.record.warnings)
    assert "start the engine again, 1 of 3" in result.report.read_text(encoding="utf-8")
    assert result.record.shortfall == ""
