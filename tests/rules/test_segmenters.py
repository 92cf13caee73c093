"""Segmenters of other packages: told when they are missing, and given pixels instead of micrometres."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from acq_isl.errors import ExperimentError
from acq_isl.rules import Cellpose, ObjectCount, StarDist, segmenters
from acq_isl.rules.measurements import measure
from tests.rules.test_physical_measurements import FOUR, predicted


class FakeModel:
    """Finds one object, and remembers what it was asked."""

    asked: dict[str, Any]

    def __init__(self, gpu: bool = False) -> None:
        self.gpu = gpu

    @classmethod
    def from_pretrained(cls, name: str) -> FakeModel | None:
        return cls() if name == "2D_versatile_fluo" else None

    def eval(self, image: Any, **options: Any) -> tuple[Any, ...]:
        type(self).asked = options
        return (image > 0.5).astype(np.uint16), "flows", "styles"

    def predict_instances(self, image: Any, **options: Any) -> tuple[Any, ...]:
        return self.eval(image, **options)[:2]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for package, name in (("cellpose", "CellposeModel"), ("stardist", "StarDist2D")):
        models = ModuleType(f"{package}.models")
        setattr(models, name, FakeModel)
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
        monkeypatch.setitem(sys.modules, f"{package}.models", models)
    yield from _forgotten()


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for package in ("cellpose", "stardist"):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setitem(sys.modules, f"{package}.models", None)
    yield from _forgotten()


def _forgotten() -> Iterator[None]:
    for loaded in (segmenters._cellpose, segmenters._stardist):
        loaded.cache_clear()
    yield
    for loaded in (segmenters._cellpose, segmenters._stardist):
        loaded.cache_clear()


@pytest.mark.parametrize(
    "segmenter, command", [(Cellpose(), "cellpose>=4"), (StarDist(), "install stardist")]
)
def test_a_missing_package_is_named(nothing: None, segmenter: Any, command: str) -> None:
    for use in (
        segmenter.check,
        lambda: measure(predicted({"a": FOUR}), ObjectCount(label="a", segmenter=segmenter)),
    ):
        with pytest.raises(ExperimentError, match=f"not installed here.*{command}.*kind: watershed"):
            use()


@pytest.mark.parametrize(
    "segmenter, asked",
    [
        (Cellpose(diameter_um=8.0), {"diameter": 16.0}),
        (Cellpose(), {"diameter": None}),
        (StarDist(probability=0.4), {"prob_thresh": 0.4}),
    ],
)
def test_what_they_find_is_counted(packages: None, segmenter: Any, asked: dict[str, Any]) -> None:
    assert measure(predicted({"a": FOUR}), ObjectCount(label="a", segmenter=segmenter)).value == 1
    assert FakeModel.asked == asked


def test_a_model_that_there_is_not_is_told(packages: None) -> None:
    with pytest.raises(ExperimentError, match="no pretrained model 'mine'"):
        StarDist(model="mine").check()
