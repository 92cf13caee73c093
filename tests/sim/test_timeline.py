"""The specimen's clock and the book of what was done to it, alone and at the simulated core."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from acq_isl.errors import ScopeError
from acq_isl.experiment.simulated import Life
from acq_isl.sim.scope.config import ChannelLight, ScopeSettings
from acq_isl.sim.scope.exposure import Exposure
from acq_isl.sim.scope.scope import SimulatedScope
from acq_isl.sim.scope.timeline import Timeline
from acq_isl.sim.specimen.synthetic import SyntheticSpecimen
from acq_isl.sim.view import Drug, View

VIEW = View(10.0, 20.0, 3.0, "MAP2", 0.5, (40, 60))


class Clock:
    """Seconds that stand where they were put."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def exposure(started_s: float, **changes: object) -> Exposure:
    first = Exposure(
        view=VIEW, exposure_ms=20.0, lit=True, moving=False, bit_depth=16, bytes_per_pixel=2,
        started_s=started_s, stage_um=(0.0, 0.0, 0.0),
    )  # fmt: skip
    return replace(first, **changes)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_time_runs_as_fast_as_wanted_and_can_be_moved_on(clock: Clock) -> None:
    timeline = Timeline(60.0, clock)
    clock.now_s += 2
    assert timeline.time_s == 120
    timeline.advance(1000)
    clock.now_s += 1
    assert timeline.time_s == 1180
    # What was exposed before time was moved on, but is developed now, keeps its time.
    assert timeline.date(exposure(101.0)).view.time_s == 60
    with pytest.raises(ScopeError, match="forward only"):
        timeline.advance(-1)
    timeline.start()
    assert timeline.time_s == 0


def test_light_is_booked_once_for_each_frame_and_in_order_of_time(clock: Clock) -> None:
    timeline = Timeline(1.0, clock)
    late = timeline.record(exposure(103.0), (1, 1), 0.5)
    early = timeline.record(exposure(101.0), (1, 0), 0.5)
    timeline.record(exposure(101.0), (1, 0), 0.5)
    timeline.record(exposure(104.0, lit=False), (1, 2), 0.5)
    timeline.record(exposure(105.0, lamp=2.0), (2, 0), 0.5)
    lights = timeline.history.light
    assert [one.time_s for one in lights] == [1, 3, 5]
    assert [one.dose_ms for one in lights] == [10, 10, 20]
    assert (lights[0].height_um, lights[0].width_um, lights[0].channel) == (20, 30, "MAP2")
    assert [one.light for one in timeline.taken] == list(lights)
    # An image never holds its own light, nor later light.
    assert early.view.history.light == () and late.view.history.light == ()
    assert timeline.date(exposure(104.0)).view.history.light == lights[:2]


def test_the_same_dose_again_changes_nothing(clock: Clock) -> None:
    timeline = Timeline(1.0, clock)
    for dose, seconds in ((0.0, 1), (1.0, 2), (1.0, 3), (0.0, 4)):
        clock.now_s = 100.0 + seconds
        timeline.drug(dose)
    assert timeline.history.drugs == (Drug(2, 1.0), Drug(4, 0.0))


def test_the_microscope_ages_the_specimen_and_doses_it() -> None:
    life = Life(death_rate_per_h=0.1, drug_per_h=3.0)
    channels = {"PI": ChannelLight(brightness=2.0)}
    settings = ScopeSettings(shape=(256, 256), time_scale=0.0, channels=channels)
    with SimulatedScope(SyntheticSpecimen(3, life=life), settings=settings) as scope:
        core = scope.core
        core.set_xy_position(150.0, 150.0)
        core.wait_for_system()
        core.set_config("Channel", "PI")
        core.set_exposure(40)
        core.snap_image()
        before = core.get_image()
        core.set_config("Perfusion", "drug")
        scope.timeline.advance(6 * 3600)
        core.snap_image()
        after = core.get_image()
        lights = scope.timeline.history.light
        assert [(one.time_s, one.dose_ms, one.channel) for one in lights] == [
            (0, 80, "PI"),
            (6 * 3600, 80, "PI"),
        ]
        assert scope.timeline.history.drugs == (Drug(0.0, 1.0),)
        assert scope.view().time_s == 6 * 3600 and scope.last_exposure is not None
        assert scope.last_exposure.view.history.drugs == (Drug(0.0, 1.0),)
        dead = scope.truth()["dead"]
    assert np.corrcoef(after.ravel(), dead.ravel())[0, 1] > 0.9
    assert after.mean() > before.mean() + 50


def test_a_perfusion_that_stands_still_leaves_other_doses_alone() -> None:
    settings = ScopeSettings(shape=(32, 32))
    with SimulatedScope(SyntheticSpecimen(3), settings=settings) as scope:
        scope.timeline.drug(2.0)
        scope.core.set_position(3.0)
        scope.core.set_config("Channel", "DAPI")
        assert [one.dose for one in scope.timeline.history.drugs] == [2.0]
        scope.core.set_property("Perfusion", "Label", "drug")
        scope.core.set_state("Perfusion", 0)
        assert [one.dose for one in scope.timeline.history.drugs] == [2.0, 1.0, 0.0]


def test_a_sequence_books_every_frame() -> None:
    settings = ScopeSettings(shape=(32, 32))
    with SimulatedScope(SyntheticSpecimen(3), settings=settings) as scope:
        core = scope.core
        core.set_exposure(5)
        core.start_sequence_acquisition(4, 0, True)
        while core.is_sequence_running() or core.get_remaining_image_count():
            if core.get_remaining_image_count():
                core.pop_next_image()
        lights = scope.timeline.history.light
    assert len(lights) == 4 and all(one.dose_ms == 5 for one in lights)
    assert [one.time_s for one in lights] == sorted(one.time_s for one in lights)
