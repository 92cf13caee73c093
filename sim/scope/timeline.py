"""The specimen's clock, and what the microscope did to the specimen: light and drug."""

from __future__ import annotations

import bisect
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from acq_isl.errors import ScopeError
from acq_isl.sim.scope.exposure import Exposure
from acq_isl.sim.view import Drug, History, Light, View


@dataclass(frozen=True, slots=True)
class Taken:
    """One exposure that reached the specimen, and when it began, in Unix seconds."""

    light: Light
    unix_s: float


class Timeline:
    """How old the specimen is, and what was done to it. Owned by the scope; called on any thread.

    The specimen's time starts at 0 when the microscope is open, runs ``scale`` times as fast as a clock,
    and can be moved on.
    """

    def __init__(self, scale: float = 1.0, clock: Callable[[], float] = time.perf_counter) -> None:
        self._scale, self._clock = scale, clock
        self._lock = threading.RLock()
        self.running = False
        self._forget()

    def start(self) -> None:
        """Begin at 0, with an untouched specimen."""
        with self._lock:
            self._forget()
            self.running = True

    def _forget(self) -> None:
        self._anchors = [(self._clock(), 0.0)]
        self._light: tuple[Light, ...] = ()
        self._drugs: tuple[Drug, ...] = ()
        self._taken: list[Taken] = []
        self._frames: tuple[int, set[int]] = (-1, set())
        self._valve_open = False

    @property
    def time_s(self) -> float:
        """Present time of the specimen in seconds."""
        return self.time_at(self._clock())

    def time_at(self, clock_s: float) -> float:
        """Time of the specimen at a moment of the clock, in seconds."""
        with self._lock:
            place = bisect.bisect_right(self._anchors, clock_s, key=lambda anchor: anchor[0])
            began_s, time_s = self._anchors[max(place - 1, 0)]
        return max(time_s + (clock_s - began_s) * self._scale, 0.0)

    @property
    def history(self) -> History:
        """What was done to the specimen so far."""
        with self._lock:
            return History(self._light, self._drugs)

    @property
    def taken(self) -> tuple[Taken, ...]:
        """Every exposure that reached the specimen, in order of time."""
        with self._lock:
            return tuple(self._taken)

    def advance(self, seconds: float) -> None:
        """Let time pass for the specimen without waiting; ScopeError for time that would go back."""
        if not seconds >= 0:
            message = "the specimen's time goes forward only"
            raise ScopeError(message, wanted="0 s or more", got=f"{seconds:g} s")
        with self._lock:
            now = self._clock()
            self._anchors.append((now, self.time_at(now) + seconds))

    def drug(self, dose: float) -> None:
        """From now on the medium holds this dose; 0 washes it out. The same dose again changes nothing."""
        with self._lock:
            if dose != (self._drugs[-1].dose if self._drugs else 0.0):
                self._drugs += (Drug(self.time_at(self._clock()), dose),)

    def set_valve(self, is_open: bool) -> None:
        """Where the perfusion stands: opening it gives the ordinary dose, closing it washes the drug out."""
        if is_open != self._valve_open:
            self._valve_open = is_open
            self.drug(float(is_open))

    def date(self, exposure: Exposure) -> Exposure:
        """An exposure with the time it began at, and what was done before."""
        with self._lock:
            at_s = self.time_at(exposure.started_s)
            past = History(self._light, self._drugs).until(at_s)
        return replace(exposure, view=replace(exposure.view, time_s=at_s, history=past))

    def record(self, exposure: Exposure, frame: tuple[int, int], brightness: float) -> Exposure:
        """As `date`; the light is booked, once for each ``frame`` (number of sequence and of image)."""
        with self._lock:
            dated = self.date(exposure)
            sequence, number = frame
            if self._frames[0] != sequence:
                self._frames = (sequence, set())
            if exposure.lit and number not in self._frames[1]:
                self._frames[1].add(number)
                self._book(_light(dated.view, exposure.exposure_ms * brightness * exposure.lamp), exposure)
            return dated

    def _book(self, light: Light, exposure: Exposure) -> None:
        age_s = self._clock() - exposure.started_s
        # Frames of a sequence may be asked for in another order than they were exposed in.
        place = bisect.bisect_right(self._light, light.time_s, key=lambda booked: booked.time_s)
        self._light = (*self._light[:place], light, *self._light[place:])
        self._taken.insert(place, Taken(light, time.time() - age_s))


def _light(view: View, dose_ms: float) -> Light:
    height_um, width_um = (side * view.pixel_size_um for side in view.shape)
    return Light(view.time_s, view.x_um, view.y_um, view.z_um, height_um, width_um, view.channel, dose_ms)
