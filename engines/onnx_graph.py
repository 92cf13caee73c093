"""What is to be fp16 in an ONNX graph and what must stay fp32.

The tags of the file say where the normalised part begins and which convolutions are the last. What follows
from these and a softmax, exponential or sum is decoding. What leads to the optional output ``distance`` only
is fp32 as a whole: limits were fitted to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper

from acq_isl.engines.graph_tags import IMAGES, read_tags
from acq_isl.errors import ModelError

FLOAT = TensorProto.FLOAT
# Sums of many terms, and functions that turn small differences into large ones.
_ISLANDS = frozenset(
    {
        *("Softmax", "LogSoftmax", "CumSum", "Exp", "Log", "Pow", "Sqrt"),
        *("ReduceSum", "ReduceMean", "ReduceLogSumExp", "ReduceL2", "ReduceProd"),
        *("InstanceNormalization", "LayerNormalization", "GroupNormalization"),
    }
)
_CONTROL_FLOW = frozenset(("If", "Loop", "Scan"))
# Inputs that are float32 whatever the type of the data, by operator.
_ALWAYS_FLOAT = {"Resize": (1, 2), "Upsample": (1,)}


class Graph:
    """A model made ready: functions inlined, constants as weights, bytes cast first, types known.

    ``outputs`` are those to keep; others and what leads only to them are left out.
    """

    def __init__(self, content: bytes, outputs: Sequence[str] = IMAGES) -> None:
        self.model = inliner.inline_local_functions(onnx.load_from_string(content))
        graph = self.model.graph
        _turn_constants_into_weights(graph)
        _keep_outputs(graph, outputs)
        _cast_bytes_first(graph)
        del graph.value_info[:]
        self.tags = read_tags(self.model)
        _multiply_by_convolutions(self.model, self.tags.heads if self.tags else ())
        try:
            inferred = onnx.shape_inference.infer_shapes(self.model, check_type=True, strict_mode=True).graph
        except onnx.shape_inference.InferenceError as error:
            raise ModelError(
                f"the model cannot be prepared for TensorRT: {error}",
                wanted="camera bytes that are cast to float before any arithmetic",
                fix="export the model again with this version of acq-isl",
            ) from error
        values = (*inferred.value_info, *inferred.input, *inferred.output)
        self.weights = {weight.name: weight for weight in graph.initializer}
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.types |= {name: weight.data_type for name, weight in self.weights.items()}

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self.model.graph.node)

    def floats(self, node: onnx.NodeProto) -> Iterator[int]:
        """Places of the inputs whose type follows the precision."""
        fixed = _ALWAYS_FLOAT.get(node.op_type, ())
        for place, name in enumerate(node.input):
            if name and place not in fixed and self.types.get(name) == FLOAT:
                yield place


def _turn_constants_into_weights(graph: onnx.GraphProto) -> None:
    for node in list(graph.node):
        tensor = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and tensor is not None:
            graph.initializer.add().CopyFrom(tensor)
            graph.initializer[-1].name = node.output[0]
            graph.node.remove(node)


def _keep_outputs(graph: onnx.GraphProto, outputs: Sequence[str]) -> None:
    kept = [port for name in outputs for port in graph.output if port.name == name]
    needed = leading_to(list(graph.node), outputs)
    nodes = [node for index, node in enumerate(graph.node) if index in needed]
    del graph.output[:], graph.node[:]
    graph.output.extend(kept)
    graph.node.extend(nodes)


def leading_to(nodes: list[onnx.NodeProto], names: Sequence[str]) -> set[int]:
    """Places of the nodes that some of these values follow from."""
    values, found = set(names), set[int]()
    for index in reversed(range(len(nodes))):
        if values.intersection(nodes[index].output):
            found.add(index)
            values.update(nodes[index].input)
            inner = (attribute.g.node for attribute in nodes[index].attribute if attribute.HasField("g"))
            values.update(name for body in inner for node in body for name in node.input)
    return found


def _cast_bytes_first(graph: onnx.GraphProto) -> None:
    """Put a cast to fp32 behind every UINT8 input; casts that follow become casts of floats to floats."""
    for port in graph.input:
        if port.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        name = f"{port.name}_counts"
        for node in graph.node:
            for place, used in enumerate(node.input):
                if used == port.name:
                    node.input[place] = name
        cast = helper.make_node("Cast", [port.name], [name], name=f"cast_{port.name}", to=FLOAT)
        graph.node.insert(0, cast)


def half_nodes(graph: Graph) -> set[int]:
    """Places of the nodes that compute in fp16; ModelError without tags, or with branches or loops."""
    nodes, tags = graph.nodes, graph.tags
    control = next((node.op_type for node in nodes if node.op_type in _CONTROL_FLOW), None)
    if control is not None or tags is None:
        raise ModelError(
            "no fp16 or int8 form of this model can be derived",
            wanted="a graph without branches or loops, and tags that say where its normalised part begins",
            got=f"operator {control}" if control else "no tags",
            fix="use --precision fp32, or write tags with `acq-isl export MODEL --tags --output NEW.onnx`",
        )
    decoding = _find_decoding(nodes, following_from(nodes, tags.heads))
    places = following_from(nodes, (tags.normalised,)) & leading_to(nodes, IMAGES)
    return {index for index in places - decoding if list(graph.floats(nodes[index]))}


def _multiply_by_convolutions(model: onnx.ModelProto, heads: Sequence[str]) -> None:
    """Turn products of each pixel's features, (n, h, w, f), with a matrix into 1x1 convolutions, heads apart.

    It is the same sum; TensorRT for RTX has no fp32 product of matrices for Turing.
    """
    graph = model.graph
    if not any(node.op_type == "MatMul" for node in graph.node):
        return
    weights = {weight.name: weight for weight in graph.initializer}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.value_info}
    nodes: list[onnx.NodeProto] = []
    for original in graph.node:
        node = onnx.NodeProto.FromString(original.SerializeToString())
        matrix = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        fits = matrix is not None and len(matrix.dims) <= 2 and ranks.get(node.input[0]) == 4
        if matrix is None or not fits or node.output[0] in heads:
            nodes.append(node)
            continue
        instead, added = _as_convolution(node, numpy_helper.to_array(matrix))
        nodes += instead
        graph.initializer.extend(added)
    del graph.node[:]
    graph.node.extend(nodes)


def _as_convolution(
    node: onnx.NodeProto, matrix: NDArray[np.float32]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """The nodes and weights that stand for a product with an (f, g) matrix, or a vector."""
    name = node.output[0]
    image, product, axis = f"{name}_image", f"{name}_product", f"{name}_axis"
    kernel = np.ascontiguousarray(np.atleast_2d(matrix.T)[:, :, None, None])
    added = [numpy_helper.from_array(kernel, f"{name}_kernel")]
    instead = [
        helper.make_node("Transpose", [node.input[0]], [image], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", [image, f"{name}_kernel"], [product]),
    ]
    if matrix.ndim == 2:
        instead.append(helper.make_node("Transpose", [product], [name], perm=[0, 2, 3, 1]))
    else:
        added.append(numpy_helper.from_array(np.array([1]), axis))
        instead.append(helper.make_node("Squeeze", [product, axis], [name]))
    return instead, added


def head_nodes(graph: Graph) -> set[int]:
    """Places of the last convolutions and products."""
    heads = graph.tags.heads if graph.tags else ()
    return {index for index, node in enumerate(graph.nodes) if set(heads).intersection(node.output)}


def following_from(nodes: list[onnx.NodeProto], names: Sequence[str]) -> set[int]:
    """Places of the nodes that follow from some of these values."""
    values, found = set(names), set[int]()
    for index, node in enumerate(nodes):
        if values.intersection(node.input):
            found.add(index)
            values.update(node.output)
    return found


def _find_decoding(nodes: list[onnx.NodeProto], behind_heads: set[int]) -> set[int]:
    """Islands, and what follows from them behind the last convolutions."""
    inside, values = set[int](), set[str]()
    for index, node in enumerate(nodes):
        if node.op_type in _ISLANDS or (index in behind_heads and values.intersection(node.input)):
            inside.add(index)
            values.update(node.output)
    return inside
