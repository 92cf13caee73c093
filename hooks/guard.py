"""A Pycro-Manager acquisition that never loses a slice in silence and never hangs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from acq_isl.errors import AcqIslError, AcquisitionFailed, ExperimentError, SliceLost
from acq_isl.hooks.act import within
from acq_isl.hooks.capture import CaptureHook
from acq_isl.hooks.events import Event, EventRules, announced, stack_events
from acq_isl.hooks.image_door import ImageDoor
from acq_isl.hooks.progress import Progress, axes_key, axes_list
from acq_isl.hooks.pycro import Run, find_hardware, open_run, uses_python_backend
from acq_isl.hooks.storage import free_bytes, open_measured, read_slices, require_space
from acq_isl.hooks.user import EventHooks, UserHooks
from acq_isl.protocols import SliceSink
from acq_isl.rules import Limits
from acq_isl.stack import StackRequest, Uint16Image

logger = logging.getLogger(__name__)

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Safety:
    """When to give up.

    Parameters
    ----------
    watchdog_s : float
        Longest silence beyond the exposure time before the acquisition counts as failed, in seconds.
    free : callable
        Free bytes of a folder's disk.
    """

    watchdog_s: float = 4.0
    free: Callable[[Path], int] = free_bytes


class GuardedAcquisition:
    """A microscope for a session, around one ``pycromanager.Acquisition``.

    Every hang and every silent loss of Pycro-Manager becomes an `AcqIslError`, or the right data. Use it
    as a context manager: leaving it, also by an exception or Ctrl-C, stops the camera, closes the shutter,
    and leaves a readable dataset.

    Parameters
    ----------
    directory : path or None
        Where Pycro-Manager makes the folder ``name_1``; None keeps the images in memory.
    name : str
    limits : Limits
        Stage ranges, longest exposure and allowed presets; checked before anything moves.
    sink : SliceSink, optional
        Gets every slice the moment it is captured.
    hooks : UserHooks, optional
        The user's own functions, guarded too.
    safety : Safety, optional

    Raises
    ------
    ScopeError
        On entering: no working core.
    StorageError
        On entering: the folder cannot be made, or the disk is full.
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
        self._user = hooks or UserHooks()
        self._safety = safety or Safety()
        self._capture = CaptureHook.for_requests(sink)
        self._progress = Progress()
        self._run: Run | None = None
        self._path: Path | None = None
        self._raised: AcqIslError | None = None
        self._memory: Any = None
        self._silence_s = self._safety.watchdog_s
        self._silent = False

    def __enter__(self) -> Self:
        self._hardware = find_hardware()
        self._rules = EventRules(self._hardware, self._limits)
        self._check_space(0)
        python = uses_python_backend()
        self._event_hooks = EventHooks(self._user, self._rules, self._progress, none_drops=python)
        door = ImageDoor(self._capture, self._progress, self._user)
        functions = {**self._event_hooks.functions(), **door.functions()}
        self._run = open_run(self._directory, self._name, functions, self._progress)
        door.opened(self._run)
        if self._directory is not None:
            self._path = Path(self._run.dataset.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failures = [one for one in self._close(error) if one is not error and one is not self._raised]
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
    def cancelled(self) -> int:
        """Number of events a user's hook dropped on purpose."""
        return self._progress.cancelled

    def acquire(self, request: StackRequest) -> None:
        """Acquire one stack; returns when its last slice was captured and handed to storage.

        Raises
        ------
        ExperimentError, ActionRefused
            The request cannot or may not be done; nothing has moved, and the acquisition goes on.
        AcquisitionFailed
            Hardware error, hook error, or time-out. The acquisition has stopped.
        SliceLost
            A slice that was asked for did not arrive.
        StorageError
            The disk is full, or the data could not be written.
        """
        if not request.z_um:
            raise ExperimentError(f"the stack {request.key} has no slices", wanted="at least one z")
        events = self._rules.checked(stack_events(request))
        self._acquire(events, [events], [request])

    def run_events(self, events: Sequence[Event]) -> None:
        """Acquire a user's own events, checked and guarded; raises as `acquire`.

        ``min_start_time`` counts from this call. Events with ``properties`` are submitted one by one, as
        the engine forgets the properties of events that it merges into a sequence.
        """
        checked = self._rules.checked(events)
        self._acquire(checked, _batches(checked), announced(checked))

    def set_preset(self, group: str, preset: str) -> None:
        """Select a preset between two events.

        Raises
        ------
        ExperimentError, ActionRefused
            There is no such preset, or the limits do not allow it.
        AcquisitionFailed
            The core refuses, or does not answer.
        """
        self._hardware.require_preset(group, preset, self._limits)
        limit_s = self._hardware.device_timeout_s() + self._safety.watchdog_s
        within(limit_s, f"setting {group} to {preset}", lambda: self._hardware.set_preset(group, preset))

    def images(self, request: StackRequest) -> Uint16Image:
        """The measured slices of an acquired request, (z, y, x) uint16; SliceLost if any is not there."""
        axes = [event["axes"] for event in stack_events(request)]
        if self._run is None:
            if self._path is None:
                return read_slices(self._memory, axes)
            with open_measured(self._path) as dataset:
                return read_slices(dataset, axes)
        wanted = {axes_key(one) for one in axes}
        self._await_stored(lambda: not wanted & self._progress.unsaved, self._safety.watchdog_s)
        return read_slices(self._run.dataset, axes)

    def _acquire(
        self, events: list[Event], batches: Sequence[list[Event]], requests: Sequence[StackRequest]
    ) -> None:
        run = self._open_run()
        self._check_space(len(events))
        for request in requests:
            self._capture.expect(request)
        try:
            if self._progress.failure is not None:
                raise self._progress.failure
            started = time.monotonic()
            for batch in batches:
                self._await_start(run, started + batch[0].get("min_start_time", 0.0))
                self._submit(run, batch)
        except BaseException as error:
            self._stop(run, error)
            raise
        finally:
            for request in requests:
                self._capture.forget(request.key)

    def _submit(self, run: Run, events: list[Event]) -> None:
        """Submit events and wait for their slices."""
        exposures = [event["exposure"] for event in events if "exposure" in event]
        if exposures:
            self._hardware.set_exposure(exposures[0])
        longest_ms = max([*exposures, self._hardware.exposure_ms()])
        self._silence_s = longest_ms / 1000 + self._safety.watchdog_s
        keys = [axes_key(event["axes"]) for event in events]
        self._event_hooks.new_list()
        self._rules.submitted(keys)
        self._progress.expect(keys)
        bare = [{name: value for name, value in e.items() if name != "min_start_time"} for e in events]
        run.submit(bare)
        self._wait(run)

    def _wait(self, run: Run) -> None:
        """Until all awaited slices were captured; raises what went wrong instead of them."""
        images, last = self._progress.images, time.monotonic()
        while True:
            self._progress.wait(images, _POLL_S)
            failure = self._progress.failure or run.trouble(axes_list(self._progress.awaited, 1))
            if failure is not None:
                raise failure
            # In this order: what settles after the look at `awaited` has been counted in it.
            settled, awaited = run.settled(self._progress.images), self._progress.awaited
            if not awaited:
                return
            if settled:
                raise SliceLost(
                    f"{len(awaited)} slices did not arrive: {axes_list(awaited)}",
                    fix="check the camera; the microscope reported no error",
                )
            now = time.monotonic()
            if self._progress.images > images:
                images, last = self._progress.images, now
            elif now - last > self._silence_s and not self._still_moving(now - last - self._silence_s):
                self._silent = True
                raise AcquisitionFailed(
                    f"nothing has come from the microscope for {now - last:.1f} s",
                    wanted=axes_list(awaited),
                    fix="check camera, stage and hooks: one of them does not return",
                )

    def _still_moving(self, overdue_s: float) -> bool:
        """Whether a stage is on a long way; the core itself gives up after its device time-out."""
        if overdue_s > self._hardware.device_timeout_s():
            return False
        try:
            return within(0.5, "asking the stages", self._hardware.moving)
        except (AcqIslError, RuntimeError):
            logger.warning("the stages did not say whether they move", exc_info=True)
            return False

    def _await_start(self, run: Run, moment: float) -> None:
        while (left_s := moment - time.monotonic()) > 0:
            time.sleep(min(left_s, _POLL_S))
            failure = self._progress.failure or run.trouble("the wait for a start time")
            if failure is not None:
                raise failure

    def _open_run(self) -> Run:
        failure = self._raised
        if self._run is None or failure is not None:
            raise AcquisitionFailed(
                "the acquisition is not open" if failure is None else "the acquisition has stopped",
                got=None if failure is None else str(failure),
                fix="start a new acquisition; what was captured is kept",
            )
        return self._run

    def _stop(self, run: Run, error: BaseException) -> None:
        """After a failure: no further events, light off."""
        failure = error if isinstance(error, AcqIslError) else AcquisitionFailed(f"stopped by {error!r}")
        self._raised = failure
        self._progress.fail(failure)
        self._progress.give_up()
        run.abort()
        self._make_safe()

    def _make_safe(self) -> AcqIslError | None:
        try:
            within(1.0, "closing the shutter", self._hardware.make_safe)
        except AcqIslError as error:
            logger.warning("%s", error)
            return error
        return None

    def _await_stored(self, done: Callable[[], bool], patience_s: float) -> None:
        """Until storage is done, or nothing was stored for a while."""
        saved, last = self._progress.saved, time.monotonic()
        while not done() and time.monotonic() - last < patience_s:
            self._progress.wait_stored(saved, _POLL_S)
            if self._progress.saved > saved:
                saved, last = self._progress.saved, time.monotonic()

    def _close(self, error: BaseException | None) -> list[AcqIslError]:
        """End the acquisition in order; what went wrong, first things first."""
        run = self._run
        if run is None:
            return []
        if error is not None and self._raised is None:
            self._stop(run, error)
        failures = [self._progress.failure, run.trouble("the end")]
        try:
            run.begin_end()
            self._await_stored(lambda: run.ended(0), 0.5 if self._silent else self._silence_s)
            if not run.ended(0):
                failures.append(
                    AcquisitionFailed("Pycro-Manager did not end; a device or hook does not return")
                )
                if run.force_end():
                    self._await_stored(lambda: run.ended(0), self._safety.watchdog_s)
            failures += [self._progress.failure, run.ended_with]
        finally:
            failures.append(self._make_safe())
            self._run = None
            if self._path is None:
                self._memory = run.dataset
            else:
                run.dataset.close()
        failures += [self._lost(), *self._capture.problems[:1]]
        return list(dict.fromkeys(one for one in failures if one is not None))

    def _lost(self) -> SliceLost | None:
        lost = self._progress.unsaved
        if not lost:
            return None
        return SliceLost(
            f"{len(lost)} captured slices are not in the measured data: {axes_list(lost)}",
            fix="check the disk, and that no hook holds images back",
        )

    def _check_space(self, images: int) -> None:
        if self._directory is not None:
            size = self._hardware.bytes_per_image()
            require_space(self._directory, images, size, self._safety.free)


def _batches(events: Sequence[Event]) -> list[list[Event]]:
    """Lists that can be submitted whole: a new one at each start time and around events with properties."""
    batches: list[list[Event]] = []
    for event in events:
        alone = "properties" in event or (bool(batches) and "properties" in batches[-1][-1])
        starts = batches and event.get("min_start_time") != batches[-1][0].get("min_start_time")
        if not batches or alone or starts:
            batches.append([])
        batches[-1].append(event)
    return batches
