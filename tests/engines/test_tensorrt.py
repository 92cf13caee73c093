"""TensorRT: really built with TensorRT for RTX, run over a readable GPU, and on a real one if any."""

from __future__ import annotations

import dataclasses
import logging
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from acq_isl.engines import fp16 as precision
from acq_isl.engines.agreement import as_inputs, sample_tiles
from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxEngine, OnnxNetwork
from acq_isl.engines.sealed_file import SealedFile
from acq_isl.engines.tensorrt import api as trt_api
from acq_isl.engines.tensorrt.api import Flavour, Messages, load_flavour
from acq_isl.engines.tensorrt.build import build
from acq_isl.engines.tensorrt.compile import check_network, parse
from acq_isl.engines.tensorrt.cuda import Device, OutOfDeviceMemory
from acq_isl.engines.tensorrt.engine import TensorRTEngine
from acq_isl.engines.tensorrt.fp16_values import to_float32
from acq_isl.engines.tensorrt.int8 import make_form
from acq_isl.engines.tensorrt.network import CONTEXTS
from acq_isl.engines.tensorrt.options import BuildOptions, LastBuilt
from acq_isl.engines.tensorrt.plan_cache import PlanStore
from acq_isl.engines.tensorrt.program import Program
from acq_isl.errors import EngineError, ModelError
from acq_isl.manifest import Label
from doubles import cuda_double
from doubles import tensorrt_double as trt_double
from doubles import tiny_model as tiny

HERE = Path(__file__).resolve().parent


FULL = BuildOptions(precision="fp32", field_px=(96, 96))
HALF = BuildOptions(field_px=(96, 96))


@pytest.fixture
def model(tmp_path):
    return tiny.write(tmp_path)


class Bench:
    """Engines over readable GPUs, closed and looked through for leaks at the end."""

    def __init__(self, folder):
        self.store = PlanStore(folder / "plans")
        self._opened = []

    def open(self, model, options=FULL, *, rtx=True, trt=None, **driver):
        if trt is None:
            trt = trt_double.tensorrt(cuda_double.Driver(**driver), rtx=rtx)
        device = Device(driver=trt.driver)
        engine = TensorRTEngine(model, options, store=self.store, device=device, flavour=Flavour(trt))
        self._opened.append((engine, trt.driver))
        return engine, trt

    def close(self):
        for engine, driver in self._opened:
            engine.close()
            engine.close()
            assert driver.leaks() == {}


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.close()


def submit(network, tiles, inv_sd):
    """A batch that was started and whose result was not fetched yet."""
    request = network.request(tiles.shape)
    request.tiles[:] = tiles
    request.start(inv_sd)
    return request


def same(prediction, wanted):
    np.testing.assert_array_equal(prediction.mean, wanted.mean)
    np.testing.assert_array_equal(prediction.spread, wanted.spread)


# -- what comes out, over the double: exactly what ONNX Runtime says


@pytest.mark.parametrize("rtx", [True, False], ids=["rtx", "tensorrt"])
@pytest.mark.parametrize("seed", range(4))
def test_predictions_are_those_of_the_reference_whatever_order_the_gpu_works_in(bench, model, rtx, seed):
    engine, trt = bench.open(model, rtx=rtx, seed=seed)
    with OnnxEngine(model, threads=1) as reference:
        for number, shape in enumerate([(72, 88), (96, 96), (33, 47), (96, 96)]):
            stack = tiny.stack(shape, seed=number)
            same(engine.predict(stack), reference.predict(stack))
    # The graph on tensorrt, the runtime's own on RTX; warmed up in each context of each of the three shapes.
    assert trt.driver.launched == (0 if rtx else 3 * CONTEXTS + 4)


def test_a_field_larger_than_the_profile_is_tiled_and_batched(bench, model):
    options = dataclasses.replace(FULL, profile="bulk")
    engine, trt = bench.open(model, options)
    stack = tiny.stack((100, 200))
    before = trt.executed
    with OnnxEngine(model, threads=1) as reference:
        np.testing.assert_allclose(engine.predict(stack).mean, reference.predict(stack).mean, atol=1e-5)
    # One batch of all tiles: each context of its shape compiles and then proves its graph, and itself.
    assert trt.executed - before == 2 * CONTEXTS + 1


