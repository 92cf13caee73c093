"""The dense forms against the same network run patch by patch, and the answers decoded inside the graph."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from acq_isl.engines.graph_tags import extract, read_tags
from acq_isl.training.reference.dense import (
    DenseSpec,
    Form,
    build_dense,
    build_image,
    build_planes,
    graph_inputs,
)
from acq_isl.training.reference.dense_network import STATISTICS, DenseNetwork, fold_projection
from acq_isl.training.reference.network import BORDER_PX, PATCH_PX, ReferenceConfig
from acq_isl.training.reference.onnx_graph import OnnxGraph
from doubles.reference_network import ReferenceNetwork, load_reference

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "data" / "isl_golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden data at {GOLDEN}")
DEPTH, PLANES, BINS = 24, 5, 16
HEADS = ("MAXPROJECT/DAPI_CONFOCAL", "MAXPROJECT/NFH_CONFOCAL")
CLOSE = 1e-5
FORMS: tuple[Form, ...] = ("exact", "single phase")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Waiting for each other costs torch's threads more than they gain on networks this small.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def network() -> ReferenceNetwork:
    """Small, with batch normalisation that does something."""
    torch.manual_seed(1)
    made = ReferenceNetwork(ReferenceConfig(DEPTH, 7, HEADS, BINS))
    for name, variable in made.variables():
        kind = name.split("/")[-1]
        if kind in ("gamma", "moving_variance"):
            variable.copy_(torch.rand_like(variable) + 0.5)
        elif kind in ("beta", "moving_mean", "biases"):
            variable.copy_(torch.randn_like(variable) * 0.3)
    return made.eval()


def variables(source: ReferenceNetwork) -> dict[str, NDArray[np.float32]]:
    return {name: value.numpy() for name, value in source.variables()}


def build_embedding(source: ReferenceNetwork, spec: DenseSpec) -> onnx.ModelProto:
    """The dense graph up to the heads; its output is (N, C, H, W) float32."""
    dense = DenseNetwork(OnnxGraph(), variables(source), source.config.base_depth, spec.planes)
    _, planes = build_planes(dense.graph, spec)
    dense.graph.name(build_image(dense, spec, planes, dense.pixels), "embedding")
    return dense.graph.model(graph_inputs(spec), {"embedding": ("n", dense.embedding_width, "h", "w")}, {})


def run(
    model: onnx.ModelProto, stack: NDArray[np.uint16], inv_sd: float = 1.0
) -> dict[str, NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {
        "stack": stack.astype("<u2").view(np.uint8).reshape(*stack.shape, 2),
        "inv_sd": np.full(len(stack), inv_sd, np.float32),
    }
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def counts(rows: int, columns: int, batch: int = 1) -> NDArray[np.uint16]:
    return np.random.default_rng(3).integers(0, 65536, (batch, PLANES, rows, columns)).astype(np.uint16)


def full_input(stack: NDArray[np.uint16], planes: int) -> torch.Tensor:
    """What published code feeds: the nearest slice for every plane, each followed by a mask of ones."""
    places = [round((stack.shape[1] - 1) * round(i / (planes - 1), 4)) for i in range(planes)]
    x = stack[:, places].astype(np.float32) / 65535
    pairs = np.stack([x, np.ones_like(x)], 2)
    return torch.from_numpy(pairs.reshape(len(x), -1, *x.shape[2:]))


def patch(stack: NDArray[np.uint16], row: int, column: int) -> NDArray[np.float32]:
    x = full_input(stack[..., row : row + PATCH_PX, column : column + PATCH_PX], 7)
    with torch.no_grad():
        return network().embedding(x).numpy()


@pytest.mark.parametrize(("form", "stride"), [("exact", 8), ("single phase", 16)])
def test_dense_equals_patch_by_patch(form: Form, stride: int) -> None:
    spec = DenseSpec(HEADS, PLANES, form)
    stack = counts(288, 272)
    got = run(build_embedding(network(), spec), stack)["embedding"]
    first = spec.crop_px
    inner = [side - 2 * spec.crop_px - PATCH_PX for side in stack.shape[-2:]]
    tiles = [(r, c) for r in range(0, inner[0] + 1, stride) for c in range(0, inner[1] + 1, stride)]
    assert len(tiles) == {8: 8, 16: 2}[stride]
    for row, column in tiles:
        wanted = patch(stack, first + row, first + column)
        top, left = first + BORDER_PX + row, first + BORDER_PX + column
        difference = np.abs(got[..., top : top + 8, left : left + 8] - wanted).max()
        assert difference <= CLOSE * np.abs(wanted).max(), (row, column)


def test_one_phase_is_another_function_between_multiples_of_16() -> None:
    spec = DenseSpec(HEADS, PLANES, "single phase")
    stack = counts(288, 288)
    got = run(build_embedding(network(), spec), stack)["embedding"]
    place = spec.crop_px + BORDER_PX + 8
    wanted = patch(stack, spec.crop_px + 8, spec.crop_px + 8)
    assert np.abs(got[..., place : place + 8, place : place + 8] - wanted).max() > 1e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("form", FORMS)
def test_stacks_of_a_batch_do_not_mix(form: Form) -> None:
    model = build_dense(variables(network()), DEPTH, DenseSpec(HEADS, PLANES, form, statistics=("mean",)))
    stacks = counts(272, 288, batch=3)
    together = run(model, stacks)["mean"]
    assert together.shape == (3, 2, 272, 288)
    for index in range(3):
        alone = run(model, stacks[index : index + 1])["mean"][0]
        np.testing.assert_allclose(together[index], alone, atol=1e-5)


@needs_golden
@pytest.mark.parametrize("form", FORMS)
def test_golden_patches_come_out_of_the_dense_graph(form: Form) -> None:
    golden = np.load(GOLDEN / "golden.npz")
    heads = tuple(key.removeprefix("head__").replace("__", "/") for key in golden if key.startswith("head__"))
    source = load_reference(GOLDEN, heads=heads)
    spec = DenseSpec(heads, 13, form)
    stack = np.zeros((1, 13, 304, 304), np.uint16)
    at, side = spec.crop_px, golden["stack"].shape[-1]
    stack[0, :, at : at + side, at : at + side] = golden["stack"]
    got = run(build_embedding(source, spec), stack)["embedding"][0]
    out = run(build_dense(variables(source), source.config.base_depth, spec), stack)
    for index, offset in enumerate(golden["offsets"]):
        row, column = offset + at + BORDER_PX
        window = np.s_[..., row : row + 8, column : column + 8]
        difference = np.abs(got[window].transpose(1, 2, 0) - golden["embedding"][index]).max()
        assert difference <= CLOSE * np.abs(golden["embedding"]).max()
        for label, head in enumerate(heads):
            logits = golden["head__" + head.replace("/", "__")][index]
            for name, wanted in decoded(logits.transpose(2, 0, 1)).items():
                np.testing.assert_allclose(out[name][0, label][window], wanted, atol=2e-5, err_msg=name)


def decoded(logits: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    """Statistics as the published code defines them, of logits (bins, h, w)."""
    p = np.exp(logits.astype(np.float64) - logits.max(0))
    p /= p.sum(0)
    values = np.linspace(0, 1, len(p))[:, None, None]
    mean = (p * values).sum(0)
    return {
        "mean": mean,
        "spread": np.sqrt((p * (values - mean) ** 2).sum(0)),
        "median": (np.cumsum(p, 0) < 0.5).sum(0) / (len(p) - 1),
        "entropy": -(p * np.log(np.maximum(p, 1e-300))).sum(0) / np.log(len(p)),
    }


@pytest.mark.parametrize("form", FORMS)
def test_decoding_in_the_graph_and_what_the_margin_reads(form: Form) -> None:
    spec = DenseSpec(HEADS[::-1], PLANES, form)
    stack = counts(304, 288)
    out = run(build_dense(variables(network()), DEPTH, spec), stack)
    embedding = run(build_embedding(network(), spec), stack)["embedding"]
    assert tuple(out) == STATISTICS
    halo = spec.halo_px
    heads = dict(network().named_heads())
    for index, head in enumerate(spec.heads):
        with torch.no_grad():
            logits = heads[head](torch.from_numpy(embedding))[0].numpy()
        for name, wanted in decoded(logits).items():
            got = out[name]
            assert got.shape == (1, 2, 304, 288)
            inside = np.s_[halo:-halo, halo:-halo]
            assert inside[0].stop < 0 and wanted[inside].size
            np.testing.assert_allclose(got[0, index][inside], wanted[inside], atol=2e-5, err_msg=name)
            assert not got[..., : spec.crop_px + BORDER_PX, :].any()
            assert not got[..., -halo:].any()


@pytest.mark.parametrize("form", FORMS)
def test_the_parts_its_tags_name_compute_the_same(form: Form) -> None:
    spec = DenseSpec(HEADS, PLANES, form, 4.0, statistics=("mean", "spread"))
    model = build_dense(variables(network()), DEPTH, spec)
    tags = read_tags(model)
    assert tags is not None and tags.background is None and len(tags.heads) >= len(HEADS)
    stack = counts(spec.min_tile_px + 16, spec.min_tile_px + 16)
    parts = (
        extract(model, (tags.counts, "inv_sd"), (tags.normalised,)),
        extract(model, (tags.normalised,), ("mean", "spread")),
    )
    front, trunk = (
        onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
        for part in parts
    )
    feeds = {tags.counts: stack.astype(np.float32), "inv_sd": np.full(1, 1 / 9000, np.float32)}
    got = trunk.run(["mean", "spread"], {tags.normalised: front.run(None, feeds)[0]})
    wanted = run(model, stack, 1 / 9000)
    for name, values in zip(("mean", "spread"), got, strict=True):
        np.testing.assert_allclose(values, wanted[name], atol=1e-6)


def test_statistics_can_be_chosen_and_the_others_cost_nothing() -> None:
    stack = counts(272, 272)
    whole = build_dense(variables(network()), DEPTH, DenseSpec(HEADS, PLANES))
    part = build_dense(variables(network()), DEPTH, DenseSpec(HEADS, PLANES, statistics=("median", "mean")))
    assert "CumSum" in {node.op_type for node in part.graph.node}
    assert len(part.graph.node) < len(whole.graph.node)
    got, wanted = run(part, stack), run(whole, stack)
    assert tuple(got) == ("median", "mean")
    for name, value in got.items():
        np.testing.assert_array_equal(value, wanted[name])


@pytest.mark.parametrize("form", FORMS)
def test_the_bins_of_a_whole_tile_never_exist(form: Form) -> None:
    model = build_dense(variables(network()), DEPTH, DenseSpec(HEADS, PLANES, form))
    bins = [node.output[0] for node in model.graph.node if node.op_type == "LogSoftmax"]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in bins)
    sizes = [value.size for value in run(model, counts(304, 304)).values()]
    predicted = (304 - 2 * 128 - (8 if form == "single phase" else 0)) ** 2
    assert sum(sizes) == predicted * BINS * len(HEADS)
    assert max(sizes) * 4 <= predicted * BINS


def test_a_stack_is_fed_once() -> None:
    model = build_dense(variables(network()), DEPTH, DenseSpec(HEADS, PLANES))
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    assert list(weights[first.input[1]]) == [16, PLANES, 1, 1]


@settings(deadline=None)
@given(slices=st.integers(1, 30), planes=st.integers(2, 26), seed=st.integers(0, 99))
def test_folding_the_first_layer_changes_nothing(slices: int, planes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(1, 1, 2 * planes, 4)).astype(np.float32)
    biases = rng.normal(size=4).astype(np.float32)
    stack = rng.integers(0, 65536, (1, slices, 2, 3)).astype(np.uint16)
    wanted = (
        np.einsum("cyx,co->oyx", full_input(stack, planes)[0].numpy(), weights[0, 0]) + biases[:, None, None]
    )
    folded, bias = fold_projection(weights, biases, slices)
    got = np.einsum("cyx,oc->oyx", stack[0] / 65535, folded) + bias[:, None, None]
    np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("high_pass_px", [4.0, 20.0])
def test_raw_counts_lose_their_local_background(high_pass_px: float) -> None:
    """The same as subtracting the interpolated Gaussian of block means beforehand."""
    flat = DenseSpec(HEADS, PLANES, "exact", high_pass_px)
    plain = DenseSpec(HEADS, PLANES, "exact", 0.0)
    side = flat.min_tile_px + 16
    raw = (counts(side, side) // 40 + np.linspace(500, 5000, side)[None, None, :, None]).astype(np.uint16)
    inv_sd = 1 / 400
    x = raw.astype(np.float32)
    means = torch.nn.functional.avg_pool2d(torch.from_numpy(x), 4).numpy()
    low = ndimage.gaussian_filter(
        means, (0, 0, high_pass_px / 4, high_pass_px / 4), truncate=3, mode="nearest"
    )
    x -= torch.nn.functional.interpolate(torch.from_numpy(low), scale_factor=4, mode="bilinear").numpy()
    scaled = np.clip((0.5 + 0.125 * x * inv_sd) * 65535, 0, 65535).round().astype(np.uint16)
    got = run(build_dense(variables(network()), DEPTH, flat), raw, inv_sd)["mean"]
    more = flat.crop_px - plain.crop_px
    wanted = run(build_dense(variables(network()), DEPTH, plain), scaled[..., more:-more, more:-more])["mean"]
    inside = np.s_[..., flat.halo_px : -flat.halo_px, flat.halo_px : -flat.halo_px]
    assert wanted[..., plain.halo_px : -plain.halo_px, plain.halo_px : -plain.halo_px].std() > 1e-3
    np.testing.assert_allclose(
        got[inside], wanted[..., plain.halo_px : -plain.halo_px, plain.halo_px : -plain.halo_px], atol=1e-3
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("high_pass_px", [0.0, 1.0, 20.0, 33.3])
def test_tile_rule_is_one_that_tiles_of_16_can_keep(form: Form, high_pass_px: float) -> None:
    spec = DenseSpec(HEADS, PLANES, form, high_pass_px)
    assert spec.min_tile_px % 16 == 0
    assert spec.halo_px % 8 == 0
    assert spec.min_tile_px >= 2 * spec.halo_px


@pytest.mark.parametrize("form", FORMS)
def test_a_tile_moved_by_16_pixels_says_the_same(form: Form) -> None:
    spec = DenseSpec(HEADS, PLANES, form, 4.0)
    model = build_dense(variables(network()), DEPTH, spec)
    side = spec.min_tile_px + 32
    stack = counts(side, side)
    whole = run(model, stack, 1 / 20000)["mean"]
    moved = run(model, stack[..., 16:, 16:], 1 / 20000)["mean"]
    inside = np.s_[..., spec.halo_px : -spec.halo_px, spec.halo_px : -spec.halo_px]
    assert moved[inside].size
    np.testing.assert_allclose(moved[inside], whole[..., 16:, 16:][inside], atol=1e-5)
