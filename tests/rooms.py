"""The rooms of the house and the imports between them: ``python tests/rooms.py`` prints them in numbers.

A room is a folder of modules; a module at the top of ``acq_isl`` is a room of its own. grimp reads imports,
those inside functions too, from a copy laid out as installed (a checkout has three folders beside it).
"""

from __future__ import annotations

import ast
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

import grimp
import networkx

ROOT = Path(__file__).resolve().parents[1]
SIBLINGS = ("engines", "hooks", "sim")


def lay_out(folder: Path) -> Path:
    """Copy the sources into ``folder`` as an installation has them; the package's folder."""
    package = folder / "acq_isl"
    only_python = shutil.ignore_patterns("__pycache__", "*.onnx", "static", "*.pyi")
    shutil.copytree(ROOT / "acq_isl", package, ignore=only_python)
    for name in SIBLINGS:
        shutil.copytree(ROOT / name, package / name, ignore=only_python)
    return package


def sources() -> Iterator[Path]:
    for folder in ("acq_isl", *SIBLINGS):
        yield from sorted((ROOT / folder).rglob("*.py"))


def package_files() -> Iterator[Path]:
    return (path for path in sources() if path.name == "__init__.py")


def room(module: str, packages: set[str]) -> str:
    """The folder of a module; what lies at the top of ``acq_isl`` is its own room."""
    if module in packages:
        return module
    parent = module.rpartition(".")[0]
    return module if parent == "acq_isl" else parent


def arrows(graph: grimp.ImportGraph) -> Counter[tuple[str, str]]:
    """How many imports go from one room to another."""
    packages = {m for m in graph.modules if graph.find_children(m)}
    found: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            ends = room(module, packages), room(imported, packages)
            if ends[0] != ends[1]:
                found[ends] += 1
    return found


def function_lengths() -> list[int]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for path in sources() for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    return [(n.end_lineno or 0) - n.lineno + 1 for n in nodes if isinstance(n, functions)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        sys.path.insert(0, folder)
        graph = grimp.build_graph("acq_isl", cache_dir=None)
    between = arrows(graph)
    circles = [c for c in networkx.strongly_connected_components(networkx.DiGraph(between.keys())) if c]
    lines = {path: path.read_text("utf-8").count("\n") for path in sources()}
    longest = max(lines, key=lambda path: lines[path])
    lengths = function_lengths()
    rows = {
        "files": len(lines),
        "lines": sum(lines.values()),
        "longest file": f"{longest.relative_to(ROOT)}, {lines[longest]} lines",
        "modules at the top": len(list((ROOT / "acq_isl").glob("*.py"))),
        "rooms": len({name for pair in between for name in pair}),
        "arrows between rooms": len(between),
        "circles": [sorted(c) for c in circles if len(c) > 1] or "none",
        "functions": len(lengths),
        "lines of a function": f"median {median(lengths):g}, 90 % up to {quantiles(lengths, n=10)[8]:g}",
    }
    for name, value in rows.items():
        sys.stdout.write(f"{name:>22}  {value}\n")


if __name__ == "__main__":
    main()
