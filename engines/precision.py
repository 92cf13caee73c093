"""One fp32 ONNX master becomes what TensorRT builds from: fp32 as it takes it, or fp16 with fp32 islands. Pure.

TensorRT's strongly typed networks compute in the types of the graph, so precision is decided here, in the open:

* Raw counts stay fp32 until the stack's contrast has divided them: fp16 loses 1 count above 2048 and 32 near
  65535, which is more than a phase-contrast image has to tell.
* Softmax, cumulative sums, exponentials and sums over bins stay fp32, with all that follows from them.
* Everything between is fp16, and so are the outputs: two bytes for each pixel of a label come down.

Camera bytes are cast to fp32 before anything else touches them: TensorRT takes UINT8 only into a cast.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from acq_isl.errors import ModelError

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_CONTRAST = "inv_sd"
# Sums of many terms, and functions that turn small differences into large ones.
_ISLANDS = frozenset(
    "Softmax LogSoftmax CumSum Exp Log Pow Sqrt ReduceSum ReduceMean ReduceLogSumExp ReduceL2 ReduceProd "
    "InstanceNormalization LayerNormalization GroupNormalization".split()
)
_HEAVY = frozenset(("Conv", "ConvTranspose", "MatMul", "Gemm"))
_CONTROL_FLOW = frozenset(("If", "Loop", "Scan"))
# Inputs that are float32 whatever the type of the data, by operator.
_ALWAYS_FLOAT = {"Resize": (1, 2), "Upsample": (1,)}
_HALF_MAX = float(np.finfo(np.float16).max)


def full(content: bytes) -> bytes:
    """The master as TensorRT takes it, every float in fp32.

    Parameters
    ----------
    content : bytes
        An ONNX model as `acq_isl.engines.model_file.read_model` checked it.

    Returns
    -------
    bytes
        The same function of the same inputs, metadata included.

    Raises
    ------
    ModelError
        The graph computes with camera bytes in a way that floats cannot stand in for.
    """
    return _Graph(content).model.SerializeToString()


def mixed(content: bytes) -> bytes:
    """fp16 with islands of fp32; outputs are float16.

    Parameters
    ----------
    content : bytes
        The fp32 master.

    Returns
    -------
    bytes

    Raises
    ------
    ModelError
        The graph has control flow, no contrast input, or weights beyond what fp16 holds.
    """
    return _Emitter(_Graph(content), rounded=False).model()


def rehearsal(content: bytes) -> bytes:
    """What `mixed` computes, for a processor: fp32 kernels, every fp16 value rounded to fp16.

    ONNX Runtime has hardly any fp16 kernels for processors; given `mixed` it computes in fp32 and drops the
    casts between, so that a comparison would show nothing. Here the rounding is spelt out. Sums inside of one
    convolution are fp32, as they are in TensorRT's kernels.

    Parameters
    ----------
    content : bytes
        The fp32 master.

    Returns
    -------
    bytes
    """
    return _Emitter(_Graph(content), rounded=True).model()


class _Graph:
    """The master, made ready: functions inlined, constants as weights, bytes cast first, types known."""

    def __init__(self, content: bytes) -> None:
        self.model = inliner.inline_local_functions(onnx.load_from_string(content))
        _constants_to_weights(self.model.graph)
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
            if name and place not in fixed and self.types.get(name) == _FLOAT:
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
        casts.append(helper.make_node("Cast", [port.name], [name], name=f"cast_{port.name}", to=_FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _half_nodes(graph: _Graph) -> set[int]:
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
    decoding = _decoding(nodes)
    return {
        index
        for index, node in enumerate(nodes)
        if index not in decoding and any(node.input[place] in normalised for place in graph.floats(node))
    }


def _normalised(graph: _Graph) -> set[str]:
    """Values that follow from counts in units of the stack's contrast, not counting the division itself."""
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
    return first | after


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


