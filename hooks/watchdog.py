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
from acq_isl.hooks.progress import AxesKey, Progress, axes_first, axes_list
from acq_isl.hooks.pycromanager_backend import Run
from acq_isl.hooks.user_calls import within

logger = logging.getLogger(__name__)

_POLL_S = 0.02
_SHORT_S = 0.5
_LOOK_S = 0.2  # between two looks at a stage
_STILL_S = 1.0  # a stage that reports the same place for so long does not move
_USUAL_TIMEOUT_S = 5.0  # of Micro-Manager; who raised it has a device that takes longer


class _Travel:
    """Whether stages that say they are busy get anywhere, from looks at the places they report."""

    def __init__(self, ask: Callable[[], Mapping[str, object]]) -> None:
        self._ask = ask
        self._places: Mapping[str, object] | None = None
        self._looked_s = self._changed_s = -_STILL_S

    def goes_on(self) -> bool:
        """Whether a stage has moved within the last second; looks now and then."""
        now = time.monotonic()
        if now - self._looked_s >= _LOOK_S:
            self._looked_s, before = now, self._places
            self._places = self._answer()
            if before is not None and any(before.get(one, at) != at for one, at in self._places.items()):
                self._changed_s = now
        return now - self._changed_s < _STILL_S

    @property
    def busy(self) -> bool:
        """Whether any stage said so at the last look."""
        return bool(self._places)

    def _answer(self) -> Mapping[str, object]:
        try:
            return within(_SHORT_S, "asking the stages", self._ask)
        except (AcqIslError, RuntimeError):
            logger.warning("the stages did not say whether they move", exc_info=True)
            return {}


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


