"""The two lines for somebody's own acquisition, with a real core and a real engine process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycromanager
import pytest

import acq_isl
from acq_isl.errors import ExperimentError
from acq_isl.sim import ScopeSettings, SimulatedScope, SyntheticSpecimen
from acq_isl.stack import Prediction
from acq_isl.stream.process import EngineProcess


def test_a_users_own_acquisition_is_predicted(tmp_path: Path) -> None:
    events = pycromanager.multi_d_acquisition_events(
        z_start=-9, z_end=9, z_step=1.5, channel_group="Channel", channels=["Phase"], channel_exposures_ms=[5]
    )
    assert len(events) == 13
    with (
        SimulatedScope(SyntheticSpecimen(seed=3), settings=ScopeSettings(shape=(192, 192))),
        EngineProcess("demo", threads=1) as engine,
        acq_isl.live(engine.endpoint, planes=13, spool=tmp_path / "spool") as live,
    ):
        with pycromanager.Acquisition(
            str(tmp_path), "mine", image_process_fn=live.hook, show_display=False
        ) as acq:
            acq.acquire(events)
        (outcome,) = live.drain(timeout_s=60)
        assert not live.problems
        assert (live.counts.captured, live.counts.lost) == (13, 0)
    assert isinstance(outcome, Prediction)
    assert outcome.info.z_um[0] == -9 and outcome.info.pixel_size_um == pytest.approx(0.3)
    labels = ("nuclei", "dendrites", "axons", "dead")
    assert outcome.display_names == tuple(f"{label} (predicted)" for label in labels)


def test_slices_whose_z_axis_has_another_name_are_spooled_and_told(tmp_path: Path) -> None:
    with acq_isl.live("tcp://127.0.0.1:9", planes=13, spool=tmp_path / "spool") as live:
        for number in range(5):
            axes = {"Axes": {"slice": number}, "ZPosition_um_Intended": 1.5 * number, "PixelSize_um": 0.3}
            live.hook(np.full((64, 64), number, np.uint16), axes)
        assert (live.counts.captured, live.counts.slices.open) == (5, 5)
        outcomes = live.drain(timeout_s=0.5)
        assert len(outcomes) == 5 and not any(isinstance(outcome, Prediction) for outcome in outcomes)
        assert str(live.counts.slices) == "5 slices captured = 5 spooled (5 no engine)"
        assert len(live.problems) == 5 and "has only one slice" in str(live.problems[0])
    assert len(list((tmp_path / "spool").rglob("*.tif"))) == 5


def test_it_must_know_how_many_slices_a_stack_has(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="planes=13"):
        acq_isl.live("tcp://127.0.0.1:5599", spool=tmp_path)
