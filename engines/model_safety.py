"""What a model file must not do to who reads it: reach outside of itself, run for ever, or fill the memory.

Looked for in the graph, before anything runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import inliner

from acq_isl.errors import ModelError

STANDARD_DOMAINS = ("", "ai.onnx")
_MOST_NODES = 100_000  # once functions are written out
_MOST_VALUES = 1 << 28  # of one tensor for the smallest tile: 1 GiB
_SMALL_BYTES = 1 << 12  # weights that say shapes are no larger
_LOOPS = frozenset(("Loop", "Scan", "SequenceMap"))


def check_self_contained(where: str, proto: onnx.ModelProto) -> None:
    """ModelError if it keeps weights in other files, or needs operators that are not ONNX's."""
    known = {*STANDARD_DOMAINS, *(function.domain for function in proto.functions)}
    for message in _messages(proto):
        if isinstance(message, onnx.TensorProto) and message.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(
                f"model {where} keeps weights in another file",
                wanted="all weights inside the .onnx file, so that one hash covers them",
                got=f"tensor {message.name!r} outside",
                fix="export it with acq-isl, or save it with onnx.save_model(save_as_external_data=False)",
            )
        if isinstance(message, onnx.NodeProto) and message.domain not in known:
            raise ModelError(
                f"model {where} needs an operator that is not part of ONNX",
                wanted="standard ONNX operators, which every engine can run",
                got=f"{message.domain}::{message.op_type}",
                fix="export the network again without custom operators",
            )


def _messages(message: Message) -> Iterator[Message]:
    """A protobuf message and all messages inside of it, so that no subgraph can hide anything."""
    yield message
    if isinstance(message, onnx.ValueInfoProto | onnx.StringStringEntryProto):
        return  # no graph is in these
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in (value,) if isinstance(value, Message) else value:
                yield from _messages(inner)


def check_bounded(where: str, proto: onnx.ModelProto, tile_px: int) -> None:
    """ModelError if it has loops, or is or computes something too large for a tile of ``tile_px`` pixels.

    Called once the checker has passed the model, which refuses functions that call themselves.
    """
    loops = {m.op_type for m in _messages(proto) if isinstance(m, onnx.NodeProto)} & _LOOPS
    if loops:
        raise _too_much(where, "no loops, so that its time is known", ", ".join(sorted(loops)))
    nodes = _count_nodes(proto)
    if nodes > _MOST_NODES:
        raise _too_much(where, f"at most {_MOST_NODES} operators", str(nodes))
    shapes = _infer_shapes(proto, tile_px)
    name, values = max(shapes.items(), key=lambda item: item[1], default=("", 0))
    if values > _MOST_VALUES:
        raise _too_much(where, f"at most {_MOST_VALUES} numbers in a tensor", f"{values:.3g} in {name!r}")


def _too_much(where: str, wanted: str, got: str) -> ModelError:
    return ModelError(
        f"model {where} asks for more than any machine has",
        wanted=wanted,
        got=got,
        fix="export the network again with acq-isl; if others gave it to you, ask them what it does",
    )


def _count_nodes(proto: onnx.ModelProto) -> int:
    """How many nodes there are when all functions are written out; subgraphs count, too."""
    own: dict[tuple[str, str], onnx.FunctionProto] = {(f.domain, f.name): f for f in proto.functions}
    known: dict[tuple[str, str], int] = {}

    def count(graph: Message) -> int:
        return sum(
            calls(message.domain, message.op_type)
            for message in _messages(graph)
            if isinstance(message, onnx.NodeProto)
        )

    def calls(domain: str, name: str) -> int:
        key = domain, name
        if key not in known:
            known[key] = count(own[key]) if key in own else 1
        return known[key]

    return count(proto.graph)


def _infer_shapes(proto: onnx.ModelProto, tile_px: int) -> dict[str, int]:
    """How many numbers each value and weight has, as far as that can be told without running the graph."""
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    for weight in light.graph.initializer:  # only shapes are read
        if len(weight.raw_data) > _SMALL_BYTES:
            weight.ClearField("raw_data")
    for port in light.graph.input:
        for place, dim in enumerate(port.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_value = tile_px if place else 1
    for port in light.graph.output:
        port.type.tensor_type.ClearField("shape")
    del light.graph.value_info[:]
    if light.functions:
        light = inliner.inline_local_functions(light)
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    found: dict[str, int] = {}
    for message in _messages(inferred.graph):
        match message:
            case onnx.ValueInfoProto():
                dims = [dim.dim_value for dim in message.type.tensor_type.shape.dim]
                found[message.name] = max(prod(dims), found.get(message.name, 0))
            case onnx.TensorProto():
                found[message.name] = max(prod(message.dims), found.get(message.name, 0))
            case onnx.SparseTensorProto():
                name = message.values.name
                found[name] = max(prod(message.dims), found.get(name, 0))
    return found
