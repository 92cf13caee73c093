"""An independent witness: devices that write their true state and every command into each image.

Micro-Manager's own test adapter SequenceTester knows nothing of acq-isl. What stands in its images is
compared with what the hooks, the guard and the simulated microscope believe.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acq_isl.hooks import CaptureHook, GuardedAcquisition, UserHooks, open_measured
from acq_isl.rules import Limits
from acq_isl.sim import CameraSettings, ScopeSettings, SimulatedScope, View
from acq_isl.stack import Slice, StackKey, StackRequest

CONFIG = """
Property,Core,Initialize,0
Device,THub,SequenceTester,THub
Device,TCamera,SequenceTester,TCamera
Device,TXY,SequenceTester,TXYStage
Device,TZ,SequenceTester,TZStage
Device,TShutter,SequenceTester,TShutter
Device,TSwitcher,SequenceTester,TSwitcher
Property,TCamera,ImageMode,MachineReadable
Property,TCamera,ImageWidth,96
Property,TCamera,ImageHeight,96
Parent,TCamera,THub
Parent,TXY,THub
Parent,TZ,THub
Parent,TShutter,THub
Parent,TSwitcher,THub
Property,Core,Initialize,1
Property,Core,Camera,TCamera
Property,Core,Focus,TZ
Property,Core,XYStage,TXY
Property,Core,Shutter,TShutter
Property,Core,AutoShutter,1
ConfigGroup,Channel,Phase,TSwitcher,State,0
ConfigGroup,Channel,DAPI,TSwitcher,State,1
ConfigGroup,Channel,MAP2,TSwitcher,State,2
"""
PLACES = ("Phase", "DAPI", "MAP2")
STEP_UM = 0.1  # of TXYStage
# First byte of a MessagePack value (msgpack.org, the specification), and the form of the number behind it.
NUMBERS = dict(zip(range(0xCA, 0xD4), "fdBHIQbhiq", strict=True))
CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


# what stands in an image


class Unpacker:
    """The part of MessagePack that SequenceTester writes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def value(self) -> Any:
        first = self._take(1)[0]
        if first < 0x80:
            found: Any = first
        elif first < 0xA0:
            found = [self.value() for _ in range(first & 15)]
        elif first < 0xC0:
            found = self._take(first & 31).decode()
        elif first >= 0xE0:
            found = first - 256
        elif first in CONSTANTS:
            found = CONSTANTS[first]
        elif first in NUMBERS:
            found = self._number(NUMBERS[first])
        elif first == 0xD9:
            found = self._take(self._number("B")).decode()
        elif first == 0xDC:
            found = [self.value() for _ in range(self._number("H"))]
        else:
            raise ValueError(f"SequenceTester wrote a type that is not read here: {first:#x}")
        return found

    def _number(self, form: str) -> Any:
        return struct.unpack(f">{form}", self._take(struct.calcsize(form)))[0]

    def _take(self, count: int) -> bytes:
        self._at += count
        taken = self._data[self._at - count : self._at]
        if len(taken) < count:
            raise ValueError("the image is too small for what SequenceTester has to say")
        return taken


@dataclass(frozen=True)
class Witness:
    """What the devices say of one image."""

    in_sequence: bool
    frame: int
    state: dict[tuple[str, str], Any]
    commands: tuple[tuple[str, str, Any], ...]
    """Everything that was set since the image before: device, property, value."""

    @classmethod
    def of(cls, image: np.ndarray) -> Witness:
        packet = Unpacker(image.astype(np.uint8).tobytes()).value()
        _, (_, _, in_sequence, _, frame), _, _, _, state, history = packet
        return cls(
            in_sequence,
            frame,
            {(device, name): value for (device, name), (_, value) in state},
            tuple((d, n, v) for (d, n), (_, v), _ in history if n != "Busy"),
        )

    @property
    def place(self) -> tuple[float, float, float]:
        steps = (self.state["TXYStage", f"{axis}PositionSteps"] for axis in "XY")
        x_um, y_um = (STEP_UM * step for step in steps)
        return x_um, y_um, self.state["TZStage", "ZPositionUm"]

    @property
    def channel(self) -> str:
        return PLACES[self.state["TSwitcher", "Position"]]

    @property
    def exposure_ms(self) -> float:
        return float(self.state["TCamera", "Exposure"])

    @property
    def lit(self) -> bool:
        return bool(self.state["TShutter", "ShutterState"])

    def set(self, device: str) -> list[Any]:
        """Values that one device was given since the image before."""
        return [value for name, _, value in self.commands if name == device]


# the microscope of witnesses


@contextmanager
def witnesses_core(folder: Path) -> Iterator[Any]:
    """Pycro-Manager's core with SequenceTester devices; somewhere else than any request."""
    from mm_test_adapters import device_adapter_path
    from pycromanager import Core, start_headless, stop_headless
    from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

    config = folder / "witnesses.cfg"
    config.write_text(CONFIG, encoding="utf-8")
    start_headless(str(device_adapter_path()), str(config), python_backend=True, buffer_size_mb=16)
    try:
        core = Core()
        core.set_config("Channel", "MAP2")
        core.set_xy_position(-1.0, -1.0)
        core.set_position(-1.0)
        core.set_exposure(1.0)
        core.snap_image()  # which clears the history of all this
        yield core
    finally:
        stop_headless()
        del Engine.singleton


