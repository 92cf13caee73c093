"""The pytest plug-in as another lab meets it: in a test run of its own, in a process of its own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Other plug-ins that this environment happens to have, and that take their time.
OTHERS = ("napari", "npe2", "napari-plugin-engine", "hypothesispytest", "anyio", "cacheprovider")


def run(folder: Path, text: str, *arguments: str) -> str:
    """What pytest says of some tests where nothing of ours is configured."""
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", encoding="utf-8")
    (folder / "test_theirs.py").write_text(text, encoding="utf-8")
    without = [word for name in OTHERS for word in ("-p", f"no:{name}")]
    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", *without, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        check=False,
    )
    return answer.stdout + answer.stderr


def test_it_is_there_as_soon_as_acq_isl_is_installed() -> None:
    # Of all copies on the path: a checkout may hold what an older build left behind.
    found = {
        point.value
        for copy in importlib.metadata.distributions(name="acq-isl")
        for point in copy.entry_points
        if point.group == "pytest11"
    }
    assert found == {"acq_isl.pytest_plugin"}, "install acq-isl again: pip install -e ."


def test_it_costs_other_test_runs_next_to_nothing() -> None:
    """Nothing is imported but itself and the package's door."""
    look = (
        "import sys, pytest; before = set(sys.modules); import acq_isl.pytest_plugin; "
        "print(*sorted(set(sys.modules) - before))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True
    )
    assert answer.stdout.split() == ["acq_isl", "acq_isl.moved", "acq_isl.pytest_plugin"]


def test_the_example_of_the_documentation_runs(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "test_my_acquisition.py").read_text(encoding="utf-8")
    said = run(tmp_path, text)
    assert "5 passed" in said, said


THEIRS = """
import json, os, threading
from pathlib import Path
import numpy as np
import psutil
import pytest
from acq_isl.experiment.faults import PresetFails
from acq_isl.sim import CameraSettings, ScopeSettings

class Grey:
    channels = ("Phase", "DAPI")
    def render(self, view):
        return np.full(view.shape, 0.5, np.float32)
    def truth(self, view):
        return {}

@pytest.fixture
def specimen():
    return Grey()

@pytest.fixture
def scope_settings():
    return ScopeSettings(shape=(32, 48), camera=CameraSettings.noiseless(), buffer_size_mb=4)

HELD = []

@pytest.fixture(autouse=True)
def counted():
    process = psutil.Process()
    handles = process.num_handles() if os.name == "nt" else process.num_fds()
    HELD.append([threading.active_count(), handles])

@pytest.mark.parametrize("number", range(20))
def test_each_has_its_own(simulated_scope, specimen, number):
    assert simulated_scope.specimen is specimen
    assert simulated_scope.core.get_position() == 0.0
    simulated_scope.core.set_position(number + 1.0)
    simulated_scope.core.snap_image()
    image = simulated_scope.core.get_image()
    assert image.shape == (32, 48) and image.mean() == pytest.approx(0.5 * 65535, rel=1e-3)

@pytest.mark.parametrize("faults", [[PresetFails("DAPI", times=1)]])
def test_with_a_fault(simulated_scope, faults):
    with pytest.raises(RuntimeError):
        simulated_scope.core.set_config("Channel", "DAPI")
    simulated_scope.core.set_config("Channel", "DAPI")
    simulated_scope.core.set_position(7.0)

def test_that_fails(simulated_scope):
    assert simulated_scope.core.get_position() == 7.0

def test_that_goes_on(simulated_scope):
    assert simulated_scope.core.get_position() == 0.0

def test_nothing_is_left():
    Path("held.json").write_text(json.dumps(HELD))
"""


@pytest.mark.slow
def test_twenty_in_a_row_leave_nothing_behind(tmp_path: Path) -> None:
    """Fixtures overridden, one with a fault, one that fails: each test has a microscope of its own."""
    said = run(tmp_path, THEIRS)
    assert "1 failed, 23 passed" in said and "test_that_fails" in said, said
    held = json.loads((tmp_path / "held.json").read_text())
    # What libraries keep for ever is there after the first ones; from then on nothing may be added.
    for what, counts in zip(("threads", "handles"), zip(*held, strict=True), strict=True):
        assert counts[-1] <= counts[2], f"{what}: {counts}"


def test_the_fixtures_are_listed_with_their_words(tmp_path: Path) -> None:
    said = run(tmp_path, "", "--fixtures")
    for name in ("simulated_scope", "specimen", "scope_settings", "faults"):
        assert re.search(rf"^{name} -- .*pytest_plugin.py", said, re.MULTILINE), said


@pytest.mark.parametrize("name", ["simulated_scope", "specimen", "faults"])
def test_our_own_run_has_them_too(name: str, request: pytest.FixtureRequest) -> None:
    assert request.getfixturevalue(name) is not None