def test_fp16_comes_down_as_two_bytes_and_goes_out_as_float32(bench, model):
    engine, _ = bench.open(model, HALF)
    stack = tiny.stack()
    with OnnxEngine(model, threads=1) as reference:
        wanted = reference.predict(stack)
    got = engine.predict(stack)
    assert got.mean.dtype == np.float32
    assert np.abs(got.mean - wanted.mean).max() < 0.02
    assert np.corrcoef(got.mean.ravel(), wanted.mean.ravel())[0, 1] > 0.999
    assert "fp16" in got.engine
    assert "tensorrt_rtx 1.7.1.116 Readable GPU" in got.engine


def test_every_fp16_number_comes_out_as_it_is():
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    np.testing.assert_array_equal(to_float32(every), every.astype(np.float32))  # NaN and infinity too
    finite = every[np.isfinite(every)].reshape(2, -1)
    np.testing.assert_array_equal(to_float32(finite), finite.astype(np.float32))
    assert np.signbit(to_float32(np.array([-0.0], np.float16)))[0] and to_float32(every[:0]).shape == (0,)


def test_results_stay_when_the_next_batch_comes(bench, model):
    network = bench.open(model)[0].network
    feeds = as_inputs(sample_tiles(tiny.MANIFEST, 3))
    batches = [(feeds["stack"][i : i + 1], feeds["inv_sd"][i : i + 1]) for i in range(3)]
    first, _ = network.run(*batches[0])
    kept = first.copy()
    for batch in batches[1:] * CONTEXTS:
        network.run(*batch)
    np.testing.assert_array_equal(first, kept)


def test_two_bytes_for_each_pixel_go_up(bench, model):
    engine, trt = bench.open(model)
    stack = tiny.stack((96, 96))
    engine.predict(stack)  # the shape is ready
    before = trt.driver.copied_up
    engine.predict(stack)
    side = 96 + 2 * tiny.MANIFEST.size_step_px  # with its reflected border
    assert trt.driver.copied_up - before == 2 * tiny.PLANES * side**2 + 4


