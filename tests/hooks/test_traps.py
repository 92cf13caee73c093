"""What plain Pycro-Manager does in silence, and what the guarded acquisition makes of it, row by row.

The plain halves run in one subprocess, which this file is when run as a script: a hung acquisition leaves
threads behind that would keep the tests' own process alive for ever.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acq_isl.errors import AcquisitionFailed, ActionRefused, ExperimentError, SliceLost
from acq_isl.hooks import GuardedAcquisition, Safety, UserHooks
from acq_isl.rules import Limits
from acq_isl.stack import StackKey, StackRequest

Z_LIMITS = Limits(z_um=(-100, 100))
HUNG_AFTER_S = 2.0


def start_core() -> Any:
    from mm_test_adapters import device_adapter_path
    from pycromanager import Core, start_headless

    start_headless(str(device_adapter_path()), "MMConfig_demo.cfg", python_backend=True, buffer_size_mb=16)
    core = Core()
    core.set_property("Camera", "FastImage", "1")
    core.set_property("Camera", "OnCameraCCDXSize", "64")
    core.set_property("Camera", "OnCameraCCDYSize", "64")
    core.set_exposure(1)
    return core


@pytest.fixture(scope="module")
def core() -> Iterator[Any]:
    from pycromanager import stop_headless
    from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

    yield start_core()
    stop_headless()
    del Engine.singleton


@pytest.fixture(autouse=True)
def _rested(core: Any) -> None:
    """Every row starts from the same place."""
    core.set_property("Z", "UseSequences", "No")
    core.set_config("Channel", "DAPI")
    core.set_position("Z", 0.0)
    core.wait_for_device("Z")
    core.set_exposure(1)


def z_events(planes: int, **first: Any) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"axes": {"z": index}, "z": float(index)} for index in range(planes)]
    events[0] |= first
    return events


def stack(planes: int = 4, position: str = "A1", **changes: Any) -> StackRequest:
    z_um = changes.pop("z_um", tuple(float(index) for index in range(planes)))
    preset = changes.pop("preset", "DAPI")
    return StackRequest(StackKey(0, position, preset), 0.0, 0.0, z_um, "Channel", preset, 1.0, **changes)


def guarded(directory: Path | None = None, limits: Limits | None = None, **hooks: Any) -> GuardedAcquisition:
    return GuardedAcquisition(
        directory,
        "m",
        limits=limits or Limits(),
        hooks=UserHooks(**hooks),
        safety=Safety(watchdog_s=1.0),
    )


def plain(events: Any, directory: Path | None = None, **hooks: Any) -> int:
    """Acquire as the documentation says; number of images in the dataset."""
    from pycromanager import Acquisition

    with Acquisition(None if directory is None else str(directory), "m", **hooks) as acquisition:
        acquisition.acquire(events)
    return len(acquisition.get_dataset().get_image_coordinates_list())


class Oops(Exception):
    """What the users' functions of these tests raise."""


def raises(*_: Any) -> Any:
    raise Oops("my mistake")


@dataclass(frozen=True)
class Row:
    name: str
    plain: Callable[[Any, Path], object]
    plain_does: str
    """Regular expression of the verdict: hung, raised TYPE: TEXT, or returned VALUE."""
    ours: Callable[[Any, Path], None]


ROWS: list[Row] = []


def row(
    plain_does: str, plain_half: Callable[[Any, Path], object]
) -> Callable[..., Callable[[Any, Path], None]]:
    def add(ours: Callable[[Any, Path], None]) -> Callable[[Any, Path], None]:
        ROWS.append(Row(ours.__name__, plain_half, plain_does, ours))
        return ours

    return add


# -------- users' event hooks


@row("returned 0", lambda _, tmp: plain(z_events(4), pre_hardware_hook_fn=raises))
def pre_hardware_hook_raises(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, pre_hardware=raises)
    with pytest.raises(AcquisitionFailed, match=r"pre_hardware hook raised Oops.*my mistake"), acquisition:
        acquisition.acquire(stack())


