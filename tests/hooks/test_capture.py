"""The capture hook, alone and inside a user's own acquisition."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acq_isl.errors import AcquisitionFailed, ExperimentError
from acq_isl.hooks import CaptureHook
from acq_isl.hooks.held_slices import HeldSlices
from acq_isl.hooks.metadata import SliceMetadata, read_metadata
from acq_isl.stack import Slice, StackKey, StackRequest


class Sink:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.slices: list[Slice] = []

    def put(self, slice_: Slice) -> None:
        self.slices.append(slice_)


class CopyingSink(Sink):
    copies = True


class BrokenSink:
    def put(self, slice_: Slice) -> None:
        raise RuntimeError("breaks its contract")


def image(value: int = 7, dtype: Any = np.uint16) -> np.ndarray[Any, Any]:
    return np.full((4, 6), value, dtype)


def metadata(z: int, z_um: float | None = None, **changes: Any) -> dict[str, Any]:
    tags: dict[str, Any] = {
        "Axes": {"time": 0, "position": "A1", "channel": "Phase", "z": z},
        "Exposure": 10.0,
        "PixelSize_um": 0.325,
        "PixelType": None,
    }
    if z_um is not None:
        tags["ZPosition_um_Intended"] = z_um
    return tags | changes


KEY = StackKey(0, "A1", "Phase")


@pytest.mark.parametrize(
    "tags, wanted",
    [
        (metadata(3, 1.5), SliceMetadata(KEY, 3, 1.5, 0.0, 0.0, 10.0, 0.325)),
        (  # frames of a camera sequence carry strings
            metadata(3)
            | {"Exposure": "10.00", "XPosition_um_Intended": "5", "YPosition_um_Intended": "-2.5"},
            SliceMetadata(KEY, 3, None, 5.0, -2.5, 10.0, 0.325),
        ),
        ({"Axes": {"z": 1}}, SliceMetadata(StackKey(0, "Default", "Default"), 1, None, 0.0, 0.0, 0.0, 0.0)),
        (
            {"Axes": {"position": 3, "time": 2}, "Channel": "DAPI"},
            SliceMetadata(StackKey(2, "3", "DAPI"), 0, None, 0.0, 0.0, 0.0, 0.0),
        ),
        (
            {"Axes": {"well": "B2", "fov": 7, "channel": "DAPI"}},
            SliceMetadata(StackKey(0, "fov7_wellB2", "DAPI"), 0, None, 0.0, 0.0, 0.0, 0.0),
        ),
        (
            {"Axes": {}, "PositionName": "here"},
            SliceMetadata(StackKey(0, "here", "Default"), 0, None, 0, 0, 0, 0),
        ),
    ],
)
def test_tags(tags: dict[str, Any], wanted: SliceMetadata) -> None:
    assert read_metadata(tags) == wanted


@pytest.mark.parametrize(
    "tags", [{}, {"Axes": "z=1"}, metadata(0) | {"Axes": {"z": "top"}}, metadata(0, Exposure="long")]
)
def test_tags_that_cannot_be_read(tags: dict[str, Any]) -> None:
    with pytest.raises(AcquisitionFailed):
        read_metadata(tags)


@pytest.mark.parametrize("arguments", [{}, {"planes": 0}, {"planes": 13, "z_um": [1.0, 2.0]}, {"z_um": []}])
def test_the_number_of_planes_must_be_known(arguments: dict[str, Any]) -> None:
    with pytest.raises(ExperimentError, match=r"how many slices a stack has"):
        CaptureHook(Sink(), **arguments)


def test_the_image_and_metadata_come_back_as_they_were() -> None:
    hook, pixels, tags = CaptureHook(Sink(), z_um=[0.0]), image(), metadata(0)
    returned = hook(pixels, tags)
    assert returned[0] is pixels and returned[1] is tags
    assert tags["PixelType"] == "GRAY16"  # the Java backend hangs without it
    assert pixels.flags.writeable
    assert hook(image(dtype=np.uint8), metadata(0))[1]["PixelType"] == "GRAY8"


def test_pixels_are_copied_once() -> None:
    for sink, shared in ((Sink(), False), (CopyingSink(), True)):
        pixels = image()
        CaptureHook(sink, z_um=[0.0])(pixels, metadata(0))
        [slice_] = sink.slices
        assert np.shares_memory(slice_.pixels, pixels) is shared
        assert not slice_.pixels.flags.writeable
        assert np.array_equal(slice_.pixels, pixels)


def test_eight_bit_images_become_uint16() -> None:
    sink = CopyingSink()
    CaptureHook(sink, z_um=[0.0])(image(200, np.uint8), metadata(0))
    assert sink.slices[0].pixels.dtype == np.uint16
    assert int(sink.slices[0].pixels[0, 0]) == 200


def test_what_is_known_of_the_stack() -> None:
    sink = Sink()
    hook = CaptureHook(sink, z_um=[1, 2], pixel_size_um=0.5, modality="brightfield", polarity="dark")
    for z in range(2):
        hook(image(), metadata(z, XPosition_um_Intended=3.0, YPosition_um_Intended=4.0))
    first, second = sink.slices
    assert first.info is second.info
    info = first.info
    assert (info.key, info.z_um, info.shape, info.pixel_size_um) == (KEY, (1.0, 2.0), (4, 6), 0.5)
    assert (info.x_um, info.y_um, info.exposure_ms) == (3.0, 4.0, 10.0)
    assert (info.modality, info.polarity) == ("brightfield", "dark")
    assert first.captured_s <= second.captured_s


@settings(deadline=None)
@given(
    start=st.floats(-500, 500),
    step=st.floats(0.05, 5) | st.floats(-5, -0.05),
    order=st.integers(2, 16).flatmap(lambda planes: st.permutations(range(planes))),
)
def test_z_is_worked_out_from_any_two_slices(start: float, step: float, order: list[int]) -> None:
    sink = Sink()
    hook = CaptureHook(sink, planes=len(order))
    for z in order:
        hook(image(z), metadata(z, start + z * step))
    assert [slice_.z_index for slice_ in sink.slices] == order
    assert [int(slice_.pixels[0, 0]) for slice_ in sink.slices] == order
    assert sink.slices[0].info.z_um == pytest.approx([start + z * step for z in range(len(order))], abs=1e-4)
    assert hook.problems == ()


def test_the_first_slice_waits_for_the_second_only_where_z_is_unknown() -> None:
    waiting, knowing = Sink(), Sink()
    CaptureHook(waiting, planes=3)(image(), metadata(0, 0.0))
    CaptureHook(knowing, z_um=[0, 1, 2])(image(), metadata(0, 0.0))
    assert (len(waiting.slices), len(knowing.slices)) == (0, 1)


@pytest.mark.parametrize(
    "pixels, tags, says",
    [
        (image(dtype=np.float32), metadata(0, 0.0), "8 or 16 bits"),
        (np.zeros((4, 6, 3), np.uint16), metadata(0, 0.0), "8 or 16 bits"),
        (image(), {"PixelType": None}, "without axes"),
        (image(), metadata(5, 5.0), "is saved, but not predicted"),
        (image(), metadata(-1, 0.0), "z from 0 to 2"),
        (image(), metadata(0), "z of the slices of .* is not known"),
        (None, metadata(0, 0.0), "could not be handed on"),
        (image(), None, "could not be handed on"),
    ],
)
def test_problems_are_kept_and_never_raised(pixels: Any, tags: Any, says: str) -> None:
    sink = Sink()
    hook = CaptureHook(sink, planes=3)
    assert hook(pixels, tags) == (pixels, tags) if pixels is None else hook(pixels, tags)[0] is pixels
    assert sink.slices == []
    with pytest.raises(AcquisitionFailed, match=says):
        raise hook.problems[0]


def test_a_sink_that_raises_is_a_counted_problem() -> None:
    hook = CaptureHook(BrokenSink(), z_um=[0.0])
    for _ in range(150):
        hook(image(), metadata(0))
    assert (hook.problem_count, hook.put_count) == (150, 0)
    assert len(hook.problems) == 100
    assert "breaks its contract" in str(hook.problems[0])


@pytest.mark.parametrize(("last_um", "put"), [(2.1, 3), (1.9, 3), (5.0, 2), (1.1, 2)])
def test_a_slice_somewhere_else_is_reported_and_refused_where_engines_would(last_um: float, put: int) -> None:
    sink = Sink()
    hook = CaptureHook(sink, planes=3)
    for z, z_um in enumerate((0.0, 1.0, last_um)):
        hook(image(), metadata(z, z_um))
    assert len(sink.slices) == put
    assert "is not where the z step says" in str(hook.problems[0])


def test_a_changed_size_is_a_problem() -> None:
    sink = Sink()
    hook = CaptureHook(sink, z_um=[0, 1])
    hook(image(), metadata(0))
    hook(np.zeros((8, 8), np.uint16), metadata(1))
    assert len(sink.slices) == 1
    assert "another size" in str(hook.problems[0])


def test_stacks_may_be_interleaved() -> None:
    sink = Sink()
    hook = CaptureHook(sink, planes=2)
    for z in range(2):
        for channel in ("Phase", "DIC"):
            tags = metadata(z, float(z))
            tags["Axes"]["channel"] = channel
            hook(image(), tags)
    assert [(one.info.key.channel, one.z_index) for one in sink.slices] == [
        ("Phase", 0),
        ("Phase", 1),
        ("DIC", 0),
        ("DIC", 1),
    ]


def at(time: int, z: int, **changes: Any) -> dict[str, Any]:
    """Metadata of a slice of a time point's stack, with a z step of 1.5 um."""
    return metadata(z, 1.5 * z, **changes) | {
        "Axes": {"time": time, "position": "A1", "channel": "Phase", "z": z}
    }


