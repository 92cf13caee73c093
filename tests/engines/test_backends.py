"""Back ends are a plug-in point: another package adds one with a class and an entry point."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

from acq_isl.cli import app as cli
from acq_isl.engines import load_engine, not_used, selection
from acq_isl.engines.backends import GROUP, find_engines
from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.errors import EngineError
from acq_isl.experiment.experiment import SimulatedMicroscope
from acq_isl.session.doctor import examine
from doubles import tiny_model as tiny

# The example that authors copy, but measured with the others: it says that it is too slow for that.
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "plugin" / "acq_isl_example" / "backend.py"
PLUGIN = EXAMPLE.read_text("utf-8").replace("automatic=False, ", "")
ENTRY = f"[{GROUP}]\nonnx_reference = onnx_reference:OnnxReferenceBackend\n"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.write(tmp_path)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package into this environment as pip does."""
    site = tmp_path / "site"

    def put(source: str) -> None:
        metadata = site / "onnx_reference-1.0.dist-info"
        metadata.mkdir(parents=True)
        (site / "onnx_reference.py").write_text(source, "utf-8")
        (metadata / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: onnx_reference\nVersion: 1.0\n", "utf-8"
        )
        (metadata / "entry_points.txt").write_text(ENTRY, "utf-8")
        monkeypatch.syspath_prepend(str(site))

    monkeypatch.setenv("ACQ_ISL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(selection, "FIELD_PX", 64)
    monkeypatch.setattr(selection, "_ROUNDS", 1)
    yield put
    sys.modules.pop("onnx_reference", None)


def test_an_installed_back_end_predicts_when_named(install, model):
    install(PLUGIN)
    stack = tiny.stack()
    with load_engine(model, backend="onnx_reference") as engine, OnnxEngine(model, threads=1) as reference:
        assert engine.name == "onnx_reference cpu fp32"
        np.testing.assert_allclose(engine.predict(stack).mean, reference.predict(stack).mean, atol=1e-4)


def test_an_installed_back_end_is_measured_with_the_others(install, model):
    install(PLUGIN)
    with load_engine(model, threads=1) as engine:
        assert "onnx_reference fp32" in engine.why and "onnxruntime fp32" in engine.why


def test_an_installed_back_end_is_seen_by_bench(install, model, monkeypatch, capsys):
    install(PLUGIN)
    words = ["acq-isl", "bench", str(model), "--side", "64", "--rounds", "1", "--json"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code and '"backend": "onnx_reference fp32"' in capsys.readouterr().out


BROKEN = {
    "no module": ("import a_module_that_is_not_there", "ModuleNotFoundError: No module named 'a_module"),
    "no class": ("", "AttributeError: .*OnnxReferenceBackend"),
    "no such member": ("class OnnxReferenceBackend: pass", "AttributeError: .*unavailable"),
    "an error of its own": (
        PLUGIN.replace("return None", 'raise RuntimeError("no licence")'),
        "RuntimeError: no licence",
    ),
    "an error that says its fix": (
        PLUGIN.replace("return None", 'raise EngineError("no licence", fix="buy one")'),
        "^no licence$",
    ),
}


@pytest.mark.parametrize(("source", "why"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_back_end_is_reported_and_left_out(install, model, tmp_path, source, why):
    install(source)
    (found,) = [item for item in not_used(model) if item.name == "onnx_reference"]
    assert found.broken and found.fix and re.search(why, found.why)
    (row,) = [
        row for row in examine(SimulatedMicroscope(), str(model), tmp_path) if row.part == "onnx_reference"
    ]
    assert row.state == "warning" and row.fix
    with pytest.raises(EngineError, match="no engine 'onnx_reference'"):
        load_engine(model, backend="onnx_reference")


def test_a_back_end_that_cannot_load_is_passed_over(install, model):
    install(
        PLUGIN.replace("return Predictor", 'raise RuntimeError("it broke")\n            return Predictor')
    )
    with load_engine(model, threads=1) as engine:
        assert "onnx_reference fp32 cannot be loaded: RuntimeError: it broke" in engine.why
    with pytest.raises(EngineError, match="onnx_reference fp32 cannot be loaded: RuntimeError: it broke"):
        load_engine(model, backend="onnx_reference")


def test_our_own_back_ends_are_registered_in_the_same_way():
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    ours = settings["project"]["entry-points"][GROUP]
    assert set(ours) == {"fleet", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "torch"}
    for entry in entry_points(group=GROUP):
        if entry.name in ours:
            assert entry.value == ours[entry.name] and entry.load()().name == entry.name


def test_the_reference_is_there_without_any_entry_point(model, monkeypatch):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entry_points(group="nothing"))
    (candidate,) = find_engines(read_model(model)).candidates
    assert candidate.name == "onnxruntime fp32"