class _Emitter:
    """Writes the graph again with every float in the type it is to have."""

    def __init__(self, graph: _Graph, *, rounded: bool) -> None:
        self._graph, self._rounded = graph, rounded
        self._half = _half_nodes(graph)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._is_half: set[str] = set()  # values that are fp16, or rounded to it
        self._cast: dict[tuple[str, bool], str] = {}

    def model(self) -> bytes:
        source = self._graph.model
        for index, node in enumerate(self._graph.nodes):
            self._node(node, index in self._half)
        for port in source.graph.output:
            if self._graph.types[port.name] == _FLOAT:
                self._output(port)
        del source.graph.node[:], source.graph.initializer[:], source.graph.value_info[:]
        source.graph.node.extend(self._nodes)
        source.graph.initializer.extend(self._weights.values())
        onnx.checker.check_model(source, full_check=True)
        return source.SerializeToString()

    def _node(self, node: onnx.NodeProto, half: bool) -> None:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        following = set(self._graph.floats(node))
        for place, name in enumerate(node.input):
            if place in following:
                new.input[place] = self._as(name, half)
            elif name in self._graph.weights:
                self._weights[name] = self._graph.weights[name]
        for place, name in enumerate(node.output):
            new.output[place] = self._inner(name)
        if half and new.op_type == "Clip":
            self._bound(new)
        for attribute in new.attribute:
            if half and new.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT:
                attribute.i = _FLOAT if self._rounded else _HALF
        self._nodes.append(new)
        if half:
            for place, name in enumerate(node.output):
                if self._graph.types.get(name) == _FLOAT:
                    self._is_half.add(name)
                    if self._rounded:
                        new.output[place] = f"{name}_exact"
                        self._round(f"{name}_exact", self._inner(name))

    def _bound(self, clip: onnx.NodeProto) -> None:
        """Spell out the limits of a one-sided clip; left out, TensorRT takes fp32's, which fp16 cannot hold."""
        del clip.input[3:]
        clip.input.extend([""] * (3 - len(clip.input)))
        for place, limit in ((1, -_HALF_MAX), (2, _HALF_MAX)):
            if not clip.input[place]:
                clip.input[place] = name = f"half_limit_{place}"
                kind = np.float32 if self._rounded else np.float16
                self._weights[name] = numpy_helper.from_array(np.array(limit, kind), name)

    def _inner(self, name: str) -> str:
        """Graph outputs are cast last, so what is computed gets a name of its own."""
        outputs = {port.name for port in self._graph.model.graph.output}
        return f"{name}_inner" if name in outputs else name

    def _as(self, name: str, half: bool) -> str:
        """The value in the wanted type."""
        if name in self._graph.weights:
            return self._weight(name, half)
        if (name in self._is_half) == half or (self._rounded and not half):
            return self._inner(name)
        key = (name, half)
        if key not in self._cast:
            self._cast[key] = target = f"{name}_{'half' if half else 'full'}"
            if self._rounded:
                self._round(self._inner(name), target)
            else:
                self._add_cast(self._inner(name), target, _HALF if half else _FLOAT)
        return self._cast[key]

    def _weight(self, name: str, half: bool) -> str:
        weight = self._graph.weights[name]
        if not half:
            self._weights[name] = weight
            return name
        target = f"{name}_half"
        if target not in self._weights:
            values = numpy_helper.to_array(weight)
            if values.size and float(np.abs(values).max()) > _HALF_MAX:
                raise ModelError(
                    f"weight {name!r} does not fit fp16",
                    wanted=f"values up to {_HALF_MAX:g}",
                    got=f"{float(np.abs(values).max()):g}",
                    fix="use --precision fp32",
                )
            values = values.astype(np.float16)
            stored = values.astype(np.float32) if self._rounded else values
            self._weights[target] = numpy_helper.from_array(stored, target)
        return target

    def _output(self, port: onnx.ValueInfoProto) -> None:
        self._add_cast(self._as(port.name, True), port.name, _HALF)
        port.type.tensor_type.elem_type = _HALF

    def _round(self, source: str, target: str) -> None:
        self._add_cast(source, f"{target}_rounded", _HALF)
        self._add_cast(f"{target}_rounded", target, _FLOAT)

    def _add_cast(self, source: str, target: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind))
