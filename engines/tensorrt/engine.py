"""TensorRT on an NVIDIA GPU: the fastest engine, for TensorRT 10, TensorRT 11 and TensorRT for RTX."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from acq_isl.engines.gate import Policy
from acq_isl.engines.image_quality import StackStatistics
from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.engines.predictor import Predictor, Shares
from acq_isl.engines.sealed_file import SealedFile
from acq_isl.engines.tensorrt.api import Flavour, check_gpu, load_flavour
from acq_isl.engines.tensorrt.build import BuiltPlan, build
from acq_isl.engines.tensorrt.cuda import Device, GpuInfo, OutOfDeviceMemory
from acq_isl.engines.tensorrt.network import TensorRTNetwork
from acq_isl.engines.tensorrt.options import BuildOptions, LastBuilt, resolved
from acq_isl.engines.tensorrt.plan_cache import PlanStore
from acq_isl.engines.tensorrt.program import PlanRefused, Program, tells_of_memory
from acq_isl.processing.tiling import BLEND_PX, plan_tiles
from acq_isl.stack import Prediction, ZStack

_log = logging.getLogger(__name__)


class TensorRTEngine(Predictor):
    """A model file, ready to predict on an NVIDIA GPU, which it owns; GPU 0 if none is given.

    The plan is exactly that of the options, or as it was built last; one that the runtime does not take is
    built again. Tiles that do not fit into memory are made smaller, with a warning. ModelError if the model
    cannot be read or is beyond TensorRT, EngineError without a GPU, a driver, or a TensorRT that fits.
    """

    def __init__(
        self,
        model: ModelFile | Path | str,
        options: BuildOptions | LastBuilt = LastBuilt(),  # noqa: B008  frozen
        *,
        store: PlanStore | None = None,
        device: Device | None = None,
        flavour: Flavour | None = None,
        gate: Policy = "refuse",
    ) -> None:
        file = model if isinstance(model, ModelFile) else read_model(model)
        wish, store, device = options, store or PlanStore(), device or Device()
        try:
            options = resolved(wish, file, store, device.info, flavour)
            flavour = flavour or load_flavour(options.flavour, capability=device.info.capability)
            check_gpu(flavour, device.info.capability)
            built, program = _Loader(file, options, store, device.info, flavour).load()
        except BaseException:
            device.close()
            raise
        name = f"{flavour.name} {flavour.version} {device.info.name} {options.precision}"
        self._gpu = TensorRTNetwork(device, program, name)
        most = built.note.key.shapes["stack"][2]
        super().__init__(file.info, self._gpu, tile_px=max(most[2:4]), tiles_per_batch=most[0], gate=gate)
        self._note = ""
        try:
            # Whatever field the plan is fastest at, it is the camera's that will come.
            self._warm_up(wish.field_px or options.field_px)
        except BaseException:
            self.close()
            raise

    @property
    def network(self) -> TensorRTNetwork:
        """The plan on the GPU, for its times."""
        return self._gpu

    def predict_timed(
        self, stack: ZStack, statistics: StackStatistics | None = None, gate: Policy | None = None
    ) -> tuple[Prediction, Shares]:
        """See `Predictor.predict_timed`."""
        while True:
            try:
                prediction, shares = super().predict_timed(stack, statistics, gate)
            except OutOfDeviceMemory as error:
                self._use_smaller_tiles(error)
                continue
            if self._note:
                prediction = replace(prediction, warnings=(*prediction.warnings, self._note))
            return prediction, shares

    def _warm_up(self, field_px: tuple[int, int]) -> None:
        """Make ready for the tiles such a field is cut into, or for the largest that fit."""
        while True:
            plan = plan_tiles(field_px, self._rule, tile_px=self._tile_px, border_px=self._border_px)
            tiles = min(self._tiles_per_batch, len(plan.tiles))
            try:
                return self._gpu.warm_up((tiles, self.manifest.planes, *plan.tile_shape, 2))
            except OutOfDeviceMemory as error:
                self._use_smaller_tiles(error)

    def _use_smaller_tiles(self, error: OutOfDeviceMemory) -> None:
        # Any field that is larger than the smallest tile that works would do.
        field_px = self._rule.min_px + 4 * (self._rule.halo_px + self._rule.step_px + BLEND_PX)
        smallest = plan_tiles((field_px, field_px), self._rule, tile_px=1).tile_shape[0]
        before_px, before_tiles = self._tile_px or smallest, self._tiles_per_batch
        if before_tiles > 1:
            self._tiles_per_batch = before_tiles // 2
        elif before_px > smallest:
            self._tile_px = max(before_px // 2, smallest)
        else:
            raise error
        self._note = (
            f"the GPU's memory is too small for {before_tiles} tiles of {before_px} px at a time; "
            f"using {self._tiles_per_batch} of at most {self._tile_px} px"
        )
        _log.warning("%s", self._note)


def kernels_name(plan_sha256: str, gpu: GpuInfo) -> str:
    """Of the file of compiled kernels: they fit one plan, one model of GPU and one driver only."""
    card = hashlib.sha256(gpu.name.encode()).hexdigest()[:8]
    return f"{plan_sha256[:16]}-{gpu.capability}-{card}-{gpu.driver}.kernels"


@dataclass(frozen=True, slots=True, eq=False)
class _Loader:
    """Finds or builds a plan and has the runtime take it."""

    file: ModelFile
    options: BuildOptions
    store: PlanStore
    gpu: GpuInfo
    flavour: Flavour

    def load(self) -> tuple[BuiltPlan, Program]:
        built = self._build()
        try:
            return built, self._program(built)
        except PlanRefused as refusal:
            if built.fresh or tells_of_memory(str(refusal.got)):
                raise  # a plan that does not fit now is as good as ever when other programs have ended
            _log.warning("%s; it is built again", refusal.what)
            self.store.discard(built.note.key)
        built = self._build()
        return built, self._program(built)

    def _build(self) -> BuiltPlan:
        return build(self.file, self.options, store=self.store, gpu=self.gpu, flavour=self.flavour)

    def _program(self, built: BuiltPlan) -> Program:
        name = kernels_name(built.note.plan_sha256, self.gpu)
        cache = SealedFile(self.store.folder / name) if self.flavour.has_runtime_cache else None
        return Program(self.flavour, built.content, self.file.info.manifest, cache)
