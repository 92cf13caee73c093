"""Every field of every model of useq-schema is performed, refused by its name, or says nothing about images.

A field that a new version of useq-schema brings makes this fail until it stands in one of the tables.
"""

from __future__ import annotations

import math
import typing
import warnings
from typing import Any

import pytest
import useq
import yaml
from pydantic import BaseModel

from acq_isl.errors import ExperimentError
from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.planning import Cycle, Optics, Place, cycles, visits
from acq_isl.stack import StackRequest

PLACE = Place(10.0, -20.0, 5.0, (150.0, 100.0))
Parts = dict[str, Any]
PHASE = {"config": "Phase", "exposure": 10}
DAPI = {"config": "DAPI", "exposure": 30}
Z = {"range": 4, "step": 2}
TWICE = {"interval": 3, "loops": 2}
GRID = {"rows": 2, "columns": 2}
WIDE = {"width": 500, "height": 150}
EDGES = {"top": 200, "left": 0, "bottom": 0, "right": 450}
CORNER = {"vertices": [[0, 0], [450, 0], [450, 90], [60, 90], [60, 500], [0, 500]]}
TRIANGLE = {"vertices": [[0, 0], [450, 0], [0, 500]]}
POINTS = {"num_points": 4, "max_width": 900, "max_height": 900, "random_seed": 1}
AF = {"axes": ["p"]}
PLATE = {"plate": "96-well", "a1_center_xy": [100, 200], "selected_wells": [[0, 1], [0, 1]]}
OWN_PLATE = {"rows": 2, "columns": 3, "well_spacing": 4, "well_size": 3}
IN_WELLS = {**POINTS, "max_width": math.inf, "max_height": math.inf}


def grid(plan: Parts, **more: Any) -> Parts:
    return {"grid_plan": {**plan, **more}}


def channel(**more: Any) -> Parts:
    return {"channels": [{**PHASE, **more}], "z_plan": Z}


def at(**position: Any) -> Parts:
    return {"stage_positions": [{"x": 0, "y": 0, "z": 0, **position}], "z_plan": Z}


def plate(**more: Any) -> Parts:
    return {"stage_positions": {**PLATE, **more}, "z_plan": Z}


def own_plate(**more: Any) -> Parts:
    last = [[-1, 0], [-1, 0]]
    return plate(plate={**OWN_PLATE, **more}, selected_wells=last, well_points_plan=IN_WELLS)


