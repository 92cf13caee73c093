"""Engines are shown slices as they arrive, so that less is left to do after the last one.

On a thread of its own: the socket's has to go on receiving, and the engines' may be predicting another stack.
It takes one core for about as long as it saves the prediction. What it does not get to, the prediction
measures itself.
"""

from __future__ import annotations

import logging
import queue
import threading

from acq_isl.errors import ModelError
from acq_isl.protocols import IncrementalEngine, RunningStatistics
from acq_isl.stack import StackInfo, Uint16Image
from acq_isl.stream.model_registry import Roster

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_PLANE_S = 1.0  # a plane takes milliseconds
_JOIN_S = 10.0
_PLANES_WAITING = 128


class Watch:
    """What one engine is shown of one stack. The watchman's thread adds, the engines' ends it.

    Parameters
    ----------
    engine : IncrementalEngine
    info : StackInfo
        Of the stack.
    """

    def __init__(self, engine: IncrementalEngine, info: StackInfo) -> None:
        self._engine, self._info = engine, info
        self._statistics: RunningStatistics | None = None
        self._ended = False
        self._lock = threading.Lock()

    def add(self, z: int, plane: Uint16Image) -> None:
        """Show a plane, unless the watch has ended. An engine may raise anything; then nothing was seen."""
        with self._lock:
            if self._ended:
                return
            try:
                if self._statistics is None:
                    self._statistics = self._engine.begin_statistics(self._info)
                self._statistics.add(z, plane)
            except Exception:
                log.exception("stack %s cannot be looked at while it arrives", self._info.key)
                self._ended, self._statistics = True, None

    def end(self, engine: object, info: StackInfo) -> RunningStatistics | None:
        """What was seen of a stack, for the engine that predicts it; nothing is added from now on.

        None if nothing was seen, or if it was seen by another engine: a model may have been replaced.
        """
        ours = engine is self._engine and info is self._info
        if not self._lock.acquire(timeout=_PLANE_S):
            return None
        try:
            self._ended = True
            return self._statistics if ours else None
        finally:
            self._lock.release()


class Watchman:
    """The thread that shows planes to engines.

    Parameters
    ----------
    roster : Roster
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._planes: queue.Queue[tuple[Watch, int, Uint16Image]] = queue.Queue(_PLANES_WAITING)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="acq-isl watch", daemon=True)
        self.left_out = 0
        """Planes that were not shown because too many waited."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the plane at work."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)
        if self.left_out:
            log.info("%d planes came too fast to be looked at before their stack was complete", self.left_out)

    def show(self, watches: dict[str, Watch | None], info: StackInfo, z: int, plane: Uint16Image) -> None:
        """Have the engines of some models look at a plane that will not change, if there is time.

        Returns at once. A plane may come twice; it is looked at once.

        Parameters
        ----------
        watches : dict of model to Watch or None
            Of this stack; begun here for engines that want to see slices.
        info : StackInfo
            Of the stack, the same object for all its planes.
        z : int
        plane : (y, x) uint16
        """
        for model, begun in watches.items():
            watches[model] = watch = begun or self._begin(model, info)
            if watch is None:
                continue
            try:
                self._planes.put_nowait((watch, z, plane))
            except queue.Full:
                self.left_out += 1

    def _begin(self, model: str, info: StackInfo) -> Watch | None:
        try:
            engine = self._roster[model].engine
        except ModelError:
            return None  # whoever asked for it is told when the stack is complete
        return Watch(engine, info) if isinstance(engine, IncrementalEngine) else None

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                watch, z, plane = self._planes.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            watch.add(z, plane)
            del watch, plane  # while it waits it must not keep a stack's memory
