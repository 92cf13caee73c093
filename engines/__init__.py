"""A ZStack becomes a Prediction. `load_engine` is the door; back ends are imported when they are used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acq_isl.engines.backends import Unused
    from acq_isl.engines.fallback import Ladder
    from acq_isl.engines.gate import Policy
    from acq_isl.engines.model_file import ModelInfo


def load_engine(
    model: Path | str,
    *,
    threads: int | None = None,
    sha256: str | None = None,
    backend: str = "auto",
    field_px: tuple[int, int] | None = None,
    gate: Policy = "refuse",
) -> Ladder:
    """Load a model and make it ready to predict.

    Parameters
    ----------
    model : pathlib.Path or str
        An ``.onnx`` file, or ``"demo"``: the model that comes with acq-isl.
    threads : int, optional
        Cores the engine may use; all physical cores but one if not given.
    sha256 : str, optional
        Hash the file must have. Without it, ``MODEL.onnx.sha256`` beside the file is used if there.
    backend : str
        ``auto``, a runtime (``onnxruntime``, ``openvino``, ``tensorrt``), or runtime and precision
        (``"openvino bf16"``). ``auto`` measures what is installed once on this machine for this model, which
        takes seconds, and remembers it; when an engine fails, the next fastest goes on, with a warning.
    field_px : (int, int), optional
        Rows and columns of the camera's field, where known: what TensorRT is made fastest at and warmed up
        for. The plan that ``acq-isl build`` made is used whatever it is.
    gate : "refuse" or "warn"
        What becomes of a stack that looks unlike the training set.

    Returns
    -------
    Ladder
        An `acq_isl.protocols.Engine`, also usable in a ``with`` statement. Its ``name`` and ``why`` tell the
        choice, and why others were not chosen.

    Raises
    ------
    ModelError
        The file is missing, damaged, or not an acq-isl model.
    EngineError
        The network cannot be run, or there is no such back end here.
    """
    from acq_isl.engines.backends import AUTO, backends, named, unused
    from acq_isl.engines.fallback import Ladder
    from acq_isl.engines.model_file import read_model
    from acq_isl.engines.selection import choose

    file = read_model(model, sha256=sha256)
    found = backends(file, threads=threads, sha256=file.info.sha256, field_px=field_px, gate=gate)
    if backend != AUTO:
        return Ladder(named(found, backend))
    rungs = {one.name: one for one in found if one.common}
    missing = [f"{one.name} is not used: {one.why}" for one in unused(found)]
    if len(rungs) == 1:
        return Ladder(tuple(rungs.values()), "; ".join((*rungs, *missing)))
    chosen = choose(file, tuple(rungs.values()), threads=threads)
    return Ladder(
        [rungs[name] for name in chosen.order], "; ".join((chosen.reason(chosen.order[0]), *missing))
    )


def not_used(model: Path | str) -> tuple[Unused, ...]:
    """Back ends that this machine or model does not let us use, each with the reason and its fix."""
    from acq_isl.engines.backends import backends, unused
    from acq_isl.engines.model_file import read_model

    return unused(backends(read_model(model)))


def describe(model: Path | str) -> ModelInfo:
    """What a model is, without running it; raises `ModelError` like `load_engine`."""
    from acq_isl.engines import model_file

    return model_file.describe(model)


__all__ = ["describe", "load_engine", "not_used"]
