"""A stack that looks unlike the training set is refused, with how far off it is, unless an expert insists."""

from functools import partial

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from acq_isl.engines.gate import RESAMPLED, judge_distances, measure_distances
from acq_isl.engines.graph_tags import GRAPH_KEY, GraphTags
from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import EngineError, ModelError, StackRefused
from acq_isl.manifest import Gate
from acq_isl.stack import Distance, StackKey
from doubles import tiny_model as tiny

WINDOW_PX = 32


def with_distance(model):
    """Two distances in windows of 32 px: how bright structures of the first and the last plane are.

    As products with vectors, which is how a discriminant is exported.
    """
    graph, node = model.graph, helper.make_node
    chosen = np.eye(tiny.PLANES, dtype=np.float32)[[0, -1]]
    graph.initializer.extend(
        [
            *(numpy_helper.from_array(vector, f"vector_{i}") for i, vector in enumerate(chosen)),
            numpy_helper.from_array(np.array([1], np.int64), "distances"),
        ]
    )
    window = [WINDOW_PX, WINDOW_PX]
    products = [node("MatMul", ["turned", f"vector_{i}"], [f"product_{i}"]) for i in range(2)]
    deeper = [node("Unsqueeze", [f"product_{i}", "distances"], [f"deep_{i}"]) for i in range(2)]
    graph.node.extend(
        [
            node("Abs", ["clipped"], ["structure"]),
            node("AveragePool", ["structure"], ["windows"], kernel_shape=window, strides=window),
            node("Transpose", ["windows"], ["turned"], perm=[0, 2, 3, 1]),
            *products,
            *deeper,
            node("Concat", ["deep_0", "deep_1"], ["distance"], axis=1),
        ]
    )
    axes = ["n", 2, "rows", "columns"]
    graph.output.append(helper.make_tensor_value_info("distance", TensorProto.FLOAT, axes))
    tags = GraphTags(counts="counts", normalised="clipped", heads=("answers",), gate=("clipped",))
    entries = {entry.key: entry.value for entry in model.metadata_props}
    helper.set_model_props(model, entries | {GRAPH_KEY: tags.model_dump_json()})


def gated(folder, *limits):
    gate = Gate(names=("first plane", "last plane"), limits=limits, false_alarms=0.05)
    return tiny.write(folder, manifest=tiny.MANIFEST.model_copy(update={"gate": gate}), defect=with_distance)


def open_onnx(path, **how):
    return OnnxEngine(path, **how)


def open_openvino(path, precision="fp32", **how):
    pytest.importorskip("openvino")
    from acq_isl.engines.openvino.engine import OpenVinoEngine

    return OpenVinoEngine(path, precision=precision, threads=1, **how)