@row("returned [01]", lambda _, tmp: plain(z_events(4), event_generation_hook_fn=raises))
def event_generation_hook_raises(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, event_generation=raises)
    with pytest.raises(AcquisitionFailed, match=r"event_generation hook raised Oops"), acquisition:
        acquisition.acquire(stack())


@row("returned 0", lambda _, tmp: plain(z_events(4), post_hardware_hook_fn=raises))
def post_hardware_hook_raises(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, post_hardware=raises)
    with pytest.raises(AcquisitionFailed, match=r"post_hardware hook raised Oops"), acquisition:
        acquisition.acquire(stack())


@row("returned [01]", lambda _, tmp: plain(z_events(4), post_camera_hook_fn=raises))
def post_camera_hook_raises(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, post_camera=raises)
    with pytest.raises(AcquisitionFailed, match=r"post_camera hook raised Oops"), acquisition:
        acquisition.acquire(stack())


@row("returned 0", lambda _, tmp: plain(z_events(4), pre_hardware_hook_fn=lambda event, queue: event))
def hook_with_two_arguments(core: Any, tmp: Path) -> None:
    with pytest.raises(ExperimentError, match=r"pre_hardware hook cannot be called with 1 argument"):
        guarded(tmp, pre_hardware=lambda event, queue: event)


@row("returned 1", lambda _, tmp: plain(z_events(4), pre_hardware_hook_fn=lambda event: "done"))
def hook_returns_no_event(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, pre_hardware=lambda event: "done")
    with pytest.raises(AcquisitionFailed, match=r"returned something that is not an event"), acquisition:
        acquisition.acquire(stack())


def _never(event: Any, gate: threading.Event) -> Any:
    gate.wait(20)
    return event


@row(
    "hung",
    lambda _, tmp: plain(z_events(4), post_hardware_hook_fn=lambda event: _never(event, threading.Event())),
)
def hook_never_returns(core: Any, tmp: Path) -> None:
    gate = threading.Event()
    acquisition = guarded(tmp, post_hardware=lambda event: _never(event, gate))
    try:
        with (
            pytest.raises(AcquisitionFailed, match=r"the post_hardware hook did not end.*within 1 s"),
            acquisition,
        ):
            acquisition.acquire(stack())
    finally:
        gate.set()


def _without(z: int) -> Callable[[Any], Any]:
    return lambda event: None if event["axes"]["z"] == z else event


@row("returned [01]", lambda _, tmp: plain(z_events(4), event_generation_hook_fn=_without(1)))
def event_generation_hook_returns_none(core: Any, tmp: Path) -> None:
    """Plain Pycro-Manager drops the rest of the list; here only that one event is dropped."""
    acquisition = guarded(tmp, event_generation=_without(1))
    with acquisition:
        acquisition.acquire(stack())
        with pytest.raises(SliceLost, match=r"1 of 4 .*z=1"):
            acquisition.images(stack())
    assert (acquisition.captured, acquisition.cancelled) == (3, 1)


@row(
    "returned 'Rhodamine'",  # the preset was in the dropped event, the rest is imaged with the old one
    lambda core, tmp: (
        core.set_config("Channel", "Rhodamine"),
        plain(z_events(4, config_group=["Channel", "DAPI"]), pre_hardware_hook_fn=_without(0)),
        core.get_current_config("Channel"),
    )[2],
)
def dropped_first_event_takes_the_preset_with_it(core: Any, tmp: Path) -> None:
    core.set_config("Channel", "Rhodamine")
    acquisition = guarded(tmp, pre_hardware=_without(0))
    with acquisition:
        acquisition.acquire(stack())
        assert core.get_current_config("Channel") == "DAPI"
    assert (acquisition.captured, acquisition.cancelled) == (3, 1)


def _to_z(z_um: float) -> Callable[[Any], Any]:
    return lambda event: {**event, "z": z_um}


