"""An engine that fails makes place for the next one down the ladder, and takes over again when it is back."""

from __future__ import annotations

import os
import queue
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from acq_isl.engines.backend import Candidate
from acq_isl.engines.fallback import FallbackEngine, Ladder
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.errors import EngineError, ExperimentError, ModelError
from acq_isl.experiment.experiment import Experiment, LocalEngine
from acq_isl.session.engine_keeper import RECOVERED_S, EngineKeeper
from acq_isl.session.engine_ladder import rungs
from acq_isl.session.preflight import local_labels
from acq_isl.stack import Outcome, Prediction
from acq_isl.stream.client import EngineClient
from acq_isl.stream.process import EngineProcess, Rung
from acq_isl.stream.spool import Spool
from doubles import serving as fake
from doubles import tiny_model as tiny

ENGINES = ("tensorrt fp16", "openvino bf16", "onnxruntime fp32")
EXPERIMENT = """
name: ladder
overview: {z_plan: {range: 6, step: 1.5}, channels: [{config: Phase, exposure: 5}]}
"""


@pytest.mark.parametrize(
    ("settings", "titles"),
    [
        (LocalEngine(), ENGINES),
        (LocalEngine(smaller_model="small.onnx"), (*ENGINES, "the smaller model small.onnx")),
        (LocalEngine(degrade=False), ENGINES[:1]),
    ],
)
def test_the_ladder_goes_from_the_best_engine_to_the_smaller_model(
    settings: LocalEngine, titles: tuple[str, ...]
) -> None:
    assert tuple(rung.title for rung in rungs(ENGINES, settings)) == titles
    assert len(rungs((), settings)) >= 1


@dataclass
class Process:
    """Serves for a long time with the engines named, else ends at once; every look takes ten seconds."""

    works: set[str]
    code: int | None = -11
    now_s: float = 0.0
    started: list[str] = field(default_factory=list)

    @property
    def ended_with(self) -> int | None:
        self.now_s += 10.0
        return self.code

    def restart(self, rung: Rung | None = None) -> None:
        assert rung is not None
        self.started.append(rung.title)
        self.code = None if rung.title in self.works else -11
        if rung.title == "never serves":
            raise EngineError("it did not serve")

    def stop(self) -> None:
        self.code = 0 if self.code is None else self.code


def watch(process: Process, ladder: list[Rung], notes: int) -> list[tuple[str, str, str]]:
    told: queue.Queue[tuple[str, str, str]] = queue.Queue()
    with EngineKeeper(
        process, lambda *note: told.put(note), (0.0, 0.0), lambda: process.now_s, lambda: ladder
    ):
        return [told.get(timeout=30) for _ in range(notes)]


def test_an_engine_that_ends_twice_makes_place_for_the_next_and_the_last_is_left_alone() -> None:
    process = Process(works=set())
    notes = watch(process, [Rung("a"), Rung("never serves"), Rung("c")], 5)
    assert process.started == ["a", "never serves", "c", "c"]
    assert [note[0] for note in notes] == [
        "start the engine again, 1 of 2",
        "start it with never serves from now on",
        "start it with c from now on",
        "start the engine again, 2 of 2",
        "leave the engine alone",
    ]
    assert notes[1][2] == "failed: it did not serve"


def test_the_best_engine_is_tried_again_and_takes_over_once_it_serves() -> None:
    process = Process(works={"b"})
    ladder = [Rung("a"), Rung("b")]
    notes = watch(process, ladder, 3)
    assert process.started[:4] == ["a", "b", "a", "b"]  # tried in vain, and back to the one that works
    assert (
        notes[2][0] == "try a again" and "b has served for" in notes[2][1] and "again with b" in notes[2][2]
    )
    assert process.now_s > RECOVERED_S

    process = Process(works={"b"})

    class Recovers(Process):
        def restart(self, rung: Rung | None = None) -> None:
            super().restart(rung)
            self.works = {"a", "b"} if rung == ladder[1] else self.works

    process = Recovers(works={"b"})
    notes = watch(process, ladder, 3)
    assert process.started == ["a", "b", "a"] and notes[2][2].startswith("done")


def test_where_engines_must_not_be_mixed_none_takes_over(tmp_path: Path) -> None:
    def broken() -> OnnxEngine:
        raise EngineError("no driver")

    sure = Candidate("onnxruntime fp32", lambda: OnnxEngine(tiny.write(tmp_path), threads=1))
    candidates = [Candidate("tensorrt fp16", broken), sure]
    with FallbackEngine(Ladder(remark="down").rungs(candidates), remark="down") as engine:
        assert engine.predict(tiny.stack()).warnings[:1] == ("down",)
        assert engine.rungs == ("tensorrt fp16", "onnxruntime fp32")
    assert Ladder(skip=1).rungs(candidates) == Ladder(skip=9).rungs(candidates) == [sure]
    with pytest.raises(EngineError, match="no driver"):
        FallbackEngine(Ladder(alone=True).rungs(candidates))


