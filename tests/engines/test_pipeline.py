"""Batches of tiles in flight: in order, side by side, and none left behind, whatever goes wrong."""

import threading

import numpy as np
import pytest

from acq_isl.engines import pipeline
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.engines.pipeline import AT_ONCE, AsyncNetwork, Field, run_tiles
from acq_isl.engines.tensorrt.api import Flavour
from acq_isl.engines.tensorrt.cuda import Device
from acq_isl.engines.tensorrt.engine import TensorRTEngine
from acq_isl.engines.tensorrt.options import BuildOptions
from acq_isl.engines.tensorrt.plan_cache import PlanStore
from acq_isl.errors import EngineError
from acq_isl.processing.tiling import TileRule, plan_tiles
from doubles import cuda_double
from doubles import tensorrt_double as trt_double
from doubles import tiny_model as tiny

WAIT_S = 20
RULE = TileRule(min_px=32, halo_px=4, step_px=8)
PLAN = plan_tiles((64, 200), RULE, tile_px=64, border_px=8)


def map_in_turn(function, numbers):
    for number in numbers:
        function(number)


def field():
    pixels = np.random.default_rng(0).integers(0, 65535, (3, 64, 200), dtype=np.uint16)
    return Field(pixels, PLAN, np.float32(0.5))


class Recorder:
    """Answers with the sum over planes, and keeps a list of what happened."""

    name, outputs = "recorder", ("mean",)

    def __init__(self, meanwhile=lambda number: None):
        self.threads, self.running, self._meanwhile, self._count = set(), 0, meanwhile, 0

    def run(self, tiles, inv_sd):
        self.running += 1
        self.threads.add(threading.current_thread())
        self._count += 1
        self._meanwhile(self._count)
        answer = (tiles.view("<u2")[..., 0].sum(axis=1, dtype=np.float32) * inv_sd[0])[:, np.newaxis]
        self.running -= 1
        return (answer,)

    def close(self):
        pass


@pytest.mark.parametrize("tiles_per_batch", [1, 2, 3, 100])
def test_batches_come_back_in_order_and_as_they_were_cut(tiles_per_batch):
    network, wanted = Recorder(), field()
    found = list(run_tiles(network, wanted, tiles_per_batch, map_in_turn))
    assert [tile for tiles, _, _ in found for tile in tiles] == list(PLAN.tiles)
    for tiles, (answer,), busy_ms in found:
        cut = pipeline.cut_tiles(wanted.pixels, PLAN, tiles, None, map_in_turn)
        np.testing.assert_array_equal(answer[:, 0], cut.sum(axis=1, dtype=np.float32) / 2)
        assert busy_ms > 0
    alone = tiles_per_batch >= len(PLAN.tiles)
    assert (network.threads == {threading.current_thread()}) == alone


def test_the_next_batch_is_cut_while_one_is_computed(monkeypatch):
    """Each run lasts until the next batch was cut: one after the other it would never end."""
    count = len(PLAN.tiles)
    was_cut = [threading.Event() for _ in range(count + 1)]
    was_cut[count].set()
    waited, cut, number = [], pipeline.cut_tiles, iter(range(count))

    def signalling(*args):
        made = cut(*args)
        was_cut[next(number)].set()
        return made

    monkeypatch.setattr(pipeline, "cut_tiles", signalling)
    network = Recorder(lambda run: waited.append(was_cut[run].wait(WAIT_S)))
    assert len(list(run_tiles(network, field(), 1, map_in_turn))) == count >= 3
    assert all(waited)


def test_never_more_batches_than_there_is_memory_for(monkeypatch):
    made, cut = [], pipeline.cut_tiles
    monkeypatch.setattr(pipeline, "cut_tiles", lambda *args: made.append(args[3].ctypes.data) or cut(*args))
    list(run_tiles(Recorder(), field(), 1, map_in_turn))
    assert len(made) == len(PLAN.tiles) and len(set(made)) <= AT_ONCE


@pytest.mark.parametrize("failing", [1, 2, len(PLAN.tiles)])
def test_an_error_of_the_network_ends_it_and_nothing_runs_on(failing):
    def fail(number):
        if number == failing:
            raise EngineError("it broke", fix="mend it")

    network = Recorder(fail)
    found = []
    with pytest.raises(EngineError, match="it broke"):
        found.extend(tiles for tiles, _, _ in run_tiles(network, field(), 1, map_in_turn))
    assert len(found) <= failing - 1 and not any(thread.is_alive() for thread in network.threads)