@row("returned 4", lambda _, tmp: plain(z_events(4), pre_hardware_hook_fn=_to_z(250.0)))
def hook_moves_out_of_the_limits(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, limits=Z_LIMITS, pre_hardware=_to_z(250.0))
    with pytest.raises(ActionRefused, match=r"z from -100 to 100 um"), acquisition:
        acquisition.acquire(stack())
    assert abs(core.get_position("Z")) < 100


# -------- users' image functions


@row(
    "(raised Exception: exception in image processor: my mistake|returned 0)",
    lambda _, tmp: plain(z_events(4), image_process_fn=lambda image, metadata: raises()),
)
def image_process_raises(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, image_process=raises)
    with pytest.raises(AcquisitionFailed, match=r"image_process hook raised Oops") as failure, acquisition:
        acquisition.acquire(stack())
    assert isinstance(failure.value.__cause__, Oops)
    assert acquisition.captured >= 1  # and saved, or leaving would have added SliceLost
    assert not hasattr(failure.value, "__notes__")


@row("hung", lambda _, tmp: plain(z_events(4), image_process_fn=lambda image, metadata: (image,)))
def image_process_returns_a_wrong_shape(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, image_process=lambda image, metadata: (image,))
    with pytest.raises(AcquisitionFailed, match=r"returned something else than an image"), acquisition:
        acquisition.acquire(stack())


@row("hung", lambda _, tmp: plain(z_events(4), image_process_fn=lambda i, m: [(i, m)] * 3))
def image_process_returns_a_list_of_three(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, image_process=lambda image, metadata: [(image, metadata)] * 3)
    with pytest.raises(AcquisitionFailed, match=r"3 images that would replace each other"), acquisition:
        acquisition.acquire(stack())


def _two(image: Any, metadata: Any) -> Any:
    """As documented: the image and a derived one on another channel."""
    extra = {**metadata, "Axes": {**metadata["Axes"], "channel": "derived"}}
    return [(image, metadata), (image + np.uint16(1), extra)]


@row("(raised|returned 0|hung)", lambda _, tmp: plain(z_events(4), image_process_fn=_two))
def image_process_returns_a_list_of_two(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, image_process=_two)
    with acquisition:
        acquisition.acquire(stack())
    measured, derived = acquisition.images(stack()), acquisition.images(stack(preset="derived"))
    assert np.array_equal(measured + 1, derived)


@row("returned 0", lambda _, tmp: plain(z_events(4), image_process_fn=lambda image, metadata: None))
def image_process_forgets_to_return(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, image_process=lambda image, metadata: None)
    with pytest.raises(AcquisitionFailed, match=r"got: None"), acquisition:
        acquisition.acquire(stack(1))
    assert acquisition.images(stack(1)).shape == (1, 64, 64)


def _numpy_scalar(image: Any, metadata: Any) -> Any:
    return image, {**metadata, "mean": image.mean(), "profile": image[0, :3]}


@row("hung", lambda _, tmp: plain(z_events(4), tmp, image_process_fn=_numpy_scalar))
def numpy_in_metadata(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, image_process=_numpy_scalar)
    with acquisition:
        acquisition.acquire(stack())
    assert acquisition.images(stack()).shape == (4, 64, 64)


@row("hung", lambda _, tmp: plain(z_events(4), tmp, image_process_fn=lambda i, m: (i.astype(np.float32), m)))
def float_image(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, image_process=lambda i, m: (i.astype(np.float32), m))
    with pytest.raises(AcquisitionFailed, match=r"cannot be stored.*float32"), acquisition:
        acquisition.acquire(stack(1))
    assert acquisition.images(stack(1)).shape == (1, 64, 64)


@row("hung", lambda _, tmp: plain(z_events(4), tmp, image_process_fn=lambda i, m: (np.stack([i] * 3, -1), m)))
def rgb_image(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, image_process=lambda i, m: (np.stack([i] * 3, -1), m))
    with pytest.raises(AcquisitionFailed, match=r"cannot be stored.*64, 64, 3"), acquisition:
        acquisition.acquire(stack(1))


