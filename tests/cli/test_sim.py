"""``acq-isl sim`` as somebody types it: own scripts, and a prompt."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from acq_isl.cli import app as cli
from acq_isl.cli import sim as cli_sim
from acq_isl.sim import SimulatedScope, SyntheticSpecimen

SCRIPT = """
import sys
import helper
from pycromanager import Acquisition, Core, multi_d_acquisition_events, start_headless, stop_headless

start_headless("C:/Micro-Manager", "my.cfg", python_backend=True)
core = Core()
with Acquisition(None, "m", show_display=False) as acquisition:
    acquisition.acquire(multi_d_acquisition_events(z_start=0, z_end=3.9, z_step=2))
images = len(acquisition.get_dataset().get_image_coordinates_list())
print("MINE", sys.argv[1:], __name__, helper.word, core.get_image_width(), images)
stop_headless()
"""


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["acq-isl", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """What somebody types at the prompt, and then the end of the input."""
    rest: Iterator[str] = iter(lines)

    def answer(prompt: str = "") -> str:
        try:
            return next(rest)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", answer)
    monkeypatch.setattr(cli_sim, "find_spec", lambda name: None)


def test_a_script_runs_unchanged_although_it_starts_its_own_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "helper.py").write_text("word = 'beside'", encoding="utf-8")
    path = list(sys.path)
    assert run(monkeypatch, "sim", "--camera", "48", "64", tmp_path / "mine.py", "--deep", "3") == 0
    told = capsys.readouterr()
    assert "MINE ['--deep', '3'] __main__ beside 64 3" in told.out
    assert "start_headless() does nothing here" in told.err
    assert sys.path == path


def test_a_prompt_with_everything_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(
        monkeypatch,
        "core.set_position(3)",
        "core.snap_image()",
        "print('SEEN', core.get_image().shape, scope.view().z_um, Core() is core)",
        "print('TRUTH', *scope.truth())",
    )
    assert run(monkeypatch, "sim", "--seed", "4", "--camera", "32", "48") == 0
    told = capsys.readouterr().out
    assert "synthetic neurons (seed 4): 48 x 32 pixels of 0.3 um" in told
    assert "Phase" in told
    assert "SEEN (32, 48) 3.0 True" in told
    assert "TRUTH" in told and "nuclei" in told


def test_exit_leaves_the_prompt_and_closes_the_microscope(monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "exit()")
    assert run(monkeypatch, "sim", "--camera", "32", "48") == 0
    typed(monkeypatch)
    assert run(monkeypatch, "sim", "--camera", "32", "48") == 0


def test_faults_can_be_practised(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    typed(monkeypatch, "core.set_config('Channel', 'DAPI')", "print('STILL HERE')")
    assert run(monkeypatch, "sim", "--camera", "32", "48", "--fault", "preset-fails:DAPI") == 0
    told = capsys.readouterr()
    assert "faults planted: preset-fails:name=DAPI" in told.out
    assert "did not answer" in told.err and "STILL HERE" in told.out


WRONG = {
    "no script": (("gone.py",), "there is no script gone.py"),
    "no recording": (("--specimen", "gone.ome.zarr"), "there is no recording at gone.ome.zarr"),
    "no such fault": (("--fault", "focus-drit:2"), "did you mean 'focus-drift'"),
}


@pytest.mark.parametrize("arguments, said", WRONG.values(), ids=WRONG)
def test_wrong_words_are_clear_errors(
    arguments: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, "sim", *arguments) == 1
    told = capsys.readouterr().err
    assert said in " ".join(told.split()) and "Traceback" not in told


def test_a_camera_of_no_size_is_a_wrong_option(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "sim", "--camera", "0", "128") == 2


def test_two_lines_in_a_notebook() -> None:
    scope = SimulatedScope(SyntheticSpecimen(seed=1)).open()
    scope.core.snap_image()
    assert scope.core.get_image().any()
    scope.close()
    scope.close()
