"""The network with an image as its only input, for programs that know nothing of acq-isl.

It takes ``planes``, (N, Z, H, W) uint16 counts, sides as the manifest's tile rule wants and at least
`least_side_px`, and gives ``mean`` and ``spread``, (N, L, H, W) float32. A few nodes before the network take
the counts apart and measure the contrast as engines do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto

from acq_isl.engines.agreement import as_bytes, sample_tiles
from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.errors import ModelError, StorageError
from acq_isl.files import write_whole
from acq_isl.manifest import Manifest
from acq_isl.processing.normalize import inverse_contrast
from acq_isl.training.reference.onnx_graph import FLOAT, OnnxGraph

INPUT = "planes"
OUTPUTS = ("mean", "spread")
_BYTE = 256.0
# As in acq_isl.processing.normalize; what is made here is held against it before it is written.
_BLOCK_PX = 4
_PLANES_SAMPLED = 4
_LEAST_SD = 0.5
_SIGMAS = 4.0
_OPSETS = range(18, 23)
_FIRST = np.iinfo(np.int64).min


def image_model(model: onnx.ModelProto, manifest: Manifest) -> onnx.ModelProto:
    """The same network with an image as its only input; ModelError if it needs operators of another age."""
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset not in _OPSETS:
        raise ModelError(
            "the model cannot be given another input",
            wanted=f"ONNX operators of version {_OPSETS.start} to {_OPSETS.stop - 1}",
            got=str(opset),
            fix="export it again with this version of acq-isl",
        )
    graph = OnnxGraph(prefix="image_")
    counts = graph.op("Cast", INPUT, to=FLOAT)  # (N, Z, H, W)
    high = graph.op("Floor", graph.op("Mul", counts, graph.floats(1 / _BYTE)))
    low = graph.op("Sub", counts, graph.op("Mul", high, graph.floats(_BYTE)))
    last = graph.integers(-1)
    pairs = graph.op("Concat", *(graph.op("Unsqueeze", byte, last) for byte in (low, high)), axis=-1)
    graph.name(graph.op("Cast", pairs, to=int(TensorProto.UINT8)), "stack")
    graph.name(_inverse_contrast(graph, counts, manifest), "inv_sd")
    return graph.put_before(model, {INPUT: (np.uint16, ("n", manifest.planes, "h", "w"))}, OUTPUTS)


def least_side_px(manifest: Manifest) -> int:
    """Smallest side: what the network needs, more than its halo, and enough for the contrast's background."""
    wanted = max(
        manifest.min_tile_px,
        2 * manifest.halo_px + manifest.size_step_px,
        _BLOCK_PX * (_radius(manifest) + 1),
    )
    return -(-wanted // manifest.size_step_px) * manifest.size_step_px


def _radius(manifest: Manifest) -> int:
    """Of the Gaussian on block means, in blocks."""
    return int(_SIGMAS * manifest.high_pass_um / manifest.pixel_size_um / _BLOCK_PX + 0.5)


def _inverse_contrast(graph: OnnxGraph, counts: str, manifest: Manifest) -> str:
    """1 / SD of the counts around their local background, (N,), as `contrast_sd` measures it."""
    picks = np.unique(np.linspace(0, manifest.planes - 1, _PLANES_SAMPLED).round().astype(np.int64))
    x = graph.op("Gather", counts, graph.constant(picks), axis=1)  # (N, P, H, W)
    axes = graph.integers(1, 2, 3)
    if manifest.high_pass_um <= 0:
        centred = graph.op("Sub", x, graph.op("ReduceMean", x, graph.integers(2, 3)))
        variance = graph.op("ReduceMean", graph.op("Mul", centred, centred), axes, keepdims=0)
    else:
        block = [_BLOCK_PX, _BLOCK_PX]
        means = graph.op("AveragePool", x, kernel_shape=block, strides=block)
        full = graph.op("Resize", means, "", graph.floats([1, 1, *block]), mode="nearest",
                              coordinate_transformation_mode="asymmetric", nearest_mode="floor")  # fmt: skip
        off = graph.op("Sub", x, full)
        means = graph.op("Sub", means, graph.op("ReduceMean", means, graph.integers(2, 3)))
        around = graph.op("Sub", means, _background(graph, means, len(picks), manifest))
        within, between = (
            graph.op("ReduceMean", graph.op("Mul", part, part), axes, keepdims=0) for part in (off, around)
        )
        variance = graph.op("Add", within, between)
    sd = graph.op("Max", graph.op("Sqrt", variance), graph.floats(_LEAST_SD))
    return graph.op("Reciprocal", sd)


def _background(graph: OnnxGraph, means: str, planes: int, manifest: Manifest) -> str:
    """Gaussian of block means that goes on beyond the edge as its own mirror image, edge included."""
    radius = _radius(manifest)
    sigma = manifest.high_pass_um / manifest.pixel_size_um / _BLOCK_PX
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = np.tile((weights / weights.sum()).astype(np.float32), (planes, 1, 1, 1))
    for axis, shaped in ((2, kernel.transpose(0, 1, 3, 2)), (3, kernel)):
        means = _mirrored(graph, means, axis, radius) if radius else means
        means = graph.op("Conv", means, graph.floats(shaped), group=planes)
    return means


def _mirrored(graph: OnnxGraph, x: str, axis: int, count: int) -> str:
    """``count`` more values before and after, mirrored with the edge value twice; ONNX pads without it."""
    where, back = graph.integers(axis), graph.integers(-1)
    before = graph.op("Slice", x, graph.integers(count - 1), graph.integers(_FIRST), where, back)
    after = graph.op("Slice", x, back, graph.integers(-count - 1), where, back)
    return graph.op("Concat", before, x, after, axis=axis)


_AGREEMENT = 1e-4


def write_plain(model: Path | str, out: Path) -> None:
    """Write a file that ``onnxruntime`` alone, plain OpenVINO and others run; ``model`` as of `load_engine`.

    Raises
    ------
    ModelError
        The model cannot be used, or with an image as input it would say something else.
    StorageError
        The file cannot be written.
    """
    file = read_model(model)
    content, _ = described_model(file)
    try:
        write_whole(out, content)
    except OSError as error:
        raise StorageError(
            f"the model {out} cannot be written", got=str(error), fix="choose another place"
        ) from error


def described_model(file: ModelFile) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """The image model with what it takes and gives in words, and a made-up stack with its answers."""
    manifest = file.info.manifest
    network = image_model(onnx.load_from_string(file.content), manifest)
    labels = ", ".join(label.name for label in manifest.labels)
    texts = {
        INPUT: f"camera counts of {manifest.modality}: {manifest.planes} planes {manifest.z_step_um:g} um"
        f" apart, z rising, {manifest.pixel_size_um:g} um a pixel; sides from {least_side_px(manifest)} px"
        f" in steps of {manifest.size_step_px}",
        "mean": f"predicted intensity ({manifest.statistic}) of {labels}; 1: bright end of the truth",
        "spread": "stated standard deviation of the same",
    }
    for port in (*network.graph.input, *network.graph.output):
        port.doc_string = texts[port.name]
    network.doc_string = f"{manifest.description} Predicted labels are not a measurement."
    about = {"name": f"{manifest.name} {manifest.version}", "labels": labels, "licence": manifest.licence}
    onnx.helper.set_model_props(network, about | {"acq_isl_model_sha256": file.info.sha256})
    content = network.SerializeToString()
    return content, _answers(file, content)


def _answers(file: ModelFile, content: bytes) -> dict[str, NDArray[Any]]:
    """A made-up stack and what the image model says to it; ModelError if the model says another thing."""
    manifest = file.info.manifest
    pixels = sample_tiles(manifest, 1, least_side_px(manifest))[0]
    found = _run(content, {INPUT: pixels[None]})
    inv_sd = inverse_contrast(pixels, manifest.high_pass_um / manifest.pixel_size_um)
    original = _run(file.content, {"stack": as_bytes(pixels[None]), "inv_sd": np.full(1, inv_sd, np.float32)})
    worst = max(float(np.abs(a - b).max()) for a, b in zip(found, original, strict=True))
    if not worst <= _AGREEMENT:
        raise ModelError(
            "with an image as its input the model would say something else",
            wanted=f"a difference of at most {_AGREEMENT:g}",
            got=f"{worst:.2g}",
            fix="report this; nothing was written",
        )
    return {INPUT: pixels[None], **dict(zip(OUTPUTS, found, strict=True))}


def _run(content: bytes, feeds: dict[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found: list[NDArray[np.float32]] = session.run(list(OUTPUTS), feeds)
    return found
