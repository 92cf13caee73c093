"""A model file as other programs want it: camera counts in, nothing measured outside of the graph.

The engines hand a network the bytes of the counts and the contrast of the whole stack, because that spares
copies and makes tiling invisible. Other programs hand over an image. The graph made here takes uint16 planes,
takes them apart into bytes, and measures the contrast itself, as `acq_isl.processing.normalize.contrast_sd`
does.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from acq_isl.errors import ModelError
from acq_isl.manifest import Manifest
from acq_isl.training.reference.onnx_graph import FLOAT, OnnxGraph

INPUT = "planes"
OUTPUTS = ("mean", "spread")
_BYTE = 256.0
# As in acq_isl.processing.normalize; what is made here is held against it before it is written.
_BLOCK_PX = 4
_PLANES_SAMPLED = 4
_LEAST_SD = 0.5
_SIGMAS = 4.0
_OPSETS = range(18, 23)
_FIRST = np.iinfo(np.int64).min


def image_model(model: onnx.ModelProto, manifest: Manifest) -> onnx.ModelProto:
    """The same network with an image as its only input.

    Parameters
    ----------
    model : onnx.ModelProto
        Takes ``stack`` and ``inv_sd``, see `acq_isl.engines.model_file`.
    manifest : Manifest

    Returns
    -------
    onnx.ModelProto
        Takes ``planes``, (N, Z, H, W) uint16, sides as the manifest's tile rule wants and at least
        `least_side_px`; gives ``mean`` and ``spread``, (N, L, H, W) float32.

    Raises
    ------
    ModelError
        The model needs operators of another age.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset not in _OPSETS:
        raise ModelError(
            "the model cannot be given another input",
            wanted=f"ONNX operators of version {_OPSETS.start} to {_OPSETS.stop - 1}",
            got=str(opset),
            fix="export it again with this version of acq-isl",
        )
    graph = OnnxGraph(prefix="image_")
    counts = graph.op("Cast", INPUT, to=FLOAT)  # (N, Z, H, W)
    high = graph.op("Floor", graph.op("Mul", counts, graph.floats(1 / _BYTE)))
    low = graph.op("Sub", counts, graph.op("Mul", high, graph.floats(_BYTE)))
    last = graph.integers(-1)
    halves = graph.op("Concat", *(graph.op("Unsqueeze", part, last) for part in (low, high)), axis=-1)
    graph.name(graph.op("Cast", halves, to=int(TensorProto.UINT8)), "stack")
    graph.name(_inverse_contrast(graph, counts, manifest), "inv_sd")
    return graph.put_before(model, {INPUT: (np.uint16, ("n", manifest.planes, "h", "w"))}, OUTPUTS)


def least_side_px(manifest: Manifest) -> int:
    """Smallest side: what the network needs, more than its halo, and enough for the contrast's background."""
    wanted = max(
        manifest.min_tile_px,
        2 * manifest.halo_px + manifest.size_step_px,
        _BLOCK_PX * (_radius(manifest) + 1),
    )
    return -(-wanted // manifest.size_step_px) * manifest.size_step_px


def _radius(manifest: Manifest) -> int:
    """Of the Gaussian on block means, in blocks."""
    return int(_SIGMAS * manifest.high_pass_um / manifest.pixel_size_um / _BLOCK_PX + 0.5)


def _inverse_contrast(graph: OnnxGraph, counts: str, manifest: Manifest) -> str:
    """1 / SD of the counts around their local background, (N,), as `contrast_sd` measures it."""
    picks = np.unique(np.linspace(0, manifest.planes - 1, _PLANES_SAMPLED).round().astype(np.int64))
    x = graph.op("Gather", counts, graph.constant(picks), axis=1)  # (N, P, H, W)
    axes = graph.integers(1, 2, 3)
    if manifest.high_pass_um <= 0:
        centred = graph.op("Sub", x, graph.op("ReduceMean", x, graph.integers(2, 3)))
        variance = graph.op("ReduceMean", graph.op("Mul", centred, centred), axes, keepdims=0)
    else:
        block = [_BLOCK_PX, _BLOCK_PX]
        means = graph.op("AveragePool", x, kernel_shape=block, strides=block)
        spread_out = graph.op("Resize", means, "", graph.floats([1, 1, *block]), mode="nearest",
                              coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
        off = graph.op("Sub", x, spread_out)
        means = graph.op("Sub", means, graph.op("ReduceMean", means, graph.integers(2, 3)))
        around = graph.op("Sub", means, _background(graph, means, len(picks), manifest))
        within, between = (
            graph.op("ReduceMean", graph.op("Mul", one, one), axes, keepdims=0) for one in (off, around)
        )
        variance = graph.op("Add", within, between)
    sd = graph.op("Max", graph.op("Sqrt", variance), graph.floats(_LEAST_SD))
    return graph.op("Reciprocal", sd)


def _background(graph: OnnxGraph, means: str, planes: int, manifest: Manifest) -> str:
    """Gaussian of block means that goes on beyond the edge as its own mirror image, edge included."""
    radius = _radius(manifest)
    sigma = manifest.high_pass_um / manifest.pixel_size_um / _BLOCK_PX
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = np.tile((weights / weights.sum()).astype(np.float32), (planes, 1, 1, 1))
    for axis, shaped in ((2, kernel.transpose(0, 1, 3, 2)), (3, kernel)):
        means = _mirrored(graph, means, axis, radius) if radius else means
        means = graph.op("Conv", means, graph.floats(shaped), group=planes)
    return means


def _mirrored(graph: OnnxGraph, x: str, axis: int, count: int) -> str:
    """``count`` more values before and after, mirrored with the edge value twice; ONNX pads without it."""
    where, back = graph.integers(axis), graph.integers(-1)
    before = graph.op("Slice", x, graph.integers(count - 1), graph.integers(_FIRST), where, back)
    after = graph.op("Slice", x, back, graph.integers(-count - 1), where, back)
    return graph.op("Concat", before, x, after, axis=axis)
