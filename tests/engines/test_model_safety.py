"""A model file that somebody sent is told apart within a second, and runs, waits and allocates nothing."""

import json
import os
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from acq_isl.engines.model_file import read_model
from acq_isl.errors import ModelError
from acq_isl.manifest import MANIFEST_KEY
from doubles import tiny_model as tiny

AT_ONCE_S = 1.0
node, value = helper.make_node, helper.make_tensor_value_info


def weigh(model, **arrays):
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())


def take_mean_from(model, *nodes):
    """Have these nodes make ``mean`` of ``mean0``, what was the mean before."""
    for made in model.graph.node:
        for place, name in enumerate(made.output):
            if name == "mean":
                made.output[place] = "mean0"
    model.graph.node.extend(nodes)


def fill(*nodes):
    """A bomb: its ``huge`` is made, and one number of it counts."""
    return *nodes, node("ReduceMax", ["huge"], ["one"], keepdims=0), node("Add", ["mean0", "one"], ["mean"])


def endless(model):
    flag, count = value("c", TensorProto.BOOL, []), value("i", TensorProto.INT64, [])
    after, x, twice = value("c2", TensorProto.BOOL, []), value("x", 1, None), value("x2", 1, None)
    nodes = [node("Identity", ["c"], ["c2"]), node("Add", ["x", "x"], ["x2"])]
    body = helper.make_graph(nodes, "body", [count, flag, x], [after, twice])
    weigh(model, trips=np.int64(2**60), yes=np.bool_(True))
    take_mean_from(model, node("Loop", ["trips", "yes", "mean0"], ["mean"], body=body))


def hidden_loop(model):
    """Inside of a branch that is never taken."""
    endless(model)
    loop = model.graph.node.pop()
    del loop.output[:]
    loop.output.append("looped")
    branch = helper.make_graph([loop], "then", [], [value("looped", 1, None)])
    other = helper.make_graph([node("Identity", ["mean0"], ["same"])], "else", [], [value("same", 1, None)])
    model.graph.node.append(node("If", ["yes"], ["mean"], then_branch=branch, else_branch=other))


def own(model, count, inner):
    """Functions F0, F1, ... of the file itself, each made of calls of the one before."""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    for number in range(count):
        called = (f"F{number - 1}", "own") if number else ("Relu", "")
        model.functions.append(
            helper.make_function("own", f"F{number}", ["x"], ["y"], inner(*called), opsets)
        )
    model.opset_import.append(helper.make_opsetid("own", 1))
    take_mean_from(model, node(f"F{count - 1}", ["mean0"], ["mean"], domain="own"))


def laughs(model):
    """10^8 operators in 80 lines."""
    names = ["x", *(f"y{k}" for k in range(9)), "y"]
    own(model, 8, lambda op, domain: [node(op, [a], [b], domain=domain) for a, b in pairwise(names)])


def circle(model):
    own(model, 1, lambda op, domain: [node("F0", ["x"], ["y"], domain="own")])


def constant(model):
    weigh(model, sides=np.array([1 << 20, 1 << 13], np.int64))
    take_mean_from(model, *fill(node("ConstantOfShape", ["sides"], ["huge"])))


def constant_in_a_function(model):
    sides = node("Constant", [], ["sides"], value_ints=[1 << 20, 1 << 13])
    rest = node("ReduceMax", ["huge"], ["one"], keepdims=0), node("Add", ["x", "one"], ["y"])
    own(model, 1, lambda *_: [sides, node("ConstantOfShape", ["sides"], ["huge"]), *rest])


def numbers(model):
    weigh(model, first=np.int64(0), last=np.int64(1 << 40), step=np.int64(1))
    cast = node("Cast", ["range"], ["huge"], to=TensorProto.FLOAT)
    take_mean_from(model, *fill(node("Range", ["first", "last", "step"], ["range"]), cast))


def enlarged(model):
    weigh(model, scales=np.array([1, 1, 5000, 5000], np.float32))
    take_mean_from(model, *fill(node("Resize", ["mean0", "", "scales"], ["huge"])))


def tiled(model):
    weigh(model, repeats=np.array([1, 1, 20000, 2000], np.int64))
    take_mean_from(model, *fill(node("Tile", ["mean0", "repeats"], ["huge"])))


def padded(model):
    weigh(model, pads=np.array([0, 0, 1 << 20, 0, 0, 0, 0, 1 << 16], np.int64))
    take_mean_from(model, *fill(node("Pad", ["mean0", "pads"], ["huge"])))


def outer_product(model):
    weigh(model, column=np.zeros((200000, 1), np.float32), row=np.zeros((1, 200000), np.float32))
    take_mean_from(model, *fill(node("MatMul", ["column", "row"], ["huge"])))