# Without the field, and with it: the plans differ.
USED: dict[str, tuple[Parts, Parts]] = {
    "MDASequence.axis_order": (
        {"channels": [PHASE, DAPI], "time_plan": TWICE, **at(name="a")},
        {"channels": [PHASE, DAPI], "time_plan": TWICE, "axis_order": "tcpgz", **at(name="a"),
         "stage_positions": [{"x": 0, "y": 0, "z": 0, "name": "a"}, {"x": 9, "y": 0, "z": 0}]},
    ),
    "MDASequence.stage_positions": ({}, at()),
    "MDASequence.grid_plan": ({}, grid(GRID)),
    "MDASequence.channels": ({}, {"channels": [PHASE, DAPI]}),
    "MDASequence.time_plan": ({}, {"time_plan": TWICE}),
    "MDASequence.z_plan": ({}, {"z_plan": Z}),
    "MDASequence.autofocus_plan": ({}, {"autofocus_plan": AF}),
    "MDASequence.keep_shutter_open_across": ({"z_plan": Z}, {"z_plan": Z, "keep_shutter_open_across": ["z"]}),
    "AxesBasedAF.autofocus_device_name": (
        {"autofocus_plan": AF}, {"autofocus_plan": {**AF, "autofocus_device_name": "PFS"}}),
    "AxesBasedAF.autofocus_motor_offset": (
        {"autofocus_plan": AF}, {"autofocus_plan": {**AF, "autofocus_motor_offset": 25}}),
    "AxesBasedAF.axes": (
        {"autofocus_plan": AF, "channels": [PHASE, DAPI]},
        {"autofocus_plan": {"axes": ["p", "c"]}, "channels": [PHASE, DAPI]}),
    "AbsolutePosition.x": (at(), at(x=5)),
    "AbsolutePosition.y": (at(), at(y=5)),
    "AbsolutePosition.z": (at(), at(z=5)),
    "AbsolutePosition.name": (at(), at(name="A1")),
    "AbsolutePosition.sequence": (at(), at(sequence={"grid_plan": GRID})),
    "Channel.config": (channel(), channel(config="DAPI")),
    "Channel.group": (channel(), channel(group="Light")),
    "Channel.exposure": (channel(), channel(exposure=20)),
    "Channel.do_stack": (channel(), channel(do_stack=False)),
    "Channel.z_offset": (channel(), channel(z_offset=2)),
    "Channel.acquire_every": (
        {"time_plan": TWICE, **channel()}, {"time_plan": TWICE, **channel(acquire_every=2)}),
    "Channel.camera": (channel(), channel(camera="Camera-2")),
    "GridFromEdges.fov_width": (grid(EDGES), grid(EDGES, fov_width=200)),
    "GridFromEdges.fov_height": (grid(EDGES), grid(EDGES, fov_height=150)),
    "GridFromEdges.overlap": (grid(EDGES), grid(EDGES, overlap=20)),
    "GridFromEdges.mode": (grid(EDGES), grid(EDGES, mode="spiral")),
    "GridFromEdges.top": (grid(EDGES), grid(EDGES, top=400)),
    "GridFromEdges.left": (grid(EDGES), grid(EDGES, left=-200)),
    "GridFromEdges.bottom": (grid(EDGES), grid(EDGES, bottom=-200)),
    "GridFromEdges.right": (grid(EDGES), grid(EDGES, right=700)),
    "GridFromPolygon.fov_width": (grid(CORNER), grid(CORNER, fov_width=200)),
    "GridFromPolygon.fov_height": (grid(CORNER), grid(CORNER, fov_height=150)),
    "GridFromPolygon.overlap": (grid(CORNER), grid(CORNER, overlap=20)),
    "GridFromPolygon.mode": (grid(TRIANGLE), grid(TRIANGLE, mode="column_wise")),
    "GridFromPolygon.vertices": (grid(CORNER), grid(TRIANGLE)),
    "GridFromPolygon.convex_hull": (grid(CORNER), grid(CORNER, convex_hull=True)),
    "GridFromPolygon.offset": (grid(CORNER), grid(CORNER, offset=40)),
    "GridRowsColumns.fov_width": (grid(GRID), grid(GRID, fov_width=200)),
    "GridRowsColumns.fov_height": (grid(GRID), grid(GRID, fov_height=150)),
    "GridRowsColumns.overlap": (grid(GRID), grid(GRID, overlap=20)),
    "GridRowsColumns.mode": (grid(GRID), grid(GRID, mode="column_wise")),
    "GridRowsColumns.rows": (grid(GRID), grid(GRID, rows=3)),
    "GridRowsColumns.columns": (grid(GRID), grid(GRID, columns=3)),
    "GridRowsColumns.relative_to": (grid(GRID), grid(GRID, relative_to="top_left")),
    "GridWidthHeight.fov_width": (grid(WIDE), grid(WIDE, fov_width=200)),
    "GridWidthHeight.fov_height": (grid(WIDE), grid(WIDE, fov_height=70)),
    "GridWidthHeight.overlap": (grid(WIDE), grid(WIDE, overlap=20)),
    "GridWidthHeight.mode": (grid(WIDE), grid(WIDE, mode="column_wise")),
    "GridWidthHeight.width": (grid(WIDE), grid(WIDE, width=100)),
    "GridWidthHeight.height": (grid(WIDE), grid(WIDE, height=50)),
    "GridWidthHeight.relative_to": (grid(WIDE), grid(WIDE, relative_to="top_left")),
    "RandomPoints.fov_width": (
        grid(POINTS, allow_overlap=False), grid(POINTS, allow_overlap=False, fov_width=500)),
    "RandomPoints.fov_height": (
        grid(POINTS, allow_overlap=False, fov_width=400),
        grid(POINTS, allow_overlap=False, fov_width=400, fov_height=400)),
    "RandomPoints.num_points": (grid(POINTS), grid(POINTS, num_points=5)),
    "RandomPoints.max_width": (grid(POINTS), grid(POINTS, max_width=300)),
    "RandomPoints.max_height": (grid(POINTS), grid(POINTS, max_height=300)),
    "RandomPoints.shape": (grid(POINTS), grid(POINTS, shape="rectangle")),
    "RandomPoints.random_seed": (grid(POINTS), grid(POINTS, random_seed=2)),
    "RandomPoints.allow_overlap": (
        grid(POINTS, fov_width=400, fov_height=400),
        grid(POINTS, fov_width=400, fov_height=400, allow_overlap=False)),
    "RandomPoints.order": (grid(POINTS, num_points=9), grid(POINTS, num_points=9, order=None)),
    "RandomPoints.start_at": (grid(POINTS), grid(POINTS, start_at={"x": 1, "y": 2})),
    "RelativePosition.x": (plate(), plate(well_points_plan={"x": 100})),
    "RelativePosition.y": (plate(), plate(well_points_plan={"y": 100})),
    "RelativePosition.z": (plate(), plate(well_points_plan={"z": 10})),
    "RelativePosition.name": (plate(), plate(well_points_plan={"name": "middle"})),
    "TIntervalLoops.interval": ({"time_plan": TWICE}, {"time_plan": {"interval": 4, "loops": 2}}),
    "TIntervalLoops.loops": ({"time_plan": TWICE}, {"time_plan": {"interval": 3, "loops": 3}}),
    "TDurationLoops.duration": (
        {"time_plan": {"duration": 4, "loops": 3}}, {"time_plan": {"duration": 6, "loops": 3}}),
    "TDurationLoops.loops": (
        {"time_plan": {"duration": 4, "loops": 3}}, {"time_plan": {"duration": 4, "loops": 5}}),
    "TIntervalDuration.interval": (
        {"time_plan": {"duration": 4, "interval": 2}}, {"time_plan": {"duration": 4, "interval": 1}}),
    "TIntervalDuration.duration": (
        {"time_plan": {"duration": 4, "interval": 2}}, {"time_plan": {"duration": 6, "interval": 2}}),
    "MultiPhaseTimePlan.phases": ({"time_plan": TWICE}, {"time_plan": {"phases": [TWICE, TWICE]}}),
    "WellPlatePlan.plate": (plate(), plate(plate="24-well")),
    "WellPlatePlan.a1_center_xy": (plate(), plate(a1_center_xy=[0, 0])),
    "WellPlatePlan.rotation": (plate(), plate(rotation=5)),
    "WellPlatePlan.selected_wells": (plate(), plate(selected_wells=[[0], [0]])),
    "WellPlatePlan.well_points_plan": (plate(), plate(well_points_plan=GRID)),
    "WellPlate.rows": (own_plate(), own_plate(rows=4)),
    "WellPlate.columns": (own_plate(), own_plate(columns=4)),
    "WellPlate.well_spacing": (own_plate(), own_plate(well_spacing=5)),
    "WellPlate.well_size": (own_plate(), own_plate(well_size=2)),
    "WellPlate.circular_wells": (own_plate(), own_plate(circular_wells=False)),
    "ZTopBottom.go_up": (
        {"z_plan": {"top": 4, "bottom": 0, "step": 2}},
        {"z_plan": {"top": 4, "bottom": 0, "step": 2, "go_up": False}}),
    "ZTopBottom.top": (
        {"z_plan": {"top": 4, "bottom": 0, "step": 2}}, {"z_plan": {"top": 6, "bottom": 0, "step": 2}}),
    "ZTopBottom.bottom": (
        {"z_plan": {"top": 4, "bottom": 0, "step": 2}}, {"z_plan": {"top": 4, "bottom": -2, "step": 2}}),
    "ZTopBottom.step": (
        {"z_plan": {"top": 4, "bottom": 0, "step": 2}}, {"z_plan": {"top": 4, "bottom": 0, "step": 1}}),
    "ZAboveBelow.go_up": (
        {"z_plan": {"above": 4, "below": 2, "step": 2}},
        {"z_plan": {"above": 4, "below": 2, "step": 2, "go_up": False}}),
    "ZAboveBelow.above": (
        {"z_plan": {"above": 4, "below": 2, "step": 2}}, {"z_plan": {"above": 6, "below": 2, "step": 2}}),
    "ZAboveBelow.below": (
        {"z_plan": {"above": 4, "below": 2, "step": 2}}, {"z_plan": {"above": 4, "below": 4, "step": 2}}),
    "ZAboveBelow.step": (
        {"z_plan": {"above": 4, "below": 2, "step": 2}}, {"z_plan": {"above": 4, "below": 2, "step": 1}}),
    "ZRangeAround.go_up": ({"z_plan": Z}, {"z_plan": {**Z, "go_up": False}}),
    "ZRangeAround.range": ({"z_plan": Z}, {"z_plan": {**Z, "range": 6}}),
    "ZRangeAround.step": ({"z_plan": Z}, {"z_plan": {**Z, "step": 1}}),
    "ZAbsolutePositions.go_up": (
        {"z_plan": {"absolute": [3, 1, 2]}}, {"z_plan": {"absolute": [3, 1, 2], "go_up": False}}),
    "ZAbsolutePositions.absolute": ({"z_plan": {"absolute": [3, 1, 2]}}, {"z_plan": {"absolute": [1, 2]}}),
    "ZRelativePositions.go_up": (
        {"z_plan": {"relative": [3, 1, 2]}}, {"z_plan": {"relative": [3, 1, 2], "go_up": False}}),
    "ZRelativePositions.relative": ({"z_plan": {"relative": [3, 1, 2]}}, {"z_plan": {"relative": [1, 2]}}),
}  # fmt: skip

