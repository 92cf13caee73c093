"""The example package of CONTRIBUTING.md, installed by pip and used: one of each that a package can add."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[1] / "examples" / "plugin"

USE = """
import json, sys
from pathlib import Path
import numpy as np
import acq_isl
from acq_isl.engines import load_engine
from acq_isl.readers.read import read_data_set
from acq_isl.rules.plugins import broken_plugins
from acq_isl_example.view import EventTable

folder = Path(sys.argv[1])
pixels = np.random.default_rng(0).integers(0, 60000, (3, 8, 9)).astype(np.uint16)
np.savez(folder / "stack.npz", pixels=pixels, z_um=[3.0, 0.0, 1.5], pixel_size_um=0.5)
channel = read_data_set(folder / "stack.npz").field().channel()
same = bool((channel.read() == pixels[[1, 2, 0]]).all())

with load_engine("demo", backend="onnx_reference") as engine:
    name = engine.name

text = (Path(sys.argv[2]) / "experiment.yaml").read_text()
experiment = acq_isl.Experiment.from_text(text).model_copy(update={"output": folder / "runs"})
result = acq_isl.run(experiment, views=[EventTable(folder / "events.csv")])
json.dump({
    "planes by height": same, "lengths": channel.lengths_um(), "engine": name,
    "chosen": result.chosen, "decisions": [d.get("done") for d in result.record.decisions],
    "reasons": [f.reason for f in result.record.fields], "broken": [str(p) for p in broken_plugins()],
    "events": (folder / "events.csv").read_text().split(),
}, sys.stdout, default=str)
"""


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("plugin")
    source, site = folder / "source", folder / "site"
    shutil.copytree(PLUGIN, source)  # pip builds in the folder itself
    here = ["--no-build-isolation"] if find_spec("setuptools") else []
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, *here, "--target", str(site), str(source)], check=True, timeout=100)
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    answer = subprocess.run(
        [sys.executable, "-c", USE, str(folder), str(source)],
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert answer.returncode == 0, answer.stderr
    found: dict[str, object] = json.loads(answer.stdout)
    return found


def test_all_of_it_is_found(used: dict[str, object]) -> None:
    assert used["broken"] == []


def test_the_back_end_is_taken_by_its_name(used: dict[str, object]) -> None:
    assert used["engine"] == "onnx_reference cpu fp32"


def test_the_reader_gives_planes_by_height(used: dict[str, object]) -> None:
    assert used["planes by height"] is True
    assert used["lengths"] == [0.5, [0.0, 1.5, 3.0]]


def test_fields_are_chosen_by_the_segmenter(used: dict[str, object]) -> None:
    assert len(used["chosen"]) == 1
    assert any("objects" in reason for reason in used["reasons"])


def test_the_measurement_fires_and_the_action_images(used: dict[str, object]) -> None:
    assert "done" in used["decisions"]


def test_the_view_hears_of_the_whole_run(used: dict[str, object]) -> None:
    kinds = [line.partition(",")[2] for line in used["events"]]
    assert kinds[0] == "event" and "RunStarted" in kinds and kinds[-1] == "RunEnded"
