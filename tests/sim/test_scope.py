"""The real core with simulated pixels, alone and under a real Pycro-Manager acquisition."""

from __future__ import annotations

import builtins
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from acq_isl.errors import ScopeError
from acq_isl.sim import CameraSettings, RecordedSpecimen, ScopeSettings, SimulatedScope, View
from acq_isl.sim.scope.config import ChannelLight
from acq_isl.sim.scope.core import SimulatedPixels
from acq_isl.sim.specimen.recorded import RecordedLabel

# ndstorage leaves the file handle of its own writer to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in.*NDTiffStack:pytest.PytestUnraisableExceptionWarning"
)

QUIET = ScopeSettings(shape=(128, 160), camera=CameraSettings.noiseless(), buffer_size_mb=16)
NOISY = QUIET.model_copy(update={"camera": CameraSettings()})
FIELD = Path(__file__).resolve().parents[3] / "shared" / "data" / "isl_condition_b"
FOCUS_UM = 3.0
SPOTS = {"Phase": ((0.0, 0.0), (6.0, 12.0)), "DAPI": ((-9.0, 3.0),)}  # (x, y) in um


@dataclass
class Spots:
    """Gaussian spots of light at known places, sharpest at z = 3 um, on a faint background."""

    channels: tuple[str, ...] = tuple(SPOTS)
    seen: list[View] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    fails: bool = False

    def render(self, view: View) -> np.ndarray:
        if self.fails:
            raise ZeroDivisionError("the specimen fell off the stage")
        self.seen.append(view)
        self.threads.add(threading.current_thread().name)
        return (0.02 + 0.2 * self._light(view, view.channel)).astype(np.float32)

    def truth(self, view: View) -> dict[str, np.ndarray]:
        return {"nuclei": self._light(replace(view, z_um=FOCUS_UM), "DAPI").astype(np.float32)}

    def _light(self, view: View, channel: str) -> np.ndarray:
        rows, columns = view.shape
        y = view.y_um + (np.arange(rows)[:, None] - (rows - 1) / 2) * view.pixel_size_um
        x = view.x_um + (np.arange(columns) - (columns - 1) / 2) * view.pixel_size_um
        width = 1.0 + 0.3 * abs(view.z_um - FOCUS_UM)
        spots = ((x - sx) ** 2 + (y - sy) ** 2 for sx, sy in SPOTS.get(channel, ()))
        return sum((np.exp(-far / (2 * width**2)) / width**2 for far in spots), np.zeros(view.shape))


@pytest.fixture
def scope() -> Iterator[SimulatedScope]:
    with SimulatedScope(Spots(), settings=QUIET) as opened:
        yield opened


def snap(core: Any) -> np.ndarray:
    core.snap_image()
    return core.get_image()


def brightest(image: np.ndarray) -> tuple[int, int]:
    row, column = np.unravel_index(int(np.argmax(image)), image.shape)
    return int(row), int(column)


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{inspect.getsource(condition)} did not come true within {timeout_s} s")
        time.sleep(0.001)


def run_sequence(core: Any, count: int) -> list[np.ndarray]:
    core.start_sequence_acquisition(count, 0, True)
    wait_until(lambda: not core.is_sequence_running())
    return [core.pop_next_image() for _ in range(count)]


# what the image depends on


def test_more_exposure_is_more_light(scope: SimulatedScope) -> None:
    scope.core.set_exposure(5)
    short = snap(scope.core).astype(float)
    scope.core.set_exposure(10)
    assert snap(scope.core).sum() == pytest.approx(2 * short.sum(), rel=1e-3)


def test_the_sharpest_plane_is_where_the_specimen_is(scope: SimulatedScope) -> None:
    contrast = []
    for z_um in range(-2, 9):
        scope.core.set_position(float(z_um))
        contrast.append(snap(scope.core).astype(float).std())
    assert range(-2, 9)[int(np.argmax(contrast))] == FOCUS_UM


