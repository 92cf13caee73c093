"""Plans held against the simulated microscope: what the dry run accepts, and what it refuses by its name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from acq_isl.errors import ExperimentError
from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.simulated import SimulatedMicroscope
from acq_isl.hooks import OpenMicroscope, open_microscope
from acq_isl.session.preflight import prepare

PLACES = [{"x": 0, "y": 0, "z": 0}, {"x": 200, "y": 0, "z": 0}]
PHASE = {"config": "Phase", "exposure": 10}
DEPTH = {"range": 18, "step": 1.5}
UP = tuple(1.5 * (plane - 6) for plane in range(13))
AF = {"autofocus_device_name": "PFS", "autofocus_motor_offset": 25, "axes": ["p"]}
TIMES = {"time_plan": {"interval": 1, "loops": 2}}
BEST = {"k": 1, "measurement": {"kind": "mean_intensity", "label": "nuclei"}}


@pytest.fixture(scope="module")
def scope() -> Iterator[OpenMicroscope]:
    with open_microscope(SimulatedMicroscope(camera_px=(32, 32))) as opened:
        yield opened


def planned(scope: OpenMicroscope, overview: dict[str, object], **more: object) -> list[tuple[object, ...]]:
    whole = {"channels": [PHASE], "z_plan": DEPTH, "stage_positions": PLACES, **overview}
    text = yaml.safe_dump({"name": "plan", "engine": {"kind": "none"}, "overview": whole, **more})
    plan, _ = prepare(Experiment.from_text(text), scope)
    return [(r.key.time, r.key.position, r.z_um) for cycle in plan for r in cycle.requests]


BOTH = [(0, "p00", UP), (0, "p01", UP)]
ACCEPTED = {
    "autofocus": ({"autofocus_plan": AF}, BOTH),
    "the autofocus device that is selected": ({"autofocus_plan": {"axes": ["p"]}}, BOTH),
    "its camera by name": ({"channels": [{**PHASE, "camera": "Camera"}]}, BOTH),
    "an open shutter": ({"keep_shutter_open_across": ["z"]}, BOTH),
    "from the top": ({"z_plan": {**DEPTH, "go_up": False}}, [(0, "p00", UP[::-1]), (0, "p01", UP[::-1])]),
    "times of a position": (
        {"stage_positions": [{**PLACES[0], "sequence": TIMES}, PLACES[1]]},
        [(0, "p00", UP), (1, "p00", UP), (0, "p01", UP)],
    ),
}
REFUSED = {
    "another autofocus": (
        {"autofocus_plan": {**AF, "autofocus_device_name": "PSF"}}, {}, "did you mean 'PFS'"),
    "another camera": ({"channels": [{**PHASE, "camera": "Camera-2"}]}, {}, "no device 'Camera-2'"),
    "light between stacks": ({"keep_shutter_open_across": ["z", "p"]}, {}, "keep_shutter_open_across"),
    "a choice among times": (
        {"stage_positions": [{**PLACES[0], "sequence": TIMES}, PLACES[1]]}, {"choose": BEST}, "choose ranks"),
    "a long name": ({}, {"name": "n" * 250}, "at most 100 characters"),
}  # fmt: skip


@pytest.mark.parametrize("overview, stacks", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_plan_that_is_performed(
    scope: OpenMicroscope, overview: dict[str, object], stacks: list[tuple[object, ...]]
) -> None:
    assert planned(scope, overview) == stacks


@pytest.mark.parametrize("overview, more, message", REFUSED.values(), ids=REFUSED.keys())
def test_a_plan_that_is_refused_before_anything_moves(
    scope: OpenMicroscope, overview: dict[str, object], more: dict[str, object], message: str
) -> None:
    with pytest.raises(ExperimentError, match=message):
        planned(scope, overview, **more)


def test_a_grid_in_a_position_takes_the_size_of_the_camera(scope: OpenMicroscope) -> None:
    tiles = {"grid_plan": {"rows": 1, "columns": 2}}
    overview = {"stage_positions": [{**PLACES[0], "sequence": tiles}]}
    whole = {"channels": [PHASE], "z_plan": DEPTH, **overview}
    plan, _ = prepare(
        Experiment.from_text(yaml.safe_dump({"name": "a", "engine": {"kind": "none"}, "overview": whole})),
        scope,
    )
    left, right = plan[0].requests
    assert right.x_um - left.x_um == pytest.approx(32 * 0.3)
