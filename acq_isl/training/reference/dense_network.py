"""Parts of the reference network as ONNX nodes, made for inference.

Batch normalisation that follows a convolution is folded into it, the ReLU and tanh halves of the widest
layers go through their own convolutions instead of being joined first, and bins are decoded strip by strip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from acq_isl.training.reference.network import (
    BN_EPSILON,
    Module,
    Plan,
    last_width,
    plan_network,
    plane_positions,
)
from acq_isl.training.reference.onnx_graph import FLOAT, OnnxGraph

Variables = Mapping[str, NDArray[np.float32]]
"""Values by published name, in TensorFlow's axis order."""

Statistic = Literal["mean", "spread", "median", "entropy"]
STATISTICS: tuple[Statistic, ...] = ("mean", "spread", "median", "entropy")
"""Mean, SD and median of a distribution, where 1 is full scale, and its entropy, where 1 is flat."""

_STRIPS = 4
_MEDIAN = 0.5


def fold_projection(
    weights: NDArray[np.float32], biases: NDArray[np.float32], planes: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """First layer for ``planes`` slices, each fed once and without masks.

    The network takes a fixed number of planes with a mask each. Slices that stand for several planes get the
    sum of their weights; masks, which are 1 everywhere, join the biases. Float32 weights of shape
    (1, 1, 2 * network planes, C) become (C, planes); biases stay (C,).
    """
    pairs = weights[0, 0].astype(np.float64).reshape(-1, 2, weights.shape[-1])
    folded = np.zeros((planes, weights.shape[-1]))
    for position, (pixel, _) in zip(plane_positions(len(pairs)), pairs, strict=True):
        folded[round((planes - 1) * position)] += pixel  # rounds halves to even, as published
    return folded.T.astype(np.float32), (biases + pairs[:, 1].sum(0)).astype(np.float32)


class DenseNetwork:
    """Adds the network's parts to a graph, for stacks of ``planes`` slices."""

    def __init__(self, graph: OnnxGraph, variables: Variables, base_depth: int, planes: int) -> None:
        self.graph = graph
        self._variables = variables
        self._planes = planes
        self.heads: list[str] = []  # values of the last products
        self._towers, self._upper = plan_network(base_depth)
        self.embedding_width = last_width(self._upper)

    def project(self, x: str, centre: float) -> str:
        """First layer: (N, planes, H, W), to which ``centre`` is yet to be added, to (N, 16, H, W)."""
        weights, biases = fold_projection(
            self._variables["Conv/weights"], self._variables["Conv/biases"], self._planes
        )
        biases = (biases + centre * weights.sum(axis=1, dtype=np.float64)).astype(np.float32)
        return self.graph.op(
            "Conv", x, self.graph.floats(weights[..., None, None]), self.graph.floats(biases)
        )

    def tower(self, scale: int, x: str, start: int = 0, stop: int | None = None) -> str:
        """Modules ``start`` to ``stop`` of a tower."""
        return self._modules(self._towers[scale], x, start, stop)

    def upper(self, x: str, start: int = 0, stop: int | None = None) -> str:
        """Modules ``start`` to ``stop`` of those after the joined towers; negative: from the end."""
        return self._modules(self._upper, x, start, stop)

    def upper_width(self, index: int) -> int:
        """Channels after one of the modules that follow the joined towers."""
        return list(self._upper.values())[index].outputs

    def decode(self, embedding: str, heads: Sequence[str], kinds: Sequence[Statistic]) -> str:
        """Statistics of each head's distribution, (N, h w, kinds * heads), all heads of the first kind first.
        Of an embedding (N, C, h, w) with h w a multiple of 4; strip by strip and head by head, so that the
        bins of a whole image never exist."""
        graph = self.graph
        pixels = graph.reshape(self.pixels(embedding), 0, _STRIPS, -1, self.embedding_width)
        strips = []
        for index in range(_STRIPS):
            strip = graph.slice(pixels, {1: (index, index + 1)})
            statistics = [self._statistics(strip, f"head/{head}/residual_v2_conv") for head in heads]
            by_kind = [statistic[kind] for kind in kinds for statistic in statistics]
            strips.append(graph.op("Concat", *by_kind, axis=-1))  # (N, 1, h w / strips, kinds * heads)
        return graph.reshape(graph.op("Concat", *strips, axis=1), 0, -1, len(kinds) * len(heads))

    def pixels(self, embedding: str) -> str:
        """Channels last: (N, C, h, w) to (N, h w, C)."""
        flat = self.graph.reshape(embedding, 0, self.embedding_width, -1)
        return self.graph.op("Transpose", flat, perm=[0, 2, 1])

    def _statistics(self, x: str, scope: str) -> dict[Statistic, str]:
        """Each statistic, (..., 1), of distributions at pixels (..., C); unused ones are pruned."""
        graph = self.graph
        log_p = graph.op("LogSoftmax", self._logits(x, scope), axis=-1)
        p = graph.op("Exp", log_p)
        bins = len(self._variables[f"{scope}/Conv/biases"])
        values, last = np.linspace(0, 1, bins, dtype=np.float32), graph.integers(-1)
        mean = graph.op("MatMul", p, graph.floats(values[:, None]))
        # Not E[v^2] - E[v]^2, which loses the digits of narrow distributions.
        off = graph.op("Sub", graph.floats(values), mean)
        variance = graph.op("ReduceSum", graph.op("Mul", p, graph.op("Mul", off, off)), last)
        below = graph.op("Less", graph.op("CumSum", p, graph.integer(-1)), graph.floats(_MEDIAN))
        below = graph.op("ReduceSum", graph.op("Cast", below, to=FLOAT), last)
        surprise = graph.op("ReduceSum", graph.op("Mul", p, log_p), last)
        return {
            "mean": mean,
            "spread": graph.op("Sqrt", variance),
            "median": graph.op("Mul", below, graph.floats(1 / (bins - 1))),
            "entropy": graph.op("Mul", surprise, graph.floats(-1 / math.log(bins))),
        }

    def _logits(self, x: str, scope: str) -> str:
        graph = self.graph
        scale, shift = _norm(self._variables, f"{scope}/BatchNorm")
        x = graph.op("Add", graph.op("Mul", x, graph.floats(scale)), graph.floats(shift))
        x = graph.op("Concat", graph.op("Relu", x), graph.op("Tanh", x), axis=-1)
        weights = self._variables[f"{scope}/Conv/weights"][0, 0]  # (2 C, bins)
        self.heads.append(graph.op("MatMul", x, graph.floats(weights)))
        return graph.op("Add", self.heads[-1], graph.floats(self._variables[f"{scope}/Conv/biases"]))

    def _modules(self, plan: Plan, x: str, start: int, stop: int | None) -> str:
        for name, module in list(plan.items())[start:stop]:
            x = self._module(name, module, x)
        return x

    def _module(self, name: str, module: Module, x: str) -> str:
        graph, (kernel, stride) = self.graph, module.window
        scope = f"{name}/expand_rv2"
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2}
        scale, shift = _norm(self._variables, f"{name}/reduce_rv2/BatchNorm")
        wide = self._batch_norm(x, *_norm(self._variables, f"{scope}/BatchNorm"))
        wide = graph.op("Concat", graph.op("Relu", wide), graph.op("Tanh", wide), axis=1)
        count = module.expanded
        bias = graph.floats(shift[:count])
        if module.kind == "up":
            weights = _onnx_order(self._variables[f"{scope}/Conv2d_transpose/weights"]) * scale[:, None, None]
            wide = graph.op("ConvTranspose", wide, graph.floats(weights), bias, pads=[2] * 4, **window)
            parts = [(wide, slice(count))]
        else:
            weights = _onnx_order(self._variables[f"{scope}/Conv/weights"]) * scale[:count, None, None, None]
            wide = graph.op("Conv", wide, graph.floats(weights), bias, **window)
            pooled = self._batch_norm(graph.op("MaxPool", x, **window), scale[count:], shift[count:])
            parts = [(wide, slice(count)), (pooled, slice(count, None))]
        halves = np.split(_onnx_order(self._variables[f"{name}/reduce_rv2/Conv/weights"]), 2, axis=1)
        out = self._shortcut(module, x)
        for part, channels in parts:
            for activation, half in zip(("Relu", "Tanh"), halves, strict=True):
                active = graph.op(activation, part)
                out = graph.op("Add", graph.op("Conv", active, graph.floats(half[:, channels])), out)
        return out

    def _shortcut(self, module: Module, x: str) -> str:
        graph = self.graph
        if module.kind == "up":
            x = graph.slice(x, {1: (0, module.outputs)})
            x = graph.op(
                "Resize", x, "", graph.floats([1, 1, 2, 2]), mode="nearest",
                coordinate_transformation_mode="asymmetric", nearest_mode="floor",
            )  # fmt: skip
            return graph.inner(x, 1)
        x = graph.inner(x, 1)
        if module.kind == "down":
            x = graph.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
        more = module.outputs - module.inputs
        return graph.op("Pad", x, graph.integers(0, 0, 0, 0, 0, more, 0, 0)) if more else x

    def _batch_norm(self, x: str, scale: NDArray[np.float32], shift: NDArray[np.float32]) -> str:
        graph, count = self.graph, len(scale)
        mean, variance = graph.floats(np.zeros(count)), graph.floats(np.ones(count))
        parts = graph.floats(scale), graph.floats(shift), mean, variance
        return graph.op("BatchNormalization", x, *parts, epsilon=0.0)


def _norm(variables: Variables, scope: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Batch normalisation with its stored statistics, as a factor and an addend."""
    gamma, beta, mean, variance = (
        variables[f"{scope}/{name}"].astype(np.float64)
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    scale = gamma / np.sqrt(variance + BN_EPSILON)
    return scale.astype(np.float32), (beta - mean * scale).astype(np.float32)


def _onnx_order(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """TensorFlow's (rows, columns, in, out), or (.., out, in) if transposed, with the last two first."""
    return weights.transpose(3, 2, 0, 1)
