"""A model's graph as OpenVINO runs it fastest, computing the same.

Three changes, each only made where running the part in question shows that nothing changes:

* Camera counts enter as uint16. Taking bytes apart costs more than most convolutions.
* What comes before the division by the stack's contrast is a graph of its own and stays fp32: bf16 keeps 8 of
  the 16 bits of a count. OpenVINO sets the precision of whole graphs only.
* Space-to-depth before a convolution becomes part of it, as a larger kernel with stride 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

# What may stand between the bytes of the camera and its counts, and between an image and its 2x2 blocks.
_BYTES_TO_COUNTS = frozenset(
    {"Gather", "Convert", "Multiply", "Add", "Squeeze", "ReduceSum", "Reshape", "StridedSlice", "Unsqueeze"}
    | {"Slice", "Split", "VariadicSplit", "Constant"}
)
_REARRANGED = frozenset({"Reshape", "Transpose", "SpaceToDepth", "Squeeze", "Unsqueeze"})
_CLIPS = frozenset({"Clamp", "Maximum", "Minimum"})
_ALL_COUNTS = 1 << 16
_TEST_PX = 32

Node = Any  # openvino's classes are made by pybind11
Model = Any


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """A model in one or two graphs, the output of the first being the input of the second.

    Parameters
    ----------
    front : openvino.Model or None
        Camera counts and contrast to a normalised stack; None if the graph could not be split.
    trunk : openvino.Model
        Normalised stack, or camera counts and contrast, to mean and spread.
    takes_counts : bool
        ``stack`` is (n, z, h, w) uint16; otherwise bytes, as in the file.
    """

    front: Model | None
    trunk: Model
    takes_counts: bool


def read_graph(core: Any, content: bytes, *, split: bool) -> Parts:
    """Read an ONNX model and rewrite it.

    Parameters
    ----------
    core : openvino.Core
    content : bytes
        As `acq_isl.engines.model_file.read_model` checked it.
    split : bool
        Into two graphs, so that the second may have a lower precision.

    Raises
    ------
    RuntimeError
        OpenVINO cannot read it.
    """
    model = _with_vectors_as_columns(core.read_model(content, b""))
    counts = _take_counts(core, model)
    model = counts or model
    halves = _split(model) if split else None
    front, trunk = halves or (None, model)
    _fold_space_to_depth(core, trunk)
    return Parts(front, trunk, counts is not None)


def handed_over_in_bf16(parts: Parts) -> Parts:
    """The same, with bf16 between front and trunk: half the memory, rounded where bf16 would round anyway."""
    if parts.front is None:
        return parts
    (result,) = parts.front.get_results()
    rounded = ops.convert(result.input(0).get_source_output(), openvino.Type.bf16)
    result.input(0).replace_source_output(rounded.output(0))
    parts.front.validate_nodes_and_infer_types()
    (old,) = parts.trunk.get_parameters()
    port = ops.parameter(old.get_output_partial_shape(0), openvino.Type.bf16, name="rounded")
    widened = ops.convert(port, openvino.Type.f32)
    for user in users(old.output(0)):
        user.replace_source_output(widened.output(0))
    return Parts(parts.front, openvino.Model(parts.trunk.get_results(), [port], "trunk"), parts.takes_counts)


def _with_vectors_as_columns(model: Model) -> Model:
    """The model, products with a vector written as products with a column: OpenVINO 2026.4 takes it for a
    row."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        rank = node.input(1).get_source_output().get_partial_shape().rank
        if rank.is_static and rank.get_length() == 1:
            column = ops.unsqueeze(node.input(1).get_source_output(), ops.constant([1]))
            product = ops.matmul(node.input(0).get_source_output(), column, False, False)
            flat = ops.squeeze(product, ops.constant([-1]))
            for user in users(node.output(0)):
                user.replace_source_output(flat.output(0))
    model.validate_nodes_and_infer_types()
    return model


def sources(node: Node) -> Iterator[Node]:
    """The nodes whose values a node takes."""
    for port in node.inputs():
        yield port.get_source_output().get_node()


