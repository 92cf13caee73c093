"""The distances of a model's gate as a graph of their own, which stays fp32 whatever the network is run in.

Squares of differences of pixels and products with a whitening matrix: bf16 and int8 would refuse what fp32
takes.
"""

from __future__ import annotations

from typing import Any

import openvino
from openvino import opset13 as ops

from acq_isl.engines.openvino.graph import reach, users

NORMALISED = "normalised"
_DISTANCE = "distance"

Model = Any  # openvino's classes are made by pybind11


def split_gate(trunk: Model) -> tuple[Model, Model] | None:
    """The graph without its distances, and the graph of these; None for a model without a gate.

    Parameters
    ----------
    trunk : openvino.Model
        One input; changed by this.

    Returns
    -------
    trunk, gate : openvino.Model
        Inputs of the gate are the trunk's input, named `NORMALISED`, and outputs of the trunk by their names.
    """
    if not any(_DISTANCE in output.get_names() for output in trunk.outputs):
        return None
    (stack,) = trunk.get_parameters()
    distance = trunk.output(_DISTANCE).get_node()
    pictures = [result for result in trunk.get_results() if result != distance]
    own = reach([distance]) - reach(pictures)
    own.discard(stack.get_friendly_name())
    ports: dict[tuple[str, int], Any] = {}
    inputs, handed = [], []
    for node in trunk.get_ordered_ops():
        if node.get_friendly_name() not in own:
            continue
        for port in node.inputs():
            source = port.get_source_output()
            origin = source.get_node()
            key = origin.get_friendly_name(), source.get_index()
            if key[0] in own or origin.get_type_name() == "Constant":
                continue
            if key not in ports:
                name = NORMALISED if origin == stack else f"handed_over_{len(ports)}"
                ports[key] = _input(source, name)
                inputs.append(ports[key])
                if origin != stack:
                    source.add_names({name})
                    handed.append(ops.result(source))
            port.replace_source_output(ports[key].output(0))
    gate = openvino.Model([distance], inputs, "gate")
    return openvino.Model([*pictures, *handed], [stack], "trunk"), gate


def taking_bf16(gate: Model) -> Model:
    """The same for a normalised stack in bf16."""
    for old in gate.get_parameters():
        if NORMALISED in old.output(0).get_names():
            others = [port for port in gate.get_parameters() if port != old]
            taken = users(old.output(0))
            port = _input(old.output(0), NORMALISED, openvino.Type.bf16)
            widened = ops.convert(port, openvino.Type.f32)
            for user in taken:
                user.replace_source_output(widened.output(0))
            return openvino.Model(gate.get_results(), [port, *others], "gate")
    return gate


def _input(source: Any, name: str, kind: Any = None) -> Any:
    port = ops.parameter(source.get_partial_shape(), kind or source.get_element_type(), name=name)
    port.output(0).set_names({name})
    return port
