"""A back end: ONNX's own reference implementation, slow and sure."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from acq_isl.engines import Candidate, LoadOptions, ModelFile, Predictor, Unavailable
from acq_isl.errors import EngineError


class OnnxReferenceNetwork:
    """Runs a model on batches of tiles; has the members of `acq_isl.engines.Network`."""

    name = "onnx_reference cpu fp32"

    def __init__(self, model: ModelFile) -> None:
        self.outputs = model.info.output_names
        self._evaluator: ReferenceEvaluator | None = ReferenceEvaluator(onnx.load_from_string(model.content))

    def run(self, tiles: np.ndarray, inv_sd: np.ndarray) -> tuple[np.ndarray, ...]:
        if self._evaluator is None:
            raise EngineError("the engine is closed", fix="load the engine again")
        return tuple(self._evaluator.run(list(self.outputs), {"stack": tiles, "inv_sd": inv_sd}))

    def close(self) -> None:
        self._evaluator = None


class OnnxReferenceBackend:
    """Has the members of `acq_isl.engines.Backend`."""

    name = "onnx_reference"

    def unavailable(self) -> Unavailable | None:
        return None

    def candidates(self, model: ModelFile, options: LoadOptions) -> Iterator[Candidate]:
        def load() -> Predictor:
            return Predictor(model.info, OnnxReferenceNetwork(model), gate=options.gate)

        # Far too slow to be measured beside the others each time: used when it is named.
        yield Candidate("onnx_reference fp32", load, automatic=False, runs_on=f"onnx {onnx.__version__}")
