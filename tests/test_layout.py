"""The structure of docs/design.md, read from the imports."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"acq_isl": ROOT / "acq_isl", **{f"acq_isl.{n}": ROOT / n for n in ("engines", "hooks", "sim")}}

# Strictly downward, never sideways in the same rank; a package counts as one room.
RANKS = {
    "errors": 0,
    "stack": 0,
    "faults": 1,
    "manifest": 1,
    "fit": 1,
    "protocols": 1,
    "record": 1,
    "scorecard": 1,
    "messages": 1,
    "models": 1,
    "news": 1,
    "orders": 1,
    "actions": 1,
    "life": 1,
    "objects": 1,
    "pictures": 1,
    "simulated_optics": 1,
    "assemble": 2,
    "fault_text": 2,
    "measure": 2,
    "gallery": 2,
    "field_image": 2,
    "labels": 2,
    "normalize": 2,
    "plan": 2,
    "rules": 2,
    "tiling": 2,
    "wire": 2,
    "control": 3,
    "engines": 3,
    "experiment": 3,
    "grading": 3,
    "instruments": 3,
    "readings": 3,
    "ledger": 3,
    "report": 3,
    "sim": 3,
    "stream": 3,
    "store": 3,
    "view": 3,
    "aiming": 4,
    "replay": 4,
    "session": 4,
    "training": 4,
    "evaluation": 5,
    "hooks": 5,
    "live_capture": 6,
    "marking": 6,
    "summary": 5,
    "broadcast": 6,
    "bench": 6,
    "doctor": 6,
    "figures": 6,
    "preflight": 6,
    "run_engine": 6,
    "app": 7,
    "cli_build": 7,
    "cli_engines": 7,
    "cli_faults": 7,
    "cli_live": 7,
    "cli_models": 7,
    "cli_teach": 7,
    "cli_train": 7,
    "cli_plan": 7,
    "pytest_plugin": 7,
    "cli_scorecard": 7,
    "cli_sim": 7,
    "cli_specimen": 7,
    "cli_serving": 7,
    "cli": 8,
    "__main__": 9,
    "__init__": 10,  # the door for notebooks: names resolved on first use
}
# Rooms of one rank that may look at each other, each with the reason.
NEIGHBOURS = {
    ("stack", "errors"),  # a stack refuses a wrong array with a typed error
    ("record", "scorecard"),  # a record of a simulated run holds its grades
    ("news", "record"),  # news carry counts and measurements as the record keeps them
    ("fit", "manifest"),  # a stack is held against a manifest
    ("protocols", "manifest"),  # an engine shows its manifest
    ("instruments", "ledger"),  # a session writes its decisions there
    ("run_engine", "preflight"),  # labels are checked once a remote engine has named them
    ("cli_serving", "cli_build"),  # a field is spelt the same way to build for and to serve
    ("cli_serving", "cli_faults"),  # a served engine may be made faulty
    ("cli_sim", "cli_faults"),  # so may a microscope at the prompt
    ("rules", "measure"),  # a rule names the measurement it looks at
}
DOORS = {
    "zmq": {"stream", "view"},
    "pycromanager": {"cli_sim", "hooks", "sim"},
    "mmpycorex": {"hooks", "sim"},
    "pymmcore": {"sim"},
    "mm_test_adapters": {"sim"},
    "ndstorage": {"hooks", "sim"},
    "tensorrt": {"engines"},
    "tensorrt_rtx": {"engines"},
    "cuda": {"engines"},
    "onnxruntime": {"engines", "training"},
    "openvino": {"engines"},
    "nncf": {"engines"},
    "torch": {"training", "engines"},
    "sklearn": {"training"},
    "onnx": {"training", "engines"},
    "bioimageio": {"training"},
    "napari": {"view"},
    "qtpy": {"view"},
    "starlette": {"view"},
    "uvicorn": {"view"},
    "websockets": {"view"},
    "zarr": {"field_image", "sim", "store", "training"},
    "ome_writers": {"store"},
    "jinja2": {"evaluation", "report"},
    "typer": {
        "cli",
        "cli_build",
        "cli_engines",
        "cli_live",
        "cli_models",
        "cli_plan",
        "cli_serving",
        "cli_teach",
        "cli_train",
        "cli_faults",
        "cli_sim",
    },
    "rich": {
        "cli",
        "cli_build",
        "cli_engines",
        "cli_live",
        "cli_models",
        "cli_plan",
        "cli_scorecard",
        "cli_serving",
        "cli_teach",
        "cli_train",
        "cli_sim",
    },
}
PURE = (
    *("actions", "aiming", "assemble", "gallery", "grading", "measure", "normalize", "objects", "pictures"),
    *("plan", "rules", "tiling", "wire"),
)
IMPURE_IMPORTS = {"socket", "threading", "time", "subprocess", "multiprocessing", "zmq", "queue", "tempfile"}


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


def test_every_room_has_a_rank() -> None:
    assert {room for room, _, _ in sources()} <= set(RANKS)


@pytest.mark.parametrize("room, path", FILES)
def test_imports_go_strictly_downward(room: str, path: Path) -> None:
    wrong = []
    for module, line in imports(path):
        parts = module.split(".")
        if parts[0] != "acq_isl" or len(parts) == 1 or parts[1] == room or parts[1] not in RANKS:
            continue
        downward = RANKS[parts[1]] < RANKS[room]
        if not downward and (room, parts[1]) not in NEIGHBOURS:
            wrong.append(f"{path.name}:{line}: {room} must not import {parts[1]}")
    assert not wrong


@pytest.mark.parametrize("room, path", FILES)
def test_libraries_are_used_behind_their_door_only(room: str, path: Path) -> None:
    wrong = [
        f"{path.name}:{line}: {module}"
        for module, line in imports(path)
        if module.split(".")[0] in DOORS and room not in DOORS[module.split(".")[0]]
    ]
    assert not wrong


@pytest.mark.parametrize("room, path", [p for p in FILES if p.values[0] in PURE])
def test_the_core_is_pure(room: str, path: Path) -> None:
    assert not [module for module, _ in imports(path) if module.split(".")[0] in IMPURE_IMPORTS]


@pytest.mark.parametrize("room, path", FILES)
def test_no_second_copy_of_a_class(room: str, path: Path) -> None:
    """``import engines`` would load a file twice under two names."""
    assert not [m for m, _ in imports(path) if m.split(".")[0] in {"engines", "hooks", "sim"}]


@pytest.mark.parametrize("room, path", FILES)
def test_files_and_functions_stay_readable(room: str, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 300, f"{path.name} is too long"
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
