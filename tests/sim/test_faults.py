"""Planted faults: what each does to the simulated core, and what the guarded acquisition makes of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import acq_isl
from acq_isl.engines.image_quality import check_image_quality
from acq_isl.errors import AcquisitionFailed, EngineError, ExperimentError, ScopeError, StackRefused
from acq_isl.experiment.experiment import Experiment, SimulatedMicroscope
from acq_isl.experiment.faults import (
    BufferOverflow,
    DroppedFrames,
    EngineDead,
    EngineSlow,
    EngineWrong,
    Fault,
    FocusDrift,
    HardwareTimeout,
    LampFlicker,
    PresetFails,
    ScopeFault,
    SettleTime,
    StageBacklash,
    StuckShutter,
    of_engine,
    of_scope,
    parse_fault,
)
from acq_isl.hooks import GuardedAcquisition
from acq_isl.rules import Limits
from acq_isl.sim import CameraSettings, ScopeSettings, SimulatedScope, View
from acq_isl.sim.faulty_engine import FaultyEngine
from acq_isl.sim.scope.backlash import StageOffsets
from acq_isl.sim.scope.exposure import Exposure
from acq_isl.sim.scope.faults import PlantedFaults
from acq_isl.stack import Prediction, Slice, StackInfo, StackKey, StackRequest, ZStack
from acq_isl.stream.model_registry import ModelRegistry, ServedModel
from acq_isl.stream.schedule import Job
from acq_isl.stream.worker import predict

QUIET = ScopeSettings(shape=(96, 96), camera=CameraSettings.noiseless(), buffer_size_mb=16)
SOON_S = 5.0


class Ramp:
    """Light that tells the place: it grows with x and y, and with z in steps of a plane."""

    channels = ("Phase", "DAPI")

    def render(self, view: View) -> np.ndarray:
        rows, columns = view.shape
        y = view.y_um + (np.arange(rows)[:, None] - (rows - 1) / 2) * view.pixel_size_um
        x = view.x_um + (np.arange(columns) - (columns - 1) / 2) * view.pixel_size_um
        texture = 0.05 * np.sin(x / 2) * np.sin(y / 2)
        return (0.3 + 0.001 * x + 0.001 * y + 0.01 * view.z_um + texture).astype(np.float32)

    def truth(self, view: View) -> dict[str, np.ndarray]:
        return {}


class Tilted(Ramp):
    """Its texture moves with z, as that of anything with a height does."""

    def render(self, view: View) -> np.ndarray:
        return super().render(replace(view, x_um=view.x_um + 3.0 * view.z_um))


# the words for them

TEXTS: dict[str, Fault] = {
    "focus-drift:2": FocusDrift(2.0),
    "focus-drift:um_per_min=-1.5,after_s=10": FocusDrift(-1.5, after_s=10),
    "stage-backlash:3,xyz": StageBacklash(3.0, "xyz"),
    "settle-time:200, um=1": SettleTime(200.0, um=1.0),
    "lamp-flicker:0.02": LampFlicker(0.02),
    "dropped-frames:10": DroppedFrames(every=10),
    "dropped-frames:at=3+7": DroppedFrames(at=(3, 7)),
    "stuck-shutter:after=30,until=40": StuckShutter(after=30, until=40),
    "preset-fails:DAPI,times=3": PresetFails("DAPI", times=3),
    "hardware-timeout:XY,wait_s=0.5,until_s=60": HardwareTimeout("XY", wait_s=0.5, until_s=60),
    "buffer-overflow:after=5": BufferOverflow(after=5),
    "engine-slow:500": EngineSlow(500.0),
    "engine-dead:after=2": EngineDead(after=2),
    "engine-wrong:nan": EngineWrong("nan"),
}


@pytest.mark.parametrize("text, fault", TEXTS.items(), ids=TEXTS)
def test_a_fault_is_a_short_text(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault
    assert parse_fault(str(fault)) == fault


MISSPELT = {
    "focus-drft:2": "did you mean 'focus-drift'",
    "focus-drift": "um_per_min: Field required",
    "focus-drift:fast": "valid number",
    "focus-drift:2,untl=3": "did you mean 'until'",
    "stuck-shutter:half": "'closed' or 'open'",
    "engine-dead:3": "what is '3'",
    "lamp-flicker:-1": "greater than 0",
    "": "there is no fault ''",
}


@pytest.mark.parametrize("text, said", MISSPELT.items(), ids=MISSPELT)
def test_a_misspelt_fault_names_the_nearest(text: str, said: str) -> None:
    with pytest.raises(ExperimentError, match="cannot be planted") as caught:
        parse_fault(text)
    assert said in str(caught.value)


def test_faults_of_an_experiment_file_are_texts_or_keys_and_read_back() -> None:
    text = """
