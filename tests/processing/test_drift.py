"""How far a picture has moved."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from acq_isl.processing.drift import find_drift


def cells(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 1000 + 4000 * ndimage.gaussian_filter(rng.standard_normal((200, 220)), 2)


@pytest.mark.parametrize("moved", [(0.0, 0.0), (3.0, -7.0), (-12.5, 4.25), (30.0, 30.0)])
def test_a_known_shift_comes_back(moved: tuple[float, float]) -> None:
    before, after = cells(), ndimage.shift(cells(), moved, mode="reflect", order=3)
    noise = np.random.default_rng(1).normal(0, 50, before.shape)
    found = find_drift(before[20:180, 20:180], (after + noise)[20:180, 20:180])
    assert found is not None and np.allclose(found, moved, atol=0.5)


@pytest.mark.parametrize("after", [cells(1)[:160, :160], np.zeros((160, 160)), cells()[:150, :160]])
def test_what_has_nothing_in_common_has_not_drifted(after: np.ndarray) -> None:
    assert find_drift(cells()[:160, :160], after) is None
