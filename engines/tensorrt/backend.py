"""TensorRT and TensorRT for RTX among the installed back ends; importable without either."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from acq_isl.engines.backend import Candidate, LoadOptions, Unavailable
from acq_isl.engines.graph_tags import read_tags
from acq_isl.engines.model_file import ModelFile
from acq_isl.engines.tensorrt.api import PACKAGES, FlavourName, load_flavour
from acq_isl.engines.tensorrt.cuda import Device, GpuInfo

if TYPE_CHECKING:
    from acq_isl.engines.tensorrt.plan_cache import Precision


class TensorRTBackend:
    """Plain TensorRT on an NVIDIA GPU."""

    name = "tensorrt"
    _flavour: FlavourName = "tensorrt"
    _fix = 'with an NVIDIA A100, H100 or B200: pip install "acq-isl[tensorrt]"'

    def unavailable(self) -> Unavailable | None:
        if importlib.util.find_spec(self.name) is None:
            return Unavailable(self.name, "not installed", self._fix)
        _gpu()
        return None

    def candidates(self, model: ModelFile, options: LoadOptions) -> Iterator[Candidate]:
        from acq_isl.engines.tensorrt.engine import TensorRTEngine
        from acq_isl.engines.tensorrt.int8 import stored_form
        from acq_isl.engines.tensorrt.options import LastBuilt

        gpu = _gpu()
        runs_on = f"{self.name} {_version(self.name)}, {gpu.name} {gpu.capability}, driver {gpu.driver}"

        def candidate(precision: Precision, automatic: bool = True, refused: str = "") -> Candidate:
            wish = LastBuilt(precision, options.field_px, self._flavour)
            load = partial(TensorRTEngine, model, wish, gate=options.gate)
            automatic = automatic and self._serves(precision, model, options, gpu)
            return Candidate(f"{self.name} {precision}", load, automatic, refused, runs_on)

        stored = stored_form(model)
        if stored is not None:
            yield candidate("int8", stored[0].accepted, stored[0].reason)
        tagged = read_tags(model.content) is not None  # else nothing says what may be fp16
        if tagged:
            yield candidate("fp16")
        yield candidate("fp32", automatic=not tagged)

    def _serves(self, precision: Precision, model: ModelFile, options: LoadOptions, gpu: GpuInfo) -> bool:
        """Whether ``auto`` uses this package where both are installed: as the last plan, or as usual."""
        if any(importlib.util.find_spec(package) is None for package in PACKAGES.values()):
            return True
        from acq_isl.engines.tensorrt.options import LastBuilt, resolved
        from acq_isl.engines.tensorrt.plan_cache import PlanStore

        usual = resolved(LastBuilt(precision, options.field_px), model, PlanStore(), gpu)
        return load_flavour(usual.flavour, capability=gpu.capability).name == self.name


class TensorRTForRTXBackend(TensorRTBackend):
    """TensorRT for RTX on a GeForce or RTX card."""

    name = "tensorrt_rtx"
    _flavour: FlavourName = "rtx"
    _fix = 'with an NVIDIA GeForce or RTX card: pip install "acq-isl[rtx]"'


def _gpu() -> GpuInfo:
    """The GPU that would be used; EngineError without one."""
    with Device() as device:
        return device.info


def _version(package: str) -> str:
    for distribution in (package, f"{package}_cu12", f"{package}_cu13"):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of unknown version"