@pytest.mark.parametrize("stage_um, moved_px", [((6.0, 0.0), (0, -20)), ((0.0, -9.0), (30, 0))])
def test_the_image_moves_against_the_stage(
    scope: SimulatedScope, stage_um: tuple[float, float], moved_px: tuple[int, int]
) -> None:
    scope.core.set_config("Channel", "DAPI")
    scope.core.set_exposure(50)
    before = snap(scope.core)
    scope.core.set_xy_position(*stage_um)
    scope.core.wait_for_device("XY")
    after = snap(scope.core)
    # The stage moves in steps of 0.015 um, a twentieth of a pixel.
    np.testing.assert_allclose(np.subtract(brightest(after), brightest(before)), moved_px, atol=1)
    assert brightest(before) == pytest.approx((64 + 10, 80 - 30), abs=1)


def test_channels_show_different_things(scope: SimulatedScope) -> None:
    scope.core.set_exposure(50)
    phase = snap(scope.core)
    scope.core.set_config("Channel", "DAPI")
    dapi = snap(scope.core)
    assert np.corrcoef(phase.ravel(), dapi.ravel())[0, 1] < 0.3


def test_a_channel_the_specimen_does_not_have_is_dark(scope: SimulatedScope) -> None:
    scope.core.set_config("Channel", "MAP2")
    assert not snap(scope.core).any()


@pytest.mark.parametrize("objective, pixel_size_um", [("10x", 0.6), ("20x", 0.3), ("40x", 0.15)])
def test_objectives_magnify(scope: SimulatedScope, objective: str, pixel_size_um: float) -> None:
    scope.core.set_config("Objective", objective)
    scope.core.set_position(FOCUS_UM)
    assert scope.core.get_pixel_size_um() == pytest.approx(pixel_size_um)
    scope.core.set_config("Channel", "DAPI")
    row, column = brightest(snap(scope.core))
    assert row - 64 == pytest.approx(3.0 / pixel_size_um, abs=1)
    assert column - 80 == pytest.approx(-9.0 / pixel_size_um, abs=1)


def test_a_region_of_interest_is_a_crop(scope: SimulatedScope) -> None:
    whole = snap(scope.core)
    scope.core.set_roi(30, 20, 70, 50)
    part = snap(scope.core)
    np.testing.assert_array_equal(part, whole[20:70, 30:100])
    assert scope.view().sensor_origin_px == (20, 30)
    scope.core.clear_roi()
    np.testing.assert_array_equal(snap(scope.core), whole)


def test_binning_collects_light(scope: SimulatedScope) -> None:
    scope.core.set_exposure(2)
    single = snap(scope.core).astype(float)
    scope.core.set_property("Camera", "Binning", 2)
    binned = snap(scope.core)
    assert binned.shape == (64, 80)
    assert scope.view().pixel_size_um == pytest.approx(0.6)
    blocks = single.reshape(64, 2, 80, 2).sum(axis=(1, 3))
    # The fake samples pixel middles instead of averaging, hence the tolerance at the spots.
    assert binned.sum() == pytest.approx(blocks.sum(), rel=0.01)
    assert np.corrcoef(binned.ravel(), blocks.ravel())[0, 1] > 0.99


def test_a_region_on_a_binned_sensor_looks_at_the_same_place(scope: SimulatedScope) -> None:
    scope.core.set_property("Camera", "Binning", 2)
    whole = snap(scope.core)
    scope.core.set_roi(10, 6, 40, 30)
    np.testing.assert_array_equal(snap(scope.core), whole[6:36, 10:50])
    assert scope.view().sensor_origin_px == (12, 20)


@pytest.mark.parametrize("bits, top", [(8, 255), (10, 1023), (12, 4095), (16, 65535)])
def test_counts_end_with_the_bit_depth(scope: SimulatedScope, bits: int, top: int) -> None:
    scope.core.set_property("Camera", "BitDepth", bits)
    scope.core.set_exposure(500)
    scope.core.set_position(FOCUS_UM)
    image = snap(scope.core)
    assert image.max() == top
    assert image.dtype == np.uint16
    assert scope.core.get_image_bit_depth() == bits


