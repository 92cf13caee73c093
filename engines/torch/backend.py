"""PyTorch on a GPU among the installed back ends; torch is imported only to predict."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from acq_isl.engines.backend import Candidate, LoadOptions, Unavailable
from acq_isl.engines.graph_tags import read_tags
from acq_isl.engines.model_file import ModelFile
from acq_isl.engines.predictor import Predictor

if TYPE_CHECKING:
    from acq_isl.engines.torch.network import Precision

_CUDA = "install torch for CUDA: https://pytorch.org/get-started"
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class TorchBackend:
    """So that no card is idle where TensorRT is not installed, or does not know the card."""

    name = "torch"

    def unavailable(self) -> Unavailable | None:
        if importlib.util.find_spec("torch") is None:
            return Unavailable(self.name, "not installed", f'pip install "acq-isl[train]"; {_CUDA}')
        version = importlib.metadata.version("torch")
        if "+cpu" in version or sys.platform == "darwin":
            return Unavailable(self.name, f"torch {version} is built for the processor only", _CUDA)
        if "+rocm" not in version and not _has_driver():
            return Unavailable(
                self.name, "no NVIDIA driver was found", "with an NVIDIA GPU: install its driver"
            )
        return None

    def candidates(self, model: ModelFile, options: LoadOptions) -> Iterator[Candidate]:
        runs_on = f"torch {importlib.metadata.version('torch')}"
        tagged = read_tags(model.content) is not None  # else nothing says what may be fp16
        if tagged:
            yield Candidate("torch fp16", partial(_load, model, "fp16", options), runs_on=runs_on)
        yield Candidate("torch fp32", partial(_load, model, "fp32", options), not tagged, runs_on=runs_on)


def _load(model: ModelFile, precision: Precision, options: LoadOptions) -> Predictor:
    from acq_isl.engines.torch.network import TorchNetwork

    return Predictor(model.info, TorchNetwork(model, precision), gate=options.gate)


def _has_driver() -> bool:
    """Asked of the system, since importing torch takes seconds."""
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return False
    return True