name: practice
microscope:
  kind: simulated
  faults: ["focus-drift:2", {kind: dropped-frames, at: [3, 7]}, engine-dead]
overview: {channels: [Phase], z_plan: {range: 2, step: 1}, stage_positions: [{x: 0, y: 0, z: 0}]}
"""
    experiment = Experiment.from_text(text)
    assert isinstance(experiment.microscope, SimulatedMicroscope)
    faults = experiment.microscope.faults
    assert faults == (FocusDrift(2.0), DroppedFrames(at=(3, 7)), EngineDead())
    again = Experiment.from_text(experiment.to_yaml())
    assert again.microscope == experiment.microscope
    assert (of_scope(faults), of_engine(faults)) == (faults[:2], faults[2:])
    with pytest.raises(ExperimentError, match="did you mean 'focus-drift'"):
        Experiment.from_text(text.replace("focus-drift:2", "focus-drifft:2"))
    with pytest.raises(ExperimentError, match="has no 'att'"):
        Experiment.from_text(text.replace("at: [3", "att: [3"))


def test_values_are_checked_in_python_too() -> None:
    with pytest.raises(ValidationError):
        SettleTime(-1.0)
    with pytest.raises(ScopeError, match="cannot have the fault engine-dead"):
        SimulatedScope(Ramp(), faults=[EngineDead()])  # type: ignore[list-item]


@given(after=st.integers(0, 5), length=st.integers(0, 5), after_s=st.floats(0, 5), count=st.integers(0, 12))
def test_a_fault_acts_between_after_and_until(after: int, length: int, after_s: float, count: int) -> None:
    fault = StuckShutter(after=after, until=after + length, after_s=after_s)
    assert fault.active(count, after_s) == (after <= count < after + length)
    assert not fault.active(after, after_s - 1e-3)


# what an image shows


def exposure(x_um: float = 0.0, z_um: float = 0.0, when_s: float = 0.0) -> Exposure:
    view = View(x_um, 0.0, z_um, "Phase", 0.3, (4, 4))
    return Exposure(view, 10.0, True, False, 16, 2, when_s, (x_um, 0.0, z_um))


def planted(*faults: ScopeFault, seed: int = 0) -> PlantedFaults:
    made = PlantedFaults(faults, seed)
    made.arm()
    return made


def test_focus_drifts_from_when_it_begins() -> None:
    faults = planted(FocusDrift(6.0, after_s=10.0))
    seen = [faults.apply(exposure(z_um=1.0), 0, second).view.z_um for second in (0.0, 10.0, 20.0, 70.0)]
    assert seen == pytest.approx([1.0, 1.0, 2.0, 7.0])


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=20), st.floats(0.1, 5))
def test_backlash_is_play_that_is_taken_up(stops_um: list[float], um: float) -> None:
    fault = StageBacklash(um)
    offsets, here, true_um = StageOffsets([fault]), 0.0, 0.0
    for number, stop in enumerate(stops_um):
        offsets.start_move(float(number), (here, 0.0, 0.0), (stop, 0.0, 0.0))
        off = offsets.backlash(fault, number + 0.5, (stop, 0.0, 0.0))
        assert abs(off[0]) <= um / 2 + 1e-9 and off[1:] == (0.0, 0.0)
        # The table follows the spindle's nut and never runs ahead of it.
        assert (stop + off[0] - true_um) * (stop - here) >= -1e-9
        if abs(stop - here) >= um:
            assert abs(off[0]) == pytest.approx(um / 2)
        here, true_um = stop, stop + off[0]


def test_the_stage_settles_after_it_arrived() -> None:
    fault = SettleTime(100.0, um=2.0)
    offsets = StageOffsets([])
    assert offsets.settling(fault, 0.0, (0.0, 0.0, 0.0)) == (0.0, 0.0, 0.0)
    offsets.start_move(1.0, (0.0, 0.0, 0.0), (50.0, -0.5, 9.0))
    offsets.end_move(1.5)
    there = (50.0, -0.5, 9.0)
    assert offsets.settling(fault, 1.5, there) == pytest.approx((-2.0, 0.5, 0.0))
    assert offsets.settling(fault, 1.6, there) == pytest.approx((-0.0996, 0.0249, 0.0), abs=1e-4)
    assert offsets.settling(fault, 9.0, there) == pytest.approx((0.0, 0.0, 0.0))


def test_the_lamp_flickers_as_told_and_repeats_with_the_seed() -> None:
    def lamps(seed: int) -> list[float]:
        faults = planted(LampFlicker(0.05), seed=seed)
        return [faults.apply(exposure(), number, 0.0).lamp for number in range(400)]

    first = lamps(1)
    assert np.mean(first) == pytest.approx(1.0, abs=0.01)
    assert np.std(first) == pytest.approx(0.05, rel=0.15)
    assert first == lamps(1) != lamps(2)


@pytest.mark.parametrize(
    "fault, gone",
    [
        (DroppedFrames(every=3), [2, 5, 8]),
        (DroppedFrames(every=3, after=1), [3, 6, 9]),
        (DroppedFrames(at=(0, 4)), [0, 4]),
        (DroppedFrames(probability=1.0, after=2, until=4), [2, 3]),
        (DroppedFrames(), []),
    ],
)
def test_which_frames_are_dropped(fault: DroppedFrames, gone: list[int]) -> None:
    faults = planted(fault)
    assert [number for number in range(10) if faults.dropped(number, 0.0)] == gone


def test_frames_dropped_at_random_repeat_with_the_seed() -> None:
    def gone(seed: int) -> list[bool]:
        faults = planted(DroppedFrames(probability=0.3), seed=seed)
        return [faults.dropped(number, 0.0) for number in range(300)]

    assert gone(1) == gone(1) != gone(2)
    assert sum(gone(1)) == pytest.approx(90, abs=25)


def test_faults_wait_until_the_microscope_is_set_up() -> None:
    with SimulatedScope(Ramp(), settings=QUIET, faults=[PresetFails("Phase")]) as scope:
        assert scope.core.get_current_config("Channel") == "Phase"
        with pytest.raises(RuntimeError, match="did not answer"):
            scope.core.set_config("Channel", "Phase")
        with pytest.raises(RuntimeError, match="did not answer"):
            scope.core.setConfig("Channel", "Phase")


def test_a_scope_without_faults_pays_nothing() -> None:
    from acq_isl.sim.scope.core_faults import FaultyCalls

    with SimulatedScope(Ramp(), settings=QUIET) as scope:
        assert not isinstance(scope.core, FaultyCalls)


def test_a_stuck_stage_is_busy_and_times_out_as_the_core_says_it() -> None:
    with SimulatedScope(
        Ramp(), settings=QUIET, faults=[HardwareTimeout("XY", times=2, wait_s=0.01)]
    ) as scope:
        core = scope.core
        assert core.device_busy("XY") and core.deviceBusy("XY") and not core.device_busy("Z")
        for wait in (lambda: core.wait_for_device("XY"), core.wait_for_system):
            with pytest.raises(RuntimeError, match='Wait for device "XY" timed out after 10ms'):
                wait()
        core.wait_for_device("XY")
        assert not core.device_busy("XY")


def test_frames_missing_from_a_sequence_are_missing_without_a_trace() -> None:
    """The numbers that the core gives hide the gap, as with a real camera; the z of the rest is right."""
    with SimulatedScope(Ramp(), settings=QUIET, faults=[DroppedFrames(at=(1, 4))]) as scope:
        core, z_um = scope.core, [0.0, 1.0, 2.0, 3.0, 4.0]
        core.set_property("Z", "UseSequences", "Yes")
        core.load_stage_sequence("Z", z_um)
        core.start_stage_sequence("Z")
        core.start_sequence_acquisition(5, 0, True)
        deadline = time.monotonic() + SOON_S
        while core.is_sequence_running() and time.monotonic() < deadline:
            time.sleep(0.002)
        assert core.get_remaining_image_count() == core.getRemainingImageCount() == 3
        seen, numbers = [], []
        while core.get_remaining_image_count():
            numbers.append(core.pop_next_tagged_image().tags["ImageNumber"])
            seen.append(core.last_exposure.view.z_um)
        with pytest.raises(IndexError):
            core.pop_next_image()
    assert seen == [0.0, 2.0, 3.0] and numbers == ["0", "1", "2"]


# what the guarded acquisition makes of it


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.slices: list[Slice] = []

    def put(self, slice_: Slice) -> None:
        self.slices.append(slice_)


def request(position: str = "A", x_um: float = 0.0, preset: str = "Phase", planes: int = 5) -> StackRequest:
    z_um = tuple(float(plane) for plane in range(planes))
    return StackRequest(StackKey(0, position, preset), x_um, 0.0, z_um, "Channel", preset, 5.0)


def guarded(folder: Path, name: str = "m", sink: Kept | None = None) -> GuardedAcquisition:
    """With the watchdog a user gets who sets nothing."""
    return GuardedAcquisition(folder, name, limits=Limits(), sink=sink)


@dataclass(frozen=True)
class Row:
    """One fault, and what a guarded stack of five planes in Phase, then one of DAPI, becomes with it."""

    faults: tuple[ScopeFault, ...]
    stops: str = ""
    """Text of the error that stops it; none: all ten slices arrive."""
    sequenced: bool = False


ROWS = {
    "focus drift": Row((FocusDrift(60.0),)),
    "backlash": Row((StageBacklash(3.0, "xyz"),)),
    "settle time": Row((SettleTime(100.0),)),
    "lamp flicker": Row((LampFlicker(0.1),)),
    "stuck shutter": Row((StuckShutter(),)),
    "a frame dropped": Row((DroppedFrames(at=(2,)),), "no image arrived"),
    "a frame of a sequence dropped": Row(
        (DroppedFrames(at=(2,)),), "z of the 4 slices .* is not to be trusted", sequenced=True
    ),
    "the last frame dropped": Row((DroppedFrames(at=(4,)),), "did not arrive", sequenced=True),
    "preset fails for a while": Row((PresetFails("DAPI", times=3),)),
    "preset fails": Row((PresetFails("DAPI", times=6),), 'Cannot set group "Channel" to preset "DAPI"'),
    "stage late once": Row((HardwareTimeout("XY", times=1, wait_s=0.3),)),
    "stage stuck": Row((HardwareTimeout("XY", times=6, wait_s=0.1),), 'Wait for device "XY" timed out'),
    "focus drive stuck": Row((HardwareTimeout("Z", times=6, wait_s=0.1, after=1),), "Z"),
    "camera gives up": Row((HardwareTimeout("Camera", times=1, wait_s=0.2, after=1),), "Camera"),
    "buffer overflow": Row((BufferOverflow(times=1, after=1),), "overflow", sequenced=True),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_right_data_or_a_typed_error_soon(row: Row, tmp_path: Path) -> None:
    stacks = (request(), request(preset="DAPI"))
    with SimulatedScope(Ramp(), settings=QUIET, faults=row.faults) as scope:
        scope.core.set_property("Z", "UseSequences", "Yes" if row.sequenced else "No")
        if not row.stops:
            with guarded(tmp_path) as acquisition:
                for one in stacks:
                    acquisition.acquire(one)
                assert [acquisition.images(one).shape for one in stacks] == [(5, 96, 96)] * 2
            return
        began = time.monotonic()
        with pytest.raises(AcquisitionFailed, match=row.stops), guarded(tmp_path) as acquisition:
            for one in stacks:
                acquisition.acquire(one)
        assert time.monotonic() - began < SOON_S
        with guarded(tmp_path, "again") as acquisition:
            for one in stacks:
                acquisition.acquire(one)
            assert acquisition.images(stacks[1]).shape == (5, 96, 96)


def test_a_camera_that_hangs_is_given_up_soon(tmp_path: Path) -> None:
    with SimulatedScope(Ramp(), settings=QUIET, faults=[HardwareTimeout("Camera", wait_s=60, after=2)]):
        began = time.monotonic()
        silence = pytest.raises(AcquisitionFailed, match="nothing has come from the microscope")
        with silence, guarded(tmp_path) as acquisition:
            acquisition.acquire(request())
        assert time.monotonic() - began < 2 * SOON_S


def test_a_stuck_stage_is_named_as_soon_as_a_camera_that_hangs(tmp_path: Path) -> None:
    with SimulatedScope(Ramp(), settings=QUIET, faults=[HardwareTimeout("XY", after=2)]) as scope:
        scope.core.set_property("Z", "UseSequences", "No")
        named = pytest.raises(
            AcquisitionFailed, match=r"nothing has come .* for [4-7]\.\d s.*got: XY is busy"
        )
        with named, guarded(tmp_path) as acquisition:
            acquisition.acquire(request())
            acquisition.acquire(request("B", x_um=50.0))


def test_no_wrong_stack_reaches_the_engine_when_a_frame_is_missing(tmp_path: Path) -> None:
    """The slices behind the gap carry the wrong z; so the stack must stay incomplete."""
    sink = Kept()
    with SimulatedScope(Ramp(), settings=QUIET, faults=[DroppedFrames(at=(2,))]) as scope:
        scope.core.set_property("Z", "UseSequences", "Yes")
        doubt = r"the z of the 4 slices .* not to be trusted.*position=A.* in .*m_1"
        with pytest.raises(AcquisitionFailed, match=doubt), guarded(tmp_path, sink=sink) as acquisition:
            acquisition.acquire(request())
    assert len(sink.slices) < 5


def snapped(core: Any) -> np.ndarray:
    core.snap_image()
    return core.get_image()


def test_backlash_shifts_a_field_that_is_reached_from_the_other_side() -> None:
    with SimulatedScope(Ramp(), settings=QUIET, faults=[StageBacklash(3.0)]) as scope:
        core, seen = scope.core, []
        for x_um in (-30.0, 0.0, 30.0, 0.0):
            core.set_xy_position(x_um, 0.0)
            core.wait_for_device("XY")
            core.snap_image()
            seen.append(scope.last_exposure)
    assert seen[3].view.x_um - seen[1].view.x_um == pytest.approx(3.0, abs=0.05)
    assert seen[3].stage_um[0] == pytest.approx(seen[1].stage_um[0], abs=0.02)


def test_the_data_of_a_drifting_focus_shows_where_it_truly_was(tmp_path: Path) -> None:
    """Nothing can notice it but the picture: the stack is complete and its z is what was asked."""
    with SimulatedScope(Ramp(), settings=QUIET, faults=[FocusDrift(600.0)]) as scope:
        with guarded(tmp_path) as acquisition:
            acquisition.acquire(request())
            images = acquisition.images(request())
        seen = scope.last_exposure
    assert seen is not None and seen.stage_um[2] == 4.0
    drift_um = seen.view.z_um - 4.0
    assert 0.1 < drift_um < 20
    light = images[4].mean() / 65535 * 2  # 5 ms of 10
    assert light == pytest.approx(0.3 + 0.01 * (4.0 + drift_um), abs=2e-3)


def test_stacks_behind_a_stuck_shutter_are_refused_by_the_engine(tmp_path: Path) -> None:
    noisy = QUIET.model_copy(update={"camera": CameraSettings()})
    with (
        SimulatedScope(Tilted(), settings=noisy, faults=[StuckShutter(after=5)]),
        guarded(tmp_path) as acquisition,
    ):
        stacks = {}
        for one in (request(), request("B")):
            acquisition.acquire(one)
            info = StackInfo(one.key, one.z_um, (96, 96), 0.3)
            stacks[one.key.position] = ZStack(info, acquisition.images(one), (0.0,) * 5)
    check_image_quality(stacks["A"])
    with pytest.raises(StackRefused):
        check_image_quality(stacks["B"])


# the engine


class Calm:
    """An engine that predicts one label, 0.25 everywhere."""

    manifest: Any = "the manifest"
    closed = False

    def predict(self, stack: ZStack) -> Prediction:
        mean = np.full((1, *stack.info.shape), 0.25, np.float32)
        return Prediction(stack.info, ("nuclei",), mean, np.zeros_like(mean), "0" * 64, "calm", "fake")

    def close(self) -> None:
        self.closed = True


STACK = ZStack(
    StackInfo(StackKey(0, "A", "Phase"), (0.0,), (32, 32), 0.3), np.ones((1, 32, 32), np.uint16), (0.0,)
)


def test_an_engine_errs_when_it_is_told() -> None:
    engine = FaultyEngine(Calm(), [EngineWrong(after=1, until=2)])
    assert engine.predict(STACK).mean.max() == 0.25
    with pytest.raises(EngineError, match="as planted"):
        engine.predict(STACK)
    assert engine.predict(STACK).mean.max() == 0.25
    assert engine.manifest == "the manifest"


def test_an_engine_gives_no_numbers_or_the_wrong_ones() -> None:
    assert np.isnan(FaultyEngine(Calm(), [EngineWrong("nan")]).predict(STACK).mean).all()
    first, same, other = (
        FaultyEngine(Calm(), [EngineWrong("noise")], seed=seed).predict(STACK).mean for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert first.shape == (1, 32, 32) and first.dtype == np.float32
    assert 0.0 <= first.min() < first.max() <= 1.0 and not np.array_equal(first, other)


def test_an_engine_dies_at_the_stack_it_is_told() -> None:
    class Died(BaseException):
        pass

    def die() -> None:
        raise Died

    engine = FaultyEngine(Calm(), [EngineDead(after=1)], die=die)
    engine.predict(STACK)
    with pytest.raises(Died):
        engine.predict(STACK)


def test_a_slow_engine_is_slow_and_still_closes_at_once() -> None:
    calm = Calm()
    engine = FaultyEngine(calm, [EngineSlow(30.0)])
    began = time.monotonic()
    engine.predict(STACK)
    assert time.monotonic() - began >= 0.03
    engine.close()
    assert calm.closed
    began = time.monotonic()
    FaultyEngine(calm, [EngineSlow(1.0)]).predict(STACK)
    assert time.monotonic() - began < SOON_S


def test_the_focus_drifts_by_the_clock_of_the_specimen() -> None:
    with SimulatedScope(Ramp(), settings=QUIET, faults=[FocusDrift(1.0)]) as scope:
        scope.core.snap_image()
        scope.timeline.advance(600)
        assert scope.view().z_um == pytest.approx(10.0, abs=0.1)
        assert scope.core.get_position() == 0.0


def test_what_is_not_a_number_never_counts_as_a_prediction() -> None:
    """Found by planting it: such predictions were counted, kept, and chosen from."""
    job = Job("session", 1, "calm", STACK, 0.0)
    for fault, said in ((EngineWrong("nan"), b"not a number"), (EngineWrong("error"), b"as planted")):
        registry = ModelRegistry([ServedModel(FaultyEngine(Calm(), [fault]), "calm")])
        (header, *_) = predict(registry, job)
        assert said in bytes(header)


PRACTICE = """
name: practice
microscope: {{kind: simulated, camera_px: [192, 192], faults: ["{fault}"]}}
optics: {{modality: phase contrast, polarity: dark}}
overview:
  grid_plan: {{rows: 1, columns: 3}}
  z_plan: {{range: 18, step: 1.5}}
  channels: [{{config: Phase, exposure: 5}}]
