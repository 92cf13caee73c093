"""The command line: what it says, and with which exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from acq_isl.cli import app as cli

EXPERIMENT = """
name: plan
overview:
  grid_plan: {rows: 2, columns: 2}
  z_plan: {range: 18, step: 1.5}
  channels: [{config: Phase, exposure: 10}]
"""


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["acq-isl", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_a_dry_run_shows_the_plan_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(EXPERIMENT, encoding="utf-8")
    assert run(monkeypatch, "run", path, "--sim", "--dry-run", "--output", tmp_path / "runs") == 0
    told = capsys.readouterr().out
    assert "nothing was moved" in told and "overview: 52 slices" in told
    assert told.count("Phase") == 4
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changed", "to", "said"),
    [
        ("range: 18, step: 1.5", "range: 18, step: 0.3", "z step is 0.3 um"),
        ("range: 18, step: 1.5", "range: 6, step: 1.5", "has 5 planes over 6 um"),
        ("range: 18, step: 1.5", "absolute: [0, 1.5, 3, 4.5, 9, 10.5]", "planes are missing"),
        ("  z_plan: {range: 18, step: 1.5}\n", "", "has 1 plane"),
        ("overview:", "optics: {modality: DIC}\noverview:", "is DIC"),
    ],
)
def test_a_dry_run_refuses_what_the_engine_would_refuse(
    changed: str, to: str, said: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "plan.yaml"
    path.write_text(EXPERIMENT.replace(changed, to), encoding="utf-8")
    assert run(monkeypatch, "run", path, "--sim", "--dry-run") == 1
    assert said in " ".join(capsys.readouterr().err.split())


def test_info_is_what_a_microscopist_must_match(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "info", "demo") == 0
    told = capsys.readouterr().out
    for word in ("pixel size", "planes", "phase contrast", "nuclei (predicted", "trained on", "sha256"):
        assert word in told


def test_keys_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "keys", tmp_path / "keys") == 0
    assert len(list((tmp_path / "keys").iterdir())) == 4
    assert run(monkeypatch, "keys", tmp_path / "keys") == 1


def test_serving_beyond_this_computer_needs_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "serve", "--bind", "tcp://0.0.0.0:5599") == 1
    assert "keys" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("fly",), ("run",), ("run", "--sim"), ("demo", "--nonsense")])
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, *arguments) == 2


def test_a_thread_that_never_returns_does_not_keep_the_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, threading, typer\nfrom acq_isl.cli import app\n"
        "@app.cli.command()\n"
        "def hang():\n"
        "    threading.Thread(target=threading.Event().wait, name='a hook').start()\n"
        "    raise typer.Exit(3)\n"
        "app._PATIENCE_S = 0.2\n"
        "sys.argv = ['acq-isl', 'hang']\n"
        "app.main()\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 3
    assert "a hook did not end" in ended.stderr


def test_no_replay_replaces_the_page_of_another(tmp_path: Path) -> None:
    from acq_isl.cli.audit import free_page

    for name in ("replay.html", "replay_2.html", "replay_3.html"):
        assert free_page(tmp_path) == tmp_path / name
        (tmp_path / name).touch()
