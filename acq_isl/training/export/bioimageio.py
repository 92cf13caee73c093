"""A model file becomes a bioimage.io package: one zip that other programs describe, test and run.

Follows the model description 0.5 of bioimage.io (`bioimageio.spec`). The package holds the network with an
image as its input, tensors to test it with, a README, and the
manifest as JSON under ``config.acq_isl``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto
from pydantic import TypeAdapter, ValidationError
from scipy import ndimage

from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.errors import ModelError, StorageError
from acq_isl.manifest import Manifest
from acq_isl.processing.normalize import inverse_contrast
from acq_isl.training.reference.onnx_graph import FLOAT, OnnxGraph

if TYPE_CHECKING:
    from bioimageio.spec.model import v0_5

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
    """The same network with an image as its only input; ModelError if it needs operators of another age.

    It takes ``planes``, (N, Z, H, W) uint16, sides as the manifest's tile rule wants and at least
    `least_side_px`, and gives ``mean`` and ``spread``, (N, L, H, W) float32.
    """
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
_WEIGHTS = "weights.onnx"
_TOLERANCE = 1e-3
_TEXT = 128  # longest description of a tensor
_NOTE = (
    "The contrast is measured on the image handed over; acq-isl measures it on the whole stack. "
    "Predict whole fields where you can, and blocks as large as you can."
)
_LABELS = "Predicted labels, computed from transmitted light. They are not a measurement."


def export_bioimage(
    model: Path | str, out: Path, authors: Sequence[str] = (), cite: Sequence[tuple[str, str]] = ()
) -> None:
    """Write a package.

    Parameters
    ----------
    model : path or str
        As for `acq_isl.engines.load_engine`.
    out : Path
        The ``.zip`` to write.
    authors : sequence of str
        Names of the people who stand for the package.
    cite : sequence of (str, str)
        Text and DOI.

    Raises
    ------
    ModelError
        The model cannot be used, or with an image as input it would say something else.
    StorageError
        The zip cannot be written.
    """
    file = read_model(model)

    from bioimageio.spec import save_bioimageio_package

    network = image_model(onnx.load_from_string(file.content), file.info.manifest)
    content = network.SerializeToString()
    tensors = _test_tensors(file, content)
    # The library leaves files open, which Windows does not remove.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / _WEIGHTS).write_bytes(content)
        for tensor, array in tensors.items():
            np.save(folder / f"test_{tensor}.npy", array)
        (folder / "README.md").write_text(_readme(file.info.manifest), encoding="utf-8")
        try:
            description = _describe(file, folder, authors, cite, _tolerances(tensors))
        except ValidationError as error:
            raise ModelError(
                "the package would not follow the model description of bioimage.io",
                got=str(error)[:2000],
                fix="mend what it names in the manifest, the authors or the citations",
            ) from error
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            save_bioimageio_package(description, output_path=out)
        except OSError as error:
            raise StorageError(
                f"the package {out} cannot be written", got=str(error), fix="choose another place"
            ) from error


def _test_tensors(file: ModelFile, content: bytes) -> dict[str, NDArray[Any]]:
    """A made-up stack and what the packaged network says to it, which must be what the model says."""
    manifest = file.info.manifest
    side, scale = least_side_px(manifest), manifest.pixel_size_um
    while side * scale / scale != side:  # the library compares sides of input and output in this way
        side += manifest.size_step_px
    grain = np.random.default_rng(0).standard_normal((manifest.planes, side, side))
    blobs = ndimage.gaussian_filter(grain, (0.7, 2, 2))
    pixels = (30000 + 3000 * blobs / blobs.std()).clip(0, 65535).astype(np.uint16)
    packaged = _run(content, {INPUT: pixels[None]})
    inv_sd = inverse_contrast(pixels, manifest.high_pass_um / manifest.pixel_size_um)
    stack = pixels.astype("<u2").view(np.uint8).reshape(1, *pixels.shape, 2)
    original = _run(file.content, {"stack": stack, "inv_sd": np.full(1, inv_sd, np.float32)})
    worst = max(float(np.abs(a - b).max()) for a, b in zip(packaged, original, strict=True))
    if not worst <= _AGREEMENT:
        raise ModelError(
            "with an image as its input the model would say something else",
            wanted=f"a difference of at most {_AGREEMENT:g}",
            got=f"{worst:.2g}",
            fix="report this; the package was not written",
        )
    return {INPUT: pixels[None], **dict(zip(OUTPUTS, packaged, strict=True))}


def _tolerances(tensors: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """How closely other runtimes must agree, in the form that readers of 0.5.12 know as well."""
    return [
        {
            "relative_tolerance": _TOLERANCE,
            "absolute_tolerance": min(_TOLERANCE, 0.005 * float(tensors[name].max())),
            "output_ids": [name],
        }
        for name in OUTPUTS
    ]


def _run(content: bytes, feeds: dict[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found: list[NDArray[np.float32]] = session.run(list(OUTPUTS), feeds)
    return found


def _describe(
    file: ModelFile,
    folder: Path,
    authors: Sequence[str],
    cite: Sequence[tuple[str, str]],
    tolerances: list[dict[str, Any]],
) -> v0_5.ModelDescr:
    from bioimageio.spec.model import v0_5

    info, manifest = file.info, file.info.manifest
    own = manifest.model_dump(mode="json") | {"model_sha256": info.sha256}
    modality = manifest.modality.replace(" ", "-")
    return v0_5.ModelDescr.model_validate(
        {
            "type": "model",
            "format_version": v0_5.ModelDescr.implemented_format_version,
            "name": manifest.name,
            "version": manifest.version,
            "description": manifest.description,
            "authors": [{"name": name} for name in authors],
            "cite": [{"text": text, "doi": doi} for text, doi in cite],
            "license": _licence(manifest),
            "tags": ["in-silico-labeling", "label-free", "microscopy", modality],
            "documentation": {"source": folder / "README.md"},
            "inputs": [_input(manifest, folder)],
            "outputs": [_output(manifest, folder, name) for name in OUTPUTS],
            "weights": {"onnx": {"source": folder / _WEIGHTS, "opset_version": info.opset}},
            "config": {"acq_isl": own, "bioimageio": {"reproducibility_tolerance": tolerances}},
        }
    )


def _licence(manifest: Manifest) -> Any:
    """The licence if it is one that SPDX names; the manifest under ``config`` holds any other in words."""
    from bioimageio.spec.model import v0_5

    try:
        return TypeAdapter(v0_5.LicenseId).validate_python(manifest.licence)
    except ValidationError:
        return None


def _input(manifest: Manifest, folder: Path) -> dict[str, Any]:
    size = {"min": least_side_px(manifest), "step": manifest.size_step_px}
    space = {"type": "space", "unit": "micrometer"}
    flat = space | {"size": size, "scale": manifest.pixel_size_um, "concatenable": True}
    return {
        "id": INPUT,
        "description": f"{manifest.modality} z-stack, camera counts, z rising"[:_TEXT],
        "axes": [
            {"type": "batch"},
            space | {"id": "z", "size": manifest.planes, "scale": manifest.z_step_um or 1.0},
            flat | {"id": "y"},
            flat | {"id": "x"},
        ],
        "data": {"type": "uint16", "range": (0, 65535)},
        "test_tensor": {"source": folder / f"test_{INPUT}.npy"},
    }


def _output(manifest: Manifest, folder: Path, name: str) -> dict[str, Any]:
    halo = {"halo": manifest.halo_px} if manifest.halo_px else {}
    flat = {"type": "space", "unit": "micrometer", "scale": manifest.pixel_size_um} | halo
    what = manifest.statistic if name == "mean" else "stated standard deviation"
    # Names of channels are identifiers in this description; the manifest has those for people.
    channels = ["".join(c if c.isalnum() else "_" for c in label) for label in manifest.label_names]
    return {
        "id": name,
        "description": f"predicted intensity, {what}; 1 is the bright end of the training truth"[:_TEXT],
        "axes": [
            {"type": "batch"},
            {"type": "channel", "channel_names": channels},
            *(flat | {"id": axis, "size": {"tensor_id": INPUT, "axis_id": axis}} for axis in ("y", "x")),
        ],
        "data": {"type": "float32"},
        "test_tensor": {"source": folder / f"test_{name}.npy"},
    }


def _readme(manifest: Manifest) -> str:
    labels = "\n".join(f"* {label.name} (predicted), after {label.marker}" for label in manifest.labels)
    numbers = "\n".join(f"* {name}: {value:.3g}" for name, value in manifest.metrics.items())
    numbers += "\n".join(
        f"* {scores.label} on {scores.dataset or 'held-out data'}, n = {scores.n} ({scores.split_unit}): "
        + ", ".join(f"{name} {value:.3g}" for name, value in scores.metrics.items())
        for scores in manifest.evaluations
    )
    return f"""# {manifest.name} {manifest.version}

{manifest.description} {_LABELS}

{labels}

Input: {manifest.planes} planes {manifest.z_step_um:g} um apart of {manifest.modality}, dense matter
{manifest.polarity}, pixels of {manifest.pixel_size_um:g} um, uint16 counts of the camera, z rising. Nothing
else needs to be done to them. {_NOTE}

Trained on: {manifest.trained_on}. Licence: {manifest.licence}.

## Validation

{numbers or "No scores are stored with this model."}

Hold it against real stains of your own with `acq-isl evaluate` before you believe it.
"""
