"""Nothing that the program reads can run code: no pickle, in any of its disguises."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = [ROOT / name for name in ("acq_isl", "engines", "hooks", "sim", "benchmarks", "examples")]
FILES = sorted(path for room in ROOMS for path in room.rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"torch.load", "torch.save", "torch.jit.load", "torch.package", "yaml.load", "yaml.unsafe_load",
         "yaml.full_load", "pandas.read_pickle", "numpy.core.multiarray._reconstruct"}  # fmt: skip
BUILT_IN = {"eval", "exec", "compile", "__import__"}


def dotted(node: ast.expr) -> str:
    """``torch.load`` of an attribute, empty for anything that is not a name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := dotted(node.value)):
        return f"{inner}.{node.attr}"
    return ""


def found(tree: ast.AST) -> Iterator[str]:
    """What in a file could run code that was read, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            yield from (f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if name in CALLS or name in BUILT_IN:
                yield f"{node.lineno}: {name}"
            for keyword in node.keywords:
                allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value in (False, None)
                if keyword.arg == "allow_pickle" and not allowed:
                    yield f"{node.lineno}: allow_pickle"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_pickle(path: Path) -> None:
    assert not list(found(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from dill import loads",
        "import torch\ntorch.load('x')",
        "np.load('x', allow_pickle=True)",
        "np.load('x', allow_pickle=sure)",
        "yaml.load(text)",
        "eval('1')",
    ],
)
def test_the_search_finds_what_it_is_for(text: str) -> None:
    assert len(list(found(ast.parse(text)))) == 1


def test_the_search_leaves_harmless_things_alone() -> None:
    text = "import re\nre.compile('a')\nyaml.safe_load(t)\nnp.load('x', allow_pickle=False)\nnetwork.eval()"
    assert not list(found(ast.parse(text)))
