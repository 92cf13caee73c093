"""A Pycro-Manager acquisition that never loses a slice in silence and never hangs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from acq_isl.errors import (
    AcqIslError,
    AcquisitionFailed,
    ActionRefused,
    ExperimentError,
    FocusFailed,
    SliceLost,
)
from acq_isl.hooks.capture import CaptureHook
from acq_isl.hooks.events import (
    Event,
    EventRules,
    announced_key,
    check_name,
    find_requests,
    split_batches,
    stack_events,
)
from acq_isl.hooks.hardware import Hardware
from acq_isl.hooks.image_hooks import ImageHooks
from acq_isl.hooks.measured_data import open_measured, read_slices, require_space
from acq_isl.hooks.progress import Progress, axes_key, axes_list
from acq_isl.hooks.pycromanager_backend import Run, find_hardware, open_run, uses_python_backend
from acq_isl.hooks.signals import StopSignals
from acq_isl.hooks.user_calls import call_within
from acq_isl.hooks.user_hooks import EventHooks, UserHooks
from acq_isl.hooks.watchdog import Safety, Watchdog
from acq_isl.protocols import SliceSink
from acq_isl.rules import Limits, check_request
from acq_isl.rules.actions import check_place, check_property
from acq_isl.stack import Autofocus, StackRequest, Uint16Image

logger = logging.getLogger(__name__)

_FOCUS_S = 120.0  # software that looks through the camera takes its time


@dataclass(frozen=True, slots=True, eq=False)
class _Open:
    """What exists while the acquisition is open."""

    run: Run
    watchdog: Watchdog
    hardware: Hardware
    rules: EventRules
    event_hooks: EventHooks


class _Interruption:
    """Whether somebody wants the present stack interrupted: asked until the first yes."""

    def __init__(self, hooks: EventHooks, stop: Callable[[], bool]) -> None:
        self._hooks, self._stop = hooks, stop
        self.wanted = False

    def ask(self) -> None:
        if not self.wanted and self._stop():
            self.wanted = True
            self._hooks.interrupt()


class GuardedAcquisition:
    """A microscope for a session, around one ``pycromanager.Acquisition``.

    Every hang and every silent loss of Pycro-Manager becomes an `AcqIslError`, or the right data. Use it
    as a context manager: leaving it, also by an exception, Ctrl-C, SIGTERM or SIGHUP, stops the camera,
    closes the shutter, and leaves a readable dataset.

    Parameters
    ----------
    directory : path or None
        Where Pycro-Manager makes the folder ``name_1``; None keeps the images in memory.
    limits : Limits
        Stage ranges, longest exposure and allowed presets; checked before anything moves.
    sink : SliceSink, optional
        Gets every slice the moment it is captured.
    hooks : UserHooks, optional
        The user's own functions, guarded too.

    Raises
    ------
    ScopeError, StorageError, ExperimentError
        On entering: no working core; the folder cannot be made, or the disk is full; no name for a folder.
    """

    def __init__(
        self,
        directory: Path | str | None,
        name: str,
        *,
        limits: Limits,
        sink: SliceSink | None = None,
        hooks: UserHooks | None = None,
        safety: Safety | None = None,
    ) -> None:
        self._directory = None if directory is None else Path(directory)
        self._name = name
        self._limits = limits
        self._safety = safety or Safety()
        self._user = (hooks or UserHooks()).within(self._safety.watchdog_s)
        self._capture = CaptureHook.for_requests(sink)
        self._progress = Progress(self._safety.watchdog_s)
        self._open: _Open | None = None
        self._path: Path | None = None
        self._memory: Any = None
        self._raised: AcqIslError | None = None
        self._signals = StopSignals()

    def __enter__(self) -> Self:
        check_name(self._name)
        with ExitStack() as cleanup:
            cleanup.enter_context(self._signals)
            self._enter()
            cleanup.pop_all()
        return self

    def _enter(self) -> None:
        hardware = find_hardware()
        rules = EventRules(hardware, self._limits)
        self._check_space(hardware, 0)
        hooks = EventHooks(self._user, rules, self._progress, none_drops=uses_python_backend())
        images = ImageHooks(self._capture, self._progress, self._user)
        functions = {**hooks.functions(), **images.functions()}
        run = open_run(self._directory, self._name, functions, self._progress, hooks.withdraws)
        images.connect(run)
        watchdog = Watchdog(run, self._progress, hardware, self._safety.watchdog_s)
        self._open = _Open(run, watchdog, hardware, rules, hooks)
        self._path = run.path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.hold()
        try:
            found = self._close(error)
        finally:
            self._signals.__exit__()
            self._capture.close()
            self._user.close()
        failures = [failure for failure in found if failure not in (error, self._raised)]
        for failure in failures[0 if error is not None else 1 :]:
            logger.warning("while closing the acquisition: %s", failure)
        if error is not None:
            for failure in failures:
                error.add_note(f"while closing the acquisition: {failure}")
        elif failures:
            raise failures[0]

    @property
    def path(self) -> Path | None:
        """Folder of the measured data; None in memory."""
        return self._path

    @property
    def problems(self) -> tuple[AcqIslError, ...]:
        """Slices that were saved but could not be handed to the sink."""
        return self._capture.problems

    @property
    def captured(self) -> int:
        """Number of images so far."""
        return self._progress.images

    @property
    def failed(self) -> bool:
        """Whether it has stopped: nothing more can be acquired."""
        return self._raised is not None

    @property
    def patience_s(self) -> float:
        """Longest time that a device which does not answer holds one event: it is tried six times."""
        timeout_s = 0.0 if self._open is None else self._open.hardware.device_timeout_s()
        return 6 * timeout_s + self._safety.watchdog_s

    @property
    def cancelled(self) -> int:
        """Number of events a user's hook dropped on purpose."""
        return self._progress.cancelled

    def acquire(self, request: StackRequest) -> None:
        """Acquire one stack; returns when its last slice was captured and handed to storage.

        ExperimentError or ActionRefused if the request cannot or may not be done: nothing has moved, and the
        acquisition goes on. AcquisitionFailed (hardware error, hook error, time-out), SliceLost (a slice did
        not arrive) and StorageError (the disk is full, or data could not be written) stop it.
        """
        if not request.z_um:
            raise ExperimentError(f"the stack {request.key} has no slices", wanted="at least one z")
        self.acquire_until(request, None)

    def check(self, request: StackRequest) -> None:
        """ExperimentError or ActionRefused if a stack cannot or may not be acquired; nothing moves."""
        self._opened().rules.check(stack_events(request))

    def acquire_until(self, request: StackRequest, stop: Callable[[], bool] | None, first: int = 0) -> int:
        """As `acquire`, from slice ``first`` on, until ``stop`` wants it interrupted between two slices.

        ``stop`` is asked all the time on this thread. Returns how many slices of the stack are captured now;
        with fewer than all, its rest may be acquired later, or all of it as another ``attempt``. Slices of a
        hardware-triggered sequence are one event, and end together.
        """
        parts = self._opened()
        events = parts.rules.check(stack_events(request, first))
        if request.attempt:
            self._capture.forget(announced_key(replace(request, attempt=request.attempt - 1)))
        # The Java backend would image the events that are dropped, so it gets them one by one.
        lists = [events] if stop is None or uses_python_backend() else [[event] for event in events]
        interruption = None if stop is None else _Interruption(parts.event_hooks, stop)
        with parts.hardware.prepared(request):
            return first + self._acquire(parts, lists, [request], interruption)

    def focus(self, request: StackRequest) -> float:
        """Find the focus of a stack through the autofocus device; where it is on the stage, in um.

        FocusFailed if there is none, or if the stack about it would leave the limits; ExperimentError,
        ActionRefused and AcquisitionFailed as `acquire`.
        """
        parts, focus = self._opened(), request.autofocus
        if focus is None:
            raise ExperimentError(f"no autofocus is planned for {request.key}")
        for event in stack_events(request):  # which may have been imaged: an action focuses afterwards
            parts.rules.check_event(event)
        what = f"focusing at {request.key}"
        return call_within(_FOCUS_S, what, lambda: self._find_focus(parts.hardware, request, focus))

    def _find_focus(self, hardware: Hardware, request: StackRequest, focus: Autofocus) -> float:
        x_um, y_um, first_um = request.x_um, request.y_um, request.z_um[0]
        hardware.move(x_um, y_um, focus.z_um)
        hardware.set_preset(request.group, request.preset)
        hardware.set_exposure(request.exposure_ms)  # some devices look through the camera
        try:
            found_um = hardware.find_focus(focus)
            about = tuple(z_um + found_um - focus.z_um for z_um in request.z_um)
            try:
                check_request(replace(request, z_um=about), self._limits)
            except ActionRefused as error:
                raise FocusFailed(f"the focus at {found_um:g} um is out of reach", got=str(error)) from error
            first_um = about[0]
        finally:
            # Where the stack begins: an engine that knows only its own moves may leave that one out.
            hardware.move(x_um, y_um, first_um)
        return found_um

    def run_events(self, events: Sequence[Event]) -> None:
        """Acquire a user's own events, checked and guarded; raises as `acquire`.

        ``min_start_time`` counts from this call. Events with ``properties`` are submitted one by one, as
        the engine forgets the properties of events that it merges into a sequence.
        """
        parts = self._opened()
        checked = parts.rules.check(events)
        self._acquire(parts, split_batches(checked), find_requests(checked))

    def set_preset(self, group: str, preset: str) -> None:
        """Select a preset between two events.

        ExperimentError or ActionRefused if there is no such preset, or the limits do not allow it;
        AcquisitionFailed if the core refuses, or does not answer.
        """
        hardware = self._opened().hardware
        hardware.require_preset(group, preset, self._limits)
        limit_s = hardware.device_timeout_s() + self._safety.watchdog_s
        call_within(limit_s, f"setting {group} to {preset}", lambda: hardware.set_preset(group, preset))

    def set_property(self, device: str, name: str, value: str) -> None:
        """Set a device property between two events; raises as `set_preset`."""
        hardware, what = self._opened().hardware, f"setting {name} of {device} to {value}"
        check_property(what, device, name, value, self._limits)
        hardware.require_property(device, name)
        limit_s = hardware.device_timeout_s() + self._safety.watchdog_s
        call_within(limit_s, what, lambda: hardware.set_property(device, name, value))

    def move(self, x_um: float, y_um: float, z_um: float | None = None) -> None:
        """Move the stage between two events; ActionRefused beyond the limits, else AcquisitionFailed."""
        hardware, what = self._opened().hardware, f"moving to x {x_um:g}, y {y_um:g} um"
        check_place(what, x_um, y_um, () if z_um is None else (z_um,), self._limits)
        limit_s = hardware.device_timeout_s() + self._safety.watchdog_s
        call_within(limit_s, what, lambda: hardware.move(x_um, y_um, z_um))

    def images(self, request: StackRequest) -> Uint16Image:
        """The measured slices of an acquired request, (z, y, x) uint16; SliceLost if any is not there."""
        axes = [event["axes"] for event in stack_events(request)]
        if self._open is not None:
            self._open.watchdog.wait_stored(map(axes_key, axes))
            return read_slices(self._open.run.dataset, axes)
        if self._path is None:
            return read_slices(self._memory, axes)
        with open_measured(self._path) as dataset:
            return read_slices(dataset, axes)

    def _opened(self) -> _Open:
        failure = self._raised
        if self._open is None or failure is not None:
            raise AcquisitionFailed(
                "the acquisition is not open" if failure is None else "the acquisition has stopped",
                got=None if failure is None else str(failure),
                fix="start a new acquisition; what was captured is kept",
            )
        return self._open

    def _acquire(
        self,
        parts: _Open,
        lists: Sequence[list[Event]],
        requests: Sequence[StackRequest],
        interruption: _Interruption | None = None,
    ) -> int:
        """Acquire lists of events; how many of them were carried out."""
        carried_out = 0
        self._check_space(parts.hardware, sum(map(len, lists)))
        for request in requests:
            self._capture.expect(request)
        try:
            if self._progress.failure is not None:
                raise self._progress.failure
            began = time.monotonic()
            for events in lists:
                parts.watchdog.wait_until(began + events[0].get("min_start_time", 0.0))
                carried_out += self._submit(parts, events, interruption)
                if interruption is not None and interruption.wanted:
                    break
        except BaseException as error:
            self._stop(parts, error)
            raise
        # After a failure they stay announced: images that are still on their way belong to their stacks.
        if carried_out == sum(map(len, lists)):
            for request in requests:
                self._capture.forget(announced_key(request))
        return carried_out

    def _submit(self, parts: _Open, events: list[Event], interruption: _Interruption | None) -> int:
        """Submit events and wait for their slices; how many were carried out."""
        exposures = [event["exposure"] for event in events if "exposure" in event]
        if exposures:
            # The engine does not send an exposure that equals its last event's, whatever was set since.
            parts.hardware.set_exposure(exposures[0])
        keys = [axes_key(event["axes"]) for event in events]
        parts.event_hooks.start_list()
        parts.rules.note_submitted(keys)
        self._progress.expect(keys, max([*exposures, parts.hardware.exposure_ms()]))
        parts.run.submit([{k: v for k, v in event.items() if k != "min_start_time"} for event in events])
        parts.watchdog.wait_captured(None if interruption is None else interruption.ask)
        withdrawn = self._progress.withdrawn
        parts.rules.note_withdrawn(withdrawn)
        return len(events) - len(withdrawn)

    def _stop(self, parts: _Open, error: BaseException) -> None:
        """After a failure: no further events, light off."""
        failure = error if isinstance(error, AcqIslError) else AcquisitionFailed(f"stopped by {error!r}")
        self._raised = failure
        self._progress.fail(failure)
        self._progress.give_up()
        parts.run.abort()
        _make_safe(parts.hardware)  # tried again, and reported, on closing

    def _close(self, error: BaseException | None) -> list[AcqIslError]:
        """End the acquisition in order; what went wrong, first things first."""
        parts = self._open
        if parts is None:
            return []
        if error is not None and self._raised is None:
            self._stop(parts, error)
        run = parts.run
        # What the engine says after a failure that was raised is only its echo.
        failures = [self._progress.failure, None if self._raised else run.find_trouble("the end")]
        try:
            failures += [parts.watchdog.end(), None if self._raised else run.ended_with]
            failures += [self._progress.failure]
        finally:
            failures.append(_make_safe(parts.hardware))
            parts.hardware.restore_focus()
            self._open = None
            if self._path is None:
                self._memory = run.dataset
            else:
                run.dataset.close()
        if lost := self._progress.unsaved:
            what = f"{len(lost)} captured slices are not in the measured data: {axes_list(lost)}"
            failures.append(SliceLost(what, fix="check the disk, and that no hook holds images back"))
        failures += self._capture.problems[:1]
        return list(dict.fromkeys(filter(None, failures)))

    def _check_space(self, hardware: Hardware, images: int) -> None:
        if self._directory is not None:
            require_space(self._directory, images, hardware.bytes_per_image(), self._safety.free)


def _make_safe(hardware: Hardware) -> AcqIslError | None:
    try:
        call_within(2.0, "closing the shutter", hardware.make_safe)
    except AcqIslError as error:
        return error
    return None
