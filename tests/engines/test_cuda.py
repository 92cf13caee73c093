"""The device layer: against a GPU one can read, and call by call against the real cuda-bindings."""

from __future__ import annotations

import ast
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from acq_isl.engines.tensorrt import cuda
from acq_isl.engines.tensorrt.cuda import Device, OutOfDeviceMemory
from acq_isl.errors import EngineError
from doubles import cuda_double as double


@pytest.fixture
def driver():
    made = double.Driver()
    yield made
    assert made.leaks() == {}


@pytest.fixture
def device(driver):
    with Device(driver=driver) as made:
        yield made


# -- calls as cuda-bindings declares them


def calls():
    """Every driver function called in cuda.py with the number of its arguments, read from the source."""
    for node in ast.walk(ast.parse(Path(cuda.__file__).read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        for place, argument in enumerate(node.args):
            name = ast.unparse(argument).rpartition(".")[2]
            if isinstance(argument, ast.Attribute) and name.startswith("cu") and name[2].isupper():
                yield name, len(node.args) - place - 1
        name = ast.unparse(node.func).rpartition(".")[2]
        if name.startswith("cu") and len(name) > 2 and name[2].isupper():
            yield name, len(node.args)


CALLS = sorted(set(calls()))


def test_the_source_is_read_whole():
    text = Path(cuda.__file__).read_text("utf-8")
    used = {word for word in double.__dict__["Driver"].__dict__ if word.startswith("cu")}
    assert {name for name, _ in CALLS} == {name for name in used if f".{name}" in text}
    assert len(CALLS) >= 30


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_calls_have_the_arguments_that_cuda_bindings_declares(name, arguments):
    real = pytest.importorskip("cuda.bindings.driver", exc_type=ImportError)
    declared = getattr(real, name).__doc__.strip().partition("\n")[0]
    inner = declared[declared.index("(") + 1 : declared.rindex(")")]
    assert len([part for part in inner.split(",") if part.strip()]) == arguments, declared


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_the_double_takes_the_same_arguments(name, arguments):
    assert getattr(double.Driver, name).__code__.co_argcount - 1 == arguments


@pytest.mark.parametrize("kind", ["CUresult", "CUdevice_attribute", "CUstream_flags", "CUstreamCaptureMode"])
def test_the_double_uses_the_drivers_numbers(kind):
    real = pytest.importorskip("cuda.bindings.driver", exc_type=ImportError)
    for member in getattr(double, kind):
        assert int(getattr(getattr(real, kind), member.name)) == member.value


WITHOUT_DRIVER = [
    ("start", lambda d: Device()),
    ("stream", lambda d: d.stream()),
    ("event", lambda d: d.event()),
    ("free event", lambda d: d.free_event(0)),
    ("allocate", lambda d: d.allocate(64)),
    ("free", lambda d: d.free(64)),
    ("pinned", lambda d: d.pinned(64)),
    ("free pinned", lambda d: d.free_pinned(np.zeros(4, np.uint8))),
    ("copy up", lambda d: d.copy_up(64, np.zeros(4, np.uint8), 0)),
    ("copy down", lambda d: d.copy_down(np.zeros(4, np.uint8), 64, 0)),
    ("record", lambda d: d.record(0, 0)),
    ("hold", lambda d: d.hold(0, 0)),
    ("passed", lambda d: d.passed(0)),
    ("elapsed", lambda d: d.elapsed_ms(0, 0)),
    ("capture", lambda d: d.capture(0, []).__enter__()),
    ("launch", lambda d: d.launch(0, 0)),
    ("free graph", lambda d: d.free_graph(0)),
    ("make current", lambda d: d.make_current()),
]


@pytest.fixture(scope="module")
def no_driver():
    real = pytest.importorskip("cuda.bindings.driver", exc_type=ImportError)
    try:
        real.cuInit(0)
    except RuntimeError:
        return real
    pytest.skip("an NVIDIA driver is here: handles made up for this test would crash it")


@pytest.mark.parametrize(("name", "use"), WITHOUT_DRIVER, ids=lambda v: v if isinstance(v, str) else "")
def test_every_call_reaches_the_real_bindings(name, use, no_driver):
    device = Device.__new__(Device)
    device._cu, device._context = no_driver, no_driver.CUcontext(0)
    with pytest.raises(EngineError, match="NVIDIA"):
        use(device)


def test_without_cuda_bindings_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with pytest.raises(EngineError, match=r"acq-isl\[rtx\]"):
        Device()


# -- what a GPU may say


def test_a_gpu_is_described(device):
    info = device.info
    assert (info.name, info.capability, info.driver) == ("Readable GPU", "sm89", 12_080)


@pytest.mark.parametrize(
    ("changes", "ordinal", "message"),
    [
        ({"version": 11_080}, 0, r"too old.*12\.0.*CUDA 11\.8.*update"),
        ({"devices": 0}, 0, "no GPU 0.*got: 0 GPUs"),
        ({}, 3, "no GPU 3"),
    ],
)
def test_machines_that_will_not_do(driver, changes, ordinal, message):
    vars(driver).update(changes)
    with pytest.raises(EngineError, match=message):
        Device(ordinal, driver=driver)


def test_copies_go_up_and_down_in_order(device):
    up, down, mark, done = device.stream(), device.stream(), device.event(), device.event()
    source, target = device.pinned(1000), device.pinned(1000)
    source[:] = np.arange(1000) % 251
    address = device.allocate(1000)
    device.copy_up(address, source, up)
    device.record(mark, up)
    device.hold(down, mark)
    device.copy_down(target, address, down)
    device.record(done, down)
    device.wait(done, 5)
    np.testing.assert_array_equal(target, source)
    for event in (mark, done):
        device.free_event(event)
    device.free(address)
    for memory in (source, target):
        device.free_pinned(memory)


def test_the_double_shows_a_missing_event():
    seen = set()
    for seed in range(20):
        driver = double.Driver(seed=seed)
        device = Device(driver=driver)
        up, down, done = device.stream(), device.stream(), device.event()
        source, target = device.pinned(8), device.pinned(8)
        source[:] = 7
        address = device.allocate(8)
        device.copy_up(address, source, up)
        device.copy_down(target, address, down)  # nobody told it to wait
        device.record(done, down)
        device.wait(done, 5)
        seen.add(int(target[0]))
    assert seen == {7, 0xAB}


def test_pageable_memory_is_refused(device):
    stream, address = device.stream(), device.allocate(64)
    with pytest.raises(EngineError, match="copy to the GPU"):
        device.copy_up(address, np.zeros(64, np.uint8), stream)
    device.free(address)


def test_memory_that_runs_out_is_an_error_of_its_own(driver):
    driver.memory_bytes = 1000
    with Device(driver=driver) as device, pytest.raises(OutOfDeviceMemory, match="smaller tiles"):
        device.allocate(1001)


def test_a_gpu_that_hangs_is_given_up_on(device, driver):
    stream, event = device.stream(), device.event()
    device.record(event, stream)
    driver.stuck = True
    with pytest.raises(EngineError, match=r"within 0\.01 s"):
        device.wait(event, 0.01)
    device.free_event(event)


def test_a_fault_on_the_gpu_is_told(device, driver):
    stream, event, target = device.stream(), device.event(), device.pinned(8)
    device.copy_down(target, 12345, stream)
    device.record(event, stream)
    with pytest.raises(EngineError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.wait(event, 5)
    driver.broken = None
    device.free_event(event)
    device.free_pinned(target)


def test_other_threads_must_select_the_gpu(device):
    stream, event, caught = device.stream(), device.event(), []

    def use():
        for attempt in (lambda: device.record(event, stream), device.make_current, device.stream):
            try:
                attempt()
            except EngineError as error:
                caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join(10)
    assert ["INVALID_CONTEXT" in str(error) for error in caught] == [True]
    device.free_event(event)


def test_a_graph_repeats_what_was_captured(device, driver):
    stream, done, graphs = device.stream(), device.event(), []
    source, address = device.pinned(16), device.allocate(16)
    with device.capture(stream, graphs):
        device.copy_up(address, source, stream)
    assert driver.copied_up == 0
    for _ in range(3):
        device.launch(graphs[0], stream)
    device.record(done, stream)
    device.wait(done, 5)
    assert driver.copied_up == 3 * 16
    device.free_graph(graphs[0])
    device.free_event(done)
    device.free(address)
    device.free_pinned(source)


def test_a_capture_that_fails_leaves_the_stream_usable(device, driver):
    stream, graphs = device.stream(), []
    with pytest.raises(ValueError, match="no"), device.capture(stream, graphs):
        raise ValueError("no")
    assert graphs == []
    assert driver.streams[stream].captured is None


def test_a_closed_gpu_cannot_be_used(driver):
    device = Device(driver=driver)
    device.close()
    device.close()
    assert device.closed
    with pytest.raises(EngineError, match="closed"):
        device.make_current()
