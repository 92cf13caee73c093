"""An engine with planted faults, for the other half of a run."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import assert_never

import numpy as np
from scipy import ndimage

from acq_isl.errors import EngineError
from acq_isl.experiment.faults import EngineDead, EngineFault, EngineSlow, EngineWrong
from acq_isl.manifest import Manifest
from acq_isl.protocols import Engine
from acq_isl.stack import Float32Image, Prediction, ZStack

_log = logging.getLogger(__name__)

_LAST_ANSWER_S = 0.5
_DEAD = 70  # exit code of a process that died on purpose
_BLOB_PX = 6.0


def end_process() -> None:
    """End this process as a crash does: nothing is closed, nobody is told."""
    os._exit(_DEAD)


class FaultyEngine:
    """An engine that is slow, dies or errs on purpose.

    It owns ``engine``; ``seed`` is that of wrong labels, ``die`` is how `EngineDead` ends the process.
    """

    def __init__(
        self,
        engine: Engine,
        faults: Sequence[EngineFault],
        *,
        seed: int = 0,
        die: Callable[[], None] = end_process,
    ) -> None:
        self._engine, self._faults, self._seed, self._die = engine, tuple(faults), seed, die
        self._opened_s = time.monotonic()
        self._stacks = 0
        self._closed = threading.Event()

    @property
    def manifest(self) -> Manifest:
        return self._engine.manifest

    def predict(self, stack: ZStack) -> Prediction:
        """Predict, or what the faults make of it; raises EngineError, and what the engine itself raises."""
        number, seconds = self._stacks, time.monotonic() - self._opened_s
        self._stacks += 1
        wrong: list[EngineWrong] = []
        for fault in self._faults:
            if not fault.active(number, seconds):
                continue
            match fault:
                case EngineSlow(ms=ms):
                    self._closed.wait(ms / 1000)
                case EngineDead():
                    _log.error("the engine dies, as planted: %s", fault)
                    # What it answered before has left, so that runs of the same plan end alike.
                    self._closed.wait(_LAST_ANSWER_S)
                    self._die()
                case EngineWrong(how="error"):
                    raise EngineError("the engine failed, as planted", got=str(fault))
                case EngineWrong():
                    wrong.append(fault)
                case _:
                    assert_never(fault)
        prediction = self._engine.predict(stack)
        for fault in wrong:
            prediction = replace(prediction, mean=self._wrong(fault, prediction, number))
        return prediction

    def close(self) -> None:
        self._closed.set()
        self._engine.close()

    def _wrong(self, fault: EngineWrong, prediction: Prediction, number: int) -> Float32Image:
        if fault.how == "nan":
            return np.full_like(prediction.mean, np.nan)
        noise = np.random.default_rng((self._seed, number)).standard_normal(prediction.mean.shape)
        blobs = ndimage.gaussian_filter(noise, (0.0, _BLOB_PX, _BLOB_PX))
        wrong: Float32Image = np.clip(0.5 * blobs / blobs.std(), 0.0, 1.0).astype(np.float32)
        return wrong
