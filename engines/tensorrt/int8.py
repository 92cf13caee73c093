"""The int8 form of a model for TensorRT: made from, and only used after a check on, the user's own stacks.

It is ONNX with explicit (QuantizeLinear, DequantizeLinear) pairs, which TensorRT turns into int8 kernels. It
is judged as ONNX Runtime computes it on the processor: rounded at the same places, so what passes here is
what the GPU is asked to compute. The upper half of every stack calibrates, the lower half judges.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from acq_isl.engines.int8.accuracy import ABOVE, halves, judge
from acq_isl.engines.int8.agreement import agreement
from acq_isl.engines.int8.quantize import quantised
from acq_isl.engines.model_file import ModelFile
from acq_isl.engines.onnx import OnnxNetwork
from acq_isl.engines.openvino.int8 import calibration, int8_folder
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import EngineError, StackRefused
from acq_isl.files import write_whole
from acq_isl.stack import ZStack

_log = logging.getLogger(__name__)

MOST_DISTANCE = 0.05
"""By how much of its limit the gate's distance may change."""
_GATE_TILES = 8
_NOTE, _NETWORK = "tensorrt.json", "tensorrt.onnx"


class Int8Form(BaseModel):
    """The result of the check, as it lies beside the quantised network."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: str = Field(default="acq-isl-int8-onnx/1", pattern=r"^acq-isl-int8-onnx/1$")
    model_sha256: str
    onnx_sha256: str
    """Of the int8 form."""
    accepted: bool
    pearson: dict[str, float]
    """Correlation of the mean of each label with fp32, the lowest of all stacks."""
    f1: float | None
    """Nuclei found in int8 matched with those found in fp32, all stacks together; None without nuclei."""
    nuclei: int
    above: float
    """Predicted intensity that makes a nucleus."""
    distance: float
    """Largest change of the gate's distance as a share of its limit; 0 without a gate."""
    stacks: tuple[str, ...]
    """SHA-256 of the pixels of each stack that judged."""
    reason: str = ""
    """Why it was not accepted."""
    judged_at: str
    """ISO 8601 local time with offset."""


def stored_form(model: ModelFile) -> tuple[Int8Form, bytes] | None:
    """The judgement on a model and its int8 form, if there and all hashes fit."""
    folder = int8_folder(model)
    try:
        form = Int8Form.model_validate_json((folder / _NOTE).read_bytes())
        content = (folder / _NETWORK).read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _log.warning("int8 is not used, its note in %s cannot be read: %s", folder, error)
        return None
    if (model.info.sha256, _sha256(content)) != (form.model_sha256, form.onnx_sha256):
        _log.warning("int8 is not used: model or network changed since it was judged at %s", form.judged_at)
        return None
    return form, content


def make_form(
    model: ModelFile, stacks: Sequence[ZStack], *, above: float = ABOVE, threads: int | None = None
) -> Int8Form:
    """Quantise a model, judge it, and keep the result where builds and engines find it.

    Accepted if, on the lower halves of the stacks, `acq_isl.engines.int8.accuracy.judge` has no objection
    and the gate's distance changes by no more than `MOST_DISTANCE` of its limit.

    Parameters
    ----------
    model : ModelFile
    stacks : sequence of ZStack
        Of the user's own specimens, with cells in both halves.
    above : float
        Predicted intensity that makes a nucleus, as in the experiment's measurements.
    threads : int, optional

    Returns
    -------
    Int8Form
        ``accepted`` and ``reason`` say whether it will be used.

    Raises
    ------
    ModelError
        The model has no int8 form, or the stacks are too small to calibrate on.
    EngineError
        The folder cannot be written.
    StackRefused
        No stack was given, or one does not fit the model.
    """
    if not stacks:
        raise StackRefused(
            "int8 cannot be calibrated or judged without stacks",
            wanted="z-stacks of your own specimens",
            fix="name one or more of them, or use --precision fp16",
        )
    upper, lower = zip(*(halves(stack) for stack in stacks), strict=True)
    content = quantised(model.content, calibration(upper, model.info.manifest), model.info.answers)
    low = ModelFile(content, model.info)
    with (
        Predictor(model.info, OnnxNetwork(model, threads=threads), gate="warn") as full,
        Predictor(model.info, OnnxNetwork(low, threads=threads), gate="warn") as cheap,
    ):
        found = judge((full, cheap), lower, above)
    distance = max(_gate_change(model, content, stack) for stack in lower)
    moved = f"the gate's distance changes by {distance:.0%} of its limit" if distance > MOST_DISTANCE else ""
    form = Int8Form(
        model_sha256=model.info.sha256,
        onnx_sha256=_sha256(content),
        accepted=not (found.reason or moved),
        pearson=found.pearson,
        f1=found.f1,
        nuclei=found.nuclei,
        above=above,
        distance=distance,
        stacks=tuple(_sha256(stack.pixels.tobytes()) for stack in lower),
        reason=found.reason or moved,
        judged_at=datetime.now().astimezone().isoformat(timespec="seconds"),
    )
    _keep(int8_folder(model), content, form)
    return form


def _gate_change(model: ModelFile, content: bytes, stack: ZStack) -> float:
    manifest = model.info.manifest
    if manifest.gate is None:
        return 0.0
    tiles = (tile for tile, _ in calibration([stack], manifest)[:_GATE_TILES])
    return max(agreement(model.content, content, manifest, stacks=tile).distance for tile in tiles)


def _keep(folder: Path, content: bytes, form: Int8Form) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without its note a network is not used, so the note goes last.
        (folder / _NOTE).unlink(missing_ok=True)
        write_whole(folder / _NETWORK, content)
        write_whole(folder / _NOTE, form.model_dump_json(indent=1).encode())
    except OSError as error:
        raise EngineError(
            f"the int8 form cannot be kept in {folder}: {error}",
            wanted="a folder that can be written",
            fix="copy the model to a folder of yours and use it from there",
        ) from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
