"""Tags of a graph (`acq_isl.engines.graph_tags`), from the module names that torch leaves on its nodes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import helper, numpy_helper

from acq_isl.engines.graph_tags import IMAGES, BackgroundTags, GraphTags, extract, write_tags
from acq_isl.engines.model_file import read_model
from acq_isl.errors import ModelError, StorageError
from acq_isl.files import write_whole

_SCOPES = "pkg.torch.onnx.name_scopes"
_NORMALISE = "network.normalise"
# What `acq_isl.training.network.Normalise` becomes; its products' shapes are brought along by Unsqueeze.
_HIGH_PASS = ["AveragePool", "Pad", "Conv", "Conv", "Resize", "Sub", "Mul", "Clip"]


def tag_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed in place, with tags and of torch's notes on nodes only the names of modules.

    It computes the same. The other notes are source code and paths of the computer that trained it.

    Raises
    ------
    ModelError
        The modules are not found: it is no graph of `acq_isl.training.network.Deployed` as torch exports it.
    """
    parts = {name for node in model.graph.node for name in _scopes(node)}
    heads = sorted(name for name in parts if name.startswith("network.") and name.endswith(".head"))
    try:
        taken, (normalised,) = _border(model, _NORMALISE)
        (counts,) = taken - {"inv_sd"}
        tags = GraphTags(
            counts=counts,
            normalised=normalised,
            heads=tuple(name for head in heads for name in sorted(_border(model, head)[1])),
            gate=tuple(sorted(_border(model, "gate")[0])),
            background=_background(model),
        )
    except ValueError as error:
        raise ModelError(
            "the graph cannot be tagged",
            wanted="a live network as torch exported it, with one part that normalises counts",
            got=str(error).partition("\n")[0],
            fix="use the file as it is, in fp32, or train the model again with this version of acq-isl",
        ) from error
    extract(model, (tags.counts, "inv_sd"), (tags.normalised,))
    extract(model, (tags.normalised,), IMAGES)
    write_tags(model, tags)
    for item in (*model.graph.node, *model.graph.value_info):
        helper.set_model_props(
            item, {entry.key: entry.value for entry in item.metadata_props if entry.key == _SCOPES}
        )
    return model


def write_tagged(model: Path | str, out: Path) -> None:
    """Write a model file again with tags: same weights, same values, other hash.

    Parameters
    ----------
    model : path or str
        As for `acq_isl.engines.load_engine`; exported by an older version of acq-isl.
    out : Path
        The ``.onnx`` to write.

    Raises
    ------
    ModelError
        The model cannot be used or tagged.
    StorageError
        The file cannot be written.
    """
    tagged = tag_model(onnx.load_from_string(read_model(model).content))
    try:
        write_whole(out, tagged.SerializeToString())
    except OSError as error:
        raise StorageError(
            f"the model {out} cannot be written", got=str(error), fix="choose another place"
        ) from error


def _scopes(node: onnx.NodeProto) -> list[str]:
    text = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    return list(ast.literal_eval(text))


def _inside(model: onnx.ModelProto, scope: str) -> Iterator[onnx.NodeProto]:
    return (node for node in model.graph.node if scope in _scopes(node))


def _border(model: onnx.ModelProto, scope: str) -> tuple[set[str], set[str]]:
    """Values that a module takes, weights apart, and those that others take of it."""
    own = {name for node in _inside(model, scope) for name in node.output}
    used = {name for node in _inside(model, scope) for name in node.input if name}
    weights = {weight.name for weight in model.graph.initializer}
    others = (node for node in model.graph.node if scope not in _scopes(node))
    asked = {name for node in others for name in node.input} | {port.name for port in model.graph.output}
    return used - own - weights, own & asked


def _background(model: onnx.ModelProto) -> BackgroundTags | None:
    """How the background is removed; None if it is done in another way than now."""
    nodes = [node for node in _inside(model, _NORMALISE) if node.op_type != "Unsqueeze"]
    if [node.op_type for node in nodes] != _HIGH_PASS:
        return None
    pool, _, rows, _, _, _, _, clip = nodes
    weights = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    sides = {attribute.name: attribute.ints for attribute in pool.attribute}
    kernel = weights[rows.input[1]]  # (planes, 1, 2 r + 1, 1)
    least, most = (float(weights[name]) for name in clip.input[1:])
    return BackgroundTags(
        block_px=sides["strides"][0],
        averaged_px=sides["kernel_shape"][0],
        weights=tuple(kernel[0].ravel().tolist()),
        least=least,
        most=most,
    )