def _count_calls(planes: int, **hooks: Any) -> Callable[[Any, Path], object]:
    """How many images, and how often the failing callback was called."""

    def half(_: Any, tmp: Path) -> object:
        calls: list[int] = []

        def fails(*arguments: Any) -> None:
            calls.append(1)
            raises()

        def saved(axes: Any, dataset: Any) -> None:
            fails()

        return plain(
            z_events(planes), **{name: saved if name == "image_saved_fn" else fails for name in hooks}
        ), len(calls)

    return half


@row(r"returned \(4, 1\)", _count_calls(4, image_saved_fn=1))
def image_saved_raises(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, image_saved=raises_two)
    with pytest.raises(AcquisitionFailed, match=r"image_saved hook raised Oops"), acquisition:
        acquisition.acquire(stack())


@row("hung", _count_calls(150, image_saved_fn=1))
def image_saved_raises_in_a_long_run(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, image_saved=raises_two)
    with pytest.raises(AcquisitionFailed, match=r"image_saved hook raised Oops"), acquisition:
        acquisition.acquire(stack(150))


def raises_two(axes: Any, dataset: Any) -> None:
    raises()


@row(r"returned \(4, 1\)", _count_calls(4, notification_callback_fn=1))
def notification_raises(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, notification=raises)
    with pytest.raises(AcquisitionFailed, match=r"notification hook raised Oops"), acquisition:
        acquisition.acquire(stack())


@row("hung", _count_calls(150, notification_callback_fn=1))
def notification_raises_in_a_long_run(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, notification=raises)
    with pytest.raises(AcquisitionFailed, match=r"notification hook raised Oops"), acquisition:
        acquisition.acquire(stack(150))


# -------- hardware


@row("returned 0", lambda _, tmp: plain([{"axes": {"z": 0}, "config_group": ["Channel", "DAPY"]}]))
def unknown_preset_in_the_only_event(core: Any, tmp: Path) -> None:
    with guarded(tmp) as acquisition:
        with pytest.raises(ExperimentError, match=r"no preset 'DAPY'.*did you mean 'DAPI'"):
            acquisition.acquire(stack(preset="DAPY"))
        acquisition.acquire(stack())  # nothing was broken
    assert acquisition.captured == 4


@row("returned 3", lambda _, tmp: plain([*z_events(3), {"axes": {"z": 3}, "z": 4000.0}]))
def z_out_of_range_in_the_last_event(core: Any, tmp: Path) -> None:
    bad = stack(z_um=(0.0, 1.0, 4000.0))
    with guarded(tmp, limits=Z_LIMITS) as acquisition:
        with pytest.raises(ActionRefused, match=r"z from -100 to 100 um; got: 4000 um"):
            acquisition.acquire(bad)
        assert acquisition.captured == 0
    unlimited = guarded(tmp)
    with (
        pytest.raises(
            AcquisitionFailed, match=r"at .*position=A1 .*z=2.*Moving Z device unsuccessful"
        ) as failure,
        unlimited,
    ):
        unlimited.acquire(stack(position="A0"))
        unlimited.acquire(bad)
    assert unlimited.images(stack(position="A0")).shape == (4, 64, 64)
    assert not hasattr(failure.value, "__notes__")


@row("returned 0", lambda _, tmp: plain([{"axes": {"z": 0}, "properties": [["Camera", "Gian", "1"]]}]))
def unknown_property_in_the_only_event(core: Any, tmp: Path) -> None:
    with guarded(tmp) as acquisition, pytest.raises(ExperimentError, match=r"no property 'Gian'.*'Gain'"):
        acquisition.run_events([{"axes": {"z": 0}, "properties": [["Camera", "Gian", "1"]]}])


@row("returned 0", lambda _, tmp: plain([{"axes": {"z": 0}, "properties": [["Camera", "Gain", "99"]]}]))
def property_refused_by_the_device_in_the_only_event(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp)
    with pytest.raises(AcquisitionFailed, match=r"Changing additional properties unsuccessful"), acquisition:
        acquisition.run_events([{"axes": {"z": 0}, "properties": [["Camera", "Gain", "99"]]}])


