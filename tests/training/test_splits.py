"""Nothing that is trained on is held out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from acq_isl.errors import PairRefused
from acq_isl.training.data.pairs import Item, Recording
from acq_isl.training.data.splits import Split, divide, simulated_only

STACK = np.arange(3 * 16 * 100, dtype=np.uint16).reshape(3, 16, 100)
Z_UM = (0.0, 1.5, 3.0)


def item(name, well=None, **more):
    recording = Recording(STACK, {"nuclei": STACK[0]}, 0.3, Z_UM)
    return Item(name, well, name, lambda: recording, labels=("nuclei",), **more)


def split(**values):
    return TypeAdapter(Split).validate_python(values)


PLATE = [item(f"p/{well}/{n}", f"p/{well}") for well in ("A1", "A2", "B1") for n in (1, 2)]


@pytest.mark.parametrize("wanted", ["A2", "p/A2"])
def test_a_well_is_held_out_whole(wanted):
    found = divide(PLATE, [], split(by="well", held_out=[wanted]))
    assert [one.name for one in found.held_out] == ["p/A2/1", "p/A2/2"]
    assert [one.well for one in found.train] == ["p/A1", "p/A1", "p/B1", "p/B1"]
    assert (found.unit, found.title) == ("well", "held-out wells")


@given(st.floats(0.01, 0.99), st.integers(0, 99), st.sampled_from(["well", "field"]))
def test_no_unit_is_ever_on_both_sides(share, seed, by):
    found = divide(PLATE, [], split(by=by, share=share, seed=seed))
    units = [
        {one.well if by == "well" else one.place for one in side} for side in (found.train, found.held_out)
    ]
    assert units[0] and units[1]
    assert not units[0] & units[1]
    assert len(found.train) + len(found.held_out) == len(PLATE)
    assert found == divide(PLATE, [], split(by=by, share=share, seed=seed))


def test_time_points_of_a_field_stay_together():
    series = [item(f"A1 t{t}", "A1", field="A1") for t in range(4)] + [item("A2", "A2")]
    found = divide(series, [], split(by="field", held_out=["A1"]))
    assert len(found.held_out) == 4


@pytest.mark.parametrize(
    ("by", "held", "says"),
    [
        ("well", [item("q", "p/B1")], "leaks: the well p/B1 is on both sides"),
        ("field", [item("p/A1/1", "p/A1")], "leaks: the field p/A1/1 is on both sides"),
        ("field", [item("p/A1/9", "p/A1")], None),
        ("well", [item("p/C1/1", "p/C1")], None),
    ],
)
def test_a_leak_between_sources_is_refused(by, held, says):
    if says is None:
        assert divide(PLATE, held, split(by=by)).held_out == tuple(held)
        return
    with pytest.raises(PairRefused, match=says):
        divide(PLATE, held, split(by=by))


def test_the_same_pixels_under_another_name_are_a_leak():
    found = divide(PLATE, [], split(by="well", held_out=["B1"]))
    digests = {one.name: one.name for one in PLATE}
    found.check_contents(digests)
    with pytest.raises(PairRefused, match=r"leaks: p/B1/2 has the same pixels as p/A1/1"):
        found.check_contents(digests | {"p/B1/2": "p/A1/1"})


def test_the_digest_is_of_pixels():
    first = Recording(STACK, {}, 0.3, Z_UM)
    assert first.digest == Recording(STACK.copy(), {}, 0.5, (0.0,)).digest
    assert first.digest != Recording(STACK[:, :, ::-1], {}, 0.3, Z_UM).digest


@pytest.mark.parametrize(
    ("items", "how", "says"),
    [
        (PLATE, None, "nobody said which fields are held out"),
        (PLATE, {"by": "well", "held_out": ["C9"]}, r"no well C9.*p/A1 or p/A2 or p/B1"),
        (PLATE, {"by": "well", "held_out": ["A1", "A2", "B1"]}, "no field is trained on"),
        (PLATE, {"by": "well"}, "no field is held out"),
        ([item("a")], {"by": "well", "share": 0.5}, "the well of a is not known"),
        (PLATE[:1], {"by": "field", "share": 0.5}, "one field cannot be split"),
        ([*PLATE, item("p/A1/1", "p/A1")], {"by": "well", "share": 0.5}, "two fields are called p/A1/1"),
    ],
)
def test_what_cannot_be_split_is_explained(items, how, says):
    with pytest.raises(PairRefused, match=says):
        divide(items, [], None if how is None else split(**how))


def test_columns_leave_a_gap():
    how = split(by="columns", cuts_px=[50], held_out=[1], gap_px=33)
    found = divide([item("a", "A1")], [], how)
    (train,), (held,) = found.train, found.held_out
    np.testing.assert_array_equal(train.load().stack, STACK[:, :, :33])
    np.testing.assert_array_equal(held.load().stack, STACK[:, :, 66:])
    np.testing.assert_array_equal(held.load().labels["nuclei"], STACK[0][:, 66:])
    assert (found.unit, found.title) == ("block of a field", "one field, columns")


@given(st.integers(33, 60), st.integers(200, 900), st.integers(0, 2))
def test_no_column_is_used_twice(gap, width, held):
    stack = np.broadcast_to(np.arange(width, dtype=np.uint16), (1, 2, width))
    wide = Item("a", None, "a", lambda: Recording(stack, {}, 0.3, (0.0,)))
    cuts = [width // 3, 2 * width // 3]
    found = divide([wide], [], split(by="columns", cuts_px=cuts, held_out=[held], gap_px=gap))
    train = {int(c) for one in found.train for c in one.load().stack[0, 0]}
    test = {int(c) for one in found.held_out for c in one.load().stack[0, 0]}
    assert min(abs(a - b) for a in train for b in (min(test), max(test))) > gap


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"gap_px": 20}, "this split leaks: the gap of 20 px is less than the 32 px"),
        ({"gap_px": 40, "margin_px": 48}, "less than the 48 px"),
        ({"held_out": [2]}, "blocks 0 to 1"),
        ({"held_out": [0, 1]}, "some, not all"),
        ({"cuts_px": [10]}, "must rise by more than gap_px"),
        ({"cuts_px": []}, "at least 1"),
    ],
)
def test_columns_that_leak_are_refused(more, says):
    values = {"by": "columns", "cuts_px": [50], "held_out": [1], "gap_px": 32} | more
    with pytest.raises(ValidationError, match=says):
        split(**values)


def test_a_cut_outside_of_the_field_is_explained():
    found = divide([item("a")], [], split(by="columns", cuts_px=[500], held_out=[1], gap_px=32))
    with pytest.raises(PairRefused, match="outside of the field"):
        found.held_out[0].load()


def test_simulated_fields_are_all_trained_on_beside_recorded_ones():
    fakes = [item(f"s{n}", f"s{n}", simulated=True) for n in range(3)]
    found = divide([*fakes, *PLATE], [], split(by="well", held_out=["A1"]))
    assert [one.simulated for one in found.train].count(True) == 3
    assert not any(one.simulated for one in found.held_out)
    assert simulated_only(fakes[:2], fakes[2:]).title == "simulated"


def test_held_out_and_share_exclude_each_other():
    with pytest.raises(ValidationError, match="not both"):
        split(by="well", held_out=["A1"], share=0.5)
