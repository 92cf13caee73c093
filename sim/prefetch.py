"""The next field of view is prepared while the present one is being exposed."""

from __future__ import annotations

import logging
import math
import queue
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, Self, runtime_checkable

from acq_isl.sim.view import View

_log = logging.getLogger(__name__)
_STOP_S = 30.0  # a region takes seconds to draw, and a thread cannot be ended from outside
_FARTHEST = 1.6  # steps longer than so many widths of the view are no scan


@runtime_checkable
class Prepares(Protocol):
    """A specimen that can do part of its work before it is looked at."""

    def prepare(self, view: View) -> None:
        """Make ready for `render` at this place, at any focus; safe beside it in another thread."""


def ahead(before: View, now: View, count: int) -> tuple[View, ...]:
    """Where a scan will look next: the same step again, ``count`` times, at most; nothing while it stays.

    Only a step of about a field of view counts as a scan. Pure.
    """
    x_um, y_um = now.x_um - before.x_um, now.y_um - before.y_um
    height, width = (side * now.pixel_size_um for side in now.shape)
    alike = before.shape == now.shape and before.pixel_size_um == now.pixel_size_um
    length = max(abs(x_um) / width, abs(y_um) / height)
    if not alike or length == 0 or length > _FARTHEST:
        return ()
    return tuple(
        replace(now, x_um=now.x_um + n * x_um, y_um=now.y_um + n * y_um) for n in range(1, count + 1)
    )


class Prefetch:
    """Prepares places on a thread of its own; what comes while it is busy and full is dropped and counted.

    An exposure never waits for it, unless it is at work on that very place, which is then ready sooner.
    Owned by `acq_isl.sim.scope.render.Renderer`.

    Parameters
    ----------
    prepare : callable
        `Prepares.prepare` of the specimen.
    count : int
        Places to prepare ahead.
    """

    def __init__(self, prepare: Callable[[View], None], count: int) -> None:
        self._prepare, self._count = prepare, count
        self._wanted: queue.Queue[View | None] = queue.Queue(max(count, 1))
        self._seen: View | None = None
        self._ending = threading.Event()
        self.dropped = 0

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="prepare specimen", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._offer(None)
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            _log.error("the thread that prepares the specimen did not end within %g s", _STOP_S)

    def saw(self, view: View) -> None:
        """Say what was exposed; returns at once."""
        before, self._seen = self._seen, view
        if before is None or math.hypot(view.x_um - before.x_um, view.y_um - before.y_um) == 0:
            return
        for place in ahead(before, view, self._count):
            self._offer(place)

    def _offer(self, view: View | None) -> None:
        try:
            self._wanted.put_nowait(view)
        except queue.Full:
            if view is not None:
                self.dropped += 1

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                view = self._wanted.get(timeout=1.0)
            except queue.Empty:
                continue
            if view is None or self._ending.is_set():
                continue
            try:
                self._prepare(view)
            except Exception:  # noqa: BLE001
                # The exposure itself will meet the same error and tell the user.
                _log.debug("a place could not be prepared ahead", exc_info=True)