def surrounded(model):
    weigh(model, kernel=np.zeros((2, 2, 1, 1), np.float32))
    take_mean_from(model, *fill(node("Conv", ["mean0", "kernel"], ["huge"], pads=[1 << 18] * 4)))


def announced(model):
    """A weight of 2^60 numbers, none of which is there."""
    weight = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40, 1 << 20])
    weight.raw_data = b"\0" * 4


def sparse(model):
    numbers, places = (numpy_helper.from_array(np.ones(1, t), "s") for t in (np.float32, np.int64))
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(numbers, places, [1 << 20, 1 << 20]))


BOMBS = [endless, hidden_loop, laughs, circle, constant, constant_in_a_function, numbers, enlarged, tiled]
BOMBS += [padded, outer_product, surrounded, announced, sparse]


@pytest.mark.parametrize("bomb", BOMBS)
def test_what_runs_for_ever_or_fills_the_memory_is_refused_at_once(tmp_path, bomb):
    file = tiny.write(tmp_path, defect=bomb)
    began_s = time.process_time()
    with pytest.raises(ModelError, match=r"asks for more than any machine has|damaged"):
        read_model(file)
    assert time.process_time() - began_s < AT_ONCE_S


MANIFESTS = {
    "pixels of an atom": {"pixel_size_um": 1e-9},
    "no pixels": {"pixel_size_um": 0},
    "a tile as large as a field of corn": {"min_tile_px": 10**9},
    "tiles that together fit no memory": {"min_tile_px": 8192},
    "steps beyond all fields": {"size_step_px": 10**9},
    "a halo without end": {"halo_px": 1 << 60},
    "a background without end": {"high_pass_um": 1e7},
    "a background of many pixels": {"high_pass_um": 5000, "pixel_size_um": 0.3},
    "infinity": {"high_pass_um": float("inf")},
    "no number": {"pixel_size_um": float("nan")},
    "a number of 5000 digits": {"min_tile_px": 10**4000},
    "planes without end": {"z_offsets_um": [0.1 * i for i in range(-5000, 5001)]},
    "planes in the sky": {"z_offsets_um": [-1e9, 0, 1e9]},
    "labels without end": {"labels": [{"name": str(i), "marker": ""} for i in range(5000)]},
    "text without end": {"description": "x" * (1 << 21)},
    "a list": {"min_tile_px": [[[[]]]]},
}


@pytest.mark.parametrize("changes", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_numbers_of_a_manifest_are_bounded_before_anything_uses_them(tmp_path, changes):
    text = json.dumps(tiny.MANIFEST.model_dump(mode="json") | changes)
    file = tiny.write(tmp_path, defect=lambda m: helper.set_model_props(m, {MANIFEST_KEY: text}))
    began_s = time.process_time()
    with pytest.raises(ModelError, match=r"manifest cannot be used.*wanted.*to fix"):
        read_model(file)
    assert time.process_time() - began_s < AT_ONCE_S


def nested(path):
    text = '{"name":' + "[" * 100_000 + "]" * 100_000 + "}"
    path.write_bytes(tiny.content(defect=lambda model: helper.set_model_props(model, {MANIFEST_KEY: text})))


def sparse_file(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)


def directory(path):
    path.mkdir()


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


POSIX = [pipe, device] if os.name == "posix" else []


@pytest.mark.parametrize("make", [nested, sparse_file, directory, *POSIX])
def test_only_plain_files_of_a_bearable_size_are_read(tmp_path, make):
    make(tmp_path / "model.onnx")
    began_s = time.monotonic()
    with pytest.raises(ModelError):
        read_model(tmp_path / "model.onnx")
    assert time.monotonic() - began_s < 10 * AT_ONCE_S  # a machine may be busy; a pipe would wait for ever


@pytest.mark.skipif(os.name != "posix", reason="no pipes in folders here")
def test_a_hash_beside_the_file_that_never_comes_is_not_waited_for(tmp_path):
    file = tiny.write(tmp_path)
    (tmp_path / "tiny.onnx.sha256").symlink_to("/dev/zero")
    assert read_model(file).info.manifest.name == "tiny"  # it is no hash at all
    (tmp_path / "tiny.onnx.sha256").unlink()
    with (tmp_path / "tiny.onnx.sha256").open("wb") as note:
        note.truncate(1 << 40)
    with pytest.raises(ModelError, match="larger than"):
        read_model(file)


CONTENT = tiny.content()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, len(CONTENT) - 1), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(0, len(CONTENT)),
)
def test_damage_of_any_kind_is_a_model_error(tmp_path, changes, length):
    content = bytearray(CONTENT)
    for place, byte in changes:
        content[place] = byte
    (tmp_path / "any.onnx").write_bytes(content[: length or None])
    try:
        read_model(tmp_path / "any.onnx")
    except ModelError as error:
        assert error.fix