@row("raised", lambda _, tmp: plain([{"axes": {"z": 0}, "z": 4000.0}, *z_events(5)[1:]]))
def z_out_of_range_in_an_early_event(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp)
    with pytest.raises(AcquisitionFailed, match=r"Moving Z device unsuccessful"), acquisition:
        acquisition.acquire(stack(z_um=(4000.0, 0.0, 1.0, 2.0)))


def _slow(seconds: float) -> Callable[..., Any]:
    def process(image: Any, metadata: Any) -> Any:
        threading.Event().wait(seconds)
        return image, metadata

    return process


def _time_events(count: int) -> list[dict[str, Any]]:
    return [{"axes": {"time": index}} for index in range(count)]


def _overflow(core: Any, run: Callable[[], object]) -> object:
    core.set_circular_buffer_memory_footprint(1)
    core.set_property("Camera", "OnCameraCCDXSize", "256")
    core.set_property("Camera", "OnCameraCCDYSize", "256")
    try:
        return run()
    finally:
        core.set_circular_buffer_memory_footprint(16)
        core.set_property("Camera", "OnCameraCCDXSize", "64")
        core.set_property("Camera", "OnCameraCCDYSize", "64")


@row(
    "raised (HardwareControlException|Exception|RuntimeError)",
    lambda core, tmp: _overflow(core, lambda: plain(_time_events(200), image_process_fn=_slow(0.02))),
)
def circular_buffer_overflows(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, image_process=_slow(0.02))

    def run() -> None:
        with pytest.raises(AcquisitionFailed, match=r"Sequence buffer overflow"), acquisition:
            acquisition.run_events(_time_events(200))

    _overflow(core, run)


# -------- events and queues


@row("hung", lambda _, tmp: plain([{"axes": {"z": 0}, "tags": {"note": "x"}}]))
def event_with_tags(core: Any, tmp: Path) -> None:
    with guarded(tmp) as acquisition, pytest.raises(ExperimentError, match=r"unsupported key 'tags'.*hangs"):
        acquisition.run_events([{"axes": {"z": 0}, "tags": {"note": "x"}}])


def _puts_rubbish(image: Any, metadata: Any, queue: Any) -> Any:
    queue.put({"no": "axes"})
    return image, metadata


def _queue_run(process: Any) -> object:
    """Adaptive acquisition as documented: without ``with``, events put by image_process_fn."""
    from pycromanager import Acquisition

    acquisition = Acquisition(None, "m", image_process_fn=process)
    acquisition.acquire(z_events(1))
    acquisition.await_completion()
    return len(acquisition.get_dataset().get_image_coordinates_list())


@row("hung", lambda _, tmp: _queue_run(_puts_rubbish))
def invalid_event_in_the_queue(core: Any, tmp: Path) -> None:
    with pytest.raises(ExperimentError, match=r"image_process hook cannot be called.*") as refused:
        guarded(tmp, image_process=_puts_rubbish)
    assert "run_events" in str(refused.value)
    with guarded(tmp) as acquisition, pytest.raises(ExperimentError, match=r"an event has no axes"):
        acquisition.run_events([{"no": "axes"}])


def _puts_next(image: Any, metadata: Any, queue: Any) -> Any:
    z = metadata["Axes"]["z"]
    threading.Event().wait(0.05)
    if z < 3:
        queue.put({"axes": {"z": z + 1}})
    return image, metadata


@row("(returned 1|raised|hung)", lambda _, tmp: plain(z_events(1), image_process_fn=_puts_next))
def events_put_inside_with_are_dropped(core: Any, tmp: Path) -> None:
    with guarded(tmp) as acquisition:
        for z in range(4):  # the way that works: look at what has come, then submit the next
            acquisition.run_events([{"axes": {"z": z}}])
    assert acquisition.captured == 4