engine: {{kind: local, threads: 1}}
choose: {{k: 1, measurement: {{kind: mean_intensity, label: dendrites}}}}
prediction_timeout_s: 120
output: {output}
"""
# Of three stacks of 13 planes: how many slices are predicted, refused, and wait for an engine.
RUNS = {
    "engine-slow:200": (39, 0, 0),
    "engine-dead:after=1": (39, 0, 0),  # it is started again twice, and predicts one stack each time
    "engine-wrong:error,after=1": (13, 0, 26),
    "engine-wrong:nan,after=1": (13, 0, 26),
    "engine-wrong:noise": (39, 0, 0),
    "stuck-shutter:after=13": (13, 26, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault, counted", RUNS.items(), ids=RUNS)
def test_a_run_goes_on_to_its_end_and_every_slice_is_accounted_for(
    fault: str, counted: tuple[int, int, int], tmp_path: Path
) -> None:
    text = PRACTICE.format(fault=fault, output=tmp_path.as_posix())
    result = acq_isl.run(Experiment.from_text(text))
    counts = result.record.counts
    assert (counts.captured, counts.lost) == (39, 0)
    assert (counts.predicted, counts.refused, counts.spooled) == counted
    assert f"faults planted: {parse_fault(fault)}" in result.report.read_text(encoding="utf-8")
