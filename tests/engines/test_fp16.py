"""fp16 with fp32 islands: what stays fp32, what the file says, and how far it is from the master."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from acq_isl.engines import fp16 as precision
from acq_isl.engines.agreement import agreement, as_inputs, sample_tiles
from acq_isl.engines.model_file import output_names
from acq_isl.errors import ModelError
from acq_isl.manifest import MANIFEST_KEY
from doubles import tiny_model as tiny

MASTER = tiny.content()


def run(content, feeds):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(["mean", "spread"], feeds)


def types(content):
    """Operators by the element type of what they give, casts left out."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), strict_mode=True).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output)}
    found = {}
    for node in graph.node:
        if node.op_type != "Cast":
            found.setdefault(kinds[node.output[0]], []).append(node.op_type)
    return found


def test_normalisation_and_exponential_stay_fp32():
    found = types(precision.mixed(MASTER))
    assert found[TensorProto.FLOAT16] == ["Conv", "Relu", "Conv", "Split", "Clip", "Clip", "Mul"]
    normalising = ["Gather", "Gather", "Mul", "Add", "AveragePool", "Sub", "Unsqueeze", "Mul", "Clip"]
    assert found[TensorProto.FLOAT] == [*normalising, "Exp"]


def test_softmax_and_cumulative_sums_stay_fp32_with_what_follows():
    def decode(model):
        nodes, graph = model.graph.node, model.graph
        del nodes[-3:]
        last = numpy_helper.from_array(np.array(1, np.int64), "last")
        graph.initializer.append(last)
        nodes.extend(
            [
                helper.make_node("Softmax", ["raw_log_variance"], ["shares"], axis=1),
                helper.make_node("CumSum", ["shares", "last"], ["sums"]),
                helper.make_node("Mul", ["sums", "half"], ["spread"]),
            ]
        )

    decoded = tiny.content(defect=decode)
    found = types(precision.mixed(decoded))
    assert {"Softmax", "CumSum"} <= set(found[TensorProto.FLOAT])
    assert found[TensorProto.FLOAT][-3:] == ["Softmax", "CumSum", "Mul"]


@pytest.mark.parametrize("form", [precision.full, precision.mixed])
def test_camera_bytes_enter_a_cast_and_nothing_else(form):
    nodes = onnx.load_from_string(form(MASTER)).graph.node
    assert [n.op_type for n in nodes if "stack" in n.input] == ["Cast"]


def test_fp16_clips_name_both_limits():
    """Left out, TensorRT takes fp32's largest number, which fp16 cannot hold."""
    graph = onnx.load_from_string(precision.mixed(MASTER)).graph
    weights = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    limits = [[weights[n] for n in node.input[1:]] for node in graph.node if node.op_type == "Clip"]
    assert [len(pair) for pair in limits] == [2, 2, 2]
    assert [float(pair[1]) for pair in limits] == [10, 65504, 3]


def test_outputs_are_two_bytes_and_the_manifest_is_kept():
    model = onnx.load_from_string(precision.mixed(MASTER))
    kinds = {p.name: p.type.tensor_type.elem_type for p in model.graph.output}
    assert kinds == {"mean": TensorProto.FLOAT16, "spread": TensorProto.FLOAT16}
    assert model.metadata_props == onnx.load_from_string(MASTER).metadata_props


