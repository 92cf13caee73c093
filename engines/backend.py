"""What a back end is: a `Backend` names `Candidate` engines, and each engine predicts with a `Network`.

A package adds a back end with one class that has the members of `Backend` and one entry point of the group
``acq_isl.backends``; see docs/engines.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import psutil
from numpy.typing import NDArray

from acq_isl.engines.gate import Policy
from acq_isl.errors import AcqIslError, EngineError
from acq_isl.stack import Float32Image

if TYPE_CHECKING:
    from acq_isl.engines.model_file import ModelFile
    from acq_isl.engines.predictor import Predictor

MEAN, SPREAD, DISTANCE = "mean", "spread", "distance"
"""Names of a network's outputs."""


def default_threads() -> int:
    """Physical cores this process may use, less one that the acquisition keeps; at least 1."""
    physical = psutil.cpu_count(logical=False) or 1
    allowed = physical if sys.platform == "darwin" else len(psutil.Process().cpu_affinity())
    return max(min(physical, allowed) - 1, 1)


class Network(Protocol):
    """Runs one model on batches of tiles. Called from one thread at a time per stack."""

    @property
    def name(self) -> str:
        """Back end, device and precision, such as ``"onnxruntime cpu fp32"``."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """What `run` returns: ``mean``, ``spread``, and ``distance`` where the model has a gate."""

    def run(self, tiles: NDArray[np.uint8], inv_sd: Float32Image) -> tuple[Float32Image, ...]:
        """Infer.

        Parameters
        ----------
        tiles : (tile, z, h, w, 2) uint8
            Little-endian bytes of uint16 counts; h and w obey the manifest's tile rule.
        inv_sd : (tile,) float32
            1 / contrast of the whole stack each tile is from.

        Returns
        -------
        tuple of float32 arrays
            One for each of `outputs`: mean and spread, (tile, label, h, w), and distance, (tile, K, rows,
            columns), in windows of its own size.

        Raises
        ------
        EngineError
        """

    def close(self) -> None:
        """Free what the back end holds; running it afterwards is an `EngineError`."""


@runtime_checkable
class UsesCores(Protocol):
    """A `Network` that computes on the processor."""

    @property
    def threads(self) -> int:
        """Cores it computes on."""


@runtime_checkable
class CountsCopies(Protocol):
    """A `Network` that copies to and from a device."""

    @property
    def copies_ms(self) -> tuple[float, float]:
        """Milliseconds of all copies to the device and from it so far."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How engines are to be loaded."""

    threads: int | None = None
    """Cores an engine may use; `default_threads` if not given."""
    field_px: tuple[int, int] | None = None
    """Rows and columns of the camera's field, where known."""
    gate: Policy = "refuse"
    """What becomes of a stack that looks unlike the training set."""
    work: Literal["live", "bulk"] = "live"
    """Whether somebody waits for each prediction; only engines on other computers make a difference."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine that can be loaded: a back end in one precision."""

    name: str
    """Back end and precision, such as ``"openvino bf16"``; what ``--backend`` takes."""
    open: Callable[[], Predictor]
    """Loads it; raises EngineError or ModelError. Use `load`, which turns other errors into these."""
    automatic: bool = True
    """Measured, and so perhaps used, with ``--backend auto``; others are used when named only."""
    refused: str = ""
    """Why it is not to be used although it could be; only benchmarks run it."""
    runs_on: str = ""
    """Version and device. The engines are measured again when it changes."""
    back: Callable[[], bool] | None = None
    """Tells within seconds whether it can be used again after it failed; None: it is not tried again."""

    def load(self) -> Predictor:
        """Make the engine ready.

        Raises
        ------
        EngineError, ModelError
        """
        try:
            return self.open()
        except AcqIslError:
            raise
        except Exception as error:
            raise EngineError(
                f"{self.name} cannot be loaded: {type(error).__name__}: {error}",
                fix="update the package of this back end, or report the error to its maker",
            ) from error


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A back end that cannot be used here: why, and what helps, for people."""

    name: str
    why: str
    fix: str
    broken: bool = False
    """Somebody installed it, so it should work."""
    quiet: bool = False
    """Told only to who names it: nobody set it up."""


class Backend(Protocol):
    """A way to run models. An entry point of the group ``acq_isl.backends`` names its class."""

    @property
    def name(self) -> str:
        """First word of its candidates' names, and the name of its entry point."""

    def unavailable(self) -> Unavailable | None:
        """Why it cannot be used on this machine; None if it can. An EngineError is a reason, too."""

    def candidates(self, model: ModelFile, options: LoadOptions) -> Iterable[Candidate]:
        """The engines it has for a model, best first; nothing is loaded yet. Asked only where available."""