RUNTIMES = pytest.mark.parametrize(
    "open_", [open_onnx, open_openvino, partial(open_openvino, precision="bf16")]
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ACQ_ISL_CACHE", str(tmp_path / "cache"))


@RUNTIMES
def test_distances_come_with_the_prediction(tmp_path, open_):
    stack = tiny.stack((200, 264))
    with open_(gated(tmp_path, 5.0, 6.0)) as engine, open_(gated(tmp_path, 5.0, 6.0), tile_px=96) as tiled:
        whole, parts = engine.predict(stack), tiled.predict(stack)
    assert [(one.name, one.limit) for one in whole.distances] == [("first plane", 5.0), ("last plane", 6.0)]
    contrast = stack.pixels.std()
    for one, same in zip(whole.distances, parts.distances, strict=True):
        assert 0 < one.value * contrast / np.abs(stack.pixels - stack.pixels.mean()).mean() < 1.5
        assert same.value == pytest.approx(one.value, rel=0.1)  # other windows of the same field
    assert whole.warnings == parts.warnings == ()


@RUNTIMES
def test_distances_are_those_of_the_reference_in_any_precision(tmp_path, open_):
    path, stack = gated(tmp_path, 5.0, 6.0), tiny.stack((200, 264))
    with open_(path) as engine, OnnxEngine(path) as reference:
        got, wanted = engine.predict(stack).distances, reference.predict(stack).distances
    for one, other in zip(got, wanted, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-3)


@RUNTIMES
def test_an_unlike_stack_is_refused_with_the_distance_the_limit_and_the_fix(tmp_path, open_):
    with open_(gated(tmp_path, 0.01, 6.0)) as engine, pytest.raises(StackRefused) as caught:
        engine.predict(tiny.stack())
    said = str(caught.value)
    assert "A1 t0 Phase does not look like" in said and "first plane 0." in said and "limit 0.01" in said
    assert "last plane" not in said
    assert "focus" in caught.value.fix


@RUNTIMES
def test_an_expert_may_look_at_it_all_the_same_and_is_warned(tmp_path, open_):
    with open_(gated(tmp_path, 0.01, 6.0), gate="warn") as engine:
        prediction = engine.predict(tiny.stack())
    assert [one.beyond for one in prediction.distances] == [True, False]
    assert "do not trust its labels" in prediction.warnings[-1]
    assert "first plane" in prediction.warnings[-1] and "limit 0.01" in prediction.warnings[-1]


def test_without_a_gate_there_are_no_distances(tmp_path):
    with OnnxEngine(tiny.write(tmp_path, defect=with_distance)) as engine:
        assert engine.predict(tiny.stack()).distances == ()


class Scripted:
    """A network that answers what it is told to."""

    name = "scripted cpu fp32"
    outputs = ("mean", "spread", "distance")

    def __init__(self, distance):
        self.distance = distance

    def run(self, tiles, inv_sd):
        image = np.ones((len(tiles), 2, *tiles.shape[2:4]), np.float32)
        return image, image, self.distance

    def close(self):
        pass


BAD = [
    ("NaN", np.full((1, 2, 1, 1), np.nan, np.float32), "NaN or infinity"),
    ("infinity", np.full((1, 2, 3, 1), np.inf, np.float32), "NaN or infinity"),
    ("one distance too few", np.ones((1, 1, 1, 1), np.float32), r"wanted: distance \(1, 2, 1, 1\)"),
    ("no window", np.ones((1, 2, 0, 1), np.float32), r"wanted: distance \(1, 2, 1, 1\)"),
    ("no grid", np.ones((1, 2), np.float32), r"wanted: distance \(1, 2, 1, 1\)"),
    ("doubles", np.ones((1, 2, 1, 1)), "float64"),
]


@pytest.mark.parametrize(("distance", "said"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_a_distance_that_is_none_is_an_error_and_lets_nothing_pass(tmp_path, distance, said):
    model = read_model(gated(tmp_path, 5.0, 6.0)).info
    with pytest.raises(EngineError, match=said):
        Predictor(model, Scripted(distance)).predict(tiny.stack())


def test_a_back_end_that_cannot_tell_does_not_run_a_model_with_a_gate(tmp_path):
    network = Scripted(None)
    network.outputs = ("mean", "spread")
    with pytest.raises(
        ModelError, match=r"cannot tell whether a stack looks like.*to fix: use another engine"
    ):
        Predictor(read_model(gated(tmp_path, 5.0, 6.0)).info, network)


def test_the_median_over_all_windows_of_all_tiles_counts():
    gate = Gate(names=("a", "b"), limits=(2.5, 9.0), false_alarms=0)
    first = np.array([[[[1.0, 2.0], [3.0, 100.0]], [[9.0, 9.0], [9.0, 9.0]]]], np.float32)
    second = np.array([[[[2.0]], [[9.5]]], [[[2.0]], [[8.0]]]], np.float32)
    assert measure_distances(gate, [first, second]) == (Distance("a", 2.0, 2.5), Distance("b", 9.0, 9.0))


@pytest.mark.parametrize(
    ("values", "beyond"),
    [((1.0, 1.0), ()), ((2.0, 3.0), ()), ((2.001, 1.0), ("a",)), ((3.0, 3.5), ("a", "b"))],
)
def test_a_limit_may_be_reached_but_not_passed(values, beyond):
    distances = [Distance(*one) for one in zip(("a", "b"), values, (2.0, 3.0), strict=True)]
    key = StackKey(0, "A1", "Phase")
    warnings = judge_distances(key, distances, "warn")
    assert [one.name for one in distances if one.beyond] == list(beyond)
    assert len(warnings) == bool(beyond) and all(f"{name} " in warnings[0] for name in beyond)
    if beyond:
        with pytest.raises(StackRefused):
            judge_distances(key, distances, "refuse")


@RUNTIMES
def test_a_made_up_stack_is_measured_but_not_refused(tmp_path, open_):
    with open_(gated(tmp_path, 0.01, 6.0)) as engine:
        prediction, shares = engine.rehearse(tiny.stack((200, 264)))
        with pytest.raises(StackRefused):
            engine.predict(tiny.stack((200, 264)))
    assert prediction.distances[0].beyond and shares.network_ms > 0


def test_what_resampling_itself_changes_only_warns():
    far = Distance("focus", 3.0, 1.0)
    key = tiny.stack((128, 128)).info.key
    with pytest.raises(StackRefused):
        judge_distances(key, [far], "refuse")
    assert judge_distances(key, [far], "refuse", RESAMPLED)
    with pytest.raises(StackRefused, match="polarity"):
        judge_distances(key, [far, Distance("polarity", 2.0, 0.0)], "refuse", RESAMPLED)


def test_tags_that_forget_the_gate_are_told_by_openvino(tmp_path):
    pytest.importorskip("openvino", reason="pip install acq-isl[openvino]")
    from acq_isl.engines.openvino.parts import split_model

    file = read_model(gated(tmp_path, 1.0, 1.0))
    tags = GraphTags(counts="counts", normalised="clipped", heads=("answers",))
    with pytest.raises(ModelError, match=r"what its gate's distance follows from.*--tags"):
        split_model(None, file, tags)


def test_an_estimated_cost_is_told_in_plain_words():
    key, far = StackKey(0, "A1", "Phase"), [Distance("focus", 1.0, 4.0), Distance("cost", 12.3, 4.5)]
    with pytest.raises(StackRefused, match=r"A1 t0 Phase is not predicted.*cost about \.12 r") as caught:
        judge_distances(key, far, "refuse")
    assert caught.value.got == "an estimated cost of .12 r, limit 0.045" and "focus" in caught.value.fix
    with pytest.raises(StackRefused, match="not predicted"):
        judge_distances(key, far, "refuse", RESAMPLED)
    (warning,) = judge_distances(key, far, "warn")
    assert "cost of .12 r" in warning
    assert judge_distances(key, [Distance("cost", 4.4, 4.5)], "refuse") == ()
