"""The waits of a guarded acquisition: every one has a limit, and ends early when something has failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from acq_isl.errors import AcqIslError, AcquisitionFailed, SliceLost
from acq_isl.hooks.hardware import Hardware
from acq_isl.hooks.measured_data import free_bytes
from acq_isl.hooks.progress import AxesKey, Progress, axes_list
from acq_isl.hooks.pycromanager_backend import Run
from acq_isl.hooks.user_calls import call_within

logger = logging.getLogger(__name__)

_POLL_S = 0.02
_ASK_S = 0.002  # between two questions whether a list of events is to be interrupted
_SHORT_S = 0.5
_LOOK_S = 0.2  # between two looks at a stage
_STILL_S = 1.0  # a stage that reports the same place for so long does not move
_USUAL_TIMEOUT_S = 5.0  # of Micro-Manager; who raised it has a device that takes longer


class _StageMotion:
    """Whether stages that say they are busy get anywhere, from looks at the places they report."""

    def __init__(self, ask: Callable[[], Mapping[str, object]]) -> None:
        self._ask = ask
        self._places: Mapping[str, object] | None = None
        self._looked_s = self._changed_s = -_STILL_S

    def moves(self) -> bool:
        """Whether a stage has moved within the last second; looks now and then."""
        now = time.monotonic()
        if now - self._looked_s >= _LOOK_S:
            self._looked_s, before = now, self._places
            self._places = self._answer()
            if before is not None and any(before.get(stage, at) != at for stage, at in self._places.items()):
                self._changed_s = now
        return now - self._changed_s < _STILL_S

    @property
    def busy(self) -> bool:
        """Whether any stage said so at the last look."""
        return bool(self._places)

    def _answer(self) -> Mapping[str, object]:
        try:
            return call_within(_SHORT_S, "asking the stages", self._ask)
        except (AcqIslError, RuntimeError):
            logger.warning("the stages did not say whether they move", exc_info=True)
            return {}


@dataclass(frozen=True, slots=True)
class Safety:
    """When to give up."""

    watchdog_s: float = 4.0
    """Longest silence beyond the exposure time before the acquisition counts as failed."""
    free: Callable[[Path], int] = free_bytes
    """Free bytes of a folder's disk."""


