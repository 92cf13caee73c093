"""Scripts written for the first layout still run, and are told the new names."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import acq_isl
from acq_isl.moved import MOVED

EXTRAS = {"napari", "qtpy", "bioimageio", "nncf", "openvino", "torch", "tensorrt_rtx", "starlette", "uvicorn"}


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_is_the_new_module(old: str) -> None:
    try:
        new = import_module(MOVED[old])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in EXTRAS:
            raise
        pytest.skip(f"{error.name} is not installed")
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}"):
        assert import_module(old) is new
    assert new.__spec__ is not None and new.__spec__.name == MOVED[old], "the new module keeps its own name"


def test_a_script_of_the_first_layout_runs() -> None:
    script = (
        "from acq_isl.plan import Optics\n"
        "from acq_isl.sim.camera import CameraSettings\n"
        "import acq_isl\n"
        "assert acq_isl.plan.Optics is Optics\n"
        "import acq_isl.experiment.planning as planning\n"
        "assert planning.Optics is Optics\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_warning_points_at_the_line_that_imports() -> None:
    script = "import warnings\nwarnings.simplefilter('error')\nimport acq_isl.errors\nimport acq_isl.news\n"
    command = [sys.executable, "-c", script]
    answer = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == "DeprecationWarning: acq_isl.news is now acq_isl.events"


def test_what_was_never_there_is_still_an_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("acq_isl.nothing")
    with pytest.raises(AttributeError, match="nothing"):
        _ = acq_isl.nothing


def test_the_public_names_are_shown() -> None:
    assert set(acq_isl.__all__) <= set(dir(acq_isl))