@pytest.fixture
def core(tmp_path: Path) -> Iterator[Any]:
    with witnesses_core(tmp_path) as started:
        yield started


def with_triggers(core: Any) -> None:
    """From now on the camera's exposures step the focus drive."""
    core.set_property("TZ", "TriggerSourceDevice", "TCamera")
    core.set_property("TZ", "TriggerSourcePort", "ExposureStartEdge")
    core.set_property("TZ", "TriggerSequenceMaxLength", 100)
    assert core.is_stage_sequenceable("TZ")


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.slices: list[Slice] = []

    def put(self, slice_: Slice) -> None:
        self.slices.append(slice_)


def request(
    position: str, place_um: tuple[float, float], z_um: tuple[float, ...], preset: str, exposure_ms: float
) -> StackRequest:
    key = StackKey(0, position, preset)
    return StackRequest(key, *place_um, z_um, "Channel", preset, exposure_ms)


REQUESTS = (
    request("A", (0.0, 0.0), (0.0, 1.5, 3.0, 4.5), "Phase", 5.0),
    request("A", (0.0, 0.0), (1.5,), "DAPI", 7.0),
    request("B", (120.0, -40.5), (-3.0, -1.0, 1.0), "Phase", 5.0),
    request("B", (120.0, -40.5), (-1.0,), "MAP2", 9.0),
)


def acquired(
    requests: tuple[StackRequest, ...], sink: Kept | None = None, **hooks: Any
) -> list[list[Witness]]:
    """Witnesses of each slice of each request, read back from the measured data."""
    with GuardedAcquisition(None, "m", limits=Limits(), sink=sink, hooks=UserHooks(**hooks)) as acquisition:
        for one in requests:
            acquisition.acquire(one)
        return [[Witness.of(image) for image in acquisition.images(one)] for one in requests]


@pytest.mark.parametrize("triggered", [False, True], ids=["software z", "hardware z"])
def test_every_slice_is_of_the_place_it_says(core: Any, triggered: bool) -> None:
    if triggered:
        with_triggers(core)
    for one, witnesses in zip(REQUESTS, acquired(REQUESTS), strict=True):
        for z_um, witness in zip(one.z_um, witnesses, strict=True):
            assert witness.place == pytest.approx((one.x_um, one.y_um, z_um), abs=1e-6)
            assert (witness.channel, witness.exposure_ms) == (one.preset, one.exposure_ms)
            assert witness.lit
            assert witness.in_sequence == (triggered and len(one.z_um) > 1)


def test_a_triggered_stack_is_one_sequence_and_no_command_comes_between(core: Any) -> None:
    with_triggers(core)
    (witnesses,) = acquired(REQUESTS[:1])
    assert [witness.frame for witness in witnesses] == [0, 1, 2, 3]
    for witness in witnesses[1:]:
        # Only the trigger came in, and the drive stepped.
        trigger = ("TZStage", "trig-in:ZPositionUm", None)
        assert witness.commands == (trigger, ("TZStage", "ZPositionUm", witness.place[2]))


def test_stage_and_preset_are_sent_once_a_stack_and_the_exposure_at_its_start(core: Any) -> None:
    """Pycro-Manager sends x, y and preset again with every event that carries them: ten milliseconds each."""
    first, *rest = acquired(REQUESTS[2:3])[0]
    assert first.set("TXYStage") == [1200, -405]
    assert first.set("TSwitcher") == [0]
    assert {value for _, name, value in first.commands if name == "Exposure"} == {5.0}
    for witness in rest:
        assert {device for device, _, _ in witness.commands} == {"TZStage", "TShutter"}


def test_nothing_moves_while_the_shutter_is_open(core: Any) -> None:
    open_now = False
    for witness in [w for stack in acquired(REQUESTS) for w in stack]:
        for device, name, value in witness.commands:
            if (device, name) == ("TShutter", "ShutterState"):
                open_now = value
            elif device in ("TXYStage", "TZStage", "TSwitcher"):
                assert not open_now, f"{device} moved in the light"
    assert core.get_property("TShutter", "State") == "0"


def test_what_the_sink_gets_is_what_was_measured(core: Any) -> None:
    sink = Kept()
    stacks = acquired(REQUESTS, sink)
    assert len(sink.slices) == sum(map(len, stacks))
    for slice_ in sink.slices:
        witness, info = Witness.of(slice_.pixels), slice_.info
        place = (info.x_um, info.y_um, info.z_um[slice_.z_index])
        assert witness.place == pytest.approx(place, abs=1e-6)
        assert (witness.channel, witness.exposure_ms) == (info.key.channel, info.exposure_ms)


