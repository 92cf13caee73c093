"""A place for a batch of tiles on the GPU, from its page-locked memory to its results."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.trt_lane import Lane
from acq_isl.stack import Float32Image

if TYPE_CHECKING:
    from acq_isl.engines.tensorrt.network import TensorRTNetwork


class GpuPending:
    """A batch in flight. Call `result` once; until then what went up must stay as it is."""

    def __init__(self, network: TensorRTNetwork, lane: Lane, tiles: NDArray[np.uint8]) -> None:
        self._network, self._lane, self._tiles = network, lane, tiles
        self.ended_s = 0.0

    def result(self) -> tuple[Float32Image, ...]:
        """The network's `TensorRTNetwork.outputs`, float32 each; raises `EngineError`."""
        answers = self._network.finish(self._lane)
        self.ended_s = time.perf_counter()
        return answers


class GpuSlot:
    """A lane that is the caller's until it was dropped, or started and its result fetched."""

    def __init__(self, network: TensorRTNetwork, lane: Lane) -> None:
        self._network, self._lane = network, lane

    @property
    def tiles(self) -> NDArray[np.uint8]:
        """Page-locked memory, (tile, z, h, w, 2) uint8: what is written here goes up as it is."""
        memory: NDArray[np.uint8] = self._lane.host["stack"]
        return memory

    def start(self, inv_sd: Float32Image, source: NDArray[np.uint8] | None = None) -> GpuPending:
        """Queue what was written to `tiles`, or ``source``: registered memory of the same shape."""
        tiles = self.tiles if source is None else source
        self._network.start(self._lane, tiles, inv_sd)
        return GpuPending(self._network, self._lane, tiles)

    def drop(self) -> None:
        self._network.give_back(self._lane)
