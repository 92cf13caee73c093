"""What a prediction on a stack costs, estimated in the model's graph from how stack and prediction look.

In windows as those of `acq_isl.training.ood_gate`: power of the normalised planes at several scales, the
likeness of planes, power of predicted means and SDs at several scales, and how these go with the logarithm of
the light's variance over z, which is what can be predicted without a model. What they are worth is fitted by
`acq_isl.training.fit_gate`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from acq_isl.engines.graph_tags import GraphTags, read_tags, write_tags
from acq_isl.errors import ModelError
from acq_isl.manifest import Manifest
from acq_isl.training.doubt_head import SPREAD_BEFORE
from acq_isl.training.ood_gate import WINDOW_PX
from acq_isl.training.reference.onnx_graph import OnnxGraph

STATISTICS = "cost_statistics"
_BEFORE = "distances_before_cost"
_PREFIX = "cost_"
_BLOCK_PX = 4
_SCALES_PX = (4, 8, 16, 32)
_LAGS = (1, 3, 6)
_EPS = 1e-3
_HUNDREDTHS = 100.0
_FAR_SD = 4.0  # what lies further off is as far as that: nothing was fitted there

Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class CostFit:
    """A sum of Gaussian kernels: ``out + exp(-width * |z - centre|^2) @ weights``; z are the statistics in
    SDs from their mean, at most `_FAR_SD`. Mean and scale are (F,), centres (H, F), weights (H,) float64."""

    mean: Rows
    scale: Rows
    centres: Rows
    weights: Rows
    width: float
    out: float

    def estimate(self, statistics: Rows) -> Rows:
        """Cost of windows, (window, F), in units of r."""
        found: Rows = self.out + kernels(self.whiten(statistics), self.centres, self.width) @ self.weights
        return found

    def whiten(self, statistics: Rows) -> Rows:
        return np.clip((statistics - self.mean) / self.scale, -_FAR_SD, _FAR_SD)


def kernels(z: Rows, centres: Rows, width: float) -> Rows:
    """Gaussians of windows (window, F) about centres (H, F), (window, H)."""
    square = (z * z).sum(axis=1)[:, None] + (centres * centres).sum(axis=1) - 2 * z @ centres.T
    found: Rows = np.exp(-width * np.maximum(square, 0))
    return found


def with_statistics(content: bytes, manifest: Manifest) -> bytes:
    """The model with the statistics of each window as an output, (N, F, h, w) float32."""
    model, tags = _without_cost(content)
    graph = OnnxGraph(prefix=_PREFIX)
    graph.name(_statistics(graph, tags, manifest), STATISTICS)
    graph.put_behind(model)
    model.graph.output.append(helper.make_tensor_value_info(STATISTICS, TensorProto.FLOAT, None))
    made: bytes = model.SerializeToString()
    return made


def with_cost(content: bytes, manifest: Manifest, fit: CostFit) -> bytes:
    """The model with the estimated cost of each window as the last of its gate's distances."""
    model, tags = _without_cost(content)
    before = next((port for port in model.graph.output if port.name == "distance"), None)
    graph = OnnxGraph(prefix=_PREFIX)
    cost = _estimate(graph, _statistics(graph, tags, manifest), fit)
    if before is None:
        graph.name(cost, "distance")
    else:
        for node in model.graph.node:
            node.output[:] = [_BEFORE if name == "distance" else name for name in node.output]
        graph.name(graph.op("Concat", _BEFORE, cost, axis=1), "distance")
        model.graph.output.remove(before)
    graph.put_behind(model)
    model.graph.output.append(
        helper.make_tensor_value_info("distance", TensorProto.FLOAT, ["n", None, "rows", "columns"])
    )
    asked = (name for name in tags.gate if name != SPREAD_BEFORE)  # now it is the SD as it is given
    takes = tuple(dict.fromkeys((*asked, tags.normalised, "mean", "spread")))
    write_tags(model, tags.model_copy(update={"gate": takes}))
    onnx.checker.check_model(model)
    made: bytes = model.SerializeToString()
    return made


def _without_cost(content: bytes) -> tuple[onnx.ModelProto, GraphTags]:
    """The model as it was before a cost was put into it, and its tags."""
    model = onnx.load_from_string(content)
    tags = read_tags(model)
    if tags is None:
        raise ModelError(
            "no cost can be estimated in this model",
            wanted="tags that say which of its values are the normalised planes",
            fix="write them with `acq-isl export MODEL --tags --output NEW.onnx`",
        )
    own = [node for node in model.graph.node if node.name.startswith(_PREFIX)]
    for node in own:
        model.graph.node.remove(node)
    for weight in [each for each in model.graph.initializer if each.name.startswith(_PREFIX)]:
        model.graph.initializer.remove(weight)
    if own:
        for node in model.graph.node:
            node.output[:] = ["distance" if name == _BEFORE else name for name in node.output]
        made = {name for node in model.graph.node for name in node.output}
        for port in [port for port in model.graph.output if port.name not in made]:
            model.graph.output.remove(port)
    return model, tags


def _statistics(graph: OnnxGraph, tags: GraphTags, manifest: Manifest) -> str:
    """Of windows, (N, F, h, w)."""
    window = _Windows(graph)
    blocks = window.shrink(tags.normalised, _BLOCK_PX)  # (N, Z, H/4, W/4)
    rows = _planes(window, tags.normalised, blocks, manifest.planes)
    rows += _maps(window, blocks, len(manifest.labels))
    return graph.op("Concat", *rows, axis=1)


