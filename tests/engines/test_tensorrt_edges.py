"""What plain TensorRT does now and then: a card of a like name, no memory for a plan, spoilt timings."""

from __future__ import annotations

import numpy as np
import pytest

from acq_isl.engines.model_file import read_model
from acq_isl.engines.sealed_file import SealedFile
from acq_isl.engines.tensorrt.api import Flavour
from acq_isl.engines.tensorrt.build import build
from acq_isl.engines.tensorrt.compile import _lend_timings
from acq_isl.engines.tensorrt.cuda import Device, GpuInfo
from acq_isl.engines.tensorrt.engine import TensorRTEngine
from acq_isl.engines.tensorrt.options import BuildOptions, LastBuilt, resolved
from acq_isl.engines.tensorrt.plan_cache import PlanStore
from acq_isl.errors import EngineError
from doubles import cuda_double
from doubles import tensorrt_double as trt_double
from doubles import tiny_model as tiny

FULL = BuildOptions(precision="fp32", field_px=(96, 96))


def test_a_card_whose_name_begins_alike_is_another_card(tmp_path):
    model, store = tiny.write(tmp_path), PlanStore(tmp_path / "plans")
    flavour = Flavour(trt_double.tensorrt(cuda_double.Driver(), rtx=False))
    large = GpuInfo("NVIDIA A100", "sm80", 80 << 30, 13_000)
    options = BuildOptions(precision="fp32", profile="bulk", field_px=(200, 200))
    build(model, options, store=store, gpu=large, flavour=flavour)
    small = GpuInfo("NVIDIA A10", "sm86", 24 << 30, 13_000)
    wish, file = LastBuilt("fp32", (96, 96)), read_model(model)
    assert resolved(wish, file, store, large, flavour).profile == "bulk"
    assert resolved(wish, file, store, small, flavour) == FULL


@pytest.mark.parametrize("rtx", [True, False], ids=["rtx", "tensorrt"])
def test_a_plan_that_does_not_fit_into_memory_now_is_not_thrown_away(tmp_path, monkeypatch, rtx):
    model, store = tiny.write(tmp_path), PlanStore(tmp_path / "plans")
    trt = trt_double.tensorrt(cuda_double.Driver(), rtx=rtx)
    flavour = Flavour(trt)
    TensorRTEngine(model, FULL, store=store, device=Device(driver=trt.driver), flavour=flavour).close()

    def no_room(runtime, serialized_engine):
        words = "[defaultAllocator.cpp::allocate::57] Error Code 1: Cuda Runtime (out of memory)"
        runtime._logger.log(trt_double.ILogger.ERROR, words)

    monkeypatch.setattr(trt_double.Runtime, "deserialize_cuda_engine", no_room)
    with pytest.raises(EngineError, match="out of memory"):
        TensorRTEngine(model, FULL, store=store, device=Device(driver=trt.driver), flavour=flavour)
    assert trt.built == 1 and len(store.list()) == 1
    assert trt.driver.leaks() == {}


def test_timings_that_tensorrt_cannot_read_are_taken_anew(tmp_path, caplog):
    class Config:
        def __init__(self):
            self.cache = None

        def create_timing_cache(self, serialized_timing_cache):
            return None if serialized_timing_cache else "empty"

        def set_timing_cache(self, cache, ignore_mismatch):
            assert cache is not None, "pybind11 raises TypeError here"
            self.cache = cache
            return True

    kept, config = SealedFile(tmp_path / "some.timings"), Config()
    kept.save(b"of another driver")
    _lend_timings(config, kept)
    assert config.cache == "empty" and "do not fit any more" in caplog.text


def opened(model, store, trt):
    return TensorRTEngine(model, FULL, store=store, device=Device(driver=trt.driver), flavour=Flavour(trt))


@pytest.mark.parametrize("rtx", [True, False], ids=["rtx", "tensorrt"])
def test_a_driver_too_old_for_a_plan_that_exists_is_said_so(tmp_path, monkeypatch, rtx):
    model, store = tiny.write(tmp_path), PlanStore(tmp_path / "plans")
    trt = trt_double.tensorrt(cuda_double.Driver(), rtx=rtx)
    opened(model, store, trt).close()

    def no_object(runtime, module, logger):
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt_double.Runtime, "__init__", no_object)
    with pytest.raises(EngineError, match="update the NVIDIA driver"):
        opened(model, store, trt)
    assert trt.built == 1 and trt.driver.leaks() == {}


@pytest.mark.parametrize("call", ["create_execution_context", "execute_async_v3"])
def test_where_tensorrt_itself_lacks_memory_tiles_become_smaller(tmp_path, monkeypatch, caplog, call):
    model, store = tiny.write(tmp_path), PlanStore(tmp_path / "plans")
    trt = trt_double.tensorrt(cuda_double.Driver(), rtx=False)
    kind = {
        "create_execution_context": trt_double.ICudaEngine,
        "execute_async_v3": trt_double.IExecutionContext,
    }[call]
    works, left = getattr(kind, call), [1, 1]  # the second time after room was made

    def twice_without_room(made, argument):
        if left and left.pop():
            logger = made.logger if kind is trt_double.ICudaEngine else made._engine.logger
            logger.log(trt_double.ILogger.ERROR, "Error Code 2: OutOfMemory (Requested size was 9 bytes.)")
            return None
        return works(made, argument)

    monkeypatch.setattr(kind, call, twice_without_room)
    options = BuildOptions(precision="fp32", profile="bulk", field_px=(200, 200))
    device = Device(driver=trt.driver)
    with TensorRTEngine(model, options, store=store, device=device, flavour=Flavour(trt)) as engine:
        assert np.isfinite(engine.predict(tiny.stack((100, 200))).mean).all()
    assert "memory is too small" in caplog.text
    assert trt.driver.leaks() == {}
