"""The exported file computes what the network computes, and says what it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from acq_isl.engines.graph_tags import GRAPH_KEY, extract, read_tags
from acq_isl.errors import ModelError
from acq_isl.manifest import MANIFEST_KEY, Label, Manifest
from acq_isl.training.export import onnx as export
from acq_isl.training.export.tags import write_tagged
from acq_isl.training.network import Deployed, LiveNetwork, NetworkConfig
from doubles import tiny_model as tiny

CONFIG = NetworkConfig(planes=3, labels=2, base=4, levels=3, high_pass_px=12.0)


def manifest():
    return Manifest(
        name="test", version="1", licence="BSD-3-Clause", description="a test", modality="phase contrast",
        polarity="dark", pixel_size_um=0.3, z_offsets_um=(-1.5, 0.0, 1.5), high_pass_um=3.6,
        labels=(Label(name="a", marker="A"), Label(name="b", marker="B")), min_tile_px=32, halo_px=32,
        size_step_px=8, spread_scale=(2.0, 0.5), trained_on="nothing",
    )  # fmt: skip


@pytest.fixture(scope="module")
def deployed():
    torch.manual_seed(1)
    network = LiveNetwork(CONFIG)
    torch.nn.init.normal_(network.head.weight, 0, 0.3)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return Deployed(network.eval(), (2.0, 0.5)).eval()


@pytest.fixture(scope="module")
def model_path(deployed, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    assert export.export_onnx(deployed, manifest(), path) <= 1e-4
    return path


def example(shape, seed=0):
    counts = np.random.default_rng(seed).normal(20000, 2500, shape).astype("<u2")
    return counts.view(np.uint8).reshape(*shape, 2), np.full(shape[0], 1 / 2500, np.float32)


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (3, 3, 40, 64), (2, 3, 8, 136)])
def test_onnx_runtime_agrees_with_torch_at_any_size(deployed, model_path, shape):
    session = onnxruntime.InferenceSession(model_path, providers=["CPUExecutionProvider"])
    stack, inv_sd = example(shape)
    mean, spread = session.run(["mean", "spread"], {"stack": stack, "inv_sd": inv_sd})
    with torch.no_grad():
        wanted = deployed(torch.from_numpy(stack), torch.from_numpy(inv_sd))
    np.testing.assert_allclose(mean, wanted[0].numpy(), atol=1e-4)
    np.testing.assert_allclose(spread, wanted[1].numpy(), atol=1e-4)
    assert mean.shape == (shape[0], 2, *shape[2:])
    assert mean.min() >= 0
    assert spread.min() > 0


def test_the_spread_is_wider_where_more_is_predicted(deployed, tmp_path):
    sloped = Deployed(deployed.network, (2.0, 0.5), spread_slope=(4.0, 0.0)).eval()
    path = tmp_path / "model.onnx"
    assert export.export_onnx(sloped, manifest(), path) <= 1e-5
    stack, inv_sd = example((2, 3, 40, 64))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    mean, spread = session.run(["mean", "spread"], {"stack": stack, "inv_sd": inv_sd})
    with torch.no_grad():
        flat_mean, flat = deployed(torch.from_numpy(stack), torch.from_numpy(inv_sd))
    np.testing.assert_allclose(mean, flat_mean.numpy(), atol=1e-5)
    wanted = flat.numpy() * (1 + np.array([4.0, 0.0])[:, None, None] * mean)
    np.testing.assert_allclose(spread, wanted, rtol=1e-4, atol=1e-5)
    assert (spread[:, 0] > 1.5 * flat.numpy()[:, 0]).any()


@pytest.mark.parametrize("members", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_pixels_are_unfolded_once_however_many_members(members, tmp_path):
    """A shuffle of every member's pixels costs as much as a convolution."""
    torch.manual_seed(2)
    network = LiveNetwork(replace(CONFIG, members=members)).eval()
    for name, parameter in network.named_parameters():
        if "head" in name:
            torch.nn.init.normal_(parameter, 0, 0.3)
    path = tmp_path / "model.onnx"
    assert export.export_onnx(Deployed(network, (2.0, 0.5)), manifest(), path) <= 1e-5
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("DepthToSpace") == 2  # mean and spread