def test_eight_bit_pixels(scope: SimulatedScope) -> None:
    wide = snap(scope.core)
    scope.core.set_property("Camera", "PixelType", "8bit")
    narrow = snap(scope.core)
    assert narrow.dtype == np.uint8
    np.testing.assert_allclose(narrow, wide / 257, atol=1)


@pytest.mark.parametrize("pixel_type", ["32bit", "32bitRGB"])
def test_colour_is_refused_before_the_exposure(scope: SimulatedScope, pixel_type: str) -> None:
    scope.core.set_property("Camera", "PixelType", pixel_type)
    with pytest.raises(ScopeError, match="grey images only"):
        scope.core.snap_image()


def test_an_empty_objective_place_is_named(scope: SimulatedScope) -> None:
    scope.core.set_state("Objective", 5)
    with pytest.raises(ScopeError, match="empty place"):
        scope.core.snap_image()


def test_behind_a_closed_shutter_the_camera_sees_its_offset() -> None:
    with SimulatedScope(Spots(), settings=NOISY) as scope:
        core = scope.core
        core.set_auto_shutter(False)
        core.set_shutter_open(False)
        dark = snap(core)
        core.set_shutter_open(True)
        light = snap(core)
    offset, noise = (
        CameraSettings().offset_e * 65535 / 30_000,
        CameraSettings().read_noise_e * 65535 / 30_000,
    )
    assert dark.mean() == pytest.approx(offset, rel=0.01)
    assert dark.std() == pytest.approx(noise, rel=0.1)
    assert light.mean() > 5 * dark.mean()


def test_the_automatic_shutter_opens_for_the_exposure_only(scope: SimulatedScope) -> None:
    assert snap(scope.core).any()
    assert not scope.core.get_shutter_open()


def test_each_channel_selects_its_shutter(scope: SimulatedScope) -> None:
    shutters = {}
    for preset in ("Phase", "DAPI"):
        scope.core.set_config("Channel", preset)
        shutters[preset] = scope.core.get_shutter_device()
    assert shutters == {"Phase": "Transmitted Shutter", "DAPI": "Fluorescence Shutter"}


def test_brightness_and_nominal_exposure_are_settings() -> None:
    lamp = ChannelLight(nominal_exposure_ms=20, brightness=2)
    settings = QUIET.model_copy(update={"channels": {"Phase": lamp}})
    with SimulatedScope(Spots(), settings=settings) as scope:
        assert scope.core.get_exposure() == 20
        bright = snap(scope.core)
    with SimulatedScope(Spots(), settings=QUIET) as scope:
        np.testing.assert_allclose(bright, 2.0 * snap(scope.core), atol=1)


def test_state_is_that_of_the_start_of_the_exposure(scope: SimulatedScope) -> None:
    """The stage is still on its way when the exposure starts, and has arrived when the image is fetched."""
    core = scope.core
    core.set_xy_position(4900, 0)  # half a second at 10 mm/s, so a busy computer still catches it moving
    core.snap_image()
    core.wait_for_device("XY")
    exposure = scope.last_exposure
    assert exposure is not None and exposure.moving
    assert exposure.view.x_um < 4899
    spots = scope.specimen
    assert isinstance(spots, Spots) and spots.seen[-1].x_um == exposure.view.x_um
    assert not core.state().moving


def test_a_changed_origin_leaves_the_specimen_where_it_is(scope: SimulatedScope) -> None:
    core = scope.core
    core.set_xy_position(6, 0)
    core.wait_for_device("XY")
    before = snap(core)
    core.set_adapter_origin_xy(100, 50)
    assert core.get_x_position() == pytest.approx(100, abs=0.02)
    np.testing.assert_array_equal(snap(core), before)
    with pytest.raises(RuntimeError, match="out of range"):
        core.set_xy_position(5000 - 5 + 100, 0)


# limits


