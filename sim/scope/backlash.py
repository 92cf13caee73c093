"""Stages that are not where they say: backlash, and creeping after the arrival."""

from __future__ import annotations

import bisect
import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from acq_isl.experiment.faults import Axes, SettleTime, StageBacklash

Place = tuple[float, float, float]

_REMEMBERED_MOVES = 1024
_SETTLED = 3.0  # exp(-3) is 5 %
_HOME: Place = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class _Move:
    """When the stages were told to go where, and how far off they were then, by `StageBacklash`."""

    started_s: float
    arrived_s: float | None
    start_um: Place
    target_um: Place
    off_um: tuple[Place, ...]


class StageOffsets:
    """How far the stages truly are from where they say, for `StageBacklash` and `SettleTime`.

    Places are (x, y, z) in micrometres, moments `time.perf_counter` in seconds. Two threads may move them.
    """

    def __init__(self, backlashes: Sequence[StageBacklash]) -> None:
        self._backlashes = tuple(backlashes)
        self._moves: deque[_Move] = deque(maxlen=_REMEMBERED_MOVES)
        self._lock = threading.Lock()

    def start_move(self, started_s: float, start_um: Place, target_um: Place) -> None:
        """The stages are told to go somewhere; both places as they report them."""
        with self._lock:
            last = self._moves[-1] if self._moves else None
            off_um = tuple(
                _HOME if last is None else _take_up(backlash, last.off_um[index], last.start_um, start_um)
                for index, backlash in enumerate(self._backlashes)
            )
            self._moves.append(_Move(started_s, None, start_um, target_um, off_um))

    def end_move(self, now_s: float) -> None:
        """The stages report that they are there."""
        with self._lock:
            if self._moves and self._moves[-1].arrived_s is None:
                self._moves[-1] = replace(self._moves[-1], arrived_s=now_s)

    def backlash(self, fault: StageBacklash, when_s: float, reported_um: Place) -> Place:
        """True minus reported place: the play operator, which follows once the play is taken up."""
        move = self._last(when_s)
        if move is None:
            return _HOME
        return _take_up(fault, move.off_um[self._backlashes.index(fault)], move.start_um, reported_um)

    def settling(self, fault: SettleTime, when_s: float, reported_um: Place) -> Place:
        """True minus reported place: behind by at most ``fault.um`` on the way, then ever less."""
        move = self._last(when_s)
        if move is None:
            return _HOME
        arrived_s = move.arrived_s if move.arrived_s is not None else move.started_s
        left = math.exp(-_SETTLED * max(0.0, when_s - arrived_s) / (fault.ms / 1000))
        gone = [there - start for there, start in zip(reported_um, move.start_um, strict=True)]
        return _on(fault.axes, [-math.copysign(min(fault.um, abs(way)), way) * left for way in gone])

    def _last(self, when_s: float) -> _Move | None:
        after = bisect.bisect_right(self._moves, when_s, key=lambda move: move.started_s)
        return self._moves[after - 1] if after else None


def _take_up(fault: StageBacklash, off_um: Place, from_um: Place, to_um: Place) -> Place:
    """Offset after a monotonic move: the true place stays until the play is taken up."""
    half = fault.um / 2
    moved = zip(off_um, from_um, to_um, strict=True)
    return _on(fault.axes, [min(half, max(-half, off - (to - start))) for off, start, to in moved])


def _on(axes: Axes, offsets: Sequence[float]) -> Place:
    x_um, y_um, z_um = (off if name in axes else 0.0 for name, off in zip("xyz", offsets, strict=True))
    return x_um, y_um, z_um
