"""Tags of a model's graph: its parts together compute what the whole does, and bad tags are seen."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from pydantic import ValidationError

from acq_isl.engines.agreement import as_inputs, sample_tiles
from acq_isl.engines.graph_tags import GRAPH_KEY, IMAGES, BackgroundTags, GraphTags, extract, read_tags
from acq_isl.engines.model_file import read_model
from acq_isl.errors import ModelError
from doubles import tiny_model as tiny


def run(model, outputs, feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(list(outputs), feeds), strict=True))


MODELS = {
    "demo": (lambda: read_model("demo").content, read_model("demo").info.manifest),
    "tiny": (lambda: tiny.content(manifest=tiny.GATED, defect=tiny.gated), tiny.GATED),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_together_compute_what_the_whole_computes(name):
    content, manifest = MODELS[name]
    whole = onnx.load_from_string(content())
    tags = read_tags(whole)
    tiles = sample_tiles(manifest, 1)
    feeds = as_inputs(tiles)
    wanted = run(whole, (*IMAGES, "distance"), feeds)
    handed_over = tuple(set(tags.gate) - {tags.normalised})
    front = extract(whole, (tags.counts, "inv_sd"), (tags.normalised,))
    trunk = extract(whole, (tags.normalised,), (*IMAGES, *handed_over))
    gate = extract(whole, tags.gate, ("distance",))
    normalised = run(
        front, (tags.normalised,), {tags.counts: tiles.astype(np.float32), "inv_sd": feeds["inv_sd"]}
    )
    got = run(trunk, (*IMAGES, *handed_over), normalised)
    values = normalised | got
    got |= run(gate, ("distance",), {name: values[name] for name in tags.gate})
    for output, values in wanted.items():
        np.testing.assert_allclose(got[output], values, rtol=1e-5, atol=1e-5)


def with_tags(text):
    model = onnx.load_from_string(tiny.content())
    entries = {entry.key: entry.value for entry in model.metadata_props} | {GRAPH_KEY: text}
    helper.set_model_props(model, entries)
    return model


@pytest.mark.parametrize(
    "change", [{"format": "acq-isl-graph/2"}, {"surprise": 1}, {"heads": []}, {"counts": 3}]
)
def test_tags_that_cannot_be_read_are_left_out_with_a_warning(change, caplog):
    fields = json.loads(read_tags(tiny.content()).model_dump_json()) | change
    assert read_tags(with_tags(json.dumps(fields))) is None
    assert "runs slower" in caplog.text


def test_a_file_without_tags_has_none():
    model = onnx.load_from_string(tiny.content())
    del model.metadata_props[:]
    assert read_tags(model) is None


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [(("nowhere",), IMAGES), (("clipped",), ("nothing",)), (("active",), ("clipped",))],
)
def test_a_part_that_is_none_is_a_model_error(inputs, outputs):
    with pytest.raises(ModelError, match=r"tags do not fit its graph.*export the model again"):
        extract(onnx.load_from_string(tiny.content()), inputs, outputs)


BACKGROUND = {"block_px": 4, "averaged_px": 2, "weights": (0.25, 0.5, 0.25), "least": -10.0, "most": 10.0}


@pytest.mark.parametrize(
    "change",
    [
        {"averaged_px": 5},
        {"block_px": 0},
        {"weights": (0.5, 0.5)},
        {"weights": ()},
        {"least": 10.0},
        {"most": float("inf")},
    ],
)
def test_a_background_that_makes_no_sense_is_refused(change):
    BackgroundTags(**BACKGROUND)
    with pytest.raises(ValidationError):
        BackgroundTags(**BACKGROUND | change)


def test_tags_survive_their_json():
    tags = GraphTags(
        counts="a", normalised="b", heads=("c",), gate=("b", "d"), background=BackgroundTags(**BACKGROUND)
    )
    assert GraphTags.model_validate_json(tags.model_dump_json()) == tags