@pytest.mark.parametrize(
    "call, value", [("set_position", 21.0), ("setPosition", -301.0), ("set_position", float("nan"))]
)
def test_focus_limits(call: str, value: float) -> None:
    settings = QUIET.model_copy(update={"z_limits_um": (-20.0, 20.0)})
    with SimulatedScope(Spots(), settings=settings) as scope:
        core = scope.core
        core.set_position(20.0)
        for arguments in ((value,), ("Z", value)):
            with pytest.raises(RuntimeError, match=r'Error in device "Z": Position out of range \(103\)'):
                getattr(core, call)(*arguments)
        with pytest.raises(RuntimeError, match="out of range"):
            core.set_relative_position(1.0)
        with pytest.raises(RuntimeError, match="out of range"):
            core.set_property("Z", "Position", 21)
        core.set_property("Z", "UseSequences", "Yes")
        with pytest.raises(RuntimeError, match="out of range"):
            core.load_stage_sequence("Z", [0.0, 21.0])
        assert core.get_position() == 20.0


@pytest.mark.parametrize("target", [(5001.0, 0.0), (0.0, -5001.0), (float("nan"), 0.0)])
def test_stage_limits_are_errors_of_the_kind_the_core_gives(
    scope: SimulatedScope, target: tuple[float, float]
) -> None:
    core = scope.core
    calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        (core.set_xy_position, target),
        (core.set_xy_position, ("XY", *target)),
        (core.setXYPosition, target),
        (core.set_relative_xy_position, target),
        (core.setRelativeXYPosition, ("XY", *target)),
    ]
    for call, arguments in calls:
        with pytest.raises(RuntimeError, match=r'Error in device "XY": Position out of range \(103\)'):
            call(*arguments)
    assert core.get_xy_position() == pytest.approx([0, 0], abs=0.01)


# sequences


def test_a_sequence_shows_the_state_it_was_started_in(scope: SimulatedScope) -> None:
    still = snap(scope.core)
    for image in run_sequence(scope.core, 3):
        np.testing.assert_array_equal(image, still)


def test_a_hardware_z_sequence_equals_the_software_one(scope: SimulatedScope) -> None:
    core, z_um = scope.core, [0.0, 1.5, 3.0, 4.5]
    software = []
    for position in z_um:
        core.set_position(position)
        software.append(snap(core))
    core.set_position(0.0)
    core.set_property("Z", "UseSequences", "Yes")
    core.load_stage_sequence("Z", z_um)
    core.start_stage_sequence("Z")
    hardware = run_sequence(core, 4)
    core.stopStageSequence("Z")
    np.testing.assert_array_equal(hardware, software)
    np.testing.assert_array_equal(run_sequence(core, 1)[0], software[0])


def test_an_exposure_sequence_changes_the_light(scope: SimulatedScope) -> None:
    core = scope.core
    core.set_property("Camera", "UseExposureSequences", "Yes")
    core.load_exposure_sequence("Camera", [4.0, 8.0, 2.0])
    core.start_exposure_sequence("Camera")
    sums = [float(image.sum()) for image in run_sequence(core, 3)]
    core.stop_exposure_sequence("Camera")
    assert np.divide(sums, sums[0]) == pytest.approx([1.0, 2.0, 0.5], rel=0.01)


def test_frames_fetched_late_show_their_own_time(scope: SimulatedScope) -> None:
    """Frames from before and after a focus move are popped together when all is over."""
    core = scope.core
    core.start_continuous_sequence_acquisition(0)
    try:
        wait_until(lambda: core.get_remaining_image_count() >= 2)
        core.set_position(FOCUS_UM)
        before = core.get_remaining_image_count()
        wait_until(lambda: core.get_remaining_image_count() >= before + 3)
    finally:
        core.stop_sequence_acquisition()
    z_um = []
    while core.get_remaining_image_count():
        core.pop_next_image()
        z_um.append(core.last_exposure.view.z_um)
    assert z_um == sorted(z_um)
    assert z_um[:2] == [0.0, 0.0] and z_um[-1] == FOCUS_UM


