"""Sequences become stacks."""

from __future__ import annotations

import pytest
import useq
from hypothesis import given
from hypothesis import strategies as st

from acq_isl.errors import ExperimentError
from acq_isl.experiment.planning import Optics, Place, cycles, visits
from acq_isl.stack import StackKey

PLACE = Place(10.0, -20.0, 5.0, (150.0, 100.0))
PHASE = useq.Channel(config="Phase", exposure=10)
OPTICS = Optics("phase contrast", "dark")


def sequence(**parts: object) -> useq.MDASequence:
    return useq.MDASequence(**{"channels": [PHASE], "axis_order": "tpgcz", **parts})


def test_a_grid_without_field_size_takes_the_cameras() -> None:
    (cycle,) = cycles(sequence(grid_plan={"rows": 2, "columns": 2}), PLACE, OPTICS)
    corners = sorted((r.x_um, r.y_um) for r in cycle.requests)
    assert corners == [(-65.0, -70.0), (-65.0, 30.0), (85.0, -70.0), (85.0, 30.0)]
    assert {r.key.position for r in cycle.requests} == {"p00_000", "p00_001", "p00_002", "p00_003"}


def test_planes_of_a_stack_are_gathered_in_order() -> None:
    (cycle,) = cycles(sequence(z_plan={"range": 4, "step": 2}), PLACE, OPTICS)
    (request,) = cycle.requests
    assert request.z_um == (3.0, 5.0, 7.0)
    assert request.key == StackKey(0, "p00", "Phase")
    assert (request.group, request.preset, request.exposure_ms) == ("Channel", "Phase", 10.0)
    assert (request.modality, request.polarity, request.predict) == ("phase contrast", "dark", True)


@given(planes=st.integers(2, 60), step=st.sampled_from([0.1, 0.2, 0.29, 0.5, 1.5]))
def test_as_many_planes_as_asked_for(planes: int, step: float) -> None:
    # Pycro-Manager's own builder gives 14 planes for 13 at 0.1 um (np.arange).
    plan = {"relative": [index * step for index in range(planes)]}
    (cycle,) = cycles(sequence(z_plan=plan), PLACE, OPTICS)
    assert len(cycle.requests[0].z_um) == planes


def test_time_points_become_cycles() -> None:
    plan = cycles(sequence(time_plan={"interval": 3, "loops": 2}), PLACE, OPTICS)
    assert [(cycle.time, cycle.start_s) for cycle in plan] == [(0, 0.0), (1, 3.0)]


def test_wells_come_from_useq() -> None:
    wells = useq.WellPlatePlan(plate="96-well", a1_center_xy=(0, 0), selected_wells=([0, 1], [0, 1]))
    (cycle,) = cycles(sequence(stage_positions=wells), PLACE, OPTICS)
    assert [(r.key.position, r.x_um, r.y_um) for r in cycle.requests] == [
        ("A1", 0.0, 0.0),
        ("B2", 9000.0, -9000.0),
    ]


BAD = {
    "no channel": ({"channels": []}, "no channel"),
    "no exposure": ({"channels": ["Phase"]}, "no exposure"),
    "z outside of channels": (
        {
            "z_plan": {"range": 4, "step": 2},
            "axis_order": "tpgzc",
            "channels": [PHASE, {"config": "B", "exposure": 1}],
        },
        "innermost",
    ),
    "time inside": (
        {
            "time_plan": {"interval": 1, "loops": 2},
            "axis_order": "ptgcz",
            "stage_positions": [{"x": 0, "y": 0, "z": 0}, {"x": 1, "y": 0, "z": 0}],
        },
        "outermost",
    ),
    "same name twice": (
        {"stage_positions": [{"x": 0, "y": 0, "z": 0, "name": "A"}, {"x": 9, "y": 0, "z": 0, "name": "A"}]},
        "twice",
    ),
    "times that go back": ({"time_plan": {"interval": -1, "loops": 3}}, "goes back in time"),
    "a phase that goes back": (
        {"time_plan": {"phases": [{"interval": 5, "loops": 2}, {"duration": -4, "loops": 2}]}},
        "goes back in time",
    ),
    "fields of no size": (
        {"grid_plan": {"rows": 2, "columns": 2, "fov_width": 0, "fov_height": 0}},
        "fov_width \\(0 um\\) is no size",
    ),
    "fields of negative height": (
        {"grid_plan": {"rows": 2, "columns": 2, "fov_width": 9, "fov_height": -9}},
        "fov_height",
    ),
    "the same field four times": ({"grid_plan": {"rows": 2, "columns": 2, "overlap": 100}}, "no step"),
    "the same field in a position's grid": (
        {
            "stage_positions": [
                {"x": 0, "y": 0, "z": 0, "sequence": {"grid_plan": {"rows": 2, "columns": 2, "overlap": 100}}}
            ]
        },
        "no step",
    ),
    "an offset that is no number": (
        {
            "stage_positions": [{"x": 0, "y": 0, "z": 0}, {"x": 9, "y": 0, "z": 0}],
            "autofocus_plan": {"autofocus_motor_offset": float("nan"), "axes": ["p"]},
        },
        "autofocus_motor_offset",
    ),
    "a plane twice": ({"z_plan": {"relative": [0, 1, 0]}}, "each channel and z once"),
    "a name no file can have": (
        {"stage_positions": [{"x": 0, "y": 0, "z": 0, "name": "60x@1.4"}]},
        "file name",
    ),
}


@pytest.mark.parametrize("parts, message", BAD.values(), ids=BAD.keys())
def test_bad_sequences_say_what_to_change(parts: dict[str, object], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        cycles(sequence(**parts), PLACE, OPTICS)


def test_a_revisit_goes_to_the_middle_of_the_chosen_stack() -> None:
    plan = sequence(z_plan={"range": 4, "step": 2}, time_plan={"interval": 0, "loops": 1})
    field = cycles(plan, PLACE, OPTICS)[0].requests[0]
    revisit = useq.MDASequence(
        channels=[{"config": "DAPI", "exposure": 50}, {"config": "NFH", "exposure": 80}]
    )
    found = visits(revisit, field, time=3)
    assert [(r.key, r.x_um, r.y_um, r.z_um) for r in found] == [
        (StackKey(3, "p00", "DAPI"), 10.0, -20.0, (5.0,)),
        (StackKey(3, "p00", "NFH"), 10.0, -20.0, (5.0,)),
    ]
    assert not any(r.predict for r in found)
    with pytest.raises(ExperimentError, match="of its own"):
        visits(plan, field, time=0)
