"""The back ends installed here, each named by runtime and precision, such as ``"openvino bf16"``."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from acq_isl.engines.gate import Policy
from acq_isl.engines.model_file import DEMO, ModelFile
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import EngineError

_log = logging.getLogger(__name__)

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Backend:
    """A way to run a model.

    Parameters
    ----------
    name : str
        Runtime and precision.
    open : callable
        Makes the engine ready; raises EngineError or ModelError.
    common : bool
        A candidate for `AUTO`; others are used when named only.
    refused : str
        Why it is not to be used although it could be; only benchmarks run it.
    """

    name: str
    open: Callable[[], Predictor]
    common: bool = True
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Unused:
    """A back end that is not available here.

    Parameters
    ----------
    name : str
    why, fix : str
        For people.
    broken : bool
        Somebody installed it, so it should work.
    """

    name: str
    why: str
    fix: str
    broken: bool = False


def backends(
    model: ModelFile,
    *,
    threads: int | None = None,
    sha256: str | None = None,
    field_px: tuple[int, int] | None = None,
    gate: Policy = "refuse",
) -> tuple[Backend, ...]:
    """The back ends installed here, as fast as they usually are.

    int8 is among them once it was judged on the user's stacks (`acq_isl.engines.openvino.int8` for OpenVINO,
    `acq_isl.engines.tensorrt.int8` for TensorRT).

    Parameters
    ----------
    model : ModelFile
    threads : int, optional
    sha256 : str, optional
        Hash the file must have.
    field_px : (int, int), optional
        Rows and columns of the camera's field; what a plan for TensorRT is fastest at.
    gate : "refuse" or "warn"
        What becomes of a stack that looks unlike the training set.
    """
    where: Path | str = model.info.where if model.info.where == DEMO else Path(model.info.where)
    onnx = partial(OnnxEngine, where, threads=threads, sha256=sha256, gate=gate)
    return (
        *(_tensorrt(model, field_px, gate) if gpu() else ()),
        *(_openvino(model, threads, gate) if importlib.util.find_spec("openvino") is not None else ()),
        Backend("onnxruntime fp32", onnx),
    )


def _tensorrt(model: ModelFile, field_px: tuple[int, int] | None, gate: Policy) -> Iterator[Backend]:
    from acq_isl.engines.tensorrt.engine import TensorRTEngine
    from acq_isl.engines.tensorrt.int8 import stored_form
    from acq_isl.engines.tensorrt.options import LastBuilt

    stored = stored_form(model)
    if stored is not None:
        low = partial(TensorRTEngine, model, LastBuilt("int8", field_px), gate=gate)
        yield Backend("tensorrt int8", low, common=stored[0].accepted, refused=stored[0].reason)
    yield Backend("tensorrt fp16", partial(TensorRTEngine, model, LastBuilt("fp16", field_px), gate=gate))
    full = partial(TensorRTEngine, model, LastBuilt("fp32", field_px), gate=gate)
    yield Backend("tensorrt fp32", full, common=False)


def _openvino(model: ModelFile, threads: int | None, gate: Policy) -> Iterator[Backend]:
    from acq_isl.engines.openvino.engine import OpenVinoEngine, has_bf16
    from acq_isl.engines.openvino.int8 import stored_int8

    stored = stored_int8(model)
    if stored is not None:
        note, trunk = stored
        yield Backend(
            "openvino int8",
            partial(OpenVinoEngine, model, precision="int8", threads=threads, trunk=trunk, gate=gate),
            common=note.accepted,
            refused=note.reason,
        )
    bf16 = has_bf16()
    if bf16:
        low = partial(OpenVinoEngine, model, precision="bf16", threads=threads, gate=gate)
        yield Backend("openvino bf16", low)
    full = partial(OpenVinoEngine, model, precision="fp32", threads=threads, gate=gate)
    yield Backend("openvino fp32", full, common=not bf16)


def gpu() -> str:
    """Name and driver of the NVIDIA GPU that TensorRT would use; empty without GPU, driver or packages."""
    found = _gpu()
    return "" if isinstance(found, Unused) else found


def _gpu() -> str | Unused:
    if not any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx")):
        fix = 'with an NVIDIA GPU: pip install "acq-isl[rtx]", or "acq-isl[tensorrt]" for A100, H100, B200'
        return Unused("tensorrt", "neither tensorrt_rtx nor tensorrt is installed", fix)
    from acq_isl.engines.tensorrt.cuda import Device

    try:
        device = Device()
    except EngineError as error:
        _log.info("TensorRT is installed but not used: %s", error.what)
        got = f": {error.got}" if error.got else ""
        return Unused("tensorrt", f"{error.what}{got}", error.fix or "", broken=True)
    try:
        return f"{device.info.name} {device.info.capability}, driver {device.info.driver}"
    finally:
        device.close()


def unused(found: Sequence[Backend]) -> tuple[Unused, ...]:
    """Why what could be faster is not among the back ends found, each with its fix."""
    state = _gpu()
    missing = [state] if isinstance(state, Unused) else []
    if importlib.util.find_spec("openvino") is None:
        missing.append(Unused("openvino", "not installed", 'pip install "acq-isl[openvino]"'))
    refused = (backend for backend in found if backend.refused)
    fix = "judge it again on more of your stacks, or go on without"
    return (*missing, *(Unused(b.name, f"not accepted: {b.refused}", fix) for b in refused))


def named(found: Sequence[Backend], name: str) -> tuple[Backend, ...]:
    """The back ends a user's word stands for: a full name, or a runtime alone, whose first is taken.

    Raises
    ------
    EngineError
        There is no such back end here.
    """
    for backend in found:
        if name == backend.name and backend.refused:
            raise EngineError(
                f"{name} was not accepted for this model: {backend.refused}",
                fix="use another engine, or judge it again on more stacks: acq-isl accept-int8 (OpenVINO), "
                "acq-isl build --precision int8 (TensorRT)",
            )
        if name == backend.name or (name == backend.name.partition(" ")[0] and not backend.refused):
            return (backend,)
    missing = next((one for one in unused(found) if one.name == name.partition(" ")[0]), None)
    raise EngineError(
        f"there is no engine {name!r} for this model on this machine"
        + (f": {missing.why}" if missing else ""),
        wanted=", ".join((AUTO, *(backend.name for backend in found))),
        got=name,
        fix=missing.fix
        if missing
        else 'choose one of these; pip install "acq-isl[openvino]" or "acq-isl[rtx]" adds more',
    )