def test_live_view_follows_stage_and_shutter(scope: SimulatedScope) -> None:
    core = scope.core
    core.start_continuous_sequence_acquisition(0)
    try:
        wait_until(lambda: core.get_remaining_image_count() > 0)
        assert core.get_last_image().any()
        core.set_xy_position(30, 0)
        core.wait_for_device("XY")

        def arrived() -> bool:
            core.get_last_image()
            return bool(core.last_exposure.view.x_um == pytest.approx(30, abs=0.02))

        wait_until(arrived)
        core.set_shutter_open(False)
        wait_until(lambda: not core.get_last_image().any())
    finally:
        core.stop_sequence_acquisition()


def test_the_way_between_two_places_is_seen_on_the_way(scope: SimulatedScope) -> None:
    core = scope.core
    core.start_continuous_sequence_acquisition(0)
    try:
        core.set_xy_position(1000, 0)  # 100 ms of travel
        core.wait_for_device("XY")
        wait_until(lambda: core.get_remaining_image_count() >= 12)
    finally:
        core.stop_sequence_acquisition()
    x_um = []
    while core.get_remaining_image_count():
        core.pop_next_image()
        x_um.append(core.last_exposure.view.x_um)
    assert x_um == sorted(x_um)
    assert sum(10 < x < 990 for x in x_um) >= 4


def test_an_empty_buffer_is_the_cores_own_error(scope: SimulatedScope) -> None:
    with pytest.raises(IndexError, match="empty"):
        scope.core.pop_next_image()


def test_peeking_twice_shows_the_same_noise() -> None:
    with SimulatedScope(Spots(), settings=NOISY) as scope:
        core = scope.core
        core.start_sequence_acquisition(2, 0, True)
        wait_until(lambda: not core.is_sequence_running())
        first, again = core.get_last_image(), core.getLastImage()
        popped = [core.popNextImage() for _ in range(2)]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, popped[1])
    assert not np.array_equal(*popped)


# names, images, noise


def test_every_override_has_both_names_and_shadows_a_call_of_the_core(scope: SimulatedScope) -> None:
    import pymmcore
    from mmpycorex.launcher import _camel_to_snake

    snake = {_camel_to_snake(name): name for name in vars(pymmcore.CMMCore)}
    ours = [name for name in vars(SimulatedPixels) if not name.startswith("_") and name not in {"state"}]
    for name in ours:
        assert hasattr(pymmcore.CMMCore, name) or name in snake, f"{name} is not a call of the core"
        if name in snake:
            overrides = type(scope.core)
            assert getattr(overrides, name) is getattr(overrides, snake[name]), name


def test_no_way_to_real_pixels_is_left(scope: SimulatedScope) -> None:
    """Calls that give images: any the core has must be ours, or the demo camera's pattern shows."""
    import pymmcore

    giving = {"getImage", "getLastImage", "getLastImageMD", "popNextImage", "popNextImageMD"}
    giving |= {"getNBeforeLastImageMD", "snapImage"}
    listed = {n for n in vars(pymmcore.CMMCore) if n.endswith(("Image", "ImageMD")) and n[0].islower()}
    assert listed - giving <= {"setSLMImage", "displaySLMImage"}
    assert giving <= set(vars(SimulatedPixels))


def test_camel_case_names_work(scope: SimulatedScope) -> None:
    core = scope.core
    core.setConfig("Channel", "DAPI")
    core.setXYPosition(-9.0, 3.0)
    core.waitForDevice("XY")
    core.snapImage()
    assert brightest(core.getImage()) == pytest.approx((64, 80), abs=1)


def test_an_image_is_the_callers_own(scope: SimulatedScope) -> None:
    image = snap(scope.core)
    image[:] = 7
    again = scope.core.get_image()
    assert again.flags.c_contiguous and again.flags.owndata and again.flags.writeable
    assert not np.array_equal(image, again)


def test_an_image_without_a_snap_is_the_cores_own_error(scope: SimulatedScope) -> None:
    with pytest.raises(RuntimeError):
        scope.core.get_image()


def test_noise_differs_from_frame_to_frame_and_repeats_with_the_seed() -> None:
    runs = []
    for seed in (1, 1, 2):
        with SimulatedScope(Spots(), settings=NOISY.model_copy(update={"seed": seed})) as scope:
            runs.append([snap(scope.core) for _ in range(2)])
    assert not np.array_equal(runs[0][0], runs[0][1])
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0][0], runs[2][0])


