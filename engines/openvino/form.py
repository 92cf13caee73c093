"""Which graphs a model is run as by OpenVINO, for each precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import openvino
from openvino import opset13 as ops
from openvino import properties

from acq_isl.engines.model_file import ModelFile
from acq_isl.engines.openvino.background import Background, find_background
from acq_isl.engines.openvino.graph import Parts, handed_over_in_bf16, reach, read_graph, users
from acq_isl.errors import ModelError

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


Precision = Literal["fp32", "bf16", "int8"]
DEVICE = "CPU"
# Nothing else comes out of OpenVINO's bindings; which one tells nothing.
RUNTIME_ERRORS = (RuntimeError, ValueError, TypeError, MemoryError)


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """A model as OpenVINO runs it.

    Parameters
    ----------
    parts : Parts
    background : Background or None
        Takes the place of ``parts.front``, plane by plane.
    gate : openvino.Model or None
        Distances to the training set; in fp32, of what the trunk is given and hands over. None if the model
        has no gate, or the trunk is the whole model.
    """

    parts: Parts
    background: Background | None
    gate: Any = None


def has_bf16() -> bool:
    """Whether this processor computes with bf16, as OpenVINO itself finds."""
    return "BF16" in openvino.Core().get_property(DEVICE, properties.device.capabilities)


def processor() -> str:
    """Name of the processor, as compiled networks depend on it."""
    return str(openvino.Core().get_property(DEVICE, properties.device.full_name))


def read_form(
    core: Any, model: ModelFile, precision: Precision, trunk: tuple[bytes, bytes] | None, *, low: bool
) -> Form:
    """Read a model and rewrite it for a precision.

    Parameters
    ----------
    core : openvino.Core
    model : ModelFile
    precision : "fp32", "bf16" or "int8"
    trunk : bytes and bytes, optional
        XML and weights of the quantised part; needed for int8.
    low : bool
        Hand over what is normalised in bf16.

    Raises
    ------
    ModelError
        OpenVINO cannot read the network, or there is no such form of it.
    """
    try:
        form = _read(core, model.content, precision)
        parts, gate = form.parts, form.gate
        if precision == "int8" and trunk is not None and parts.front is not None:
            parts = Parts(parts.front, core.read_model(*trunk), parts.takes_counts)
        if low:
            parts = handed_over_in_bf16(parts)
            gate = None if gate is None else taking_bf16(gate)
    except RUNTIME_ERRORS as error:
        raise ModelError(
            f"OpenVINO cannot read model {model.info.where}: {first_line(error)}",
            wanted=f"operators that OpenVINO {openvino.get_version()} knows",
            got=f"ONNX opset {model.info.opset}",
            fix="update openvino, or use the engine onnxruntime",
        ) from error
    if precision != "fp32" and parts.front is None:
        raise ModelError(
            f"model {model.info.where} can only be run in fp32 by OpenVINO",
            wanted="one value that separates normalisation, which must stay fp32, from the network",
            fix="use fp32, or export the model again with this version of acq-isl",
        )
    if precision == "int8" and trunk is None:
        raise ModelError(
            f"model {model.info.where} has no int8 form", fix="run `acq-isl accept-int8` on stacks of yours"
        )
    return Form(parts, form.background, gate)


def _read(core: Any, content: bytes, precision: Precision) -> Form:
    parts = read_graph(core, content, split=True)
    background = None
    if parts.front is not None and parts.takes_counts:
        background = find_background(core, parts.front)
    if precision == "fp32" and background is None:  # then two graphs have no advantage over one
        parts = read_graph(core, content, split=False)
        return Form(parts, None)
    return divided(parts, background)


def divided(parts: Parts, background: Background | None = None) -> Form:
    """The form whose gate is apart from its trunk."""
    halves = split_gate(parts.trunk) if parts.front is not None else None
    if halves is None:
        return Form(parts, background)
    return Form(Parts(parts.front, halves[0], parts.takes_counts), background, halves[1])


def first_line(error: BaseException) -> str:
    """OpenVINO's messages begin with places in its source, one to a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