PROPERTIES = [["Camera", "Binning", "2"]]
# A sequence with the field is refused, and the text names it.
REFUSED: dict[str, tuple[Parts, str]] = {
    "MDASequence.setup": ({"setup": {"properties": PROPERTIES}}, "setup"),
    "AbsolutePosition.properties": (at(properties=PROPERTIES), "properties"),
    "RelativePosition.sequence": (plate(well_points_plan={"sequence": {"z_plan": Z}}), "sequence"),
    "RelativePosition.properties": (plate(well_points_plan={"properties": PROPERTIES}), "properties"),
    "RelativePosition.plate_row": (plate(well_points_plan={"plate_row": 1}), "plate_row"),
    "RelativePosition.plate_col": (plate(well_points_plan={"plate_col": 1}), "plate_col"),
    "RelativePosition.grid_row": (plate(well_points_plan={"grid_row": 1}), "grid_row"),
    "RelativePosition.grid_col": (plate(well_points_plan={"grid_col": 1}), "grid_col"),
    "TIntervalLoops.prioritize_duration": (
        {"time_plan": {**TWICE, "prioritize_duration": True}}, "prioritize_duration"),
    "TDurationLoops.prioritize_duration": (
        {"time_plan": {"duration": 4, "loops": 3, "prioritize_duration": True}}, "prioritize_duration"),
    "TIntervalDuration.prioritize_duration": (
        {"time_plan": {"duration": 4, "interval": 2, "prioritize_duration": True}}, "prioritize_duration"),
    "MultiPhaseTimePlan.prioritize_duration": (
        {"time_plan": {"phases": [TWICE], "prioritize_duration": True}}, "prioritize_duration"),
}  # fmt: skip