@pytest.mark.parametrize("memory", [0, 50, 1000])
@pytest.mark.parametrize("sink", [Sink(), CopyingSink()], ids=["plain", "copying"])
def test_any_number_of_stacks_may_be_open(memory: int, sink: Sink) -> None:
    """With z outermost, each stack's first slice waits while those of all others come."""
    sink.slices.clear()
    hook = CaptureHook(sink, planes=3, held=HeldSlices(memory_bytes=memory * image().nbytes))
    for z in range(3):
        for time in range(386):
            pixels = image(time * 10 + z)
            hook(pixels, at(time, z))
            pixels[:] = 0  # whoever owns the image may go on with it
    arrived = {(slice_.info.key.time, slice_.z_index) for slice_ in sink.slices}
    assert len(sink.slices) == len(arrived) == 386 * 3
    assert {slice_.info.z_um for slice_ in sink.slices} == {(0.0, 1.5, 3.0)}
    for slice_ in sink.slices:  # this copying sink keeps what it should have copied
        if slice_.z_index == 0 or not isinstance(sink, CopyingSink):
            assert int(slice_.pixels[0, 0]) == slice_.info.key.time * 10 + slice_.z_index
    hook.flush()
    assert hook.problems == () and len(sink.slices) == 386 * 3


def test_a_slice_without_a_second_one_is_handed_on_when_the_acquisition_is_over() -> None:
    sink = Sink()
    hook = CaptureHook(sink, planes=13)
    for number in range(30):  # an axis of another name makes 30 stacks
        hook(image(number), metadata(0, -9 + 1.5 * number) | {"Axes": {"slice": number}})
    assert sink.slices == []
    hook.flush()
    assert [int(slice_.pixels[0, 0]) for slice_ in sink.slices] == list(range(30))
    assert [slice_.info.z_um for slice_ in sink.slices] == [(-9 + 1.5 * number,) for number in range(30)]
    assert {slice_.z_index for slice_ in sink.slices} == {0}
    assert hook.problem_count == 30
    with pytest.raises(AcquisitionFailed, match=r"only one slice.*wanted: 13 slices.*name the axis"):
        raise hook.problems[0]
    hook.flush()
    assert len(sink.slices) == 30