class Watchdog:
    """Waits for an acquisition, on the acquiring thread; silence beyond the exposure time is a failure."""

    def __init__(self, run: Run, progress: Progress, hardware: Hardware, watchdog_s: float) -> None:
        self._run = run
        self._progress = progress
        self._hardware = hardware
        self._watchdog_s = watchdog_s
        self._silent = False

    @property
    def _silence_s(self) -> float:
        return self._progress.longest_ms / 1000 + self._watchdog_s

    def wait_until(self, moment_s: float) -> None:
        """Wait until a moment of ``time.monotonic``; raises what has failed meanwhile."""
        while (left_s := moment_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _POLL_S))
            self._raise_failure("the wait for a start time")

    def wait_captured(self, between: Callable[[], None] | None = None) -> None:
        """Wait until all awaited slices were captured; ``between`` is called all the time, and must be quick.

        Raises AcquisitionFailed (hardware or hook failed, or nothing came for too long), SliceLost (all is
        done, and slices are missing), StorageError (images could not be stored).
        """
        expected = self._progress.awaited
        try:
            self._wait_captured(between)
        except (AcquisitionFailed, SliceLost) as error:
            doubtful = None if error is self._progress.failure else self._find_doubtful(expected)
            if doubtful is None:
                raise
            what = f"{error.what}; {doubtful}"
            raise type(error)(what, wanted=error.wanted, got=error.got, fix=error.fix) from error

    def _wait_captured(self, between: Callable[[], None] | None) -> None:
        images = self._progress.images
        motion = _StageMotion(self._hardware.busy_stages)
        while True:
            self._progress.wait(images, _POLL_S if between is None else _ASK_S)
            if between is not None:
                between()
            self._raise_failure(axes_list(self._progress.awaited, 1))
            # In this order: whatever was delivered when it settled has left `awaited` by now.
            settled, awaited = self._run.is_settled(self._progress.images), self._progress.awaited
            if not awaited:
                return
            if settled:
                raise SliceLost(
                    f"{len(awaited)} slices did not arrive: {axes_list(awaited)}",
                    fix="check the camera; the microscope reported no error",
                )
            silent_s = time.monotonic() - self._progress.life_s
            if self._progress.images > images:
                images = self._progress.images
                motion = _StageMotion(self._hardware.busy_stages)
            elif not self._may_wait(silent_s - self._silence_s, motion):
                self._silent = True
                raise AcquisitionFailed(
                    f"nothing has come from the microscope for {silent_s:.1f} s",
                    wanted=axes_list(awaited),
                    got=self._suspects(),
                    fix="check that device, camera, stage and hooks: one of them does not return",
                )

    def wait_stored(self, keys: Iterable[AxesKey]) -> None:
        """Wait until these slices are stored, or nothing was stored for the watchdog's time."""
        wanted = frozenset(keys)
        self._wait_for(lambda: self._progress.wait_stored(wanted, _POLL_S), self._watchdog_s)

    def end(self) -> AcqIslError | None:
        """End the acquisition after the present exposure, in the worst case by force, which is a failure."""
        run = self._run
        run.begin_end()
        if self._wait_for(lambda: run.wait_ended(_POLL_S), _SHORT_S if self._silent else self._silence_s):
            return None
        if run.force_end():
            self._wait_for(lambda: run.wait_ended(_POLL_S), self._watchdog_s)
        return AcquisitionFailed(
            "Pycro-Manager did not end",
            fix="a device or a hook does not return; restart the program before the next acquisition",
        )

    def _wait_for(self, done: Callable[[], bool], patience_s: float) -> bool:
        """Ask ``done``, which waits a little, until it is, or until nothing was stored for a while."""
        saved, last = self._progress.saved, time.monotonic()
        while not done():
            if self._progress.saved > saved:
                saved, last = self._progress.saved, time.monotonic()
            elif time.monotonic() - last > patience_s:
                return False
        return True

    def _raise_failure(self, at: str) -> None:
        failure = self._progress.failure or self._run.find_trouble(at)
        if failure is not None:
            raise failure

    def _may_wait(self, overdue_s: float, motion: _StageMotion) -> bool:
        """Whether to go on waiting: within the watchdog's time, and while a stage is on a long way.

        The core gives up after its device time-out, and so does the watchdog. A stage that is busy and stays
        where it is counts as stuck, unless the time-out was raised.
        """
        timeout_s = self._hardware.device_timeout_s()
        if overdue_s < -min(_STILL_S, self._watchdog_s / 2):
            return True
        if overdue_s > timeout_s:
            return False
        moves = motion.moves()
        return overdue_s <= 0 or moves or (motion.busy and overdue_s <= timeout_s - _USUAL_TIMEOUT_S)

    def _suspects(self) -> str:
        """Devices that say they are busy, or that do not even answer when asked."""
        answers: dict[str, str] = {}

        def ask() -> None:
            for label in self._hardware.devices():
                answers[label] = f"{label} does not answer"
                answers[label] = f"{label} is busy" if self._hardware.busy(label) else ""

        try:
            call_within(_SHORT_S, "asking the devices", ask)
        except (AcqIslError, RuntimeError) as error:
            logger.info("not all devices said whether they are busy: %s", error)
        return ", ".join(filter(None, [*answers.values()])) or "no device says that it is busy"

    def _find_doubtful(self, expected: frozenset[AxesKey]) -> str | None:
        """Which slices of a hardware-triggered sequence that came short may carry a neighbour's z.

        Core and engine number the frames as they come, so behind a gap each is stored as its predecessor.
        """
        triggered = self._progress.triggered & expected
        missing = triggered & self._progress.awaited
        arrived = triggered - missing
        if not missing or not arrived:
            return None
        where = self._run.path or "memory"
        return (
            f"the z of the {len(arrived)} slices that came of this hardware-triggered sequence is not to be "
            f"trusted, behind a gap they carry that of a neighbour: {axes_list(arrived)} in {where}"
        )
