"""No engine is relied on before it predicted a stored stack as ONNX Runtime does.

A runtime may compile wrongly, a captured graph may be empty, a plan or compiled network in the cache may be
another's: all of these answer, and nothing but the answer tells. Costs one inference of the smallest tile in
each engine and, once for a model, in ONNX Runtime.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.agreement import as_bytes, compare, inverse_contrasts, sample_tiles
from acq_isl.engines.backend import Candidate
from acq_isl.engines.model_file import ModelFile, output_names
from acq_isl.engines.onnx_network import OnnxNetwork
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import EngineError
from acq_isl.stack import Float32Image

_log = logging.getLogger(__name__)

# RMS of the difference as a share of the SD of what is predicted, by precision. Measured on the models here:
# 1e-6 in fp32, .01 in bf16. int8 is judged on the user's stacks, so here it must only be the same network.
LIMITS = {"fp32": 2e-3, "fp16": 2e-2, "bf16": 5e-2, "int8": 0.35}
_UNKNOWN = LIMITS["bf16"]
_MOST_DISTANCE = 0.05  # as a share of the gate's limit


class Reference:
    """What ONNX Runtime says to the stored stack of a model, asked once for all its engines."""

    def __init__(self, model: ModelFile) -> None:
        self._model = model

    def guarding(self, candidate: Candidate) -> Candidate:
        """The candidate, which is checked whenever it is loaded."""
        return replace(candidate, open=partial(self._open, candidate.open))

    @cached_property
    def _tiles(self) -> tuple[NDArray[np.uint8], Float32Image]:
        tiles = sample_tiles(self._model.info.manifest, 1)
        return as_bytes(tiles), inverse_contrasts(tiles)

    @cached_property
    def _answer(self) -> tuple[Float32Image, ...]:
        with closing(OnnxNetwork(self._model)) as network:
            return network.run(*self._tiles)

    def _open(self, load: Callable[[], Predictor]) -> Predictor:
        engine = load()
        try:
            outputs = engine.network.run(*self._tiles)
            if not isinstance(engine.network, OnnxNetwork):
                engine.parity = self._checked(
                    engine.name, dict(zip(engine.network.outputs, outputs, strict=False))
                )
        except BaseException:
            engine.close()
            raise
        return engine

    def _checked(self, name: str, outputs: dict[str, Float32Image]) -> str:
        """How close the outputs are, in words; EngineError if that is not close enough."""
        manifest = self._model.info.manifest
        names = output_names(manifest)
        got = tuple(outputs[output] for output in names if output in outputs)
        shapes = [[values.shape for values in answer] for answer in (self._answer, got)]
        if shapes[0] != shapes[1]:
            raise _refused(name, f"{', '.join(names)} of shapes {shapes[0]}", str(shapes[1]))
        found = compare(self._answer, got, manifest)
        limit = LIMITS.get(name.rpartition(" ")[2], _UNKNOWN)
        text = f"{found.rms:.1g} RMS off, the gate's distance {found.distance:.1g}"
        if not (found.rms <= limit and found.distance <= max(limit, _MOST_DISTANCE)):
            raise _refused(name, f"at most {limit:g} RMS off, the gate's distance {_MOST_DISTANCE:g}", text)
        _log.info("%s against ONNX Runtime on a stored stack: %s", name, text)
        return f"{name} is as ONNX Runtime on a stored stack ({text})"


def _refused(name: str, wanted: str, got: str) -> EngineError:
    return EngineError(
        f"{name} does not compute what the model says, and is not used",
        wanted=f"what ONNX Runtime computes on a stored stack: {wanted}",
        got=got,
        fix="delete the cache (`acq-isl plans` says where it is), update the runtime, or report it",
    )
