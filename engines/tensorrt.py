"""TensorRT on an NVIDIA GPU: the fastest engine, for TensorRT 10, TensorRT 11 and TensorRT for RTX."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from acq_isl.engines.cuda import Device, OutOfDeviceMemory
from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.engines.plans import PlanStore
from acq_isl.engines.predictor import Predictor
from acq_isl.engines.trt_api import Flavour, Progress, load_flavour
from acq_isl.engines.trt_build import BuildOptions, BuiltPlan, build
from acq_isl.engines.trt_network import TensorRTNetwork
from acq_isl.engines.trt_program import KernelFile, PlanRefused, Program, Shape
from acq_isl.stack import Prediction, ZStack
from acq_isl.tiling import BLEND_PX, plan_tiles

_log = logging.getLogger(__name__)


class TensorRTEngine(Predictor):
    """A model file, ready to predict on an NVIDIA GPU.

    The plan is found or built, checked, loaded, and warmed up. A plan that the runtime does not take is
    built again. Tiles that do not fit into the GPU's memory are made smaller, with a warning.

    Parameters
    ----------
    model : pathlib.Path or str
    options : BuildOptions, optional
    store : PlanStore, optional
    progress : callable, optional
        Told how far a build is.
    device : Device, optional
        Owned from now on; GPU 0 if not given.
    flavour : Flavour, optional
        Instead of ``options.flavour``.

    Raises
    ------
    ModelError
        The model cannot be read or TensorRT lacks an operator.
    EngineError
        No GPU, no driver, no TensorRT, or none that fits.
    """

    def __init__(
        self,
        model: Path | str,
        options: BuildOptions | None = None,
        *,
        store: PlanStore | None = None,
        progress: Progress | None = None,
        device: Device | None = None,
        flavour: Flavour | None = None,
    ) -> None:
        options = options or BuildOptions()
        file = read_model(model)
        device = device or Device()
        try:
            flavour = flavour or load_flavour(options.flavour, capability=device.info.capability)
            loader = _Loader(file, options, store or PlanStore(), device, flavour)
            built, program = loader.load(progress)
        except BaseException:
            device.close()
            raise
        name = f"{flavour.name} {flavour.version} {device.info.name} {options.precision}"
        self._gpu = TensorRTNetwork(device, program, name)
        most = built.note.key.shapes["stack"][2]
        super().__init__(file.info, self._gpu, tile_px=max(most[2:4]), tiles_per_batch=most[0])
        self._note = ""
        try:
            self._warm_up(built.note.key.shapes["stack"][1])
        except BaseException:
            self.close()
            raise

    @property
    def network(self) -> TensorRTNetwork:
        """The plan on the GPU, for its times and for registering a ring."""
        return self._gpu

    def predict(self, stack: ZStack) -> Prediction:
        """Predict all labels of a stack; see `Predictor.predict`."""
        while True:
            try:
                prediction = super().predict(stack)
            except OutOfDeviceMemory as error:
                self._use_smaller_tiles(error)
                continue
            return (
                replace(prediction, warnings=(*prediction.warnings, self._note)) if self._note else prediction
            )

    def _warm_up(self, usual: Shape) -> None:
        """Make ready for the plan's usual tiles, or for the largest that fit."""
        while True:
            sides = (plan_tiles((side, side), self._rule, tile_px=self._tile_px) for side in usual[2:4])
            height, width = (plan.tile_shape[0] for plan in sides)
            tiles = min(usual[0], self._tiles_per_batch)
            try:
                return self._gpu.warm_up((tiles, usual[1], height, width, usual[4]))
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


@dataclass(frozen=True, slots=True, eq=False)
class _Loader:
    """Finds or builds a plan and has the runtime take it."""

    file: ModelFile
    options: BuildOptions
    store: PlanStore
    device: Device
    flavour: Flavour

    def load(self, progress: Progress | None) -> tuple[BuiltPlan, Program]:
        built = self._build(progress)
        try:
            return built, self._program(built)
        except PlanRefused as refusal:
            if built.fresh:
                raise
            _log.warning("%s; it is built again", refusal.what)
            self.store.discard(built.note.key)
        built = self._build(progress)
        return built, self._program(built)

    def _build(self, progress: Progress | None) -> BuiltPlan:
        gpu, flavour, store = self.device.info, self.flavour, self.store
        return build(self.file, self.options, store=store, gpu=gpu, flavour=flavour, progress=progress)

    def _program(self, built: BuiltPlan) -> Program:
        gpu = self.device.info
        name = f"{built.note.plan_sha256[:16]}-{gpu.capability}-{gpu.driver}.kernels"
        kernels = KernelFile(self.store.folder / name) if self.flavour.keeps_kernels else None
        return Program(self.flavour, built.content, self.file.info.manifest, kernels)