IN_SETUP = "only inside of setup, which is refused whole"
OF_EVENT = "no key of a sequence: useq-schema fills it in, and the plan is made of it"
NOT_IN_SEQUENCE = "no key of a sequence, and useq-schema fills it in nowhere but in setup"
LABEL = "says where a position comes from; it is imaged at its x, y and z"
MEANINGLESS: dict[str, str] = {
    "MDASequence.metadata": "kept in the experiment.yaml of the run",
    "AbsolutePosition.plate_row": LABEL,
    "AbsolutePosition.plate_col": LABEL,
    "AbsolutePosition.grid_row": LABEL,
    "AbsolutePosition.grid_col": LABEL,
    "RelativePosition.fov_width": "a single point is no matter of field size",
    "RelativePosition.fov_height": "a single point is no matter of field size",
    "WellPlate.name": "for people",
    "AcquireImage.type": OF_EVENT,
    "HardwareAutofocus.type": OF_EVENT,
    "HardwareAutofocus.autofocus_device_name": OF_EVENT,
    "HardwareAutofocus.autofocus_motor_offset": OF_EVENT,
    "HardwareAutofocus.max_retries": OF_EVENT,
    **{f"CustomAction.{name}": IN_SETUP for name in ("type", "name", "data")},
    **{f"CameraROI.{name}": IN_SETUP for name in ("offset_x", "offset_y", "width", "height")},
    **{f"SLMImage.{name}": IN_SETUP for name in ("data", "device", "exposure")},
    **{f"MDAEvent.{name}": NOT_IN_SEQUENCE for name in ("slm_image", "roi", "metadata")},
    "MDAEvent.properties": "of a position, whose properties are refused, or of setup",
    "MDAEvent.sequence": "the sequence itself",
    **{f"MDAEvent.{name}": OF_EVENT for name in (
        "index", "channel", "exposure", "min_start_time", "pos_name", "x_pos", "y_pos", "z_pos", "action",
        "keep_shutter_open", "reset_event_timer")},
}  # fmt: skip


