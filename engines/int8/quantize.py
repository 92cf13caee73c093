"""int8 by calibration: the ranges of activations are measured on the user's own stacks, never guessed.

Quantised in the form TensorRT takes: signed and symmetric, biases left alone, weights with a pair of
(QuantizeLinear, DequantizeLinear) of their own for each channel. Convolutions of raw counts stay as they are,
and so do the last ones: their outputs hold means and log variances side by side, whose ranges have nothing in
common.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from acq_isl.engines.agreement import as_bytes
from acq_isl.engines.graph_tags import IMAGES
from acq_isl.engines.int8.calibration import Tiles
from acq_isl.engines.onnx_graph import Graph, half_nodes, head_nodes
from acq_isl.errors import ModelError

_LEAST_TILES = 4
# Constants are folded and norms merged already; without this the quantiser warns on the root logger.
_PREPARED = {"onnx.quant.pre_process": "onnxruntime.quant"}


class _Tiles(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, tiles: Tiles) -> None:
        self._feeds = iter({"stack": as_bytes(tile), "inv_sd": inv_sd} for tile, inv_sd in tiles)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._feeds, None)


def quantised(content: bytes, tiles: Tiles, outputs: Sequence[str] = IMAGES) -> bytes:
    """The fp32 master with int8 convolutions, calibrated on tiles that show all there is to see, at least 4.

    ModelError with fewer tiles, or for a graph that has no fp16 form either.
    """
    if len(tiles) < _LEAST_TILES:
        raise ModelError(
            "int8 cannot be calibrated",
            wanted=f"at least {_LEAST_TILES} pieces of your own stacks, of 256 pixels or the smallest tile",
            got=str(len(tiles)),
            fix="give more or larger stacks, or use --precision fp16",
        )
    graph = Graph(content, outputs)
    inner = half_nodes(graph)
    metadata = {entry.key: entry.value for entry in graph.model.metadata_props}
    for index, node in enumerate(graph.model.graph.node):
        node.name = f"{node.op_type}_{index}"
    last = head_nodes(graph)
    left_alone = [n.name for i, n in enumerate(graph.model.graph.node) if i not in inner or i in last]
    onnx.helper.set_model_props(graph.model, _PREPARED)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "int8.onnx"
        quantize_static(
            graph.model,
            target,
            _Tiles(tiles),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=left_alone,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "AddQDQPairToWeight": True,
            },
        )
        made = onnx.load(target)
    onnx.helper.set_model_props(made, metadata)
    return bytes(made.SerializeToString())