def test_slices_that_wait_have_a_bound() -> None:
    sink = Sink()
    held = HeldSlices(memory_bytes=10 * image().nbytes, file_bytes=20 * image().nbytes)
    hook = CaptureHook(sink, planes=2, held=held)
    for time in range(100):
        hook(image(time), at(time, 0))
    assert len(held) == 30 and [slice_.info.key.time for slice_ in sink.slices] == list(range(70))
    hook.flush()
    assert [int(slice_.pixels[0, 0]) for slice_ in sink.slices] == list(range(100))


@pytest.mark.parametrize("arguments", [{"planes": 3}, {"z_um": [0.0, 1.5, 3.0]}], ids=["held", "known"])
def test_a_second_image_of_a_slice_is_named(arguments: dict[str, Any]) -> None:
    sink = Sink()
    hook = CaptureHook(sink, **arguments)
    for z, value in ((0, 1), (0, 2), (1, 3), (2, 4)):
        hook(image(value), at(0, z))
    first = {slice_.z_index: int(slice_.pixels[0, 0]) for slice_ in reversed(sink.slices)}
    assert first == {0: 1, 1: 3, 2: 4}
    with pytest.raises(AcquisitionFailed, match=r"a second image came for slice z=0 of A1 t0 Phase"):
        raise hook.problems[0]
    assert hook.problem_count == 1