def users(output: Any) -> list[Any]:
    """The ports that take a value."""
    return list(output.get_target_inputs())


def _following(model: Model, name: str) -> set[str]:
    """Names of a node and all that depend on it."""
    found = {name}
    for node in model.get_ordered_ops():
        if any(source.get_friendly_name() in found for source in sources(node)):
            found.add(node.get_friendly_name())
    return found


def _named(model: Model, name: str) -> Node:
    return next(node for node in model.get_ordered_ops() if node.get_friendly_name() == name)


def computed(core: Any, model: Model, inputs: Any) -> NDArray[Any]:
    """What a graph with one output makes of its inputs, by name or in order, in fp32."""
    return np.array(in_fp32(core, model)(inputs)[0])


def in_fp32(core: Any, model: Model) -> Any:
    """The compiled graph."""
    settings = {openvino.properties.hint.inference_precision: openvino.Type.f32}
    return core.compile_model(model, "CPU", settings)


def _take_counts(core: Any, model: Model) -> Model | None:
    """The model with uint16 for ``stack``, if something in it is found to be the camera's counts."""
    stack = model.input("stack").get_node()
    shape = stack.get_output_partial_shape(0)
    if not shape[1].is_static:
        return None
    values = np.arange(_ALL_COUNTS, dtype="<u2").reshape(256, 256)
    counts = np.broadcast_to(values, (1, shape[1].get_length(), 256, 256)).copy()
    only_bytes = {stack.get_friendly_name()}
    found = None
    for node in model.get_ordered_ops():
        takes = [source for source in sources(node) if source.get_type_name() != "Constant"]
        if node.get_type_name() not in _BYTES_TO_COUNTS or not takes:
            continue
        if all(source.get_friendly_name() in only_bytes for source in takes):
            only_bytes.add(node.get_friendly_name())
            if _is(node, openvino.Type.f32, 4) and _gives(core, model, node, counts):
                found = node
    if found is None:
        return None
    port = ops.parameter(openvino.PartialShape(list(shape)[:4]), openvino.Type.u16, name="counts")
    port.output(0).set_names({"stack"})
    converted = ops.convert(port, openvino.Type.f32)
    for user in users(found.output(0)):
        user.replace_source_output(converted.output(0))
    others = [p for p in model.get_parameters() if p.get_friendly_name() != stack.get_friendly_name()]
    return openvino.Model(model.get_results(), [port, *others], model.get_friendly_name())


def _is(node: Node, kind: Any, rank: int) -> bool:
    shape = node.get_output_partial_shape(0)
    same_kind = node.get_output_element_type(0) == kind
    return bool(same_kind and shape.rank.is_static and shape.rank.get_length() == rank)


def _gives(core: Any, model: Model, node: Node, counts: NDArray[np.uint16]) -> bool:
    """Whether a node turns bytes into exactly the counts they stand for, all 65536 of them."""
    copy = model.clone()
    part = openvino.Model(
        [ops.result(_named(copy, node.get_friendly_name()).output(0))], [copy.input("stack").get_node()], ""
    )
    raw = counts.view(np.uint8).reshape(*counts.shape, 2)
    return np.array_equal(computed(core, part, [raw]), counts)


def _split(model: Model) -> tuple[Model, Model] | None:
    """The graph cut behind the division by the contrast; None where more than one value would cross."""
    stack, contrast = (model.input(name).get_node().get_friendly_name() for name in ("stack", "inv_sd"))
    both = _following(model, stack) & _following(model, contrast)
    first = next((node for node in model.get_ordered_ops() if node.get_friendly_name() in both), None)
    if first is None or not _is(first, openvino.Type.f32, 4):
        return None
    # A clip that follows belongs to it: a speck of dust may be 100 000 contrasts bright.
    takers = users(first.output(0))
    while len(takers) == 1 and takers[0].get_node().get_type_name() in _CLIPS:
        first = takers[0].get_node()
        takers = users(first.output(0))
    port = ops.parameter(first.get_output_partial_shape(0), openvino.Type.f32, name="normalised")
    for user in users(first.output(0)):
        user.replace_source_output(port.output(0))
    if reach(model.get_results()) & {stack, contrast}:
        for user in users(port.output(0)):
            user.replace_source_output(first.output(0))
        return None
    front = openvino.Model([ops.result(first.output(0))], model.get_parameters(), "front")
    return front, openvino.Model(model.get_results(), [port], "trunk")


