"""A stack becomes a prediction: check, resample, tile, infer, stitch, judge, map back. For every back end."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Self, assert_never

import numpy as np

from acq_isl.compatibility import Refuse, Resample, Sort, Use, check
from acq_isl.engines.backend import DISTANCE, MEAN, SPREAD, CountsCopies, Network
from acq_isl.engines.gate import RESAMPLED, Policy, judge_distances, measure_distances
from acq_isl.engines.image_quality import StackStatistics, check_image_quality
from acq_isl.engines.model_file import ModelInfo
from acq_isl.engines.pipeline import (
    AT_ONCE,
    AsyncNetwork,
    Field,
    ParallelMap,
    Result,
    check_finite,
    crop_to_field,
    run_tiles,
    worker_count,
    worker_threads,
)
from acq_isl.engines.views import average, first_views
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
    """Where the milliseconds of one prediction went."""

    prepare_ms: float = 0.0
    """Image quality checked, contrast measured, resampled where needed."""
    tile_ms: float = 0.0
    """Tiles cut and blended."""
    network_ms: float = 0.0
    """The back end, its copies included."""
    upload_ms: float = 0.0
    download_ms: float = 0.0
    """Copies to and from a GPU, as far as the back end counts them."""
    finish_ms: float = 0.0
    """Numbers checked, brought back to the stack's grid."""

    @property
    def total_ms(self) -> float:
        return self.prepare_ms + self.tile_ms + self.network_ms + self.finish_ms


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """Pixels as the model wants them, (z, y, x) uint16, 1 / their contrast, and how they were resampled."""

    pixels: Uint16Image
    inv_sd: np.float32
    warnings: tuple[str, ...]
    scale: float = 1.0
    excused: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Outputs:
    """A network's outputs for a field: mean and std, (label, y, x), and the distances of each batch."""

    mean: Float32Image
    std: Float32Image
    windows: list[Float32Image] = field(default_factory=list)
    busy_ms: float = 0.0


