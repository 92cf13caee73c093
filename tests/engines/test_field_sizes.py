"""Fields of every size through the shipped model on a processor: as in one piece, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

LARGE = Path(__file__).resolve().parent.parent / "doubles" / "large_field.py"
MOST_MIB = 1000  # two batches of tiles, and what the network needs for one; whatever the field


def predicted(rows, columns, timeout_s):
    command = [sys.executable, str(LARGE), str(rows), str(columns)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(found, shape, least_windows):
    assert tuple(found["shape"]) == (4, *shape) and found["finite"]
    assert len(found["compared"]) >= 2 * least_windows  # of mean and spread
    for difference, contrast in found["compared"]:
        assert difference < 1e-5
        assert contrast > 0.05, "a window with something in it"
    assert found["beyond_mib"] < MOST_MIB


LARGER = pytest.param((1000, 1537), 2, marks=pytest.mark.slow)


@pytest.mark.parametrize(("shape", "least_windows"), [((256, 256), 1), LARGER], ids=str)
def test_fields_that_are_multiples_of_nothing(shape, least_windows):
    check(predicted(*shape, timeout_s=100), shape, least_windows)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_field_of_4096_px():
    """About 30 s of one processor."""
    check(predicted(4096, 4096, timeout_s=1100), (4096, 4096), 5)
