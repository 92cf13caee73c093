"""An SD of its own in a model's graph: two small convolutions on the last activations. Pure.

Means stay as they are, to the bit, and the gate goes on looking at the SD that it was fitted to. What the
convolutions weigh is found by `acq_isl.training.fit_doubt`. Labels that are predicted pale off the simulator
may have a floor where much is predicted: the SD that the network had, which alone is wide enough there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from acq_isl.engines.graph_tags import GraphTags, read_tags, write_tags
from acq_isl.errors import ModelError
from acq_isl.training.reference.onnx_graph import OnnxGraph

SCALE, SLOPE = "spread_scale", "spread_slope"
"""Weights of the graph by which its SD is multiplied, (1, L, 1, 1)."""
_PREFIX = "doubt_"
SPREAD_BEFORE = "before_doubt_spread"
"""The SD that the network learned beside its means, where a gate was fitted to it."""
_BEFORE = {"spread": SPREAD_BEFORE, SCALE: f"before_doubt_{SCALE}", SLOPE: f"before_doubt_{SLOPE}"}
_MUCH, _OVER = 0.25, 0.05  # predicted, from which on the SD before is a floor, and over which it becomes one
_LOG_VARIANCE = (-9.0, 3.0)  # as of `acq_isl.training.network.LiveNetwork`

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class DoubtHead:
    """Log variance of activations (C,): ``second @ relu(first @ x + first_bias) + second_bias``; (H, C) and
    (L fold^2, H) float32."""

    first: Rows
    first_bias: Rows
    second: Rows
    second_bias: Rows


def last_activations(model: onnx.ModelProto) -> str:
    """The value, (N, C, H / fold, W / fold), that means are a convolution of; `ModelError` if there is no
    single one."""
    tags = _tags(model)
    own = [node for node in model.graph.node if node.output[0] in tags.heads and not _is_own(node)]
    if len(own) != 1 or own[0].op_type != "Conv":
        raise ModelError(
            "this model can be given no SD of its own",
            wanted="one network whose last convolution gives means and log variances",
            got=f"{len(own)} last convolutions and products",
            fix="use the SD that it has, or teach one network by it (docs/training.md)",
        )
    return str(own[0].input[0])


def with_doubt(content: bytes, head: DoubtHead, floored: Sequence[bool] = ()) -> bytes:
    """The model whose SD is the head's, times a scale by label that is 1; an earlier head is replaced.

    ``floored`` says, by label, of which it is the SD before where that is larger and much is predicted.
    """
    model = onnx.load_from_string(content)
    tags, activations = _tags(model), last_activations(model)
    labels = _labels(model)
    if not any(map(_is_own, model.graph.node)):
        _rename(model, _BEFORE)
        gate = tuple(_BEFORE.get(name, name) for name in tags.gate)
        tags = tags.model_copy(update={"gate": gate})
    _remove_own(model)
    graph = OnnxGraph(prefix=_PREFIX)
    last = _add(graph, activations, head, np.array([*floored] or [False] * labels, np.float32))
    graph.put_behind(model)
    ones = np.ones((1, labels, 1, 1), np.float32)
    model.graph.initializer.append(numpy_helper.from_array(ones, SCALE))
    _bring_forward(model)
    heads = (*(name for name in tags.heads if not name.startswith(_PREFIX)), last)
    write_tags(model, tags.model_copy(update={"heads": heads}))
    onnx.checker.check_model(model)
    made: bytes = model.SerializeToString()
    return made


def without_floor(content: bytes) -> bytes | None:
    """The model whose SD has no floor, to fit its scale; None if it has none anyway."""
    model = onnx.load_from_string(content)
    floors = {
        node.output[0]: node.input[0] for node in model.graph.node if _is_own(node) and node.op_type == "Max"
    }
    for node in model.graph.node:
        if _is_own(node):
            node.input[:] = [floors.get(name, name) for name in node.input]
    bare: bytes = model.SerializeToString()
    return bare if floors else None


def _tags(model: onnx.ModelProto) -> GraphTags:
    tags = read_tags(model)
    if tags is None:
        raise ModelError(
            "this model can be given no SD of its own",
            wanted="tags that say which are its last convolutions",
            fix="write them with `acq-isl export MODEL --tags --output NEW.onnx`",
        )
    return tags


def _labels(model: onnx.ModelProto) -> int:
    """How many labels the SD has, by its scale."""
    found = [list(weight.dims) for weight in model.graph.initializer if weight.name == SCALE]
    if not found or len(found[0]) != 4:
        raise ModelError(
            "this model can be given no SD of its own",
            wanted=f"weights {SCALE} in its graph",
            fix="export it with this version of acq-isl, from its weights.safetensors",
        )
    return int(found[0][1])


def _add(graph: OnnxGraph, activations: str, head: DoubtHead, floored: Rows) -> str:
    """Nodes from the activations to ``spread``; the value of the last convolution."""

    def number(value: float) -> str:
        return graph.constant(np.asarray(value, np.float32))

    fold = round((len(head.second) / len(floored)) ** 0.5)
    weights = (graph.floats(part[:, :, None, None]) for part in (head.first, head.second))
    hidden = graph.op("Conv", activations, next(weights), graph.floats(head.first_bias))
    last = graph.op("Conv", graph.op("Relu", hidden), next(weights), graph.floats(head.second_bias))
    log = graph.op("Clip", last, *map(number, _LOG_VARIANCE))
    sd = graph.op("Exp", graph.op("Mul", log, number(0.5)))
    if fold > 1:
        sd = graph.op("DepthToSpace", sd, blocksize=fold, mode="CRD")
    sd = graph.op("Mul", sd, SCALE)
    if floored.any():
        much = graph.op("Mul", graph.op("Sub", "mean", number(_MUCH)), number(1 / _OVER))
        much = graph.op("Clip", much, number(0.0), number(1.0))
        floor = graph.op(
            "Mul", graph.op("Mul", SPREAD_BEFORE, much), graph.floats(floored[None, :, None, None])
        )
        sd = graph.op("Max", sd, floor)
    graph.name(sd, "spread")
    return last


def _is_own(node: onnx.NodeProto) -> bool:
    return bool(node.name.startswith(_PREFIX))


def _remove_own(model: onnx.ModelProto) -> None:
    for node in [node for node in model.graph.node if _is_own(node)]:
        model.graph.node.remove(node)
    own = (_PREFIX, SCALE)
    for weight in [each for each in model.graph.initializer if each.name.startswith(own)]:
        model.graph.initializer.remove(weight)


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Give values and weights other names, for all who use them; outputs keep theirs."""
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for each in (*model.graph.initializer, *model.graph.value_info):
        each.name = names.get(each.name, each.name)


def _bring_forward(model: onnx.ModelProto) -> None:
    """Own nodes right behind what they take, so that whatever looks at the SD comes later."""
    nodes = list(model.graph.node)
    own, others = [n for n in nodes if _is_own(n)], [n for n in nodes if not _is_own(n)]
    at = max(n for n, node in enumerate(others, 1) if {"mean", SPREAD_BEFORE} & set(node.output))
    del model.graph.node[:]
    model.graph.node.extend([*others[:at], *own, *others[at:]])
