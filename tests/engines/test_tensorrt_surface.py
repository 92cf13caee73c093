"""Every TensorRT attribute we touch exists where we touch it; the double has nothing the real one lacks."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest

from doubles import tensorrt_double as double
from doubles import tensorrt_surface as surface

LISTED = json.loads(surface.LIST.read_text("utf-8"))
# What a capability of `Flavour`, or a hasattr on the spot, stands before.
GATES = {
    "portable": {
        "ComputeCapability",
        "IBuilderConfig.num_compute_capabilities",
        "IBuilderConfig.set_compute",
    },
    "native_graphs": {
        "CudaGraphStrategy",
        "DynamicShapesKernelSpecializationStrategy",
        "IRuntimeConfig.cuda_graph_strategy",
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    },
    "has_runtime_cache": {
        "IRuntimeCache",
        "IRuntimeConfig.create_runtime_cache",
        "IRuntimeConfig.set_runtime_cache",
    },
    "get_engine_validity": {"EngineValidity", "Runtime.get_engine_validity", "Runtime.engine_header_size"},
}


@pytest.fixture(scope="module")
def api():
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "tensorrt_api"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: the committed list stands for it")
    return folder


def test_the_list_is_what_the_source_touches():
    assert surface.touched() == set(LISTED), "run tests/doubles/tensorrt_surface.py again"


def test_the_list_says_where_each_attribute_is(api):
    assert surface.where(set(LISTED), api) == LISTED


def test_nothing_is_touched_that_exists_nowhere():
    assert [name for name, where in LISTED.items() if not where] == []


def test_what_only_some_have_stands_behind_a_capability():
    prefixes = tuple(prefix for group in GATES.values() for prefix in group)
    ungated = [n for n, where in LISTED.items() if len(where) < 3 and not n.startswith(prefixes)]
    assert ungated == []


def test_what_stands_behind_a_capability_is_where_the_capability_is():
    gated = [n for n in LISTED if n.startswith(tuple(p for g in GATES.values() for p in g))]
    assert {tuple(LISTED[name]) for name in gated} == {("rtx",)}


@pytest.mark.parametrize(("module", "name"), [("tensorrt_rtx", "rtx"), ("tensorrt", "trt11")])
def test_the_installed_module_has_what_the_list_says(module, name):
    trt = pytest.importorskip(module, exc_type=ImportError)
    missing = [
        entry
        for entry, where in LISTED.items()
        if name in where and not _has(trt, *entry.partition(".")[::2])
    ]
    assert missing == []


def _has(trt, owner, member):
    return hasattr(trt, owner) and (not member or hasattr(getattr(trt, owner), member))


def public(cls):
    own = {name for name in vars(cls) if not name.startswith("_")}
    return own if "__init__" not in vars(cls) else own | _assigned(cls)


def _assigned(cls):
    # Attributes set in __init__ that our code could come to rely on; bookkeeping of the double is listed.
    body = inspect.getsource(cls.__init__)
    return set(re.findall(r"self\.([a-z]\w*)", body)) - BOOKKEEPING


BOOKKEEPING = {
    *("content", "spans", "profiles", "shapes", "strategy", "cache", "timings", "known"),
    *("trt", "logger", "driver", "ports", "session", "refuses_to_run"),
}
CLASSES = [c for c in vars(double).values() if inspect.isclass(c) and c.__module__ == double.__name__]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_the_double_has_nothing_that_the_real_one_lacks(cls, api):
    rtx_only = cls.__name__.endswith("Rtx") or cls in double.RTX_ONLY
    name = cls.__name__.removesuffix("Rtx")
    for where in ("rtx",) if rtx_only else surface.SURFACES:
        members = set(json.loads((api / f"{where}.json").read_text("utf-8"))[name])
        extra = public(cls) - members - ({"unsupported"} if name == "OnnxParser" else set())
        assert extra == set(), f"{where} {name}"


def test_the_double_knows_every_class_we_touch():
    defined = {c.__name__.removesuffix("Rtx") for c in CLASSES}
    # Ports and parser errors are plain namespaces there.
    assert {n.partition(".")[0] for n in LISTED} - defined == {"ITensor", "ParserError"}
