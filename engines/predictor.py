"""A stack becomes a prediction: check, resample, tile, infer, stitch, map back. For every back end."""

from __future__ import annotations

import logging
import math
import sys
import time
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.content import check_content
from acq_isl.engines.model_file import ModelInfo
from acq_isl.errors import EngineError, StackRefused
from acq_isl.manifest import Manifest, Refuse, Resample, Use, check
from acq_isl.normalize import inverse_contrast, map_back, resample
from acq_isl.stack import Float32Image, Prediction, StageTimes, Uint16Image, ZStack
from acq_isl.tiling import TilePlan, TileRule, blend, cut, plan_tiles

# Covers the usual 2048 and 2304 px cameras with 2x2 tiles.
TILE_PX = 1280

_log = logging.getLogger(__name__)


_Maps = tuple[Float32Image, Float32Image]  # mean and spread


class Network(Protocol):
    """A back end: runs one model on batches of tiles. Called from one thread at a time per stack."""

    @property
    def name(self) -> str:
        """Back end, device and precision, such as ``"onnxruntime cpu fp32"``."""

    def run(self, tiles: NDArray[np.uint8], inv_sd: Float32Image) -> tuple[Float32Image, Float32Image]:
        """Infer.

        Parameters
        ----------
        tiles : (tile, z, h, w, 2) uint8
            Little-endian bytes of uint16 counts; h and w obey the manifest's tile rule.
        inv_sd : (tile,) float32
            1 / contrast of the whole stack each tile is from.

        Returns
        -------
        mean, spread : (tile, label, h, w) float32

        Raises
        ------
        EngineError
        """

    def close(self) -> None:
        """Free what the back end holds; running it afterwards is an `EngineError`."""


class Predictor:
    """The `Engine` around a `Network`. Holds no state between stacks, so threads may share it.

    Parameters
    ----------
    model : ModelInfo
        The model the network runs.
    network : Network
        Owned from now on: closed with the predictor.
    tile_px : int or None
        Longest tile side. It bounds memory: never more than a batch of tiles is in work. None infers
        any field in one piece.
    tiles_per_batch : int
    """

    def __init__(
        self, model: ModelInfo, network: Network, *, tile_px: int | None = TILE_PX, tiles_per_batch: int = 1
    ) -> None:
        self._model, self._network = model, network
        self._tile_px, self._tiles_per_batch = tile_px, tiles_per_batch
        rules = model.manifest
        self._rule = TileRule(rules.min_tile_px, rules.halo_px, rules.size_step_px)

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

    def predict(self, stack: ZStack) -> Prediction:
        """Predict all labels of a stack of any field size.

        ``times.infer_ms`` is the network alone, ``times.decode_ms`` all other work of this call.

        Raises
        ------
        StackRefused
            Metadata or content do not fit the model.
        EngineError
            The network failed or answered with numbers that are none.
        """
        started_s = time.perf_counter()
        verdict = _checked(self.manifest, stack)
        check_content(stack)
        pixels = resample(stack, verdict) if isinstance(verdict, Resample) else stack.pixels
        scale = verdict.xy_scale if isinstance(verdict, Resample) else 1.0
        inv_sd = inverse_contrast(pixels, self.manifest.high_pass_um / self.manifest.pixel_size_um)
        plan = plan_tiles((pixels.shape[1], pixels.shape[2]), self._rule, tile_px=self._tile_px)
        (mean, spread), infer_s = self._infer(pixels, inv_sd, plan)
        _check_finite(mean, spread, stack)
        mean, spread = (map_back(values, stack.info.shape) for values in (mean, spread))
        total_s = time.perf_counter() - started_s
        _log.debug("%s: %d tiles, %.0f ms", stack.info.key, len(plan.tiles), total_s * 1e3)
        return Prediction(
            info=stack.info,
            labels=self.manifest.label_names,
            mean=mean,
            spread=spread,
            model_sha256=self._model.sha256,
            model_name=f"{self.manifest.name} {self.manifest.version}",
            engine=self._network.name,
            warnings=verdict.warnings if isinstance(verdict, Resample) else verdict.notes,
            border_px=min(
                math.ceil(self.manifest.halo_px / scale), *((n + 1) // 2 for n in stack.info.shape)
            ),
            times=StageTimes(infer_ms=infer_s * 1e3, decode_ms=(total_s - infer_s) * 1e3),
        )

    def _infer(self, pixels: Uint16Image, inv_sd: np.float32, plan: TilePlan) -> tuple[_Maps, float]:
        """Mean and spread of the whole field, and the seconds the network took."""
        if len(plan.tiles) == 1:
            outputs, infer_s = self._run(cut(pixels, plan, plan.tiles), inv_sd)
            return _whole(outputs, plan), infer_s
        shape = (len(self.manifest.labels), *plan.field_shape)
        field = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        batch = max(min(self._tiles_per_batch, len(plan.tiles)), 1)
        memory = np.empty((batch, len(pixels), *plan.tile_shape), np.uint16)
        infer_s = 0.0
        for tiles in plan.batches(batch):
            outputs, seconds = self._run(cut(pixels, plan, tiles, memory), inv_sd)
            infer_s += seconds
            for out, values in zip(field, outputs, strict=True):
                for one, tile in zip(values, tiles, strict=True):
                    blend(out, one, plan, tile)
        return field, infer_s

    def _run(self, tiles: Uint16Image, inv_sd: np.float32) -> tuple[_Maps, float]:
        data = _as_bytes(tiles)
        started_s = time.perf_counter()
        outputs = self._network.run(data, np.full(len(tiles), inv_sd, np.float32))
        seconds = time.perf_counter() - started_s
        wanted = (len(tiles), len(self.manifest.labels), *tiles.shape[2:])
        for values in outputs:
            if values.shape != wanted or values.dtype != np.float32:
                raise EngineError(
                    f"{self._network.name} answered with arrays of another shape than the model's",
                    wanted=f"{wanted} float32",
                    got=f"{values.shape} {values.dtype}",
                    fix="export the model again; its file does not do what its manifest says",
                )
        return outputs, seconds

    def close(self) -> None:
        self._network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _checked(manifest: Manifest, stack: ZStack) -> Use | Resample:
    verdict = check(manifest, stack.info)
    if isinstance(verdict, Refuse):
        raise StackRefused(f"stack {stack.info.key}: {verdict.reason}", fix=verdict.fix)
    return verdict


def _as_bytes(tiles: Uint16Image) -> NDArray[np.uint8]:
    """(..., h, w) uint16 as (..., h, w, 2) little-endian bytes; no copy on little-endian machines."""
    little = tiles if sys.byteorder == "little" else tiles.astype("<u2")
    return little.view(np.uint8).reshape(*tiles.shape, 2)


def _whole(outputs: _Maps, plan: TilePlan) -> _Maps:
    """The only tile, cut to the field."""
    top, left = -plan.rows.starts[0], -plan.columns.starts[0]
    rows, columns = plan.field_shape
    mean, spread = (np.ascontiguousarray(v[0, :, top : top + rows, left : left + columns]) for v in outputs)
    return mean, spread


def _check_finite(mean: Float32Image, spread: Float32Image, stack: ZStack) -> None:
    # Smallest and largest carry every NaN and infinity, without an array of booleans.
    if not all(np.isfinite([v.min(), v.max()]).all() for v in (mean, spread)):
        raise EngineError(
            f"the network answered with NaN or infinity for stack {stack.info.key}; nothing is shown",
            fix="try another engine or fp32 precision; if it stays, the model is damaged: export it again",
        )
