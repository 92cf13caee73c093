"""A model file becomes a bioimage.io package: one zip that other programs describe, test and run.

Follows the model description 0.5 of bioimage.io, written as plain YAML: its library pins what cannot be
installed beside acq-isl, and its program ``bioimageio test`` is what judges the package. The package holds
the network with an image as its input, tensors to test it with, a README, and the manifest under
``config.acq_isl``.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.version import InvalidVersion, Version

from acq_isl.engines.model_file import ModelInfo, read_model
from acq_isl.errors import StorageError
from acq_isl.files import whole_file
from acq_isl.manifest import Manifest
from acq_isl.training.export.image_model import INPUT, OUTPUTS, described_model, least_side_px

_FORMAT = "0.5.4"
_WEIGHTS = "weights.onnx"
_TOLERANCE = 1e-3
_TEXT = 128  # longest description of a tensor
_ABOUT = 1024  # and of a model
_NAME = 5, 128
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
    content, tensors = described_model(file)
    parts = {_WEIGHTS: content, "README.md": _readme(file.info.manifest).encode()}
    parts |= {f"test_{name}.npy": _npy(array) for name, array in tensors.items()}
    description = _describe(file.info, parts, _tolerances(tensors))
    description |= {
        "authors": [{"name": name} for name in authors],
        "cite": [{"text": text, "doi": doi} for text, doi in cite],
    }
    plain = json.loads(json.dumps(description))  # what is the same in two places is written twice
    parts["bioimageio.yaml"] = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(out) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as package:
            for name, data in parts.items():
                package.writestr(name, data)
    except OSError as error:
        raise StorageError(
            f"the package {out} cannot be written", got=str(error), fix="choose another place"
        ) from error


def _npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


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


def _describe(
    info: ModelInfo, parts: Mapping[str, bytes], tolerances: list[dict[str, Any]]
) -> dict[str, Any]:
    manifest = info.manifest

    def source(name: str) -> dict[str, str]:
        return {"source": name, "sha256": hashlib.sha256(parts[name]).hexdigest()}

    own = manifest.model_dump(mode="json") | {"model_sha256": info.sha256}
    return {
        "type": "model",
        "format_version": _FORMAT,
        "name": _name(manifest.name),
        "description": manifest.description[:_ABOUT],
        **_standard(manifest),
        "tags": ["in-silico-labeling", "label-free", "microscopy", manifest.modality.replace(" ", "-")],
        "documentation": "README.md",
        "inputs": [_input(manifest) | {"test_tensor": source(f"test_{INPUT}.npy")}],
        "outputs": [_output(manifest, n) | {"test_tensor": source(f"test_{n}.npy")} for n in OUTPUTS],
        "weights": {"onnx": {**source(_WEIGHTS), "opset_version": info.opset}},
        "config": {"acq_isl": own, "bioimageio": {"reproducibility_tolerance": tolerances}},
    }


def _name(name: str) -> str:
    """In the characters and the length that the description allows."""
    least, most = _NAME
    return re.sub(r"[^A-Za-z0-9_+\-() ]", "_", name)[:most].ljust(least, "_")


def _standard(manifest: Manifest) -> dict[str, str]:
    """Version and licence, if they are written as all readers know; else ``config`` has them in words."""
    found = {}
    with suppress(InvalidVersion):
        found["version"] = str(Version(manifest.version))
    try:
        licence = canonicalize_license_expression(manifest.licence)
    except InvalidLicenseExpression:
        return found
    return found if " " in licence or "LicenseRef" in licence else found | {"license": licence}


def _scale(manifest: Manifest) -> float:
    """Pixel size in um with half of a float's digits: readers multiply sides by it and divide them again, and
    496 * .3 / .3 is not 496."""
    return float(np.float32(manifest.pixel_size_um))


def _input(manifest: Manifest) -> dict[str, Any]:
    size = {"min": least_side_px(manifest), "step": manifest.size_step_px}
    space = {"type": "space", "unit": "micrometer"}
    flat = space | {"size": size, "scale": _scale(manifest), "concatenable": True}
    return {
        "id": INPUT,
        "description": f"{manifest.modality} z-stack, camera counts, z rising"[:_TEXT],
        "axes": [
            {"type": "batch"},
            space | {"id": "z", "size": manifest.planes, "scale": manifest.z_step_um or 1.0},
            flat | {"id": "y"},
            flat | {"id": "x"},
        ],
        "data": {"type": "uint16", "range": [0, 65535]},
    }


def _output(manifest: Manifest, name: str) -> dict[str, Any]:
    halo = {"halo": manifest.halo_px} if manifest.halo_px else {}
    flat = {"type": "space", "unit": "micrometer", "scale": _scale(manifest)} | halo
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
    }


def _other_planes(manifest: Manifest) -> str:
    """What is to be done with stacks of other planes, if the model takes them."""
    if manifest.any_planes is None:
        return ""
    return (
        "Stacks of other planes, evenly spaced or not, are first interpolated to as many, evenly from the "
        "first to the last, which acq-isl does itself; a single plane is repeated. "
    )


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
else needs to be done to them. {_other_planes(manifest)}{_NOTE}

Trained on: {manifest.trained_on}. Licence: {manifest.licence}.

## Validation

{numbers or "No scores are stored with this model."}

Hold it against real stains of your own with `acq-isl evaluate` before you believe it.
"""
