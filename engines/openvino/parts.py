"""Which graphs OpenVINO runs a model as, for each precision.

OpenVINO sets the precision of whole graphs only, and bf16 keeps 8 of the 16 bits of a count. So what the tags
of the file call normalisation is a graph of its own in fp32, and so is the gate, whose limits were fitted to
that. A file without tags is one graph, in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import onnx
import openvino
from openvino import opset13 as ops
from openvino import properties
from openvino.preprocess import PrePostProcessor

from acq_isl.engines.backend import DISTANCE
from acq_isl.engines.graph_tags import IMAGES, BackgroundTags, GraphTags, extract, read_tags
from acq_isl.engines.model_file import ModelFile
from acq_isl.errors import ModelError

Precision = Literal["fp32", "bf16", "int8"]
DEVICE = "CPU"
NORMALISED = "normalised"
# Nothing else comes out of OpenVINO's bindings; which one tells nothing.
RUNTIME_ERRORS = (RuntimeError, ValueError, TypeError, MemoryError)

Model = Any  # openvino's classes are made by pybind11


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """A model as OpenVINO runs it: in one graph, or in parts that hand values on by name."""

    trunk: Model
    """Without tags the whole model; else `NORMALISED` to images, and to what the gate takes."""
    front: Model | None = None
    """``stack``, (n, z, h, w) uint16, and ``inv_sd`` to `NORMALISED`."""
    background: BackgroundTags | None = None
    """Can take the place of ``front``, plane by plane."""
    gate: Model | None = None
    """What the trunk takes and gives to distances, in fp32."""

    @property
    def takes_counts(self) -> bool:
        """Whether uint16 goes in; otherwise bytes, as in the file."""
        return self.front is not None


def has_bf16() -> bool:
    """Whether this processor computes with bf16, as OpenVINO itself finds."""
    return "BF16" in openvino.Core().get_property(DEVICE, properties.device.capabilities)


def processor() -> str:
    """Name of the processor, as compiled networks depend on it."""
    return str(openvino.Core().get_property(DEVICE, properties.device.full_name))


def default_precision(model: ModelFile) -> Precision:
    """bf16 where the processor has it and the file says which part of the model may be computed in it."""
    return "bf16" if has_bf16() and read_tags(model.content) is not None else "fp32"


def read_parts(
    core: Any, model: ModelFile, precision: Precision, trunk: tuple[bytes, ...] | None = None, *, low: bool
) -> Parts:
    """Read a model for a precision; ModelError if OpenVINO cannot, or there is no such form of it.

    ``trunk``, needed for int8, is XML and weights. If ``low``, `NORMALISED` is handed over in bf16: half
    the memory, rounded where bf16 would round anyway.
    """
    tags = read_tags(model.content)
    if precision == "int8" and trunk is None:
        raise ModelError(
            f"model {model.info.where} has no int8 form", fix="run `acq-isl accept-int8` on stacks of yours"
        )
    try:
        # In fp32 without a background to fuse, several graphs have no advantage over one.
        if precision == "fp32" and (tags is None or tags.background is None):
            return Parts(_with_vectors_as_columns(core.read_model(model.content, b"")))
        parts = split_model(core, model, tags)
        if trunk is not None:
            parts = Parts(core.read_model(*trunk), parts.front, parts.background, parts.gate)
        return _handed_over_in_bf16(parts) if low else parts
    except RUNTIME_ERRORS as error:
        raise ModelError(
            f"OpenVINO cannot read model {model.info.where}: {first_line(error)}",
            wanted=f"operators that OpenVINO {openvino.get_version()} knows",
            got=f"ONNX opset {model.info.opset}",
            fix="update openvino, or use the engine onnxruntime",
        ) from error


def split_model(core: Any, model: ModelFile, tags: GraphTags | None) -> Parts:
    """A model in parts, all in fp32; ModelError without tags."""
    if tags is None:
        raise ModelError(
            f"model {model.info.where} can only be run in fp32 by OpenVINO",
            wanted="tags in the file that separate normalisation, which must stay fp32, from the network",
            fix="use fp32, or write the tags with `acq-isl export MODEL --tags --output NEW.onnx`",
        )
    if DISTANCE in model.info.output_names and not tags.gate:
        raise ModelError(
            f"the tags of model {model.info.where} do not say what its gate's distance follows from",
            wanted="`gate` among the tags",
            fix="export it again, or write the tags with `acq-isl export MODEL --tags --output NEW.onnx`",
        )
    whole = onnx.load_from_string(model.content)
    names = {tags.normalised: NORMALISED, tags.counts: "stack"}

    def part(inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Model:
        content = extract(whole, inputs, outputs).SerializeToString()
        graph = _with_vectors_as_columns(core.read_model(content, b""))
        for port in graph.inputs:
            port.get_tensor().set_names({names.get(name, name) for name in port.get_names()})
        return graph

    handed_over = tuple(name for name in tags.gate if name not in (tags.normalised, *IMAGES))
    trunk = part((tags.normalised,), (*IMAGES, *handed_over))
    gate = part(tags.gate, ("distance",)) if tags.gate else None
    front = _retyped(part((tags.counts, "inv_sd"), (tags.normalised,)), {"stack": openvino.Type.u16})
    return Parts(trunk, front, tags.background, gate)


def _handed_over_in_bf16(parts: Parts) -> Parts:
    bf16 = {NORMALISED: openvino.Type.bf16}
    steps, gate = PrePostProcessor(parts.front), parts.gate
    steps.output().tensor().set_element_type(openvino.Type.bf16)
    if gate is not None and any(NORMALISED in port.get_names() for port in gate.inputs):
        gate = _retyped(gate, bf16)
    return Parts(_retyped(parts.trunk, bf16), steps.build(), parts.background, gate)


def _retyped(graph: Model, inputs: Mapping[str, Any]) -> Model:
    """The graph with inputs of other types, which it converts."""
    steps = PrePostProcessor(graph)
    for name, kind in inputs.items():
        steps.input(name).tensor().set_element_type(kind)
    return steps.build()


def _with_vectors_as_columns(graph: Model) -> Model:
    """Products with a vector written as products with a column: OpenVINO 2026.4 takes it for a row."""
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.input_value(1).get_partial_shape().rank != 1:
            continue
        column = ops.unsqueeze(node.input_value(1), ops.constant([1]))
        product = ops.matmul(node.input_value(0), column, False, False)
        flat = ops.squeeze(product, ops.constant([-1]))
        for port in node.output(0).get_target_inputs():
            port.replace_source_output(flat.output(0))
    graph.validate_nodes_and_infer_types()
    return graph


def first_line(error: BaseException) -> str:
    """OpenVINO's messages begin with places in its source, one to a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
