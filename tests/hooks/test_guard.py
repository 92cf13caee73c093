"""The guarded acquisition on the real engine and core: normal runs, clean stops, and its small parts."""

from __future__ import annotations

import _thread
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acq_isl.errors import (
    AcqIslError,
    AcquisitionFailed,
    ActionRefused,
    ExperimentError,
    ScopeError,
    SliceLost,
    StorageError,
)
from acq_isl.hooks import GuardedAcquisition, Safety, UserHooks, call_user_function
from acq_isl.hooks.events import EventRules, find_requests, split_batches
from acq_isl.hooks.hardware import Hardware, nearest
from acq_isl.hooks.progress import Progress, axes_key, axes_list
from acq_isl.hooks.pycromanager_backend import Run
from acq_isl.hooks.user_calls import call_within
from acq_isl.hooks.user_hooks import EventHooks
from acq_isl.hooks.watchdog import Watchdog
from acq_isl.rules import Limits
from acq_isl.stack import Slice, StackKey, StackRequest


class Sink:
    def __init__(self, each: Callable[[Slice], object] | None = None) -> None:
        self.slices: list[Slice] = []
        self._each = each

    def put(self, slice_: Slice) -> None:
        self.slices.append(slice_)
        if self._each is not None:
            self._each(slice_)


@pytest.fixture(scope="module")
def module_core() -> Iterator[Any]:
    from mm_test_adapters import device_adapter_path
    from pycromanager import Core, start_headless, stop_headless
    from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

    start_headless(str(device_adapter_path()), "MMConfig_demo.cfg", python_backend=True, buffer_size_mb=16)
    core = Core()
    core.set_property("Camera", "FastImage", "1")
    core.set_property("Camera", "OnCameraCCDXSize", "64")
    core.set_property("Camera", "OnCameraCCDYSize", "32")
    core.set_exposure(1)
    yield core
    stop_headless()
    del Engine.singleton


@pytest.fixture
def core(module_core: Any) -> Any:
    module_core.set_property("Z", "UseSequences", "No")
    module_core.set_auto_shutter(True)
    module_core.set_config("Channel", "DAPI")
    return module_core


def stack(planes: int = 4, position: str = "A1", exposure_ms: float = 1.0, **changes: Any) -> StackRequest:
    preset = changes.pop("preset", "DAPI")
    z_um = tuple(float(index) for index in range(planes))
    key = StackKey(0, position, preset)
    return StackRequest(key, 10.0, 20.0, z_um, "Channel", preset, exposure_ms, **changes)


def guarded(directory: Path | None, **options: Any) -> GuardedAcquisition:
    return GuardedAcquisition(
        directory, "m", limits=options.pop("limits", Limits()), safety=Safety(watchdog_s=1.0), **options
    )


# -------- normal runs


@pytest.mark.parametrize("sequenced", ["No", "Yes"])
@pytest.mark.parametrize("on_disk", [True, False])
def test_stacks_are_captured_streamed_and_saved(
    core: Any, tmp_path: Path, on_disk: bool, sequenced: str
) -> None:
    core.set_property("Z", "UseSequences", sequenced)
    sink = Sink()
    requests = [stack(5, name, preset=preset) for name in ("A1", "A2") for preset in ("DAPI", "FITC")]
    with guarded(tmp_path if on_disk else None, sink=sink) as acquisition:
        for request in requests:
            acquisition.acquire(request)
        during = [acquisition.images(request) for request in requests]
    assert [(one.info.key, one.z_index) for one in sink.slices] == [
        (request.key, z) for request in requests for z in range(5)
    ]
    info = sink.slices[0].info
    assert (info.z_um, info.shape, info.x_um, info.y_um) == ((0, 1, 2, 3, 4), (32, 64), 10.0, 20.0)
    for request, seen in zip(requests, during, strict=True):
        assert seen.shape == (5, 32, 64) and seen.dtype == np.uint16
        assert np.array_equal(acquisition.images(request), seen)
    streamed = np.stack([one.pixels for one in sink.slices[:5]])
    assert np.array_equal(streamed, during[0])


def test_slices_leave_one_by_one(core: Any) -> None:
    """The first slice is with the sink long before the last one is exposed."""
    sink = Sink()
    with guarded(None, sink=sink) as acquisition:
        acquisition.acquire(stack(4, exposure_ms=60.0))
    captured = [slice_.captured_s for slice_ in sink.slices]
    assert captured[-1] - captured[0] > 2 * 0.06


