"""What is to be fp16 in an ONNX graph and what must stay fp32.

Nothing is assumed of the network but its contract: ``stack`` becomes raw counts, ``inv_sd`` divides them
by the stack's contrast, and what follows a softmax, exponential or sum, with no convolution after it, is
decoding. What leads to the optional output ``distance`` only is fp32 as a whole: limits were fitted to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx import TensorProto, helper, inliner

from acq_isl.errors import ModelError

FLOAT = TensorProto.FLOAT
IMAGES = ("mean", "spread")
_CONTRAST = "inv_sd"
# Sums of many terms, and functions that turn small differences into large ones.
_ISLANDS = frozenset(
    {
        *("Softmax", "LogSoftmax", "CumSum", "Exp", "Log", "Pow", "Sqrt"),
        *("ReduceSum", "ReduceMean", "ReduceLogSumExp", "ReduceL2", "ReduceProd"),
        *("InstanceNormalization", "LayerNormalization", "GroupNormalization"),
    }
)
_HEAVY = frozenset(("Conv", "ConvTranspose", "MatMul", "Gemm"))
_CONTROL_FLOW = frozenset(("If", "Loop", "Scan"))
# Inputs that are float32 whatever the type of the data, by operator.
_ALWAYS_FLOAT = {"Resize": (1, 2), "Upsample": (1,)}


class Graph:
    """The master, made ready: functions inlined, constants as weights, bytes cast first, types known.

    Parameters
    ----------
    content : bytes
    outputs : sequence of str
        Those to keep; others and what leads only to them are left out.
    """

    def __init__(self, content: bytes, outputs: Sequence[str] = IMAGES) -> None:
        self.model = inliner.inline_local_functions(onnx.load_from_string(content))
        _constants_to_weights(self.model.graph)
        _keep_outputs(self.model.graph, outputs)
        _cast_bytes_first(self.model.graph)
        del self.model.graph.value_info[:]
        try:
            inferred = onnx.shape_inference.infer_shapes(self.model, check_type=True, strict_mode=True)
        except onnx.shape_inference.InferenceError as error:
            raise ModelError(
                f"the model cannot be prepared for TensorRT: {error}",
                wanted="camera bytes that are cast to float before any arithmetic",
                fix="export the model again with this version of acq-isl",
            ) from error
        graph = inferred.graph
        values = (*graph.value_info, *graph.input, *graph.output)
        self.types = {value.name: value.type.tensor_type.elem_type for value in values}
        self.weights = {weight.name: weight for weight in self.model.graph.initializer}
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


def _constants_to_weights(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        values = {a.name: a for a in node.attribute} if node.op_type == "Constant" else {}
        if "value" not in values:
            kept.append(node)
            continue
        graph.initializer.add().CopyFrom(values["value"].t)
        graph.initializer[-1].name = node.output[0]
    del graph.node[:]
    graph.node.extend(kept)


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
            values.update(name for inner in _subgraphs(nodes[index]) for name in inner)
    return found


def _subgraphs(node: onnx.NodeProto) -> Iterator[set[str]]:
    """What branches and loops use of the values around them."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield {name for inner in attribute.g.node for name in inner.input}


def _cast_bytes_first(graph: onnx.GraphProto) -> None:
    """Put a cast to fp32 behind every UINT8 input; casts that follow become casts of floats to floats."""
    casts = []
    for port in graph.input:
        if port.type.tensor_type.elem_type != TensorProto.UINT8:
            continue
        name = f"{port.name}_counts"
        for node in graph.node:
            for place, used in enumerate(node.input):
                if used == port.name:
                    node.input[place] = name
        casts.append(helper.make_node("Cast", [port.name], [name], name=f"cast_{port.name}", to=FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def half_nodes(graph: Graph) -> set[int]:
    """Places of the nodes that compute in fp16."""
    nodes = graph.nodes
    control = next((node.op_type for node in nodes if node.op_type in _CONTROL_FLOW), None)
    if control is not None or _CONTRAST not in {port.name for port in graph.model.graph.input}:
        raise ModelError(
            "no fp16 form of this model can be derived",
            wanted=f"a graph without branches or loops, and with the input {_CONTRAST!r}",
            got=f"operator {control}" if control else f"no {_CONTRAST!r}",
            fix="use --precision fp32, or export the model again with this version of acq-isl",
        )
    normalised = _normalised(graph)
    decoding, images = _decoding(nodes), leading_to(nodes, IMAGES)
    return {
        index
        for index, node in enumerate(nodes)
        if index in images - decoding and normalised.intersection(node.output) and list(graph.floats(node))
    }


def _normalised(graph: Graph) -> set[str]:
    """Values that follow from counts in units of the stack's contrast, the division itself left out."""
    stacks = {port.name for port in graph.model.graph.input} - {_CONTRAST}
    from_stack, from_contrast, first, after = set(stacks), {_CONTRAST}, set[str](), set[str]()
    for node in graph.nodes:
        inputs = set(node.input)
        if inputs & from_stack:
            from_stack.update(node.output)
        if inputs & from_contrast:
            from_contrast.update(node.output)
        if inputs & after or (inputs & first and node.op_type != "Clip"):
            after.update(node.output)
        elif inputs & first or (inputs & from_stack and inputs & from_contrast):
            # The clip that follows belongs to it: a speck of dust may be 100 000 contrasts bright.
            first.update(node.output)
    return after


def last_convolutions(nodes: list[onnx.NodeProto]) -> set[int]:
    """Places of the convolutions and products that no other follows."""
    before_heavy: set[str] = set()
    last: set[int] = set()
    for index in reversed(range(len(nodes))):
        heavy, followed = nodes[index].op_type in _HEAVY, before_heavy.intersection(nodes[index].output)
        if heavy and not followed:
            last.add(index)
        if heavy or followed:
            before_heavy.update(nodes[index].input)
    return last


def _decoding(nodes: list[onnx.NodeProto]) -> set[int]:
    """Islands, and what follows from them if no convolution does."""
    before_heavy: set[str] = set()
    light: set[int] = set()
    for index in reversed(range(len(nodes))):
        node = nodes[index]
        if node.op_type in _HEAVY or before_heavy.intersection(node.output):
            before_heavy.update(node.input)
        else:
            light.add(index)
    inside: set[int] = set()
    values: set[str] = set()
    for index, node in enumerate(nodes):
        if node.op_type in _ISLANDS or (index in light and values.intersection(node.input)):
            inside.add(index)
            values.update(node.output)
    return inside