class Predictor:
    """The `Engine` around a `Network`, which it owns. Holds no state between stacks, so threads may share it.

    ``tile_px``, the longest side of a tile, bounds memory: never more than two batches are in work; None
    infers any field in one piece. ``border_px`` reflected pixels go around the field, else one size step, or
    what the network leaves blank: on the recorded field 16 px take a fifth off the error in the outer 16
    (.027 to .021 RMS in the outer 8) and bring the correlation with real nuclei there from .61 to .68, of .71
    with the true surroundings; more does not help. ModelError if the model has a gate whose distances the
    network does not give.
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
        if rules.gate is not None and DISTANCE not in network.outputs:
            raise ModelError(
                f"{network.name} cannot tell whether a stack looks like those {model.where} was trained on",
                wanted=f"an output {DISTANCE!r}, which the model's gate needs",
                got=", ".join(network.outputs),
                fix="use another engine, such as onnxruntime, or build the plan again",
            )
        self._tile_px, self._tiles_per_batch = tile_px, tiles_per_batch
        if tile_px is not None and rules.max_tile_px is not None:
            self._tile_px = min(tile_px, rules.max_tile_px)
        self._rule = TileRule(rules.min_tile_px, rules.halo_px, rules.size_step_px)
        self._margin_px = rules.halo_px if rules.margin_px is None else rules.margin_px
        self._high_pass_px = rules.high_pass_um / rules.pixel_size_um
        self._workers = worker_count(network)
        least_px = max(rules.size_step_px, rules.blank_px)
        self._border_px = least_px if border_px is None else max(border_px, rules.blank_px)
        self.views = first_views(1)
        """Whose predictions are averaged; see `use_views`."""
        self.parity = ""
        """How close it is to ONNX Runtime (`acq_isl.engines.parity`); empty if that was not asked."""

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
    def way(self) -> str:
        """The back end's name, and over how many views it averages: how predictions are made."""
        return self.name + f", mean of {len(self.views)} views" * (len(self.views) > 1)

    @property
    def network(self) -> Network:
        return self._network

    @property
    def at_once(self) -> int:
        """How many stacks several threads may hand it to be done sooner than one after the other."""
        return AT_ONCE if isinstance(self._network, AsyncNetwork) else 1

    def use_views(self, count: int) -> None:
        """Average over so many views of each stack, 1 to 8, from now on; each takes as long as the first."""
        self.views = first_views(count)

    def begin_statistics(self, info: StackInfo) -> StackStatistics:
        """Empty statistics, to be filled as slices arrive, so that `predict` has less to do."""
        return StackStatistics(info, self._high_pass_px)

    def predict(self, stack: ZStack, statistics: StackStatistics | None = None) -> Prediction:
        """Predict all labels of a stack of any field size; ``statistics`` are of this stack, as far as known.

        ``times.infer_ms`` is the network alone, ``times.decode_ms`` all other work of this call. StackRefused
        if metadata or content do not fit the model, EngineError if the network failed or answered with NaN.
        """
        return self.predict_timed(stack, statistics)[0]

    def rehearse(self, stack: ZStack) -> tuple[Prediction, Shares]:
        """`predict_timed` of a made-up stack: its distances are measured, but it is not refused for them."""
        return self.predict_timed(stack, gate="warn")

    def predict_timed(
        self, stack: ZStack, statistics: StackStatistics | None = None, gate: Policy | None = None
    ) -> tuple[Prediction, Shares]:
        """`predict`, and where its time went; ``gate`` instead of the engine's own."""
        statistics = statistics or self.begin_statistics(stack.info)
        with worker_threads(self._workers) as parallel_map:
            return self._predict(stack, statistics, parallel_map, gate or self._gate)

    def _predict(
        self, stack: ZStack, statistics: StackStatistics, parallel_map: ParallelMap, policy: Policy
    ) -> tuple[Prediction, Shares]:
        began_s = time.perf_counter()
        prepared = self._prepare(stack, statistics, parallel_map)
        shares = Shares(prepare_ms=_since_ms(began_s))
        began_s = time.perf_counter()
        field_px = prepared.pixels.shape[1], prepared.pixels.shape[2]
        plan = plan_tiles(field_px, self._rule, tile_px=self._tile_px, border_px=self._border_px)
        outputs = self._run_views(Field(prepared.pixels, plan, prepared.inv_sd), shares, parallel_map)
        shares.tile_ms = max(_since_ms(began_s) - shares.network_ms, 0.0)
        began_s = time.perf_counter()
        check_finite((outputs.mean, outputs.std, *outputs.windows), stack, parallel_map)
        distances, warnings = self._judge(stack, outputs, prepared.excused, policy)
        mean, std = (map_back(values, stack.info.shape) for values in (outputs.mean, outputs.std))
        shares.finish_ms = _since_ms(began_s)
        _log.debug("%s: %d tiles, %.0f ms", stack.info.key, len(plan.tiles), shares.total_ms)
        border_px = math.ceil(self._margin_px / prepared.scale)
        prediction = Prediction(
            info=stack.info,
            labels=self.manifest.label_names,
            mean=mean,
            spread=std,
            model_sha256=self._model.sha256,
            model_name=f"{self.manifest.name} {self.manifest.version}",
            engine=self.way,
            warnings=(*prepared.warnings, *warnings),
            border_px=min(border_px, *((n + 1) // 2 for n in stack.info.shape)),
            times=StageTimes(infer_ms=shares.network_ms, decode_ms=shares.total_ms - shares.network_ms),
            distances=distances,
            counting=self.manifest.counting,
            focus_offset_um=statistics.focus_offset_um,
        )
        return prediction, shares

    def _prepare(self, stack: ZStack, statistics: StackStatistics, parallel_map: ParallelMap) -> _Prepared:
        """Pixels of the model's planes and size; StackRefused if the stack does not fit the model."""
        verdict = check(self.manifest, stack.info)
        if isinstance(verdict, Refuse):
            raise StackRefused(f"stack {stack.info.key}: {verdict.reason}", fix=verdict.fix)
        statistics.complete(stack, parallel_map)
        check_image_quality(stack, statistics)
        match verdict:
            case Use():
                return _Prepared(stack.pixels, statistics.inverse_contrast, verdict.notes)
            case Sort():
                pixels = resample(stack, verdict)
                return _Prepared(pixels, inverse_contrast(pixels, self._high_pass_px), verdict.notes)
            case Resample():
                pixels = resample(stack, verdict)
                inv_sd = inverse_contrast(pixels, self._high_pass_px)
                return _Prepared(pixels, inv_sd, verdict.warnings, verdict.xy_scale, RESAMPLED)
            case _:
                assert_never(verdict)

    def _judge(
        self, stack: ZStack, outputs: _Outputs, excused: frozenset[str], policy: Policy
    ) -> tuple[tuple[Distance, ...], tuple[str, ...]]:
        """Distances to the training set, and warnings; StackRefused where that is the policy."""
        if self.manifest.gate is None:
            return (), ()
        distances = measure_distances(self.manifest.gate, outputs.windows)
        return distances, judge_distances(stack.info.key, distances, policy, excused)

    def _run_views(self, field: Field, shares: Shares, parallel_map: ParallelMap) -> _Outputs:
        """The mean over views; distances are of the stack as it is."""
        others = self.views[1:]
        outputs = self._run(field, shares, parallel_map)
        if not others:
            return outputs
        means, stds, network_ms = [outputs.mean], [outputs.std], shares.network_ms
        for view in others:
            seen = self._run(replace(field, pixels=view.show(field.pixels)), shares, parallel_map)
            means.append(view.turn_back(seen.mean))
            stds.append(view.turn_back(seen.std))
            network_ms += shares.network_ms
        outputs.mean, outputs.std = average(means, stds)
        shares.network_ms = network_ms
        return outputs

    def _run(self, field: Field, shares: Shares, parallel_map: ParallelMap) -> _Outputs:
        """The network's outputs for the whole field; adds its time to the shares."""
        up_ms, down_ms = _copies_ms(self._network)
        with closing(run_tiles(self._network, field, self._tiles_per_batch, parallel_map)) as results:
            if len(field.plan.tiles) == 1:
                outputs = self._crop(next(results), field.plan, parallel_map)
            else:
                outputs = self._blend(results, field.plan)
        after_ms = _copies_ms(self._network)
        shares.network_ms = outputs.busy_ms
        shares.upload_ms += after_ms[0] - up_ms
        shares.download_ms += after_ms[1] - down_ms
        return outputs

    def _crop(self, result: Result, plan: TilePlan, parallel_map: ParallelMap) -> _Outputs:
        mean, std, *windows = self._by_name(result, plan)
        mean, std = (crop_to_field(values, plan, parallel_map) for values in (mean, std))
        return _Outputs(mean, std, windows, result[2])

    def _blend(self, results: Iterable[Result], plan: TilePlan) -> _Outputs:
        shape = (len(self.manifest.labels), *plan.field_shape)
        outputs = _Outputs(np.zeros(shape, np.float32), np.zeros(shape, np.float32))
        for result in results:
            mean, std, *windows = self._by_name(result, plan)
            outputs.busy_ms += result[2]
            outputs.windows.extend(windows)
            for out, values in ((outputs.mean, mean), (outputs.std, std)):
                for image, tile in zip(values, result[0], strict=True):
                    blend(out, image, plan, tile)
        return outputs

    def _by_name(self, result: Result, plan: TilePlan) -> tuple[Float32Image, ...]:
        """Mean, std, and distance if there is a gate; EngineError if their shapes are not the model's."""
        rules, count = self.manifest, len(result[0])
        outputs = dict(zip(self._network.outputs, result[1], strict=False))
        image = count, len(rules.labels), *plan.tile_shape
        shapes: dict[str, tuple[int, ...]] = {MEAN: image, SPREAD: image}
        if rules.gate is not None:  # on a grid of its own, which only has to be there
            grid = outputs[DISTANCE].shape[2:] if DISTANCE in outputs else ()
            shapes[DISTANCE] = (
                count,
                len(rules.gate.names),
                *(grid if len(grid) == 2 and all(grid) else (1, 1)),
            )
        for name, shape in shapes.items():
            values = outputs.get(name)
            if values is None or values.shape != shape or values.dtype != np.float32:
                raise EngineError(
                    f"{self._network.name} answered with arrays of another shape than the model's",
                    wanted=f"{name} {shape} float32",
                    got="nothing" if values is None else f"{values.shape} {values.dtype}",
                    fix="export the model again; its file does not do what its manifest says",
                )
        return tuple(outputs[name] for name in shapes)

    def close(self) -> None:
        self._network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _copies_ms(network: Network) -> tuple[float, float]:
    return network.copies_ms if isinstance(network, CountsCopies) else (0.0, 0.0)


def _since_ms(began_s: float) -> float:
    return (time.perf_counter() - began_s) * 1e3