class Watch:
    """Waits for one acquisition; called on the acquiring thread.

    Parameters
    ----------
    run : Run
    progress : Progress
    hardware : Hardware
    watchdog_s : float
        Longest silence beyond the exposure time, in seconds.
    """

    def __init__(self, run: Run, progress: Progress, hardware: Hardware, watchdog_s: float) -> None:
        self._run = run
        self._progress = progress
        self._hardware = hardware
        self._watchdog_s = watchdog_s
        self._silence_s = watchdog_s
        self._silent = False

    def expose(self, longest_ms: float) -> None:
        """From now on a slice may take this long to expose, in milliseconds."""
        self._silence_s = longest_ms / 1000 + self._watchdog_s

    def start(self, moment_s: float) -> None:
        """Until a moment of ``time.monotonic``; raises what has failed meanwhile."""
        while (left_s := moment_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _POLL_S))
            self._raise_failure("the wait for a start time")

    def captured(self) -> None:
        """Until all awaited slices were captured.

        Raises
        ------
        AcquisitionFailed
            Hardware or hook failed, or nothing came for too long.
        SliceLost
            All is done, and slices are missing.
        StorageError
            Images could not be stored.
        """
        expected = self._progress.awaited
        try:
            self._until_captured()
        except (AcquisitionFailed, SliceLost) as error:
            doubt = None if error is self._progress.failure else self._doubt(expected)
            if doubt is None:
                raise
            raise type(error)(
                f"{error.what}; {doubt}", wanted=error.wanted, got=error.got, fix=error.fix
            ) from error

    def _until_captured(self) -> None:
        images, last = self._progress.images, time.monotonic()
        travel = _Travel(self._hardware.busy_stages)
        while True:
            self._progress.wait(images, _POLL_S)
            self._raise_failure(axes_first(self._progress.awaited))
            # In this order: whatever was delivered when it settled has left `awaited` by now.
            settled, awaited = self._run.settled(self._progress.images), self._progress.awaited
            if not awaited:
                return
            if settled:
                raise SliceLost(
                    f"{len(awaited)} slices did not arrive: {axes_list(awaited)}",
                    fix="check the camera; the microscope reported no error",
                )
            silent_s = time.monotonic() - last
            if self._progress.images > images:
                images, last = self._progress.images, time.monotonic()
                travel = _Travel(self._hardware.busy_stages)
            elif not self._bearable(silent_s - self._silence_s, travel):
                self._silent = True
                raise AcquisitionFailed(
                    f"nothing has come from the microscope for {silent_s:.1f} s",
                    wanted=axes_list(awaited),
                    got=self._suspects(),
                    fix="check that device, camera, stage and hooks: one of them does not return",
                )

    def stored(self, keys: Iterable[AxesKey]) -> None:
        """Until these slices are stored, or nothing was stored for the watchdog's time."""
        wanted = frozenset(keys)
        self._patient(lambda: self._progress.wait_stored(wanted, _POLL_S), self._watchdog_s)

    def ended(self) -> AcqIslError | None:
        """End the acquisition, by force where it does not end by itself, which is a failure.

        A slice that is being exposed is waited for.
        """
        run = self._run
        run.begin_end()
        if self._patient(lambda: run.ended(_POLL_S), _SHORT_S if self._silent else self._silence_s):
            return None
        if run.force_end():
            self._patient(lambda: run.ended(_POLL_S), self._watchdog_s)
        return AcquisitionFailed(
            "Pycro-Manager did not end",
            fix="a device or a hook does not return; restart the program before the next acquisition",
        )

    def _patient(self, done: Callable[[], bool], patience_s: float) -> bool:
        """Ask ``done``, which waits a little, until it is, or until nothing was stored for a while."""
        saved, last = self._progress.saved, time.monotonic()
        while not done():
            if self._progress.saved > saved:
                saved, last = self._progress.saved, time.monotonic()
            elif time.monotonic() - last > patience_s:
                return False
        return True

    def _raise_failure(self, at: str) -> None:
        failure = self._progress.failure or self._run.trouble(at)
        if failure is not None:
            raise failure

    def _bearable(self, overdue_s: float, travel: _Travel) -> bool:
        """Whether to go on waiting: within the watchdog's time, and while a stage is on a long way.

        The core itself gives up after its device time-out, and so does the watch. A stage that is busy
        and stays where it is counts as stuck, unless the time-out was raised.
        """
        timeout_s = self._hardware.device_timeout_s()
        if overdue_s < -min(_STILL_S, self._watchdog_s / 2):
            return True
        if overdue_s > timeout_s:
            return False
        goes_on = travel.goes_on()
        return overdue_s <= 0 or goes_on or (travel.busy and overdue_s <= timeout_s - _USUAL_TIMEOUT_S)

    def _suspects(self) -> str:
        """Devices that say they are busy, or that do not even answer when asked."""
        asked: list[str] = []
        busy: list[str] = []

        def ask() -> None:
            for label in self._hardware.devices():
                asked.append(label)
                if self._hardware.busy(label):
                    busy.append(label)
                asked.remove(label)

        try:
            within(_SHORT_S, "asking the devices", ask)
        except (AcqIslError, RuntimeError) as error:
            logger.info("not all devices said whether they are busy: %s", error)
        said = [f"{label} is busy" for label in busy] + [f"{label} does not answer" for label in asked]
        return ", ".join(said) or "no device says that it is busy"

    def _doubt(self, expected: frozenset[AxesKey]) -> str | None:
        """Which slices of a hardware-triggered sequence that came short may carry a neighbour's z.

        Core and engine number the frames as they come: behind a gap that nobody can see, each is stored as
        the one before it.
        """
        triggered = self._progress.triggered & expected
        missing = triggered & self._progress.awaited
        arrived = triggered - missing
        if not missing or not arrived:
            return None
        where = getattr(self._run.dataset, "path", None) or "memory"
        return (
            f"the z of the {len(arrived)} slices that came of this hardware-triggered sequence is not to be "
            f"trusted, behind a gap they carry that of a neighbour: {axes_list(arrived)} in {where}"
        )
