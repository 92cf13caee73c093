"""What several fields together tell of a stain before anything is learned from them."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from acq_isl.errors import PairRefused
from acq_isl.training.data.field_checks import check_fields
from acq_isl.training.data.pairs import Recording

PIXEL_UM, SIDE_PX, COUNT = 0.5, 160, 5


def cells(seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    spots = ndimage.gaussian_filter((rng.random((SIDE_PX, SIDE_PX)) > 0.998).astype(float), 3)
    return spots / spots.max()


def recording(
    seed: int, brightness: float = 1.0, shift: tuple[int, int] = (0, 0), own: bool = True
) -> Recording:
    """Planes that differ where cells are, and a stain that shows them; ``own`` False: shows others."""
    rng = np.random.default_rng(seed + 1000)
    there = cells(seed)
    stack = 20000 + 6000 * there * np.array([-1, 0, 1])[:, None, None] + rng.normal(0, 200, (3, *there.shape))
    shown = np.roll(there if own else cells(seed + 50), shift, (0, 1))
    stain = 500 + 8000 * brightness * shown + rng.normal(0, 30, there.shape)
    counts = np.clip(stain, 0, 65535).astype(np.uint16)
    return Recording(stack.astype(np.uint16), {"nuclei": counts}, PIXEL_UM, (0.0, 1.5, 3.0))


def fields(make: Callable[[int], Recording], count: int = COUNT) -> list[tuple[str, Recording]]:
    return [(f"field {seed}", make(seed)) for seed in range(count)]


def test_good_fields_give_no_remark() -> None:
    assert check_fields(fields(recording)) == ()


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (fields(recording, 3), "too few fields"),
        (
            fields(lambda seed: recording(seed, brightness=float(seed > 2))),
            "nothing in field 0, field 1, field 2",
        ),
        (fields(lambda seed: recording(seed, brightness=0.6**seed)), "fades from field to field"),
        (fields(lambda seed: recording(seed, shift=(0, 12))), "not registered.*6.0 um in columns"),
    ],
    ids=["too few", "no cells", "bleaches", "unregistered"],
)
def test_what_is_wrong_is_named(made: list[tuple[str, Recording]], says: str) -> None:
    with pytest.raises(PairRefused, match=says):
        check_fields(made)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (
            fields(lambda seed: recording(seed, brightness=float(seed != 2)), 6),
            "nothing is stained in field 2",
        ),
        (fields(lambda seed: recording(seed, brightness=0.86**seed)), "5.% are left"),
        (fields(lambda seed: recording(seed, shift=(3, 0))), "shifted .* by 1.5 um"),
        (fields(lambda seed: recording(seed, own=False)), "resembles nothing"),
    ],
    ids=["an empty one", "fades", "shifted a little", "of other fields"],
)
def test_what_is_odd_is_told(made: list[tuple[str, Recording]], says: str) -> None:
    (remark,) = check_fields(made)
    assert re.search(says, remark), remark
