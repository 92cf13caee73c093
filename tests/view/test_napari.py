"""What a window shows, without a window: places, what is followed, marks, words, colours."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skimage.color import deltaE_ciede2000, rgb2lab

from acq_isl.events import (
    Decided,
    Event,
    FieldRanked,
    LabelStyle,
    NotPredicted,
    PlannedField,
    Predicted,
    Progress,
    RunStarted,
    RunStatus,
    Seen,
    Step,
)
from acq_isl.processing.display import PALETTE, Box, Layout
from acq_isl.record import Counts
from acq_isl.rules.measurements import Measured
from acq_isl.rules.series import Curve, Point
from acq_isl.stack import StackKey, StageTimes
from acq_isl.view.feed.messages import Message
from acq_isl.view.napari.marks import BADGE_COLOR, BADGE_INK, badge, hatch
from acq_isl.view.napari.model import LiveModel
from acq_isl.view.napari.mosaic import Mosaic, Shade, fitted, pixel_size_um, placed
from acq_isl.view.napari.panel import beside
from acq_isl.view.napari.plots import lines_of
from acq_isl.view.napari.scene import coordinates
from acq_isl.view.napari.style import (
    banner,
    decision_words,
    field_words,
    hues,
    outline,
    rank_color,
    short_state,
    status_lines,
)

RUN = "0" * 32
LABELS = ("nuclei", "axons")
SIDE = 64
FOV = 19.2


def key(position: str, channel: str = "Phase", time: int = 0) -> StackKey:
    return StackKey(time, position, channel)


def plan(places: Sequence[tuple[float, float]], fov: float = FOV) -> RunStarted:
    fields = tuple(PlannedField(key(f"A{n}"), x, y, 0.0, 13) for n, (x, y) in enumerate(places))
    labels = (LabelStyle("nuclei", "#56B4E9"), LabelStyle("axons", "no hue"))
    return RunStarted("a run", "now", "here", "simulated", "demo", labels, fields, (fov, fov))


def message(seq: int, event: Event, *images: NDArray[Any]) -> Message:
    return Message(RUN, seq, event, images)


ROW = [(0.0, 0.0), (FOV, 0.0), (2 * FOV, 0.0), (3 * FOV, 0.0), (4 * FOV, 0.0)]


def light(seq: int, position: str, *, channel: str = "Phase", time: int = 0, predict: bool = True) -> Message:
    number = int(position[1:]) if position[1:].isdigit() else 0
    event = Seen(
        key(position, channel, time), predict, FOV * number, 0.0, 0.0, 0.3, (SIDE, SIDE), 0.0,
        low=100.0 + seq, high=900.0 + seq,
    )  # fmt: skip
    return message(seq, event, np.full((SIDE, SIDE), 500, np.uint16))


def predicted(seq: int, position: str, *, time: int = 0, labels: tuple[str, ...] = LABELS) -> Message:
    measured = (Measured("area <of> nuclei", 0.123, "fraction", 0.004),)
    event = Predicted(
        key(position, time=time), 0.0, 0.0, 0.3, (SIDE, SIDE), labels, measured, ("resampled",), "cpu",
        StageTimes(infer_ms=140.0),
    )  # fmt: skip
    mean = np.full((len(labels), SIDE, SIDE), 200, np.uint8)
    return message(seq, event, mean, np.zeros((SIDE, SIDE), np.uint8))


def refused(seq: int, position: str, state: Literal["refused", "waits"] = "refused") -> Message:
    return message(seq, NotPredicted(key(position), state, "too dark", "lamp"))


def ranked(seq: int, position: str, rank: int | None, *, chosen: bool = False) -> Message:
    measured = Measured("number of objects in nuclei (predicted)", 34.0, "objects", 3.0)
    return message(seq, FieldRanked(key(position), rank, chosen, measured, "Chosen: 34."))


def status(*, done: int = 2, remaining_s: float = 30.0, **changed: Any) -> RunStatus:
    step = Step("overview", done, 9, "imaged A1")
    progress = Progress(Counts(117, 26, 13), 13, (), "predicting", remaining_s)
    return RunStatus(step=step, progress=progress, **changed)


def model_of(*messages: Message, places: Sequence[tuple[float, float]] = ROW) -> LiveModel:
    model = LiveModel()
    model.take(message(0, plan(places)))
    for each in messages:
        model.take(each)
    return model


# Places


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=12, unique=True))
@settings(max_examples=60, deadline=None)
def test_every_place_of_the_map_leads_to_its_place_on_the_stage(cells: list[tuple[int, int]]) -> None:
    model = LiveModel()
    model.take(message(0, plan([(x * FOV, y * FOV) for x, y in cells])))
    for one in model.fields.values():
        x, y = one.box.x + one.box.width * 0.75, one.box.y + one.box.height / 4
        found = coordinates(model, x, y)
        assert found is not None and one.planned is not None and found[2] is not None
        assert found[2].name == one.name
        assert found[:2] == pytest.approx((one.planned.x_um + FOV / 4, one.planned.y_um - FOV / 4), abs=0.01)


def test_fields_lie_at_their_stage_coordinates() -> None:
    found = placed(plan(ROW).fields, (FOV, FOV))
    assert found.to_scale
    middles = [(box.x + FOV / 2, box.y + FOV / 2) for box in found.boxes]
    np.testing.assert_allclose(middles, ROW, atol=1e-9)


def test_fields_far_apart_are_set_in_rows_and_free_places_lead_nowhere() -> None:
    model = model_of(places=[(0.0, 0.0), (9000.0, 0.0), (0.0, 9000.0)])
    assert model.places is not None and not model.places.to_scale
    around = model.places.around
    assert max(around.width, around.height) < 10 * FOV
    assert coordinates(model, around.x - 100, 0.0) is None


def test_a_free_place_of_a_map_to_scale_is_the_stage_itself() -> None:
    assert coordinates(model_of(), -50.0, 70.0) == (-50.0, 70.0, None)


def test_of_overlapping_fields_the_nearest_is_meant() -> None:
    model = model_of(places=[(0.0, 0.0), (FOV / 2, 0.0)])
    found = model.at(FOV / 2, 0.0)
    assert found is not None and found.name == "A1"


def test_the_map_stays_within_its_pixels() -> None:
    many = [(x * FOV, y * FOV) for x, y in itertools.product(range(40), range(40))]
    found = placed(plan(many).fields, (FOV, FOV))
    pixels = found.around.width * found.around.height / pixel_size_um(found) ** 2
    assert pixels <= (1 << 21) * 1.01


# What is followed


@pytest.mark.parametrize(
    "messages, newest",
    [
        ([], None),
        ([light(1, "A0")], "A0"),
        ([light(1, "A0"), light(2, "A1")], "A1"),
        ([light(1, "A0"), predicted(2, "A0"), light(3, "A1")], "A0"),
        ([light(1, "A0"), light(2, "A1"), predicted(3, "A0"), predicted(4, "A1")], "A1"),
        ([predicted(4, "A1"), predicted(3, "A0")], "A1"),
        ([predicted(1, "A0"), *(light(n + 2, f"A{n}") for n in range(1, 5))], "A4"),
        ([predicted(9, "A0"), light(10, "A2", channel="DAPI", predict=False)], "A2"),
    ],
    ids=["nothing", "light", "newer light", "prediction stays until the next", "two predictions",
         "out of order", "the engine lags", "fluorescence"],
)  # fmt: skip
def test_the_newest_field_is_followed(messages: list[Message], newest: str | None) -> None:
    assert model_of(*messages).newest == newest


def test_a_picked_field_stays_until_the_run_is_followed_again() -> None:
    model = model_of(light(1, "A0"), predicted(2, "A0"))
    model.select("A0")
    model.take(predicted(3, "A1"))
    assert model.shown is model.fields["A0"]
    model.select("nowhere")
    assert model.selected == "A0"
    model.select(None)
    assert model.shown is model.fields["A1"]


def test_older_messages_change_nothing() -> None:
    model = model_of(predicted(5, "A0"), ranked(6, "A0", 1), message(9, status()))
    before = model.fields["A0"].predicted
    model.changes()
    for late in (predicted(4, "A0"), refused(3, "A0"), ranked(2, "A0", 7), message(8, status(done=1))):
        model.take(late)
    one = model.fields["A0"]
    assert (one.predicted, one.ranked.rank if one.ranked else None) == (before, 1)
    assert model.status is not None and model.status.step.done == 2
    assert not model.changes().fields


def test_a_new_time_point_hides_what_was_predicted_for_the_last_one() -> None:
    model = model_of(light(1, "A0"), predicted(2, "A0"), ranked(3, "A0", 1))
    model.take(light(7, "A0", time=1))
    one = model.fields["A0"]
    assert (one.time, one.predicted, one.ranked) == (1, None, None)
    model.take(predicted(8, "A0", time=0))
    assert one.predicted is None
    model.take(predicted(9, "A0", time=1))
    assert one.predicted is not None


def test_a_refusal_and_a_prediction_replace_each_other() -> None:
    model = model_of(refused(1, "A0", "waits"))
    assert model.fields["A0"].refused is not None
    model.take(predicted(2, "A0"))
    assert model.fields["A0"].refused is None and model.fields["A0"].predicted is not None


def test_pictures_that_come_before_the_plan_are_kept() -> None:
    model = LiveModel()
    model.take(predicted(5, "A1"))
    model.take(message(0, plan(ROW)))
    one = model.fields["A1"]
    assert one.predicted is not None and one.planned is not None
    assert one.box.x == pytest.approx(FOV / 2)
    assert list(model.fields) == [f"A{n}" for n in range(5)]


def test_a_place_an_operator_went_to_is_a_field_of_its_own() -> None:
    model = model_of(light(3, "operator", predict=False))
    one = model.fields["operator"]
    assert one.planned is None and one.light is not None and one.shift_um == (0.0, 0.0)


def test_pictures_beyond_the_memory_go_but_numbers_stay() -> None:
    model = LiveModel(max_bytes=3 * SIDE * SIDE * 5)
    model.take(message(0, plan(ROW)))
    for number in range(5):
        model.take(light(2 * number, f"A{number}"))
        model.take(predicted(2 * number + 1, f"A{number}"))
        model.take(ranked(20 + number, f"A{number}", number + 1))
    assert sum(one.nbytes for one in model.fields.values()) <= 3 * SIDE * SIDE * 5
    assert model.forgotten == 2
    assert model.fields["A0"].light is None and model.fields["A0"].ranked is not None
    assert model.fields["A4"].light is not None


def test_decisions_are_bounded() -> None:
    model = model_of()
    for seq in range(1000):
        model.take(message(seq, Decided(None, "r", "w", "y", "done", float(seq))))
    assert len(model.decisions) == 200 and model.decisions[-1].time_s == 999


def test_the_light_range_is_the_middle_of_the_fields() -> None:
    assert model_of().light_range is None
    model = model_of(*(light(seq, f"A{number}") for number, seq in enumerate((0, 10, 9000))))
    assert model.light_range == (110.0, 910.0)


# The map


def shade(color: tuple[float, float, float], opacity: float = 1.0) -> Shade:
    ramp = np.linspace(0, opacity, 256, dtype=np.float32)[:, None]
    return Shade(0.0, 255.0, np.hstack([np.tile(np.array(color, np.float32), (256, 1)), ramp]))


def gray_light() -> Shade:
    gray = np.linspace(0, 0.5, 256, dtype=np.float32)[:, None]
    return Shade(0.0, 1000.0, np.hstack([gray, gray, gray, np.ones_like(gray)]))


GRAY, BLUE, RED = gray_light(), shade((0.0, 0.0, 1.0)), shade((1.0, 0.0, 0.0))


def mosaic() -> tuple[Mosaic, Layout]:
    places = placed(plan(ROW).fields, (FOV, FOV))
    return Mosaic(places, [GRAY, BLUE, RED]), places


def tile(places: Layout, number: int) -> tuple[slice, slice]:
    columns = round(FOV / pixel_size_um(places))
    return slice(columns // 4, -columns // 4), slice(
        number * columns + columns // 4, (number + 1) * columns - columns // 4
    )


@pytest.mark.parametrize(
    "blue, red, seen",
    [
        (0, 0, (127, 127, 127)),
        (255, 0, (0, 0, 255)),
        (0, 255, (255, 0, 0)),
        (255, 255, (0, 0, 255)),  # the first label covers the second
        (0, 51, (153, 102, 102)),  # a fifth of it, over gray
    ],
)
def test_labels_cover_the_light_and_one_another(blue: int, red: int, seen: tuple[int, int, int]) -> None:
    drawn, places = mosaic()
    labels = np.stack([np.full((SIDE, SIDE), value, np.uint8) for value in (blue, red)])
    drawn.put(places.boxes[1], np.full((SIDE, SIDE), 1000, np.uint16), labels)
    inside = drawn.picture[tile(places, 1)]
    assert np.abs(inside - np.array(seen, float)).max() <= 1
    assert not drawn.picture[tile(places, 0)].any()


def test_a_predicted_tile_is_hatched_and_a_measured_one_is_not() -> None:
    drawn, places = mosaic()
    dark = np.zeros((SIDE, SIDE), np.uint16)
    drawn.put(places.boxes[0], dark, None)
    assert not drawn.picture.any()
    drawn.put(places.boxes[0], dark, np.zeros((2, SIDE, SIDE), np.uint8))
    assert drawn.picture.any() and not drawn.picture[tile(places, 0)].any()
    drawn.put(places.boxes[0], None, None)
    assert not drawn.picture.any()


def test_the_map_follows_the_colours_of_the_layers() -> None:
    drawn, places = mosaic()
    drawn.put(places.boxes[0], None, np.full((2, SIDE, SIDE), 255, np.uint8))
    off = shade((0.0, 0.0, 1.0), opacity=0.0)
    assert drawn.shade([GRAY, off, RED])
    inside = drawn.picture[tile(places, 0)]
    assert inside[..., 0].min() == 255 and inside[..., 2].max() == 0
    assert not drawn.shade([GRAY, shade((0.0, 0.0, 1.0), opacity=0.0), RED])


def test_a_field_outside_of_the_map_is_left_out() -> None:
    drawn, _ = mosaic()
    drawn.put(Box(9e6, 9e6, FOV, FOV), np.full((SIDE, SIDE), 1000, np.uint16), None)
    drawn.put(Box(-9e6, 0, FOV, FOV), np.full((SIDE, SIDE), 1000, np.uint16), None)
    assert not drawn.picture.any()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 65535))
@settings(max_examples=40, deadline=None)
def test_fitting_keeps_an_even_picture_even(rows: int, columns: int, value: int) -> None:
    fit = fitted(np.full((13, 17), value, np.uint16), (rows, columns))
    assert fit.shape == (rows, columns) and np.allclose(fit, value, rtol=1e-6)


# Marks


@given(st.integers(8, 700), st.integers(8, 700))
@settings(max_examples=40, deadline=None)
def test_every_predicted_picture_has_stripes_all_around_and_keeps_its_inside(rows: int, columns: int) -> None:
    picture = np.full((rows, columns), 7, np.uint8)
    hatch((rows, columns)).paint(picture)
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert 7 not in edge
        assert len(edge) < 16 or set(np.unique(edge)) == {0, np.uint8(picture.max())}
    width = max(min(rows, columns) // 50, 1)
    assert (picture[width:-width, width:-width] == 7).all()


def test_the_badge_is_written_where_there_is_room() -> None:
    assert badge((512, 512)).mask.sum() > hatch((512, 512)).mask.sum() + 2000
    assert badge((100, 100)).mask.sum() == hatch((100, 100)).mask.sum()


def test_marks_are_shared_and_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        badge((300, 300)).values[0] = 1


# Words


def test_hues_are_the_models_or_from_the_palette() -> None:
    assert hues(plan(ROW)) == {"nuclei": "#56B4E9", "axons": PALETTE[1]}


def test_the_banner_says_what_is_predicted() -> None:
    assert banner(LiveModel()) == "waiting for the run"
    assert banner(model_of()) == "PREDICTED, not measured: nuclei, axons"
    without = LiveModel()
    without.take(message(0, replace(plan(ROW), labels=())))
    assert "everything shown is measured" in banner(without)


@pytest.mark.parametrize(
    "changed, alive, has",
    [
        ({}, True, "overview 2 of 9 · imaged A1"),
        ({}, False, "does not answer; last heard: overview"),
        ({"state": "paused", "why": "by the operator"}, True, "paused · by the operator"),
        ({"state": "failed", "why": "no camera", "report": "/r"}, False, "failed · no camera · report: /r"),
    ],
)  # fmt: skip
def test_the_state_is_told_in_one_line(changed: dict[str, object], alive: bool, has: str) -> None:
    assert has in status_lines(status(**changed), alive)[0]


def test_the_picture_itself_says_the_state_in_a_few_words() -> None:
    assert short_state(None, alive=False) == "waiting for the run"
    assert short_state(status(why="x" * 500), alive=True) == "overview 2 of 9"
    assert "does not answer; last heard: overview 2 of 9" in short_state(status(), alive=False)
    assert short_state(status(state="ended", report="/r" * 200), alive=False) == "ended"


def test_the_numbers_are_told() -> None:
    _, numbers = status_lines(status(dropped=3, remaining_s=600.0), alive=True)
    parts = (
        "26 slices captured",
        "13 predicted",
        "13 on their way",
        "engine predicting",
        "10 min left",
        "3 pictures",
    )
    assert all(part in numbers for part in parts), numbers
    assert status_lines(None, alive=False) == ("waiting for the run to answer", "")


def test_a_field_tells_its_numbers_and_nothing_of_it_is_markup() -> None:
    model = model_of(predicted(1, "A0"), ranked(2, "A0", 1, chosen=True))
    words = field_words(model.fields["A0"])
    for part in ("area &lt;of&gt; nuclei", "12.3 ± 0.4 % of the area", "Chosen: 34.", "resampled", "140 ms"):
        assert part in words
    assert "click one" in field_words(None)
    assert "too dark" in field_words(model_of(refused(1, "A0")).fields["A0"])


def test_decisions_are_listed_newest_first() -> None:
    decided = [
        Decided(key("A0") if n % 2 else None, f"rule{n}", "image", "because", "done", float(n))
        for n in range(8)
    ]
    words = decision_words(decided)
    assert words.index("rule7") < words.index("rule6") and "rule2" not in words and "at A0" in words
    assert "None so far" in decision_words([])


@pytest.mark.parametrize(
    "messages, color, width, text",
    [
        ([], "#5a5a5a", 1.0, ""),
        ([light(1, "A0")], "#a0a0a0", 1.0, ""),
        ([refused(1, "A0")], "#d55e00", 1.5, "refused"),
        ([refused(1, "A0", "waits")], "#cc79a7", 1.5, "waits for the engine"),
        ([predicted(1, "A0"), ranked(2, "A0", 3)], rank_color(3, 5), 2.0, ""),
        ([predicted(1, "A0"), ranked(2, "A0", None)], "#a0a0a0", 1.0, ""),
    ],
    ids=["planned", "imaged", "refused", "waits", "ranked", "not rankable"],
)
def test_frames_say_how_a_field_stands(messages: list[Message], color: str, width: float, text: str) -> None:
    found = outline(model_of(*messages).fields["A0"], ranked=5)
    assert (found.color, found.width, found.text) == (color, width, text)


def test_a_chosen_field_says_why() -> None:
    model = model_of(predicted(1, "A0"), ranked(2, "A0", 2, chosen=True))
    found = outline(model.fields["A0"], ranked=5)
    assert found.width == 4.0
    assert found.text.replace("\n", " ") == "2. number of objects in nuclei (predicted): 34 ± 3.0 objects"


def test_predicted_and_measured_pictures_stand_beside_each_other() -> None:
    model = model_of(light(1, "A0"), predicted(2, "A0"))
    one = model.fields["A0"]
    assert beside(one, hues(plan(ROW))) == []
    for seq, channel in enumerate(("NFH", "DAPI"), start=3):
        model.take(light(seq, "A0", channel=channel, predict=False))
    shown = beside(one, hues(plan(ROW)))
    names = ["nuclei (predicted)", "axons (predicted)", "DAPI (measured)", "NFH (measured)"]
    assert [picture.caption for picture in shown] == names
    # The border of a predicted picture is hatched; a measured one is as bright there as elsewhere.
    assert [len(np.unique(picture.pixels[0].sum(axis=-1))) for picture in shown] == [2, 2, 1, 1]


# Colours

# Machado, Oliveira, Fernandes 2009, severity 1.0, for linear RGB.
COLOUR_VISION = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def linear(color: str) -> NDArray[np.float64]:
    srgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def contrast(first: str, second: str) -> float:
    """WCAG 2."""
    dark, bright = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (first, second))
    return (bright + 0.05) / (dark + 0.05)


def apart(first: str, second: str, vision: str) -> float:
    """CIEDE2000 as seen with a kind of colour vision."""
    seen = [np.clip(COLOUR_VISION[vision] @ linear(color), 0, 1) for color in (first, second)]
    srgb = [np.where(c <= 0.0031308, 12.92 * c, 1.055 * c ** (1 / 2.4) - 0.055) for c in seen]
    labs = [rgb2lab(c[None, None])[0, 0] for c in srgb]
    return float(deltaE_ciede2000(*labs))


@pytest.mark.parametrize("vision", COLOUR_VISION)
def test_label_hues_are_told_apart_with_every_colour_vision(vision: str) -> None:
    for first, second in itertools.combinations(PALETTE, 2):
        assert apart(first, second, vision) > 10, (first, second)


def test_hues_that_are_confused_would_be_found() -> None:
    assert apart("#d62728", "#4d7f17", "deuteranopia") < 10 < apart("#d62728", "#4d7f17", "usual")


def test_the_badge_can_be_read() -> None:
    assert contrast(BADGE_COLOR, BADGE_INK) >= 7


@pytest.mark.parametrize("rank", range(1, 10))
def test_frames_are_seen_on_black_and_brighter_the_better(rank: int) -> None:
    this, following = (contrast(rank_color(number, 9), "#000000") for number in (rank, rank + 1))
    assert this >= 4.5 and (rank == 9 or this > following)
    assert contrast("#5a5a5a", "#000000") >= 3


def test_wells_and_the_field_looked_at_stand_out() -> None:
    points = (Point(0, 0.0, 0.25, 0.01), Point(1, 60.0, math.nan, math.nan, why="refused"))
    places: tuple[tuple[Literal["well", "field"], str], ...] = (
        ("well", "A1"),
        ("field", "p0"),
        ("field", "p1"),
    )
    curves = [Curve(level, place, "area", "fraction", points) for level, place in places]
    ((name, (unit, lines)),) = lines_of(curves, "p1").items()
    assert (name, unit) == ("area", "% of the area") and lines[0].y[0] == 25.0
    assert {line.name: line.strong for line in lines} == {"A1": True, "p1": True, "p0": False}
