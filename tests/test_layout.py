"""The structure of docs/design.md: contracts on imports (pyproject.toml), and limits for readable files."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import rooms

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"acq_isl": ROOT / "acq_isl", **{f"acq_isl.{n}": ROOT / n for n in ("engines", "hooks", "sim")}}


FILES = [pytest.param(path, id=str(path.relative_to(ROOT))) for path in rooms.sources()]
# Who imports by a string at run time, and why; everybody else writes an import, which the contracts see.
BY_STRING = {
    "acq_isl/__init__.py": "the public names, resolved on first use, and old names",
    "acq_isl/moved.py": "old names",
    "acq_isl/cli/sim.py": "IPython, if it is there",
    "hooks/user_calls.py": "the user's own functions",
}
LOADERS = {"import_module", "__import__", "spec_from_file_location", "run_path"}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide the layer"
            yield node.module or "", node.lineno
            if node.module == "acq_isl":
                for name in node.names:
                    yield f"acq_isl.{name.name}", node.lineno


def test_contracts_on_imports_are_kept(tmp_path: Path) -> None:
    """Read from a copy laid out as installed: in a checkout, three folders lie beside the package."""
    rooms.lay_out(tmp_path)
    script = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    answer = subprocess.run(
        [sys.executable, "-c", script, "--no-cache", "--no-logo", str(ROOT / "pyproject.toml")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr


@pytest.mark.parametrize("path", FILES)
def test_modules_are_not_imported_by_strings(path: Path) -> None:
    if str(path.relative_to(ROOT).as_posix()) in BY_STRING:
        return
    calls = [node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    names = {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}
    assert not names & LOADERS, "write an import, so that the contracts see it"


@pytest.mark.parametrize("path", FILES)
def test_no_second_copy_of_a_class(path: Path) -> None:
    """``import engines`` would load a file twice under two names."""
    assert not [m for m, _ in imports(path) if m.split(".")[0] in {"engines", "hooks", "sim"}]


@pytest.mark.parametrize("path", FILES)
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 500, f"{path.name} is too long"
    long = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            start = first.end_lineno if documented else node.lineno
            lines = (node.end_lineno or 0) - (start or 0)
            if lines > 40:
                long.append(f"{node.name}: {lines} lines")
    assert not long


def test_every_folder_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {"acq_isl": ROOT / "acq_isl", **{f"acq_isl.{n}": ROOT / n for n in rooms.SIBLINGS}}
    found = {
        ".".join([prefix, *path.parent.relative_to(folder).parts])
        for prefix, folder in folders.items()
        for path in folder.rglob("__init__.py")
    }
    assert found == set(settings["tool"]["setuptools"]["packages"])


def test_the_top_of_the_package_stays_small() -> None:
    assert len(list((ROOT / "acq_isl").glob("*.py"))) <= 16


def test_tests_stand_in_a_folder_named_as_their_room() -> None:
    packages = {p.parent.name for p in rooms.package_files()}
    folders = {p.parent.name for p in (ROOT / "tests").glob("*/test_*.py")}
    assert folders <= packages | set(rooms.SIBLINGS)


def test_signposts_lead_to_the_sibling_folders() -> None:
    for name in ("engines", "hooks", "sim"):
        assert (ROOT / "acq_isl" / f"{name}.pyi").read_text(encoding="utf-8") == f"from {name} import *\n"


def test_the_package_says_it_is_typed() -> None:
    assert (ROOT / "acq_isl" / "py.typed").is_file()
