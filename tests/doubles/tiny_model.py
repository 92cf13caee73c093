"""A model file small enough to reason about, written as torch's exporter writes the live network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy import ndimage

from acq_isl.manifest import MANIFEST_KEY, Label, Manifest
from acq_isl.stack import StackInfo, StackKey, ZStack

PLANES = 5
MANIFEST = Manifest(
    name="tiny",
    version="1",
    licence="BSD-3-Clause",
    description="Two convolutions.",
    modality="phase contrast",
    polarity="dark",
    pixel_size_um=0.3,
    z_offsets_um=tuple(1.5 * (i - PLANES // 2) for i in range(PLANES)),
    high_pass_um=3.0,
    labels=(Label(name="nuclei", marker="DAPI"), Label(name="axons", marker="NFH")),
    min_tile_px=32,
    halo_px=4,
    size_step_px=8,
    trained_on="nothing",
)


def _nodes() -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        node("Gather", ["stack", "low"], ["low_byte"], axis=4),
        node("Cast", ["low_byte"], ["low_counts"], to=TensorProto.FLOAT),
        node("Gather", ["stack", "high"], ["high_byte"], axis=4),
        node("Cast", ["high_byte"], ["high_counts"], to=TensorProto.FLOAT),
        node("Constant", [], ["byte"], value=numpy_helper.from_array(np.float32(256), "byte")),
        node("Mul", ["high_counts", "byte"], ["scaled"]),
        node("Add", ["low_counts", "scaled"], ["counts"]),
        node("AveragePool", ["counts"], ["background"], kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
        node("Sub", ["counts", "background"], ["flat"]),
        node("Unsqueeze", ["inv_sd", "image_axes"], ["inverse"]),
        node("Mul", ["flat", "inverse"], ["normalised"]),
        node("Clip", ["normalised", "least", "most"], ["clipped"]),
        node("Conv", ["clipped", "first"], ["features"], pads=[1, 1, 1, 1]),
        node("Relu", ["features"], ["active"]),
        node("Conv", ["active", "second"], ["answers"], pads=[1, 1, 1, 1]),
        node("Split", ["answers"], ["raw_mean", "raw_log_variance"], axis=1, num_outputs=2),
        node("Clip", ["raw_mean", "zero"], ["mean"]),
        node("Clip", ["raw_log_variance", "least", "three"], ["log_variance"]),
        node("Mul", ["log_variance", "half"], ["log_sd"]),
        node("Exp", ["log_sd"], ["spread"]),
    ]


def content(*, manifest: Manifest = MANIFEST, defect=lambda model: None) -> bytes:
    """The file's bytes, with ``defect`` done to the model."""
    rng = np.random.default_rng(1)
    weights = {
        "low": np.array(0, np.int64),
        "high": np.array(1, np.int64),
        "image_axes": np.array([1, 2, 3], np.int64),
        "least": np.float32(-10),
        "most": np.float32(10),
        "zero": np.float32(0),
        "three": np.float32(3),
        "half": np.float32(0.5),
        "first": rng.normal(scale=0.2, size=(8, PLANES, 3, 3)).astype(np.float32),
        "second": rng.normal(scale=0.2, size=(4, 8, 3, 3)).astype(np.float32),
    }
    value = helper.make_tensor_value_info
    image = ["n", 2, "8*h", "8*w"]
    graph = helper.make_graph(
        _nodes(),
        "tiny",
        [
            value("stack", TensorProto.UINT8, ["n", PLANES, "8*h", "8*w", 2]),
            value("inv_sd", TensorProto.FLOAT, ["n"]),
        ],
        [value("mean", TensorProto.FLOAT, image), value("spread", TensorProto.FLOAT, image)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {MANIFEST_KEY: manifest.model_dump_json()})
    defect(model)
    return model.SerializeToString()


def write(folder: Path, **changes) -> Path:
    path = folder / "tiny.onnx"
    path.write_bytes(content(**changes))
    return path


def stack(shape=(72, 88), *, seed=0, position="A1") -> ZStack:
    """Blobs that move with z, (5, y, x)."""
    grain = np.random.default_rng(seed).normal(size=(PLANES, *shape))
    blobs = ndimage.gaussian_filter(grain, (1, 2, 2))
    pixels = (20000 + 2000 * blobs / blobs.std()).clip(0, 65535).astype(np.uint16)
    z_um = tuple(10 + 1.5 * i for i in range(PLANES))
    info = StackInfo(
        StackKey(0, position, "Phase"), z_um, shape, 0.3, modality="phase contrast", polarity="dark"
    )
    return ZStack(info, pixels, (0.0,) * PLANES)
