"""The structure of docs/design.md, read from the imports."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"acq_isl": ROOT / "acq_isl", **{f"acq_isl.{n}": ROOT / n for n in ("engines", "hooks", "sim")}}


def sources() -> Iterator[tuple[str, str, Path]]:
    """Room, package prefix and path of every file of the product."""
    for prefix, folder in ROOMS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).parts
            room = prefix.rpartition(".")[2] if prefix != "acq_isl" else Path(parts[0]).stem
            yield room, prefix, path


FILES = [pytest.param(room, path, id=str(path.relative_to(ROOT))) for room, _, path in sources()]


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


@pytest.mark.parametrize("room, path", FILES)
def test_no_second_copy_of_a_class(room: str, path: Path) -> None:
    """``import engines`` would load a file twice under two names."""
    assert not [m for m, _ in imports(path) if m.split(".")[0] in {"engines", "hooks", "sim"}]


@pytest.mark.parametrize("room, path", FILES)
def test_files_and_functions_stay_readable(room: str, path: Path) -> None:
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
    listed = set(settings["tool"]["setuptools"]["packages"])
    found = set()
    for prefix, folder in ROOMS.items():
        for path in folder.rglob("__init__.py"):
            inner = ".".join(path.parent.relative_to(folder).parts)
            found.add(f"{prefix}.{inner}" if inner else prefix)
    assert found == listed


def test_signposts_lead_to_the_sibling_folders() -> None:
    for name in ("engines", "hooks", "sim"):
        assert (ROOT / "acq_isl" / f"{name}.pyi").read_text(encoding="utf-8") == f"from {name} import *\n"


def test_the_package_says_it_is_typed() -> None:
    assert (ROOT / "acq_isl" / "py.typed").is_file()
