"""A ZStack becomes a Prediction. `load_engine` is the door; back ends are imported when they are used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from acq_isl.engines.model_file import ModelInfo
    from acq_isl.engines.predictor import Predictor


def load_engine(model: Path | str, *, threads: int | None = None, sha256: str | None = None) -> Predictor:
    """Load a model and make it ready to predict.

    Parameters
    ----------
    model : pathlib.Path or str
        An ``.onnx`` file, or ``"demo"``: the model that comes with acq-isl.
    threads : int, optional
        Cores the engine may use; all physical cores but one if not given.
    sha256 : str, optional
        Hash the file must have. Without it, ``MODEL.onnx.sha256`` beside the file is used if there.

    Returns
    -------
    Predictor
        An `acq_isl.protocols.Engine`, also usable in a ``with`` statement.

    Raises
    ------
    ModelError
        The file is missing, damaged, or not an acq-isl model.
    EngineError
        The network cannot be run.
    """
    from acq_isl.engines.onnx import OnnxEngine

    return OnnxEngine(model, threads=threads, sha256=sha256)


def describe(model: Path | str) -> ModelInfo:
    """What a model is, without running it; raises `ModelError` like `load_engine`."""
    from acq_isl.engines import model_file

    return model_file.describe(model)


__all__ = ["describe", "load_engine"]
