"""A small builder of ONNX graphs.

The dense forms of the reference network are written with it: torch's exporters take minutes for graphs of
this depth with free image sides, or are deprecated, and the dense graph is not what ``forward`` says anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from acq_isl.engines.graph_tags import extract

OPSET = 20
FLOAT = int(TensorProto.FLOAT)
_IR_VERSION = 10
_TO_THE_END = np.iinfo(np.int64).max

Attribute = int | float | str | Sequence[int]
Ports = Mapping[str, tuple[type[np.generic], Sequence[int | str]]]
"""Element type and sides of inputs, by name."""


class OnnxGraph:
    """Collects nodes; values are the names of tensors. All names begin with ``prefix``, so that the nodes can
    be put before those of another graph."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: str, **attributes: Attribute) -> str:
        """Add a node with one output and return that."""
        name = f"{self._prefix}{kind.lower()}_{len(self._nodes)}"
        node = helper.make_node(kind, list(inputs), [name], name=name)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self._nodes.append(node)
        return name

    def name(self, value: str, name: str) -> None:
        """Give a value the name of a graph output."""
        self._nodes.append(helper.make_node("Identity", [value], [name], name=f"{self._prefix}output_{name}"))

    def constant(self, array: NDArray[np.float32] | NDArray[np.int64]) -> str:
        """Add a weight; equal ones are stored once."""
        key = (array.dtype.str, array.shape, array.tobytes())
        new = numpy_helper.from_array(array, f"{self._prefix}constant_{len(self._constants)}")
        return str(self._constants.setdefault(key, new).name)

    def floats(self, values: ArrayLike) -> str:
        """Add float32 weights."""
        return self.constant(np.asarray(values, np.float32))

    def integers(self, *values: int) -> str:
        """Add a one-dimensional constant of int64."""
        return self.constant(np.asarray(values, np.int64))

    def integer(self, value: int) -> str:
        """Add a scalar constant of int64."""
        return self.constant(np.asarray(value, np.int64))

    def slice(self, x: str, axes: Mapping[int, tuple[int, int]]) -> str:
        """Cut ``start:stop`` out of each named axis; a stop of 0 is the end, negative ones count from there.
        Free of the sizes themselves, so the graph holds for every image size."""
        starts, stops = zip(*axes.values(), strict=True)
        ends = [stop if stop else _TO_THE_END for stop in stops]
        return self.op("Slice", x, self.integers(*starts), self.integers(*ends), self.integers(*axes))

    def inner(self, x: str, before: int, after: int | None = None) -> str:
        """Crop rows and columns of an (N, C, H, W) value."""
        after = before if after is None else after
        return x if before == after == 0 else self.slice(x, {2: (before, -after), 3: (before, -after)})

    def side(self, x: str, axis: int) -> str:
        """Size of one axis as a one-element tensor."""
        return self.op("Shape", x, start=axis, end=axis + 1)

    def reshape(self, x: str, *sides: str | int) -> str:
        """Reshape to sides that are numbers (0: as before, -1: the rest) or values from `side`."""
        if all(isinstance(side, int) for side in sides):
            return self.op("Reshape", x, self.integers(*(int(side) for side in sides)))
        parts = [self.integers(side) if isinstance(side, int) else side for side in sides]
        return self.op("Reshape", x, self.op("Concat", *parts, axis=0))

    def put_before(self, model: onnx.ModelProto, inputs: Ports, outputs: Sequence[str]) -> onnx.ModelProto:
        """A checked model that runs these nodes first, on other inputs, and gives some of the outputs. The
        nodes must make every value that ``model`` takes, under its name. Metadata are left behind."""
        joined = onnx.ModelProto()
        joined.CopyFrom(model)
        graph = joined.graph
        nodes = list(graph.node)
        for field in (graph.node, graph.input, graph.value_info):
            del field[:]
        graph.input.extend(_value(name, *port) for name, port in inputs.items())
        graph.node.extend([*self._nodes, *nodes])
        graph.initializer.extend(self._constants.values())
        return extract(joined, tuple(inputs), outputs)

    def put_behind(self, model: onnx.ModelProto) -> None:
        """Let a model, changed in place, run these nodes last; they take its values by their names."""
        model.graph.node.extend(self._nodes)
        model.graph.initializer.extend(self._constants.values())

    def model(
        self, inputs: Ports, outputs: Mapping[str, Sequence[int | str]], metadata: Mapping[str, str]
    ) -> onnx.ModelProto:
        """Finish: a checked model with these inputs (element type and sides) and float32 outputs. Nodes that
        no output needs are left out."""
        needed, nodes = set(outputs), []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                nodes.append(node)
        constants = [tensor for tensor in self._constants.values() if tensor.name in needed]
        graph = helper.make_graph(
            nodes[::-1],
            "acq_isl",
            [_value(name, *port) for name, port in inputs.items()],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, sides) for n, sides in outputs.items()],
            constants,
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model)
        return model


def _value(name: str, dtype: type[np.generic], sides: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), sides)
