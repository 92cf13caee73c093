"""The back ends installed here, each named by runtime and precision, such as ``"openvino bf16"``."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

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


def backends(
    model: ModelFile, *, threads: int | None = None, sha256: str | None = None
) -> tuple[Backend, ...]:
    """The back ends installed here, as fast as they usually are.

    OpenVINO's int8 is among them once it was judged on the user's stacks (`acq_isl.engines.acceptance`).

    Parameters
    ----------
    model : ModelFile
    threads : int, optional
    sha256 : str, optional
        Hash the file must have.
    """
    return tuple(_found(model, threads, sha256))


def _found(model: ModelFile, threads: int | None, sha256: str | None) -> Iterator[Backend]:
    where: Path | str = model.info.where if model.info.where == DEMO else Path(model.info.where)
    if gpu():
        yield Backend("tensorrt fp16", lambda: _tensorrt(where))
    if importlib.util.find_spec("openvino") is not None:
        yield from _openvino(model, threads)
    yield Backend("onnxruntime fp32", lambda: OnnxEngine(where, threads=threads, sha256=sha256))


def _tensorrt(where: Path | str) -> Predictor:
    from acq_isl.engines.tensorrt import TensorRTEngine

    return TensorRTEngine(where)


def _openvino(model: ModelFile, threads: int | None) -> Iterator[Backend]:
    from acq_isl.engines.acceptance import stored_int8
    from acq_isl.engines.openvino import OpenVinoEngine, has_bf16

    stored = stored_int8(model)
    if stored is not None:
        note, trunk = stored
        yield Backend(
            "openvino int8",
            lambda: OpenVinoEngine(model, precision="int8", threads=threads, trunk=trunk),
            common=note.accepted,
            refused=note.reason,
        )
    bf16 = has_bf16()
    if bf16:
        yield Backend("openvino bf16", lambda: OpenVinoEngine(model, precision="bf16", threads=threads))
    full = Backend(
        "openvino fp32", lambda: OpenVinoEngine(model, precision="fp32", threads=threads), not bf16
    )
    yield full


def gpu() -> str:
    """Name and driver of the NVIDIA GPU that TensorRT would use; empty without GPU, driver or packages."""
    if not any(importlib.util.find_spec(name) for name in ("tensorrt", "tensorrt_rtx")):
        return ""
    from acq_isl.engines.cuda import Device

    try:
        device = Device()
    except EngineError as error:
        _log.info("TensorRT is installed but not used: %s", error.what)
        return ""
    try:
        return f"{device.info.name} {device.info.capability}, driver {device.info.driver}"
    finally:
        device.close()


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
                fix="use another engine, or run `acq-isl accept-int8` on more stacks",
            )
        if name == backend.name or (name == backend.name.partition(" ")[0] and not backend.refused):
            return (backend,)
    raise EngineError(
        f"there is no engine {name!r} for this model on this machine",
        wanted=", ".join((AUTO, *(backend.name for backend in found))),
        got=name,
        fix='choose one of these; pip install "acq-isl[openvino]" or "acq-isl[rtx]" adds more',
    )