def test_truth_lies_under_the_view(scope: SimulatedScope) -> None:
    assert brightest(scope.truth()["nuclei"]) == pytest.approx((74, 50), abs=1)
    moved = replace(scope.view(), x_um=-9.0, y_um=3.0)
    assert brightest(scope.truth(moved)["nuclei"]) == pytest.approx((64, 80), abs=1)


def test_the_specimen_is_called_from_one_thread(scope: SimulatedScope) -> None:
    snap(scope.core)
    run_sequence(scope.core, 2)
    assert isinstance(scope.specimen, Spots) and len(scope.specimen.threads) == 1


# a specimen that fails


def test_a_specimen_that_fails_fails_the_snap_not_the_fetch() -> None:
    with SimulatedScope(Spots(fails=True), settings=QUIET) as scope:
        with pytest.raises(ScopeError, match="ZeroDivisionError: the specimen fell off the stage"):
            scope.core.snap_image()
        scope.core.start_sequence_acquisition(1, 0, True)
        wait_until(lambda: not scope.core.is_sequence_running())
        with pytest.raises(ScopeError, match="could not be rendered"):
            scope.core.pop_next_image()


def test_an_image_of_the_wrong_size_is_refused() -> None:
    @dataclass
    class Cropped(Spots):
        def render(self, view: View) -> np.ndarray:
            return super().render(view)[1:]

    with SimulatedScope(Cropped(), settings=QUIET) as scope, pytest.raises(ScopeError, match="wrong size"):
        scope.core.snap_image()


# opening and closing


def test_open_and_close_any_number_of_times_without_a_trace() -> None:
    from mmpycorex import launcher
    from pycromanager import Core

    makes = launcher._create_pymmcore_instance
    before = set(threading.enumerate())
    for number in range(5):
        with SimulatedScope(Spots(), settings=QUIET) as scope:
            assert Core() is scope.core
            scope.core.set_position(float(number))
            assert snap(scope.core).any()
        assert launcher._create_pymmcore_instance is makes
    wait_until(lambda: set(threading.enumerate()) <= before)
    assert not launcher._PYMMCORES


def test_the_same_scope_opens_again() -> None:
    scope = SimulatedScope(Spots(), settings=QUIET)
    images = []
    for _ in range(2):
        with scope:
            images.append(snap(scope.core))
    np.testing.assert_array_equal(*images)


def test_a_second_scope_says_that_one_is_open(scope: SimulatedScope) -> None:
    with pytest.raises(ScopeError, match="open in this process already"), SimulatedScope(Spots()):
        pass
    with pytest.raises(ScopeError, match="open already"), scope:
        pass
    assert snap(scope.core).any()


def test_a_core_somebody_stopped_does_not_stand_in_the_way() -> None:
    from mm_test_adapters import device_adapter_path
    from pycromanager import start_headless, stop_headless

    start_headless(device_adapter_path(), "MMConfig_demo.cfg", python_backend=True, buffer_size_mb=4)
    stop_headless()
    with SimulatedScope(Spots(), settings=QUIET) as scope:
        assert snap(scope.core).any()


def test_closed_scopes_say_so() -> None:
    scope = SimulatedScope(Spots(), settings=QUIET)
    for use in (lambda: scope.core, scope.view, scope.truth):
        with pytest.raises(ScopeError, match="closed"):
            use()


def test_an_error_inside_closes_the_scope() -> None:
    with pytest.raises(KeyError, match="mine"), SimulatedScope(Spots(), settings=QUIET):
        raise KeyError("mine")
    with SimulatedScope(Spots(), settings=QUIET) as scope:
        assert snap(scope.core).any()


def test_a_core_that_does_not_start_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.cfg"
    broken.write_text("Device,Camera,DemoCamera,NoSuchDevice\n")
    monkeypatch.setattr("acq_isl.sim.scope.scope.CONFIG_FILE", broken)
    with pytest.raises(ScopeError, match="did not start"), SimulatedScope(Spots(), settings=QUIET):
        pass
    monkeypatch.undo()
    with SimulatedScope(Spots(), settings=QUIET) as scope:
        assert snap(scope.core).any()


