"""What is unlike the training set is flagged, what is like it is not; the graph computes what was fitted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from acq_isl.errors import ExperimentError
from acq_isl.manifest import Gate
from acq_isl.processing.normalize import contrast_sd
from acq_isl.training.data.source_simulated import SimulationConfig, simulate
from acq_isl.training.network import LiveNetwork, NetworkConfig
from acq_isl.training.ood_gate import (
    NAMES,
    FeatureNormal,
    GateHead,
    PolarityDiscriminant,
    describe,
    fit_gate,
    leave_out,
    window_statistics,
)

RECORDED = Path(__file__).resolve().parents[3] / "shared" / "data" / "isl_condition_b"
SMALL = NetworkConfig(planes=5, labels=2, base=4, levels=3, high_pass_px=10.0)

Stack = NDArray[np.float32]


def network_of(config: NetworkConfig) -> LiveNetwork:
    torch.manual_seed(0)
    return LiveNetwork(config).eval()


def soft_stack(seed: int, side: int = 512) -> torch.Tensor:
    """Dark blobs on a bright ground that come into focus from plane to plane, with noise."""
    rng = np.random.default_rng(seed)
    ground = ndimage.gaussian_filter(rng.standard_normal((side, side)), 3.0)
    blobs = -np.clip(ground / ground.std() - 0.5, 0, None)
    blobs -= blobs.mean()
    planes = [ndimage.gaussian_filter(blobs, 0.7 + abs(z - 3)) + 0.1 * rng.standard_normal(blobs.shape)
              for z in range(5)]  # fmt: skip
    return torch.from_numpy(np.stack(planes).astype(np.float32))


def normalise(network: LiveNetwork, part: Stack) -> torch.Tensor:
    """(z, y, x) counts, cut to the network's step, as the network takes them."""
    part = np.clip(np.rint(part), 0, 65535)[:, : part.shape[1] // 16 * 16, : part.shape[2] // 16 * 16]
    high_pass_px = network.config.high_pass_px
    sd = torch.tensor([1 / contrast_sd(part.astype(np.uint16), high_pass_px)], dtype=torch.float32)
    with torch.no_grad():
        return network.normalise(torch.from_numpy(np.ascontiguousarray(part))[None], sd)[0]


def flagged(head: GateHead, gate: Gate, network: LiveNetwork, x: torch.Tensor) -> tuple[float, set[str]]:
    """Share of windows above a limit, and the distances whose median is."""
    with torch.no_grad():
        distances = head(x[None], network.predict_with_features(x[None])[2])[0].flatten(1).numpy()
    above = distances > np.array(gate.limits)[:, None]
    median = np.median(distances, axis=1) > np.array(gate.limits)
    return float(above.any(axis=0).mean()), {n for n, out in zip(gate.names, median, strict=True) if out}


@pytest.fixture(scope="module")
def fitted() -> tuple[LiveNetwork, GateHead, Gate]:
    network = network_of(SMALL)
    return network, *fit_gate(network, [soft_stack(n) for n in range(3)])


def test_another_stack_of_the_same_kind_passes(fitted: tuple[LiveNetwork, GateHead, Gate]) -> None:
    network, head, gate = fitted
    assert gate.names == NAMES and gate.false_alarms <= 0.1
    share, names = flagged(head, gate, network, soft_stack(9))
    assert share <= 0.1 and not names


@pytest.mark.parametrize(
    ("change", "by"),
    [
        (lambda x: x.flip(0), "focus"),
        (lambda x: x[2:3].repeat(5, 1, 1), "focus"),
        (lambda x: -x, "polarity"),
        (lambda x: torch.from_numpy(ndimage.gaussian_filter(x.numpy(), (0, 2, 2))), "focus"),
        (torch.randn_like, "focus"),
    ],
    ids=["reversed", "one plane", "inverted", "blurred", "noise"],
)
def test_what_is_wrong_is_flagged_and_named(
    fitted: tuple[LiveNetwork, GateHead, Gate], change: Callable[[torch.Tensor], torch.Tensor], by: str
) -> None:
    network, head, gate = fitted
    share, names = flagged(head, gate, network, change(soft_stack(9)))
    assert by in names and share > 0.9


def test_the_graph_computes_the_distances_that_were_fitted() -> None:
    network, stack = network_of(SMALL), soft_stack(1)
    features, focus, odd = (one.reshape(-1, one.shape[-1]) for one in describe(network, stack))
    normals, polarity = (FeatureNormal.fit(features), FeatureNormal.fit(focus)), PolarityDiscriminant.fit(odd)
    head = GateHead(SMALL.size_step_px, *normals, polarity)
    with torch.no_grad():
        got = head(stack[None], network.predict_with_features(stack[None])[2])[0].flatten(1).numpy()
    wanted = normals[0].distance(features), normals[1].distance(focus), polarity.distance(odd)
    for one, other in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


def test_statistics_of_a_window_do_not_depend_on_what_lies_elsewhere() -> None:
    network, x = network_of(SMALL), soft_stack(2)[None]
    bottom = network.predict_with_features(x)[2].detach()
    whole = window_statistics(x, bottom, SMALL.size_step_px)
    step = SMALL.size_step_px
    rows, columns = slice(64 // step, 192 // step), slice(128 // step, 256 // step)
    part = window_statistics(x[..., 64:192, 128:256], bottom[..., rows, columns], step)
    for one, other in zip(whole, part, strict=True):
        torch.testing.assert_close(one[..., 1, 2], other[..., 0, 0], rtol=1e-5, atol=1e-5)


def test_the_odds_turn_with_the_contrast() -> None:
    rows = np.random.default_rng(0).normal(0.3, 1.0, (200, 6))
    polarity = PolarityDiscriminant.fit(rows)
    np.testing.assert_allclose(polarity.distance(-rows), -polarity.distance(rows))
    assert np.mean(polarity.distance(rows)) < 0


def test_limits_that_cannot_be_right_are_never_written() -> None:
    """A fifth of the field is nothing like the rest, so what was left out lies far from every fit."""
    stack = soft_stack(0)
    stack[:, :, :128] = 8 * stack[:, :, :128].roll(1, dims=0) ** 3
    with pytest.raises(ExperimentError, match="unlike") as caught:
        fit_gate(network_of(SMALL), [stack])
    assert "focus" in (caught.value.got or "") or "features" in (caught.value.got or "")


NAN = float("nan")


@pytest.mark.parametrize(
    ("limits", "told", "left"),
    [
        ((1.2, 1.9, 3.0), 0.9, NAMES),
        ((47934.0, 1.4, 3.0), 0.9, ("focus", "polarity")),
        ((1.2, NAN, 3.0), 0.9, ("features", "polarity")),
        ((1.2, 1.9, float("inf")), 0.9, ("features", "focus")),
        ((1.2, 1.9, 3.0), 0.4, ("features", "focus")),  # cannot tell a negative
        ((1.2, 0.0, 3.0), 0.9, ("features", "polarity")),
        ((47934.0, NAN, 3.0), 0.9, None),
    ],
)
def test_a_check_whose_limit_cannot_be_right_is_left_out_and_told(
    limits: tuple[float, ...], told: float, left: tuple[str, ...] | None, caplog: pytest.LogCaptureFixture
) -> None:
    found = dict(zip(NAMES, limits, strict=True))
    if left is None:
        with pytest.raises(ExperimentError, match="unlike"):
            leave_out(found, told)
        return
    assert tuple(leave_out(found, told)) == left
    assert all(f"no check of {name}" in caplog.text for name in set(NAMES) - set(left))


def test_a_model_that_knows_both_polarities_has_no_limit_on_it() -> None:
    both = [soft_stack(0, 384), -soft_stack(1, 384)]
    network = network_of(SMALL)
    head, gate = fit_gate(network, both)
    assert gate.names == head.names == ("features", "focus")
    assert not flagged(head, gate, network, -soft_stack(9, 384))[1]


def halves_of(name: str) -> tuple[Stack, NetworkConfig]:
    """A (z, y, x) field of counts, and a network for it."""
    if name == "simulated":
        pair = simulate(SimulationConfig(seed=3, side_px=704, planes=5, z_step_um=(2.0, 2.0)), 0)
        return pair.stack.astype(np.float32), SMALL
    import tifffile

    return tifffile.imread(RECORDED / "phase_contrast.ome.tif").astype(np.float32), NetworkConfig()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "simulated",
        pytest.param("recorded", marks=pytest.mark.skipif(not RECORDED.is_dir(), reason="needs ../shared")),
    ],
)
def test_a_gate_fitted_to_one_half_of_a_field_does_not_refuse_the_other(name: str) -> None:
    stack, config = halves_of(name)
    network, middle = network_of(config), stack.shape[2] // 2
    left, right = (normalise(network, part) for part in (stack[:, :, :middle], stack[:, :, middle:]))
    for fitted, other in ((left, right), (right, left)):
        head, gate = fit_gate(network, [fitted])
        assert all(0 < limit < 10 for limit in gate.limits)
        assert not flagged(head, gate, network, other)[1]