def reach(ends: list[Node]) -> set[str]:
    """Names of all that these nodes depend on."""
    found: set[str] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() not in found:
            found.add(node.get_friendly_name())
            waiting.extend(sources(node))
    return found


def _fold_space_to_depth(core: Any, model: Model) -> None:
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convolution":
            continue
        source = node.input(0).get_source_output()
        while source.get_node().get_type_name() in _REARRANGED:
            source = source.get_node().input(0).get_source_output()
        weights = node.input(1).get_source_output().get_node()
        if source != node.input(0).get_source_output() and _fits(node, weights, source):
            kernel = np.array(weights.get_data())
            if _unshuffles(core, model, node, source):
                _replace(node, source, kernel)


def _fits(node: Node, weights: Node, source: Any) -> bool:
    """Whether a convolution is plain, odd and padded to keep the size, over four times the channels."""
    shape = source.get_partial_shape()
    known = shape.rank.is_static and shape.rank.get_length() == 4 and shape[1].is_static
    if (
        weights.get_type_name() != "Constant"
        or not known
        or weights.get_output_partial_shape(0).rank.get_length() != 4
    ):
        return False
    _, channels, height, width = weights.get_output_shape(0)
    how = node.get_attributes()
    half = [height // 2, width // 2]
    return (
        channels == 4 * shape[1].get_length()
        and height % 2 == width % 2 == 1
        and list(how["strides"]) == list(how["dilations"]) == [1, 1]
        and list(how["pads_begin"]) == list(how["pads_end"]) == half
        and how["auto_pad"] == "explicit"
    )


def _unshuffles(core: Any, model: Model, convolution: Node, source: Any) -> bool:
    """Whether what lies between is space-to-depth by 2, channel by channel, seen on numbered pixels."""
    copy = model.clone()
    start = _named(copy, source.get_node().get_friendly_name()).output(source.get_index())
    end = _named(copy, convolution.get_friendly_name()).input(0).get_source_output()
    port = ops.parameter(start.get_partial_shape(), openvino.Type.f32)
    for user in users(start):
        user.replace_source_output(port.output(0))
    planes = source.get_partial_shape()[1].get_length()
    image = np.arange(planes * _TEST_PX**2, dtype=np.float32).reshape(1, planes, _TEST_PX, _TEST_PX)
    blocks = image.reshape(1, planes, _TEST_PX // 2, 2, _TEST_PX // 2, 2).transpose(0, 1, 3, 5, 2, 4)
    wanted = blocks.reshape(1, 4 * planes, _TEST_PX // 2, _TEST_PX // 2)
    return np.array_equal(computed(core, openvino.Model([ops.result(end)], [port], ""), [image]), wanted)


def _replace(convolution: Node, source: Any, kernel: NDArray[np.float32]) -> None:
    """Channel 4c + 2i + j at (y, x) is pixel (2y + i, 2x + j) of channel c, so its weight goes there."""
    outputs, channels, height, width = kernel.shape
    spread = kernel.reshape(outputs, channels // 4, 2, 2, height, width).transpose(0, 1, 4, 2, 5, 3)
    larger = np.ascontiguousarray(spread.reshape(outputs, channels // 4, 2 * height, 2 * width))
    # Space-to-depth pads with whole blocks: twice the padding before and after, for all 2k rows.
    pads = [2 * (height // 2), 2 * (width // 2)]
    new = ops.convolution(source, ops.constant(larger), [2, 2], pads, pads, [1, 1])
    new.set_friendly_name(convolution.get_friendly_name())
    for user in users(convolution.output(0)):
        user.replace_source_output(new.output(0))