@pytest.mark.parametrize("options", [FULL, HALF], ids=["fp32", "fp16"])
def test_the_gates_distance_comes_down_in_fp32_and_other_outputs_do_not(bench, tmp_path, options):
    path = tiny.write(tmp_path, manifest=tiny.GATED, defect=tiny.gated)
    engine, _ = bench.open(path, options)
    network, feeds = engine.network, as_inputs(sample_tiles(tiny.GATED, 1))
    assert network.outputs == ("mean", "spread", "distance")
    mean, spread, distance = network.run(feeds["stack"], feeds["inv_sd"])
    wanted = OnnxNetwork(read_model(path), threads=1).run(feeds["stack"], feeds["inv_sd"])
    side = feeds["stack"].shape[2]
    assert mean.shape == spread.shape == (1, 2, side, side)
    assert distance.shape == (1, 2, side // 16, side // 16)
    assert distance.dtype == np.float32
    np.testing.assert_allclose(distance, wanted[2], rtol=0 if options is FULL else 2e-3)
    assert len(engine.predict(tiny.stack()).distances) == 2


def test_a_plan_without_the_gate_is_not_that_of_a_model_with_one(model, tmp_path):
    flavour = Flavour(trt_double.tensorrt(cuda_double.Driver(), rtx=True))
    built = build(model, FULL, store=PlanStore(tmp_path / "p"), flavour=flavour)
    with pytest.raises(EngineError, match=r"another model.*mean, spread, distance out"):
        Program(flavour, built.content, tiny.GATED)


def test_threads_share_an_engine(bench, model):
    engine, _ = bench.open(model, seed=5)
    stacks = [tiny.stack((72, 88 + 8 * (i % 3)), seed=i) for i in range(9)]
    got, start = {}, threading.Barrier(3, timeout=10)

    def use(mine):
        start.wait()
        for index in mine:
            got[index] = engine.predict(stacks[index])

    threads = [threading.Thread(target=use, args=(range(first, 9, 3),)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with OnnxEngine(model, threads=1) as reference:
        for index, stack in enumerate(stacks):
            same(got[index], reference.predict(stack))


def test_batches_overlap_up_to_the_number_of_contexts(bench, model):
    engine, trt = bench.open(model)
    network = engine.network
    feeds = as_inputs(sample_tiles(tiny.MANIFEST, 3))
    tiles = [feeds["stack"][i : i + 1] for i in range(3)]
    inv_sd = [feeds["inv_sd"][i : i + 1] for i in range(3)]
    alone = [network.run(t, s)[0] for t, s in zip(tiles, inv_sd, strict=True)]
    trt.driver.stuck = True
    pending = [submit(network, tiles[i], inv_sd[i]) for i in range(CONTEXTS)]
    third = []
    thread = threading.Thread(target=lambda: third.append(network.run(tiles[2], inv_sd[2])))
    thread.start()
    trt.driver.stuck = False
    results = [p.result()[0] for p in reversed(pending)][::-1]
    thread.join(30)
    for got, wanted in zip([*results, third[0][0]], alone, strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert network.times.batches == 6
    assert network.times.upload_ms > 0


def test_many_field_sizes_do_not_pile_up(bench, model):
    engine, trt = bench.open(model)
    for side in range(40, 120, 8):
        engine.predict(tiny.stack((side, side)))
    # four shapes kept, two contexts each, two inputs and two outputs each, and one scratch for each shape
    assert len(trt.driver.device) == 4 * (CONTEXTS * 4 + 1)


# -- warm-up and kept kernels


def test_kernels_are_compiled_once_and_kept(bench, model, caplog):
    driver = cuda_double.Driver()
    trt = trt_double.tensorrt(driver, rtx=True)
    bench.open(model, trt=trt)[0].close()
    assert (trt.built, trt.compiled) == (1, 1)
    bench.open(model, trt=trt)[0].close()
    assert (trt.built, trt.compiled) == (1, 1)
    kept = next(bench.store.folder.glob("*.kernels"))
    kept.write_bytes(kept.read_bytes()[:-1])
    bench.open(model, trt=trt)[0].close()
    assert trt.compiled == 2
    assert "it will be made again" in caplog.text
    driver.version += 10  # another driver looks for its own
    bench.open(model, trt=trt)[0].close()
    assert trt.compiled == 3


def test_kernels_for_later_shapes_are_kept_when_the_engine_closes(bench, model):
    trt = trt_double.tensorrt(cuda_double.Driver(), rtx=True)
    for compiled in (2, 2):
        engine, _ = bench.open(model, trt=trt)
        engine.predict(tiny.stack((40, 40)))
        engine.close()
        assert trt.compiled == compiled


def test_rtx_captures_graphs_itself_and_compiles_for_the_shape_before_stacks_come(bench, model):
    made = []
    config = trt_double.IRuntimeConfigRtx
    trt = trt_double.tensorrt(cuda_double.Driver(), rtx=True)
    trt.runtime_config = lambda: made.append(config()) or made[-1]
    bench.open(model, trt=trt)
    assert made[0].cuda_graph_strategy is trt_double.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    eager = trt_double.DynamicShapesKernelSpecializationStrategy.EAGER
    assert made[0].dynamic_shapes_kernel_specialization_strategy is eager


def test_kernels_are_kept_as_soon_as_they_are_warm(bench, model):
    bench.open(model)
    assert len(list(bench.store.folder.glob("*.kernels"))) == 1  # the engine is still open


def test_results_may_be_fetched_by_another_thread(bench, model):
    engine, _ = bench.open(model)
    feeds = as_inputs(sample_tiles(tiny.MANIFEST, 1))
    pending, got = submit(engine.network, feeds["stack"], feeds["inv_sd"]), []
    thread = threading.Thread(target=lambda: got.append(pending.result()))
    thread.start()
    thread.join(30)
    np.testing.assert_array_equal(got[0][0], engine.network.run(feeds["stack"], feeds["inv_sd"])[0])


def test_the_first_stack_of_the_usual_size_finds_everything_ready(bench, model):
    engine, trt = bench.open(model)
    executed, blocks = trt.executed, len(trt.driver.device)
    engine.predict(tiny.stack((96, 96)))
    assert (trt.executed, len(trt.driver.device)) == (executed + 1, blocks)


# -- a plan that was built before is the one that is served


BEFORE = (
    ("exactly the field", [(96, 96), (200, 120)], LastBuilt("fp32", (96, 96)), (96, 96)),
    ("no such field: the latest", [(96, 96), (200, 120)], LastBuilt("fp32", (64, 64)), (200, 120)),
    ("no field known: the latest", [(96, 96), (200, 120)], LastBuilt("fp32"), (200, 120)),
    ("another precision", [(96, 96)], LastBuilt("fp16", (64, 64)), None),
    ("nothing", [], LastBuilt("fp32", (64, 72)), None),
)


@pytest.mark.parametrize(("built", "wish", "served"), [b[1:] for b in BEFORE], ids=[b[0] for b in BEFORE])
def test_what_was_built_is_what_is_served(bench, model, built, wish, served):
    trt = trt_double.tensorrt(cuda_double.Driver(), rtx=True)
    for field in built:
        options = BuildOptions(precision="fp32", field_px=field, targets=("sm89",))
        build(model, options, store=bench.store, flavour=Flavour(trt))
    before = trt.built
    engine, _ = bench.open(model, wish, trt=trt)
    assert trt.built == before + (served is None)
    field, executed = wish.field_px or served, trt.executed
    engine.predict(tiny.stack(field))
    assert trt.executed == executed + 1  # the camera's field was warm
    notes = {plan.note.field_px: plan.note.key for plan in bench.store.list()}
    assert (served or wish.field_px) in notes


def test_a_plan_for_another_gpu_is_not_served(bench, model):
    trt = trt_double.tensorrt(cuda_double.Driver(), rtx=True)
    build(model, BuildOptions(targets=("sm86",)), store=bench.store, flavour=Flavour(trt))
    bench.open(model, LastBuilt(field_px=(96, 96)), trt=trt)
    assert trt.built == 2
    assert {plan.note.key.targets for plan in bench.store.list()} == {("sm86",), ()}


def test_after_an_update_of_tensorrt_the_same_options_are_built_again(bench, model):
    old, new = (trt_double.tensorrt(cuda_double.Driver(), rtx=True, version=v) for v in ("1.7", "1.8"))
    options = BuildOptions(profile="bulk", field_px=(200, 200))
    build(model, options, store=bench.store, flavour=Flavour(old))
    bench.open(model, LastBuilt(), trt=new)
    keys = [plan.note.key for plan in bench.store.list()]
    assert [(key.profile, key.version) for key in keys] == [("bulk", "1.7"), ("bulk", "1.8")]


def test_int8_is_served_once_it_was_accepted(bench, tmp_path):
    model = tiny.uncounted(tmp_path)
    make_form(read_model(model), [tiny.stack((520, 520))], threads=1)
    trt = trt_double.tensorrt(cuda_double.Driver(), rtx=False)
    engine, _ = bench.open(model, LastBuilt("int8", (96, 96)), trt=trt)
    with OnnxEngine(model, threads=1) as reference:
        wanted, got = (one.predict(tiny.stack((96, 96))).mean for one in (reference, engine))
    assert 0.995 < np.corrcoef(wanted.ravel(), got.ravel())[0, 1] < 1
    assert "int8" in engine.name


def test_times_of_kernels_are_kept_for_the_next_build_of_plain_tensorrt(bench, model, caplog):
    trt = trt_double.tensorrt(cuda_double.Driver(), rtx=False)
    bench.open(model, FULL, trt=trt)[0].close()
    assert (trt.built, trt.timed) == (1, 1)
    for plan in bench.store.folder.glob("*.plan"):
        plan.unlink()
    bench.open(model, FULL, trt=trt)[0].close()
    assert (trt.built, trt.timed) == (2, 1)
    kept = next(bench.store.folder.glob("*.timings"))
    SealedFile(kept).save(b'["another GPU"]')
    bench.open(model, HALF, trt=trt)[0].close()
    assert "do not fit any more" in caplog.text and trt.timed == 2
    rtx = trt_double.tensorrt(cuda_double.Driver(), rtx=True)
    bench.open(model, FULL, trt=rtx)[0].close()  # its double fails if it is asked for times
    assert len(list(bench.store.folder.glob("*.timings"))) == 1


# -- what goes wrong


def test_memory_that_runs_out_means_smaller_tiles_and_is_said(bench, model, caplog):
    stack = tiny.stack((400, 400))
    engine, _ = bench.open(model, memory_bytes=8_000_000)
    with caplog.at_level(logging.WARNING):
        got = engine.predict(stack)
    with OnnxEngine(model, threads=1) as reference:
        np.testing.assert_allclose(got.mean, reference.predict(stack).mean, atol=1e-5)
    assert "memory is too small" in caplog.text
    assert any("memory is too small" in warning for warning in got.warnings)


def test_a_gpu_too_small_for_the_smallest_tile_is_an_error(bench, model):
    trt = trt_double.tensorrt(cuda_double.Driver(memory_bytes=1000), rtx=True)
    with pytest.raises(OutOfDeviceMemory, match="smaller tiles, or close other programs"):
        bench.open(model, trt=trt)
    assert trt.driver.leaks() == {}


def test_old_shapes_make_room_before_tiles_get_smaller(bench, model, caplog):
    engine, _ = bench.open(model, memory_bytes=3_000_000)
    for side in (96, 104, 112, 120, 128, 136):
        assert engine.predict(tiny.stack((side, side))).warnings == ()
    assert "too small" not in caplog.text


def test_a_plan_of_another_version_is_built_again(bench, model, caplog):
    old = trt_double.tensorrt(cuda_double.Driver(), rtx=True)
    bench.open(model, trt=old)[0].close()
    new = trt_double.tensorrt(cuda_double.Driver(), rtx=True)
    new.mark = b"\1" * 32  # same version by name, yet it refuses: as a driver's update may
    engine, _ = bench.open(model, trt=new)
    assert "does not take the plan; it is built again" in caplog.text
    assert new.built == 1
    engine.predict(tiny.stack())


@pytest.mark.parametrize("rtx", [True, False], ids=["rtx", "tensorrt"])
def test_a_fresh_plan_that_is_refused_is_an_error(tmp_path, model, rtx, monkeypatch):
    trt = trt_double.tensorrt(cuda_double.Driver(), rtx=rtx)
    monkeypatch.setattr(
        trt_double.Builder, "build_serialized_network", lambda *_: trt_double.IHostMemory(200)
    )
    with pytest.raises(EngineError, match=r"does not take the plan.*acq-isl build"):
        TensorRTEngine(
            model,
            FULL,
            store=PlanStore(tmp_path / "p"),
            device=Device(driver=trt.driver),
            flavour=Flavour(trt),
        )
    assert trt.driver.leaks() == {}


def test_a_plan_of_another_model_is_refused(model, tmp_path):
    flavour = Flavour(trt_double.tensorrt(cuda_double.Driver(), rtx=True))
    built = build(model, FULL, store=PlanStore(tmp_path / "p"), flavour=flavour)
    other = tiny.MANIFEST.model_copy(update={"z_offsets_um": (-1.0, 0.0, 1.0)})
    with pytest.raises(EngineError, match=r"another model.*3 planes"):
        Program(flavour, built.content, other)


def test_shapes_outside_of_the_profile_are_refused_before_anything_runs(bench, model):
    engine, trt = bench.open(model)
    executed = trt.executed
    tiles = np.zeros((2, tiny.PLANES, 96, 96, 2), np.uint8)
    with pytest.raises(EngineError, match=r"outside of the plan's profile.*from \(1, 5, 32, 32, 2\)"):
        engine.network.run(tiles, np.ones(2, np.float32))
    assert trt.executed == executed
    engine.predict(tiny.stack())  # and the engine goes on


def test_a_model_that_gives_nan_is_never_shown(bench, tmp_path):
    def poison(model):
        weight = next(w for w in model.graph.initializer if w.name == "second")
        values = onnx.numpy_helper.to_array(weight).copy()
        values[0] = np.nan
        weight.CopyFrom(onnx.numpy_helper.from_array(values, "second"))

    engine, _ = bench.open(tiny.write(tmp_path, defect=poison))
    with pytest.raises(EngineError, match="NaN or infinity"):
        engine.predict(tiny.stack())


def test_a_model_that_fp16_breaks_is_not_built(bench, tmp_path):
    def widen(model):
        weight = next(w for w in model.graph.initializer if w.name == "first")
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 5e4, "first"))

    with pytest.raises(ModelError, match=r"does not survive fp16.*--precision fp32"):
        bench.open(tiny.write(tmp_path, defect=widen), HALF)


def test_after_the_gpu_failed_nothing_more_is_asked_of_it(bench, model):
    engine, trt = bench.open(model)
    trt.driver.broken = cuda_double.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(EngineError, match="ILLEGAL_ADDRESS"):
        engine.predict(tiny.stack((96, 96)))
    trt.driver.broken = None
    with pytest.raises(EngineError, match=r"failed before.*load the engine again"):
        engine.predict(tiny.stack((96, 96)))


def test_a_plan_that_does_not_run_says_what_tensorrt_said(model, tmp_path):
    trt = trt_double.tensorrt(cuda_double.Driver(), rtx=True)
    trt.refuses_to_run = True
    with pytest.raises(EngineError, match=r"could not run the plan.*kernel launch failed"):
        TensorRTEngine(
            model,
            FULL,
            store=PlanStore(tmp_path / "p"),
            device=Device(driver=trt.driver),
            flavour=Flavour(trt),
        )
    assert trt.driver.leaks() == {}


def test_without_graphs_kernels_are_launched_one_by_one(bench, model, monkeypatch, caplog):
    invalid = cuda_double.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    monkeypatch.setattr(cuda_double.Driver, "cuGraphInstantiate", lambda *_: (invalid, None))
    engine, trt = bench.open(model, rtx=False)
    with OnnxEngine(model, threads=1) as reference:
        same(engine.predict(tiny.stack()), reference.predict(tiny.stack()))
    assert trt.driver.launched == 0
    assert "launched one by one" in caplog.text


@pytest.mark.parametrize("rtx", [True, False], ids=["rtx", "tensorrt"])
def test_a_graph_that_computes_nothing_is_found_before_stacks_come(bench, model, monkeypatch, rtx):
    """Its outputs would be those of the run before it."""
    trt = trt_double.tensorrt(cuda_double.Driver(), rtx=rtx)
    run, runs = trt_double.IExecutionContext.execute_async_v3, []

    def first_run_only(context, stream):
        runs.append(1)
        return run(context, stream) if len(runs) == 1 else True

    monkeypatch.setattr(trt_double.IExecutionContext, "execute_async_v3", first_run_only)
    with pytest.raises(EngineError, match="could not write all of mean"):
        bench.open(model, trt=trt)
    assert trt.driver.leaks() == {}


def test_a_closed_engine_says_so(bench, model):
    engine, _ = bench.open(model)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.predict(tiny.stack())


# -- which TensorRT


@pytest.fixture
def installed(monkeypatch):
    def put(**modules):
        for name in ("tensorrt", "tensorrt_rtx"):
            monkeypatch.setitem(sys.modules, name, modules.get(name))

    return put


def double_of(rtx, **changes):
    trt = trt_double.tensorrt(cuda_double.Driver(), rtx=rtx, version="1.7" if rtx else "11.4")
    vars(trt).update(changes)
    return trt


@pytest.mark.parametrize(
    ("capability", "there", "chosen"),
    [
        ("sm89", (True, False), "tensorrt_rtx"),
        (None, (True, False), "tensorrt_rtx"),
        ("sm90", (True, False), "tensorrt"),  # H100: not one of RTX's
        ("sm89", (False,), "tensorrt"),
    ],
)
def test_auto_takes_rtx_where_it_knows_the_gpu(installed, capability, there, chosen):
    installed(**{("tensorrt_rtx" if rtx else "tensorrt"): double_of(rtx) for rtx in there})
    assert load_flavour(capability=capability).name == chosen


def test_what_is_not_installed_names_its_extra(installed):
    installed()
    for name in ("auto", "rtx"):
        with pytest.raises(EngineError, match=r"acq-isl\[rtx\]"):
            load_flavour(name)
    with pytest.raises(EngineError, match=r"acq-isl\[tensorrt\]"):
        load_flavour("tensorrt")
    installed(tensorrt_rtx=double_of(True))
    with pytest.raises(EngineError, match=r"does not run on this GPU.*got: sm90.*acq-isl\[tensorrt\]"):
        load_flavour(capability="sm90")


def test_a_tensorrt_too_old_is_named(installed):
    class OldEngine:
        pass

    installed(tensorrt=double_of(False, __version__="8.6.1", ICudaEngine=OldEngine))
    with pytest.raises(EngineError, match=r"create_runtime_config.*10\.13.*got: 8\.6\.1"):
        load_flavour("tensorrt")


# -- really built: TensorRT for RTX needs no GPU for that


@pytest.fixture(scope="module")
def rtx():
    pytest.importorskip(
        "tensorrt_rtx", exc_type=ImportError, reason="pip install acq-isl[rtx] to build plans"
    )
    return load_flavour("rtx")


def shipped():
    """The model that comes with acq-isl, once it is there, and the tiny one."""
    demo = HERE.parents[1] / "acq_isl" / "models" / "demo.onnx"
    return [pytest.param(None, id="tiny"), *([pytest.param(demo, id="demo")] if demo.is_file() else [])]


@pytest.mark.parametrize("path", shipped())
@pytest.mark.parametrize("precision_name", ["fp16", "fp32"])
def test_what_rtx_understood_is_what_the_manifest_says(rtx, model, path, precision_name):
    file = read_model(path or model)
    form = precision.mixed if precision_name == "fp16" else precision.full
    builder, network = parse(rtx, form(file.content, file.info.output_names), Messages(rtx))
    manifest = file.info.manifest
    check_network(network, rtx, manifest)
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    kind = rtx.trt.DataType.HALF if precision_name == "fp16" else rtx.trt.DataType.FLOAT
    assert {o.dtype for o in outputs if o.name != "distance"} == {kind}
    assert network.get_flag(rtx.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    del network, builder


@pytest.mark.parametrize("path", shipped())
@pytest.mark.parametrize("profile", ["live", "bulk"])
def test_shipped_models_build(rtx, model, path, profile, tmp_path):
    steps = []
    options = BuildOptions(flavour="rtx", profile=profile)
    store = PlanStore(tmp_path / "plans")
    built = build(path or model, options, store=store, progress=steps.append)
    assert built.content[:4] == b"vtrt"
    assert built.note.key.version == rtx.version
    assert len(built.content) > len(precision.mixed(read_model(path or model).content)) / 2
    assert steps[-1].phase == "Building engine"
    assert not build(path or model, options, store=store).fresh


@pytest.fixture(scope="module", params=["exact", "single phase"])
def reference_network(request, tmp_path_factory, shared_data):
    """The published architecture, narrow, from the golden checkpoint."""
    pytest.importorskip("torch", reason="pip install acq-isl[train] to import checkpoints")
    from acq_isl.training.reference.convert import Optics, import_reference

    path = tmp_path_factory.mktemp("reference") / "reference.onnx"
    optics = Optics("phase contrast", "dark", 0.3, tuple(1.5 * (i - 6) for i in range(13)))
    import_reference(shared_data / "isl_golden", path, optics, heads=("DAPI_CONFOCAL",), form=request.param)
    return path


def test_rtx_understands_the_reference_network(rtx, reference_network):
    file = read_model(reference_network)
    builder, network = parse(rtx, precision.mixed(file.content), Messages(rtx))
    check_network(network, rtx, file.info.manifest)
    del network, builder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_reference_network_builds(rtx, reference_network, tmp_path):
    built = build(reference_network, BuildOptions(flavour="rtx"), store=PlanStore(tmp_path / "plans"))
    assert built.note.agreement["pearson nuclei"] > 0.999


@pytest.mark.parametrize("target", ["sm75", "sm86", "sm89", "sm120"])
def test_plans_for_one_gpu_build_without_it(rtx, model, target, tmp_path):
    assert target in rtx.targets
    built = build(
        model, BuildOptions(flavour="rtx", targets=(target,)), store=PlanStore(tmp_path / "p"), flavour=rtx
    )
    assert built.note.key.targets == (target,)


def test_int8_builds(rtx, tmp_path):
    model = tiny.uncounted(tmp_path)
    make_form(read_model(model), [tiny.stack((520, 520))], threads=1)
    built = build(model, BuildOptions(flavour="rtx", precision="int8"), store=PlanStore(tmp_path / "p"))
    assert built.note.key.precision == "int8"


def test_a_wrong_manifest_is_found_when_parsing(rtx, model):
    file = read_model(model)
    third = Label(name="third", marker="none")
    wrong = tiny.MANIFEST.model_copy(update={"labels": (*tiny.MANIFEST.labels, third)})
    _, network = parse(rtx, precision.full(file.content), Messages(rtx))
    with pytest.raises(ModelError, match=r"another way.*\(-1, 3, -1, -1\)"):
        check_network(network, rtx, wrong)


def test_an_operator_rtx_lacks_is_named(rtx):
    def determinant(model):
        node, nodes = onnx.helper.make_node, model.graph.node
        nodes[-1].output[0] = "exponential"
        nodes.append(node("Det", ["active"], ["determinants"]))
        nodes.append(node("ReduceMean", ["determinants"], ["average"]))
        nodes.append(node("Add", ["exponential", "average"], ["spread"]))

    with pytest.raises(ModelError, match=r"cannot use this model.*Det"):
        parse(rtx, precision.full(tiny.content(defect=determinant)), Messages(rtx))


def test_a_file_that_is_no_model_is_refused(rtx):
    with pytest.raises(ModelError, match="cannot use this model"):
        parse(rtx, b"\x08\x0a not a model", Messages(rtx))


def test_without_a_gpu_the_runtime_refuses_in_words(rtx, model, tmp_path):
    try:
        Device().close()
    except EngineError:
        built = build(model, BuildOptions(flavour="rtx"), store=PlanStore(tmp_path / "p"))
        with pytest.raises(EngineError, match="does not take the plan"):
            Program(rtx, built.content, tiny.MANIFEST)
        with pytest.raises(EngineError, match="NVIDIA"):
            TensorRTEngine(model, BuildOptions(flavour="rtx"), store=PlanStore(tmp_path / "p"))
    else:
        pytest.skip("an NVIDIA GPU is here: the gpu tests run instead")


def test_messages_of_tensorrt_reach_the_log_once(caplog):
    flavour = Flavour(double_of(True))
    messages = Messages(flavour)
    with caplog.at_level(logging.DEBUG, logger=trt_api.__name__):
        for level in range(5):
            messages.logger.log(level, f"message {level}")
        messages.logger.log(1, "message 1")
    assert messages.take() == "message 0; message 1"
    assert messages.take() == ""
    assert "message 4" not in caplog.text


# -- on a real GPU


@pytest.fixture(scope="module", params=["rtx", "tensorrt"])
def real(request, tmp_path_factory):
    try:
        device = Device()
    except EngineError as error:
        pytest.skip(f"no NVIDIA GPU: {error.what}")
    try:
        flavour = load_flavour(request.param, capability=device.info.capability)
    except EngineError as error:
        device.close()
        pytest.skip(error.what)
    folder = tmp_path_factory.mktemp("gpu")
    path = tiny.write(folder)
    if flavour.portable and device.info.capability not in flavour.targets:
        device.close()
        pytest.skip(f"{flavour.name} does not run on {device.info.name}")
    return path, PlanStore(folder / "plans"), device, flavour


@pytest.mark.gpu
def test_a_real_gpu_says_what_the_reference_says(real):
    path, store, device, flavour = real
    with (
        TensorRTEngine(path, FULL, store=store, device=device, flavour=flavour) as engine,
        OnnxEngine(path) as reference,
    ):
        for shape in ((72, 88), (96, 96), (300, 500), (96, 96)):
            stack = tiny.stack(shape)
            np.testing.assert_allclose(engine.predict(stack).mean, reference.predict(stack).mean, atol=1e-3)
        assert engine.network.times.compute_ms > 0


@pytest.mark.gpu
def test_a_real_gpu_overlaps_batches_and_gives_the_gates_distance(real, tmp_path):
    _, store, _, flavour = real
    path = tiny.write(tmp_path, manifest=tiny.GATED, defect=tiny.gated)
    feeds = as_inputs(sample_tiles(tiny.GATED, 4))
    batches = [(feeds["stack"][i : i + 1], feeds["inv_sd"][i : i + 1]) for i in range(4)]
    wanted = [OnnxNetwork(read_model(path)).run(*batch) for batch in batches]
    with TensorRTEngine(path, HALF, store=store, device=Device(), flavour=flavour) as engine:
        pending = [submit(engine.network, *batch) for batch in batches[:CONTEXTS]]
        got = [one.result() for one in pending] + [engine.network.run(*batch) for batch in batches[CONTEXTS:]]
    for (mean, _, distance), (true_mean, _, true_distance) in zip(got, wanted, strict=True):
        assert np.corrcoef(mean.ravel(), true_mean.ravel())[0, 1] > 0.999
        np.testing.assert_allclose(distance, true_distance, rtol=0.01)
