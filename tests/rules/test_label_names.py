"""Several models' labels under names that differ, and what models say of one field as one outcome."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from acq_isl.errors import ModelError
from acq_isl.manifest import Label, Manifest
from acq_isl.rules.label_names import Labels, RunModel, combine_status, merge_outcomes, status_of
from acq_isl.stack import Outcome, Prediction, Refusal, StackInfo, StackKey, StageTimes, Unpredicted

INFO = StackInfo(StackKey(0, "A1", "Phase"), (0.0,), (4, 4), 0.3)


def manifest(*labels: str, name: str = "m", color: str = "#ffffff") -> Manifest:
    return Manifest(
        name=name,
        version="1",
        licence="BSD-3-Clause",
        description="",
        modality="phase contrast",
        polarity="dark",
        pixel_size_um=0.3,
        z_offsets_um=(0.0,),
        high_pass_um=3.0,
        labels=tuple(Label(name=one, marker="DAPI", color=color) for one in labels),
        min_tile_px=32,
        halo_px=4,
        size_step_px=8,
        trained_on="nothing",
    )


def predicted(model: str, *labels: str, value: float = 0.5, warnings: tuple[str, ...] = ()) -> Prediction:
    mean = np.full((len(labels), 4, 4), value, np.float32)
    times = StageTimes(infer_ms=100 * value, wait_ms=10 / value)
    return Prediction(
        INFO, labels, mean, mean / 2, model * 2, f"{model} 1", "cpu", warnings, 3, times, model=model
    )


REFUSED = Refusal(INFO, "reversed planes", "turn them", "b")
LATE = Unpredicted(INFO, "not begun in time", "spool", "c")


def test_only_labels_that_several_models_predict_are_qualified() -> None:
    labels = Labels([RunModel("a", manifest("nuclei", "axons")), RunModel("b", manifest("axons", "soma"))])
    assert labels.names == ("nuclei", "a/axons", "b/axons", "soma")
    assert [labels.owner(one) for one in labels.names] == ["a", "a", "b", "b"]
    assert [labels.name_in_model(one) for one in labels.names] == ["nuclei", "axons", "axons", "soma"]
    assert labels.owner("axons") is None and labels.owner("a/nuclei") is None
    assert labels.rename(predicted("b", "axons", "soma")).labels == ("b/axons", "soma")
    assert labels.by_model == {"nuclei": "a", "a/axons": "a", "b/axons": "b", "soma": "b"}


def test_one_model_keeps_its_labels_and_needs_no_name() -> None:
    labels = Labels([RunModel("", manifest("nuclei"), "ab" * 32)])
    one = predicted("", "nuclei")
    assert labels.rename(one) is one and labels.owner("whatever") == "" and labels.by_model == {}
    assert labels.titles == "m 1 (abababababab)"


def test_hues_of_two_models_are_told_apart() -> None:
    both = Labels(
        [RunModel("a", manifest("x", color="#56B4E9")), RunModel("b", manifest("y", color="#56b4e9"))]
    )
    assert both.colors["x"] == "#56B4E9" and both.colors["y"].lower() != "#56b4e9"
    assert both.store_colors["b/y"] == both.colors["y"]


def test_labels_nobody_knows_yet_are_found_by_their_model() -> None:
    labels = Labels([RunModel("a"), RunModel("b")])
    assert labels.owner("b/axons") == "b" and labels.owner("axons") is None and not labels.names
    assert labels.rename(predicted("b", "axons")).labels == ("b/axons",)


@pytest.mark.parametrize(
    "models",
    [
        [RunModel("a", manifest("b/c", "d")), RunModel("a/b", manifest("c")), RunModel("x", manifest("c"))],
        [RunModel(name, manifest(*(f"{name}{n}" for n in range(20)))) for name in "ab"],
    ],
)
def test_labels_that_cannot_be_shown_together_are_refused(models: list[RunModel]) -> None:
    labels = [one.name for model in models if model.manifest for one in model.manifest.labels]
    if len(labels) < 32:
        models = [*models, RunModel("y", manifest("a/b/c"))]
    with pytest.raises(ModelError, match="cannot be shown together"):
        Labels(models)


def test_labels_of_all_that_predicted_are_there_and_the_rest_is_told() -> None:
    one, other = predicted("a", "x", value=0.2, warnings=("dim",)), predicted("d", "y", "z", value=0.4)
    for order in itertools.permutations([one, REFUSED, LATE, other]):
        found = merge_outcomes(order)
        assert isinstance(found, Prediction)
        assert {name: found.label(name)[0, 0] for name in found.labels} == {
            "x": np.float32(0.2),
            "y": np.float32(0.4),
            "z": np.float32(0.4),
        }
        assert found.spread.shape == (3, 4, 4)
        assert set(found.warnings) == {
            "a: dim",
            "b refused this stack: reversed planes",
            "c did not predict this stack: not begun in time",
        }
        assert (found.times.infer_ms, found.times.wait_ms) == (40.0, 50.0)


def test_without_any_prediction_every_reason_is_told() -> None:
    both = merge_outcomes([REFUSED, LATE])
    assert isinstance(both, Unpredicted) and both.where == "spool"
    assert both.reason == "b: reversed planes; c: not begun in time"
    refused = merge_outcomes([REFUSED, Refusal(INFO, "too dim", "more light", "a")])
    assert isinstance(refused, Refusal) and refused.fix == "turn them; more light"
    assert merge_outcomes([]) is None and merge_outcomes([LATE]) is LATE


@pytest.mark.parametrize(
    "answers, models, expected",
    [
        ((), 1, None),
        ((predicted("a", "x"),), 1, "predicted"),
        ((predicted("a", "x"),), 2, None),
        ((predicted("a", "x"), REFUSED), 2, "refused"),
        ((predicted("a", "x"), REFUSED, LATE), 3, "spooled"),
        ((predicted("a", "x"), predicted("b", "x")), 2, "predicted"),
    ],
)
def test_a_stack_is_predicted_when_all_models_have(
    answers: tuple[Outcome, ...], models: int, expected: str | None
) -> None:
    assert combine_status([status_of(one) for one in answers], models) == expected
