"""Predictions of mirrored stacks, turned back and averaged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from acq_isl.cli.app import cli
from acq_isl.engines import load_engine
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.engines.views import MOST_VIEWS, average, first_views
from acq_isl.experiment.experiment import LocalEngine
from acq_isl.stack import ZStack
from doubles import tiny_model as tiny

ALL = first_views(MOST_VIEWS)


@pytest.mark.parametrize("view", ALL, ids=lambda view: view.name)
def test_what_a_view_shows_is_turned_back(view):
    stack = np.random.default_rng(0).integers(0, 60000, (3, 4, 5)).astype(np.uint16)
    shown = view.show(stack)
    assert shown.shape == stack.shape and shown.flags.c_contiguous
    np.testing.assert_array_equal(view.turn_back(shown.max(axis=0)[None])[0], stack.max(axis=0))


def test_views_differ_and_the_first_is_the_stack():
    stack = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    assert len({view.show(stack).tobytes() for view in ALL}) == MOST_VIEWS
    np.testing.assert_array_equal(ALL[0].show(stack), stack)
    for wrong in (0, MOST_VIEWS + 1):
        with pytest.raises(ValueError, match="1 to 8 views"):
            first_views(wrong)


@given(st.integers(2, 5), st.floats(0.01, 2))
def test_views_that_agree_keep_their_doubt_and_others_add_to_it(count, spread):
    rng = np.random.default_rng(count)
    mean, std = rng.random((2, 3, 4)).astype(np.float32), rng.random((2, 3, 4)).astype(np.float32) + 0.1
    same_mean, same_std = average([mean] * count, [std] * count)
    np.testing.assert_allclose(same_mean, mean, rtol=1e-5)
    np.testing.assert_allclose(same_std, std, rtol=1e-4)
    _, wider = average([mean, mean + np.float32(spread)], [std, std])
    np.testing.assert_allclose(wider, np.sqrt(std**2 + spread**2 / 4), rtol=1e-3)


def test_an_engine_averages_over_views_and_its_prediction_says_so(tmp_path):
    path = tiny.write(tmp_path)
    stack = tiny.stack((64, 72))
    with OnnxEngine(path, threads=1) as engine:
        single = engine.predict(stack)
        parts = [
            view.turn_back(engine.predict(ZStack(stack.info, view.show(stack.pixels), stack.captured_s)).mean)
            for view in first_views(4)
        ]
    with load_engine(path, threads=1, backend="onnxruntime") as engine:
        engine.use_views(4)
        several, again = engine.predict(stack), engine.predict(stack)
        engine.use_views(1)
        back = engine.predict(stack)
    np.testing.assert_allclose(several.mean, np.mean(parts, axis=0), atol=1e-5)
    np.testing.assert_array_equal(several.mean, again.mean)
    np.testing.assert_array_equal(back.mean, single.mean)
    assert several.engine == f"{single.engine}, mean of 4 views"
    assert np.abs(several.mean - single.mean).max() > 1e-3


def test_so_many_views_there_are_not(tmp_path):
    with pytest.raises(ValueError, match="less than or equal to 8"):
        LocalEngine(views=9)
    result = CliRunner().invoke(cli, ["predict", "x", "-m", "demo", "-o", str(tmp_path), "--views", "9"])
    assert result.exit_code == 2 and "--views" in result.output
