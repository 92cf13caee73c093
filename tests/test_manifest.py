"""Which stacks a model may be used on: the tolerances as a table, and manifests that make no sense."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acq_isl.compatibility import Refuse, Resample, Sort, Use, check, check_heights
from acq_isl.errors import ModelError
from acq_isl.manifest import FORMAT, MANIFEST_KEY, AnyPlanes, Label, Manifest
from acq_isl.stack import StackInfo, StackKey

OFFSETS = tuple(1.5 * (i - 6) for i in range(13))
MANIFEST = Manifest(
    name="test",
    version="1",
    licence="BSD-3-Clause",
    description="For tests.",
    modality="phase contrast",
    polarity="dark",
    pixel_size_um=0.3,
    z_offsets_um=OFFSETS,
    high_pass_um=6.0,
    labels=(Label(name="nuclei", marker="DAPI"), Label(name="axons", marker="NFH")),
    min_tile_px=128,
    halo_px=96,
    size_step_px=16,
    spread_scale=(1.1, 0.9),
    trained_on="nothing",
)
FITTING = StackInfo(
    StackKey(0, "A1", "Phase"),
    tuple(50 + z for z in OFFSETS),
    (256, 256),
    0.3,
    modality="phase contrast",
    polarity="dark",
)


def planes(count, step_um, first_um=50.0):
    return tuple(first_um + step_um * i for i in range(count))


# What the stack says of itself, the verdict, and words its reason, warning or fix must have. The first
# block is the table of ml_facts.md, "When the input does not fit the model".
CASES = [
    ("as trained", {}, Use, ""),
    ("z reversed", {"z_um": planes(13, -1.5)}, Sort, "sorted by z"),
    (
        "one plane repeated",
        {"z_um": (50.0,) * 13},
        Refuse,
        "all .* planes have the same z.*each plane once",
    ),
    ("z step x2", {"z_um": planes(13, 3.0)}, Resample, "13 planes 3 um apart.*13 planes 1.5 um apart"),
    ("z step x2.5", {"z_um": planes(13, 3.75)}, Refuse, "z step is 3.8 um.*acquire 13 .* 1.5 um apart"),
    ("magnification x.5", {"pixel_size_um": 0.6}, Refuse, "0.6 um.*0.18 to 0.48 um, best 0.3 um"),
    ("magnification x2", {"pixel_size_um": 0.15}, Refuse, "0.15 um.*objective or binning"),
    ("contrast inverted", {"polarity": "bright"}, Refuse, "inverted.*use optics with dark contrast"),
    # No metadata tells this: stage z has no focus in it. It is left to the focus profile.
    ("z shifted 6 planes", {"z_um": planes(13, 1.5, 59.0)}, Use, ""),
    # pixel size
    ("pixels x.9", {"pixel_size_um": 0.27}, Use, ""),
    ("pixels x1.1", {"pixel_size_um": 0.33}, Use, ""),
    ("pixels x1.12", {"pixel_size_um": 0.336}, Resample, "0.336 um were resampled to the model's 0.3 um"),
    ("pixels x.88", {"pixel_size_um": 0.264}, Resample, "0.264 um"),
    ("pixels x.6", {"pixel_size_um": 0.18}, Resample, "0.18 um"),
    ("pixels x1.6", {"pixel_size_um": 0.48}, Resample, "0.48 um"),
    ("pixels x1.65", {"pixel_size_um": 0.495}, Refuse, "binning"),
    ("pixels x.58", {"pixel_size_um": 0.174}, Refuse, "calibration"),
    ("no pixel size", {"pixel_size_um": 0.0}, Refuse, "not known.*set the pixel size calibration"),
    ("pixel size NaN", {"pixel_size_um": math.nan}, Refuse, "not known.*set the pixel size calibration"),
    ("pixel size infinite", {"pixel_size_um": math.inf}, Refuse, "not known.*calibration"),
    # planes
    ("z step x1.2", {"z_um": planes(13, 1.8)}, Use, ""),
    ("z step x.85", {"z_um": planes(13, 1.275)}, Use, ""),
    ("z step x.7", {"z_um": planes(13, 1.05)}, Refuse, "13 planes over 12.6 um.*acquire 13 equidistant"),
    ("25 planes of half the step", {"z_um": planes(25, 0.75)}, Resample, "25 planes 0.75 um apart"),
    ("49 planes of a quarter", {"z_um": planes(49, 0.375)}, Refuse, "z step is 0.38 um.*acquire 13"),
    ("7 planes of twice the step", {"z_um": planes(7, 3.0)}, Resample, "7 planes 3 um apart"),
    ("15 planes", {"z_um": planes(15, 1.5)}, Resample, "15 planes"),
    ("12 planes, half a step short", {"z_um": planes(12, 1.5)}, Resample, "12 planes"),
    ("11 planes", {"z_um": planes(11, 1.5)}, Refuse, "11 planes over 15 um.*13 over 18.*acquire 13"),
    ("one plane", {"z_um": (50.0,)}, Refuse, "1 plane over 0 um.*acquire 13 equidistant planes 1.5 um"),
    ("the sixth is missing", {"z_um": planes(5, 1.5) + planes(7, 1.5, 59.0)}, Refuse, "missing.*equidistant"),
    (
        "jitter of the stage",
        {"z_um": tuple(z + 0.1 * (-1) ** round(z) for z in planes(13, 1.5))},
        Use,
        "",
    ),
    ("order mixed up", {"z_um": (50.0, 53.0, 51.5, *planes(10, 1.5, 54.5))}, Sort, "sorted by z"),
    (
        "middle out, twice the step",
        {"z_um": (50.0, 53.0, 47.0, 56.0, 44.0, 59.0, 41.0)},
        Resample,
        "sorted by z",
    ),
    (
        "reversed, the sixth is missing",
        {"z_um": planes(7, -1.5, 59.0) + planes(5, -1.5, 47.0)},
        Refuse,
        "missing",
    ),
    ("a plane twice", {"z_um": (50.0, *planes(12, 1.5))}, Refuse, "some of the 13 planes have the same z"),
    ("heights without end", {"z_um": (-1e308, 1e308)}, Refuse, "z step is inf"),
    ("z not a number", {"z_um": (math.nan,) * 13}, Refuse, "z of the planes is not known.*stage z"),
    ("no planes", {"z_um": ()}, Refuse, "z of the planes is not known.*focus device"),
    # optics
    ("other light", {"modality": "DIC"}, Refuse, "is DIC.*acquire phase contrast, or choose a model for DIC"),
    ("light not stated", {"modality": "unknown"}, Use, "kind of transmitted light was not stated"),
    ("polarity not stated", {"polarity": "unknown"}, Use, "polarity was not stated"),
    (
        "wrong size, and unstated",
        {"pixel_size_um": 0.4, "polarity": "unknown"},
        Resample,
        "polarity was not",
    ),
]


def words(verdict):
    match verdict:
        case Use(notes) | Sort(_, notes):
            return "; ".join(notes)
        case Resample(_, _, warnings):
            return "; ".join(warnings)
        case Refuse(reason, fix):
            assert reason and fix
            return f"{reason}; {fix}"


@pytest.mark.parametrize(("changes", "kind", "said"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_tolerances(changes, kind, said):
    verdict = check(MANIFEST, dataclasses.replace(FITTING, **changes))
    assert type(verdict) is kind
    assert (words(verdict) == "") if not said else re.search(said, words(verdict))


@pytest.mark.parametrize("known", ["modality", "polarity"])
def test_a_model_that_does_not_state_its_optics_says_that_nobody_checked(known):
    vague = MANIFEST.model_copy(update={known: "unknown"})
    verdict = check(vague, FITTING)
    assert isinstance(verdict, Use) and len(verdict.notes) == 1 and "not checked" in verdict.notes[0]


def test_what_is_resampled_and_to_what():
    finer = check(MANIFEST, dataclasses.replace(FITTING, pixel_size_um=0.2))
    assert isinstance(finer, Resample)
    assert finer.xy_scale == pytest.approx(2 / 3)
    assert finer.z_um == FITTING.z_um
    deeper = check(MANIFEST, dataclasses.replace(FITTING, z_um=planes(25, 0.75, 41.0)))
    assert isinstance(deeper, Resample)
    assert deeper.xy_scale == 1.0
    assert deeper.z_um == pytest.approx([50 + z for z in OFFSETS])


def test_a_model_of_one_plane_takes_the_middle_of_a_stack():
    single = MANIFEST.model_copy(update={"z_offsets_um": (0.0,)})
    assert isinstance(check(single, dataclasses.replace(FITTING, z_um=(3.0,))), Use)
    verdict = check(single, FITTING)
    assert isinstance(verdict, Resample) and verdict.z_um == pytest.approx((50.0,))
    assert "only the middle of 13 planes is used" in verdict.warnings[0]


ANY = MANIFEST.model_copy(update={"any_planes": AnyPlanes(most_step_um=5.0)})


@pytest.mark.parametrize(
    ("z_um", "kind", "said"),
    [
        ((50.0,), Resample, "single plane"),
        ((50.0, 55.0), Resample, "2 planes over 5 um were spread over the model's 13"),
        ((50.0, 51.0, 51.5, 56.0, 60.0, 61.0), Resample, "6 planes over 11 um"),
        ((61.0, 51.0, 50.0, 51.5, 60.0, 56.0), Resample, "6 planes over 11 um.*sorted by z"),
        (planes(13, 0.3), Use, ""),
        (planes(13, 4.9), Use, ""),
        (planes(13, -1.0), Sort, "sorted"),
        (planes(40, 0.5), Resample, "40 planes"),
        ((50.0, 55.2), Refuse, "up to 5.2 um apart, the model was trained for 5 um.*or only one"),
        (planes(30, 4.0), Refuse, "up to 9.67 um apart"),
        ((50.0, 50.0), Refuse, "same z"),
        ((math.nan,), Refuse, "z of the planes is not known"),
        ((), Refuse, "z of the planes is not known"),
        ((-1e308, 1e308), Refuse, "um apart"),
    ],
)
def test_a_model_for_any_planes_takes_one_or_more_evenly_spaced_or_not(z_um, kind, said):
    verdict = check(ANY, dataclasses.replace(FITTING, z_um=z_um))
    assert type(verdict) is kind and re.search(said, words(verdict))
    if isinstance(verdict, Resample):
        steps = np.diff(verdict.z_um)
        assert len(verdict.z_um) == ANY.planes and steps == pytest.approx(steps[0])
        assert (verdict.z_um[0], verdict.z_um[-1]) == (min(z_um), max(z_um))


def test_other_light_or_pixels_are_refused_whatever_planes_a_model_takes():
    for changes in ({"modality": "DIC"}, {"pixel_size_um": 4.3}):
        assert isinstance(check(ANY, dataclasses.replace(FITTING, z_um=(50.0,), **changes)), Refuse)


@given(
    count=st.integers(1, 60),
    step_um=st.floats(-10, 10),
    pixel_size_um=st.floats(allow_nan=True, allow_infinity=True),
)
def test_every_stack_gets_a_verdict_and_resampled_planes_lie_inside_of_it(count, step_um, pixel_size_um):
    info = dataclasses.replace(FITTING, z_um=planes(count, step_um), pixel_size_um=pixel_size_um)
    match check(MANIFEST, info):
        case Resample(scale, z_um, warnings):
            assert 0.59 < scale < 1.61 and warnings
            assert len(z_um) == MANIFEST.planes
            assert min(info.z_um) <= min(z_um) and max(z_um) <= max(info.z_um)
        case Refuse(reason, fix):
            assert reason and fix
        case Sort(order):
            assert count == MANIFEST.planes and order == tuple(reversed(range(count)))
        case Use():
            assert count == MANIFEST.planes


@given(st.permutations(range(13)), st.sampled_from([0.5, 0.75, 1.0, 1.9, 2.5]), st.booleans())
def test_the_order_in_which_planes_come_changes_nothing_but_that_they_are_sorted(order, stretch, gap):
    rising = [50 + stretch * 1.5 * i + (9.0 if gap and i > 6 else 0.0) for i in range(13)]
    sorted_, mixed = (check(MANIFEST, dataclasses.replace(FITTING, z_um=z))
                      for z in (tuple(rising), tuple(rising[i] for i in order)))  # fmt: skip
    match mixed:
        case Sort(numbers):
            assert isinstance(sorted_, Use)
            assert [order[i] for i in numbers] == list(range(13)) != order
        case Resample(_, z_um):
            assert isinstance(sorted_, Resample) and sorted_.z_um == z_um
        case Use() | Refuse():
            assert mixed == sorted_


@pytest.mark.parametrize("z_um", [(), (math.nan,), (1.0, 1.0), (0.0, 1.0, 5.0)])
def test_what_is_wrong_with_heights_for_one_model_is_wrong_for_all(z_um):
    unfit = check_heights(z_um)
    assert unfit is not None and unfit == check(MANIFEST, dataclasses.replace(FITTING, z_um=z_um))
    assert check_heights((3.0, 1.0, 2.0)) is None and check_heights((3.0,)) is None


def test_a_manifest_from_before_slopes_has_none():
    text = MANIFEST.model_dump_json(exclude={"spread_slope"})
    assert "spread_slope" not in text
    assert Manifest.from_json(text) == MANIFEST
    assert Manifest.from_json(text).spread_slope == ()


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_text_of_a_manifest_is_the_same_in_every_process(hash_seed):
    """Text is hashed, to know again what was learned from which model; sets have no order of their own."""
    code = """if True:
        from acq_isl.engines.model_file import read_model
        manifest = read_model("demo").info.manifest
        every = frozenset(["polarity", "half the z range"])
        print(manifest.model_copy(update={"tolerates": every}).model_dump_json())
    """
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert '"tolerates":["half the z range","polarity"]' in run.stdout


def test_a_manifest_survives_its_json():
    assert Manifest.from_json(MANIFEST.model_dump_json()) == MANIFEST
    assert MANIFEST.planes == 13 and MANIFEST.z_step_um == 1.5
    assert MANIFEST.label_names == ("nuclei", "axons")
    assert MANIFEST_KEY == "acq_isl_manifest" and MANIFEST.format == FORMAT


SENSELESS = [
    ("unknown key", {"colour": "red"}, "colour"),
    ("other format", {"format": "acq-isl-model/2"}, "format"),
    ("no labels", {"labels": []}, "labels"),
    ("nameless label", {"labels": [{"name": " ", "marker": "DAPI"}]}, "labels.0.name"),
    ("labels of one name", {"labels": [{"name": "a", "marker": "x"}] * 2}, "must differ"),
    ("colour not #rrggbb", {"labels": [{"name": "a", "marker": "x", "color": "red"}]}, "labels.0.color"),
    ("no planes", {"z_offsets_um": []}, "z_offsets_um"),
    ("planes falling", {"z_offsets_um": [1.0, 0.0, -1.0]}, "rise"),
    ("planes off the middle", {"z_offsets_um": [0.0, 1.0, 2.0]}, "symmetric"),
    ("pixel size 0", {"pixel_size_um": 0}, "pixel_size_um"),
    ("step 0", {"size_step_px": 0}, "size_step_px"),
    ("spread of another count", {"spread_scale": [1.0]}, "spread_scale has 1 values for 2 labels"),
    ("slope of another count", {"spread_slope": [1.0]}, "spread_slope has 1 values for 2 labels"),
    ("unknown light", {"modality": "candle"}, "modality"),
    ("a word for a number", {"halo_px": "wide"}, "halo_px"),
    (
        "a gate with too few limits",
        {"gate": {"names": ["features", "focus"], "limits": [3.0], "false_alarms": 0.05}},
        "1 limits for 2 distances",
    ),
]


@pytest.mark.parametrize(("changes", "said"), [case[1:] for case in SENSELESS], ids=[c[0] for c in SENSELESS])
def test_a_manifest_that_makes_no_sense_is_refused_by_name(changes, said):
    text = json.dumps(json.loads(MANIFEST.model_dump_json()) | changes)
    with pytest.raises(ModelError, match=said) as caught:
        Manifest.from_json(text)
    assert caught.value.fix and FORMAT in (caught.value.wanted or "")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"name": "x"}', '{"pixel_size_um": Infinity}'])
def test_what_is_no_manifest_at_all_is_refused(text):
    with pytest.raises(ModelError, match="to fix: export the model again"):
        Manifest.from_json(text)
