"""torch computes the model file: on the processor here, as ONNX Runtime does; on a GPU where there is one."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from acq_isl.engines import fp16, load_engine
from acq_isl.engines.agreement import as_bytes, compare, inverse_contrasts, sample_tiles
from acq_isl.engines.backend import LoadOptions
from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx_network import OnnxNetwork
from acq_isl.engines.parity import LIMITS
from acq_isl.engines.predictor import Predictor
from acq_isl.engines.torch import backend
from acq_isl.errors import EngineError, ModelError
from doubles import tiny_model as tiny

torch = pytest.importorskip("torch", reason="pip install acq-isl[train] to predict with torch")

from acq_isl.engines.torch.graph import TorchGraph  # noqa: E402
from acq_isl.engines.torch.network import TorchNetwork  # noqa: E402

CPU = torch.device("cpu")


def off(model, precision, side, device="cpu"):
    """How far torch is from ONNX Runtime."""
    file = read_model(model)
    counts = sample_tiles(file.info.manifest, 1, side)
    tiles = as_bytes(counts), inverse_contrasts(counts)
    with (
        closing(OnnxNetwork(file)) as reference,
        closing(TorchNetwork(file, precision, device=device)) as own,
    ):
        return compare(reference.run(*tiles), own.run(*tiles), file.info.manifest)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_shipped_model_is_computed_as_onnx_runtime_does(precision):
    found = off("demo", precision, 256)
    assert found.rms <= LIMITS[precision] and found.distance <= LIMITS[precision]
    assert found.least_pearson > 0.999


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_published_network_is_computed_too(tmp_path, precision):
    from acq_isl.cli.gpu_kit.reference import random_reference

    path = tmp_path / "reference.onnx"
    path.write_bytes(random_reference(8))
    # Random weights: what is left of 2e6 products in fp16 says little of trained ones.
    found = off(path, precision, read_model(path).info.manifest.least_side_px)
    assert found.rms <= (LIMITS["fp32"] if precision == "fp32" else 0.1)


@pytest.mark.parametrize("heavy", [False, True], ids=["demo", "published"])
def test_no_number_is_read_from_the_gpu_while_it_computes(tmp_path, heavy):
    """Else no CUDA graph can be recorded. On the device "meta" there are shapes, and nothing to read."""
    if heavy:
        from acq_isl.cli.gpu_kit.reference import random_reference

        path = tmp_path / "reference.onnx"
        path.write_bytes(random_reference(8))
    file = read_model(path if heavy else "demo")
    manifest, meta = file.info.manifest, torch.device("meta")
    side = manifest.least_side_px
    inputs = {
        "stack": torch.empty((1, manifest.planes, side, side, 2), dtype=torch.uint8, device=meta),
        "inv_sd": torch.empty(1, device=meta),
    }
    found = TorchGraph(fp16.mixed(file.content, file.info.output_names), meta).run(inputs)
    assert found["mean"].shape == (1, len(manifest.labels), side, side) and found["mean"].is_meta
    assert found["mean"].dtype == torch.float16


def test_whole_predictions_are_those_of_the_reference(tmp_path):
    file = read_model(tiny.write(tmp_path, manifest=tiny.GATED, defect=tiny.gated))
    with (
        Predictor(file.info, TorchNetwork(file, "fp32", device="cpu"), gate="warn") as own,
        Predictor(file.info, OnnxNetwork(file), gate="warn") as reference,
    ):
        for shape in ((72, 88), (33, 47)):
            stack = tiny.stack(shape)
            got, wanted = own.predict(stack), reference.predict(stack)
            np.testing.assert_allclose(got.mean, wanted.mean, atol=1e-5)
            assert [d.value for d in got.distances] == pytest.approx(
                [d.value for d in wanted.distances], rel=1e-4
            )
    with pytest.raises(EngineError, match="closed"):
        own.network.run(np.zeros((1, 5, 96, 96, 2), np.uint8), np.ones(1, np.float32))


# -- operators, each against ONNX Runtime

NODES = {
    "conv of one side": ("Conv", ["x", "k"], {"pads": [1, 0, 0, 1], "strides": [2, 1]}),
    "transposed": ("ConvTranspose", ["x", "t"], {"strides": [2, 2], "pads": [1] * 4}),
    "pool with border": ("AveragePool", ["x"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    "pool": ("MaxPool", ["x"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "norm": ("BatchNormalization", ["x", "c", "c", "c", "c"], {"epsilon": 0.01}),
    "linear": ("Resize", ["x", "", "scales"], {"mode": "linear"}),
    "nearest": ("Resize", ["x", "", "scales"], {"mode": "nearest", "nearest_mode": "floor",
                                               "coordinate_transformation_mode": "asymmetric"}),
    "slice": ("Slice", ["x", "one", "most", "axis", "two"], {}),
    "edges": ("Pad", ["x", "pads"], {"mode": "edge"}),
    "zeros": ("Pad", ["x", "pads"], {}),
    "dcr": ("DepthToSpace", ["x"], {"blocksize": 2, "mode": "DCR"}),
    "crd": ("DepthToSpace", ["x"], {"blocksize": 2, "mode": "CRD"}),
    "folded": ("SpaceToDepth", ["x"], {"blocksize": 2}),
    "sum": ("ReduceSum", ["x", "axis"], {"keepdims": 0}),
    "mean of all": ("ReduceMean", ["x"], {}),
    "gathered": ("Gather", ["x", "places"], {"axis": 1}),
    "cumulated": ("CumSum", ["x", "axis"], {}),
    "softmax": ("LogSoftmax", ["x"], {"axis": 1}),
    "turned": ("Transpose", ["x"], {"perm": [0, 2, 3, 1]}),
    "shaped": ("Reshape", ["x", "shape"], {}),
    "clipped": ("Clip", ["x", "", "most1"], {}),
    "gelu": ("Gelu", ["x"], {"approximate": "none"}),
    "product": ("MatMul", ["x", "m"], {}),
}  # fmt: skip
RNG = np.random.default_rng(3)
WEIGHTS = {
    "k": RNG.normal(size=(3, 4, 3, 2)).astype(np.float32),
    "t": RNG.normal(size=(4, 2, 4, 4)).astype(np.float32),
    "c": RNG.uniform(0.5, 2, 4).astype(np.float32), "scales": np.array([1, 1, 2, 2], np.float32),
    "one": np.array([1]), "most": np.array([2**62]), "axis": np.array([2]), "two": np.array([2]),
    "pads": np.array([0, 0, 1, 2, 0, 0, 2, 1]), "places": np.array([2, 0]), "shape": np.array([0, -1, 6]),
    "most1": np.float32(0.3), "m": RNG.normal(size=(6, 5)).astype(np.float32),
}  # fmt: skip


def single(operator, inputs, attributes, version=20):
    used = [name for name in WEIGHTS if name in inputs]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"], **attributes)], "one",
        [value("x", TensorProto.FLOAT, (2, 4, 8, 6))], [value("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(WEIGHTS[name]), name) for name in used],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=10)
    return model.SerializeToString()


@pytest.mark.parametrize("name", NODES)
def test_an_operator_is_what_onnx_says(name):
    import onnxruntime

    content = single(*NODES[name])
    x = RNG.normal(size=(2, 4, 8, 6)).astype(np.float32)
    (wanted,) = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    got = TorchGraph(content, CPU).run({"x": torch.from_numpy(x)})["y"].numpy()
    np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes", "said"),
    [
        ("Hardmax", ["x"], {}, "Hardmax"),
        ("AveragePool", ["x"], {"kernel_shape": [2, 2], "pads": [1, 0, 0, 0]}, "one side"),
        ("Conv", ["x", "k"], {"auto_pad": "SAME_UPPER"}, "auto_pad"),
        ("Resize", ["x", "", "scales"], {"mode": "cubic"}, "cubic"),
    ],
)
def test_what_torch_was_not_taught_is_said_and_never_guessed(operator, inputs, attributes, said):
    with pytest.raises(ModelError, match=said) as error:
        TorchGraph(single(operator, inputs, attributes), CPU).run({"x": torch.zeros(2, 4, 8, 6)})
    assert "onnxruntime" in error.value.fix


# -- among the back ends


@pytest.mark.parametrize(
    ("version", "driver", "said"),
    [
        (None, True, "not installed"),
        ("2.13.0+cpu", True, "processor only"),
        ("2.13.0", False, "no NVIDIA driver"),
    ],
)
def test_why_it_cannot_be_used_is_said_with_a_fix(monkeypatch, version, driver, said):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: version and object())
    monkeypatch.setattr(backend.importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(backend, "_has_driver", lambda: driver)
    reason = backend.TorchBackend().unavailable()
    assert said in reason.why and reason.fix


def test_it_is_tried_where_there_is_a_driver_and_serves_what_onnx_runtime_says(monkeypatch, tmp_path):
    """A card that nobody has TensorRT for: torch is a candidate of ``auto``, as fp16, for the same file."""
    monkeypatch.setattr(backend.importlib.metadata, "version", lambda name: "2.13.0")
    monkeypatch.setattr(backend, "_has_driver", lambda: True)
    found = backend.TorchBackend()
    assert found.unavailable() is None
    names = {c.name: c.automatic for c in found.candidates(read_model(tiny.write(tmp_path)), LoadOptions())}
    assert names == {"torch fp16": True, "torch fp32": False}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_named_without_a_gpu_it_says_what_is_missing(tmp_path):
    with pytest.raises(EngineError, match="there is no engine 'torch'"):
        load_engine(tiny.write(tmp_path), backend="torch")
    with pytest.raises(EngineError, match="torch sees no GPU"):
        TorchNetwork(read_model(tiny.write(tmp_path)))


def test_torch_is_not_imported_to_find_out_that_there_is_no_card():
    import subprocess
    import sys

    code = (
        "import sys; from acq_isl.engines.torch.backend import TorchBackend; TorchBackend().unavailable();"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch sees")
@pytest.mark.parametrize("graphs", [True, False])
def test_a_real_gpu_computes_it_with_and_without_graphs(graphs):
    file = read_model("demo")
    with closing(TorchNetwork(file, graphs=graphs)) as network, closing(OnnxNetwork(file)) as reference:
        for side in (256, 320, 256):
            counts = sample_tiles(file.info.manifest, 1, side)
            tiles = as_bytes(counts), inverse_contrasts(counts)
            assert (
                compare(reference.run(*tiles), network.run(*tiles), file.info.manifest).rms <= LIMITS["fp16"]
            )