def _planes(window: _Windows, x: str, blocks: str, planes: int) -> list[str]:
    """Of the normalised planes: power from pixels to blocks of 32 px, and how alike planes are."""
    graph = window.graph
    pixels = graph.op("AveragePool", x, kernel_shape=[1, 1], strides=[_BLOCK_PX, _BLOCK_PX])
    rows = [window.log(window.power(pixels, _BLOCK_PX))]
    for pair in ([1, 2], [2, 1]):  # half the difference of neighbours
        mean = graph.op("AveragePool", x, kernel_shape=pair, strides=[_BLOCK_PX, _BLOCK_PX])
        rows.append(window.log(window.power(graph.op("Sub", pixels, mean), _BLOCK_PX)))
    rows += [window.log(power) for power in window.powers(blocks)]
    power = window.power(blocks, _BLOCK_PX)
    for lag in (lag for lag in _LAGS if lag < planes):
        near, far = graph.slice(blocks, {1: (0, -lag)}), graph.slice(blocks, {1: (lag, 0)})
        both = graph.op("Mul", graph.slice(power, {1: (0, -lag)}), graph.slice(power, {1: (lag, 0)}))
        product = window.mean(graph.op("Mul", near, far), _BLOCK_PX)
        rows.append(graph.op("Div", product, graph.op("Sqrt", window.add(both, _EPS))))
    return rows


def _maps(window: _Windows, blocks: str, labels: int) -> list[str]:
    """Of the predicted means and SDs: level, power from pixels to blocks of 32 px, products, and correlation
    with the logarithm of the variance over z."""
    graph = window.graph
    mean, sd = (window.shrink(name, _BLOCK_PX) for name in ("mean", "spread"))
    fine = graph.op("AveragePool", "mean", kernel_shape=[1, 1], strides=[_BLOCK_PX, _BLOCK_PX])
    rows = [window.mean(mean, _BLOCK_PX), window.power(fine, _BLOCK_PX), *window.powers(mean)]
    rows += [window.mean(sd, _BLOCK_PX), window.power(sd, _BLOCK_PX)]
    rows.append(window.mean(graph.op("Mul", mean, sd), _BLOCK_PX))
    for one in range(1, labels):  # each label with those before it
        own, others = graph.slice(mean, {1: (one, one + 1)}), graph.slice(mean, {1: (0, one)})
        rows.append(window.mean(graph.op("Mul", own, others), _BLOCK_PX))
    axis = graph.integers(1)
    level = graph.op("ReduceMean", blocks, axis, keepdims=1)
    off = graph.op("Sub", blocks, level)
    varied = window.log(graph.op("ReduceMean", graph.op("Mul", off, off), axis, keepdims=1))
    spread = window.variance(varied, _BLOCK_PX)
    both = graph.op("Mul", spread, window.variance(mean, _BLOCK_PX))
    product = window.mean(graph.op("Mul", varied, mean), _BLOCK_PX)
    product = graph.op("Sub", product, graph.op("Mul", *(window.mean(v, _BLOCK_PX) for v in (varied, mean))))
    alike = graph.op("Div", product, graph.op("Sqrt", window.add(both, _EPS**2)))
    return [*map(window.log, rows), window.mean(varied, _BLOCK_PX), spread, alike]


@dataclass(frozen=True, slots=True)
class _Windows:
    """Means over the windows of a gate, of values on a grid of so many pixels."""

    graph: OnnxGraph

    def shrink(self, value: str, factor: int) -> str:
        return self.graph.op("AveragePool", value, kernel_shape=[factor] * 2, strides=[factor] * 2)

    def mean(self, value: str, grid_px: int) -> str:
        side = WINDOW_PX // grid_px
        return self.graph.op("AveragePool", value, kernel_shape=[side] * 2, strides=[side // 2] * 2)

    def power(self, value: str, grid_px: int) -> str:
        return self.mean(self.graph.op("Mul", value, value), grid_px)

    def variance(self, value: str, grid_px: int) -> str:
        level = self.mean(value, grid_px)
        return self.graph.op(
            "Relu", self.graph.op("Sub", self.power(value, grid_px), self.graph.op("Mul", level, level))
        )

    def powers(self, blocks: str) -> list[str]:
        """Of ever larger blocks, the first given."""
        found = []
        for side in _SCALES_PX:
            found.append(self.power(blocks, side))
            blocks = self.shrink(blocks, 2) if side < _SCALES_PX[-1] else blocks
        return found

    def add(self, value: str, number: float) -> str:
        return self.graph.op("Add", value, self.graph.floats(number))

    def log(self, value: str) -> str:
        """Of what should not be below 0."""
        return self.graph.op("Log", self.add(self.graph.op("Relu", value), _EPS))


def _estimate(graph: OnnxGraph, statistics: str, fit: CostFit) -> str:
    """`CostFit.estimate` of (N, F, h, w) in hundredths of r, (N, 1, h, w)."""
    rows = graph.op("Transpose", statistics, perm=[0, 2, 3, 1])
    z = graph.op("Div", graph.op("Sub", rows, graph.floats(fit.mean)), graph.floats(fit.scale))
    z = graph.op("Clip", z, graph.floats(-_FAR_SD), graph.floats(_FAR_SD))
    own = graph.op("ReduceSum", graph.op("Mul", z, z), graph.integers(-1), keepdims=1)
    square = graph.op("Add", own, graph.floats((fit.centres * fit.centres).sum(axis=1)))
    square = graph.op("Sub", square, graph.op("MatMul", z, graph.floats(2 * fit.centres.T)))
    near = graph.op("Exp", graph.op("Mul", graph.op("Relu", square), graph.floats(-fit.width)))
    out = graph.op("MatMul", near, graph.floats(_HUNDREDTHS * fit.weights[:, None]))
    cost = graph.op("Add", out, graph.floats(_HUNDREDTHS * fit.out))
    return graph.op("Transpose", cost, perm=[0, 3, 1, 2])
