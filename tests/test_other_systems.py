"""The main job on a system without what only Linux or POSIX has, as far as Linux can play that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from acq_isl.experiment.experiment import Experiment
from acq_isl.storage.decision_log import verify

POORER = Path(__file__).parent / "doubles" / "without_posix"
ONE_FIELD = """
name: poorer
microscope: {kind: simulated, specimen: {kind: synthetic, seed: 1}, camera_px: [192, 192]}
optics: {modality: phase contrast, polarity: dark}
overview:
  z_plan: {range: 18, step: 1.5}
  channels: [{config: Phase, exposure: 5}]
engine: {kind: local, threads: 1}
choose: {k: 1, measurement: {kind: mean_intensity, label: dendrites}}
revisit: {channels: [{config: DAPI, exposure: 20}]}
"""


def run_poorer(*words: str, timeout_s: float = 110) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    environment = {**os.environ, "PYTHONPATH": str(POORER)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def test_the_main_job_needs_nothing_that_only_linux_has(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(ONE_FIELD, encoding="utf-8")
    done = run_poorer("-m", "acq_isl", "run", str(path), "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("*_poorer")
    assert list(folder.glob("predictions.ome.zarr/*/*/p00*")), done.stdout
    assert verify(folder / "decisions.jsonl").closed
    assert Experiment.from_yaml(folder / "experiment.yaml").name == "poorer"


@pytest.mark.parametrize("what", ["os.fork", "os.memfd_create", "signal.SIGHUP", "fcntl"])
def test_the_poorer_system_is_one(what: str) -> None:
    """Else the test above would show nothing."""
    module, _, name = what.partition(".")
    code = f"import {module}\n" + (f"{module}.{name}" if name else "")
    program = f"exec(compile({code!r}, 'asker', 'exec'), {{'__name__': 'acq_isl.asker'}})"
    done = run_poorer("-c", program)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith(
        ("AttributeError", "ModuleNotFoundError")
    ), done.stderr
