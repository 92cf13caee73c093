"""What the command line costs before it does anything, and what the package shows."""

from __future__ import annotations

import subprocess
import sys

import acq_isl


def test_help_loads_nothing_heavy() -> None:
    look = "import sys, acq_isl.cli.app; print(*{name.split('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout
    heavy = {"numpy", "scipy", "pydantic", "useq", "zmq", "onnx", "zarr", "napari", "starlette", "torch"}
    assert not heavy & set(found.split())


def test_the_package_shows_its_public_names() -> None:
    assert {name for name in dir(acq_isl) if not name.startswith("_")} == set(acq_isl.__all__)