def _failing_generator() -> Iterator[dict[str, Any]]:
    yield {"axes": {"z": 0}}
    raise Oops("my mistake")


@row("hung", lambda _, tmp: plain(_failing_generator()))
def generator_raises(core: Any, tmp: Path) -> None:
    with (
        guarded(tmp) as acquisition,
        pytest.raises(ExperimentError, match=r"events must be a list.*generator"),
    ):
        acquisition.run_events(_failing_generator())


def _fails_while_a_generator_is_consumed() -> int:
    """abort() clears the queue, and with it the sign that no more events will come."""

    def events() -> Iterator[dict[str, Any]]:
        for index in range(100):
            yield {"axes": {"z": index}}
            threading.Event().wait(0.02)

    return plain(events(), image_process_fn=lambda image, metadata: raises())


@row("hung", lambda _, tmp: _fails_while_a_generator_is_consumed())
def image_process_raises_while_a_list_is_acquired(core: Any, tmp: Path) -> None:
    acquisition = guarded(tmp, image_process=lambda image, metadata: raises())
    with pytest.raises(AcquisitionFailed, match=r"image_process hook raised Oops"), acquisition:
        acquisition.run_events(z_events(100))


def _abort_only() -> None:
    from pycromanager import Acquisition

    acquisition = Acquisition(None, "m")
    acquisition.acquire(z_events(4))
    acquisition.abort()
    acquisition.await_completion()


@row("hung", lambda _, tmp: _abort_only())
def abort_without_mark_finished(core: Any, tmp: Path) -> None:
    """Leaving by an exception aborts, finishes, and keeps what was captured."""
    acquisition = guarded(tmp)
    with pytest.raises(Oops), acquisition:
        acquisition.acquire(stack())
        raises()
    assert acquisition.images(stack()).shape == (4, 64, 64)
    assert not core.get_shutter_open()


@row("returned 0", lambda _, tmp: plain([{"axes": {"z": 0.5}}], tmp))
def float_axis_value(core: Any, tmp: Path) -> None:
    with (
        guarded(tmp) as acquisition,
        pytest.raises(ExperimentError, match=r"neither a whole number nor a name"),
    ):
        acquisition.run_events([{"axes": {"z": 0.5}}])


@row("raised", lambda _, tmp: plain([{"axes": {"p": 0}}, {"axes": {"p": "A1"}}, {"axes": {"p": 2}}], tmp))
def numbers_and_names_on_one_axis(core: Any, tmp: Path) -> None:
    with guarded(tmp) as acquisition:
        with pytest.raises(ExperimentError, match=r"both numbers and names"):
            acquisition.run_events([{"axes": {"p": 0}}, {"axes": {"p": "A1"}}])
        acquisition.run_events([{"axes": {"p": "A1"}}])  # the refused list has left no trace
        with pytest.raises(ExperimentError, match=r"both numbers and names"):
            acquisition.run_events([{"axes": {"p": 0}}])


@row("returned 1", lambda _, tmp: plain([{"axes": {"z": 0}}, {"axes": {"z": 0}}]))
def same_axes_twice(core: Any, tmp: Path) -> None:
    with guarded(tmp) as acquisition:
        with pytest.raises(ExperimentError, match=r"the second image would replace the first"):
            acquisition.run_events([{"axes": {"z": 0}}, {"axes": {"z": 0}}])
        acquisition.acquire(stack())
        with pytest.raises(ExperimentError, match=r"position=A1 .*would replace"):
            acquisition.acquire(stack())


@row("raised Exception: events must be", lambda _, tmp: plain(tuple(z_events(3))))
def tuple_of_events(core: Any, tmp: Path) -> None:
    with guarded(tmp) as acquisition:
        acquisition.run_events(tuple(z_events(3)))
    assert acquisition.captured == 3


