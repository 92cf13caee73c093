"""One fp32 ONNX master becomes what TensorRT builds from: fp32, or fp16 with fp32 islands. Pure.

Strongly typed networks compute in the types of the graph. Raw counts stay fp32 until the contrast has divided
them (fp16 loses 32 counts near 65535); so do softmax, sums and exponentials with all that follows, and the
gate, whose limits were fitted to it. Everything between is fp16, and so are the images: two bytes a pixel
come down. Camera bytes are cast to fp32 first: TensorRT takes UINT8 only into a cast.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from acq_isl.engines.graph_tags import IMAGES
from acq_isl.engines.onnx_graph import FLOAT, Graph, half_nodes
from acq_isl.errors import ModelError

_FP16 = TensorProto.FLOAT16
_FP16_MAX = float(np.finfo(np.float16).max)


def full(content: bytes, outputs: Sequence[str] = IMAGES) -> bytes:
    """The fp32 ONNX master as TensorRT takes it: the same function, with only these outputs.

    ModelError if it computes with camera bytes in a way that floats cannot stand in for.
    """
    return bytes(Graph(content, outputs).model.SerializeToString())


def mixed(content: bytes, outputs: Sequence[str] = IMAGES) -> bytes:
    """The fp32 master as fp16 with islands of fp32; images are float16, the distance float32.

    ModelError if it has control flow or no tags, or weights beyond what fp16 holds.
    """
    return _Emitter(Graph(content, outputs), rounded=False).model()


def rehearsal(content: bytes, outputs: Sequence[str] = IMAGES) -> bytes:
    """What `mixed` computes, for a processor: fp32 kernels, with the rounding to fp16 spelt out, since ONNX
    Runtime drops casts between kernels it has in fp32 only.
    """
    return _Emitter(Graph(content, outputs), rounded=True).model()


class _Emitter:
    """Writes the graph again with every float in the type it is to have."""

    def __init__(self, graph: Graph, *, rounded: bool) -> None:
        self._graph, self._rounded = graph, rounded
        self._fp16_nodes = half_nodes(graph)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}
        self._are_fp16: set[str] = set()  # values that are fp16, or rounded to it
        self._cast: dict[tuple[str, bool], str] = {}

    def model(self) -> bytes:
        source = self._graph.model
        for index, node in enumerate(self._graph.nodes):
            self._node(node, index in self._fp16_nodes)
        for port in source.graph.output:
            if self._graph.types[port.name] == FLOAT:
                self._output(port)
        del source.graph.node[:], source.graph.initializer[:], source.graph.value_info[:]
        source.graph.node.extend(self._nodes)
        source.graph.initializer.extend(self._weights.values())
        onnx.checker.check_model(source, full_check=True)
        return bytes(source.SerializeToString())

    def _node(self, node: onnx.NodeProto, is_fp16: bool) -> None:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        following = set(self._graph.floats(node))
        for place, name in enumerate(node.input):
            if place in following:
                new.input[place] = self._as(name, is_fp16)
            elif name in self._graph.weights:
                self._weights[name] = self._graph.weights[name]
        for place, name in enumerate(node.output):
            new.output[place] = self._inner(name)
        if is_fp16 and new.op_type == "Clip":
            self._bound(new)
        for attribute in new.attribute:
            if is_fp16 and new.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = FLOAT if self._rounded else _FP16
        self._nodes.append(new)
        if is_fp16:
            for place, name in enumerate(node.output):
                if self._graph.types.get(name) == FLOAT:
                    self._are_fp16.add(name)
                    if self._rounded:
                        new.output[place] = f"{name}_exact"
                        self._round(f"{name}_exact", self._inner(name))

    def _bound(self, clip: onnx.NodeProto) -> None:
        """Spell out both limits of a clip; left out, TensorRT takes fp32's, which fp16 cannot hold."""
        del clip.input[3:]
        clip.input.extend([""] * (3 - len(clip.input)))
        for place, limit in ((1, -_FP16_MAX), (2, _FP16_MAX)):
            if not clip.input[place]:
                clip.input[place] = name = f"half_limit_{place}"
                kind = np.float32 if self._rounded else np.float16
                self._weights[name] = numpy_helper.from_array(np.array(limit, kind), name)

    def _inner(self, name: str) -> str:
        """Graph outputs are cast last, so what is computed gets a name of its own."""
        outputs = {port.name for port in self._graph.model.graph.output}
        return f"{name}_inner" if name in outputs else name

    def _as(self, name: str, is_fp16: bool) -> str:
        """The value in the wanted type."""
        if name in self._graph.weights:
            return self._weight(name, is_fp16)
        if (name in self._are_fp16) == is_fp16 or (self._rounded and not is_fp16):
            return self._inner(name)
        key = (name, is_fp16)
        if key not in self._cast:
            self._cast[key] = target = f"{name}_{'half' if is_fp16 else 'full'}"
            if self._rounded:
                self._round(self._inner(name), target)
            else:
                self._add_cast(self._inner(name), target, _FP16 if is_fp16 else FLOAT)
        return self._cast[key]

    def _weight(self, name: str, is_fp16: bool) -> str:
        weight = self._graph.weights[name]
        if not is_fp16:
            self._weights[name] = weight
            return name
        target = f"{name}_half"
        if target not in self._weights:
            values = numpy_helper.to_array(weight)
            if values.size and float(np.abs(values).max()) > _FP16_MAX:
                raise ModelError(
                    f"weight {name!r} does not fit fp16",
                    wanted=f"values up to {_FP16_MAX:g}",
                    got=f"{float(np.abs(values).max()):g}",
                    fix="use --precision fp32",
                )
            values = values.astype(np.float16)
            stored = values.astype(np.float32) if self._rounded else values
            self._weights[target] = numpy_helper.from_array(stored, target)
        return target

    def _output(self, port: onnx.ValueInfoProto) -> None:
        kind = _FP16 if port.name in IMAGES else FLOAT
        self._add_cast(self._as(port.name, kind == _FP16), port.name, kind)
        port.type.tensor_type.elem_type = kind

    def _round(self, source: str, target: str) -> None:
        self._add_cast(source, f"{target}_rounded", _FP16)
        self._add_cast(f"{target}_rounded", target, FLOAT)

    def _add_cast(self, source: str, target: str, kind: int) -> None:
        self._nodes.append(helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=kind))
