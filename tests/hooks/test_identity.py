"""Slices with the same axes, of different acquisitions or cameras, are told apart or refused by name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from acq_isl.errors import ScopeError
from acq_isl.hooks import CaptureHook, GuardedAcquisition
from acq_isl.rules import Limits
from acq_isl.stack import Slice

PLANES = 3
FIRST, SECOND = {"Multi-CameraChannelIndex": "0"}, {"Multi-CameraChannelIndex": "1"}


class Sink:
    def __init__(self) -> None:
        self.slices: list[Slice] = []

    def put(self, slice_: Slice) -> None:
        self.slices.append(slice_)

    @property
    def stacks(self) -> dict[str, list[int]]:
        """Values of the slices by the key of their stack."""
        stacks: dict[str, list[int]] = {}
        for slice_ in self.slices:
            stacks.setdefault(str(slice_.info.key), []).append(int(slice_.pixels[0, 0]))
        return stacks


def see(hook: CaptureHook, z: int, value: int, **tags: Any) -> None:
    tags |= {"Axes": {"z": z}, "ZPosition_um_Intended": 1.5 * z}
    hook(np.full((4, 6), value, np.uint16), tags)


def acquire(hook: CaptureHook, zs: list[int], value: int = 0) -> None:
    """As an acquisition does, which has a thread of its own for the hook."""
    thread = threading.Thread(target=lambda: [see(hook, z, value + z) for z in zs])
    thread.start()
    thread.join()


@pytest.mark.parametrize("arguments", [{"planes": PLANES}, {"z_um": [0.0, 1.5, 3.0]}], ids=["held", "known"])
@pytest.mark.parametrize("flushed", [False, True])
def test_three_acquisitions_with_the_same_axes(arguments: dict[str, Any], flushed: bool) -> None:
    sink = Sink()
    hook = CaptureHook(sink, **arguments)
    for number in range(3):
        acquire(hook, [0, 1, 2], 10 * number)
        if flushed:
            hook.flush()
    assert sink.stacks == {
        "Default t0 Default": [0, 1, 2],
        "Default acquisition 2 t0 Default": [10, 11, 12],
        "Default acquisition 3 t0 Default": [20, 21, 22],
    }
    assert hook.problems == ()


def test_an_acquisition_that_was_cut_off_is_not_continued_by_the_next() -> None:
    sink = Sink()
    hook = CaptureHook(sink, z_um=[0.0, 1.5, 3.0])
    acquire(hook, [2])
    acquire(hook, [0, 1], 10)
    assert sink.stacks == {"Default t0 Default": [2], "Default acquisition 2 t0 Default": [10, 11]}


def test_two_hooks_on_one_sink_have_stacks_of_their_own() -> None:
    sink = Sink()
    for _ in range(2):
        see(CaptureHook(sink, z_um=[0.0]), 0, 1)
    assert len({slice_.acquisition for slice_ in sink.slices}) == 2


def test_two_acquisitions_side_by_side() -> None:
    sink, turns = Sink(), [threading.Event() for _ in range(4)]
    hook = CaptureHook(sink, z_um=[0.0, 1.5, 3.0])

    def run(mine: int, value: int) -> None:
        turns[mine].wait(10)
        see(hook, 0, value)
        turns[mine + 1].set()
        turns[mine + 2].wait(10)
        see(hook, 1, value + 1)

    threads = [threading.Thread(target=run, args=(mine, 10 * mine)) for mine in range(2)]
    for thread in threads:
        thread.start()
    turns[0].set()
    turns[3].set()
    for thread in threads:
        thread.join()
    assert sink.stacks == {"Default t0 Default": [0, 1], "Default acquisition 2 t0 Default": [10, 11]}


def test_threads_side_by_side_may_feed_one_acquisition() -> None:
    sink, go_on = Sink(), threading.Event()
    hook = CaptureHook(sink, z_um=[0.0, 1.5, 3.0])

    def run(z: int) -> None:
        see(hook, z, z)
        go_on.wait(10)

    threads = [threading.Thread(target=run, args=(z,)) for z in range(PLANES)]
    for thread in threads:
        thread.start()
    while len(sink.slices) < PLANES and any(thread.is_alive() for thread in threads):
        go_on.wait(0.01)
    go_on.set()
    for thread in threads:
        thread.join()
    assert {key: sorted(values) for key, values in sink.stacks.items()} == {"Default t0 Default": [0, 1, 2]}


@pytest.mark.parametrize(
    "one, other, names",
    [
        (FIRST | {"Camera": "A"}, SECOND | {"Camera": "B"}, ["Default", "Default B"]),
        (
            FIRST | {"Camera": "A"},
            SECOND | {"Camera": "B", "Multi-CameraChannelName": "DIA"},
            ["Default", "Default DIA"],
        ),
        (
            {"CameraChannelIndex": 0, "Camera": "M"},
            {"CameraChannelIndex": 1, "Camera": "M"},
            ["Default", "Default M 2"],
        ),
        ({"Camera": "A"}, {"Camera": "B"}, ["Default", "Default B"]),
    ],
)
def test_cameras_at_once(one: dict[str, Any], other: dict[str, Any], names: list[str]) -> None:
    sink = Sink()
    hook = CaptureHook(sink, planes=PLANES)
    for z in range(PLANES):
        see(hook, z, z, **one)
        see(hook, z, 10 + z, **other)
    assert list(sink.stacks) == [f"Default t0 {name}" for name in names]
    assert list(sink.stacks.values()) == [[0, 1, 2], [10, 11, 12]]
    assert hook.problems == ()


def test_the_second_cameras_image_comes_first() -> None:
    sink = Sink()
    hook = CaptureHook(sink, z_um=[0.0])
    see(hook, 0, 10, Camera="B", **SECOND)
    see(hook, 0, 0, Camera="A", **FIRST)
    assert sink.stacks == {"Default t0 Default B": [10], "Default t0 Default": [0]}


def test_one_image_given_for_two_cameras_is_refused_once() -> None:
    """As pycromanager's Python core does for a snap."""
    sink = Sink()
    hook = CaptureHook(sink, z_um=[0.0])
    for index in range(2):
        see(hook, 0, 7, Camera="M", CameraChannelIndex=index)
    assert sink.stacks == {"Default t0 Default": [7]}
    assert hook.counts.reasons == (("refused", "the image of another camera", 1),)
    assert "camera 'M 2' is that of another camera" in str(hook.problems[0])


