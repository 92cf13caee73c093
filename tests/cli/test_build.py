"""From `acq-isl build` to the engine that serves the plan, on a computer with a GPU one can read."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys

import numpy as np
import onnx
import pytest
import tifffile

from acq_isl.cli import app as cli
from acq_isl.engines import load_engine
from acq_isl.engines import selection as choice
from acq_isl.engines.backend import Candidate
from acq_isl.engines.backends import find_engines
from acq_isl.engines.fallback import FallbackEngine
from acq_isl.engines.graph_tags import GRAPH_KEY
from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.engines.tensorrt import cuda
from acq_isl.engines.tensorrt import options as trt_options
from acq_isl.engines.tensorrt.api import ProgressForwarder
from acq_isl.engines.tensorrt.engine import TensorRTEngine
from acq_isl.engines.tensorrt.options import BuildOptions, LastBuilt
from acq_isl.engines.tensorrt.plan_cache import PlanStore
from acq_isl.errors import EngineError, ModelError
from doubles import cuda_double
from doubles import tensorrt_double as trt_double
from doubles import tiny_model as tiny


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACQ_ISL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(choice, "FIELD_PX", 64)  # nothing here depends on who is fastest
    monkeypatch.setattr(choice, "_ROUNDS", 1)
    monkeypatch.setattr(trt_options, "FIELD_PX", (96, 96))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path):
    return tiny.write(tmp_path)


@pytest.fixture
def machine(monkeypatch):
    """Puts a TensorRT and a GPU into this computer."""

    def put(*, rtx=True, version="1.7.1.116", driver=True, **changes):
        gpu = cuda_double.Driver()
        vars(gpu).update(changes)
        trt = trt_double.tensorrt(gpu, rtx=rtx, version=version)
        for name in ("tensorrt_rtx", "tensorrt"):
            monkeypatch.setitem(sys.modules, name, trt if name == trt.__name__ else None)
        trt.__spec__ = importlib.machinery.ModuleSpec(trt.__name__, None)
        if not driver:
            monkeypatch.setattr(cuda_double.Driver, "cuInit", no_driver)
        monkeypatch.setattr(cuda, "load_driver", lambda: gpu)
        return trt

    return put


def no_driver(*_):
    raise RuntimeError("cuda is an NVIDIA driver library and was not found")


@pytest.fixture
def run(monkeypatch, capsys):
    def command(*words):
        monkeypatch.setattr(sys, "argv", ["acq-isl", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, re.sub(r"\s+", " ", said.out + said.err)

    return command


# -- build, then serve


@pytest.mark.parametrize("rtx", [True, False], ids=["rtx", "tensorrt"])
def test_what_is_built_is_said_and_served(machine, run, model, cache, rtx):
    trt = machine(rtx=rtx)
    code, said = run("build", model, "--field", "200x120", "--precision", "fp32")
    assert code == 0
    for words in (
        "tiny 1: plan built in",
        "fp32, live",
        "fastest at 1 of 216 x 136",
        "acq-isl uses it from now on",
    ):
        assert words in said
    (plan,) = (cache / "plans").glob("*.plan")
    assert str(plan) in said and trt.built == 1
    with load_engine(model, backend="tensorrt fp32") as engine:
        assert engine.predict(tiny.stack((200, 120))).engine.endswith("fp32")
    assert trt.built == 1
    assert "plan there already" in run("build", model, "--field", "200x120", "--precision", "fp32")[1]


def test_a_plan_can_be_built_where_no_gpu_is_and_says_where_to_take_it(machine, run, model):
    machine(driver=False)
    code, said = run("build", model, "--target", "sm89", "--target", "sm86", "--profile", "bulk")
    assert code == 0 and "sm86, sm89" in said and "bulk" in said
    assert "no NVIDIA GPU here" in said and "'acq-isl plans' names the folder" in said


def test_a_plan_really_built_from_the_command_line(run, model):
    pytest.importorskip("tensorrt_rtx", exc_type=ImportError, reason="pip install acq-isl[rtx]")
    code, said = run("build", model, "--flavour", "rtx")
    assert code == 0 and "tiles of 32 x 32 to 4128 x 4128" in said
    assert re.search(r"pearson nuclei (0\.9999|1\.0)", said)


BAD = {
    "not a size": (("--field", "wide"), 2, "no field"),
    "too small": (("--field", "8x2000"), 2, "no field"),
    "unknown GPU": (("--target", "sm90"), 1, "no plans for sm90"),
    "int8 of nothing": (("--precision", "int8"), 1, r"no int8 form.*never been made.*--stack"),
    "no such flavour": (("--flavour", "tensorrt"), 1, r"acq-isl\[tensorrt\]"),
}


@pytest.mark.parametrize(("words", "code", "said"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_built_says_what_to_do(machine, run, model, words, code, said):
    machine()
    found = run("build", model, *words)
    assert found[0] == code and re.search(said, found[1])


def test_int8_is_judged_on_the_stacks_that_are_given(machine, run, tmp_path):
    machine()
    model, stack = tiny.uncounted(tmp_path), tmp_path / "mine.tif"
    tifffile.imwrite(stack, tiny.stack((520, 520)).pixels)
    code, said = run("build", model, "--precision", "int8", "--stack", stack)
    assert code == 0 and re.search(r"membranes: correlation of int8 with fp32 0\.99", said)
    assert "hardly computes in it" in said  # RTX: nobody is to expect speed
    with load_engine(model, backend="tensorrt int8") as engine:
        assert "int8" in engine.name


def test_stacks_of_other_planes_calibrate_nothing(machine, run, model, tmp_path):
    machine()
    tifffile.imwrite(tmp_path / "three.tif", np.zeros((3, 64, 64), np.uint16), photometric="minisblack")
    code, said = run("build", model, "--precision", "int8", "--stack", tmp_path / "three.tif")
    assert code == 1 and "no stack for this model" in said and "record 5 planes" in said


def test_plans_are_listed_and_cleared_by_model(machine, run, model, tmp_path, cache):
    machine()
    (tmp_path / "other").mkdir()
    other = tiny.write(tmp_path / "other", manifest=tiny.MANIFEST.model_copy(update={"name": "second"}))
    for one in (model, other):
        assert run("build", one, "--field", 96)[0] == 0
    with load_engine(model, backend="tensorrt", field_px=(96, 96)):
        pass  # leaves its kernels beside the plan
    (cache / "plans" / "0123456789abcdef.plan").write_bytes(b"?")
    said = run("plans")[1]
    assert "tiny 1" in said and "second 1" in said and "damaged" in said and f"3 plans in {cache}" in said
    assert "deleted 3 files" in run("plans", "clear", model)[1]  # plan, note, kernels
    said = run("plans")[1]
    assert "tiny" not in said and "second 1" in said
    run("plans", "clear")
    assert "0 plans" in run("plans")[1] and not list((cache / "plans").iterdir())


def test_ctrl_c_ends_a_build_without_unwinding_through_tensorrt(machine):
    def interrupted(step):
        raise KeyboardInterrupt

    trt = machine()
    from acq_isl.engines.tensorrt.api import Flavour

    forwarder = ProgressForwarder(Flavour(trt), interrupted)
    assert forwarder.tell("Building engine", 0, 6) is False
    assert isinstance(forwarder.failure, KeyboardInterrupt)


# -- bad machines: a sentence with the fix, and the next back end


class Old:
    """An ICudaEngine of long ago."""


MACHINES = {
    "no driver": ({"driver": False}, "no NVIDIA driver was found", "install or update the NVIDIA driver"),
    "old driver": ({"version": 11_080}, r"driver is too old.*CUDA 11\.8", "update the NVIDIA display driver"),
    "no GPU": ({"devices": 0}, "no GPU 0", "nvidia-smi"),
}


@pytest.mark.parametrize(("changes", "why", "fix"), MACHINES.values(), ids=MACHINES.keys())
def test_a_machine_that_cannot_use_tensorrt_predicts_and_says_why(machine, model, changes, why, fix):
    trt = machine()
    if "driver" in changes:
        trt = machine(driver=False)
    vars(trt.driver).update({name: value for name, value in changes.items() if name != "driver"})
    (missing,) = [one for one in find_engines(read_model(model)).unavailable if one.name == "tensorrt_rtx"]
    assert re.search(why, missing.why) and fix in missing.fix and missing.broken
    with load_engine(model, threads=1) as engine:
        assert engine.predict(tiny.stack()).mean.any()
        assert "tensorrt" not in engine.name and re.search(f"tensorrt_rtx is not used: .*{why}", engine.why)
    with pytest.raises(EngineError, match=fix):
        load_engine(model, backend="tensorrt")


@pytest.mark.parametrize(
    ("tagged", "wanted"),
    [(True, {"fp16": True, "fp32": False}), (False, {"fp32": True})],
    ids=["tags", "a file of 0.1"],
)
def test_without_tags_that_say_what_may_be_fp16_fp32_is_what_auto_takes(machine, tmp_path, tagged, wanted):
    def untag(proto):
        props = {e.key: e.value for e in proto.metadata_props if tagged or e.key != GRAPH_KEY}
        onnx.helper.set_model_props(proto, props)

    machine()
    file = read_model(tiny.write(tmp_path, defect=untag))
    found = {one.name: one.automatic for one in find_engines(file).candidates if "tensorrt" in one.name}
    assert found == {f"tensorrt_rtx {precision}": automatic for precision, automatic in wanted.items()}
    with find_engines(file).named("tensorrt").load() as engine:  # over the double
        assert engine.name.endswith(next(iter(wanted))) and "as ONNX Runtime" in engine.parity


def test_without_the_packages_the_extras_are_named(machine, model, monkeypatch):
    machine()
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    missing = {one.name: one for one in find_engines(read_model(model)).unavailable}
    for name, extra in (("tensorrt_rtx", "rtx"), ("tensorrt", "tensorrt")):
        assert missing[name].why == "not installed" and f'acq-isl[{extra}]"' in missing[name].fix
        assert not missing[name].broken


UNFIT = {
    "wrong version": (
        lambda trt, monkeypatch: vars(trt).update(ICudaEngine=Old),
        r"cannot be used: it has no ICudaEngine\.create_runtime_config.*pip install --upgrade",
    ),
    "a GPU that RTX does not know": (
        lambda trt, monkeypatch: vars(trt.driver).update(capability=(9, 0)),
        r"does not run on this GPU.*sm90.*acq-isl\[tensorrt\]",
    ),
    "an operator it lacks": (
        lambda trt, monkeypatch: monkeypatch.setattr(
            trt_double.OnnxParser, "unsupported", frozenset({"Relu"})
        ),
        r"cannot use this model.*Relu.*onnxruntime",
    ),
    "a GPU without memory": (
        lambda trt, monkeypatch: vars(trt.driver).update(memory_bytes=1000),
        r"no GPU memory left.*close other programs",
    ),
}


@pytest.mark.parametrize(("spoil", "why"), UNFIT.values(), ids=UNFIT.keys())
def test_what_tensorrt_cannot_do_the_next_back_end_does(machine, model, monkeypatch, spoil, why):
    trt = machine()
    spoil(trt, monkeypatch)
    with load_engine(model, threads=1) as engine:
        assert engine.predict(tiny.stack()).mean.any()
        assert "tensorrt" not in engine.name and re.search(
            f"tensorrt_rtx fp16 cannot be used: .*{why}", engine.why
        )
    with pytest.raises((EngineError, ModelError), match=why):
        load_engine(model, backend="tensorrt")


def test_where_both_packages_are_installed_auto_takes_the_one_of_the_last_plan(machine, model, monkeypatch):
    rtx = machine()
    plain = trt_double.tensorrt(rtx.driver, rtx=False)
    plain.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt", plain)

    def automatic():
        found = find_engines(read_model(model))
        assert found.named("tensorrt").name == "tensorrt fp16"
        assert found.named("tensorrt_rtx fp32").name == "tensorrt_rtx fp32"
        return [one.name for one in found.candidates if one.automatic and one.name.startswith("tensorrt")]

    assert automatic() == ["tensorrt_rtx fp16"]
    with load_engine(model, backend="tensorrt fp16") as engine:
        assert engine.name.startswith("tensorrt ")
    assert automatic() == ["tensorrt fp16"]


def test_tiles_outside_of_the_profile_go_to_the_next_back_end(machine, model, monkeypatch):
    monkeypatch.setattr(trt_options, "_LIVE_MOST_PX", 96)
    machine()

    def small():
        engine = TensorRTEngine(model, BuildOptions(precision="fp32", field_px=(96, 96)))
        engine._tile_px = None  # what no predictor does by itself: a field larger than the plan, in one piece
        return engine

    with FallbackEngine(
        [Candidate("tensorrt fp32", small), Candidate("cpu", lambda: OnnxEngine(model))]
    ) as engine:
        assert engine.predict(tiny.stack((96, 96))).warnings == ()
        prediction = engine.predict(tiny.stack((200, 200)))
    assert "onnxruntime" in prediction.engine
    assert any("outside of the plan's profile" in warning for warning in prediction.warnings)


def test_a_plan_of_another_gpu_is_built_again_and_served(machine, model, caplog):
    trt = machine()
    with load_engine(model, backend="tensorrt", field_px=(96, 96)):
        pass
    other = machine(name="Another GPU")
    other.mark = b"\2" * 32  # plans of the first are nothing to it
    with load_engine(model, backend="tensorrt") as engine:
        assert engine.predict(tiny.stack()).engine.startswith("tensorrt_rtx")
    assert (trt.built, other.built) == (1, 1) and "it is built again" in caplog.text


def test_the_cameras_field_is_what_is_warm(machine, model):
    trt = machine()
    with load_engine(model, backend="tensorrt", field_px=(150, 90)) as engine:
        executed = trt.executed
        engine.predict(tiny.stack((150, 90)))
        assert trt.executed == executed + 1
    (plan,) = PlanStore().list()
    assert plan.note.field_px == (150, 90) and LastBuilt().field_px is None
