"""Which engine is chosen, that it is remembered, and what happens when one fails."""

import threading

import numpy as np
import pytest

from acq_isl.engines import load_engine
from acq_isl.engines import selection as choice
from acq_isl.engines.backend import Candidate
from acq_isl.engines.backends import Found, find_engines
from acq_isl.engines.fallback import FallbackEngine
from acq_isl.engines.model_file import ModelFile, ModelInfo
from acq_isl.engines.predictor import Predictor
from acq_isl.engines.selection import Selection, sample_stack, select
from acq_isl.errors import EngineError, ModelError, StackRefused
from acq_isl.manifest import Label, Manifest

MANIFEST = Manifest(
    name="flat",
    version="1",
    licence="BSD-3-Clause",
    description="For tests.",
    modality="phase contrast",
    polarity="dark",
    pixel_size_um=0.3,
    z_offsets_um=(-1.0, 0.0, 1.0),
    high_pass_um=3.0,
    labels=(Label(name="nuclei", marker="DAPI"),),
    min_tile_px=32,
    halo_px=0,
    size_step_px=8,
    trained_on="nothing",
)
MODEL = ModelFile(b"", ModelInfo("flat.onnx", "ab" * 32, 1, MANIFEST, 20, (), ()))
STACK = sample_stack(MODEL, 96)


class Flat:
    """Answers its own number everywhere, after work that grows with it; or fails when told."""

    outputs = ("mean", "spread")

    def __init__(self, name, number, *, fails=lambda: False):
        self.name, self._number, self._fails, self.runs, self.closed = name, number, fails, 0, False

    def run(self, tiles, inv_sd):
        self.runs += 1
        if self.closed or self._fails():
            raise EngineError(f"{self.name} broke", fix="nothing")
        for _ in range(self._number):
            np.sort(np.arange(100_000)[::-1] % 977)
        mean = np.full((len(tiles), 1, *tiles.shape[2:4]), self._number, np.float32)
        return mean, np.ones_like(mean)

    def close(self):
        self.closed = True


def flat(name, number, **how):
    network = Flat(name, number, **how)
    return Candidate(name, lambda: Predictor(MODEL.info, network)), network


def missing(name, error=EngineError):
    def opened():
        raise error(f"{name} is not there", fix="install it")

    return Candidate(name, opened)


# --- choosing ---


def test_the_fastest_is_chosen_and_said(tmp_path):
    found = [flat("slow fp32", 30)[0], flat("fast fp32", 1)[0]]
    chosen = select(MODEL, found, threads=1, folder=tmp_path)
    assert chosen.order == ("fast fp32", "slow fp32") and not chosen.failed
    said = chosen.reason("fast fp32")
    assert said.startswith("fast fp32:") and "slow fp32" in said and "measured on this machine on 20" in said


def test_it_is_measured_once(tmp_path):
    backend, network = flat("a fp32", 1)
    first = select(MODEL, [backend, flat("b fp32", 2)[0]], threads=1, folder=tmp_path)
    runs = network.runs
    again = select(MODEL, [backend, flat("b fp32", 2)[0]], threads=1, folder=tmp_path)
    assert again == first and network.runs == runs > 1


def fresh():
    return [flat("a fp32", 1)[0]]


def another_model(tmp_path):
    other = ModelFile(b"", ModelInfo("o", "cd" * 32, 1, MANIFEST, 20, (), ()))
    select(other, fresh(), threads=1, folder=tmp_path)


def another_engine(tmp_path):
    select(MODEL, [flat("new fp32", 1)[0]], threads=1, folder=tmp_path)


def other_threads(tmp_path):
    select(MODEL, fresh(), threads=2, folder=tmp_path)


def damaged(tmp_path):
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:-20])
    select(MODEL, fresh(), threads=1, folder=tmp_path)


@pytest.mark.parametrize("change", [another_model, another_engine, other_threads, damaged])
def test_whatever_it_depends_on_is_measured_again(tmp_path, monkeypatch, change):
    select(MODEL, fresh(), threads=1, folder=tmp_path)
    measured = []
    kept = choice._measured
    monkeypatch.setattr(choice, "_measured", lambda *given: measured.append(1) or kept(*given))
    select(MODEL, fresh(), threads=1, folder=tmp_path)
    assert not measured
    change(tmp_path)
    assert measured


def test_what_cannot_be_used_is_left_out_and_told(tmp_path, caplog):
    broken, _ = flat("breaks fp32", 1, fails=lambda: True)
    found = [missing("gone fp16"), missing("odd fp32", ModelError), broken, flat("works fp32", 1)[0]]
    chosen = select(MODEL, found, threads=1, folder=tmp_path)
    assert chosen.order == ("works fp32",) and set(chosen.failed) == {"gone fp16", "odd fp32", "breaks fp32"}
    assert "gone fp16 cannot be used" in caplog.text and "install it" in caplog.text


def test_no_engine_at_all_is_an_error(tmp_path):
    with pytest.raises(EngineError, match=r"no engine runs model.*gone fp16 is not there"):
        select(MODEL, [missing("gone fp16")], threads=1, folder=tmp_path)


def test_a_choice_that_cannot_be_kept_is_still_one(tmp_path, caplog):
    file = tmp_path / "file"
    file.write_text("no folder")
    assert select(MODEL, fresh(), threads=1, folder=file / "x").order == ("a fp32",)
    assert "cannot be remembered" in caplog.text or "cannot be used" in caplog.text


