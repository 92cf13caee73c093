"""A user's function that never returns, or wants to end the process, costs no slice and holds up nobody."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acq_isl.errors import AcqIslError, AcquisitionFailed
from acq_isl.hooks import CaptureHook, GuardedAcquisition, Safety, UserHooks, open_measured
from acq_isl.hooks.user_calls import call_within
from acq_isl.rules import Limits
from acq_isl.stack import Slice, StackKey, StackRequest
from acq_isl.stream.callback import Callback

PLANES = 4


@pytest.fixture(scope="module")
def core() -> Iterator[Any]:
    from mm_test_adapters import device_adapter_path
    from pycromanager import Core, start_headless, stop_headless
    from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

    start_headless(str(device_adapter_path()), "MMConfig_demo.cfg", python_backend=True, buffer_size_mb=16)
    core = Core()
    core.set_exposure(1)
    yield core
    stop_headless()
    del Engine.singleton


@pytest.fixture
def forever() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def stack(position: str, exposure_ms: float = 1.0) -> StackRequest:
    z_um = tuple(float(z) for z in range(PLANES))
    return StackRequest(StackKey(0, position, "DAPI"), 0.0, 0.0, z_um, "Channel", "DAPI", exposure_ms)


def ends(*_: Any) -> Any:
    raise SystemExit(3)


class Sink:
    def __init__(self, function: Callable[[Slice], object]) -> None:
        self._function = function

    def put(self, slice_: Slice) -> None:
        self._function(slice_)


# Pycro-Manager's own threads warn of what piles up behind a function that hangs; here a warning ends them.
@pytest.mark.filterwarnings("ignore:Acquisition.*queue size:UserWarning")
@pytest.mark.parametrize("what", ["never returns", "ends the process"])
@pytest.mark.parametrize(
    "name",
    [
        "event_generation", "pre_hardware", "post_hardware", "post_camera", "image_process", "image_saved",
        "notification", "sink",
    ],
)  # fmt: skip
def test_what_was_captured_is_on_disk(
    core: Any, tmp_path: Path, name: str, what: str, forever: threading.Event
) -> None:
    before = set(threading.enumerate())
    bad = ends if what == "ends the process" else lambda *_: forever.wait()
    hooks = UserHooks(**{name: bad}) if name != "sink" else UserHooks()
    acquisition = GuardedAcquisition(
        tmp_path, "m", limits=Limits(), hooks=hooks, sink=Sink(bad) if name == "sink" else None,
        safety=Safety(watchdog_s=1.0),
    )  # fmt: skip
    began_s, said = time.monotonic(), "did not end" if what == "never returns" else "raised SystemExit"
    with pytest.raises(AcqIslError, match=said), acquisition:
        for position in range(50):
            acquisition.acquire(stack(f"p{position}"))
        time.sleep(0.2)
    assert time.monotonic() - began_s < 20
    assert acquisition.path is not None
    if acquisition.captured:
        with open_measured(acquisition.path) as dataset:
            assert len(dataset.get_image_coordinates_list()) == acquisition.captured
    left = [t.name for t in threading.enumerate() if t not in before and not t.daemon and "Acq" not in t.name]
    assert left == [], "nothing keeps the process alive"


def test_the_process_ends(tmp_path: Path) -> None:
    script = f"""
import sys, threading
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_user_functions import *
from mm_test_adapters import device_adapter_path
from pycromanager import start_headless
start_headless(str(device_adapter_path()), "MMConfig_demo.cfg", python_backend=True, buffer_size_mb=16)
forever = lambda *_: threading.Event().wait()
hooks = UserHooks(image_saved=forever, image_process=forever, post_camera=forever, notification=forever)
options = dict(limits=Limits(), hooks=hooks, sink=Sink(forever), safety=Safety(watchdog_s=0.5))
try:
    with GuardedAcquisition({str(tmp_path)!r}, "m", **options) as acquisition:
        acquisition.acquire(stack("p0"))
except AcqIslError as error:
    print("TYPED", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and "TYPED" in done.stdout, done.stderr


def test_patience_follows_what_hooks_do(core: Any) -> None:
    """Neither the exposure that a hook has raised, in the event or at the camera, nor its time is silence."""

    def slow(event: Any) -> Any:
        time.sleep(0.7)
        return event | {"exposure": 1500.0} if event["axes"]["z"] == 0 else event

    def at_the_camera(event: Any) -> Any:
        core.set_exposure(1500.0 if event["axes"]["z"] == 1 else 1.0)
        return event

    hooks = UserHooks(pre_hardware=slow, post_hardware=at_the_camera)
    core.set_property("Camera", "FastImage", "0")
    acquisition = GuardedAcquisition(None, "m", limits=Limits(), hooks=hooks, safety=Safety(watchdog_s=1.0))
    with acquisition:
        acquisition.acquire(stack("p0"))
    assert acquisition.captured == PLANES
    core.set_exposure(1)


def test_a_sink_that_stops_taking_slices_is_not_asked_again(forever: threading.Event) -> None:
    hook = CaptureHook(Sink(lambda slice_: forever.wait()), z_um=[0.0])
    hook._put._limit_s = 0.05  # type: ignore[attr-defined]
    for time_ in range(3):
        hook(np.zeros((4, 6), np.uint16), {"Axes": {"time": time_, "z": 0}})
    assert (hook.counts.captured, hook.counts.lost) == (3, 3)
    assert "the sink did not end; wanted: within 0.05 s" in str(hook.problems[0])
    assert "is not called again" in str(hook.problems[2])


def test_a_callback_has_one_thread_which_ends_with_it() -> None:
    callback = Callback(threading.get_ident, "asking", 5.0)
    assert callback() == callback() != threading.get_ident()
    thread = callback._thread
    assert thread is not None and thread.daemon
    del callback
    thread.join(10)
    assert not thread.is_alive()


def test_what_it_raises_comes_back() -> None:
    def fails(number: int) -> None:
        raise ValueError(number)

    with pytest.raises(ValueError, match="7"):
        Callback(fails, "failing", 5.0)(7)
    for call in (Callback(ends, "the function", 5.0), lambda: call_within(5.0, "the function", ends)):
        with pytest.raises(AcquisitionFailed, match=r"the function raised SystemExit.*3"):
            call()
