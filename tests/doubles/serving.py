"""Engines one can see through, and stacks that say which they are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from acq_isl.errors import EngineError
from acq_isl.manifest import Label, Manifest
from acq_isl.stack import Prediction, Slice, StackInfo, StackKey, ZStack

PLANES, ROWS, COLUMNS = 3, 32, 40
ANY_PORT = "tcp://127.0.0.1:*"


def manifest(name: str = "mean", labels: tuple[str, ...] = ("nuclei",), **changes: object) -> Manifest:
    fields = {
        "name": name,
        "version": "1",
        "licence": "BSD-3-Clause",
        "description": "mean over z",
        "modality": "phase contrast",
        "polarity": "dark",
        "pixel_size_um": 0.3,
        "z_offsets_um": (-1.0, 0.0, 1.0),
        "high_pass_um": 0.0,
        "labels": tuple(Label(name=label, marker="DAPI") for label in labels),
        "min_tile_px": 8,
        "halo_px": 0,
        "size_step_px": 1,
        "trained_on": "nothing",
    }
    return Manifest(**(fields | changes))


@dataclass
class MeanEngine:
    """Predicts ``factor`` times the mean over z, remembers the times it was asked for, and its end."""

    manifest: Manifest = field(default_factory=manifest)
    sha256: str = "ab"
    factor: float = 1.0
    asked: list[int] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    def predict(self, stack: ZStack) -> Prediction:
        if self.closed.is_set():
            raise EngineError("it was closed before")
        if stack.info.key.channel != "noise" and stack.pixels[0, 0, 0] < 900:  # a warm-up does not count
            self.asked.append(stack.info.key.time)
        mean = np.float32(self.factor) * stack.pixels.mean(axis=0, dtype=np.float32)
        means = np.stack([mean] * len(self.manifest.labels))
        return Prediction(
            stack.info,
            self.manifest.label_names,
            means,
            np.zeros_like(means),
            self.sha256,
            self.manifest.name,
            "fake",
        )

    def close(self) -> None:
        self.closed.set()


@dataclass
class GateEngine(MeanEngine):
    """Predicts when it is let: `busy` is set while it waits for `gate`."""

    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    busy: threading.Event = field(default_factory=threading.Event)

    def predict(self, stack: ZStack) -> Prediction:
        self.busy.set()
        if not self.gate.acquire(timeout=30):
            raise EngineError("nobody opened the gate")
        return super().predict(stack)

    def open(self) -> None:
        """Let everything through from now on."""
        self.gate.release(100_000)


def info(time_: int = 0, channel: str = "Phase") -> StackInfo:
    z_um = tuple(float(z) for z in range(PLANES))
    return StackInfo(StackKey(time_, "A1", channel), z_um, (ROWS, COLUMNS), 0.3, 1.0, 2.0, 8.0)


def slice_of(time_: int, z: int, channel: str = "Phase") -> Slice:
    pixels = np.full((ROWS, COLUMNS), 10 * time_ + z, np.uint16)
    return Slice(info(time_, channel), z, pixels, 1.75e9 + time_ + 0.01 * z)


def expected(time_: int, factor: float = 1.0) -> float:
    """Every pixel of the prediction of a stack."""
    return factor * (10 * time_ + 1)


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("the condition did not come true")
        time.sleep(0.002)