def test_a_back_end_that_failed_is_tried_again_after_a_while(tmp_path):
    def chosen():
        return select(MODEL, [missing("gone fp16"), *fresh()], threads=1, folder=tmp_path)

    first = chosen()
    assert chosen() == first
    (file,) = tmp_path.iterdir()
    earlier = first.model_copy(update={"chosen_at": "2026-01-01T00:00:00+00:00"})
    file.write_text(earlier.model_dump_json(), "utf-8")
    assert chosen().chosen_at > earlier.chosen_at
    file.write_text(earlier.model_copy(update={"failed": {}}).model_dump_json(), "utf-8")
    assert chosen().chosen_at == earlier.chosen_at


def test_every_reason_names_what_failed():
    failed = Selection(machine=("m",), took_ms={"a": 2.0}, failed={"b": "no driver"}, chosen_at="2026-11-22")
    assert "b cannot be used: no driver; measured on this machine" in failed.reason("a")


def test_every_reason_names_the_others():
    chosen = Selection(
        machine=("m",), took_ms={"a": 2.0, "b": 1.0}, failed={}, chosen_at="2026-11-22T00:00:00"
    )
    assert chosen.order == ("b", "a")
    assert chosen.reason("b") == "b: 1 ms for 512x512 pixels; a 2 ms; measured on this machine on 2026-11-22"


# --- names ---


def test_a_name_is_found_in_full_or_by_its_runtime():
    found = [flat("openvino bf16", 1)[0], flat("openvino fp32", 1)[0], flat("onnxruntime fp32", 1)[0]]
    assert Found(found, ()).named("openvino").name == "openvino bf16"
    assert Found(found, ()).named("openvino fp32").name == "openvino fp32"
    with pytest.raises(EngineError, match=r"no engine 'abacus'.*wanted: auto, openvino bf16.*pip install"):
        Found(found, ()).named("abacus")


def test_onnxruntime_is_always_there():
    last = find_engines(MODEL).candidates[-1]
    assert last.name == "onnxruntime fp32" and last.automatic


def test_the_demo_model_says_what_it_runs_on():
    with load_engine("demo", threads=1, backend="onnxruntime") as engine:
        assert engine.name == "onnxruntime cpu fp32" and engine.why == ""
    with pytest.raises(EngineError, match="no engine 'abacus'"):
        load_engine("demo", backend="abacus")


# --- falling back ---


def test_the_first_engine_does_the_work():
    backend, network = flat("first", 1)
    with FallbackEngine([backend, missing("second")], "because") as engine:
        prediction = engine.predict(STACK)
        assert engine.name == "first" and engine.why == "because" and engine.manifest == MANIFEST
    assert prediction.warnings == () and prediction.mean.max() == 1 and network.closed


def test_what_was_seen_while_a_stack_arrived_is_good_for_every_engine():
    first, network = flat("gpu", 1, fails=lambda: True)
    with FallbackEngine([first, flat("cpu", 2)[0]]) as engine:
        statistics = engine.begin_statistics(STACK.info)
        statistics.add(0, STACK.pixels[0])
        assert engine.predict(STACK, statistics).mean.max() == 2 and network.runs == 1


def test_an_engine_that_cannot_be_loaded_is_passed_over(caplog):
    with FallbackEngine(
        [missing("gpu"), missing("other", ModelError), flat("cpu", 2)[0]], "because"
    ) as engine:
        prediction = engine.predict(STACK)
        assert engine.name == "cpu" and "gpu cannot be used: gpu is not there" in engine.why
    assert any("gpu cannot be used" in warning and "cpu" in warning for warning in prediction.warnings)
    assert "going on with cpu" in caplog.text


def test_an_engine_that_fails_hands_the_stack_to_the_next():
    first, network = flat("gpu", 1, fails=lambda: network.runs > 1)
    with FallbackEngine([first, missing("none"), flat("cpu", 2)[0]]) as engine:
        assert engine.predict(STACK).mean.max() == 1
        second = engine.predict(STACK)
        assert second.mean.max() == 2 and second.engine == "cpu"
        assert any("gpu failed: gpu broke" in warning for warning in second.warnings)
        assert network.closed
        assert engine.predict(STACK).warnings == second.warnings


def test_the_last_failure_is_raised():
    first, _ = flat("gpu", 1, fails=lambda: True)
    second, _ = flat("cpu", 1, fails=lambda: True)
    engine = FallbackEngine([first, second])
    with pytest.raises(EngineError, match="cpu broke"):
        engine.predict(STACK)
    with pytest.raises(ModelError, match="b is not there"):
        FallbackEngine([missing("a"), missing("b", ModelError)])


def test_a_refused_stack_is_no_failure_of_the_engine():
    with FallbackEngine([flat("gpu", 1)[0], flat("cpu", 2)[0]]) as engine:
        dark = sample_stack(MODEL, 96)
        dark.pixels.flags.writeable = True
        dark.pixels[:] = 5
        with pytest.raises(StackRefused):
            engine.predict(dark)
        assert engine.name == "gpu"


def test_a_closed_engine_does_not_go_on():
    engine = FallbackEngine([flat("gpu", 1)[0], flat("cpu", 2)[0]])
    engine.close()
    with pytest.raises(EngineError, match="gpu broke"):
        engine.predict(STACK)
    assert engine.name == "gpu"


def test_threads_that_fail_together_change_the_engine_once():
    broken = threading.Event()
    first, _ = flat("gpu", 1, fails=broken.is_set)
    with FallbackEngine([first, flat("cpu", 2)[0], flat("never", 3)[0]]) as engine:
        broken.set()
        results = []
        threads = [threading.Thread(target=lambda: results.append(engine.predict(STACK))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)
        assert [prediction.engine for prediction in results] == ["cpu"] * 4
