"""Which graphs a model is run as by OpenVINO, for each precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import openvino
from openvino import properties

from acq_isl.engines.model_file import ModelFile
from acq_isl.engines.openvino.background import Background, find_background
from acq_isl.engines.openvino.graph import Parts, handed_over_in_bf16, read_graph
from acq_isl.engines.openvino_gate import split_gate, taking_bf16
from acq_isl.errors import ModelError

Precision = Literal["fp32", "bf16", "int8"]
DEVICE = "CPU"
# Nothing else comes out of OpenVINO's bindings; which one tells nothing.
RUNTIME_ERRORS = (RuntimeError, ValueError, TypeError, MemoryError)


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """A model as OpenVINO runs it.

    Parameters
    ----------
    parts : Parts
    background : Background or None
        Takes the place of ``parts.front``, plane by plane.
    gate : openvino.Model or None
        Distances to the training set; in fp32, of what the trunk is given and hands over. None if the model
        has no gate, or the trunk is the whole model.
    """

    parts: Parts
    background: Background | None
    gate: Any = None


def has_bf16() -> bool:
    """Whether this processor computes with bf16, as OpenVINO itself finds."""
    return "BF16" in openvino.Core().get_property(DEVICE, properties.device.capabilities)


def processor() -> str:
    """Name of the processor, as compiled networks depend on it."""
    return str(openvino.Core().get_property(DEVICE, properties.device.full_name))


def read_form(
    core: Any, model: ModelFile, precision: Precision, trunk: tuple[bytes, bytes] | None, *, low: bool
) -> Form:
    """Read a model and rewrite it for a precision.

    Parameters
    ----------
    core : openvino.Core
    model : ModelFile
    precision : "fp32", "bf16" or "int8"
    trunk : bytes and bytes, optional
        XML and weights of the quantised part; needed for int8.
    low : bool
        Hand over what is normalised in bf16.

    Raises
    ------
    ModelError
        OpenVINO cannot read the network, or there is no such form of it.
    """
    try:
        form = _read(core, model.content, precision)
        parts, gate = form.parts, form.gate
        if precision == "int8" and trunk is not None and parts.front is not None:
            parts = Parts(parts.front, core.read_model(*trunk), parts.takes_counts)
        if low:
            parts = handed_over_in_bf16(parts)
            gate = None if gate is None else taking_bf16(gate)
    except RUNTIME_ERRORS as error:
        raise ModelError(
            f"OpenVINO cannot read model {model.info.where}: {first_line(error)}",
            wanted=f"operators that OpenVINO {openvino.get_version()} knows",
            got=f"ONNX opset {model.info.opset}",
            fix="update openvino, or use the engine onnxruntime",
        ) from error
    if precision != "fp32" and parts.front is None:
        raise ModelError(
            f"model {model.info.where} can only be run in fp32 by OpenVINO",
            wanted="one value that separates normalisation, which must stay fp32, from the network",
            fix="use fp32, or export the model again with this version of acq-isl",
        )
    if precision == "int8" and trunk is None:
        raise ModelError(
            f"model {model.info.where} has no int8 form", fix="run `acq-isl accept-int8` on stacks of yours"
        )
    return Form(parts, form.background, gate)


def _read(core: Any, content: bytes, precision: Precision) -> Form:
    parts = read_graph(core, content, split=True)
    background = None
    if parts.front is not None and parts.takes_counts:
        background = find_background(core, parts.front)
    if precision == "fp32" and background is None:  # then two graphs have no advantage over one
        parts = read_graph(core, content, split=False)
        return Form(parts, None)
    return divided(parts, background)


def divided(parts: Parts, background: Background | None = None) -> Form:
    """The form whose gate is apart from its trunk."""
    halves = split_gate(parts.trunk) if parts.front is not None else None
    if halves is None:
        return Form(parts, background)
    return Form(Parts(parts.front, halves[0], parts.takes_counts), background, halves[1])


def first_line(error: BaseException) -> str:
    """OpenVINO's messages begin with places in its source, one to a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
