"""A trained live network becomes one ONNX file that says what it expects and gives."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

from acq_isl.errors import ModelError
from acq_isl.files import write_whole
from acq_isl.manifest import MANIFEST_KEY, Manifest
from acq_isl.training.export.tags import tag_model
from acq_isl.training.network import Deployed

NETWORK_KEY = "acq_isl_network"
"""Metadata entry with the `NetworkConfig` as JSON: what to build before the weights can be read back."""
_OPSET = 20
_AGREEMENT = 1e-4
_LEAST_PX = 128  # a window of the gate

logger = logging.getLogger(__name__)


def export_onnx(network: Deployed, manifest: Manifest, path: Path) -> float:
    """Write the network with its manifest and tags, once the file has been held against torch.

    Returns the difference, see `compare_with_torch`; ModelError if it is too large.
    """
    model = _to_onnx(network.eval(), manifest.size_step_px)
    config = json.dumps(asdict(network.network.config))
    onnx.helper.set_model_props(model, {MANIFEST_KEY: manifest.model_dump_json(), NETWORK_KEY: config})
    try:
        tag_model(model)
    except ModelError as error:
        logger.warning("the model file has no tags, so engines run it in fp32 only: %s", error)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    difference = compare_with_torch(network, content, manifest)
    if difference > _AGREEMENT:
        raise ModelError(
            "the exported graph does not compute what the network computes",
            wanted=f"outputs within {_AGREEMENT:g}",
            got=f"{difference:.2g}",
            fix="report the versions of torch, onnx and onnxruntime; this must not be shipped",
        )
    write_whole(path, content)
    return difference


def _to_onnx(network: Deployed, step: int) -> onnx.ModelProto:
    # Several windows of the gate each way: a size of 1 would be taken for a constant.
    planes, side = network.network.config.planes, step * math.ceil(2 * _LEAST_PX / step)
    example = (torch.zeros(2, planes, side, side + step, 2, dtype=torch.uint8), torch.ones(2))
    with warnings.catch_warnings():
        # What torch and onnxscript tell each other inside of the exporter; the result is checked below.
        warnings.simplefilter("ignore")
        program = _program(network, example, step)
    if program is None:
        raise ModelError("torch exported no graph", fix="report the versions of torch and onnxscript")
    return program.model_proto


def _program(
    network: Deployed, example: tuple[torch.Tensor, torch.Tensor], step: int
) -> torch.onnx.ONNXProgram | None:
    batch, rows, columns = torch.export.Dim("n"), torch.export.Dim("h"), torch.export.Dim("w")
    return torch.onnx.export(
        network,
        example,
        dynamo=True,
        opset_version=_OPSET,
        input_names=["stack", "inv_sd"],
        output_names=list(_outputs(network)),
        dynamic_shapes=({0: batch, 2: step * rows, 3: step * columns}, {0: batch}),
        verbose=False,
    )


def _outputs(network: Deployed) -> tuple[str, ...]:
    return ("mean", "spread") if network.gate is None else ("mean", "spread", "distance")


def compare_with_torch(
    network: Deployed, content: bytes, manifest: Manifest, outputs: Sequence[str] = ()
) -> float:
    """Largest difference of a file over stacks of several sizes, as a share of values above 1."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    step, rng, worst = manifest.size_step_px, np.random.default_rng(0), 0.0
    least = math.ceil(_LEAST_PX / step)
    for batch, rows, columns in ((1, least, least), (2, least + 1, 2 * least), (1, 2 * least, least + 2)):
        shape = (batch, manifest.planes, rows * step, columns * step)
        counts = rng.normal(30000, 3000, shape).clip(0, 65535).astype("<u2")
        stack = counts.view(np.uint8).reshape(*shape, 2)
        inv_sd = np.full(batch, 1 / 3000, np.float32)
        got = session.run(list(outputs or _outputs(network)), {"stack": stack, "inv_sd": inv_sd})
        with torch.no_grad():
            wanted = network(torch.from_numpy(stack), torch.from_numpy(inv_sd))
        for g, w in zip(got, wanted, strict=not outputs):
            # Distances of odd stacks are large; maps are of the order of 1.
            worst = max(worst, float(np.abs(g - w.numpy()).max() / max(1.0, float(w.abs().max()))))
    return worst
