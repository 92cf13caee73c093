"""Engines from fast to sure: when one fails, the next one takes the same stack, and says so."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from acq_isl.engines.backend import Candidate
from acq_isl.engines.image_quality import StackStatistics
from acq_isl.engines.model_file import ModelInfo
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import EngineError, ModelError
from acq_isl.manifest import Manifest
from acq_isl.stack import Prediction, StackInfo, ZStack

_STEADY_S = 60.0
_RETRY_S, _RETRY_MOST_S = 60.0, 1800.0  # for engines that cannot say when they are back
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ladder:
    """Which of a model's engines may be used; they are ordered from the best down."""

    skip: int = 0
    """So many of the best are left out; the last one never is."""
    alone: bool = False
    """None takes over from the first, where a run must not mix engines."""
    remark: str = ""
    """Told with every prediction."""

    def rungs(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """What is left of the candidates."""
        left = list(candidates[self.skip :] or candidates[-1:])
        return left[:1] if self.alone else left


class FallbackEngine:
    """An `acq_isl.protocols.Engine` of candidates, best first: the next one takes over from one that fails.

    ``why`` says why the first of them. Threads may share it. If none can be loaded, the error is the last
    one's. A first one that failed takes over again, on a thread of its own: one that says when it is back
    (`Candidate.back`) is asked after ``look_s`` seconds, another is loaded again, and so held against ONNX
    Runtime, after ``retry_s``; if that is in vain, or it fails again within a minute, after twice as long.
    ``remark`` is told with every prediction.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        why: str = "",
        look_s: float = 1.0,
        *,
        retry_s: float = _RETRY_S,
        remark: str = "",
    ) -> None:
        self._candidates, self._look_s, self._retry_s = tuple(candidates), look_s, retry_s
        self._remarks = (remark,) if remark else ()
        self._stopped = threading.Event()
        self._falls, self._returned_s = 0, -_STEADY_S
        self._remaining = list(candidates)
        self._views = 1
        self._why = why
        self._failures: tuple[str, ...] = ()
        self._lock = threading.Lock()  # guards the change from one engine to the next
        self._closed = False
        self._engine = self._load_next(None)

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
    def rungs(self) -> tuple[str, ...]:
        """All candidates, best first."""
        return tuple(candidate.name for candidate in self._candidates)

    @property
    def at_once(self) -> int:
        """As `Predictor.at_once`, of the back end at work now."""
        return self._engine.at_once

    @property
    def why(self) -> str:
        """Why this back end, how close it is to ONNX Runtime, and what happened to those before it."""
        why = self._failures or (self._why,)
        return "; ".join(text for text in (*why, self._engine.parity) if text)

    def use_views(self, count: int) -> None:
        """As `Predictor.use_views`, of every engine that comes to work."""
        with self._lock:
            self._views = count
            self._engine.use_views(count)

    def begin_statistics(self, info: StackInfo) -> StackStatistics:
        """What may be shown the slices of a stack as they arrive; good for every engine."""
        return self._engine.begin_statistics(info)

    def predict(self, stack: ZStack, statistics: StackStatistics | None = None) -> Prediction:
        """Predict; StackRefused if the stack does not fit, EngineError if the last engine failed too."""
        while True:
            engine = self._engine
            try:
                prediction = engine.predict(stack, statistics)
            except EngineError as error:
                self._use_next(engine, error)
                continue
            return replace(prediction, warnings=(*prediction.warnings, *self._remarks, *self._failures))

    def _use_next(self, failed: Predictor, error: EngineError) -> None:
        with self._lock:
            if self._closed or (failed is self._engine and not self._remaining):
                raise error
            if failed is self._engine:  # else another thread has already changed it
                self._engine = self._load_next(f"{failed.name} failed: {error.what}", error)
                failed.close()
                self._await_first()

    def _await_first(self) -> None:
        """Once nobody waits for the first candidate yet: wait for it."""
        if len(self._remaining) != len(self._candidates) - 2:
            return
        steady = time.monotonic() - self._returned_s > _STEADY_S
        self._falls = 0 if steady else self._falls + 1
        back = self._candidates[0].back
        if back is None:
            wait_s = min(self._retry_s * 2**self._falls, _RETRY_MOST_S)
        else:
            wait_s = min(self._look_s * 2**self._falls, max(_STEADY_S, self._look_s))
        threading.Thread(target=self._climb, args=(back, wait_s), name="engine-back", daemon=True).start()

    def _climb(self, back: Callable[[], bool] | None, wait_s: float) -> None:
        """Wait until the first candidate is back, and let it take over."""
        while not self._stopped.wait(wait_s):
            try:
                if back is not None and not back():
                    continue
                engine = self._candidates[0].load()
                engine.use_views(self._views)
            except (EngineError, ModelError) as error:
                _log.info("%s is not back: %s", self._candidates[0].name, error.what)
                wait_s = wait_s if back else min(2 * wait_s, _RETRY_MOST_S)
                continue
            with self._lock:
                if self._closed:
                    engine.close()
                    return
                engine, self._engine = self._engine, engine
                self._remaining, self._failures = list(self._candidates[1:]), ()
                self._returned_s = time.monotonic()
            _log.warning("%s is back and takes over from %s", self._engine.name, engine.name)
            engine.close()  # whoever predicts with it just now asks the new one
            return

    def _load_next(self, failure: str | None, cause: EngineError | None = None) -> Predictor:
        """The next engine that loads; what was tried in vain is logged."""
        last: EngineError | ModelError | None = cause
        failures = [] if failure is None else [failure]
        while self._remaining:
            candidate = self._remaining.pop(0)
            try:
                engine = candidate.load()
            except (EngineError, ModelError) as error:
                failures.append(f"{candidate.name} cannot be used: {error.what}")
                last = error
                continue
            engine.use_views(self._views)
            for text in failures:
                _log.warning("%s; going on with %s", text, engine.name)
            self._failures += tuple(f"{text}; predicted with {engine.name}" for text in failures)
            return engine
        raise last or EngineError("no engine was given", fix="name at least one")

    def close(self) -> None:
        self._stopped.set()
        with self._lock:
            self._closed = True
            self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
