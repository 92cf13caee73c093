"""A ZStack becomes a Prediction. `load_engine` is the door; back ends are imported when they are used.

For packages that add a back end: `Backend` and what it deals in, `Candidate`, `LoadOptions`, `ModelFile`,
`Network`, `Predictor`, `Unavailable`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from acq_isl.engines.backend import Backend, Candidate, LoadOptions, Network, Unavailable
from acq_isl.engines.gate import Policy

if TYPE_CHECKING:
    from acq_isl.engines.fallback import FallbackEngine, Ladder
    from acq_isl.engines.model_file import ModelFile, ModelInfo
    from acq_isl.engines.predictor import Predictor


def __getattr__(name: str) -> Any:
    """What takes a while to import is imported when it is used."""
    if name == "ModelFile":
        from acq_isl.engines.model_file import ModelFile

        return ModelFile
    if name == "Predictor":
        from acq_isl.engines.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'acq_isl.engines' has no attribute {name!r}")


def load_engine(  # noqa: PLR0913  all but the model have defaults
    model: Path | str,
    *,
    threads: int | None = None,
    sha256: str | None = None,
    backend: str = "auto",
    field_px: tuple[int, int] | None = None,
    gate: Policy = "refuse",
    ladder: Ladder | None = None,
) -> FallbackEngine:
    """Load a model and make it ready to predict.

    Parameters
    ----------
    model : pathlib.Path or str
        An ``.onnx`` file, or ``"demo"`` or ``"cells"``: the models that come with acq-isl.
    threads : int, optional
        Cores the engine may use; all physical cores but one if not given.
    sha256 : str, optional
        Hash the file must have. Without it, ``MODEL.onnx.sha256`` beside the file is used if there.
    backend : str
        ``auto``, a back end (``onnxruntime``, ``openvino``, ``tensorrt``, ``tensorrt_rtx``, or one that
        another package adds), or back end and precision (``"openvino bf16"``). ``auto`` measures what is
        installed once on this machine for this model, which takes seconds, and remembers it; when an engine
        fails, the next fastest goes on, with a warning.
    field_px : (int, int), optional
        Rows and columns of the camera's field, where known: what TensorRT is made fastest at and warmed up
        for. The plan that ``acq-isl build`` made is used whatever it is.
    gate : "refuse" or "warn"
        What becomes of a stack that looks unlike the training set.
    ladder : Ladder, optional
        Which of the engines may be used. By default all, from the best down.

    Returns
    -------
    FallbackEngine
        An `acq_isl.protocols.Engine`, also usable in a ``with`` statement. Its ``name`` and ``why`` tell the
        selection, and why others were not selected.

    Raises
    ------
    ModelError
        The file is missing, damaged, or not an acq-isl model.
    EngineError
        The network cannot be run, or there is no such back end here.
    """
    from acq_isl.engines.backends import AUTO, find_engines
    from acq_isl.engines.fallback import FallbackEngine, Ladder
    from acq_isl.engines.model_file import read_model
    from acq_isl.engines.selection import select

    file, ladder = read_model(model, sha256=sha256), ladder or Ladder()
    found = find_engines(file, LoadOptions(threads, field_px, gate))
    named = None if backend == AUTO else found.named(backend)
    if named is not None and named.back is None:
        return FallbackEngine([named], remark=ladder.remark)
    automatic = {candidate.name: candidate for candidate in found.candidates if candidate.automatic}
    missing = [f"{item.name} is not used: {item.why}" for item in found.unavailable if not item.quiet]
    if len(automatic) == 1:
        order, why = tuple(automatic), "; ".join((*automatic, *missing))
    else:
        selected = select(file, tuple(automatic.values()), threads=threads)
        order, why = selected.order, "; ".join((selected.reason(selected.order[0]), *missing))
    first = [] if named is None else [named]  # on other computers: those here take over while it is gone
    rungs = ladder.rungs([*first, *(automatic[name] for name in order)])
    return FallbackEngine(rungs, named.name if named else why, remark=ladder.remark)


def resolve(model: Path | str, backend: str = "auto", *, threads: int | None = None) -> str:
    """Full name of the engine that `load_engine` would begin with, such as ``"openvino bf16"``.

    For work that must be the same on every machine and in every call. Raises as `load_engine`.
    """
    from acq_isl.engines.backends import AUTO, find_engines
    from acq_isl.engines.model_file import read_model
    from acq_isl.engines.selection import select

    file = read_model(model)
    found = find_engines(file, LoadOptions(threads))
    if backend != AUTO:
        return found.named(backend).name
    automatic = [candidate for candidate in found.candidates if candidate.automatic]
    return automatic[0].name if len(automatic) == 1 else select(file, automatic, threads=threads).order[0]


def not_used(model: Path | str) -> tuple[Unavailable, ...]:
    """Back ends that this machine or model does not let us use, each with the reason and its fix."""
    from acq_isl.engines.backends import find_engines
    from acq_isl.engines.model_file import read_model

    return tuple(item for item in find_engines(read_model(model)).unavailable if not item.quiet)


def describe(model: Path | str) -> ModelInfo:
    """What a model is, without running it; raises `ModelError` like `load_engine`."""
    from acq_isl.engines.model_file import read_model

    return read_model(model).info


__all__ = [
    "Backend",
    "Candidate",
    "LoadOptions",
    "ModelFile",
    "Network",
    "Predictor",
    "Unavailable",
    "describe",
    "load_engine",
    "not_used",
    "resolve",
]