def test_an_unwanted_stack_is_saved_but_not_streamed(core: Any) -> None:
    sink = Sink()
    with guarded(None, sink=sink) as acquisition:
        acquisition.acquire(stack(predict=False))
    assert (len(sink.slices), acquisition.captured) == (0, 4)


def test_a_users_own_events_are_streamed_too(core: Any) -> None:
    sink = Sink()
    with guarded(None, sink=sink) as acquisition:
        acquisition.run_events(
            [
                {"axes": {"well": "B2", "z": z}, "z": 0.5 * z, "config_group": ["Channel", "FITC"]}
                for z in range(3)
            ]
        )
    assert [(str(one.info.key), one.info.z_um) for one in sink.slices] == [
        ("wellB2 t0 Default", (0.0, 0.5, 1.0))
    ] * 3


def test_start_times_are_kept(core: Any) -> None:
    """Plain Pycro-Manager ignores the first one, and spins until the next when it is aborted."""
    sink = Sink()
    began = time.time()
    with guarded(None, sink=sink) as acquisition:
        acquisition.run_events([{"axes": {"time": t}, "min_start_time": 0.1 + 0.2 * t} for t in range(2)])
    first, second = (slice_.captured_s - began for slice_ in sink.slices)
    assert first >= 0.1 and second >= 0.3


def test_set_preset(core: Any) -> None:
    limits = Limits(presets={"Channel": ("DAPI", "FITC")})
    with guarded(None, limits=limits) as acquisition:
        acquisition.set_preset("Channel", "FITC")
        assert core.get_current_config("Channel") == "FITC"
        with pytest.raises(ExperimentError, match=r"did you mean 'Rhodamine'"):
            acquisition.set_preset("Channel", "rodamine")
        with pytest.raises(ExperimentError, match=r"no configuration group 'Chanel'.*did you mean 'Channel'"):
            acquisition.set_preset("Chanel", "DAPI")
        with pytest.raises(ActionRefused, match=r"Rhodamine of Channel is not allowed"):
            acquisition.set_preset("Channel", "Rhodamine")
        assert core.get_current_config("Channel") == "FITC"


@pytest.mark.parametrize(
    "limits, says",
    [
        (Limits(x_um=(-5, 5)), "x from -5 to 5 um; got: 10 um"),
        (Limits(y_um=(-5, 5)), "y from -5 to 5 um; got: 20 um"),
        (Limits(z_um=(0, 2.5)), "z from 0 to 2.5 um; got: 3 um"),
        (Limits(exposure_ms=0.5), "at most 0.5 ms"),
        (Limits(presets={"Channel": ("FITC",)}), "DAPI of Channel is not allowed"),
    ],
)
def test_limits_are_checked_before_anything_moves(core: Any, limits: Limits, says: str) -> None:
    core.set_xy_position(1.0, 1.0)
    core.wait_for_device("XY")
    with guarded(None, limits=limits) as acquisition, pytest.raises(ActionRefused, match=says):
        acquisition.acquire(stack())
    assert acquisition.captured == 0
    assert core.get_x_position() == pytest.approx(1.0, abs=0.1)


# -------- clean stops


@pytest.mark.parametrize("sequenced", ["No", "Yes"])
def test_ctrl_c_stops_cleanly(core: Any, tmp_path: Path, sequenced: str) -> None:
    core.set_property("Z", "UseSequences", sequenced)
    core.set_auto_shutter(False)
    core.set_shutter_open(True)
    before = set(threading.enumerate())
    sink = Sink(lambda slice_: _thread.interrupt_main() if slice_.z_index == 2 else None)
    acquisition = guarded(tmp_path, sink=sink)
    with pytest.raises(KeyboardInterrupt), acquisition:
        acquisition.acquire(stack(3, "A0"))
        acquisition.acquire(stack(200, "A1", exposure_ms=10.0))
    assert not core.get_shutter_open()
    assert not core.is_sequence_running()
    assert 3 <= acquisition.captured < 100
    assert len(sink.slices) == acquisition.captured
    assert acquisition.images(stack(3, "A0")).shape == (3, 32, 64)
    left = [t.name for t in threading.enumerate() if t not in before and "Acq" not in t.name]
    assert left == []


def test_after_a_failure_nothing_moves_any_more(core: Any) -> None:
    acquisition = guarded(None)
    with acquisition:
        with pytest.raises(AcquisitionFailed, match=r"Moving Z device"):
            acquisition.acquire(
                StackRequest(StackKey(0, "A", "DAPI"), 0, 0, (0.0, 9e3), "Channel", "DAPI", 1.0)
            )
        with pytest.raises(AcquisitionFailed, match=r"the acquisition has stopped.*Moving Z device"):
            acquisition.acquire(stack())
    with pytest.raises(AcquisitionFailed, match=r"has stopped"):
        acquisition.acquire(stack())


