"""A gate that follows harm: costs are estimated in the graph as they were fitted, in every back end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acq_isl.compatibility import Refuse, check
from acq_isl.engines import fp16
from acq_isl.engines.agreement import agreement
from acq_isl.engines.model_file import output_names, read_model
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.errors import ExperimentError, ModelError, StackRefused
from acq_isl.manifest import Gate
from acq_isl.stack import StackInfo
from acq_isl.training.conditions import AS_IS, TABLE, draw
from acq_isl.training.fit_gate import HARMFUL, Case, Judge, Scene, add_cost, fit_cost
from acq_isl.training.window_cost import STATISTICS, CostFit, with_cost, with_statistics
from doubles import tiny_model as tiny

PLANES, SIDE = tiny.PLANES, 192
RNG = np.random.default_rng(5)


def run(content: bytes, stack: np.ndarray, *outputs: str) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    counts = np.ascontiguousarray(stack, "<u2")
    inverse = np.full(1, 1 / counts.std(), np.float32)
    return session.run(
        list(outputs), {"stack": counts.view(np.uint8).reshape(1, *counts.shape, 2), "inv_sd": inverse}
    )


def some_fit(features: int) -> CostFit:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(20, features))
    return CostFit(rng.normal(size=features), np.full(features, 2.0), centres, rng.normal(size=20), 0.02, 0.3)


def scene(seed: int) -> Scene:
    """A stack whose truth is what the tiny model predicts of it as it is."""
    stack = tiny.stack((SIDE, SIDE), seed=seed).pixels
    (mean,) = run(tiny.content(), stack, "mean")
    return Scene(f"scene {seed}", stack, mean[0])


def test_the_table_has_all_conditions_and_none_of_them_makes_anything_but_stacks() -> None:
    assert len(TABLE) >= 45
    stack = tiny.stack((160, 176)).pixels
    info = StackInfo(tiny.stack().info.key, tiny.MANIFEST.z_offsets_um, stack.shape[1:], 0.3)
    for name, condition in TABLE.items():
        first, again = (condition.perturb(stack, np.random.default_rng(2)) for _ in range(2))
        assert first.dtype == np.uint16 and first.ndim == 3, name
        np.testing.assert_array_equal(first, again)
        assert len(condition.say(info).z_um) == len(first), name
    np.testing.assert_array_equal(TABLE[AS_IS].perturb(stack, RNG), stack)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_conditions_at_random_strength_are_stacks_of_some_kind(seed: int) -> None:
    rng = np.random.default_rng(seed)
    stack = tiny.stack((96, 112)).pixels
    kind, condition = draw(rng)
    found = condition.perturb(stack, rng)
    assert kind and found.dtype == np.uint16 and 0 < condition.zoom < 3 and min(found.shape) > 1


def test_the_graph_estimates_what_was_fitted_and_predicts_what_it_did() -> None:
    content, stack = tiny.content(), tiny.stack((SIDE, SIDE + 64)).pixels
    mean, statistics = run(with_statistics(content, tiny.MANIFEST), stack, "mean", STATISTICS)
    fit = some_fit(statistics.shape[1])
    made = with_cost(content, tiny.MANIFEST, fit)
    same, distance = run(made, stack, "mean", "distance")
    np.testing.assert_array_equal(same, mean)
    rows = statistics[0].reshape(statistics.shape[1], -1).T.astype(np.float64)
    np.testing.assert_allclose(distance[0, 0].ravel(), 100 * fit.estimate(rows), rtol=1e-3, atol=1e-2)
    # Fitting anew takes the place of what was there.
    again = with_cost(made, tiny.MANIFEST, fit)
    np.testing.assert_array_equal(run(again, stack, "distance")[0], distance)
    assert len(onnx.load_from_string(again).graph.node) == len(onnx.load_from_string(made).graph.node)


def test_a_model_without_tags_or_with_other_windows_is_told(tmp_path: Path) -> None:
    def untagged(model: onnx.ModelProto) -> None:
        kept = [entry for entry in model.metadata_props if "graph" not in entry.key]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)

    with pytest.raises(ModelError, match="--tags"):
        with_statistics(tiny.content(defect=untagged), tiny.MANIFEST)
    path = tiny.write(tmp_path, manifest=tiny.GATED, defect=tiny.gated)
    with pytest.raises(ModelError, match="beside the distances"):
        list(Judge(read_model(path)).cases(scene(0), [], 0))


def made_up(scenes: int, level: float) -> list[Case]:
    """Cases whose cost is the square of one statistic of three, times a level."""
    rng = np.random.default_rng(3)
    cases = []
    for number in range(scenes):
        for kind in [AS_IS] + ["strange"] * 30:
            off = 0.0 if kind == AS_IS else rng.uniform(-2, 2)
            windows = np.column_stack([off + 0.05 * rng.normal(size=9), rng.normal(size=(9, 2))])
            cases.append(Case(f"scene {number}", kind, level * off**2, windows, np.zeros(0)))
    return cases


def test_harm_is_caught_and_what_is_harmless_is_not(tmp_path: Path) -> None:
    judge = Judge(read_model(tiny.write(tmp_path)))
    _, gate = fit_cost(made_up(12, 0.05), judge, "made up")
    judged = gate.judged
    assert gate.names == ("cost",) and judged is not None
    assert judged.caught >= 0.9 and judged.refused <= 0.1 and judged.clean_windows <= 0.05
    assert judged.harmful == sum(case.cost > HARMFUL for case in made_up(12, 0.05))


@pytest.mark.parametrize(("scenes", "level"), [(4, 0.05), (12, 0.0)], ids=["few scenes", "nothing harms"])
def test_no_limit_is_written_where_none_can_be_right(tmp_path: Path, scenes: int, level: float) -> None:
    judge = Judge(read_model(tiny.write(tmp_path)))
    with pytest.raises(ExperimentError, match="no cost can be estimated"):
        fit_cost(made_up(scenes, level), judge, "made up")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    add_cost(tiny.write(folder), [scene(seed) for seed in range(9)], "tiny scenes", folder / "fitted.onnx")
    return folder / "fitted.onnx"


def test_every_back_end_gives_the_same_verdict_in_plain_words(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from acq_isl.engines.openvino.engine import OpenVinoEngine

    monkeypatch.setenv("ACQ_ISL_CACHE", str(tmp_path))
    clean = tiny.stack((SIDE, SIDE), seed=20)
    names = (AS_IS, "blur 1 px", "blur 4 px", "magnification x2", "blurred noise")
    stacks = [replace(clean, pixels=TABLE[name].perturb(clean.pixels, RNG)) for name in names]
    found = []
    engines = OnnxEngine(fitted), OpenVinoEngine(fitted, threads=1), OpenVinoEngine(fitted, precision="fp32")
    for engine in engines:
        with engine:
            costs = [engine.rehearse(stack)[0].distances[-1] for stack in stacks]
            with pytest.raises(StackRefused, match=r"predictions on such a stack cost about \.\d\d r"):
                engine.predict(stacks[-1])
            found.append([cost.value - cost.limit for cost in costs])
            assert {cost.name for cost in costs} == {"cost"}
    reference = np.array(found[0])
    for other in found[1:]:
        np.testing.assert_allclose(other, reference, atol=0.5)  # hundredths of r
        sure = np.abs(reference) > 0.5
        assert sure.any() and ((np.array(other) > 0) == (reference > 0))[sure].all()


def test_what_a_model_bears_is_used_with_a_note() -> None:
    model, info = tiny.MANIFEST, tiny.stack().info
    lenient = model.model_copy(update={"tolerates": frozenset({"polarity", "half the z range"})})
    for changed, word in (
        (replace(info, polarity="bright"), "inverted"),
        (replace(info, z_um=tuple(z / 2 for z in info.z_um)), "measured to bear"),
    ):
        assert isinstance(check(model, changed), Refuse)
        verdict = check(lenient, changed)
        assert not isinstance(verdict, Refuse) and word in str(verdict)
    flat = replace(info, z_um=tuple(z / 4 for z in info.z_um))
    assert isinstance(check(lenient, flat), Refuse)


def test_in_fp16_the_estimate_stays_what_it_is() -> None:
    stack = tiny.stack((SIDE, SIDE)).pixels
    (statistics,) = run(with_statistics(tiny.content(), tiny.MANIFEST), stack, STATISTICS)
    gate = Gate(names=("cost",), limits=(4.0,), false_alarms=0.0)
    manifest = tiny.MANIFEST.model_copy(update={"gate": gate, "min_tile_px": 128})
    fit = replace(some_fit(statistics.shape[1]), weights=np.full(20, 0.01), out=0.02)
    made = with_cost(tiny.content(manifest=manifest), manifest, fit)
    close = agreement(made, fp16.rehearsal(made, output_names(manifest)), manifest)
    assert 0 < close.distance < 0.02
