"""The reference network against what the published TensorFlow code computed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from acq_isl.training.reference.network import (
    BORDER_PX,
    OUTPUT_PX,
    PATCH_PX,
    ReferenceConfig,
    plane_positions,
    variable_shapes,
)
from doubles.reference_network import ReferenceNetwork, default_heads, load_reference

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "data" / "isl_golden"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden data at {GOLDEN}")
CLOSE = 1e-5  # of the largest value, float32


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # On a busy machine torch's threads spend ten times the work on waiting for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@needs_golden
def test_variables_are_those_of_the_published_width() -> None:
    listed = json.loads((GOLDEN / "variables_base_depth_400.json").read_text())
    config = ReferenceConfig(400, 26, default_heads(26))
    assert variable_shapes(config) == {name: tuple(shape) for name, shape in listed}
    network = ReferenceNetwork(config)
    ours = {name: list(variable.shape) for name, variable in network.variables()}
    assert ours == dict(listed)
    assert len(ours) == 1252
    assert sum(p.numel() for p in network.parameters()) == 9_273_708


@needs_golden
def test_every_golden_patch_comes_out() -> None:
    golden = np.load(GOLDEN / "golden.npz")
    checked = {
        key: key.removeprefix("head__").replace("__", "/") for key in golden if key.startswith("head__")
    }
    assert len(checked) == 4
    network = load_reference(GOLDEN, heads=checked.values())
    planes = golden["stack"][np.arange(26) // 2].astype(np.float32) / 65535
    x = torch.from_numpy(np.stack([planes, np.ones_like(planes)], 1).reshape(52, *planes.shape[1:]))
    patches = torch.stack([x[:, r : r + PATCH_PX, c : c + PATCH_PX] for r, c in golden["offsets"]])
    with torch.no_grad():
        embedding = network.embedding(patches)
        logits = {name: head(embedding) for name, head in network.named_heads()}
    _agree(embedding, golden["embedding"])
    for key, name in checked.items():
        _agree(logits[name], golden[key])


def _agree(got: torch.Tensor, wanted: np.ndarray) -> None:
    difference = np.abs(got.numpy().transpose(0, 2, 3, 1) - wanted).max()
    assert difference <= CLOSE * np.abs(wanted).max()


def test_planes_and_heads_carry_the_published_names() -> None:
    assert plane_positions(26)[:3] == (0.0, 0.04, 0.08)
    assert plane_positions(13)[1] == 0.0833
    assert plane_positions(1) == (0.0,)
    heads = default_heads(26)
    assert len(heads) == 35
    assert heads[0] == "0.0/TRANSMISSION"
    assert heads[26] == "MAXPROJECT/DAPI_CONFOCAL"


@pytest.mark.parametrize(
    ("base_depth", "planes", "heads", "bins"),
    [(16, 1, ("MAXPROJECT/DAPI_CONFOCAL",), 16), (60, 3, ("a", "b"), 5)],
)
def test_sizes_are_free(base_depth: int, planes: int, heads: tuple[str, ...], bins: int) -> None:
    network = ReferenceNetwork(ReferenceConfig(base_depth, planes, heads, bins)).eval()
    with torch.no_grad():
        out = network(torch.rand(1, 2 * planes, PATCH_PX, PATCH_PX + 16))
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        name: (1, bins, OUTPUT_PX, OUTPUT_PX + 16) for name in heads
    }


def test_moving_the_input_by_16_pixels_moves_the_output_and_by_8_does_not() -> None:
    torch.manual_seed(0)
    network = ReferenceNetwork(ReferenceConfig(16, 1, ("a",), 4)).eval()
    x = torch.rand(1, 2, PATCH_PX + 16, PATCH_PX + 16)
    with torch.no_grad():
        whole = network.embedding(x)
        by_16 = network.embedding(x[..., 16:, 16:])
        by_8 = network.embedding(x[..., 8:-8, 8:-8])
    torch.testing.assert_close(whole[..., 16:, 16:], by_16, rtol=0, atol=1e-5 * by_16.abs().max().item())
    assert (whole[..., 8:16, 8:16] - by_8).abs().max() > 1e-3 * by_8.abs().max()


def test_every_output_row_depends_on_the_border_of_the_patch() -> None:
    assert BORDER_PX == 121
    torch.manual_seed(0)
    network = ReferenceNetwork(ReferenceConfig(16, 1, ("a",), 4)).eval()
    x = torch.rand(1, 2, PATCH_PX, PATCH_PX, requires_grad=True)
    (gradient,) = torch.autograd.grad(network.embedding(x)[0, :, 4, 4].sum(), x)
    assert gradient[0, 0, 125].abs().sum() > gradient[0, 0, 20].abs().sum() > 0


def test_a_step_down_the_gradient_of_every_variable_lowers_the_loss() -> None:
    torch.manual_seed(0)
    network = ReferenceNetwork(ReferenceConfig(16, 1, ("a",), 4)).train()
    x = torch.rand(1, 2, PATCH_PX, PATCH_PX)
    target = torch.arange(64).reshape(1, OUTPUT_PX, OUTPUT_PX) % 4
    before = torch.nn.functional.cross_entropy(network(x)["a"], target)
    before.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
            parameter.sub_(1e-3 * parameter.grad)
        after = torch.nn.functional.cross_entropy(network(x)["a"], target)
    assert after < before