def test_the_same_axes_again_make_a_new_stack() -> None:
    """Three acquisitions around one hook: the z of the second need not be that of the first."""
    sink = Sink()
    hook = CaptureHook(sink, planes=2)
    for shift_um in (0.0, 100.0, 200.0):
        for z in range(2):
            hook(image(), metadata(z, shift_um + z))
        hook.flush()
    assert [slice_.info.z_um[0] for slice_ in sink.slices[::2]] == [0.0, 100.0, 200.0]
    assert hook.problems == ()


def test_an_announced_stack_is_put_as_announced() -> None:
    sink = Sink()
    hook = CaptureHook.for_requests(sink)
    request = StackRequest(KEY, 1.0, 2.0, (5.0, 6.0), "Channel", "Phase", 10.0, "DIC", "bright")
    hook.expect(request)
    hook(image(), metadata(0))
    assert (sink.slices[0].info.z_um, sink.slices[0].info.x_um) == ((5.0, 6.0), 1.0)
    assert sink.slices[0].info.modality == "DIC"
    hook.forget(KEY)
    hook.expect(StackRequest(KEY, 1.0, 2.0, (5.0,), "Channel", "Phase", 10.0, predict=False))
    hook(image(), metadata(0))
    assert len(sink.slices) == 1  # nobody wanted it predicted


# -------- on the real engine and core


@pytest.fixture(scope="module")
def core() -> Iterator[Any]:
    from mm_test_adapters import device_adapter_path
    from pycromanager import Core, start_headless, stop_headless
    from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

    start_headless(str(device_adapter_path()), "MMConfig_demo.cfg", python_backend=True, buffer_size_mb=16)
    core = Core()
    core.set_property("Camera", "FastImage", "1")
    core.set_exposure(1)
    yield core
    stop_headless()
    del Engine.singleton


@pytest.mark.parametrize("sequenced", ["No", "Yes"])
def test_two_lines_in_a_users_own_acquisition(core: Any, sequenced: str) -> None:
    """With one slice too many, as multi_d_acquisition_events makes it: 13 are put, the 14th is reported."""
    from pycromanager import Acquisition, multi_d_acquisition_events

    core.set_property("Z", "UseSequences", sequenced)
    sink = Sink()
    events = multi_d_acquisition_events(
        num_time_points=2,
        channel_group="Channel",
        channels=["DAPI", "FITC"],
        z_start=0,
        z_end=12 * 0.1,
        z_step=0.1,
        order="tcz",
    )

    hook = CaptureHook(sink, planes=13)
    with Acquisition(name="m", image_process_fn=hook) as acquisition:
        acquisition.acquire(events)

    core.set_property("Z", "UseSequences", "No")
    assert len(acquisition.get_dataset().get_image_coordinates_list()) == 2 * 2 * 14
    assert [slice_.z_index for slice_ in sink.slices] == list(range(13)) * 4
    info = sink.slices[0].info
    assert info.z_um == pytest.approx([0.1 * z for z in range(13)], abs=1e-6)
    assert (info.shape, info.pixel_size_um) == ((512, 512), 1.0)
    assert {slice_.info.key for slice_ in sink.slices} == {
        StackKey(time, "Default", channel) for time in (0, 1) for channel in ("DAPI", "FITC")
    }
    assert hook.problem_count == 4
    assert "z=13" in str(hook.problems[0])


def test_a_stack_that_ends_while_its_second_slice_comes_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """`flush` on the thread that drains, between the look at the first slice and its hand-over."""
    sink = Sink()
    hook = CaptureHook(sink, planes=3)
    check = hook._check

    def ends_first(*arguments: Any) -> None:
        hook.flush()
        check(*arguments)

    hook(image(), metadata(0, 0.0))
    monkeypatch.setattr(hook, "_check", ends_first)
    hook(image(), metadata(1, 1.5))
    counts = hook.counts
    assert [slice_.z_index for slice_ in sink.slices] == [0]
    assert (counts.not_for_prediction, counts.lost, counts.open) == (1, 0, 0)
    assert "came after drain" in str(hook.problems[-1])


def test_a_held_slice_that_leaves_while_all_are_flushed_is_not_booked_twice() -> None:
    class JustTaken(HeldSlices):
        """Says that there is a slice, which is gone when one looks again."""

        asked = False

        def __len__(self) -> int:
            before, self.asked = self.asked, True
            return super().__len__() if before else 1

    hook = CaptureHook(Sink(), planes=3, held=JustTaken())
    hook.flush()
    assert hook.counts.sum == hook.counts.captured == 0