def test_an_acquisition_that_is_not_open(core: Any) -> None:
    acquisition = guarded(None)
    with pytest.raises(AcquisitionFailed, match=r"is not open"):
        acquisition.acquire(stack())


def test_what_the_sink_could_not_take_is_raised_at_the_end(core: Any, tmp_path: Path) -> None:
    def refuse(slice_: Slice) -> None:
        raise RuntimeError("breaks its contract")

    acquisition = guarded(tmp_path, sink=Sink(refuse))
    with pytest.raises(AcquisitionFailed, match=r"could not be handed on.*breaks its contract"), acquisition:
        acquisition.acquire(stack())
    assert acquisition.images(stack()).shape == (4, 32, 64)
    assert len(acquisition.problems) == 4


def test_a_failing_hook_after_the_last_stack_is_raised_at_the_end(core: Any) -> None:
    def saved(axes: Any, dataset: Any) -> None:
        if axes["z"] == 3:
            time.sleep(0.1)
            raise ValueError("late")

    acquisition = guarded(None, hooks=UserHooks(image_saved=saved))
    with pytest.raises(AcquisitionFailed, match=r"image_saved hook raised ValueError"), acquisition:
        acquisition.acquire(stack())


def test_the_disk_fills_up_between_two_stacks(core: Any, tmp_path: Path) -> None:
    left = iter([10**9, 10**9, 10**6])
    acquisition = GuardedAcquisition(
        tmp_path, "m", limits=Limits(), safety=Safety(watchdog_s=1.0, free=lambda folder: next(left))
    )
    with pytest.raises(StorageError, match=r"too full for 4 more images"), acquisition:
        acquisition.acquire(stack(position="A1"))
        acquisition.acquire(stack(position="A2"))
    assert acquisition.captured == 4
    assert acquisition.images(stack(position="A1")).shape == (4, 32, 64)


