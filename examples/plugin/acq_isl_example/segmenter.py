"""A segmenter: bright pixels that touch are one object."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import ndimage

from acq_isl.rules import Segmenter


class Touching(Segmenter):
    """Connected pixels above a threshold, of at least a given area."""

    kind: Literal["touching"] = "touching"
    above: float = 0.3
    least_um2: float = 20.0

    def segment(self, image: np.ndarray, pixel_size_um: float) -> np.ndarray:
        found, count = ndimage.label(image > self.above)
        area_um2 = ndimage.sum_labels(np.ones_like(image), found, range(1, count + 1)) * pixel_size_um**2
        large = np.flatnonzero(area_um2 >= self.least_um2) + 1
        numbers = np.zeros(count + 1, np.int32)
        numbers[large] = np.arange(1, len(large) + 1)
        return numbers[found]
