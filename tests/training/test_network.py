"""The live network, its normalisation, and what is measured of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from acq_isl.processing.normalize import contrast_sd
from acq_isl.training.config import Optimisation, TrainConfig
from acq_isl.training.data.dataset import Field, normalised
from acq_isl.training.data.source_simulated import Pair, SimulationConfig, simulate
from acq_isl.training.network import LiveNetwork, NetworkConfig, Normalise, beta_nll
from acq_isl.training.score import measure_halo

SMALL = NetworkConfig(planes=3, labels=3, base=4, levels=3, high_pass_px=8.0)


def tiny(steps=6, every=2):
    return TrainConfig(
        name="tiny", version="0", description="a test", base=4, levels=2, high_pass_um=2.4,
        simulation=SimulationConfig(fields=2, held_out=1, side_px=64, planes=3),
        optimisation=Optimisation(steps=steps, batch=2, patch_px=32, checkpoint_every=every),
    )  # fmt: skip


def blobs(seed=0, side=64, planes=3):
    rng = np.random.default_rng(seed)
    labels = np.stack([ndimage.gaussian_filter(rng.random((side, side)), 3) for _ in range(3)])
    labels = (255 * (labels - labels.min()) / np.ptp(labels)).astype(np.uint8)
    stack = (
        30000
        + 60 * labels[rng.integers(0, 3, planes)].astype(float)
        + rng.normal(0, 300, (planes, side, side))
    )
    return Pair(stack.astype(np.uint16), labels)


@pytest.fixture(scope="module")
def fields():
    pairs = [blobs(1), blobs(2)]
    return [Field(normalised(p.stack, 8.0), p.labels, np.argwhere(p.labels[0] > 77)) for p in pairs]


@pytest.mark.parametrize(
    ("config", "side"), [(SMALL, 24), (NetworkConfig(), 64), (NetworkConfig(planes=1, levels=2, base=8), 20)]
)
def test_output_has_the_shape_of_the_input(config, side):
    network = LiveNetwork(config).eval()
    x = torch.zeros(2, config.planes, side, side + config.size_step_px)
    mean, log_variance = network(x)
    assert mean.shape == log_variance.shape == (2, config.labels, side, side + config.size_step_px)


def test_the_shipped_size_fits_a_live_network():
    assert sum(p.numel() for p in LiveNetwork(NetworkConfig()).parameters()) < 1.1e6


@pytest.mark.parametrize(("sigma", "within"), [(4.0, 0.3), (20.0, 0.1)])
def test_background_is_the_gaussian_of_the_core(sigma, within):
    """Within the noise of a quarter of the pixels, which a Gaussian of one block does not average out."""
    rng = np.random.default_rng(3)
    plane = (
        20000
        + 4000 * ndimage.gaussian_filter(rng.standard_normal((256, 256)), 12)
        + rng.normal(0, 50, (256, 256))
    )
    got = Normalise(1, sigma).background(torch.from_numpy(plane.astype(np.float32))[None, None])[0, 0].numpy()
    wanted = ndimage.gaussian_filter(plane, sigma)
    inside = slice(64, -64)
    assert np.abs(got - wanted)[inside, inside].max() < within * plane.std()


def test_gain_and_offset_cancel():
    stack = blobs().stack
    normalise = Normalise(3, 8.0)

    def normalised(counts):
        inv_sd = torch.tensor([1 / contrast_sd(counts, 8.0)], dtype=torch.float32)
        return normalise(torch.from_numpy(counts.astype(np.float32))[None], inv_sd).numpy()

    np.testing.assert_allclose(
        normalised(stack), normalised((stack // 2 + 1000).astype(np.uint16)), atol=0.05
    )


def test_loss_is_least_at_the_truth_with_the_right_variance():
    target = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.3
    losses = {
        v: float(beta_nll(torch.zeros_like(target), torch.full_like(target, np.log(v)), target, 0.0).mean())
        for v in (0.03, 0.09, 0.3)
    }
    assert min(losses, key=losses.get) == 0.09
    flat = torch.zeros_like(target)
    assert beta_nll(target, flat, target, 0.5).mean() < beta_nll(target + 1, flat, target, 0.5).mean()


def test_simulated_pairs_are_seeded():
    config = tiny().data[0].simulation
    pair, again = simulate(config, 1), simulate(config, 1)
    np.testing.assert_array_equal(pair.stack, again.stack)
    np.testing.assert_array_equal(pair.labels, again.labels)
    assert pair.stack.shape == (3, 64, 64)
    assert 3000 < pair.stack.std() < 9000
    assert not np.array_equal(pair.stack, simulate(config, 0).stack)


def test_halo_lies_within_the_receptive_field(fields):
    torch.manual_seed(0)
    network = LiveNetwork(NetworkConfig(3, 3, 4, 2, 8.0)).eval()
    torch.nn.init.normal_(network.head.weight)
    halo = measure_halo(network, blobs(4, 192))
    # Background: 3 sigma and a block, 28 px; two levels of convolutions at half resolution: 24 px.
    assert 8 < halo <= 60
    assert halo % network.config.size_step_px == 0


def test_several_members_are_averaged_and_their_disagreement_shows():
    torch.manual_seed(0)
    config = NetworkConfig(planes=3, labels=2, base=4, levels=2, high_pass_px=8.0)
    first, second = (LiveNetwork(config).eval() for _ in range(2))
    for network in (first, second):
        nn.init.normal_(network.head.weight, std=0.3)
    whole = LiveNetwork(replace(config, members=2)).eval()
    others = {f"others.0.{name}": value for name, value in second.state_dict().items()}
    whole.load_state_dict(first.state_dict() | others)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        (a, log_a), (b, log_b), (mean, log_variance) = first(x), second(x), whole(x)
    torch.testing.assert_close(mean, (a + b) / 2)
    mixture = (log_a.exp() + log_b.exp()) / 2 + ((a - b) / 2) ** 2
    torch.testing.assert_close(log_variance.exp(), mixture)
    assert (log_variance > torch.minimum(log_a, log_b)).all()


def test_while_training_each_member_sees_its_own_part_of_a_batch():
    config = NetworkConfig(planes=3, labels=2, base=4, levels=2, high_pass_px=8.0, members=2)
    network = LiveNetwork(config).train()
    nn.init.normal_(network.head.weight, std=0.3)
    x = torch.randn(4, 3, 16, 16)
    mean, _ = network(x)
    assert mean.shape == (4, 2, 16, 16)
    mean[:2].sum().backward()
    of_first = [p.grad for name, p in network.named_parameters() if not name.startswith("others")]
    assert any(g is not None and g.abs().sum() > 0 for g in of_first)
    assert all(p.grad is None or not p.grad.any() for p in network.others.parameters())
