"""Frames of pymmcore-plus' runner: the same stacks, the same counts; the real one where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import useq

import acq_isl
from acq_isl.hooks import CaptureHook
from acq_isl.hooks.pymmcore_plus import MdaFrames
from acq_isl.stack import Slice, StackKey

STACK = useq.ZRangeAround(range=18, step=1.5)


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.slices: list[Slice] = []

    def put(self, slice_: Slice) -> None:
        self.slices.append(slice_)

    @property
    def stacks(self) -> dict[StackKey, list[int]]:
        stacks: dict[StackKey, list[int]] = {}
        for slice_ in self.slices:
            stacks.setdefault(slice_.info.key, []).append(slice_.z_index)
        return stacks


def run(frames: MdaFrames, sequence: useq.MDASequence, **metadata: Any) -> None:
    """As the runner does it, in its order."""
    frames.sequenceStarted(sequence, {})
    for event in sequence:
        about = {"pixel_size_um": 0.3, "camera_device": "Camera", "exposure_ms": 5.0, **metadata}
        frames.frameReady(np.zeros((64, 64), np.uint16), event, about)
    frames.sequenceFinished(sequence)


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def frames(kept: Kept) -> Iterator[MdaFrames]:
    hook = CaptureHook(kept, planes=13)
    yield MdaFrames(hook)
    hook.close()


TWO_ALIKE = [useq.AbsolutePosition(x=x, y=0, z=40, name="well") for x in (0, 500)]
TWO = [useq.AbsolutePosition(x=0, y=0, z=40, name="A1"), useq.AbsolutePosition(x=900, y=0, z=40)]


@pytest.mark.parametrize(
    ("sequence", "keys"),
    [
        ({"stage_positions": TWO}, [(0, "A1", "Phase"), (0, "p1", "Phase")]),
        ({"stage_positions": TWO_ALIKE}, [(0, "well", "Phase"), (0, "well 1", "Phase")]),
        ({"time_plan": {"interval": 0, "loops": 2}}, [(0, "Default", "Phase"), (1, "Default", "Phase")]),
        (
            {"grid_plan": {"rows": 1, "columns": 2, "fov_width": 19, "fov_height": 19}},
            [(0, "g0", "Phase"), (0, "g1", "Phase")],
        ),
        ({"channels": ["Phase", "DIC"]}, [(0, "Default", "Phase"), (0, "Default", "DIC")]),
    ],
    ids=["named or not", "two of one name", "times", "grid", "channels"],
)
def test_stacks_have_the_names_of_their_events(
    frames: MdaFrames, kept: Kept, sequence: dict[str, Any], keys: list[tuple[int, str, str]]
) -> None:
    run(frames, useq.MDASequence(z_plan=STACK, **{"channels": ["Phase"], **sequence}))
    assert [(key.time, key.position, key.channel) for key in kept.stacks] == keys
    assert all(sorted(planes) == list(range(13)) for planes in kept.stacks.values())
    info = kept.slices[0].info
    assert np.diff(info.z_um) == pytest.approx(1.5) and info.pixel_size_um == 0.3 and info.exposure_ms == 5


def test_the_same_sequence_again_is_other_stacks(frames: MdaFrames, kept: Kept) -> None:
    sequence = useq.MDASequence(z_plan=STACK, channels=["Phase"])
    for _ in range(3):
        run(frames, sequence)
    assert [len(planes) for planes in kept.stacks.values()] == [13, 13, 13]


def test_cameras_that_expose_at_once_are_told_apart(frames: MdaFrames, kept: Kept) -> None:
    sequence = useq.MDASequence(z_plan=STACK, channels=["Phase"])
    frames.sequenceStarted(sequence)
    for event in sequence:
        for camera in ("left", "right"):
            frames.frameReady(np.zeros((64, 64), np.uint16), event, {"camera_device": camera})
    assert [key.channel for key in kept.stacks] == ["Phase", "Phase right"]
    assert [len(planes) for planes in kept.stacks.values()] == [13, 13]


def test_without_z_in_the_event_the_stage_says_where_it_is(frames: MdaFrames, kept: Kept) -> None:
    for z in range(13):
        event = useq.MDAEvent(index={"z": z}, channel="Phase")
        frames.frameReady(np.zeros((64, 64), np.uint16), event, {"position": {"z": 2.0 * z}})
    assert kept.slices[-1].info.z_um == tuple(2.0 * z for z in range(13))


def test_a_run_that_is_cancelled_leaves_its_slices_in_the_counts(tmp_path: Path) -> None:
    sequence = useq.MDASequence(z_plan=STACK, channels=["Phase"])
    with acq_isl.live("tcp://127.0.0.1:9", planes=13, spool=tmp_path / "spool") as live:
        live.mda.sequenceStarted(sequence, {})
        for event in list(sequence)[:5]:
            live.mda.frameReady(np.zeros((64, 64), np.uint16), event, {"pixel_size_um": 0.3})
        live.mda.sequenceFinished(sequence)
        live.drain(timeout_s=0.5)
        assert str(live.counts.slices) == "5 slices captured = 5 spooled (5 incomplete)"


@contextmanager
def demo_devices() -> Iterator[Any]:
    """pymmcore-plus' core with its own demo configuration."""
    core_module = pytest.importorskip("pymmcore_plus", reason="pymmcore-plus is not installed")
    from mm_test_adapters import device_adapter_path

    folder = Path(device_adapter_path())
    core = core_module.CMMCorePlus(mm_path=str(folder))
    core.loadSystemConfiguration(str(folder / "MMConfig_demo.cfg"))
    yield core
    core.reset()


def test_the_runner_of_pymmcore_plus_itself(tmp_path: Path) -> None:
    plan = {"stage_positions": TWO, "channels": ["DAPI"]}
    with (
        demo_devices() as core,
        acq_isl.live("tcp://127.0.0.1:9", planes=13, spool=tmp_path / "spool") as live,
    ):
        for name in ("one", "two"):
            output = [str(tmp_path / f"{name}.ome.zarr"), live.mda]
            core.run_mda(useq.MDASequence(z_plan=STACK, **plan), output=output).join(60)
            assert (tmp_path / f"{name}.ome.zarr").is_dir()
        live.drain(timeout_s=1.0)
        assert not live.problems
        assert str(live.counts.slices) == "52 slices captured = 52 spooled (52 no engine)"
    assert len(list((tmp_path / "spool").rglob("*.tif"))) == 4