def test_an_engine_that_failed_is_loaded_again_and_takes_over(tmp_path: Path) -> None:
    model, loads, gone = tiny.write(tmp_path), list[int](), threading.Event()

    class Failing(OnnxEngine):
        def predict(self, *args: object, **options: object) -> Prediction:
            raise EngineError("no memory on the device")

    def best() -> OnnxEngine:
        loads.append(len(loads))
        if len(loads) == 1:
            return Failing(model, threads=1)
        if len(loads) == 2 or not gone.is_set():
            raise EngineError("still no memory")
        return OnnxEngine(model, threads=1)

    candidates = [Candidate("best", best), Candidate("sure", lambda: OnnxEngine(model, threads=1))]
    with FallbackEngine(candidates, retry_s=0.01) as engine:
        warned = engine.predict(tiny.stack()).warnings
        assert "no memory on the device" in warned[-1] and "predicted with" in warned[-1]
        gone.set()
        fake.wait_until(lambda: engine.predict(tiny.stack()).warnings == warned[:-1])
    assert len(loads) >= 3


def test_a_smaller_model_must_be_able_to_take_the_place(tmp_path: Path) -> None:
    for name in ("big", "small"):
        (tmp_path / name).mkdir()
    big, small = tiny.write(tmp_path / "big"), tiny.write(tmp_path / "small")
    text = (
        EXPERIMENT + f"model: {big.as_posix()}\nengine: {{kind: local, smaller_model: {small.as_posix()}}}\n"
    )
    local_labels(Experiment.from_text(text))
    tiny.uncounted(tmp_path / "small")
    with pytest.raises(ModelError, match="cannot take the place"):
        local_labels(Experiment.from_text(text))
    for wrong in ("{kind: local, degrade: false, smaller_model: a}", "{kind: local, smaller_model: a}"):
        models = "" if "false" in wrong else "models: [a=x.onnx, b=y.onnx]\n"
        with pytest.raises(ExperimentError, match="smaller_model"):
            Experiment.from_text(f"{EXPERIMENT}{models}engine: {wrong}\n")


CRASHING = """
import os
from acq_isl.engines import Candidate
from acq_isl.engines.onnx import OnnxEngine
class OnnxReferenceBackend:
    name = "crashing"
    def unavailable(self): return None
    def candidates(self, model, options):
        class Crashing(OnnxEngine):
            predicted = 0
            def predict(self, stack, statistics=None):
                if stack.info.key.position == "A1": os._exit(139)
                return super().predict(stack, statistics)
        yield Candidate("crashing fp16", lambda: Crashing(model.info.where, threads=1))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="exit codes of signals")
def test_a_back_end_that_ends_its_process_is_left_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes: the best back end ends its process at every stack of the field."""
    metadata = tmp_path / "site" / "crashing-1.0.dist-info"
    metadata.mkdir(parents=True)
    (tmp_path / "site" / "crashing.py").write_text(CRASHING)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: crashing\nVersion: 1.0\n")
    entry = "[acq_isl.backends]\ncrashing = crashing:OnnxReferenceBackend\n"
    (metadata / "entry_points.txt").write_text(entry)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    )
    model, settings, told = tiny.write(tmp_path), LocalEngine(), list[tuple[str, str, str]]()
    stack, outcomes = tiny.stack(), list[Outcome]()
    choices = tmp_path / "cache" / "choices"
    monkeypatch.setenv("ACQ_ISL_CACHE", str(choices.parent))
    with EngineProcess(model, threads=1, startup_timeout_s=120) as process:
        first, second = process.engines[:2]
        with (
            EngineKeeper(
                process,
                lambda *note: told.append(note),
                (0.0,),
                rungs=lambda: rungs(process.engines, settings),
            ),
            EngineClient(process.endpoint, spool=Spool(tmp_path / "spool")) as client,
        ):
            for z, plane in enumerate(stack.pixels):
                client.put(fake.Slice(stack.info, z, plane, 1.75e9 + z))
            outcomes = client.drain(120)
    (prediction,) = outcomes
    assert isinstance(prediction, Prediction)
    if first.startswith("crashing"):  # else another was measured to be faster, and nothing happened
        assert [note[0] for note in told][-1] == f"start it with {second} from now on"
        assert any("ended the engine's process" in text for text in prediction.warnings)