def find_models(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for part in typing.get_args(annotation) for model in find_models(part)}


def list_fields() -> set[str]:
    """Every field that can be reached from a sequence, as ``Model.field``."""
    seen: set[type[BaseModel]] = set()
    ahead: set[type[BaseModel]] = {useq.MDASequence}
    while ahead:
        model = ahead.pop()
        seen.add(model)
        for field in model.model_fields.values():
            ahead |= find_models(field.annotation) - seen
    return {f"{model.__name__}.{field}" for model in seen for field in model.model_fields}


def make_plan(parts: Parts) -> tuple[Cycle, ...]:
    return cycles(useq.MDASequence(**{"channels": [PHASE], "axis_order": "tpgcz", **parts}), PLACE, Optics())


def test_every_field_is_accounted_for_once() -> None:
    tables = [*USED, *REFUSED, *MEANINGLESS]
    assert set(tables) == list_fields()
    assert len(tables) == len(set(tables))


@pytest.mark.parametrize("without, with_it", USED.values(), ids=USED.keys())
def test_a_field_that_is_performed_changes_the_plan(without: Parts, with_it: Parts) -> None:
    assert make_plan(without) != make_plan(with_it)
    assert make_plan(with_it) == make_plan(with_it)  # whatever was planned before


@pytest.mark.parametrize("parts, name", REFUSED.values(), ids=REFUSED.keys())
def test_a_field_that_is_not_performed_is_refused_by_its_name(parts: Parts, name: str) -> None:
    with pytest.raises(ExperimentError, match=name):
        make_plan(parts)


# What useq-schema would drop in silence, or with a warning that nobody reads.
DROPPED: dict[str, tuple[Parts, str]] = {
    "an axis that is not in the order": ({"axis_order": "tpcz", "grid_plan": GRID}, "grid_plan"),
    "an offset without a z plan": ({"channels": [{**PHASE, "z_offset": 2}]}, "z_offset"),
    "a z plan of no plane": ({"z_plan": {"range": 3, "step": -1}}, "z_plan plans nothing"),
    "no plane at all": ({"z_plan": {"absolute": []}}, "z_plan plans nothing"),
    "no well": ({"stage_positions": {**PLATE, "selected_wells": None}}, "no well"),
    "a focus that never comes": ({"autofocus_plan": {"axes": ["t"]}}, "autofocus_plan: axes"),
    "a focus of no axis": ({"autofocus_plan": {"axes": []}}, "autofocus_plan: axes"),
    "a focus at every plane": ({"autofocus_plan": {"axes": ["z"]}, "z_plan": Z}, "autofocus_plan: axes"),
    "light while the run decides": (
        {"keep_shutter_open_across": ["c", "z"], "channels": [PHASE, DAPI]}, "keep_shutter_open_across"),
    "a point of another height": (
        {"grid_plan": useq.RelativePosition(x=1, z=3)}, "grid_plan: z"),
    "numbers that are none": ({"z_plan": {"range": math.nan, "step": 1}}, "z_plan"),
    "an interval of nothing": ({"time_plan": {"interval": 0, "duration": 3}}, "time_plan"),
    "one loop in a duration": ({"time_plan": {"duration": 3, "loops": 1}}, "time_plan"),
    "more images than a disk holds": ({"time_plan": {"interval": 1, "loops": 10**9}}, "images"),
    "a place that is none": (at(x=math.nan), "lies nowhere"),
    "a field for a lawyer": (at(name="n" * 250), "file name"),
    "a setting of one position": (
        at(sequence={"z_plan": Z, "setup": {}}), "stage_positions.0.: sequence: setup"),
}  # fmt: skip


