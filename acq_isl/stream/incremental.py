"""Engines measure slices as they arrive, so that less is left to do after the last one.

On a thread of its own: the socket's has to receive, the engines' may be predicting. It takes one core for
about as long as it saves the prediction. What it does not get to, the prediction measures itself.
"""

from __future__ import annotations

import logging
import queue
import threading

from acq_isl.errors import ModelError
from acq_isl.protocols import IncrementalEngine, RunningStatistics
from acq_isl.stack import StackInfo, Uint16Image
from acq_isl.stream.model_registry import ModelRegistry

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_PLANE_S = 1.0  # a plane takes milliseconds
_JOIN_S = 10.0
_PLANES_WAITING = 128


class IncrementalStatistics:
    """Statistics of one stack for one engine: the incremental thread adds planes, the engines' ends it."""

    def __init__(self, engine: IncrementalEngine, info: StackInfo) -> None:
        self._engine, self._info = engine, info
        self._statistics: RunningStatistics | None = None
        self._ended = False
        self._lock = threading.Lock()

    def add(self, z: int, plane: Uint16Image) -> None:
        """Add a plane, (y, x) uint16, unless it has ended. If the engine raises, nothing was measured."""
        with self._lock:
            if self._ended:
                return
            try:
                if self._statistics is None:
                    self._statistics = self._engine.begin_statistics(self._info)
                self._statistics.add(z, plane)
            except Exception:
                log.exception("stack %s cannot be measured while it arrives", self._info.key)
                self._ended, self._statistics = True, None

    def end(self, engine: object, info: StackInfo) -> RunningStatistics | None:
        """What was measured of a stack, for the engine that predicts it; nothing is added from now on.

        None if nothing was, or by another engine: a model may have been replaced.
        """
        ours = engine is self._engine and info is self._info
        if not self._lock.acquire(timeout=_PLANE_S):
            return None
        try:
            self._ended = True
            return self._statistics if ours else None
        finally:
            self._lock.release()


class IncrementalThread:
    """The thread that has planes measured."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry
        self._planes: queue.Queue[tuple[IncrementalStatistics, int, Uint16Image]] = queue.Queue(
            _PLANES_WAITING
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="acq-isl incremental", daemon=True)
        self.skipped = 0
        """Planes that were not measured because too many waited."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the plane at work."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(_JOIN_S)
        if self.skipped:
            log.info("%d planes came too fast to be measured before their stack was complete", self.skipped)

    def add(
        self, by_model: dict[str, IncrementalStatistics | None], info: StackInfo, z: int, plane: Uint16Image
    ) -> None:
        """Have a plane, (y, x) uint16, that will not change measured if there is time. Returns at once.

        The statistics of a stack are begun here for the models whose engines measure incrementally; ``info``
        is the same object for all its planes.
        """
        for model, begun in by_model.items():
            by_model[model] = statistics = begun or self._begin(model, info)
            if statistics is None:
                continue
            try:
                self._planes.put_nowait((statistics, z, plane))
            except queue.Full:
                self.skipped += 1

    def _begin(self, model: str, info: StackInfo) -> IncrementalStatistics | None:
        try:
            engine = self._registry[model].engine
        except ModelError:
            return None  # its client is told when the stack is complete
        return IncrementalStatistics(engine, info) if isinstance(engine, IncrementalEngine) else None

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                statistics, z, plane = self._planes.get(timeout=_LOOK_S)
            except queue.Empty:
                continue
            statistics.add(z, plane)
            del statistics, plane  # while it waits it must not keep a stack's memory
