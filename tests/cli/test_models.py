"""The command that imports the published checkpoint: what it makes, and how it fails."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from acq_isl.cli import app as cli
from acq_isl.engines import describe

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "data" / "isl_golden"
pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden checkpoint at {GOLDEN}")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["acq-isl", "import-reference", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_chosen_heads_become_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    heads = "DAPI_CONFOCAL, MAP2_CONFOCAL"
    assert run(monkeypatch, GOLDEN, "-o", out, "--heads", heads, "--form", "single-phase") == 0
    manifest = describe(out).manifest
    assert manifest.label_names == ("nuclei", "dendrites")
    assert (manifest.statistic, manifest.planes, manifest.pixel_size_um) == ("median", 13, 0.3)
    assert manifest.name == "isl-reference-single-phase"
    assert "1.5 um is a guess" in capsys.readouterr().out


def test_other_optics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    more = ("--light", "DIC", "--z-step-um", 0.5, "--statistic", "mean", "--heads", "CELLMASK_CONFOCAL")
    assert run(monkeypatch, GOLDEN, "-o", out, *more) == 0
    manifest = describe(out).manifest
    assert (manifest.modality, manifest.planes, manifest.pixel_size_um) == ("DIC", 26, 0.4)
    assert manifest.z_step_um == pytest.approx(0.5)
    assert (manifest.statistic, manifest.polarity) == ("mean", "unknown")
    assert "guess" not in capsys.readouterr().out


def spoilt(folder: Path, case: str) -> Path:
    shutil.copytree(GOLDEN, folder, copy_function=shutil.copyfile)
    data = folder / "model.ckpt.data-00000-of-00001"
    if case == "truncated":
        data.write_bytes(data.read_bytes()[:100_000])
    elif case == "corrupt":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif case == "foreign":
        (folder / "model.ckpt.index").write_bytes(b"not an index" * 100)
    return folder


@pytest.mark.parametrize(
    ("case", "said"),
    [("truncated", "cut short"), ("corrupt", "checksum"), ("foreign", "damaged, or is not part")],
)
def test_a_checkpoint_that_cannot_be_used_is_a_sentence(
    case: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.onnx"
    assert run(monkeypatch, spoilt(tmp_path / "checkpoint", case), "-o", out) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert said in told and "to fix:" in told
    assert not out.exists()
