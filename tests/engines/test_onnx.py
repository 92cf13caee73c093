"""Model files that are whole, damaged, or something else, and ONNX Runtime on the whole ones."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper
from scipy import ndimage

from acq_isl.engines import describe, load_engine
from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxEngine, OnnxNetwork, default_threads
from acq_isl.errors import EngineError, ModelError
from acq_isl.manifest import MANIFEST_KEY, Label, Manifest
from acq_isl.processing.normalize import contrast_sd
from acq_isl.stack import StackInfo, StackKey, ZStack

PLANES = 3
MANIFEST = Manifest(
    name="tiny",
    version="3",
    licence="BSD-3-Clause",
    description="A 5x5 convolution.",
    modality="phase contrast",
    polarity="dark",
    pixel_size_um=0.3,
    z_offsets_um=(-1.0, 0.0, 1.0),
    high_pass_um=3.0,
    labels=(Label(name="nuclei", marker="DAPI"), Label(name="axons", marker="NFH")),
    min_tile_px=32,
    halo_px=2,
    size_step_px=8,
    trained_on="nothing",
    metrics={"pearson nuclei": 0.5},
)
KERNEL = np.random.default_rng(0).normal(size=(2, PLANES, 5, 5)).astype(np.float32)


def nodes():
    """Bytes to counts, counts times inv_sd, one convolution; spread is its absolute value plus 0.1."""
    return [
        helper.make_node("Cast", ["stack"], ["bytes"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["bytes", "place"], ["parts"]),
        helper.make_node("ReduceSum", ["parts", "last"], ["counts"], keepdims=0),
        helper.make_node("Reshape", ["inv_sd", "column"], ["inv"]),
        helper.make_node("Mul", ["counts", "inv"], ["x"]),
        helper.make_node("Conv", ["x", "kernel"], ["mean"], pads=[2, 2, 2, 2]),
        helper.make_node("Abs", ["mean"], ["absolute"]),
        helper.make_node("Add", ["absolute", "tenth"], ["spread"]),
    ]


def build(*, defect=lambda model: None, manifest=MANIFEST):
    """The tiny model, with ``defect`` done to it."""
    constants = {
        "place": np.array([1, 256], np.float32),
        "last": np.array([4], np.int64),
        "column": np.array([-1, 1, 1, 1], np.int64),
        "kernel": KERNEL,
        "tenth": np.array(0.1, np.float32),
    }
    image = ["n", 2, "h", "w"]
    graph = helper.make_graph(
        nodes(),
        "tiny",
        [
            helper.make_tensor_value_info("stack", TensorProto.UINT8, ["n", PLANES, "h", "w", 2]),
            helper.make_tensor_value_info("inv_sd", TensorProto.FLOAT, ["n"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, image) for name in ("mean", "spread")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if manifest is not None:
        text = manifest if isinstance(manifest, str) else manifest.model_dump_json()
        helper.set_model_props(model, {MANIFEST_KEY: text})
    defect(model)
    return model.SerializeToString()


@pytest.fixture
def model_path(tmp_path):
    path = tmp_path / "tiny.onnx"
    path.write_bytes(build())
    return path


def stack_of(shape=(50, 70), planes=PLANES, seed=0):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(planes, *shape)), (0, 2, 2))
    pixels = (30000 + 20000 * smooth).clip(0, 65535).astype(np.uint16)
    z_um = tuple(map(float, range(planes)))
    info = StackInfo(StackKey(0, "A1", "Phase"), z_um, shape, 0.3, modality="phase contrast", polarity="dark")
    return ZStack(info, pixels, (0.0,) * planes)


def convolved(pixels):
    """What the tiny model computes of a field, reflected at its border, in float64."""
    x = pixels.astype(float) / contrast_sd(pixels, 10.0)
    return np.stack(
        [
            sum(ndimage.correlate(plane, k, mode="mirror") for plane, k in zip(x, kernel, strict=True))
            for kernel in KERNEL.astype(float)
        ]
    )


@pytest.mark.parametrize("threads", [None, 1, 2])
@pytest.mark.parametrize("tile_px", [None, 40])
def test_the_runtime_computes_what_the_graph_says(model_path, threads, tile_px):
    stack = stack_of((64, 96))
    with OnnxEngine(model_path, threads=threads, tile_px=tile_px) as engine:
        prediction = engine.predict(stack)
    wanted = convolved(stack.pixels)
    np.testing.assert_allclose(prediction.mean, wanted, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(prediction.spread, np.abs(wanted) + 0.1, atol=1e-5 * np.abs(wanted).max())
    assert prediction.engine == "onnxruntime cpu fp32"
    assert prediction.model_sha256 == hashlib.sha256(model_path.read_bytes()).hexdigest()
    assert prediction.model_name == "tiny 3"


def test_load_engine_is_the_same_door(model_path):
    stack = stack_of((33, 41))
    door = load_engine(model_path, threads=1, backend="onnxruntime")
    with door as engine, OnnxEngine(str(model_path)) as other:
        assert engine.manifest == MANIFEST
        np.testing.assert_array_equal(engine.predict(stack).mean, other.predict(stack).mean)


def test_what_a_model_says_of_itself(model_path):
    info = describe(model_path)
    assert info.manifest == MANIFEST and info.opset == 17
    assert info.size_bytes == model_path.stat().st_size
    assert info.inputs == ("stack uint8 (n, 3, h, w, 2)", "inv_sd float32 (n)")
    assert info.outputs == ("mean float32 (n, 2, h, w)", "spread float32 (n, 2, h, w)")
    lines = dict(info.lines())
    assert lines["model"] == "tiny 3"
    assert lines["labels"] == "nuclei (predicted; DAPI), axons (predicted; NFH)"
    assert lines["pixel size"] == "0.3 um"
    assert lines["planes"] == "3, 1 um apart, -1 to +1 um around the middle"
    assert lines["optics"] == "phase contrast, dense matter dark"
    assert lines["tiles"] == "from 32 px in steps of 8 px, 2 px around each"
    assert lines["metric pearson nuclei"] == "0.5"
    assert lines["licence"] == "BSD-3-Clause" and lines["sha256"] == info.sha256


def rename_input(model):
    model.graph.input[0].name = "image"
    model.graph.node[0].input[0] = "image"


def float_input(model):
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT


def fixed_height(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64


def other_planes(model):
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 13


def lose_spread(model):
    del model.graph.output[1]


def custom_operator(model):
    model.graph.node[6].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def hidden_operator(model):
    """The custom operator sits inside a branch."""
    node = helper.make_node("Steal", ["mean"], ["absolute"], domain="com.example")
    output = helper.make_tensor_value_info("absolute", TensorProto.FLOAT, ["n", 2, "h", "w"])
    branch = helper.make_graph([node], "branch", [], [output])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    swap = helper.make_node("If", ["yes"], ["absolute"], then_branch=branch, else_branch=branch)
    model.graph.node[6].CopyFrom(swap)
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def weights_elsewhere(model):
    kernel = model.graph.initializer[3]
    kernel.ClearField("raw_data")
    kernel.data_location = TensorProto.EXTERNAL
    entry = kernel.external_data.add()
    entry.key, entry.value = "location", "../../etc/weights.bin"


def unknown_operator(model):
    model.graph.node[6].op_type = "Absolut"


def two_manifests(model):
    entry = model.metadata_props.add()
    entry.key, entry.value = MANIFEST_KEY, MANIFEST.model_dump_json()


DEFECTS = [
    ("another input", build(defect=rename_input), "does not take or give"),
    ("another type", build(defect=float_input), "stack float32|damaged"),
    ("a fixed height", build(defect=fixed_height), r"\(n, 3, 64, w, 2\)"),
    ("other planes than its manifest", build(defect=other_planes), r"wanted: stack uint8 \(n, 3, h, w, 2\)"),
    ("no spread", build(defect=lose_spread), "spread float32"),
    ("a custom operator", build(defect=custom_operator), "not part of ONNX.*com.example::Abs"),
    ("a hidden custom operator", build(defect=hidden_operator), "com.example::Steal"),
    ("weights in another file", build(defect=weights_elsewhere), "keeps weights in another file.*kernel"),
    ("an unknown operator", build(defect=unknown_operator), "damaged or not an ONNX file.*Absolut"),
    ("no manifest", build(manifest=None), "does not say what it expects"),
    ("two manifests", build(defect=two_manifests), "duplicate keys in metadata_props"),
    ("a manifest that is none", build(manifest="{}"), "manifest cannot be used"),
    ("an empty file", b"", "damaged or not an ONNX file"),
    ("text", b"this is not a model", "damaged or not an ONNX file"),
    ("a TIFF", b"II*\x00\x08\x00\x00\x00" + bytes(200), "damaged or not an ONNX file"),
]


@pytest.mark.parametrize(("content", "said"), [c[1:] for c in DEFECTS], ids=[c[0] for c in DEFECTS])
def test_what_is_no_good_model_is_refused_before_it_runs(tmp_path, content, said):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=said) as caught:
        load_engine(path)
    assert caught.value.fix


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.97, 0.999])
def test_a_truncated_file_is_refused(tmp_path, keep):
    content = build()
    path = tmp_path / "short.onnx"
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ModelError):
        load_engine(path)


def test_any_single_flipped_bit_is_seen_when_the_hash_is_known(model_path):
    content = bytearray(model_path.read_bytes())
    wanted = hashlib.sha256(content).hexdigest()
    content[len(content) // 2] ^= 1
    model_path.write_bytes(content)
    with pytest.raises(ModelError, match=f"wanted: sha256 {wanted}.*copy or download"):
        load_engine(model_path, sha256=wanted)


@pytest.mark.parametrize("form", ["{}", "{}  tiny.onnx\n", "{} *tiny.onnx\n"])
def test_the_hash_beside_the_file_is_verified(model_path, form):
    found = hashlib.sha256(model_path.read_bytes()).hexdigest()
    beside = model_path.with_name("tiny.onnx.sha256")
    beside.write_text(form.format(found.upper()))
    assert read_model(model_path).info.sha256 == found
    for wrong in (form.format("0" * 64), ""):
        beside.write_text(wrong)
        with pytest.raises(ModelError, match="not the file it should be"):
            read_model(model_path)


def test_a_model_that_is_not_there_is_named(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path, str(tmp_path / "none.onnx")):
        with pytest.raises(ModelError, match=r"cannot be read.*to fix: check the path"):
            load_engine(path)


def test_without_the_demo_model_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("acq_isl.engines.model_file.SHIPPED", ("gone",))
    with pytest.raises(ModelError, match=r"gone\.onnx.*to fix: install acq-isl again"):
        load_engine("gone")


def test_the_demo_model_loads_and_predicts_alike_in_tiles():
    with load_engine("demo", backend="onnxruntime", gate="warn") as engine:
        manifest = engine.manifest
        stack = stack_of((480, 500), manifest.planes)
        info = StackInfo(stack.info.key, manifest.z_offsets_um, (480, 500), manifest.pixel_size_um)
        stack = ZStack(info, stack.pixels, stack.captured_s)
        whole = engine.predict(stack)
    with OnnxEngine("demo", tile_px=1) as engine:
        tiled = engine.rehearse(stack)[0]
    assert np.isfinite(whole.mean).all() and whole.mean.shape == (len(manifest.labels), 480, 500)
    assert np.abs(tiled.mean - whole.mean).max() <= 1e-5 * np.abs(whole.mean).max()


def test_a_closed_engine_says_so(model_path):
    engine = load_engine(model_path, backend="onnxruntime")
    engine.close()
    with pytest.raises(EngineError, match=r"closed.*load the engine again"):
        engine.predict(stack_of())


def test_what_the_runtime_refuses_is_an_engine_error(model_path):
    network = OnnxNetwork(read_model(model_path), threads=1)
    with pytest.raises(EngineError, match="ONNX Runtime failed"):
        network.run(np.zeros((1, PLANES + 1, 32, 32, 2), np.uint8), np.ones(1, np.float32))


def test_the_acquisition_keeps_a_core():
    physical = psutil.cpu_count(logical=False) or 1
    assert 1 <= default_threads() <= max(physical - 1, 1)


def test_threads_are_as_asked_for(model_path):
    assert OnnxNetwork(read_model(model_path), threads=2).threads == 2
    assert OnnxNetwork(read_model(model_path), threads=0).threads == 1
    assert OnnxNetwork(read_model(model_path)).threads == default_threads()


def test_importing_the_engines_is_cheap():
    code = (
        "import sys, acq_isl.engines\n"
        "heavy = {'onnx', 'onnxruntime', 'openvino', 'torch', 'scipy', 'tensorrt'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_tiny_model_is_a_valid_one():
    onnx.checker.check_model(onnx.load_model_from_string(build()), full_check=True)