def test_missing_adapters_are_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_adapters(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "mm_test_adapters":
            raise ModuleNotFoundError("No module named 'mm_test_adapters'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_adapters)
    with pytest.raises(ScopeError, match="mm-test-adapters") as caught, SimulatedScope(Spots()):
        pass
    assert caught.value.fix == 'pip install -e ".[sim]"'


def test_channels_of_the_specimen_become_presets() -> None:
    settings = QUIET.model_copy(update={"channels": {}})
    with SimulatedScope(Spots(channels=("Brightfield", "DAPI", "Cy5")), settings=settings) as scope:
        core = scope.core
        assert set(core.get_available_configs("Channel")) >= {"Brightfield", "DAPI", "Cy5"}
        assert core.get_current_config("Channel") == "Brightfield"
        assert core.get_shutter_device() == "Transmitted Shutter"
        core.set_config("Channel", "Cy5")
        assert core.get_shutter_device() == "Fluorescence Shutter"
        assert scope.view().channel == "Cy5"


@pytest.mark.parametrize("channels", [(), tuple(f"C{n}" for n in range(7))])
def test_too_many_channels_are_refused(channels: tuple[str, ...]) -> None:
    with pytest.raises(ScopeError, match="filter wheel"), SimulatedScope(Spots(channels=channels)):
        pass


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (0, 10)},
        {"x_limits_um": (5.0, 5.0)},
        {"z_limits_um": (-301.0, 0.0)},
        {"bit_depth": 13},
        {"pixel_size_um": 0.0},
        {"exposure": 10},
    ],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ScopeSettings(**wrong)


# recorded specimens through the scope


def recorded() -> RecordedSpecimen:
    rng = np.random.default_rng(1)
    stack = rng.integers(0, 65536, (5, 128, 160), dtype=np.uint16)
    nuclei = rng.integers(0, 65536, (128, 160), dtype=np.uint16)
    return RecordedSpecimen(stack, {"nuclei": RecordedLabel("DAPI", nuclei)}, 0.3, z_step_um=1.5)


def test_a_recorded_stack_comes_back_with_its_counts() -> None:
    specimen = recorded()
    with SimulatedScope(specimen, settings=ScopeSettings(shape=(128, 160))) as scope:
        core = scope.core
        stack = []
        for z_um in specimen.planes_z_um:
            core.set_position(z_um)
            stack.append(snap(core))
        np.testing.assert_array_equal(stack, specimen.transmitted)
        core.set_roi(11, 7, 99, 33)
        np.testing.assert_array_equal(snap(core), specimen.transmitted[4, 7:40, 11:110])
        core.set_xy_position(3.0, 6.0)  # 10 and 20 pixels
        core.wait_for_device("XY")
        np.testing.assert_array_equal(snap(core), specimen.transmitted[4, 27:60, 21:120])
        core.clear_roi()
        core.set_xy_position(0, 0)
        core.wait_for_device("XY")
        core.set_config("Channel", "DAPI")
        core.set_exposure(50)
        np.testing.assert_array_equal(snap(core), specimen.labels["nuclei"].pixels)


@pytest.mark.skipif(not FIELD.is_dir(), reason="shared/data/isl_condition_b is not here")
def test_the_real_field_comes_back_with_its_counts() -> None:
    specimen = RecordedSpecimen.from_folder(FIELD)
    with SimulatedScope(specimen, settings=ScopeSettings(shape=(1024, 704))) as scope:
        for z_um, plane in zip(specimen.planes_z_um, specimen.transmitted, strict=True):
            scope.core.set_position(z_um)
            np.testing.assert_array_equal(snap(scope.core), plane)
        truth = scope.truth()
    np.testing.assert_array_equal(np.rint(truth["axons"] * 65535), specimen.labels["axons"].pixels)