def test_the_file_says_what_it_is(model_path):
    model = onnx.load(model_path)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert Manifest.from_json(entries[MANIFEST_KEY]) == manifest()
    assert model.opset_import[0].version == 20
    assert {i.name: i.type.tensor_type.elem_type for i in model.graph.input} == {
        "stack": onnx.TensorProto.UINT8,
        "inv_sd": onnx.TensorProto.FLOAT,
    }
    assert [o.name for o in model.graph.output] == ["mean", "spread"]


@pytest.mark.parametrize(
    ("kind", "members"),
    [
        ("unet", 1),
        pytest.param("separable", 1, marks=pytest.mark.slow),
        pytest.param("convnext", 2, marks=pytest.mark.slow),
    ],
)
def test_the_file_says_where_its_parts_are(kind, members, tmp_path):
    network = LiveNetwork(replace(CONFIG, kind=kind, members=members)).eval()
    path = tmp_path / "model.onnx"
    export.export_onnx(Deployed(network, (2.0, 0.5)).eval(), manifest(), path)
    model = onnx.load(path)
    tags = read_tags(model)
    assert len(tags.heads) == members and tags.gate == ()
    stack, inv_sd = example((1, 3, 32, 40))
    counts = stack.view("<u2")[..., 0].astype(np.float32)
    front = extract(model, (tags.counts, "inv_sd"), (tags.normalised,)).SerializeToString()
    session = onnxruntime.InferenceSession(front, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {tags.counts: counts, "inv_sd": inv_sd})
    wanted = network.normalise(torch.from_numpy(counts), torch.from_numpy(inv_sd)).numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    background = tags.background
    assert (background.block_px, background.averaged_px, background.least, background.most) == (4, 2, -10, 10)
    np.testing.assert_array_equal(np.float32(background.weights), network.normalise.kernel[0, 0].numpy())


def test_a_file_of_an_older_version_is_tagged_and_computes_the_same(model_path, tmp_path):
    model = onnx.load(model_path)
    tags = read_tags(model)
    entries = {entry.key: entry.value for entry in model.metadata_props if entry.key != GRAPH_KEY}
    onnx.helper.set_model_props(model, entries)
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    onnx.save(model, old)
    write_tagged(old, new)
    tagged = onnx.load(new)
    assert read_tags(tagged) == tags
    assert tagged.graph == model.graph  # weights and all
    assert {entry.key: entry.value for entry in tagged.metadata_props if entry.key != GRAPH_KEY} == entries


def test_nothing_in_the_file_tells_of_the_computer_that_wrote_it(model_path):
    content = model_path.read_bytes()
    assert str(Path(export.__file__).parents[3]).encode() not in content and b"stack_trace" not in content


def test_a_graph_that_torch_did_not_export_cannot_be_tagged(tmp_path):
    with pytest.raises(ModelError, match=r"cannot be tagged.*as it is, in fp32"):
        write_tagged(tiny.write(tmp_path), tmp_path / "new.onnx")


def test_a_graph_that_cannot_be_tagged_is_written_without(
    deployed, model_path, tmp_path, monkeypatch, caplog
):
    def without_modules(*_):
        model = onnx.load(model_path)
        for node in model.graph.node:
            del node.metadata_props[:]
        return model

    monkeypatch.setattr(export, "_to_onnx", without_modules)
    path = tmp_path / "model.onnx"
    export.export_onnx(deployed, manifest(), path)
    assert read_tags(onnx.load(path)) is None
    assert "has no tags" in caplog.text


def test_spread_is_scaled_per_label(deployed):
    stack, inv_sd = example((1, 3, 32, 32))
    plain = Deployed(deployed.network, (1.0, 1.0)).eval()
    with torch.no_grad():
        scaled = deployed(torch.from_numpy(stack), torch.from_numpy(inv_sd))[1]
        raw = plain(torch.from_numpy(stack), torch.from_numpy(inv_sd))[1]
    torch.testing.assert_close(scaled[:, 0], 2 * raw[:, 0])
    torch.testing.assert_close(scaled[:, 1], 0.5 * raw[:, 1])


def test_a_graph_that_disagrees_is_not_written(deployed, model_path, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_to_onnx", lambda *_: onnx.load(model_path))
    monkeypatch.setattr(export, "compare_with_torch", lambda *_: 0.1)
    path = tmp_path / "model.onnx"
    with pytest.raises(ModelError, match="does not compute"):
        export.export_onnx(deployed, manifest(), path)
    assert not path.exists()
