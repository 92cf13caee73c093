"""An SD learned where the truth is bright: means and gate stay as they were, errors are ranked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from scipy.stats import spearmanr

from acq_isl.engines.graph_tags import extract, read_tags
from acq_isl.engines.model_file import read_model
from acq_isl.errors import ExperimentError, ModelError
from acq_isl.training.calibrate import _rescale
from acq_isl.training.doubt_head import (
    SPREAD_BEFORE,
    DoubtHead,
    last_activations,
    with_doubt,
    without_floor,
)
from acq_isl.training.fit_doubt import Cells, _fold, add_doubt, learn
from acq_isl.training.fit_gate import Scene
from acq_isl.training.window_cost import STATISTICS, CostFit, with_cost, with_statistics
from doubles import tiny_model as tiny

SIDE = 160


def scaled(model: onnx.ModelProto) -> None:
    """A defect that is none: the SD is multiplied by a weight, as of a trained network."""
    model.graph.node[-1].output[0] = "sd"
    model.graph.node.append(helper.make_node("Mul", ["sd", "spread_scale"], ["spread"]))
    scale = np.array([2.0, 3.0], np.float32).reshape(1, 2, 1, 1)
    model.graph.initializer.append(numpy_helper.from_array(scale, "spread_scale"))


def run(content: bytes, *outputs: str) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    counts = np.ascontiguousarray(tiny.stack((SIDE, SIDE + 32)).pixels, "<u2")
    feeds = {"stack": counts.view(np.uint8).reshape(1, *counts.shape, 2)}
    return session.run(list(outputs), feeds | {"inv_sd": np.full(1, 1 / counts.std(), np.float32)})


def some_head(seed: int = 0) -> DoubtHead:
    rng = np.random.default_rng(seed)
    parts = ((6, 8), (6,), (2, 6), (2,))
    return DoubtHead(*(rng.normal(scale=0.3, size=shape).astype(np.float32) for shape in parts))


def gated() -> bytes:
    content = tiny.content(defect=scaled)
    (statistics,) = run(with_statistics(content, tiny.MANIFEST), STATISTICS)
    rng = np.random.default_rng(1)
    features = statistics.shape[1]
    mean, centres = rng.normal(size=features), rng.normal(size=(9, features))
    fit = CostFit(mean, np.full(features, 2.0), centres, rng.normal(size=9), 0.02, 0.3)
    return with_cost(content, tiny.MANIFEST, fit)


def test_means_and_distances_stay_to_the_bit_and_the_sd_is_the_heads() -> None:
    before, head = gated(), some_head()
    made = with_doubt(before, head, (True, False))
    for old, new in zip(run(before, "mean", "distance"), run(made, "mean", "distance"), strict=True):
        np.testing.assert_array_equal(new, old)
    shown = onnx.load_from_string(made)
    shown.graph.output.append(helper.make_tensor_value_info("active", onnx.TensorProto.FLOAT, None))
    active, spread, mean = run(shown.SerializeToString(), "active", "spread", "mean")
    hidden = np.einsum("hc,nc...->nh...", head.first, active) + head.first_bias[:, None, None]
    log = np.einsum("lh,nh...->nl...", head.second, hidden.clip(0)) + head.second_bias[:, None, None]
    (before_sd,) = run(before, "spread")
    floor = before_sd * ((mean - 0.25) / 0.05).clip(0, 1)
    wanted = np.exp(log.clip(-9, 3) / 2)
    wanted[:, 0] = np.maximum(wanted[:, 0], floor[:, 0])  # of the first label alone
    np.testing.assert_allclose(spread, wanted, rtol=1e-4)
    assert 0.05 < (wanted[:, 0] == floor[:, 0]).mean() < 0.95  # both are tried


def test_the_scale_is_fitted_to_the_head_alone() -> None:
    made = with_doubt(gated(), some_head(), (True, True))
    bare = without_floor(made)
    assert bare is not None
    assert without_floor(gated()) is without_floor(with_doubt(gated(), some_head())) is None
    floored, alone = run(made, "spread")[0], run(bare, "spread")[0]
    assert (floored >= alone).all() and (floored > alone).any()
    scaled_by = _rescale(made, tiny.MANIFEST.model_copy(update={"spread_scale": (2.0, 2.0)}))
    np.testing.assert_allclose(run(without_floor(scaled_by) or b"", "spread")[0], 2 * alone, rtol=1e-6)


def test_a_head_is_replaced_by_another_and_the_gate_goes_on_looking_at_the_first_sd() -> None:
    before = gated()
    once = with_doubt(before, some_head())
    twice = with_doubt(with_doubt(before, some_head(1)), some_head())
    names = ("mean", "spread", "distance")
    for a, b in zip(run(once, *names), run(twice, *names), strict=True):
        np.testing.assert_array_equal(a, b)
    model = onnx.load_from_string(twice)
    assert len(model.graph.node) == len(onnx.load_from_string(once).graph.node)
    tags = read_tags(model)
    assert tags is not None and SPREAD_BEFORE in tags.gate and len(tags.heads) == 2
    extract(model, tags.gate, ("distance",))
    extract(model, (tags.normalised,), ("mean", "spread", SPREAD_BEFORE))


def test_a_gate_fitted_afterwards_looks_at_the_sd_as_it_is_given() -> None:
    made = with_doubt(gated(), some_head())
    (statistics,) = run(with_statistics(made, tiny.MANIFEST), STATISTICS)
    features = statistics.shape[1]
    zeros = np.zeros((1, features))
    fit = CostFit(np.zeros(features), np.ones(features), zeros, np.ones(1), 0.02, 0.0)
    model = onnx.load_from_string(with_cost(made, tiny.MANIFEST, fit))
    tags = read_tags(model)
    assert tags is not None and SPREAD_BEFORE not in tags.gate and "spread" in tags.gate
    (old,) = run(with_statistics(gated(), tiny.MANIFEST), STATISTICS)
    assert not np.allclose(statistics, old)


def test_models_that_can_be_given_no_head_are_told() -> None:
    with pytest.raises(ModelError, match="spread_scale"):
        with_doubt(tiny.content(), some_head())
    two = onnx.load_from_string(tiny.content(defect=scaled))
    tags = read_tags(two)
    assert tags is not None
    text = tags.model_copy(update={"heads": ("answers", "features")}).model_dump_json()
    (entry,) = [each for each in two.metadata_props if "graph" in each.key]
    entry.value = text
    with pytest.raises(ModelError, match="2 last convolutions"):
        last_activations(two)


def test_squares_become_channels_as_torch_does_it() -> None:
    images = np.random.default_rng(0).normal(size=(3, 12, 8)).astype(np.float32)
    wanted = torch.pixel_unshuffle(torch.from_numpy(images), 2).numpy()
    np.testing.assert_array_equal(_fold(images, 2), wanted)
    np.testing.assert_array_equal(_fold(images, 1), images)


def cells(count: int = 30_000) -> Cells:
    """Background that is right but for .02; what is bright is half missed where the first activation is 1,
    which is so in one place of the background in fifty."""
    rng = np.random.default_rng(0)
    bright = rng.random(count) < 0.05
    missed = np.where(bright, rng.random(count) < 0.5, rng.random(count) < 0.02)
    sd = np.where(bright, np.where(missed, 0.5, 0.15), 0.02)
    error = sd * rng.normal(size=count)
    x = np.stack([missed, bright & ~missed, rng.random(count)], axis=1).astype(np.float32)
    ones = np.ones(count, np.float32)
    return Cells(x, np.square(error)[:, None].astype(np.float32), bright[:, None], ones)


def test_the_doubt_is_large_where_something_bright_is_missed() -> None:
    made = cells()
    head = learn(made, steps=150)
    log = np.maximum(made.activations @ head.first.T + head.first_bias, 0) @ head.second.T + head.second_bias
    sd, error, bright = np.exp(log[:, 0] / 2), np.sqrt(made.squares[:, 0]), made.bright[:, 0]
    assert spearmanr(sd[bright], error[bright]).statistic > 0.3
    missed = made.activations[:, 0] > 0
    assert sd[missed & bright].mean() == pytest.approx(0.5, rel=0.25)
    assert sd[~missed & ~bright].mean() < 0.05


def test_without_anything_bright_nothing_is_learned() -> None:
    made = cells()
    dark = Cells(made.activations, made.squares, np.zeros_like(made.bright), made.weight)
    with pytest.raises(ExperimentError, match="something bright"):
        learn(dark)


def test_a_model_file_is_written_whose_scale_is_not_fitted_yet(tmp_path: Path) -> None:
    model = tiny.write(tmp_path, defect=scaled)
    truth = np.zeros((2, SIDE, SIDE), np.float32)
    truth[:, 40:80, 40:80] = 0.8
    scenes = [Scene("field", tiny.stack((SIDE, SIDE)).pixels, truth)]
    add_doubt(model, scenes, tmp_path / "with doubt.onnx")
    found = read_model(tmp_path / "with doubt.onnx").info.manifest
    assert found.spread_scale == (1.0, 1.0) and found.spread_slope == ()
    with pytest.raises(ExperimentError, match="no label cells"):
        add_doubt(model, scenes, tmp_path / "other.onnx", floored=["cells"])