def test_a_recorded_specimen_can_be_given_noise_all_the_same() -> None:
    settings = ScopeSettings(shape=(128, 160), camera=CameraSettings())
    with SimulatedScope(recorded(), settings=settings) as scope:
        scope.core.set_shutter_device("")
        assert not np.array_equal(snap(scope.core), recorded().transmitted[2])


# under a real acquisition


def events() -> list[dict[str, Any]]:
    """Two positions of five planes in Phase, one image of each in DAPI."""
    made: list[dict[str, Any]] = []
    for place, x_um in (("A", 0.0), ("B", 30.0)):
        for channel, exposure_ms, planes_um in (
            ("Phase", 10, (0.0, 1.5, 3.0, 4.5, 6.0)),
            ("DAPI", 50, (3.0,)),
        ):
            for z, z_um in enumerate(planes_um):
                made.append(
                    {
                        "axes": {"position": place, "channel": channel, "z": z},
                        "config_group": ["Channel", channel],
                        "exposure": exposure_ms,
                        "x": x_um,
                        "y": 0.0,
                        "z": z_um,
                    }
                )
    return made


def acquire(folder: Path, wanted: list[dict[str, Any]]) -> dict[tuple[str, str, int], np.ndarray]:
    from pycromanager import Acquisition

    acquisition = Acquisition(directory=str(folder), name="run", show_display=False)
    try:
        acquisition.acquire(wanted)
    finally:
        acquisition.mark_finished()
        acquisition.await_completion()
    dataset = acquisition.get_dataset()
    try:
        keys = [(e["axes"]["position"], e["axes"]["channel"], e["axes"]["z"]) for e in wanted]
        return {(p, c, z): dataset.read_image(position=p, channel=c, z=z) for p, c, z in keys}
    finally:
        dataset.close()


def test_an_acquisition_measures_the_specimen(tmp_path: Path) -> None:
    specimen = recorded()
    with SimulatedScope(specimen, settings=ScopeSettings(shape=(64, 64))) as scope:
        images = acquire(tmp_path, events())
        assert len(images) == 12
        for (place, channel, z), image in images.items():
            event = next(e for e in events() if e["axes"] == {"position": place, "channel": channel, "z": z})
            view = replace(scope.view(), x_um=event["x"], z_um=event["z"], channel=channel)
            np.testing.assert_array_equal(image, np.rint(specimen.render(view) * 65535))


def test_a_hardware_sequenced_acquisition_measures_the_same(tmp_path: Path) -> None:
    wanted = [e for e in events() if e["axes"]["channel"] == "Phase"][:5]
    with SimulatedScope(Spots(), settings=QUIET) as scope:
        software = acquire(tmp_path / "software", wanted)
        assert not scope.core.is_stage_sequenceable("Z")
        scope.core.set_property("Z", "UseSequences", "Yes")
        assert scope.core.is_stage_sequenceable("Z")
        hardware = acquire(tmp_path / "hardware", wanted)
    assert software.keys() == hardware.keys()
    for key, image in software.items():
        np.testing.assert_array_equal(hardware[key], image)


def test_leaving_the_limits_is_pycromanagers_hardware_error(tmp_path: Path) -> None:
    from pycromanager.acquisition.acq_eng_py.internal.engine import HardwareControlException

    wanted = events()[:3]
    wanted[0]["x"] = 5001.0
    with SimulatedScope(Spots(), settings=QUIET), pytest.raises(HardwareControlException):
        acquire(tmp_path, wanted)


def test_a_scope_closes_under_an_acquisition_left_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from pycromanager import Acquisition

    with SimulatedScope(Spots(), settings=QUIET):
        acquisition = Acquisition(directory=str(tmp_path), name="run", show_display=False)
        acquisition.acquire(events()[:3])
        wait_until(lambda: len(acquisition.get_dataset().get_image_coordinates_list()) == 3)
    assert "still open" in caplog.text
    with SimulatedScope(Spots(), settings=QUIET) as scope:
        assert snap(scope.core).any()
        acquisition.mark_finished()
        acquisition.await_completion()
    assert len(acquisition.get_dataset().get_image_coordinates_list()) == 3
    acquisition.get_dataset().close()
