"""OpenVINO computes what ONNX Runtime computes; its cache, its graphs, and int8 behind its check."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

pytest.importorskip("openvino", reason="the extra [openvino] is not installed")

import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper
from scipy import ndimage

from acq_isl.engines.backends import find_engines
from acq_isl.engines.graph_tags import GRAPH_KEY, GraphTags, read_tags
from acq_isl.engines.int8.accuracy import find_objection
from acq_isl.engines.int8.store import int8_folder
from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.engines.onnx import OnnxEngine, default_threads
from acq_isl.engines.openvino import int8 as acceptance
from acq_isl.engines.openvino.cache import CompiledCache
from acq_isl.engines.openvino.engine import OpenVinoEngine, OpenVinoNetwork, has_bf16
from acq_isl.engines.openvino.int8 import find_heads
from acq_isl.engines.openvino.parts import read_parts, split_model
from acq_isl.engines.sealed_file import SealedFile
from acq_isl.errors import EngineError, ModelError, StackRefused
from acq_isl.manifest import MANIFEST_KEY, Label, Manifest
from acq_isl.stack import StackInfo, StackKey, ZStack

PLANES = 3
MANIFEST = Manifest(
    name="tiny",
    version="3",
    licence="BSD-3-Clause",
    description="Space to depth, two convolutions, depth to space.",
    modality="phase contrast",
    polarity="dark",
    pixel_size_um=0.3,
    z_offsets_um=(-1.0, 0.0, 1.0),
    high_pass_um=3.0,
    labels=(Label(name="nuclei", marker="DAPI"), Label(name="axons", marker="NFH")),
    min_tile_px=32,
    halo_px=8,
    size_step_px=8,
    trained_on="nothing",
)
RNG = np.random.default_rng(0)
FIRST = (RNG.normal(size=(8, 4 * PLANES, 3, 3)) / 10).astype(np.float32)
SECOND = (RNG.normal(size=(16, 8, 3, 3)) / 5).astype(np.float32)


def node(kind, inputs, output, **attributes):
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def graph_nodes(contrast_twice):
    """Bytes to counts, background and contrast removed, two convolutions, blocks as exporters spell them."""
    return [
        node("Gather", "stack zero", "low_bytes", axis=4),
        node("Cast", "low_bytes", "low", to=TensorProto.FLOAT),
        node("Gather", "stack one", "high_bytes", axis=4),
        node("Cast", "high_bytes", "high", to=TensorProto.FLOAT),
        node("Mul", "high n256", "shifted"),
        node("Add", "low shifted", "counts"),
        node("ReduceMean", "counts sides", "background"),
        node("Sub", "counts background", "above"),
        node("Reshape", "inv_sd column", "inv"),
        node("Mul", "above inv", "scaled"),
        node("Clip", "scaled minus_ten ten", "x"),
        node("Shape", "x", "h", start=2, end=3),
        node("Shape", "x", "w", start=3, end=4),
        node("Div", "h two", "half_h"),
        node("Div", "w two", "half_w"),
        node("Concat", "keep planes half_h two half_w two", "six", axis=0),
        node("Reshape", "x six", "blocks"),
        node("Transpose", "blocks", "turned", perm=[0, 1, 3, 5, 2, 4]),
        node("Concat", "keep four_planes half_h half_w", "four", axis=0),
        node("Reshape", "turned four", "deep"),
        node("Conv", "deep first", "one_", pads=[1, 1, 1, 1]),
        node("Relu", "one_", "active"),
        node("Conv", "active second", "two_", pads=[1, 1, 1, 1]),
        node("DepthToSpace", "two_", "wide", blocksize=2, mode="CRD"),
        node("Slice", "wide zero_ two axis_", "mean_"),
        node("Slice", "wide two four_ axis_", "log_"),
        node("Mul", "mean_ inv", "mean") if contrast_twice else node("Identity", "mean_", "mean"),
        node("Exp", "log_", "spread"),
    ]


TAGS = GraphTags(counts="counts", normalised="x", heads=("two_",))


def build(*, tags=TAGS, contrast_twice=False):
    ints = {
        "zero": 0, "one": 1, "sides": [2, 3], "column": [-1, 1, 1, 1], "two": [2], "keep": [0],
        "planes": [PLANES], "four_planes": [4 * PLANES], "zero_": [0], "four_": [4], "axis_": [1],
    }  # fmt: skip
    weights = {name: np.array(value, np.int64) for name, value in ints.items()}
    floats = {"n256": 256, "minus_ten": -10, "ten": 10, "first": FIRST, "second": SECOND}
    weights |= {name: np.array(value, np.float32) for name, value in floats.items()}
    image = ["n", 2, "h", "w"]
    graph = helper.make_graph(
        graph_nodes(contrast_twice),
        "tiny",
        [
            helper.make_tensor_value_info("stack", TensorProto.UINT8, ["n", PLANES, "h", "w", 2]),
            helper.make_tensor_value_info("inv_sd", TensorProto.FLOAT, ["n"]),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, image) for name in ("mean", "spread")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    tagged = {GRAPH_KEY: tags.model_dump_json()} if tags else {}
    helper.set_model_props(model, {MANIFEST_KEY: MANIFEST.model_dump_json()} | tagged)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "tiny.onnx"
    file.write_bytes(build())
    return file


def stack_of(shape=(96, 128), seed=0, planes=PLANES):
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(planes, *shape)), (0, 2, 2))
    pixels = (30000 + 20000 * smooth).clip(0, 65535).astype(np.uint16)
    z_um = tuple(map(float, range(planes)))
    info = StackInfo(StackKey(0, "A1", "Phase"), z_um, shape, 0.3, modality="phase contrast", polarity="dark")
    return ZStack(info, pixels, (0.0,) * planes)


def tolerance(precision, values):
    return {"fp32": 1e-5, "bf16": 2e-2}[precision] * np.abs(values).max()


PRECISIONS = ["fp32", pytest.param("bf16", marks=pytest.mark.skipif(not has_bf16(), reason="no bf16 here"))]


@pytest.fixture
def untagged(tmp_path):
    """As versions before the tags wrote it."""
    file = tmp_path / "untagged.onnx"
    file.write_bytes(build(tags=None))
    return file


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", [(96, 128), (50, 77), (200, 64)])
def test_it_computes_what_the_reference_computes(path, precision, shape):
    stack = stack_of(shape)
    engines = OpenVinoEngine(path, precision=precision, threads=1, tile_px=96), OnnxEngine(path, tile_px=96)
    with engines[0] as engine, engines[1] as other:
        got, wanted = engine.predict(stack), other.predict(stack)
    assert got.engine == f"openvino cpu {precision}"
    for one, reference in ((got.mean, wanted.mean), (got.spread, wanted.spread)):
        np.testing.assert_allclose(one, reference, atol=tolerance(precision, reference))


def test_a_picture_is_not_overwritten_by_the_next(path):
    with OpenVinoEngine(path, threads=1) as engine:
        first = engine.predict(stack_of(seed=1))
        kept = first.mean.copy()
        assert np.abs(engine.predict(stack_of(seed=2)).mean - kept).max() > 0
    np.testing.assert_array_equal(first.mean, kept)


@pytest.mark.skipif(not has_bf16(), reason="no bf16 here")
def test_normalisation_is_a_graph_of_its_own_that_takes_counts(path):
    parts = read_parts(openvino.Core(), read_model(path), "bf16", low=True)
    assert parts.takes_counts and parts.background is None and parts.gate is None
    assert parts.front.input("stack").get_element_type() == openvino.Type.u16
    assert parts.front.output().get_element_type() == openvino.Type.bf16
    assert [port.get_any_name() for port in parts.trunk.inputs] == ["normalised"]
    assert not {"Clamp", "Maximum"} & {node.get_type_name() for node in parts.trunk.get_ordered_ops()}


def test_a_file_without_tags_is_run_as_it_is_in_fp32(untagged):
    file, stack = read_model(untagged), stack_of()
    assert not read_parts(openvino.Core(), file, "fp32", low=False).takes_counts
    with OpenVinoEngine(untagged, threads=1) as engine, OnnxEngine(untagged) as other:
        got, wanted = engine.predict(stack), other.predict(stack)
    assert got.engine == "openvino cpu fp32"
    np.testing.assert_allclose(got.mean, wanted.mean, atol=tolerance("fp32", wanted.mean))
    found = {engine.name: engine.automatic for engine in find_engines(file).candidates}
    assert found["openvino fp32"] and "openvino bf16" not in found
    with pytest.raises(ModelError, match=r"only be run in fp32.*to fix: use fp32, or write the tags"):
        OpenVinoEngine(untagged, precision="bf16")


def test_tags_that_do_not_fit_the_graph_are_a_model_error(tmp_path):
    file = tmp_path / "twice.onnx"
    file.write_bytes(build(contrast_twice=True))
    with pytest.raises(ModelError, match=r"tags do not fit its graph.*mean, spread of x alone"):
        OpenVinoEngine(file, precision="bf16")


def test_threads_leave_a_core_to_the_acquisition(path):
    assert OpenVinoNetwork(read_model(path)).threads == default_threads()
    assert OpenVinoNetwork(read_model(path), threads=0).threads == 1


def test_what_the_runtime_refuses_is_an_engine_error(path):
    network = OpenVinoNetwork(read_model(path), threads=1)
    with pytest.raises(EngineError, match=r"OpenVINO failed on tiles of.*smaller tiles"):
        network.run(np.zeros((1, PLANES + 1, 32, 32, 2), np.uint8), np.ones(1, np.float32))
    network.close()
    with pytest.raises(EngineError, match="closed"):
        network.run(np.zeros((1, PLANES, 32, 32, 2), np.uint8), np.ones(1, np.float32))


def test_what_openvino_cannot_read_is_a_model_error(path):
    model = onnx.load(path)
    model.graph.node[0].op_type = "Nonsense"
    with pytest.raises(ModelError, match=r"cannot read model.*to fix: update openvino"):
        OpenVinoNetwork(ModelFile(model.SerializeToString(), read_model(path).info), precision="fp32")


# --- the cache ---


def predicted(path, cache):
    network = OpenVinoNetwork(read_model(path), precision="fp32", threads=1, cache=cache)
    tiles = np.random.default_rng(0).integers(0, 255, (1, PLANES, 32, 32, 2), np.uint8)
    return network.run(tiles, np.full(1, 1e-4, np.float32))[0]


def cut_short(file):
    file.write_bytes(file.read_bytes()[:-7])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def not_openvinos(file):
    """Whole by its seal, but nothing OpenVINO can read."""
    SealedFile(file).save(b"something else")


def poisoned(file):
    """Whole by its own hash, as whoever can write to the cache can make it."""
    content = file.read_bytes()[32:]
    file.write_bytes(hashlib.sha256(content).digest() + content)


def test_a_compiled_network_is_found_again(path, tmp_path, caplog):
    cache = CompiledCache(tmp_path / "cache")
    first = predicted(path, cache)
    (file,) = cache.folder.iterdir()
    before = file.stat().st_mtime_ns
    np.testing.assert_array_equal(predicted(path, cache), first)
    assert file.stat().st_mtime_ns == before and not caplog.records


@pytest.mark.parametrize("damage", [cut_short, flip, not_openvinos, poisoned])
def test_a_damaged_one_is_compiled_again_and_said(path, tmp_path, caplog, damage):
    cache = CompiledCache(tmp_path / "cache")
    first = predicted(path, cache)
    (file,) = cache.folder.iterdir()
    damage(file)
    np.testing.assert_array_equal(predicted(path, cache), first)
    assert "made again" in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(predicted(path, cache), first)
    assert not caplog.records


def test_without_a_place_for_the_cache_it_runs_all_the_same(path, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert np.isfinite(predicted(path, CompiledCache(blocked / "cache"))).all()
    assert "cannot be kept" in caplog.text or "cannot be read" in caplog.text


def test_another_model_is_another_file(path, tmp_path):
    cache = CompiledCache(tmp_path / "cache")
    predicted(path, cache)
    other = tmp_path / "other.onnx"
    other.write_bytes(build(contrast_twice=True))
    predicted(other, cache)
    assert len(list(cache.folder.iterdir())) == 2


# --- int8 ---


def cells(shape=(512, 512), seed=0):
    """Bright round cells on noise, so that there is something to count."""
    rng = np.random.default_rng(seed)
    spots = np.zeros(shape)
    spots[tuple(rng.integers(0, side, 60) for side in shape)] = 1
    picture = ndimage.gaussian_filter(spots, 6, mode="wrap")
    stack = stack_of(shape, seed)
    pixels = np.clip(stack.pixels / 40 + 20000 * picture / picture.max() + 5000, 0, 65535).astype(np.uint16)
    return dataclasses.replace(stack, pixels=pixels)


def test_heads_are_named_as_openvino_names_them(path):
    file = read_model(path)
    trunk = split_model(openvino.Core(), file, read_tags(file.content)).trunk
    (name,) = find_heads(trunk, TAGS.heads)
    (head,) = (node for node in trunk.get_ops() if node.get_friendly_name() == name)
    assert head.get_type_name() == "Convolution"
    assert list(head.input_value(1).get_shape()) == list(SECOND.shape)


def test_int8_is_used_only_once_it_was_accepted(path):
    pytest.importorskip("nncf", reason="the extra [int8] is not installed")
    file = read_model(path)
    assert "openvino int8" not in [backend.name for backend in find_engines(file).candidates]
    with pytest.raises(ModelError, match="no int8 form"):
        OpenVinoEngine(path, precision="int8")
    note = acceptance.accept_int8(file, [cells()], above=0.05, threads=1)
    assert set(note.pearson) == {"nuclei", "axons"} and note.stacks and note.model_sha256 == file.info.sha256
    stored = acceptance.stored_int8(file)
    assert stored is not None and stored[0] == note
    (int8,) = [backend for backend in find_engines(file).candidates if backend.name == "openvino int8"]
    assert (int8.automatic, bool(int8.refused)) == (note.accepted, not note.accepted)
    with int8.load() as engine, OnnxEngine(path) as other:
        got, wanted = (one.predict(cells(seed=3)).mean for one in (engine, other))
    assert np.corrcoef(got[0].ravel(), wanted[0].ravel())[0, 1] > 0.99
    # Whatever changes afterwards, it is not used any more.
    weights = int8_folder(file) / "network.bin"
    flip(weights)
    assert acceptance.stored_int8(file) is None


@pytest.mark.parametrize(
    ("pearson", "f1", "counted", "said"),
    [
        ({"nuclei": 0.999, "axons": 0.996}, 0.995, 60, ""),
        ({"nuclei": 0.999, "axons": 0.99}, 1.0, 60, r"below 0.995: axons 0.9900"),
        ({"nuclei": float("nan"), "axons": 0.999}, 1.0, 60, "below 0.995: nuclei"),
        ({"nuclei": 0.999, "axons": 0.999}, 0.985, 60, "F1 of nuclei against fp32 is 0.985"),
        ({"nuclei": 0.999, "axons": 0.999}, 1.0, 3, "only 3 nuclei.*give more stacks"),
        ({"nuclei": 0.999, "axons": 0.999}, None, 0, "only 0 nuclei"),
    ],
)
def test_what_passes_and_what_does_not(pearson, f1, counted, said):
    import re

    objection = find_objection(pearson, f1, counted, MANIFEST)
    assert bool(objection) == bool(said) and re.search(said, objection)


DIGEST = hashlib.sha256(b"x").hexdigest()
MADE_BY = f"openvino {openvino.get_version()}, form {acceptance.FORM}"
MEASURED = {
    "accepted": True, "pearson": {"nuclei": 1.0}, "f1": 1.0, "nuclei": 30, "above": 0.2, "stacks": [],
    "judged_at": "2026-11-22T12:00:00+00:00",
}  # fmt: skip


def write_judgement(file, fields):
    folder = int8_folder(file)
    folder.mkdir()
    for name in ("network.xml", "network.bin"):
        (folder / name).write_bytes(b"x")
    (folder / "accepted.json").write_text(json.dumps({"model_sha256": file.info.sha256} | MEASURED | fields))


def judgement(**changes):
    files = {"network.xml": DIGEST, "network.bin": DIGEST}
    return {"format": "acq-isl-int8/2", "made_by": MADE_BY, "files": files} | changes


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, True),
        ({"model_sha256": "00"}, False),
        ({"made_by": MADE_BY.replace("openvino 20", "openvino 19")}, False),
        ({"made_by": MADE_BY.replace("form ", "form 1")}, False),
        ({"files": {"network.xml": "00", "network.bin": DIGEST}}, False),
        ({"files": {"network.xml": DIGEST, "network.bin": "00"}}, False),
        ({"files": {}}, False),
        ({"format": "another/1"}, False),
        ({"surprise": 1}, False),
    ],
)
def test_a_judgement_holds_for_what_was_judged_only(path, caplog, changes, found):
    file = read_model(path)
    write_judgement(file, judgement(**changes))
    assert (acceptance.stored_int8(file) is not None) == found
    assert bool(caplog.records) == (not found)


@pytest.mark.parametrize(
    ("form", "found"), [({"form": acceptance.FORM}, True), ({"form": 1}, False), ({}, False)]
)
def test_judgements_of_the_first_format_are_read_and_hold_for_their_form(path, caplog, form, found):
    """Those from before forms were counted have none."""
    file = read_model(path)
    digests = {"xml_sha256": DIGEST, "weights_sha256": DIGEST}
    write_judgement(file, {"format": "acq-isl-int8/1", "openvino": openvino.get_version()} | digests | form)
    assert (acceptance.stored_int8(file) is not None) == found
    assert ("accept-int8 again" in caplog.text) == (not found)


def test_what_was_not_accepted_is_not_to_be_had_by_name(path):
    file = read_model(path)
    write_judgement(file, judgement(accepted=False, reason="F1 of nuclei against fp32 is 0.9, not 0.99"))
    with pytest.raises(EngineError, match=r"not accepted for this model: F1.*accept-int8"):
        find_engines(file).named("openvino int8")
    assert find_engines(file).named("openvino").name != "openvino int8"


class Picky(OpenVinoEngine):
    """fp32 throughout, but refuses in one precision what it takes in the other."""

    refusing = "int8"

    def __init__(self, model, *, precision, threads, trunk=None):
        super().__init__(model, precision="fp32", threads=threads)
        self._refuses = precision == self.refusing

    def predict(self, stack, statistics=None):
        if self._refuses:
            raise StackRefused("it looks unlike the others", got="features 5, limit 4", fix="focus")
        return super().predict(stack, statistics)


def test_int8_that_refuses_what_fp32_takes_is_not_accepted(path, monkeypatch):
    monkeypatch.setattr("acq_isl.engines.openvino.engine.OpenVinoEngine", Picky)
    monkeypatch.setattr(acceptance, "quantised_trunk", lambda *_: (b"network", b"weights"))
    file = read_model(path)
    note = acceptance.accept_int8(file, [cells()], above=0.05, threads=1)
    assert not note.accepted and note.pearson == {}
    assert note.reason == (
        "int8 refuses a stack that fp32 takes: it looks unlike the others; features 5, limit 4"
    )
    assert acceptance.stored_int8(file)[0] == note  # kept, so that it is not asked again
    monkeypatch.setattr(Picky, "refusing", "fp32")
    with pytest.raises(StackRefused, match="unlike the others"):  # the stack's fault, not that of int8
        acceptance.accept_int8(file, [cells()], above=0.05, threads=1)


def test_int8_cannot_be_judged_on_nothing(path):
    with pytest.raises(StackRefused, match="without stacks"):
        acceptance.accept_int8(read_model(path), [])


def test_a_compiled_network_of_another_model_does_not_predict(path, tmp_path, monkeypatch):
    """As a runtime that compiles wrongly, or somebody who has the user's key, would leave it in the cache."""
    monkeypatch.setenv("ACQ_ISL_CACHE", str(tmp_path / "cache"))
    other = tmp_path / "other.onnx"
    other.write_bytes(build(contrast_twice=True))
    blobs = []
    for file in (path, other):
        find_engines(read_model(file)).named("openvino fp32").load().close()
        blobs += [blob for blob in (tmp_path / "cache" / "openvino").iterdir() if blob not in blobs]
    first, second = map(SealedFile, blobs)
    first.save(second.load())
    with pytest.raises(EngineError, match="openvino cpu fp32 does not compute what the model says"):
        find_engines(read_model(path)).named("openvino fp32").load()