@pytest.mark.parametrize("parts, message", DROPPED.values(), ids=DROPPED.keys())
def test_what_would_be_dropped_in_silence_is_refused(parts: Parts, message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        make_plan(parts)


WARNED: dict[str, Parts] = {
    "x and y beside an absolute grid": {"stage_positions": [{"x": 1, "y": 2, "z": 0}], "grid_plan": EDGES},
    "channels left out before times": {
        "axis_order": "cptgz", "channels": [{**PHASE, "acquire_every": 2}], "time_plan": TWICE},
}  # fmt: skip


@pytest.mark.parametrize("parts", WARNED.values(), ids=WARNED.keys())
def test_what_useq_schema_only_warns_of_is_an_error_in_a_file(parts: Parts) -> None:
    overview = {"channels": [PHASE], **parts}
    with pytest.raises(ExperimentError, match=r"ignored|may not yield"):
        Experiment.from_text(yaml.safe_dump({"name": "a", "overview": overview}))


# Kinds of sequence in the documentation and the tests of useq-schema; what is not said here is planned.
TWO = [{"x": 0, "y": 0, "z": 0}, {"x": 10, "y": 20, "z": 10}]
FIELD = {"fov_width": 10, "fov_height": 10}
TILES, ROW = {"rows": 2, "columns": 2, **FIELD}, {"rows": 1, "columns": 2, **FIELD}
FIXED = {"top": 10, "bottom": -10, "left": 0, "right": 0, **FIELD}
DEEP, BETWEEN = {"top": 60, "bottom": 58, "step": 1}, {"top": 30, "bottom": 28, "step": 1}


def second(sequence: Parts, **more: Any) -> list[Parts]:
    return [TWO[0], {"x": 10, "y": 10, "z": 10, "name": "name", "sequence": sequence, **more}]


def unplaced(sequence: Parts) -> list[Parts]:
    return [TWO[0], {"z": 10, "name": "name", "sequence": sequence}]


KINDS: dict[str, Parts] = {
    "one image": {},
    "positions and channels": {"stage_positions": TWO, "channels": [PHASE, DAPI]},
    "everything at once": {
        "stage_positions": TWO, "channels": [PHASE, DAPI], "z_plan": Z, "grid_plan": TILES,
        "time_plan": TWICE},
    "phases of time, a channel now and then": {
        "channels": [PHASE, {**DAPI, "acquire_every": 3, "do_stack": False}], "z_plan": Z,
        "time_plan": [{"interval": 3, "loops": 3}, {"duration": 40, "interval": 10}]},
    "channels one after the other at all positions": {
        "axis_order": "tcpgz", "stage_positions": TWO, "channels": [PHASE, DAPI], "z_plan": Z},
    "a grid before the positions": {"axis_order": "tgpcz", "stage_positions": TWO, "grid_plan": TILES},
    "planes from the top": {"stage_positions": TWO, "z_plan": {**Z, "go_up": False}},
    "planes from the middle": {"z_plan": {"relative": [0, 1, -1, 2, -2]}},
    "absolute planes": {"stage_positions": TWO, "z_plan": DEEP},
    "a channel in a position only": {"channels": [], "stage_positions": [
        {**TWO[0], "sequence": {"channels": [PHASE]}}, {**TWO[1], "sequence": {"channels": [DAPI]}}]},
    "other channels in a position": {"stage_positions": second({"channels": [DAPI]})},
    "other channels in a position, z of all": {
        "stage_positions": second({"channels": [PHASE, DAPI]}), "channels": [PHASE], "z_plan": Z},
    "a grid in a position": {"stage_positions": second({"grid_plan": TILES})},
    "an absolute grid in a position": {"stage_positions": unplaced({"grid_plan": FIXED})},
    "a grid in all and in a position": {"stage_positions": second({"grid_plan": ROW}), "grid_plan": TILES},
    "relative in all, absolute in a position": {
        "stage_positions": unplaced({"grid_plan": FIXED}), "grid_plan": TILES},
    "a grid in every position": {"stage_positions": [
        {**TWO[0], "sequence": {"grid_plan": ROW}}, {**TWO[1], "sequence": {"grid_plan": TILES}}]},
    "a grid in a position, z of all": {"stage_positions": second({"grid_plan": TILES}), "z_plan": Z},
    "z in a position": {"stage_positions": second({"z_plan": Z})},
    "absolute z in a position": {"stage_positions": second({"z_plan": DEEP})},
    "z in all and in a position": {
        "stage_positions": second({"z_plan": {"range": 3, "step": 1}}), "z_plan": {"range": 2, "step": 1}},
    "absolute in both": {"stage_positions": second({"z_plan": BETWEEN}), "z_plan": DEEP},
    "absolute in all, relative in a position": {"stage_positions": second({"z_plan": Z}), "z_plan": DEEP},
    "relative in all, absolute in a position ": {"stage_positions": second({"z_plan": DEEP}), "z_plan": Z},
    "times in a position": {"stage_positions": second({"time_plan": {"interval": 1, "loops": 5}})},
    "times in a position, z of all": {
        "stage_positions": second({"time_plan": {"interval": 1, "loops": 3}}), "z_plan": Z},
    "times in a position, channel by channel": {
        "stage_positions": second({"time_plan": TWICE}), "channels": [PHASE, DAPI]},
    "grid, z and times in a position": {
        "stage_positions": second({"grid_plan": TILES, "z_plan": Z, "time_plan": TWICE}),
        "channels": [PHASE, DAPI]},
    "everything of a position's own": {
        "stage_positions": second(
            {"channels": [DAPI, {"config": "NFH", "exposure": 2}], "grid_plan": ROW, "z_plan": Z}),
        "z_plan": {"range": 2, "step": 1}, "grid_plan": TILES},
    "a plate": {"stage_positions": {**PLATE, "well_points_plan": TILES}, "z_plan": Z},
    "points in a plate": {"stage_positions": {**PLATE, "well_points_plan": {**POINTS, **FIELD}}},
    "random points": {"stage_positions": TWO, "grid_plan": {**POINTS, **FIELD}},
    "a polygon": {"grid_plan": {**CORNER, "fov_width": 100, "fov_height": 100}},
    "a width": {"grid_plan": {"width": 25, "height": 15, **FIELD}},
    "focus at each position": {"stage_positions": TWO, "autofocus_plan": AF, "z_plan": Z},
    "focus in each channel": {"autofocus_plan": {"axes": ["c"]}, "channels": [PHASE, DAPI], "z_plan": Z},
    "focus at each tile": {
        "autofocus_plan": {"axes": ["g"]}, "stage_positions": TWO, "grid_plan": TILES,
        "channels": [PHASE, DAPI]},
    "focus at each time and place": {
        "autofocus_plan": {"axes": ["t", "p"]}, "stage_positions": TWO, "time_plan": TWICE, "z_plan": Z},
    "focus in one position only": {
        "stage_positions": second({"autofocus_plan": {"axes": ["c"]}}), "z_plan": Z,
        "channels": [PHASE, DAPI]},
    "focus in the grid of a position": {
        "stage_positions": second({"autofocus_plan": {"axes": ["p", "g"]}, "grid_plan": TILES}),
        "channels": [PHASE, DAPI]},
    "focus and z in a position": {"stage_positions": second({"autofocus_plan": AF, "z_plan": Z})},
    "the shutter stays open in a stack": {
        "stage_positions": TWO, "channels": [PHASE, DAPI], "z_plan": Z, "keep_shutter_open_across": "z"},
}  # fmt: skip
NOT_PLANNED: dict[str, tuple[Parts, str]] = {
    "planes one after the other in all channels": (
        {"axis_order": "tpgzc", "channels": [PHASE, DAPI], "z_plan": Z}, "z is not the innermost axis"),
    "times at one position after the other": (
        {"axis_order": "ptgcz", "stage_positions": TWO, "time_plan": TWICE},
        "time is not the outermost axis"),
    "times in all and in a position": (
        {"stage_positions": second({"time_plan": {"interval": 1, "loops": 5}}), "time_plan": TWICE},
        "planned twice"),
    "focus and z in a position, z of all": (  # useq-schema repeats the position for each plane of all
        {"stage_positions": second({"autofocus_plan": AF, "z_plan": Z}), "z_plan": Z}, "planned twice"),
    "a channel twice": ({"channels": [PHASE, {**PHASE, "exposure": 20}]}, "planned twice"),
    "a channel in one position, none in the others": (
        {"channels": [], "stage_positions": second({"channels": [DAPI]})}, "names no channel"),
}  # fmt: skip

Image = tuple[int, int, str, float, float, float, float]


def list_images(sequence: useq.MDASequence) -> list[Image]:
    """What useq-schema itself iterates over."""
    found = []
    for event in sequence:
        if not isinstance(event.action, useq.HardwareAutofocus):
            assert event.channel is not None and event.exposure is not None
            place = [0.0 if um is None else um for um in (event.x_pos, event.y_pos, event.z_pos)]
            index = event.index.get("t", 0), event.index.get("p", 0)
            found.append((*index, event.channel.config, event.exposure, *(round(um, 4) for um in place)))
    return found


def list_planned(plan: tuple[Cycle, ...], names: list[str]) -> list[Image]:
    def place_of(request: StackRequest) -> int:
        return next(number for number, name in enumerate(names) if request.key.position.startswith(name))

    return [
        (request.key.time, place_of(request), request.preset, request.exposure_ms,
         round(request.x_um, 4), round(request.y_um, 4), z_um)
        for cycle in plan for request in cycle.requests for z_um in request.z_um
    ]  # fmt: skip


@pytest.mark.parametrize("parts", KINDS.values(), ids=KINDS.keys())
def test_what_useq_iterates_is_what_is_planned(parts: Parts) -> None:
    def make() -> useq.MDASequence:
        return useq.MDASequence(**{"channels": [PHASE], "axis_order": "tpgcz", **parts})

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = cycles(make(), Place(0.0, 0.0, 0.0, (1.0, 1.0)), Optics())
        images = list_images(make())
    positions = list(make().stage_positions)
    names = [each.name or f"p{number:02d}" for number, each in enumerate(positions)] or ["p00"]
    planned = list_planned(plan, names)
    assert sorted(planned) == sorted(images)
    if not any(each.sequence for each in positions):
        assert planned == images


@pytest.mark.parametrize("parts, reason", NOT_PLANNED.values(), ids=NOT_PLANNED.keys())
def test_what_is_not_planned_is_refused_with_the_reason(parts: Parts, reason: str) -> None:
    with pytest.raises(ExperimentError, match=reason):
        make_plan(parts)


def test_the_focus_is_looked_for_where_the_plan_wants_it() -> None:
    parts = {
        "stage_positions": [{"x": 0, "y": 0, "z": 7}, {"x": 9, "y": 0, "z": 8}],
        "channels": [{**PHASE, "z_offset": 1}, DAPI],
        "z_plan": {"relative": [-1, 4]},
        "autofocus_plan": {"axes": ["p"], "autofocus_device_name": "PFS", "autofocus_motor_offset": 3},
    }
    (cycle,) = make_plan(parts)
    focus = [request.autofocus for request in cycle.requests]
    assert [(each.site, each.z_um, each.due) for each in focus if each] == [
        ("p00", 7.0, True),
        ("p00", 7.0, False),
        ("p01", 8.0, True),
        ("p01", 8.0, False),
    ]
    assert [(each.device, each.offset, each.tries) for each in focus if each and each.due] == [
        ("PFS", 3.0, 3)
    ] * 2


def test_times_of_one_position_count_from_its_own_beginning() -> None:
    plan = make_plan({"stage_positions": second({"time_plan": {"interval": 2, "loops": 3}}), "z_plan": Z})
    assert [(cycle.time, cycle.start_s, cycle.restarts) for cycle in plan] == [
        (0, 0.0, False), (0, 0.0, True), (1, 2.0, False), (2, 4.0, False)
    ]  # fmt: skip


def test_each_revisit_focuses_for_itself() -> None:
    field = make_plan(at(z=3))[0].requests[0]
    sequence = useq.MDASequence(channels=[DAPI], autofocus_plan=AF)
    for time in (0, 1):
        [visit] = visits(sequence, field, time)
        assert visit.autofocus is not None and visit.autofocus.due
        assert (visit.autofocus.z_um, visit.autofocus.site) == (3.0, f"p00 again at {time}")
