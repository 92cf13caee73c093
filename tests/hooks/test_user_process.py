"""A measurement of the user's: whatever the function does, somebody gets an answer or an error."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acq_isl.errors import AcqIslError, ExperimentError
from acq_isl.hooks import UserMeasurements
from acq_isl.hooks.user_process import read_answer
from acq_isl.rules import PythonFunction
from acq_isl.rules.cache import MeasurementCache
from acq_isl.stack import Prediction, StackInfo, StackKey

MODULE = """
import os, time
print("printing must not hurt")

def count(prediction):
    print("neither here")
    case = round(float(prediction.label("a").max()))
    if case == 1:
        raise KeyError("nothing there")
    if case == 2:
        return "many"
    if case == 3:
        os._exit(0)
    if case == 4:
        time.sleep(600)
    return prediction.info.pixel_size_um * 10, 0.5

def other(decision, prediction):
    return 1
"""


def predicted(case: int, time: int = 0) -> Prediction:
    image = np.full((1, 4, 4), case, np.float32)
    info = StackInfo(StackKey(time, f"p{case}", "Phase"), (0.0,), (4, 4), 0.5)
    return Prediction(info, ("a",), image, image, "", "m", "e")


def function(name: str = "my_module:count", limit_s: float = 30.0) -> PythonFunction:
    return PythonFunction(function=name, unit="objects", limit_s=limit_s)  # type: ignore[call-arg]


def test_whatever_a_function_does_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text(MODULE)
    with UserMeasurements(tmp_path) as ask:
        cache, found = MeasurementCache(ask), {}
        for case in (0, 1, 2, 3, 5):
            found[case] = cache.measure(predicted(case), function())
        quick = function(limit_s=0.3)  # the same process
        began = time.monotonic()
        found[4] = cache.measure(predicted(4), quick)
        found[6] = cache.measure(predicted(6), quick)
        assert time.monotonic() - began < 10
    known = {case: each.text for case, each in found.items() if each and math.isfinite(each.value)}
    assert known == {0: "5 ± 0.5 objects", 5: "5 ± 0.5 objects"}
    for told in (
        "raised KeyError: 'nothing there'",
        "returned 'many'; wanted: a number, or a number and its doubt",
        "ended its process",
        "did not end; wanted: within 0.3 s",
        "is not called again: it did not end within 0.3 s",
    ):
        assert any(told in warning for warning in cache.warnings), cache.warnings


def test_a_function_that_is_not_there_is_told_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text(MODULE)
    says = "has no function 'cuont'.*did you mean 'count'"
    with UserMeasurements(tmp_path) as ask, pytest.raises(AcqIslError, match=says):
        ask.check(function("my_module:cuont"))


@pytest.mark.parametrize(
    "returned, answer",
    [
        (3, (3.0, None)),
        (np.float32(0.5), (0.5, None)),
        (math.nan, (None, None)),
        ((2, 0.5), (2.0, 0.5)),
        ((2, math.nan), (2.0, None)),
    ],
)
def test_a_number_and_a_doubt_are_understood(returned: Any, answer: tuple[Any, Any]) -> None:
    assert read_answer(returned) == answer


@pytest.mark.parametrize("returned", [None, "5", True, [1, 2], (1, 2, 3), math.inf, {"value": 1}, (1, "x")])
def test_nonsense_is_refused(returned: Any) -> None:
    with pytest.raises(ValueError, match="returned"):
        read_answer(returned)


def test_without_a_run_nobody_calls_it() -> None:
    cache = MeasurementCache()
    measured = cache.measure(predicted(0), function())
    assert measured is not None and math.isnan(measured.value)
    assert "measure in a run only" in cache.warnings[0]


ODD = """
import os

def forks(prediction):
    case = float(prediction.label("a").max())
    if case < 3:
        os.fork()
    return case

def half(prediction):
    raise ValueError("no file \\udcff")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_an_answer_is_that_of_its_own_question(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text(ODD)
    with UserMeasurements(tmp_path) as ask:
        found = [ask(function("my_module:forks"), predicted(case))[0] for case in (1, 2, 3, 4)]
    assert found == [1, 2, 3, 4]


def test_what_a_function_raises_can_be_written_down(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text(ODD)
    with UserMeasurements(tmp_path) as ask, pytest.raises(ExperimentError) as raised:
        ask(function("my_module:half"), predicted(0))
    assert str(raised.value).encode()