def test_what_comes_after_drain_is_told() -> None:
    sink = Sink()
    hook = CaptureHook(sink, planes=PLANES)
    for z in range(2):
        see(hook, z, z)
    hook.flush()
    see(hook, 2, 2)
    assert len(sink.slices) == 2
    assert hook.counts.reasons == (("not wanted", "came after drain", 1),)
    assert "slice z=2 of Default t0 Default came after drain" in str(hook.problems[0])


# -------- on the real engine and core


@pytest.fixture(scope="module")
def core() -> Iterator[Any]:
    from mm_test_adapters import device_adapter_path
    from pycromanager import Core, start_headless, stop_headless
    from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

    start_headless(str(device_adapter_path()), "MMConfig_demo.cfg", python_backend=True, buffer_size_mb=16)
    core = Core()
    core.set_exposure(1)
    core.load_device("Second", "DemoCamera", "DCam")
    core.initialize_device("Second")
    core.load_device("Both", "Utilities", "Multi Camera")
    core.initialize_device("Both")
    for label in ("Camera", "Second"):
        core.set_property(label, "PixelType", "16bit")
    core.set_property("Both", "Physical Camera 1", "Camera")
    core.set_property("Both", "Physical Camera 2", "Second")
    yield core
    stop_headless()
    del Engine.singleton


def acquire_with(hook: CaptureHook) -> None:
    from pycromanager import Acquisition

    with Acquisition(None, "m", image_process_fn=hook, show_display=False) as acquisition:
        acquisition.acquire([{"axes": {"z": z}, "z": 1.5 * z} for z in range(PLANES)])
    acquisition.get_dataset().close()


def test_one_hook_around_three_acquisitions(core: Any) -> None:
    sink = Sink()
    hook = CaptureHook(sink, planes=PLANES)
    for _ in range(3):
        acquire_with(hook)
    assert [len(values) for values in sink.stacks.values()] == [PLANES] * 3
    assert hook.problems == ()


def test_two_cameras_at_once(core: Any) -> None:
    sink = Sink()
    hook = CaptureHook(sink, planes=PLANES)
    core.set_camera_device("Both")
    try:
        acquire_with(hook)
        with (
            pytest.raises(ScopeError, match=r"several cameras expose at once; got: Both"),
            GuardedAcquisition(None, "m", limits=Limits()),
        ):
            pass
    finally:
        core.set_camera_device("Camera")
    assert {key: len(values) for key, values in sink.stacks.items()} == {"Default t0 Default": PLANES}
    assert hook.counts.reasons == (("refused", "the image of another camera", PLANES),)
