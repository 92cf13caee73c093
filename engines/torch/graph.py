"""An ONNX graph that torch computes, node by node, in the types the graph has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from acq_isl.engines.torch.operators import OPERATORS, NoSuchForm, Operator
from acq_isl.errors import ModelError

_CPU = torch.device("cpu")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_SAID = {"Resize": (2,), "Pad": (2,)}  # floats that are read while the graph is recorded, as sizes are


@dataclass(frozen=True, slots=True)
class _Node:
    name: str
    operator: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    unneeded: tuple[str, ...]  # values that no later node takes


class TorchGraph:
    """Weights and nodes on a device; ModelError for operators that are not known here.

    ``content`` is as `acq_isl.engines.fp16` writes it: no functions, constants as weights.
    """

    def __init__(self, content: bytes, device: torch.device) -> None:
        graph = onnx.load_from_string(content).graph
        self.outputs = tuple(port.name for port in graph.output)
        unknown = sorted({node.op_type for node in graph.node} - OPERATORS.keys())
        if unknown:
            raise _unusable(f"operator {', '.join(unknown)}")
        kernels = {node.input[1] for node in graph.node if node.op_type in _CONVOLUTIONS}
        said = {name for n in graph.node for at in _SAID.get(n.op_type, ()) for name in n.input[at : at + 1]}
        self._weights = {
            weight.name: _to_tensor(
                numpy_helper.to_array(weight), _CPU if weight.name in said else device, weight.name in kernels
            )
            for weight in graph.initializer
        }
        self._nodes = _with_last_uses(graph.node, self.outputs, set(self._weights))

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All outputs by name; ModelError where an operator is used in a way that is not known here."""
        values: dict[str, Tensor] = {**self._weights, **inputs}
        for node in self._nodes:
            given = [values[name] if name else None for name in node.inputs]
            try:
                found = node.operator(given, node.attributes)
            except NoSuchForm as form:
                raise _unusable(f"{node.name}: {form}") from form
            parts = found if isinstance(found, tuple) else (found,)
            values.update(zip(node.outputs, parts, strict=True))
            for name in node.unneeded:
                del values[name]
        return {name: values[name] for name in self.outputs}


def _to_tensor(values: np.ndarray[Any, Any], device: torch.device, kernel: bool) -> Tensor:
    tensor = torch.from_numpy(np.array(values))
    if not tensor.is_floating_point():
        return tensor  # says shapes
    if (
        kernel and tensor.ndim == 4 and device.type == "cuda"
    ):  # what tensor cores read without turning it round
        return tensor.to(device, memory_format=torch.channels_last)
    return tensor.to(device)


def _with_last_uses(
    nodes: Sequence[onnx.NodeProto], outputs: Sequence[str], weights: set[str]
) -> tuple[_Node, ...]:
    kept, made = {*outputs, *weights, ""}, []
    for node in reversed(nodes):
        last = tuple({*node.input, *node.output} - kept)
        kept.update(last)
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        names = tuple(node.input), tuple(node.output)
        made.append(_Node(node.op_type, OPERATORS[node.op_type], *names, attributes, last))
    return tuple(reversed(made))


def _unusable(got: str) -> ModelError:
    return ModelError(
        "torch cannot compute this model",
        wanted="operators as acq-isl exports them",
        got=got,
        fix="use another engine, such as onnxruntime",
    )