@pytest.mark.parametrize("triggered", [False, True], ids=["software z", "hardware z"])
def test_the_capture_hook_alone_knows_the_place_of_every_slice(
    core: Any, triggered: bool, tmp_path: Path
) -> None:
    """In somebody's own acquisition, where nobody announces the stacks."""
    from pycromanager import Acquisition, multi_d_acquisition_events

    if triggered:
        with_triggers(core)
    sink = Kept()
    hook = CaptureHook(sink, planes=4)
    events = multi_d_acquisition_events(
        xy_positions=[[10.0, 20.0], [30.0, 40.0]],
        position_labels=["A", "B"],
        z_start=0,
        z_end=5.9,
        z_step=2,
        channel_group="Channel",
        channels=["Phase"],
        channel_exposures_ms=[4],
    )
    with Acquisition(str(tmp_path), "m", image_process_fn=hook, show_display=False) as acquisition:
        acquisition.acquire(events)
    acquisition.get_dataset().close()
    assert len(sink.slices) == 8 and not hook.problems
    for slice_ in sink.slices:
        z_um = Witness.of(slice_.pixels).place[2]
        assert z_um == pytest.approx(slice_.info.z_um[slice_.z_index])
        assert Witness.of(slice_.pixels).in_sequence == triggered


def test_a_users_hook_that_changes_z_moves_the_stage_there(core: Any) -> None:
    def raised(event: Any) -> Any:
        return event | {"z": event["z"] + 0.5}

    (witnesses,) = acquired(REQUESTS[:1], pre_hardware=raised)
    assert [witness.place[2] for witness in witnesses] == pytest.approx([0.5, 2.0, 3.5, 5.0])


def test_users_own_events_with_properties_reach_the_device(core: Any, tmp_path: Path) -> None:
    """Properties of events that the engine would merge into a sequence are lost without the guard."""
    with_triggers(core)
    events = [
        {"axes": {"z": index}, "z": float(index), "properties": [["TSwitcher", "State", str(index)]]}
        for index in range(3)
    ]
    with GuardedAcquisition(tmp_path, "m", limits=Limits()) as acquisition:
        acquisition.run_events(events)
    with open_measured(tmp_path / "m_1") as dataset:
        witnesses = [Witness.of(dataset.read_image(z=index)) for index in range(3)]
    assert [(w.place[2], w.channel) for w in witnesses] == list(zip((0.0, 1.0, 2.0), PLACES, strict=True))


def test_an_exposure_that_somebody_changed_is_set_again(core: Any) -> None:
    """Pycro-Manager does not send an exposure that equals the last event's, whatever was set meanwhile."""
    acquired(REQUESTS[:1])
    core.set_exposure(99.0)
    assert {w.exposure_ms for stack in acquired(REQUESTS[:1]) for w in stack} == {5.0}


def test_a_preset_between_two_stacks_is_set_at_once(core: Any) -> None:
    with GuardedAcquisition(None, "m", limits=Limits()) as acquisition:
        acquisition.acquire(REQUESTS[0])
        acquisition.set_preset("Channel", "MAP2")
        assert core.get_property("TSwitcher", "State") == "2"
        acquisition.acquire(REQUESTS[2])
        witnesses = [Witness.of(image) for image in acquisition.images(REQUESTS[2])]
    assert {witness.channel for witness in witnesses} == {"Phase"}


# the simulated microscope against the witnesses


class Noted:
    """A specimen that notes how it was looked at."""

    channels = PLACES

    def __init__(self) -> None:
        self.views: list[View] = []

    def render(self, view: View) -> np.ndarray:
        self.views.append(view)
        return np.full(view.shape, 0.5, np.float32)

    def truth(self, view: View) -> dict[str, np.ndarray]:
        return {}


@pytest.mark.parametrize("triggered", [False, True], ids=["software z", "hardware z"])
def test_the_simulated_microscope_sees_what_the_witnesses_saw(tmp_path: Path, triggered: bool) -> None:
    with witnesses_core(tmp_path) as core:
        if triggered:
            with_triggers(core)
        truth = [witness for stack in acquired(REQUESTS) for witness in stack]
    specimen = Noted()
    settings = ScopeSettings(shape=(16, 16), camera=CameraSettings.noiseless(), buffer_size_mb=16)
    exposures_ms = []
    with SimulatedScope(specimen, settings=settings) as scope:
        scope.core.set_property("Z", "UseSequences", "Yes" if triggered else "No")
        with GuardedAcquisition(None, "m", limits=Limits()) as acquisition:
            for one in REQUESTS:
                acquisition.acquire(one)
                exposures_ms += [scope.last_exposure.exposure_ms] * len(one.z_um)
    assert len(specimen.views) == len(truth)
    for view, witness in zip(specimen.views, truth, strict=True):
        # The demo stage moves in steps of 0.015 um.
        assert (view.x_um, view.y_um, view.z_um) == pytest.approx(witness.place, abs=0.02)
        assert view.channel == witness.channel
    assert exposures_ms == [witness.exposure_ms for witness in truth]
