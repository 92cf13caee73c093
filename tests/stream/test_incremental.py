"""Slices are looked at while they arrive, and that changes nothing of what is predicted or refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from acq_isl.engines.fallback import FallbackEngine
from acq_isl.engines.image_quality import StackStatistics
from acq_isl.engines.model_file import ModelInfo
from acq_isl.engines.predictor import Predictor
from acq_isl.manifest import Label, Manifest
from acq_isl.protocols import IncrementalEngine
from acq_isl.stack import Outcome, Prediction, Refusal, Slice, StackInfo, StackKey, ZStack
from acq_isl.stream.client import ClientSettings, EngineClient
from acq_isl.stream.connection import ConnectionSettings
from acq_isl.stream.incremental import IncrementalStatistics, IncrementalThread
from acq_isl.stream.model_registry import ModelRegistry, ServedModel
from acq_isl.stream.server import EngineServer
from acq_isl.stream.spool import Spool

MANIFEST = Manifest(
    name="mean",
    version="1",
    licence="BSD-3-Clause",
    description="mean over z",
    modality="phase contrast",
    polarity="dark",
    pixel_size_um=0.3,
    z_offsets_um=(-1.0, 0.0, 1.0),
    high_pass_um=6.0,
    labels=(Label(name="nuclei", marker="DAPI"),),
    min_tile_px=16,
    halo_px=0,
    size_step_px=1,
    trained_on="nothing",
)
QUICK = ConnectionSettings(beat_s=0.05, silence_s=10.0, reconnect_s=0.02, reconnect_max_s=0.05)
INFO = StackInfo(StackKey(0, "A1", "Phase"), (-1.0, 0.0, 1.0), (96, 80), 0.3)


class MeanNetwork:
    """Predicts the mean over z of what is normalised, so it depends on the contrast that is measured."""

    name, outputs, threads = "mean", ("mean", "spread"), 1

    def run(self, tiles: np.ndarray, inv_sd: np.ndarray) -> tuple[np.ndarray, ...]:
        counts = tiles.view("<u2")[..., 0].astype(np.float32)
        mean = counts.mean(axis=1, keepdims=True) * inv_sd[:, None, None, None]
        return mean, np.abs(mean) / 10

    def close(self) -> None:
        """Nothing to free."""


class Noting(StackStatistics):
    """Statistics that note which planes they measured."""

    def __init__(self, info: StackInfo, high_pass_px: float) -> None:
        super().__init__(info, high_pass_px)
        self.info, self.planes = info, []

    def add(self, z: int, plane: np.ndarray) -> None:
        super().add(z, plane)
        self.planes.append((self.info.key.time, z))


class Incremental(Predictor):
    """A predictor that remembers the statistics that it gave out and got back."""

    def __init__(self) -> None:
        super().__init__(ModelInfo("memory", "ab" * 32, 1, MANIFEST, 17, (), ()), MeanNetwork(), border_px=0)
        self.given: list[Noting] = []
        self.got: list[object] = []

    def begin_statistics(self, info: StackInfo) -> Noting:
        self.given.append(Noting(info, MANIFEST.high_pass_um / MANIFEST.pixel_size_um))
        return self.given[-1]

    def predict(self, stack: ZStack, statistics: Noting | None = None) -> Prediction:
        self.got.append(statistics)
        return super().predict(stack, statistics)

    @property
    def measured(self) -> set[tuple[int, int]]:
        """Time and z."""
        return {pair for statistics in self.given for pair in statistics.planes}


class Plain:
    """The same predictor behind the three methods that every engine has."""

    def __init__(self) -> None:
        self._inner = Incremental()
        self.manifest = MANIFEST

    def predict(self, stack: ZStack) -> Prediction:
        return self._inner.predict(stack)

    def close(self) -> None:
        self._inner.close()


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("the condition did not come true")
        time.sleep(0.002)


def pixels(time_: int) -> np.ndarray:
    """A stack with cells; 1 constant, 2 clipped, 3 one image three times, 4 noise only."""
    rng = np.random.default_rng(time_)
    smooth = ndimage.gaussian_filter(rng.normal(size=(3, 96, 80)), (0, 3, 3))
    counts = 20000 + 4000 * smooth / smooth.std() + rng.normal(scale=20, size=smooth.shape)
    if time_ == 4:
        counts = rng.normal(20000, 50, smooth.shape)
    stack = counts.clip(0, 65535).astype(np.uint16)
    if time_ == 1:
        stack[1] = 77
    if time_ == 2:
        stack = np.minimum(stack, np.uint16(np.percentile(stack, 80)))
    if time_ == 3:
        stack[1] = stack[2] = stack[0]
    return stack


STACKS = [pixels(time_) for time_ in range(6)]


def outcomes(engine: object, folder: Path, *, share_memory: bool, order: tuple[int, ...]) -> list[Outcome]:
    """What a server says to all stacks, slice by slice, the last one once the others were measured."""
    settings = ClientSettings(memory_bytes=8 << 20, share_memory=share_memory, link=QUICK)
    with (
        EngineServer([ServedModel(engine, "", "ab", "fake")], "tcp://127.0.0.1:*") as server,
        EngineClient(server.endpoint, spool=Spool(folder), settings=settings) as client,
    ):
        assert client.wait_connected(20)
        found: list[Outcome] = []
        for time_, stack in enumerate(STACKS):
            info = replace(INFO, key=replace(INFO.key, time=time_))
            for z in order:
                if z == order[-1] and isinstance(engine, Incremental):
                    wait_until(lambda now=time_: {(now, one) for one in order[:-1]} <= engine.measured)
                client.put(Slice(info, z, stack[z], 1.75e9))
            found += client.drain(20)
    return sorted(found, key=lambda one: one.info.key.time)


@pytest.mark.parametrize("share_memory", [True, False])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_what_was_measured_before_changes_neither_predictions_nor_refusals(
    tmp_path: Path, share_memory: bool, order: tuple[int, ...]
) -> None:
    incremental = Incremental()
    with_ = outcomes(incremental, tmp_path / "with", share_memory=share_memory, order=order)
    without = outcomes(Plain(), tmp_path / "without", share_memory=share_memory, order=order)
    assert len(with_) == len(without) == len(STACKS)
    for ours, theirs in zip(with_, without, strict=True):
        assert type(ours) is type(theirs)
        if isinstance(ours, Prediction):
            np.testing.assert_array_equal(ours.mean, theirs.mean)
            np.testing.assert_array_equal(ours.spread, theirs.spread)
            assert ours.warnings == theirs.warnings
        else:
            assert (ours.reason, ours.fix) == (theirs.reason, theirs.fix)
    kinds = [type(one) for one in with_]
    assert kinds == [Prediction, Refusal, Refusal, Refusal, Refusal, Prediction]
    assert incremental.got == incremental.given, "each stack was predicted with what was measured of it"


def registry(*engines: object) -> ModelRegistry:
    return ModelRegistry([ServedModel(engine, f"model {n}") for n, engine in enumerate(engines)])


def test_only_incremental_engines_measure_slices() -> None:
    by_model: dict[str, IncrementalStatistics | None] = dict.fromkeys(["model 0", "model 1", "nobody"])
    IncrementalThread(registry(Incremental(), Plain())).add(by_model, INFO, 0, STACKS[0][0])
    assert [name for name, statistics in by_model.items() if statistics is not None] == ["model 0"]


def test_nothing_is_measured_once_the_engine_predicts() -> None:
    engine = Incremental()
    statistics = IncrementalStatistics(engine, INFO)
    statistics.add(0, STACKS[0][0])
    assert statistics.end(engine, INFO) is engine.given[0]
    statistics.add(1, STACKS[0][1])
    assert engine.measured == {(0, 0)}


def test_a_model_that_took_anothers_place_gets_nothing_of_what_that_measured() -> None:
    engine = Incremental()
    statistics = IncrementalStatistics(engine, INFO)
    statistics.add(0, STACKS[0][0])
    assert statistics.end(Incremental(), INFO) is None
    assert IncrementalStatistics(engine, INFO).end(engine, INFO) is None, "nothing was measured"


def test_what_cannot_be_measured_is_left_out() -> None:
    class Broken(Incremental):
        def begin_statistics(self, info: StackInfo) -> Noting:
            raise ZeroDivisionError

    engine = Broken()
    statistics = IncrementalStatistics(engine, INFO)
    statistics.add(0, STACKS[0][0])
    statistics.add(1, STACKS[0][1])
    assert statistics.end(engine, INFO) is None


def test_planes_that_come_too_fast_are_counted_and_left_out() -> None:
    incremental, by_model = IncrementalThread(registry(Incremental())), {"model 0": None}
    for _ in range(130):  # its thread was not started
        incremental.add(by_model, INFO, 0, STACKS[0][0])
    assert incremental.skipped == 2
    incremental.stop()


def test_our_own_engines_are_incremental() -> None:
    assert issubclass(FallbackEngine, IncrementalEngine) and issubclass(Predictor, IncrementalEngine)
    assert not issubclass(Plain, IncrementalEngine)
