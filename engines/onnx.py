"""ONNX Runtime on the CPU: the engine that is always there, and the reference for all others."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import onnxruntime

from acq_isl.engines.backend import Candidate, LoadOptions, default_threads
from acq_isl.engines.gate import Policy
from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.engines.onnx_network import OnnxNetwork
from acq_isl.engines.predictor import TILE_PX, Predictor

__all__ = ["OnnxBackend", "OnnxEngine", "OnnxNetwork", "default_threads"]


class OnnxEngine(Predictor):
    """A model file, ready to predict on the CPU; the options are those of `Predictor` and `OnnxNetwork`.

    ModelError if the file is missing, damaged, or not an acq-isl model, EngineError if it cannot be run.
    """

    def __init__(
        self,
        model: ModelFile | Path | str,
        *,
        threads: int | None = None,
        tile_px: int | None = TILE_PX,
        gate: Policy = "refuse",
    ) -> None:
        file = model if isinstance(model, ModelFile) else read_model(model)
        super().__init__(file.info, OnnxNetwork(file, threads=threads), tile_px=tile_px, gate=gate)


class OnnxBackend:
    """The reference, on every machine."""

    name = "onnxruntime"

    def unavailable(self) -> None:
        return None

    def candidates(self, model: ModelFile, options: LoadOptions) -> Iterator[Candidate]:
        load = partial(OnnxEngine, model, threads=options.threads, gate=options.gate)
        yield Candidate("onnxruntime fp32", load, runs_on=f"onnxruntime {onnxruntime.__version__}")