def test_who_stops_reading_leaves_nothing_running():
    network = Recorder()
    reading = run_tiles(network, field(), 1, map_in_turn)
    next(reading)
    reading.close()
    assert network.running == 0 and not any(thread.is_alive() for thread in network.threads)


# -- on a GPU, which has places of its own


@pytest.fixture
def gpu(tmp_path):
    """A TensorRT engine over the readable GPU whose tiles are small; closed and looked through for leaks."""
    trt = trt_double.tensorrt(cuda_double.Driver(), rtx=True)
    options = BuildOptions(precision="fp32", field_px=(96, 96))
    engine = TensorRTEngine(
        tiny.write(tmp_path),
        options,
        store=PlanStore(tmp_path / "plans"),
        device=Device(driver=trt.driver),
        flavour=Flavour(trt),
    )
    engine._tile_px = 64
    yield engine, trt.driver
    engine.close()
    assert trt.driver.leaks() == {}


def reference(engine, stack):
    with OnnxEngine(engine.model.where, threads=1, tile_px=64) as other:
        return other.predict(stack)


def test_tiles_are_cut_into_page_locked_memory(gpu, monkeypatch):
    engine, _ = gpu
    assert isinstance(engine.network, AsyncNetwork)
    stack = tiny.stack((150, 170))
    wanted = reference(engine, stack)
    monkeypatch.setattr(np, "copyto", lambda *_: pytest.fail("tiles were copied once more"))
    np.testing.assert_array_equal(engine.predict(stack).mean, wanted.mean)


def test_two_batches_are_on_the_gpu_at_once(gpu, monkeypatch):
    engine, _ = gpu
    engine.predict(tiny.stack((150, 170)))  # the shape is ready
    started, fetched, most = [], [], []
    start, finish = engine.network.start, engine.network.finish
    monkeypatch.setattr(
        engine.network,
        "start",
        lambda *args: started.append(1) or most.append(len(started) - len(fetched)) or start(*args),
    )
    monkeypatch.setattr(engine.network, "finish", lambda context: fetched.append(1) or finish(context))
    engine.predict(tiny.stack((150, 170)))
    assert len(started) >= 4 and max(most) == AT_ONCE


def test_threads_whose_fields_have_many_tiles_do_not_wait_for_each_other_for_ever(gpu):
    engine, _ = gpu
    engine.network._timeout_s = WAIT_S
    stacks = [tiny.stack((150, 170), seed=seed) for seed in range(4)]
    wanted = [reference(engine, stack).mean for stack in stacks]
    got, start = {}, threading.Barrier(len(stacks), timeout=WAIT_S)

    def work(index):
        start.wait()
        got[index] = engine.predict(stacks[index]).mean

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(stacks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * WAIT_S)
    for index, mean in enumerate(wanted):
        np.testing.assert_array_equal(got[index], mean)


def test_a_batch_that_cannot_be_cut_gives_its_place_back(gpu, monkeypatch):
    engine, _ = gpu
    stack = tiny.stack((150, 170))
    wanted, cut, calls = reference(engine, stack).mean, pipeline.cut_tiles, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return cut(*args)

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "cut_tiles", failing)
        with pytest.raises(MemoryError):
            engine.predict(stack)
    np.testing.assert_array_equal(engine.predict(stack).mean, wanted)  # both places are free again


def test_memory_is_not_freed_while_somebody_writes_to_it(gpu):
    """Another thread met an error and closes the engine; tiles are still being cut into its memory."""
    engine, driver = gpu
    network = engine.network
    request = network.request((1, tiny.PLANES, 64, 64, 2))
    network._fail(EngineError("another thread's batch failed"))
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(EngineError, match="another thread's batch failed"):
        network.request((1, tiny.PLANES, 64, 64, 2))
    address = request.tiles.ctypes.data
    request.tiles[:] = 7
    closing.join(0.3)  # time enough to free it, if it does not wait
    assert closing.is_alive() and address in driver.host
    request.release()
    closing.join(WAIT_S)
    assert not closing.is_alive() and address not in driver.host


def test_a_gpu_says_that_it_takes_two_stacks_at_once(gpu):
    engine, _ = gpu
    assert engine.at_once == AT_ONCE
    with OnnxEngine(engine.model.where, threads=1) as other:
        assert other.at_once == 1
