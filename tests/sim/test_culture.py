"""The living culture: pure in time and history, gradual, true to its cells, and still unless asked."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acq_isl.experiment.simulated import Life
from acq_isl.sim.specimen.aging import age_region
from acq_isl.sim.specimen.cells import REACH_UM, REGION_UM, Culture
from acq_isl.sim.specimen.culture import compute_duration_s, compute_onset_s, draw_fates, find_moment
from acq_isl.sim.specimen.neurons import grow_region
from acq_isl.sim.specimen.synthetic import SyntheticSpecimen
from acq_isl.sim.specimen.truth import Rectangle
from acq_isl.sim.view import UNTOUCHED, Drug, History, Light, View
from acq_isl.training.data.source_simulated import SimulationConfig, simulate

HOUR = 3600.0
LIVELY = Life(prevalence=0.1, death_rate_per_h=0.1, drift_um_h=5.0, growth_um_h=20.0, phototoxicity_per_h=0.5)
VIEW = View(150.0, 150.0, 0.0, "Phase", 0.3, (160, 160))
AREA = Rectangle.around(150.0, 150.0, (400.0, 400.0))
REGION = grow_region(4, 0, 0, Culture())
TRAINED_LABELS = [379971, 1035152, 530926, 19432]
FATES = draw_fates(4, REGION)


def light(time_s, *, x_um=150.0, channel="MAP2", dose_ms=1000.0, width_um=100.0):
    return Light(time_s, x_um, 150.0, 0.0, 100.0, width_um, channel, dose_ms)


def states(specimen, time_s, history=UNTOUCHED):
    return {cell.id: cell.state for cell in specimen.cells(AREA, time_s, history)}


def share(life, hours, history=UNTOUCHED):
    """Share of neurons that began to die, over a few regions."""
    begun, neurons = 0, 0
    for column in range(4):
        region = grow_region(4, column, 0, Culture())
        now = find_moment(life, hours * HOUR, history)
        mortal = np.array([cell.is_neuron for cell in region.cells])
        begun += np.isfinite(compute_onset_s(draw_fates(4, region), region, life, now))[mortal].sum()
        neurons += mortal.sum()
    return begun / neurons


# time 0, as models are being trained on it


def test_training_pictures_stay_what_they_are():
    """Numbers of before cultures could live. Where they change, models must be trained anew."""
    pair = simulate(SimulationConfig(side_px=128, planes=3), 5)
    wanted = [36172, 28370, 37104, 37960, 17769, 30558, 29629, 26796]
    # One count either way: libraries of linear algebra round differently.
    np.testing.assert_allclose(pair.stack[1, ::40, ::40].ravel()[:8], wanted, atol=1)
    assert pair.stack.mean() == pytest.approx(32753.224, abs=0.01)
    assert [int(image.sum()) for image in pair.labels] == pytest.approx(TRAINED_LABELS, abs=10)


def test_training_pictures_show_dying_cells_only_where_wanted():
    """More of the stain for dead cells, on the same cells: asking for it changes no other draw."""
    config = SimulationConfig(side_px=192, planes=3, debris=(0.0, 0.0), density=(1.8, 1.8))
    alive, dying = (simulate(replace(config, dying=share), 1).labels for share in ((0.0, 0.0), (0.6, 0.6)))
    assert alive[3].max() == 0
    assert dying[3].sum() > 20 * 255
    assert np.corrcoef(alive[1].ravel(), dying[1].ravel())[0, 1] > 0.4  # dendrites of the same culture


def test_live_training_pictures_keep_the_light_uneven():
    """As the simulated microscope records: nothing is flattened, the background is half of the range."""
    config = SimulationConfig(side_px=128, planes=3, live=1.0, uneven=(1.0, 1.0))
    uneven, even = (simulate(some, 2).stack for some in (config, replace(config, uneven=(0.0, 0.0))))
    assert even.mean() == pytest.approx(32900, rel=0.02)
    ratio = uneven.mean(0) / even.mean(0)
    assert ratio.max() / ratio.min() == pytest.approx(np.e, rel=0.1)
    assert simulate(config, 2).stack.tobytes() == uneven.tobytes()


def test_the_default_culture_stands_still():
    specimen = SyntheticSpecimen(2)
    later = replace(VIEW, time_s=1e6, history=History((light(3.0),)))
    np.testing.assert_array_equal(specimen.render(VIEW), specimen.render(later))
    assert states(specimen, 0.0) == states(specimen, 1e6)


def test_a_lively_culture_without_dying_cells_begins_as_a_still_one():
    lively = SyntheticSpecimen(2, life=LIVELY.model_copy(update={"prevalence": 0.0}))
    np.testing.assert_array_equal(lively.render(VIEW), SyntheticSpecimen(2).render(VIEW))


# pure in time and history


def test_the_order_of_times_and_places_does_not_matter():
    views = [
        replace(VIEW, x_um=x, time_s=t, history=History((light(0.0),), (Drug(HOUR, 1.0),)))
        for x, t in ((150.0, 0.0), (-400.0, 2 * HOUR), (150.0, 7 * HOUR))
    ]
    first, second = SyntheticSpecimen(5, life=LIVELY), SyntheticSpecimen(5, life=LIVELY)
    there = [(first.render(view), first.truth(view)) for view in views]
    back = [(second.render(view), second.truth(view)) for view in reversed(views)][::-1]
    for (image, labels), (same_image, same_labels) in zip(there, back, strict=True):
        np.testing.assert_array_equal(image, same_image)
        for name, label in labels.items():
            np.testing.assert_array_equal(label, same_labels[name])


@settings(max_examples=40, deadline=None)
@given(
    when=st.floats(0, 20),
    later=st.lists(st.floats(0, 20), max_size=4),
    doses=st.lists(st.floats(0, 5), min_size=4, max_size=4),
)
def test_what_is_done_later_changes_nothing_before(when, later, doses):
    done = [
        Drug((when + more) * HOUR + LIVELY.tick_s, dose)
        for more, dose in zip(sorted(later), doses, strict=False)
    ]
    lit = tuple(light((when + more) * HOUR + LIVELY.tick_s) for more in sorted(later))
    early = find_moment(LIVELY, when * HOUR, History())
    assert find_moment(LIVELY, when * HOUR, History(lit, tuple(done))) == early


@settings(max_examples=40, deadline=None)
@given(
    hours=st.lists(st.floats(0, 30), min_size=2, max_size=2),
    events=st.lists(st.tuples(st.floats(0, 30), st.floats(0, 4)), max_size=5),
)
def test_nobody_comes_back_to_life_and_onsets_stay(hours, events):
    drugs = tuple(Drug(hour * HOUR, dose) for hour, dose in sorted(events))
    lit = tuple(light(hour * HOUR) for hour, _ in sorted(events))
    history = History(lit, drugs)
    early, late = (find_moment(LIVELY, hour * HOUR, history) for hour in sorted(hours))
    before, after = (compute_onset_s(FATES, REGION, LIVELY, now) for now in (early, late))
    begun = np.isfinite(before)
    np.testing.assert_allclose(before[begun], after[begun], rtol=1e-9, atol=1e-3)
    assert (after[~begun] >= early.time_s - 1e-3).all()


def test_states_follow_each_other():
    specimen, order = SyntheticSpecimen(3, life=LIVELY), ("alive", "dying", "dead")
    places = [states(specimen, hour * HOUR) for hour in range(0, 30, 3)]
    seen = set()
    for first, second in itertools.pairwise(places):
        for name in first.keys() & second.keys():
            assert order.index(first[name]) <= order.index(second[name]), name
            seen.add((first[name], second[name]))
    assert seen >= {("alive", "alive"), ("dying", "dead")}


# rates


@pytest.mark.parametrize("rate", [0.02, 0.2])
def test_the_death_rate_is_what_it_says(rate):
    life = Life(death_rate_per_h=rate)
    for hours in (2.0, 8.0):
        assert share(life, hours) == pytest.approx(1 - np.exp(-rate * hours), abs=0.06)


def test_prevalence_is_a_share_of_neurons_and_the_rest_stays():
    for wanted in (0.05, 0.3):
        assert share(Life(prevalence=wanted), 0.0) == pytest.approx(wanted, abs=0.04)
    few, many = (states(SyntheticSpecimen(9, life=Life(prevalence=p)), 0.0) for p in (0.05, 0.3))
    dying = [{name for name, state in some.items() if state == "dying"} for some in (few, many)]
    assert dying[0] < dying[1]


def test_the_drug_kills_from_its_time_on_and_can_be_washed_out():
    life = Life(death_rate_per_h=0.0, drug_per_h=0.5)
    given_at_5 = History(drugs=(Drug(5 * HOUR, 1.0),))
    assert find_moment(life, 5 * HOUR - 1, given_at_5) is None
    assert share(life, 7.0, given_at_5) == pytest.approx(1 - np.exp(-0.5 * 2), abs=0.06)
    washed = History(drugs=(Drug(5 * HOUR, 1.0), Drug(6 * HOUR, 0.0)))
    assert share(life, 30.0, washed) == pytest.approx(1 - np.exp(-0.5), abs=0.06)
    protects = Life(death_rate_per_h=0.1, drug_per_h=-1.0)
    assert share(protects, 9.0, given_at_5) == share(protects, 5.0, given_at_5)


def test_light_kills_where_it_fell():
    life = Life(phototoxicity_per_h=0.3)
    now = find_moment(life, 4 * HOUR, History((light(0.0), light(HOUR, channel="Phase"))))
    begun = np.isfinite(compute_onset_s(FATES, REGION, life, now))
    lit = np.array([abs(cell.x - 150) < 50 and abs(cell.y - 150) < 50 for cell in REGION.cells])
    assert begun[lit].any() and not begun[~lit].any()
    ultraviolet = find_moment(life, 4 * HOUR, History((light(0.0, channel="DAPI"),)))
    assert np.isfinite(compute_onset_s(FATES, REGION, life, ultraviolet)).sum() > begun.sum()
    assert find_moment(Life(), 4 * HOUR, History((light(0.0),))) is None


def test_dying_takes_its_time():
    assert np.median(compute_duration_s(FATES, Life(dying_h=2.0))) == pytest.approx(2 * HOUR, rel=0.15)


# how it looks


def test_a_dying_cell_shrinks_and_its_nucleus_shines():
    healthy, ill = SyntheticSpecimen(3), SyntheticSpecimen(3, life=Life(prevalence=0.4))
    before = {cell.id: cell for cell in healthy.cells(AREA)}
    late = [cell for cell in ill.cells(AREA, 4 * HOUR) if cell.kind == "neuron" and cell.state == "dead"]
    assert len(late) >= 10
    for cell in late:
        was = before[cell.id]
        assert cell.radius_um < 0.7 * was.radius_um
        assert cell.nucleus_radius_um < was.nucleus_radius_um
        assert cell.markers["nuclei"] == 1.0 and cell.markers["dead"] == 1.0
        assert was.markers["dead"] == 0.0 and was.state == "alive"


def test_the_stain_for_dead_cells_shows_them_and_nobody_else():
    specimen = SyntheticSpecimen(3, life=Life(prevalence=0.3))
    view = replace(VIEW, shape=(400, 400), time_s=3 * HOUR)
    dead = specimen.truth(view)["dead"]
    inner = Rectangle.around(view.x_um, view.y_um, (110.0, 110.0))
    for cell in specimen.cells(inner, view.time_s):
        row, column = (
            int((at - middle) / 0.3 + 200) for at, middle in ((cell.y_um, view.y_um), (cell.x_um, view.x_um))
        )
        around = dead[row - 6 : row + 7, column - 6 : column + 7]
        if cell.markers["dead"] > 0.5:
            assert around.max() > 0.4, cell
    alive = SyntheticSpecimen(3, culture=Culture(debris=0.0))
    assert not alive.truth(VIEW)["dead"].any()


def test_neurites_of_the_dead_fall_apart():
    life = Life(prevalence=1.0)
    later = [
        age_region(REGION, 4, life, find_moment(life, hour * HOUR, History())) for hour in (0.0, 4.0, 30.0)
    ]
    own = [int((one.region.strokes.cell >= 0).sum()) for one in later]
    assert REGION.strokes.x.size > own[0] > 3 * own[1] and own[2] == 0
    assert (later[2].progress[: len(FATES.progress)][FATES.resistance < np.inf] > 1).all()
    passing = [int((one.region.strokes.cell < 0).sum()) for one in later]
    assert passing[0] == passing[2] == int((REGION.strokes.cell < 0).sum())


def test_neurites_grow_on_from_where_they_were():
    life = Life(growth_um_h=10.0)
    early, late = (
        age_region(REGION, 4, life, find_moment(life, h * HOUR, History())).region.strokes for h in (1.0, 2.0)
    )
    was = REGION.strokes
    assert was.x.size < early.x.size < late.x.size
    np.testing.assert_array_equal(early.x[: was.x.size], was.x)
    added = {(float(x), float(y)) for x, y in zip(early.x[was.x.size :], early.y[was.x.size :], strict=True)}
    assert added <= {(float(x), float(y)) for x, y in zip(late.x, late.y, strict=True)}
    # 10 um an hour in steps of 0.3 um, or 2 um for a dendrite, where the path did not end at the border.
    steps = np.bincount(early.path[was.x.size :])
    assert set(np.unique(steps[steps > 0])) >= {6, 33} and steps.max() <= 66


def test_cells_drift_slowly_and_not_far():
    life = Life(drift_um_h=4.0)
    at = {
        hour: np.array(
            [
                (cell.x, cell.y)
                for cell in age_region(
                    REGION, 4, life, find_moment(life, hour * HOUR, History())
                ).region.cells
            ]
        )
        for hour in (0.0, 5.0, 5.25, 100.0)
    }
    speed = np.hypot(*(at[5.25] - at[5.0]).T) / 0.25
    assert np.sqrt(np.mean(speed**2)) == pytest.approx(4.0, rel=0.25)
    assert np.hypot(*(at[100.0] - at[0.0]).T).max() < REACH_UM / 2


def test_nothing_that_lives_reaches_further_than_promised():
    life = LIVELY.model_copy(update={"growth_um_h": 50.0, "prevalence": 0.3})
    for hours in (0.0, 3.0, 20.0):
        strokes = age_region(REGION, 4, life, find_moment(life, hours * HOUR, History())).region.strokes
        for along in (strokes.x, strokes.y):
            assert -REACH_UM <= along.min() <= along.max() <= REGION_UM + REACH_UM


# objects


def test_cells_are_found_whichever_area_asks():
    specimen = SyntheticSpecimen(3, life=LIVELY)
    whole = specimen.cells(Rectangle(0.0, 0.0, 400.0, 200.0), 5 * HOUR)
    halves = [*specimen.cells(Rectangle(0.0, 0.0, 170.0, 200.0), 5 * HOUR)]
    halves += specimen.cells(Rectangle(170.0, 0.0, 400.0, 200.0), 5 * HOUR)
    assert sorted(whole, key=lambda cell: cell.id) == sorted(halves, key=lambda cell: cell.id)
    assert len({cell.id for cell in whole}) == len(whole) > 30


def test_objects_lie_where_the_labels_are():
    specimen = SyntheticSpecimen(3)
    view = replace(VIEW, shape=(500, 500))
    nuclei = specimen.truth(view)["nuclei"]
    for cell in specimen.cells(Rectangle.around(view.x_um, view.y_um, (140.0, 140.0))):
        row, column = (
            int((at - middle) / 0.3 + 250) for at, middle in ((cell.y_um, view.y_um), (cell.x_um, view.x_um))
        )
        assert nuclei[row - 2 : row + 3, column - 2 : column + 3].max() > 0.5 * cell.markers["nuclei"], cell


def test_heights_are_positions_of_the_focus_drive():
    heights = {cell.z_um for cell in SyntheticSpecimen(3, culture=Culture(height=2.0)).cells(AREA)}
    assert sorted(heights) == pytest.approx([2 * 1.33 - 4, 4.0, 2 * 6.67 - 4])