def test_fp32_computes_the_same_as_the_master():
    feeds = as_inputs(sample_tiles(tiny.MANIFEST))
    for got, wanted in zip(run(precision.full(MASTER), feeds), run(MASTER, feeds), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_fp16_is_close_and_the_rehearsal_rounds_what_onnxruntime_does_not():
    close = agreement(MASTER, precision.rehearsal(MASTER), tiny.MANIFEST)
    assert close.least_pearson > 0.9999
    assert 0 < close.max_abs["mean"] < 0.01
    assert set(close.flat()) >= {"pearson nuclei", "max |d spread|"}


def test_the_rehearsal_gives_only_fp16_numbers():
    for values in run(precision.rehearsal(MASTER), as_inputs(sample_tiles(tiny.MANIFEST))):
        assert values.dtype == np.float16


def test_the_gate_stays_fp32_as_a_whole_and_what_nobody_wants_is_left_out():
    content = tiny.content(manifest=tiny.GATED, defect=tiny.gated)
    names = output_names(tiny.GATED)
    model = onnx.load_from_string(precision.mixed(content, names))
    assert [p.name for p in model.graph.output] == ["mean", "spread", "distance"]
    assert [p.type.tensor_type.elem_type for p in model.graph.output] == [10, 10, 1]  # fp16, fp16, fp32
    gate = ["AveragePool", "Conv", "Mul", "ReduceSum", "Sqrt", "ReduceMax", "Concat"]
    assert types(precision.mixed(content, names))[TensorProto.FLOAT][-7:] == gate
    images = precision.mixed(content)
    assert "ReduceMax" not in [node.op_type for node in onnx.load_from_string(images).graph.node]
    assert images == precision.mixed(content, ("mean", "spread"))


def test_what_fp16_does_to_the_gate_is_measured():
    content = tiny.content(manifest=tiny.GATED, defect=tiny.gated)
    close = agreement(content, precision.rehearsal(content, output_names(tiny.GATED)), tiny.GATED)
    assert 0 < close.distance < 0.01 and close.flat()["distance / limit"] == close.distance

    def away(model):  # twice the distance: features that int8 or fp16 ruined
        weight = next(w for w in model.graph.initializer if w.name == "whitening")
        weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), "whitening"))

    other = tiny.content(manifest=tiny.GATED, defect=lambda m: (tiny.gated(m), away(m)))
    assert agreement(content, other, tiny.GATED).distance > 0.1


@settings(max_examples=15, deadline=None)
@given(offset=st.integers(0, 60000), contrast=st.floats(2, 1500))
def test_raw_counts_lose_nothing_wherever_the_camera_puts_them(offset, contrast):
    """The law behind the island: an offset of the counts changes nothing, which fp16 counts would break."""
    pattern = np.random.default_rng(3).normal(scale=contrast, size=(1, tiny.PLANES, 48, 48)).round()
    pattern -= pattern.min()
    if offset + pattern.max() > 65535:
        pattern = np.minimum(pattern, 65535 - offset)
    raised = (pattern + offset).astype(np.uint16)
    content = precision.rehearsal(MASTER)
    feeds = [as_inputs(tiles) for tiles in (pattern.astype(np.uint16), raised)]
    feeds[1]["inv_sd"] = feeds[0]["inv_sd"]
    inner = np.s_[:, :, 4:-4, 4:-4]  # at the border, counts outside read 0
    low, high = (run(content, feed)[0][inner].astype(np.float32) for feed in feeds)
    np.testing.assert_allclose(high, low, atol=0.02)


def _branch(model):
    limit = helper.make_tensor_value_info("limit", TensorProto.FLOAT, [])
    node = helper.make_node("Identity", ["half"], ["limit"])
    body = helper.make_graph([node], "body", [], [limit])
    weights = model.graph.initializer
    weights.remove(next(w for w in weights if w.name == "three"))
    model.graph.node.insert(0, helper.make_node("If", ["c"], ["three"], then_branch=body, else_branch=body))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))


def _no_tags(model):
    entries = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, {MANIFEST_KEY: entries[MANIFEST_KEY]})


def _large_weight(model):
    weight = next(w for w in model.graph.initializer if w.name == "second")
    values = numpy_helper.to_array(weight).copy()
    values[0] = 1e5
    weight.CopyFrom(numpy_helper.from_array(values, "second"))


def test_a_file_without_tags_is_built_in_fp32():
    feeds = as_inputs(sample_tiles(tiny.MANIFEST))
    content = precision.full(tiny.content(defect=_no_tags))
    for got, wanted in zip(run(content, feeds), run(MASTER, feeds), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        (_branch, "operator If.*fp32"),
        (_no_tags, r"no tags.*--precision fp32.*acq-isl export MODEL --tags"),
        (_large_weight, "'second' does not fit fp16.*fp32"),
    ],
)
def test_models_that_have_no_fp16_form(defect, message):
    with pytest.raises(ModelError, match=message):
        precision.mixed(tiny.content(defect=defect))
