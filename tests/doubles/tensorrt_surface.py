"""Lists every TensorRT attribute that engines/ touches, and in which TensorRT it exists.

``python tests/doubles/tensorrt_surface.py ../shared/data/tensorrt_api`` writes
``tests/doubles/tensorrt_surface.json``, which test_tensorrt_surface.py keeps true. The list is read from the
source, so code that never ran is in it too.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENGINES = HERE.parents[1] / "engines" / "tensorrt"
LIST = HERE / "tensorrt_surface.json"
SURFACES = ("trt10", "trt11", "rtx")
FILES = ("api.py", "compile.py", "program.py", "context.py", "raw.py")

# Which TensorRT object each name stands for, by file. Everything typed Any in these files must be here.
MODULE = "module"
NAMES: dict[str, dict[str, str | None]] = {
    "api.py": {"trt": MODULE, "self.trt": MODULE, "flavour.trt": MODULE, "severity": None},
    "compile.py": {
        "trt": MODULE,
        "flavour.trt": MODULE,
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "config": "IBuilderConfig",
        "cache": "ITimingCache",
        "profile": "IOptimizationProfile",
        "tensor": "ITensor",
        "error": "ParserError",
        "kinds": "DataType",
    },
    "program.py": {
        "trt": MODULE,
        "self.flavour.trt": MODULE,
        "flavour.trt": MODULE,
        "runtime": "Runtime",
        "self._runtime": "Runtime",
        "engine": "ICudaEngine",
        "self._engine": "ICudaEngine",
        "config": "IRuntimeConfig",
        "self._config": "IRuntimeConfig",
        "self._cache": "IRuntimeCache",
        "context": "IExecutionContext",
        "kinds": "DataType",
        "strategies": "DynamicShapesKernelSpecializationStrategy",
        "graphs": "CudaGraphStrategy",
        "inspector": "EngineInspector",
    },
    "raw.py": {
        "flavour.trt": MODULE,
        "builder": "Builder",
        "network": None,
        "config": None,
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
    },
    "context.py": {
        "self._context": "IExecutionContext",
        "self.up": None,
        "self.compute": None,
        "self.down": None,
        "up": None,
        "compute": None,
        "down": None,
    },
}
# Members chosen at run time from all of these.
CHOSEN = (
    "ComputeCapability.SM75",
    "ComputeCapability.SM86",
    "ComputeCapability.SM89",
    "ComputeCapability.SM120",
)


def touched() -> set[str]:
    """Every attribute, as ``Class.member`` or a name of the module."""
    found: set[str] = set(CHOSEN)
    for file in FILES:
        tree = ast.parse((ENGINES / file).read_text("utf-8"))
        names = NAMES[file]
        unknown = {name for name in _any_names(tree) if name not in names}
        if unknown:
            raise SystemExit(f"say in NAMES what these are: {file}: {', '.join(sorted(unknown))}")
        for node in ast.walk(tree):
            found.update(_of_node(node, names))
        found.update(_needed(tree))
    return {name for name in found if not name.startswith("_") and "._" not in name}


def _any_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and ast.unparse(node.annotation or node) == "Any":
            yield node.arg if isinstance(node, ast.arg) else ast.unparse(node.target)


def _of_node(node: ast.AST, names: dict[str, str | None]) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        owner = ast.unparse(node.value)
        kind = names.get(owner)
        if kind == MODULE:
            yield node.attr
        elif kind is not None and kind != "ParserError":
            yield f"{kind}.{node.attr}"
        elif kind == "ParserError" and node.attr in ("desc", "node_operator", "node_name"):
            yield f"{kind}.{node.attr}"  # Python's own exceptions are called error as well
        elif isinstance(node.value, ast.Attribute) and names.get(ast.unparse(node.value.value)) == MODULE:
            yield f"{node.value.attr}.{node.attr}"
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr":
        owner, attribute = ast.unparse(node.args[0]), node.args[1]
        kind = names.get(owner)
        if kind is not None and isinstance(attribute, ast.Constant):
            yield attribute.value if kind == MODULE else f"{kind}.{attribute.value}"


def _needed(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_NEEDED":
            yield from (f"{owner}.{name}" for owner, name in ast.literal_eval(node.value))


def where(names: set[str], surfaces: Path) -> dict[str, list[str]]:
    """In which TensorRT each attribute exists."""
    out: dict[str, list[str]] = {name: [] for name in sorted(names)}
    for surface in SURFACES:
        api = json.loads((surfaces / f"{surface}.json").read_text("utf-8"))
        for name, present in out.items():
            owner, _, member = name.partition(".")
            members = api.get(owner, ())
            # Enumerations of a class (ILogger.ERROR) and Python's own (__members__) count as members.
            if owner in api and (not member or member in members):
                present.append(surface)
    return out


def main() -> None:
    listed = where(touched(), Path(sys.argv[1]))
    LIST.write_text(json.dumps(listed, indent=1) + "\n", "utf-8")
    sys.stdout.write(f"{len(listed)} attributes written to {LIST}\n")


if __name__ == "__main__":
    main()
