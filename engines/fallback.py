"""Engines from fast to sure: when one fails, the next one takes the same stack, and says so."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from acq_isl.engines.backends import Backend
from acq_isl.engines.image_quality import StackStatistics
from acq_isl.engines.model_file import ModelInfo
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import EngineError, ModelError
from acq_isl.manifest import Manifest
from acq_isl.stack import Prediction, StackInfo, ZStack

_log = logging.getLogger(__name__)


class Ladder:
    """An `acq_isl.protocols.Engine` that goes on with the next back end when one cannot be loaded or fails.

    Threads may share it.

    Parameters
    ----------
    rungs : sequence of Backend
        Best first, at least one.
    why : str
        Why the first of them, for people.

    Raises
    ------
    EngineError, ModelError
        None of them can be loaded; the error is the last one's.
    """

    def __init__(self, rungs: Sequence[Backend], why: str = "") -> None:
        self._waiting = list(rungs)
        self._why = why
        self._falls: tuple[str, ...] = ()
        self._lock = threading.Lock()  # guards the change from one engine to the next
        self._closed = False
        self._engine = self._next(None)

    @property
    def manifest(self) -> Manifest:
        return self._engine.manifest

    @property
    def model(self) -> ModelInfo:
        return self._engine.model

    @property
    def name(self) -> str:
        """Back end, device and precision at work now."""
        return self._engine.name

    @property
    def at_once(self) -> int:
        """As `Predictor.at_once`, of the back end at work now."""
        return self._engine.at_once

    @property
    def why(self) -> str:
        """Why this back end, and what happened to those before it; empty if there was no choice."""
        return "; ".join((*self._falls, *([self._why] if self._why and not self._falls else [])))

    def begin_statistics(self, info: StackInfo) -> StackStatistics:
        """What may be shown the slices of a stack as they arrive; good for every rung."""
        return self._engine.begin_statistics(info)

    def predict(self, stack: ZStack, statistics: StackStatistics | None = None) -> Prediction:
        """Predict all labels of a stack; see `acq_isl.engines.predictor.Predictor.predict`.

        Raises
        ------
        StackRefused
            The stack does not fit the model; no other engine is asked.
        EngineError
            The last engine failed too.
        """
        while True:
            engine = self._engine
            try:
                prediction = engine.predict(stack, statistics)
            except EngineError as error:
                self._descend(engine, error)
                continue
            return replace(prediction, warnings=(*prediction.warnings, *self._falls))

    def _descend(self, failed: Predictor, error: EngineError) -> None:
        with self._lock:
            if self._closed or (failed is self._engine and not self._waiting):
                raise error
            if failed is self._engine:  # else another thread has already changed it
                self._engine = self._next(f"{failed.name} failed: {error.what}", error)
                failed.close()

    def _next(self, fell: str | None, cause: EngineError | None = None) -> Predictor:
        """The next engine that loads; what was tried in vain is told."""
        last: EngineError | ModelError | None = cause
        falls = [] if fell is None else [fell]
        while self._waiting:
            backend = self._waiting.pop(0)
            try:
                engine = backend.open()
            except (EngineError, ModelError) as error:
                falls.append(f"{backend.name} cannot be used: {error.what}")
                last = error
                continue
            for fall in falls:
                _log.warning("%s; going on with %s", fall, engine.name)
            self._falls += tuple(f"{fall}; predicted with {engine.name}" for fall in falls)
            return engine
        raise last or EngineError("no engine was given", fix="name at least one")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
