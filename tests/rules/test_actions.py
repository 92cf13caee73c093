"""What actions ask of the microscope, and what they may not, on tools that only note what they are asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from acq_isl.errors import ActionRefused, ExperimentError
from acq_isl.rules import Action, Decision, Limits, Occasion
from acq_isl.rules.actions import Message, PlanChange, check_message
from acq_isl.rules.light import LightBudget, LightLedger, LightLimits, explain_light
from acq_isl.rules.pixels import PixelToStage, fit_pixel_to_stage
from acq_isl.stack import Prediction, StackInfo, StackKey, StackRequest

KEY = StackKey(3, "A1", "Phase")
Z_UM = tuple(float(z) for z in range(10, 15))
FIELD = StackRequest(KEY, 100.0, -50.0, Z_UM, "Channel", "Phase", 10.0)
SHAPE = (100, 200)
BIG, SMALL = (20, 30), (80, 150)  # row and column of two bright discs, of 8 and 4 pixels radius


def prediction() -> Prediction:
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    mean = np.zeros(SHAPE, np.float32)
    for (row, column), radius, level in ((BIG, 8, 0.7), (SMALL, 4, 0.9)):
        mean[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = level
    info = StackInfo(KEY, Z_UM, SHAPE, 0.5, FIELD.x_um, FIELD.y_um)
    planes = mean[np.newaxis]
    return Prediction(info, ("nuclei",), planes, np.zeros_like(planes), "0" * 64, "fake", "fake")


class Tools:
    """Notes what it is asked for; ``most`` stacks may be imaged."""

    def __init__(self, most: int = 99, affine: PixelToStage | None = None) -> None:
        self.log: list[Any] = []
        self.stacks: list[StackRequest] = []
        self.pixel_to_stage = affine or PixelToStage.nominal(0.5)
        self._most = most

    def acquire(self, request: StackRequest) -> None:
        if len(self.stacks) == self._most:
            raise ActionRefused("the dose is spent")
        self.stacks.append(request)

    def focus(self, field: StackRequest, device: str) -> float:
        self.log.append(("focus", field.key.position, device))
        return -0.5

    def change(self, change: PlanChange) -> str:
        self.log.append(change)
        return "done"

    def notify(self, message: Message) -> str:
        self.log.append(message)
        return "on its way"

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.log.append((name, *arguments))


def action(**raw: Any) -> Action:
    read: Action = TypeAdapter(Action).validate_python(raw)
    return read


def carry_out(made: Action, tools: Tools) -> str:
    found = prediction()
    decision = Decision(KEY, "bright", made.title, "it is bright", 0.9, 0.5, made)
    return made.carry_out(Occasion(FIELD, found, decision), tools)


LIGHT: dict[str, Any] = {"channels": ("DAPI",), "exposure_ms": 5.0}
IMAGED = {
    "the field": ({"kind": "image"}, [(100, -50, (12.0,), "A1")]),
    "planes of it": ({"kind": "image", "z_offsets_um": (-1, 1)}, [(100, -50, (11.0, 13.0), "A1")]),
    "a series": (
        {"kind": "image", "times": 2},
        [(100, -50, (12.0,), "A1"), (100, -50, (12.0,), "A1_n0001")],
    ),
    "a z-stack": (
        {"kind": "z_stack", "range_um": 2, "step_um": 0.5},
        [(100, -50, (11.0, 11.5, 12.0, 12.5, 13.0), "A1")],
    ),
    "around it": (
        {"kind": "tile", "rows": 1, "columns": 3, "overlap": 0.5},
        [
            (50, -50, (12.0,), "A1_tile_0_0"),
            (100, -50, (12.0,), "A1_tile_0_1"),
            (150, -50, (12.0,), "A1_tile_0_2"),
        ],
    ),
    "the largest object": (
        {"kind": "centre", "label": "nuclei", "objects_by": {"kind": "watershed", "min_area_um2": 2}},
        [(100 + (30 - 99.5) / 2, -50 + (20 - 49.5) / 2, (12.0,), "A1_centred")],
    ),
    "the brightest object": (
        {
            "kind": "centre",
            "label": "nuclei",
            "which": "brightest",
            "objects_by": {"kind": "watershed", "min_area_um2": 2},
        },
        [(100 + (150 - 99.5) / 2, -50 + (80 - 49.5) / 2, (12.0,), "A1_centred")],
    ),
}


@pytest.mark.parametrize("raw, stacks", IMAGED.values(), ids=IMAGED)
def test_what_is_imaged_where(raw: dict[str, Any], stacks: list[Any]) -> None:
    tools = Tools()
    done = carry_out(action(**LIGHT, **raw), tools)
    assert done.startswith("done")
    found = [(s.x_um, s.y_um, s.z_um, s.key.position) for s in tools.stacks]
    assert [(name, z_um) for _, _, z_um, name in found] == [(name, z_um) for _, _, z_um, name in stacks]
    places = [pytest.approx((x, y), abs=0.3) for x, y, *_ in stacks]
    assert [(x, y) for x, y, *_ in found] == places
    assert {(s.key.channel, s.preset, s.exposure_ms, s.predict) for s in tools.stacks} == {
        ("DAPI", "DAPI", 5.0, False)
    }


DONE = {
    "preset": (
        {"kind": "set_preset", "group": "Perfusion", "preset": "drug"},
        ("set_preset", "Perfusion", "drug"),
    ),
    "property": (
        {"kind": "set_property", "device": "Lamp", "name": "Power", "value": 5},
        ("set_property", "Lamp", "Power", "5"),
    ),
    "move to": ({"kind": "move", "to_um": (1, 2)}, ("move", 1.0, 2.0, None)),
    "move by": ({"kind": "move", "by_um": (1, 2), "z_um": 3}, ("move", 101.0, -48.0, 3.0)),
    "focus": ({"kind": "autofocus", "device": "PFS"}, ("focus", "A1", "PFS")),
    "wait": ({"kind": "wait", "seconds": 2}, ("wait", 2.0)),
    "pause": ({"kind": "pause"}, ("pause", "bright: it is bright")),
    "stop": ({"kind": "stop"}, ("stop", "stopped by the trigger 'bright'")),
    "change": ({"kind": "change", "interval_s": 9}, PlanChange(interval_s=9.0)),
    "notify": (
        {"kind": "notify", "text": "Look.", "email": ("a@b.c",)},
        Message("Look. bright at A1 t3 Phase: it is bright", "", ("a@b.c",)),
    ),
}


@pytest.mark.parametrize("raw, asked", DONE.values(), ids=DONE)
def test_what_is_asked_of_the_microscope(raw: dict[str, Any], asked: Any) -> None:
    tools = Tools()
    carry_out(action(**raw), tools)
    assert tools.log == [asked] and not tools.stacks


REFUSED = {
    "a z-stack beyond z": (
        {"kind": "z_stack", "range_um": 20, "step_um": 1, **LIGHT},
        {"z_um": (5, 20)},
    ),
    "a neighbour beyond x": ({"kind": "tile", **LIGHT}, {"x_um": (0, 150)}),
    "a preset that is not allowed": (
        {"kind": "centre", "label": "nuclei", **LIGHT},
        {"presets": {"Channel": ()}},
    ),
    "a property that is not listed": ({"kind": "set_property", "device": "A", "name": "B", "value": 1}, {}),
    "a value beyond its limits": (
        {"kind": "set_property", "device": "A", "name": "B", "value": 7},
        {"properties": {"A.B": (0, 5)}},
    ),
    "a word for a number": (
        {"kind": "set_property", "device": "A", "name": "B", "value": "nan"},
        {"properties": {"A.B": (0, 5)}},
    ),
    "a value that is not listed": (
        {"kind": "set_property", "device": "A", "name": "B", "value": "on"},
        {"properties": {"A.B": ("off",)}},
    ),
    "a place": ({"kind": "move", "to_um": (9, 0)}, {"x_um": (0, 5)}),
    "an exposure from here on": ({"kind": "change", "exposure_ms": 90}, {"exposure_ms": 50}),
    "a host that is not listed": ({"kind": "notify", "webhook": "https://example.org/x"}, {}),
    "a host by its port": (
        {"kind": "notify", "webhook": "http://example.org:81/x"},
        {"notify": {"hosts": ("example.org",)}},
    ),
    "an address that is not listed": ({"kind": "notify", "email": ("a@b.c",)}, {}),
}


@pytest.mark.parametrize("raw, limits", REFUSED.values(), ids=REFUSED)
def test_limits_are_checked_before_anything_is_done(raw: dict[str, Any], limits: dict[str, Any]) -> None:
    with pytest.raises(ActionRefused):
        action(**raw).check(prediction().info, Limits(**limits))


def test_who_may_be_told_is_told() -> None:
    limits = Limits.model_validate(
        {"notify": {"hosts": ["h:8"], "addresses": ["a@b.c"], "smtp": "s:25", "sender": "x@b.c"}}
    )
    check_message(Message("x", "http://h:8/p", ("a@b.c",)), limits.notify)


@pytest.mark.parametrize(
    "raw",
    [
        {"kind": "move"},
        {"kind": "move", "to_um": (0, 0), "by_um": (0, 0)},
        {"kind": "change"},
        {"kind": "image", "channels": (), "exposure_ms": 1},
        {"kind": "wait", "seconds": 0},
        {"kind": "notify", "webhook": "ftp://x"},
    ],
)
def test_an_action_that_says_nothing_or_two_things_is_no_action(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        action(**raw)


def test_an_object_that_may_not_be_in_the_field_is_not_gone_to() -> None:
    unsure = PixelToStage(matrix=((0.5, 0.0), (0.0, 0.5)), residual_um=12.0)
    tools = Tools(affine=unsure)
    with pytest.raises(ActionRefused, match="known to 24 um"):
        carry_out(action(kind="centre", label="nuclei", **LIGHT), tools)
    assert not tools.stacks


def test_a_series_ends_where_the_light_is_spent() -> None:
    tools = Tools(most=2)
    done = carry_out(action(kind="image", times=9, **LIGHT), tools)
    assert done == "ended after 2 of 9 images: the dose is spent" and len(tools.stacks) == 2


# ---- pixels


@given(
    angle=st.floats(0, 6.28),
    um=st.floats(0.1, 2),
    mirrored=st.booleans(),
    noise_um=st.sampled_from([0.0, 0.2]),
)
def test_a_measured_affine_brings_a_pixel_to_the_middle(
    angle: float, um: float, mirrored: bool, noise_um: float
) -> None:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    true = um * turn @ np.diag([-1 if mirrored else 1, 1])
    moves = np.array([[20.0, 0], [0, 20], [-20, 0], [0, -20], [20, 20]])
    noise = np.random.default_rng(0).normal(0, noise_um, moves.shape)
    shifts = -(moves + noise) @ np.linalg.inv(true).T
    found = fit_pixel_to_stage(moves, shifts)
    assert found.offset_um(10, 30, (101, 201)) == pytest.approx(
        tuple(true @ [-70, -40]), abs=um + 40 * noise_um
    )
    assert found.residual_um == pytest.approx(noise_um * 1.1, abs=0.15)
    assert found.pixel_size_um == pytest.approx(um, rel=0.1)


def test_pictures_that_do_not_follow_the_stage_are_no_calibration() -> None:
    moves = np.array([[20.0, 0], [0, 20], [-20, 0], [0, -20]])
    with pytest.raises(ExperimentError, match="did not move as the stage did"):
        fit_pixel_to_stage(moves, np.random.default_rng(1).normal(0, 30, moves.shape))
    with pytest.raises(ExperimentError, match="too little"):
        fit_pixel_to_stage(moves, moves * [1, 0])


# ---- light


def light(x_um: float, ms: float, position: str = "A1", preset: str = "DAPI") -> StackRequest:
    key = StackKey(0, position, preset)
    return replace(FIELD, key=key, x_um=x_um, y_um=0.0, z_um=(0.0,), preset=preset, exposure_ms=ms)


def test_budgets_hold_by_place_whatever_a_stack_is_called() -> None:
    budgets = (
        LightBudget(per="field", presets=("DAPI", "MAP2"), ms=100),
        LightBudget(per="run", presets=("DAPI",), mj_cm2=2.0),
    )
    ledger = LightLedger(LightLimits(irradiance_mw_cm2={"DAPI": 10}, budgets=budgets), (50.0, 40.0))
    ledger.book(light(0, 60), 1)
    ledger.check(light(0, 40, "A1_again"))
    with pytest.raises(ActionRefused, match="60 ms spent, 41 ms more"):
        ledger.check(light(10, 41, "another name"))
    ledger.check(light(60, 100, "beside it"))
    ledger.check(light(0, 1000, preset="Phase"))
    ledger.book(light(60, 100, "beside it"), 1)
    with pytest.raises(ActionRefused, match=r"at most 2 mJ/cm2 .* this run; got: 1.6 mJ/cm2 spent, 0.5"):
        ledger.check(light(200, 50, "far away"))
    assert ledger.got_ms(20, 0) == {"DAPI": 60}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60)), max_size=30))
def test_a_budget_is_never_exceeded(wanted: list[tuple[int, int]]) -> None:
    budget = LightBudget(presets=("DAPI",), ms=100)
    ledger = LightLedger(LightLimits(budgets=(budget,)), (10.0, 10.0))
    for place, ms in wanted:
        try:
            ledger.check(light(place * 20, ms))
        except ActionRefused:
            continue
        ledger.book(light(place * 20, ms), 1)
    assert all(sum(ledger.got_ms(place * 20, 0).values()) <= 100 for place in range(4))


def test_a_ledger_is_taken_up_from_what_was_written_down() -> None:
    first, second = LightLedger(LightLimits(), (10, 10)), LightLedger(LightLimits(), (10, 10))
    first.book(light(0, 60), 2)
    second.take_up(
        [
            {
                "kind": "dose",
                "position": "A1",
                "channel": "DAPI",
                "exposure_ms": 120.0,
                **first.entries_of(light(0, 60)),
            },
            {"kind": "dose", "position": "A1", "exposure_ms": 5.0},
        ]
    )
    assert second.doses == first.doses


def test_what_was_avoided_is_said() -> None:
    limits = LightLimits(irradiance_mw_cm2={"DAPI": 10})
    ledger = LightLedger(limits, (10, 10))
    ledger.book(light(0, 100, "A1"), 1)
    ledger.book(light(50, 100, "A2"), 1)
    ledger.book(light(50, 200, "A2_n0001"), 1)
    ledger.book(light(50, 300, "A2", preset="Phase"), 1)
    assert explain_light(ledger, limits, 20, ["Phase"]) == [
        "DAPI: 0.4 s (4 mJ/cm2 in sum) of light on 2 of 20 fields; imaging all of them would have taken 4 s "
        "(40 mJ/cm2 in sum), so 90% was avoided."
    ]


@pytest.mark.parametrize(
    "raw",
    [
        {"budgets": [{"presets": ["DAPI"]}]},
        {"budgets": [{"presets": ["DAPI"], "ms": 1, "mj_cm2": 1}]},
        {"budgets": [{"presets": ["DAPI"], "mj_cm2": 1}]},
        {"irradiance_mw_cm2": {"DAPI": 0}},
    ],
)
def test_a_budget_needs_one_unit_and_its_calibration(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LightLimits.model_validate(raw)