def test_a_network_of_coarser_steps_gets_a_gate_too() -> None:
    coarse = network_of(NetworkConfig(planes=5, labels=1, base=4, levels=4, high_pass_px=10.0, fold=4))
    assert coarse.config.size_step_px == 32
    _, gate = fit_gate(coarse, [soft_stack(n, side=384) for n in range(2)])
    assert all(limit > 0 for limit in gate.limits)


def test_too_few_windows_are_an_error_with_a_number() -> None:
    with pytest.raises(ExperimentError, match="too few") as caught:
        fit_gate(network_of(SMALL), [soft_stack(0, side=256)])
    assert "9" in (caught.value.got or "")


def conditions() -> dict[str, Callable[[Stack], Stack]]:
    """The nine of the mismatch table; those of docs/models.md."""
    at = np.arange(13)
    return {
        "as trained": lambda s: s,
        "z reversed": lambda s: s[::-1],
        "z shifted 6 planes": lambda s: s[np.clip(at + 6, 0, 12)],
        "one plane repeated": lambda s: np.repeat(s[6:7], 13, axis=0),
        "z step x2": lambda s: (s[::2][at // 2] + s[::2][(at + 1) // 2]) / 2,
        "magnification x.5": lambda s: (s[:, ::2, ::2] + s[:, 1::2, 1::2]) / 2,
        "magnification x2": lambda s: ndimage.zoom(s, (1, 2, 2), order=1),
        "contrast inverted": lambda s: 65535 - s,
        "blur 2 px": lambda s: ndimage.gaussian_filter(s, (0, 2, 2)),
    }  # fmt: skip


@pytest.mark.skipif(not RECORDED.is_dir(), reason="needs ../shared/data/isl_condition_b")
def test_all_conditions_of_the_table_on_held_out_columns_of_the_recorded_field() -> None:
    """Fitted to columns 0-437, tested on 480-703; two of the three distances need no training."""
    import tifffile

    stack = tifffile.imread(RECORDED / "phase_contrast.ome.tif").astype(np.float32)
    network = network_of(NetworkConfig())
    head, gate = fit_gate(network, [normalise(network, stack[:, :, :432])])
    for name, change in conditions().items():
        x = normalise(network, change(stack[:, :, 448:]))
        share, names = flagged(head, gate, network, torch.cat([x, x.flip(2)], 2) if x.shape[2] < 128 else x)
        assert (share <= 0.05 and not names) if name == "as trained" else (share > 0.9 and names), name