@row("hung", lambda _, tmp: plain([{"axes": {"z": np.int64(1)}, "z": np.float32(2)}], tmp))
def numpy_numbers_in_events(core: Any, tmp: Path) -> None:
    with guarded(tmp) as acquisition:
        acquisition.run_events([{"axes": {"z": np.int64(0)}, "z": np.float32(2)}])
    assert acquisition.captured == 1


@row("returned", lambda _, tmp: plain([{"axes": {"position": "60x@1.4"}}], tmp))
def at_sign_in_a_name(core: Any, tmp: Path) -> None:
    """Harmless here, but the Java backend hangs on it: refused on both."""
    with guarded(tmp) as acquisition, pytest.raises(ExperimentError, match=r"must not contain '@'"):
        acquisition.acquire(stack(position="60x@1.4"))


# -------- sequences and stale settings


def _sequenced_properties(core: Any) -> object:
    core.set_property("Camera", "Gain", "0")
    plain([{"axes": {"time": t}, "properties": [["Camera", "Gain", "3"]]} for t in range(3)])
    return core.get_property("Camera", "Gain")


@row("returned '0'", lambda core, tmp: _sequenced_properties(core))
def properties_of_merged_events_are_dropped(core: Any, tmp: Path) -> None:
    core.set_property("Camera", "Gain", "0")
    with guarded(tmp) as acquisition:
        acquisition.run_events(
            [{"axes": {"time": t}, "properties": [["Camera", "Gain", "3"]]} for t in range(3)]
        )
    assert core.get_property("Camera", "Gain") == "3"


def _sequenced_wait(core: Any) -> None:
    from pycromanager import AcqNotification, Acquisition

    with Acquisition(None, "m") as acquisition:
        future = acquisition.acquire(_time_events(5))
        future.await_execution(AcqNotification.Hardware.POST_HARDWARE, {"time": 4})


@row("hung", lambda core, tmp: _sequenced_wait(core))
def waiting_for_a_sequenced_event(core: Any, tmp: Path) -> None:
    core.set_property("Z", "UseSequences", "Yes")
    with guarded(tmp) as acquisition:
        acquisition.acquire(stack(13))
        assert acquisition.captured == 13


def _generator_future() -> None:
    from pycromanager import Acquisition

    with Acquisition(None, "m") as acquisition:
        future = acquisition.acquire(event for event in z_events(3))
        future.await_image_saved({"z": 2})


@row("(raised|hung)", lambda core, tmp: _generator_future())
def waiting_for_the_image_of_a_generator(core: Any, tmp: Path) -> None:
    with guarded(tmp) as acquisition:
        acquisition.acquire(stack(3))
        assert acquisition.images(stack(3)).shape == (3, 64, 64)


def _stale_exposure(core: Any) -> object:
    plain([{"axes": {"z": 0}, "exposure": 20.0}])
    core.set_exposure(3)
    plain([{"axes": {"z": 0}, "exposure": 20.0}])
    return core.get_exposure()


@row(r"returned 3\.0", lambda core, tmp: _stale_exposure(core))
def stale_exposure(core: Any, tmp: Path) -> None:
    for name in ("a", "b"):
        core.set_exposure(3)
        with guarded(tmp) as acquisition:
            acquisition.run_events([{"axes": {"p": name}, "exposure": 20.0}])
        assert core.get_exposure() == 20


def _moves(core: Any, acquire: Callable[[], object]) -> int:
    """How often the XY stage is told to move."""
    moves: list[int] = []
    original = core.set_xy_position

    def counting(*arguments: Any) -> Any:
        moves.append(1)
        return original(*arguments)

    core.set_xy_position = counting
    try:
        acquire()
    finally:
        del core.set_xy_position
    return len(moves)


def _everywhere(planes: int) -> list[dict[str, Any]]:
    return [{**event, "x": 1.0, "y": 2.0} for event in z_events(planes)]


@row("returned 5", lambda core, tmp: _moves(core, lambda: plain(_everywhere(5))))
def xy_in_every_event_moves_every_time(core: Any, tmp: Path) -> None:
    with guarded(tmp) as acquisition:
        assert _moves(core, lambda: acquisition.acquire(stack(5))) == 1


