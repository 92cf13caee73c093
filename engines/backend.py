"""What a back end is to the predictor around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import psutil
from numpy.typing import NDArray

from acq_isl.stack import Float32Image

MEAN, SPREAD, DISTANCE = "mean", "spread", "distance"
"""Names of what a network gives."""


def default_threads() -> int:
    """Physical cores this process may use, less one that the acquisition keeps; at least 1."""
    physical = psutil.cpu_count(logical=False) or 1
    process = psutil.Process()
    allowed = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else physical
    return max(min(physical, allowed) - 1, 1)


@dataclass(slots=True)
class Shares:
    """Where the milliseconds of one prediction went.

    Parameters
    ----------
    prepare_ms : float
        Content checked, contrast measured, resampled where needed.
    tile_ms : float
        Tiles cut and blended.
    network_ms : float
        The back end, its copies included.
    upload_ms, download_ms : float
        Copies to and from a GPU, as far as the back end counts them.
    finish_ms : float
        Numbers checked, brought back to the stack's grid.
    """

    prepare_ms: float = 0.0
    tile_ms: float = 0.0
    network_ms: float = 0.0
    upload_ms: float = 0.0
    download_ms: float = 0.0
    finish_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        return self.prepare_ms + self.tile_ms + self.network_ms + self.finish_ms


class Network(Protocol):
    """A back end: runs one model on batches of tiles. Called from one thread at a time per stack."""

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
