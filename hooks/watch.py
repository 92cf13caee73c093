"""The waits of a guarded acquisition: every one has a limit, and ends early when something has failed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from acq_isl.errors import AcqIslError, AcquisitionFailed, SliceLost
from acq_isl.hooks.act import within
from acq_isl.hooks.hardware import Hardware
from acq_isl.hooks.progress import AxesKey, Progress, axes_first, axes_list
from acq_isl.hooks.pycro import Run
from acq_isl.hooks.storage import free_bytes

logger = logging.getLogger(__name__)

_POLL_S = 0.02
_SHORT_S = 0.5


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
        images, last = self._progress.images, time.monotonic()
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
            elif silent_s > self._silence_s and not self._moving(silent_s - self._silence_s):
                self._silent = True
                raise AcquisitionFailed(
                    f"nothing has come from the microscope for {silent_s:.1f} s",
                    wanted=axes_list(awaited),
                    fix="check camera, stage and hooks: one of them does not return",
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

    def _moving(self, overdue_s: float) -> bool:
        """Whether a stage is on a long way; the core itself gives up after its device time-out."""
        if overdue_s > self._hardware.device_timeout_s():
            return False
        try:
            return within(_SHORT_S, "asking the stages", self._hardware.moving)
        except (AcqIslError, RuntimeError):
            logger.warning("the stages did not say whether they move", exc_info=True)
            return False