def _off_by_one() -> object:
    from pycromanager import multi_d_acquisition_events

    asked = [(12 * 0.1, 0.1), (12 * 0.2, 0.2)]  # 13 planes each
    return [len(multi_d_acquisition_events(z_start=0, z_end=end, z_step=step)) for end, step in asked]


@row(r"returned \[14, 14\]", lambda core, tmp: _off_by_one())
def one_slice_too_many(core: Any, tmp: Path) -> None:
    with guarded(tmp) as acquisition:
        request = stack(z_um=tuple(0.1 * index for index in range(13)))
        acquisition.acquire(request)
        assert acquisition.images(request).shape[0] == 13


def _zero_range() -> object:
    from pycromanager import multi_d_acquisition_events

    # With z_step=1 version 1.0.2 does make a z of 0; a single plane given with no step still loses it.
    return multi_d_acquisition_events(z_start=0, z_end=0, z_step=0)


@row(r"returned \[\{'axes': \{\}\}\]", lambda core, tmp: _zero_range())
def a_single_plane_has_a_z(core: Any, tmp: Path) -> None:
    with guarded(tmp) as acquisition:
        acquisition.acquire(stack(z_um=(7.0,)))
        assert core.get_position("Z") == pytest.approx(7, abs=0.05)
        with pytest.raises(ExperimentError, match=r"an event has no axes"):
            acquisition.run_events([{"axes": {}}])


# -------- the test


@pytest.fixture(scope="module", autouse=True)
def _plain_process(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Plain Pycro-Manager, row by row, in a process that is thrown away; runs beside the guarded halves."""
    folder = tmp_path_factory.mktemp("plain")
    command = [sys.executable, __file__, str(folder), str(folder / "verdicts.json")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    yield process, folder
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def plain_verdicts(_plain_process: tuple[subprocess.Popen[bytes], Path]) -> dict[str, str]:
    process, folder = _plain_process
    process.wait(timeout=110)
    result = folder / "verdicts.json"
    assert result.is_file(), (folder / "log").read_text(errors="replace")[-2000:]
    verdicts: dict[str, str] = json.loads(result.read_text())
    return verdicts


@pytest.mark.timeout(5, func_only=True)
@pytest.mark.parametrize("one", ROWS, ids=lambda one: one.name)
def test_guarded(one: Row, core: Any, tmp_path: Path) -> None:
    """A typed error or the right data, within 5 s, and no thread left behind."""
    before = set(threading.enumerate())
    one.ours(core, tmp_path)
    left = [t for t in threading.enumerate() if t not in before and not t.daemon]
    assert [t.name for t in left if "Acq" not in t.name] == []  # the engine's own two threads stay


@pytest.mark.parametrize("one", ROWS, ids=lambda one: one.name)
def test_plain_pycromanager(one: Row, plain_verdicts: dict[str, str]) -> None:
    """If this fails, Pycro-Manager has changed: look at the row, and at the guard, again."""
    assert re.match(one.plain_does, plain_verdicts[one.name]), plain_verdicts[one.name]


def _verdict(one: Row, core: Any, folder: Path) -> str:
    verdicts: list[str] = []

    def run() -> None:
        try:
            verdicts.append(f"returned {one.plain(core, folder / one.name)!r}")
        except Exception as error:  # noqa: BLE001 - the verdict
            verdicts.append(f"raised {type(error).__name__}: {error}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HUNG_AFTER_S)
    return verdicts[0] if verdicts else "hung"


def main(folder: Path, result: Path) -> None:
    from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

    core = start_core()
    verdicts = {}
    for one in ROWS:
        del Engine.singleton  # a hung row leaves the old engine's threads blocked for ever
        Engine(core)
        core.set_property("Z", "UseSequences", "No")
        core.set_position("Z", 0.0)
        core.set_exposure(1)
        verdicts[one.name] = _verdict(one, core, folder)
    result.write_text(json.dumps(verdicts, indent=1))
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