def test_a_folder_that_cannot_be_made(core: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot be made"), guarded(tmp_path / "file" / "run"):
        pass


def test_a_core_that_was_stopped(core: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

    monkeypatch.setattr(Engine.get_instance(), "core", object())
    threads = threading.active_count()
    with pytest.raises(ScopeError, match=r"does not belong to the running core.*del Engine.singleton"):
        guarded(None).__enter__()
    assert threading.active_count() == threads


def test_no_camera(core: Any) -> None:
    core.set_camera_device("")
    try:
        with pytest.raises(ScopeError, match=r"camera"):
            guarded(None).__enter__()
    finally:
        core.set_camera_device("Camera")


# -------- small parts


def test_batches() -> None:
    events = [
        {"n": 0},
        {"n": 1},
        {"n": 2, "properties": []},
        {"n": 3, "properties": []},
        {"n": 4},
        {"n": 5, "min_start_time": 1.0},
        {"n": 6, "min_start_time": 1.0},
        {"n": 7, "min_start_time": 2.0},
    ]
    assert [[event["n"] for event in batch] for batch in split_batches(events)] == [
        [0, 1],
        [2],
        [3],
        [4],
        [5, 6],
        [7],
    ]


def test_announced_stacks() -> None:
    events = [{"axes": {"position": "A", "z": z}, "z": 2.0 * z} for z in (1, 0)]
    events += [{"axes": {"position": "B", "z": 5}, "z": 1.0}, {"axes": {"position": "C"}}]
    events += [{"axes": {"position": "D", "z": z}} for z in range(2)]
    requests = find_requests(events)
    assert [(request.key.position, request.z_um) for request in requests] == [
        ("A", (0.0, 2.0)),
        ("C", (0.0,)),
    ]


class FakeCore:
    """A core without devices."""

    def get_available_config_groups(self) -> tuple[str, ...]:
        return ("Channel",)

    def get_available_configs(self, group: str) -> Any:
        return JavaVector("DAPI", "FITC")


class JavaVector:
    def __init__(self, *names: str) -> None:
        self._names = names

    def size(self) -> int:
        return len(self._names)

    def get(self, index: int) -> str:
        return self._names[index]


def test_presets_of_the_java_backend() -> None:
    Hardware(FakeCore()).require_preset("Channel", "FITC", Limits())
    with pytest.raises(ExperimentError, match=r"did you mean 'FITC'"):
        Hardware(FakeCore()).require_preset("Channel", "fitsi", Limits())


@pytest.mark.parametrize(
    "event, says",
    [
        ({"axes": {"z": 0}, "x": 1.0}, "only one of x and y"),
        ({"axes": {"z": 0}, "z": "top"}, "z must be a number"),
        ({"axes": {"z": 0}, "z": float("nan")}, "z that is not a number"),
        ({"axes": {"z": 0}, "exposure": 0}, "has no exposure"),
        ({"axes": {"z": 0}, "min_start_time": -1}, "negative min_start_time"),
        ({"axes": {"z": 0}, "config_group": "Channel"}, "config_group is malformed"),
        ({"axes": {"z": 0}, "exposur": 1}, "unsupported key 'exposur'.*did you mean 'exposure'"),
        ({"axes": {"z": 0}, "row": 1}, "put row into 'axes'"),
        ({"axes": {"z": True}}, "neither a whole number nor a name"),
        ("z=0", "must be a dictionary"),
    ],
)
def test_events_that_are_refused(event: Any, says: str) -> None:
    with pytest.raises(ExperimentError, match=says):
        EventRules(Hardware(FakeCore()), Limits()).check([event])


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(ExperimentError, match=r"an empty list"):
        EventRules(Hardware(FakeCore()), Limits()).check([])


def test_names_for_people() -> None:
    keys = [axes_key({"z": z, "channel": "DAPI", "time": 0, "well": "B"}) for z in (10, 9, 2)]
    assert axes_list(keys, 2) == ("time=0 channel=DAPI well=B z=2, time=0 channel=DAPI well=B z=9 and 1 more")
    assert nearest("dapi", ["FITC", "DAPI"]) == "'DAPI'"
    assert nearest("dapi", []) == "nothing"


def refuses() -> None:
    raise ValueError("no")


def test_a_call_has_a_limit() -> None:
    assert call_within(5, "adding", lambda: 1 + 1) == 2
    with pytest.raises(ValueError, match=r"no"):
        call_within(5, "refusing", refuses)
    gate = threading.Event()
    with pytest.raises(AcquisitionFailed, match=r"waiting did not end; wanted: within 0.05 s"):
        call_within(0.05, "waiting", lambda: gate.wait(10))
    gate.set()


@pytest.mark.parametrize(
    "name, arguments, done",
    [("time:monotonic_ns", (), "done: "), ("math:sqrt", (4.0,), "done: 2.0"), ("gc:enable", (), "done")],
)
def test_a_users_function_is_called(name: str, arguments: tuple[Any, ...], done: str) -> None:
    assert call_user_function(name, *arguments).startswith(done)


@pytest.mark.parametrize(
    "name, arguments, error, says",
    [
        ("no_such_module:f", (), ActionRefused, "cannot be imported"),
        ("math:squareroot", (1.0,), ActionRefused, "has no function 'squareroot'.*'sqrt'"),
        ("math:sqrt", (-1.0,), AcquisitionFailed, "math:sqrt raised ValueError"),
        ("time:sleep", (5.0,), AcquisitionFailed, "time:sleep did not end"),
    ],
)
def test_a_users_function_fails(name: str, arguments: Any, error: type[AcqIslError], says: str) -> None:
    with pytest.raises(error, match=says):
        call_user_function(name, *arguments, limit_s=0.05)


# -------- the Java backend, by its rules


class FakeJava:
    """A pycromanager acquisition of the Java backend, as far as the guard looks at it."""

    def __init__(self, progress: Progress) -> None:
        self._events: queue.Queue[Any] = queue.Queue()
        self._progress = progress
        self.trouble: Exception | None = None
        self.silent = False
        self._event_thread = threading.Thread(target=self._work, daemon=True)
        self._event_thread.start()

    def _work(self) -> None:
        while (events := self._events.get()) is not None:
            for event in [] if self.silent else events:
                self._progress.note_captured(axes_key(event["axes"]))
                self._progress.note_stored(axes_key(event["axes"]))

    def _check_for_exceptions(self) -> None:
        if self.trouble is not None:
            raise self.trouble

    def get_dataset(self) -> None:
        return None

    def acquire(self, events: Any) -> None:
        self._events.put(events)

    def abort(self) -> None:
        pass

    def mark_finished(self) -> None:
        self._events.put(None)

    def await_completion(self) -> None:
        self._event_thread.join()
        self._check_for_exceptions()


class NoStages:
    def device_timeout_s(self) -> float:
        return 0.0

    def busy_stages(self) -> dict[str, tuple[float, ...]]:
        return {}

    def devices(self) -> tuple[str, ...]:
        return ("Camera", "Wheel", "Shutter")

    def busy(self, device: str) -> bool:
        return device == "Wheel"


class Stage(NoStages):
    """Busy from the start; goes on for some steps, then reports the same place for ever."""

    def __init__(self, steps: int, timeout_s: float) -> None:
        self._steps, self._timeout_s, self.looks = steps, timeout_s, 0

    def device_timeout_s(self) -> float:
        return self._timeout_s

    def busy_stages(self) -> dict[str, tuple[float, ...]]:
        self.looks += 1
        return {"XY": (float(min(self.looks, self._steps)), 0.0)}


@pytest.fixture
def java() -> tuple[FakeJava, Run, Progress, Watchdog]:
    progress = Progress()
    fake = FakeJava(progress)
    run = Run(fake)
    hardware: Any = NoStages()
    return fake, run, progress, Watchdog(run, progress, hardware, 0.3)


def _submit(run: Run, progress: Progress) -> None:
    progress.expect([axes_key({"z": z}) for z in range(3)])
    run.submit([{"axes": {"z": z}} for z in range(3)])


def test_java_slices_arrive(java: tuple[FakeJava, Run, Progress, Watchdog]) -> None:
    _, run, progress, watchdog = java
    _submit(run, progress)
    watchdog.wait_captured()
    assert watchdog.end() is None
    assert run.ended_with is None
    assert (progress.images, progress.unsaved) == (3, frozenset())


def test_java_reports_an_exception(java: tuple[FakeJava, Run, Progress, Watchdog]) -> None:
    fake, run, progress, watchdog = java
    fake.silent, fake.trouble = True, RuntimeError("stage is stuck")
    _submit(run, progress)
    with pytest.raises(AcquisitionFailed, match=r"at z=0; got: stage is stuck"):
        watchdog.wait_captured()
    assert watchdog.end() is None
    assert "stage is stuck" in str(run.ended_with)


def test_java_keeps_silent(java: tuple[FakeJava, Run, Progress, Watchdog]) -> None:
    fake, run, progress, watchdog = java
    fake.silent = True
    _submit(run, progress)
    with pytest.raises(
        AcquisitionFailed,
        match=r"nothing has come from the microscope for 0\.\d s; wanted: z=0, z=1, z=2; got: Wheel is busy",
    ):
        watchdog.wait_captured()


@pytest.mark.parametrize("steps, timeout_s, at_least_s", [(1, 5.0, 1.0), (9, 5.0, 1.8), (1, 6.0, 2.0)])
def test_a_stage_is_waited_for_while_it_moves(steps: int, timeout_s: float, at_least_s: float) -> None:
    """One that stays where it is is stuck, unless somebody raised the core's time-out of 5 s by a second."""
    progress = Progress()
    fake, stage = FakeJava(progress), Stage(steps, timeout_s)
    hardware: Any = stage
    fake.silent, run = True, Run(fake)
    _submit(run, progress)
    with pytest.raises(AcquisitionFailed) as caught:
        Watchdog(run, progress, hardware, 1.0).wait_captured()
    silent_s = float(str(caught.value).split(" s;")[0].rsplit(" ", 1)[1])
    assert silent_s >= at_least_s
    assert stage.looks >= steps


def test_java_event_thread_has_ended(java: tuple[FakeJava, Run, Progress, Watchdog]) -> None:
    fake, run, progress, watchdog = java
    fake.mark_finished()
    fake._event_thread.join(5)
    _submit(run, progress)
    with pytest.raises(AcquisitionFailed, match=r"event thread has ended"):
        watchdog.wait_captured()


def test_java_takes_lists_of_images_and_no_none_from_hooks() -> None:
    run = Run(FakeJava(Progress()))
    assert run.make_answer([("a", {}), ("b", {})]) == [("a", {}), ("b", {})]
    assert run.make_answer([("a", {})]) == ("a", {})
    run.begin_end()
    progress = Progress()
    hooks = EventHooks(
        UserHooks(pre_hardware=lambda event: None),
        EventRules(Hardware(FakeCore()), Limits()),
        progress,
        none_drops=False,
    )
    event = {"axes": {"z": 0}}
    assert hooks.functions()["pre_hardware_hook_fn"](event) == event
    assert "which the Java backend images as an empty event" in str(progress.failure)


def test_missing_slices_are_named(core: Any) -> None:
    acquisition = guarded(None)
    with acquisition:
        acquisition.acquire(stack(2))
        with pytest.raises(SliceLost, match=r"2 of 4 slices are not in the measured data"):
            acquisition.images(stack(4))
