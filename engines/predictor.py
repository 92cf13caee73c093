"""A stack becomes a prediction: check, resample, tile, infer, stitch, judge, map back. For every back end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np

from acq_isl.compatibility import Refuse, Resample, Use, check
from acq_isl.engines.backend import DISTANCE, MEAN, SPREAD, Network
from acq_isl.engines.gate import RESAMPLED, Policy, judge, measured
from acq_isl.engines.image_quality import StackStatistics, check_content
from acq_isl.engines.model_file import ModelInfo
from acq_isl.engines.pipeline import (
    AT_ONCE,
    Answered,
    Each,
    Field,
    Slotted,
    check_finite,
    through,
    whole,
    worker_count,
    workers,
)
from acq_isl.errors import EngineError, ModelError, StackRefused
from acq_isl.manifest import Manifest
from acq_isl.processing.normalize import inverse_contrast, map_back, resample
from acq_isl.processing.tiling import TilePlan, TileRule, blend, plan_tiles
from acq_isl.stack import Distance, Float32Image, Prediction, StackInfo, StageTimes, Uint16Image, ZStack

# Covers the usual 2048 and 2304 px cameras with 2x2 tiles.
TILE_PX = 1280

__all__ = ["TILE_PX", "Network", "Predictor", "Shares"]

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Shares:
    """Where the milliseconds of one prediction went.

    Parameters
    ----------
    prepare_ms : float
        Content checked, contrast measured, resampled where needed.
    tile_ms : float
        Tiles cut and blended.
    network_ms : float
        The back end, its copies included.
    upload_ms, download_ms : float
        Copies to and from a GPU, as far as the back end counts them.
    finish_ms : float
        Numbers checked, brought back to the stack's grid.
    """

    prepare_ms: float = 0.0
    tile_ms: float = 0.0
    network_ms: float = 0.0
    upload_ms: float = 0.0
    download_ms: float = 0.0
    finish_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        return self.prepare_ms + self.tile_ms + self.network_ms + self.finish_ms


@dataclass(slots=True)
class _Answer:
    """What the network says of a field: mean and spread, (label, y, x), and the distances of each batch."""

    mean: Float32Image
    spread: Float32Image
    windows: list[Float32Image] = field(default_factory=list)
    busy_ms: float = 0.0


class Predictor:
    """The `Engine` around a `Network`. Holds no state between stacks, so threads may share it.

    Parameters
    ----------
    model : ModelInfo
        The model the network runs.
    network : Network
        Owned from now on: closed with the predictor.
    tile_px : int or None
        Longest tile side. It bounds memory: never more than two batches of tiles are in work. None infers
        any field in one piece.
    tiles_per_batch : int
    border_px : int, optional
        Reflected pixels to put around the field; if not given, one size step, or as many as the network
        leaves blank. On the recorded field, one size step of them (16) takes a fifth off the error that the
        edge of a field makes in its outer 16 pixels (.027 to .021 RMS in the outer 8), and raises the
        correlation with real nuclei there from .61 to .68, of .71 with the true surroundings. More does not
        help. They cost 6 % of the time at 1024x1024.
    gate : "refuse" or "warn"
        What becomes of a stack that looks unlike the training set.

    Raises
    ------
    ModelError
        The model has a gate, but the back end does not give its distances.
    """

    def __init__(
        self,
        model: ModelInfo,
        network: Network,
        *,
        tile_px: int | None = TILE_PX,
        tiles_per_batch: int = 1,
        border_px: int | None = None,
        gate: Policy = "refuse",
    ) -> None:
        rules = model.manifest
        self._model, self._network, self._gate = model, network, gate
        self._outputs = getattr(network, "outputs", (MEAN, SPREAD))
        if rules.gate is not None and DISTANCE not in self._outputs:
            raise ModelError(
                f"{network.name} cannot tell whether a stack looks like those {model.where} was trained on",
                wanted=f"an output {DISTANCE!r}, which the model's gate needs",
                got=", ".join(self._outputs),
                fix="use another engine, such as onnxruntime, or build the plan again",
            )
        self._tile_px, self._tiles_per_batch = tile_px, tiles_per_batch
        if tile_px is not None and rules.max_tile_px is not None:
            self._tile_px = min(tile_px, rules.max_tile_px)
        self._rule = TileRule(rules.min_tile_px, rules.halo_px, rules.size_step_px)
        self._margin_px = rules.halo_px if rules.margin_px is None else rules.margin_px
        self._workers = worker_count(network)
        least_px = max(rules.size_step_px, rules.blank_px)
        self._border_px = least_px if border_px is None else max(border_px, rules.blank_px)

    @property
    def manifest(self) -> Manifest:
        return self._model.manifest

    @property
    def model(self) -> ModelInfo:
        return self._model

    @property
    def name(self) -> str:
        """The back end's name."""
        return self._network.name

    @property
    def at_once(self) -> int:
        """How many stacks several threads may hand it to be done sooner than one after the other."""
        return AT_ONCE if isinstance(self._network, Slotted) else 1

    def begin_statistics(self, info: StackInfo) -> StackStatistics:
        """What may be shown the slices of a stack as they arrive, so that `predict` has less to do."""
        return StackStatistics(info, self.manifest.high_pass_um / self.manifest.pixel_size_um)

    def predict(self, stack: ZStack, statistics: StackStatistics | None = None) -> Prediction:
        """Predict all labels of a stack of any field size.

        ``times.infer_ms`` is the network alone, ``times.decode_ms`` all other work of this call.

        Parameters
        ----------
        stack : ZStack
        statistics : StackStatistics, optional
            Of this stack, as far as it got.

        Raises
        ------
        StackRefused
            Metadata or content do not fit the model.
        EngineError
            The network failed or answered with numbers that are none.
        """
        return self.predict_timed(stack, statistics)[0]

    def rehearse(self, stack: ZStack) -> tuple[Prediction, Shares]:
        """`predict_timed` of a made-up stack: its looks are measured, but not held against it."""
        return self.predict_timed(stack, gate="warn")

    def predict_timed(
        self, stack: ZStack, statistics: StackStatistics | None = None, gate: Policy | None = None
    ) -> tuple[Prediction, Shares]:
        """`predict`, and where its time went; ``gate`` instead of the engine's own."""
        with workers(self._workers) as each:
            return self._predicted(
                stack, statistics or self.begin_statistics(stack.info), each, gate or self._gate
            )

    def _predicted(
        self, stack: ZStack, statistics: StackStatistics, each: Each, gate: Policy
    ) -> tuple[Prediction, Shares]:
        began_s = time.perf_counter()
        verdict = _checked(self.manifest, stack)
        statistics.complete(stack, each)
        check_content(stack, statistics)
        pixels, scale, inv_sd = self._normalised(stack, verdict, statistics)
        shares = Shares(prepare_ms=_since_ms(began_s))
        began_s = time.perf_counter()
        field = pixels.shape[1], pixels.shape[2]
        plan = plan_tiles(field, self._rule, tile_px=self._tile_px, border_px=self._border_px)
        answer = self._infer(pixels, inv_sd, plan, shares, each)
        shares.tile_ms = max(_since_ms(began_s) - shares.network_ms, 0.0)
        began_s = time.perf_counter()
        check_finite((answer.mean, answer.spread, *answer.windows), stack, each)
        distances, warnings = self._judged(stack, answer, verdict, gate)
        mean, spread = (map_back(values, stack.info.shape) for values in (answer.mean, answer.spread))
        shares.finish_ms = _since_ms(began_s)
        _log.debug("%s: %d tiles, %.0f ms", stack.info.key, len(plan.tiles), shares.total_ms)
        prediction = Prediction(
            info=stack.info,
            labels=self.manifest.label_names,
            mean=mean,
            spread=spread,
            model_sha256=self._model.sha256,
            model_name=f"{self.manifest.name} {self.manifest.version}",
            engine=self._network.name,
            warnings=(*(verdict.warnings if isinstance(verdict, Resample) else verdict.notes), *warnings),
            border_px=min(math.ceil(self._margin_px / scale), *((n + 1) // 2 for n in stack.info.shape)),
            times=StageTimes(infer_ms=shares.network_ms, decode_ms=shares.total_ms - shares.network_ms),
            distances=distances,
        )
        return prediction, shares

    def _normalised(
        self, stack: ZStack, verdict: Use | Resample, statistics: StackStatistics
    ) -> tuple[Uint16Image, float, np.float32]:
        """Pixels of the model's planes and size, their scale, and the reciprocal of their contrast."""
        if isinstance(verdict, Use):
            return stack.pixels, 1.0, statistics.inverse_contrast
        pixels = resample(stack, verdict)
        high_pass_px = self.manifest.high_pass_um / self.manifest.pixel_size_um
        return pixels, verdict.xy_scale, inverse_contrast(pixels, high_pass_px)

    def _judged(
        self, stack: ZStack, answer: _Answer, verdict: Use | Resample, policy: Policy
    ) -> tuple[tuple[Distance, ...], tuple[str, ...]]:
        """Distances to the training set, and warnings; StackRefused where that is the policy."""
        if self.manifest.gate is None:
            return (), ()
        distances = measured(self.manifest.gate, answer.windows)
        excused = RESAMPLED if isinstance(verdict, Resample) else frozenset[str]()
        return distances, judge(stack.info.key, distances, policy, excused)

    def _infer(
        self, pixels: Uint16Image, inv_sd: np.float32, plan: TilePlan, shares: Shares, each: Each
    ) -> _Answer:
        """What the network says of the whole field; adds its time to the shares."""
        before = _copies_ms(self._network)
        with closing(
            through(self._network, Field(pixels, plan, inv_sd), self._tiles_per_batch, each)
        ) as found:
            answer = self._whole(found, plan, each) if len(plan.tiles) == 1 else self._blended(found, plan)
        after = _copies_ms(self._network)
        shares.network_ms = answer.busy_ms
        shares.upload_ms, shares.download_ms = after[0] - before[0], after[1] - before[1]
        return answer

    def _whole(self, found: Iterable[Answered], plan: TilePlan, each: Each) -> _Answer:
        ((tiles, outputs, busy_ms),) = found
        mean, spread, *windows = self._checked_shapes(outputs, (len(tiles), *plan.tile_shape))
        return _Answer(whole(mean, plan, each), whole(spread, plan, each), windows, busy_ms)

    def _blended(self, found: Iterable[Answered], plan: TilePlan) -> _Answer:
        shape = (len(self.manifest.labels), *plan.field_shape)
        answer = _Answer(np.zeros(shape, np.float32), np.zeros(shape, np.float32))
        for tiles, outputs, busy_ms in found:
            mean, spread, *windows = self._checked_shapes(outputs, (len(tiles), *plan.tile_shape))
            answer.busy_ms += busy_ms
            answer.windows.extend(windows)
            for out, values in ((answer.mean, mean), (answer.spread, spread)):
                for one, tile in zip(values, tiles, strict=True):
                    blend(out, one, plan, tile)
        return answer

    def _checked_shapes(
        self, outputs: tuple[Float32Image, ...], tiles: tuple[int, int, int]
    ) -> tuple[Float32Image, ...]:
        """Mean, spread, and distance if the model has a gate, for that many tiles of (h, w)."""
        rules = self.manifest
        named = dict(zip(self._outputs, outputs, strict=False))
        image = tiles[0], len(rules.labels), *tiles[1:]
        wanted: dict[str, tuple[int, ...]] = {MEAN: image, SPREAD: image}
        if rules.gate is not None:  # on a grid of its own, which only has to be there
            grid = named[DISTANCE].shape[2:] if DISTANCE in named else ()
            wanted[DISTANCE] = (
                tiles[0],
                len(rules.gate.names),
                *(grid if len(grid) == 2 and all(grid) else (1, 1)),
            )
        for name, shape in wanted.items():
            if name not in named or named[name].shape != shape or named[name].dtype != np.float32:
                raise EngineError(
                    f"{self._network.name} answered with arrays of another shape than the model's",
                    wanted=f"{name} {shape} float32",
                    got=f"{named[name].shape} {named[name].dtype}" if name in named else "nothing",
                    fix="export the model again; its file does not do what its manifest says",
                )
        return tuple(named[name] for name in wanted)

    def close(self) -> None:
        self._network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _copies_ms(network: Network) -> tuple[float, float]:
    """Up and down so far, of a network that counts them in ``times``."""
    times = getattr(network, "times", None)
    return (0.0, 0.0) if times is None else (times.upload_ms, times.download_ms)


def _since_ms(began_s: float) -> float:
    return (time.perf_counter() - began_s) * 1e3


def _checked(manifest: Manifest, stack: ZStack) -> Use | Resample:
    verdict = check(manifest, stack.info)
    if isinstance(verdict, Refuse):
        raise StackRefused(f"stack {stack.info.key}: {verdict.reason}", fix=verdict.fix)
    return verdict
