"""The live network, its normalisation, its batches, and a training run that can be stopped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from acq_isl.errors import ExperimentError, ModelError
from acq_isl.normalize import contrast_sd
from acq_isl.training.assess import calibrate, count, measure_halo
from acq_isl.training.config import Optimisation, TrainConfig, load_config
from acq_isl.training.dataset import batch, prepare
from acq_isl.training.network import LiveNetwork, NetworkConfig, Normalise, beta_nll
from acq_isl.training.simulate import Pair, SimulationConfig, cached, simulate
from acq_isl.training.train import Training, learning_rate, run

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
    return prepare([blobs(1), blobs(2)], Normalise(3, 8.0), 8.0)


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


@pytest.mark.parametrize("sigma", [4.0, 20.0])
def test_background_is_the_gaussian_of_the_core(sigma):
    rng = np.random.default_rng(3)
    plane = (
        20000
        + 4000 * ndimage.gaussian_filter(rng.standard_normal((256, 256)), 12)
        + rng.normal(0, 50, (256, 256))
    )
    got = Normalise(1, sigma).background(torch.from_numpy(plane.astype(np.float32))[None, None])[0, 0].numpy()
    wanted = ndimage.gaussian_filter(plane, sigma)
    inside = slice(64, -64)
    assert np.abs(got - wanted)[inside, inside].max() < 0.1 * plane.std()


def test_gain_and_offset_cancel():
    stack = blobs().stack
    normalise = Normalise(3, 8.0)

    def normalised(counts):
        inv_sd = torch.tensor([1 / contrast_sd(counts, 8.0)], dtype=torch.float32)
        return normalise(torch.from_numpy(counts.astype(np.float32))[None], inv_sd).numpy()

    np.testing.assert_allclose(
        normalised(stack), normalised((stack // 2 + 1000).astype(np.uint16)), atol=0.05
    )


def test_loss_is_least_at_the_truth_with_the_right_spread():
    target = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.3
    losses = {
        v: float(beta_nll(torch.zeros_like(target), torch.full_like(target, np.log(v)), target, 0.0))
        for v in (0.03, 0.09, 0.3)
    }
    assert min(losses, key=losses.get) == 0.09
    assert beta_nll(target, torch.zeros_like(target), target) < beta_nll(
        target + 1, torch.zeros_like(target), target
    )


def test_learning_rate_rises_and_falls():
    settings = Optimisation(steps=100)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert np.argmax(rates) in range(8, 13)
    assert rates[-1] < 0.01 * max(rates)
    assert max(rates) <= settings.learning_rate


def test_batches_depend_on_their_random_numbers_only(fields):
    a = batch(fields, np.random.default_rng(1), 4, 32)
    b = batch(fields, np.random.default_rng(1), 4, 32)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert a[0].shape == (4, 3, 32, 32)
    assert a[1].shape == (4, 3, 32, 32)
    assert 0 <= float(a[1].min()) <= float(a[1].max()) <= 1


def test_training_learns(fields):
    config = tiny(steps=40)
    training = Training.start(config)
    losses = [training.advance(fields, config.optimisation) for _ in range(40)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_a_stopped_run_goes_on_as_if_it_had_not(fields, tmp_path):
    config = tiny()
    straight = Training.start(config)
    for _ in range(6):
        straight.advance(fields, config.optimisation)
    first = Training.start(config)
    for _ in range(3):
        first.advance(fields, config.optimisation)
    first.save(tmp_path / "checkpoint.npz")
    second = Training.start(config)
    second.load(tmp_path / "checkpoint.npz")
    assert second.step == 3
    for _ in range(3):
        second.advance(fields, config.optimisation)
    for (name, a), b in zip(
        straight.average.state_dict().items(), second.average.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    Training.start(tiny()).save(tmp_path / "checkpoint.npz")
    other = Training.start(tiny().model_copy(update={"base": 8}))
    with pytest.raises(ModelError, match="another network"):
        other.load(tmp_path / "checkpoint.npz")


def test_a_whole_run_leaves_a_model(tmp_path):
    path = run(tiny(), tmp_path)
    assert path.stat().st_size > 1000
    assert (tmp_path / "checkpoint.npz").exists()
    assert len(list((tmp_path / "fields").iterdir())) == 3


def test_simulated_pairs_are_seeded_and_kept(tmp_path):
    config = tiny().simulation
    pair, again = simulate(config, 1), cached(config, 1, tmp_path)
    kept = cached(config, 1, tmp_path)
    for other in (again, kept):
        np.testing.assert_array_equal(pair.stack, other.stack)
        np.testing.assert_array_equal(pair.labels, other.labels)
    assert pair.stack.shape == (3, 64, 64)
    assert 3000 < pair.stack.std() < 9000
    assert not np.array_equal(pair.stack, simulate(config, 0).stack)


def test_calibration_makes_the_error_one_spread(fields):
    network = LiveNetwork(tiny().network).eval()
    scale = calibrate(network, fields)
    # An untrained network predicts 0 with spread 1.
    wanted = [np.sqrt(np.mean([np.mean((f.y[i] / 255) ** 2) for f in fields])) for i in range(3)]
    np.testing.assert_allclose(scale, wanted, rtol=1e-4)


def test_halo_lies_within_the_receptive_field(fields):
    torch.manual_seed(0)
    network = LiveNetwork(NetworkConfig(3, 3, 4, 2, 8.0)).eval()
    torch.nn.init.normal_(network.head.weight)
    halo = measure_halo(network, blobs(4, 192))
    # Background: 3 sigma and a block, 28 px; two levels of convolutions at half resolution: 24 px.
    assert 8 < halo <= 60
    assert halo % network.config.size_step_px == 0


def test_objects_are_counted_above_a_size():
    image = np.zeros((64, 64))
    image[5:15, 5:15] = image[30:40, 30:50] = 1.0
    image[60, 60] = 1.0
    assert count(image) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a\nversion: '1'\ndescription: b\nbases: 3\n", "bases"),
        ("name: a\nversion: '1'\ndescription: b\nsimulation: {feilds: 3}\n", "feilds"),
        ("name: [", "cannot be read"),
    ],
)
def test_a_wrong_training_file_is_explained(tmp_path, text, says):
    path = tmp_path / "train.yaml"
    path.write_text(text)
    with pytest.raises(ExperimentError, match=says):
        load_config(path)
