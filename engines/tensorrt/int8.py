"""The int8 form of a model for TensorRT: made from, and only used after a check on, the user's own stacks.

It is ONNX with explicit (QuantizeLinear, DequantizeLinear) pairs, which TensorRT turns into int8 kernels. It
is judged as ONNX Runtime computes it on the processor: rounded at the same places, so what passes here is
what the GPU is asked to compute. The upper half of every stack calibrates, the lower half judges.
"""

from __future__ import annotations

from collections.abc import Sequence

from acq_isl.engines.agreement import agreement
from acq_isl.engines.int8.accuracy import ABOVE, measure_accuracy
from acq_isl.engines.int8.calibration import calibration_tiles, split_in_two
from acq_isl.engines.int8.quantize import quantised
from acq_isl.engines.int8.store import TENSORRT_FILES, TENSORRT_MAKER, Int8Judgement, Int8Store
from acq_isl.engines.model_file import ModelFile
from acq_isl.engines.onnx_network import OnnxNetwork
from acq_isl.engines.predictor import Predictor
from acq_isl.stack import ZStack

MOST_DISTANCE = 0.05
"""By how much of its limit the gate's distance may change."""
_GATE_TILES = 8
_STORE = Int8Store("tensorrt.json", TENSORRT_FILES, TENSORRT_MAKER, "acq-isl build --precision int8")


def stored_form(model: ModelFile) -> tuple[Int8Judgement, bytes] | None:
    """The judgement on a model and its int8 form, if there and all hashes fit."""
    found = _STORE.load(model)
    return None if found is None else (found[0], found[1][0])


def make_form(
    model: ModelFile, stacks: Sequence[ZStack], *, above: float = ABOVE, threads: int | None = None
) -> Int8Judgement:
    """Quantise a model, judge it, and keep the result where builds and engines find it.

    Accepted if, on the lower halves of the stacks, `find_objection` finds none and the gate's distance
    changes by no more than `MOST_DISTANCE` of its limit. Errors as of
    `acq_isl.engines.openvino.int8.accept_int8`.
    """
    upper, lower = split_in_two(stacks)
    content = quantised(model.content, calibration_tiles(upper, model.info.manifest), model.info.output_names)
    low = ModelFile(content, model.info)
    with (
        Predictor(model.info, OnnxNetwork(model, threads=threads), gate="warn") as full,
        Predictor(model.info, OnnxNetwork(low, threads=threads), gate="warn") as cheap,
    ):
        found = measure_accuracy((full, cheap), lower, above)
    distance = max(_gate_change(model, content, stack) for stack in lower)
    moved = f"the gate's distance changes by {distance:.0%} of its limit" if distance > MOST_DISTANCE else ""
    found = found.model_copy(update={"distance": distance, "reason": found.reason or moved})
    return _STORE.save(model, (content,), found, lower)


def _gate_change(model: ModelFile, content: bytes, stack: ZStack) -> float:
    manifest = model.info.manifest
    if manifest.gate is None:
        return 0.0
    tiles = (tile for tile, _ in calibration_tiles([stack], manifest)[:_GATE_TILES])
    return max(agreement(model.content, content, manifest, stacks=tile).distance for tile in tiles)
