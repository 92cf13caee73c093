"""What an exporter knows of its graph and engines need to know, as tags in the model file.

The tags are one JSON entry, `GRAPH_KEY`, in the metadata of the ONNX file; values are named as in the graph.
They add nothing to what the file computes. A file without them is run as it is, in fp32.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Self

import onnx
from onnx import helper
from onnx.utils import Extractor
from pydantic import Field, ValidationError, model_validator

from acq_isl.base import StrictModel
from acq_isl.errors import ModelError

GRAPH_KEY = "acq_isl_graph"
IMAGES = ("mean", "spread")
"""Outputs that are images; the third, ``distance``, is the gate's."""

_log = logging.getLogger(__name__)


class BackgroundTags(StrictModel):
    """Counts minus a smoothed background of block means, times ``inv_sd``, clipped: all before the network.

    Means are smoothed along rows and along columns, their ends repeated beyond the edge, and brought back to
    full resolution linearly.
    """

    block_px: int = Field(ge=1, le=1024)
    """Side of a block."""
    averaged_px: int = Field(ge=1)
    """Side of the part of each block, at its first corner, whose mean stands for it."""
    weights: tuple[float, ...] = Field(min_length=1, max_length=4097)
    """Of the smoothing, 2 r + 1 of them, the same along rows and columns."""
    least: float
    most: float

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.averaged_px > self.block_px or len(self.weights) % 2 == 0 or self.least >= self.most:
            raise ValueError("the background's block, weights or limits do not fit together")
        return self


class GraphTags(StrictModel):
    """Names of values in a graph that takes ``stack`` and ``inv_sd``."""

    format: Literal["acq-isl-graph/1"] = "acq-isl-graph/1"
    counts: str
    """(N, Z, H, W) float32 counts of the camera; all that follows from ``stack`` follows from them."""
    normalised: str
    """(N, Z, H, W) float32 counts in units of the contrast; all outputs follow from them alone."""
    heads: tuple[str, ...] = Field(min_length=1)
    """Of the last convolutions or products, which give means and log variances side by side."""
    gate: tuple[str, ...] = ()
    """What ``distance`` follows from, ``normalised`` among it or not; empty without a gate."""
    background: BackgroundTags | None = None
    """How counts become ``normalised``, if it is done in this way."""


def read_tags(model: onnx.ModelProto | bytes) -> GraphTags | None:
    """The tags of a model; None, with a warning if they cannot be read, where there are none."""
    proto = onnx.load_from_string(model) if isinstance(model, bytes) else model
    text = next((entry.value for entry in proto.metadata_props if entry.key == GRAPH_KEY), None)
    if text is None:
        return None
    try:
        return GraphTags.model_validate_json(text)
    except ValidationError as error:
        _log.warning("the tags of the model's graph are left out, so it runs slower: %s", error)
        return None


def write_tags(model: onnx.ModelProto, tags: GraphTags) -> None:
    """Put tags into a model, in place of those that it has."""
    entries = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, entries | {GRAPH_KEY: tags.model_dump_json()})


def extract(model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """The part of a graph between some of its values; ModelError if there is none: the tags are wrong."""
    try:
        part = Extractor(onnx.shape_inference.infer_shapes(model)).extract_model(list(inputs), list(outputs))
        onnx.checker.check_model(part)
    except (ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            "the model's tags do not fit its graph",
            wanted=f"a part that makes {', '.join(outputs)} of {', '.join(inputs)} alone",
            got=str(error).partition("\n")[0],
            fix="export the model again with this version of acq-isl",
        ) from error
    return part
