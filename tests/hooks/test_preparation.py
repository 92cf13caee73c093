"""What a stack wants before its first slice: focus, camera, a shutter that stays open. On the real core."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acq_isl.errors import AcquisitionFailed, ExperimentError, FocusFailed
from acq_isl.experiment.faults import FocusDrift, FocusFails, HardwareTimeout, ScopeFault
from acq_isl.hooks import GuardedAcquisition, UserHooks
from acq_isl.hooks.hardware import Hardware
from acq_isl.rules import Limits
from acq_isl.sim import ScopeSettings, SimulatedScope
from acq_isl.sim.view import View
from acq_isl.stack import Autofocus, Float32Image, StackKey, StackRequest

AF = Autofocus("A1", 2.0)


class Grey:
    """A specimen that is quickly seen."""

    channels = ("Phase",)

    def render(self, view: View) -> Float32Image:
        return np.full(view.shape, 0.5, np.float32)

    def truth(self, view: View) -> dict[str, Float32Image]:
        return {}


def open_scope(*faults: ScopeFault) -> SimulatedScope:
    # The specimen's clock stands still but for `advance`, so that drift is known.
    return SimulatedScope(Grey(), settings=ScopeSettings(shape=(16, 24), time_scale=0.0), faults=faults)


@pytest.fixture
def scope() -> Iterator[SimulatedScope]:
    with open_scope() as opened:
        yield opened


def stack(autofocus: Autofocus | None = AF, position: str = "A1", **more: Any) -> StackRequest:
    key = StackKey(0, position, "Phase")
    z_um = (1.0, 2.0, 3.0)
    return StackRequest(key, 10.0, 20.0, z_um, "Channel", "Phase", 2.0, autofocus=autofocus, **more)


def guarded(directory: Path | None = None, limits: Limits | None = None, **more: Any) -> GuardedAcquisition:
    return GuardedAcquisition(directory, "m", limits=limits or Limits(), **more)


def test_the_focus_is_found_where_it_has_drifted_to() -> None:
    with open_scope(FocusDrift(6.0)) as scope, guarded() as acquisition:
        acquisition.acquire(stack(None, "before"))
        scope.timeline.advance(60)
        assert acquisition.focus(stack()) == pytest.approx(-6.0, abs=1e-3)  # true z 0
        assert scope.core.get_position() == pytest.approx(-7.0, abs=1e-3)  # where the stack begins
        assert scope.core.get_xy_position() == pytest.approx([10.0, 20.0], abs=0.01)


@pytest.mark.parametrize("device", ["PFS", ""])
def test_the_offset_is_added_to_the_focus(scope: SimulatedScope, device: str) -> None:
    with guarded() as acquisition:
        assert acquisition.focus(stack(Autofocus("A1", 2.0, device=device, offset=40.0))) == pytest.approx(
            1.0
        )
        assert scope.core.get_auto_focus_offset() == 40.0


def test_an_offset_may_have_a_motor_of_its_own(scope: SimulatedScope) -> None:
    core = scope.core
    core.load_device("Offset", "DemoCamera", "DStage")
    core.initialize_device("Offset")
    request = stack(Autofocus("A1", 2.0, device="Offset", offset=7.0))
    Hardware(core).require_devices(request)
    with guarded() as acquisition:
        acquisition.focus(request)
    assert core.get_position("Offset") == 7.0 and core.get_auto_focus_device() == "PFS"


def test_a_focus_that_is_held_is_let_go_for_the_planes_and_held_again(scope: SimulatedScope) -> None:
    scope.core.enable_continuous_focus(True)
    with guarded() as acquisition:
        acquisition.focus(stack())
        assert not scope.core.is_continuous_focus_enabled()
        acquisition.acquire(stack())
    assert scope.core.is_continuous_focus_enabled()


FAILING = {
    "no reflection": ((FocusFails(),), Limits(), "no reflection"),
    "never ready": ((HardwareTimeout("PFS", wait_s=0.0),), Limits(), "timed out"),
    "the stack would leave the limits": ((), Limits(z_um=(0.5, 3.5)), "out of reach"),
}


@pytest.mark.parametrize("faults, limits, message", FAILING.values(), ids=FAILING.keys())
def test_a_focus_that_fails_is_told_and_the_acquisition_goes_on(
    faults: tuple[ScopeFault, ...], limits: Limits, message: str, tmp_path: Path
) -> None:
    with open_scope(*faults) as scope, guarded(tmp_path, limits) as acquisition:
        with pytest.raises(FocusFailed, match=message):
            acquisition.focus(stack())
        assert scope.core.get_position() == pytest.approx(1.0)  # where the stack was planned to begin
        acquisition.acquire(stack())
        assert acquisition.images(stack()).shape == (3, 16, 24)


def test_as_many_tries_as_useq_allows() -> None:
    with open_scope(FocusFails(times=3)), guarded() as acquisition:
        with pytest.raises(FocusFailed):
            acquisition.focus(stack(Autofocus("A1", 2.0, tries=2)))
        acquisition.focus(stack(Autofocus("A1", 2.0, tries=2)))


def test_out_of_its_range_the_device_sees_nothing(scope: SimulatedScope) -> None:
    with guarded() as acquisition, pytest.raises(FocusFailed, match="within 50 um"):
        acquisition.focus(stack(Autofocus("A1", 80.0)))


MISSING = {
    "no such device": (stack(Autofocus("A1", 0.0, device="PSF")), "did you mean 'PFS'"),
    "no device that focuses": (stack(Autofocus("A1", 0.0, device="Filter")), "Filter cannot focus"),
    "no such camera": (stack(None, camera="Camra"), "did you mean 'Camera'"),
    "no camera": (stack(None, camera="Filter"), "is no camera"),
}


@pytest.mark.parametrize("request_, message", MISSING.values(), ids=MISSING.keys())
def test_what_is_not_there_is_known_before_anything_moves(
    scope: SimulatedScope, request_: StackRequest, message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        Hardware(scope.core).require_devices(request_)
    assert scope.core.get_auto_focus_device() == "PFS"


def test_a_microscope_without_autofocus_says_so(scope: SimulatedScope) -> None:
    scope.core.set_auto_focus_device("")
    with pytest.raises(ExperimentError, match="no autofocus device"):
        Hardware(scope.core).require_devices(stack())


def test_a_stack_is_taken_by_its_own_camera(scope: SimulatedScope) -> None:
    core, cameras = scope.core, []
    core.load_device("Camera-2", "DemoCamera", "DCam")
    core.initialize_device("Camera-2")
    for name, value in {
        "FastImage": 1,
        "PixelType": "16bit",
        "OnCameraCCDXSize": 24,
        "OnCameraCCDYSize": 16,
    }.items():
        core.set_property("Camera-2", name, value)

    def look(image: Any, metadata: Any) -> Any:
        cameras.append(metadata["Camera"])
        return image, metadata

    with guarded(hooks=UserHooks(image_process=look)) as acquisition:
        for camera, position in (("Camera-2", "A1"), ("", "A2"), ("Camera", "A3")):
            acquisition.acquire(stack(None, position, camera=camera))
    assert cameras == ["Camera-2"] * 3 + ["Camera"] * 6
    assert core.get_camera_device() == "Camera"


@pytest.mark.parametrize("held", [True, False])
def test_the_shutter_stays_open_from_the_first_slice_to_the_last(scope: SimulatedScope, held: bool) -> None:
    core, opened = scope.core, []

    def look(event: Any) -> Any:
        opened.append((core.get_shutter_open(), core.get_xy_position()))
        return event

    with guarded(hooks=UserHooks(pre_hardware=look)) as acquisition:
        acquisition.acquire(stack(None, keep_shutter_open=held))
    assert opened and all(is_open is held for is_open, _ in opened)
    assert not held or opened[0][1] == pytest.approx([10.0, 20.0], abs=0.01)  # no light on the way
    assert not core.get_shutter_open() and core.get_auto_shutter()


def test_the_shutter_is_closed_when_a_stack_fails(scope: SimulatedScope) -> None:
    def fail(event: Any) -> Any:
        raise ValueError("planted")

    acquisition = guarded(hooks=UserHooks(pre_hardware=fail))
    with pytest.raises(AcquisitionFailed, match="planted"), acquisition:
        acquisition.acquire(stack(None, keep_shutter_open=True))
    assert not scope.core.get_shutter_open() and scope.core.get_auto_shutter()


@pytest.mark.parametrize("name", ["../up", "n" * 250, "", "a/b", "CON:", ".hidden", "a\nb"])
def test_a_name_that_no_folder_can_have_is_refused_before_anything_moves(
    scope: SimulatedScope, tmp_path: Path, name: str
) -> None:
    acquisition = GuardedAcquisition(tmp_path / "here", name, limits=Limits())
    with pytest.raises(ExperimentError, match="cannot be called"), acquisition:
        pass
    assert not list(tmp_path.iterdir())
