from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from scipy import ndimage

from acq_isl.errors import ExperimentError
from acq_isl.processing.segmentation import object_score, segment
from acq_isl.record import Measured
from acq_isl.rules.measurements import (
    AreaFraction,
    MeanIntensity,
    Measurement,
    NetworkLength,
    ObjectCount,
    measure,
    readable,
)
from acq_isl.rules.segmenters import Watershed
from acq_isl.stack import NetworkLabel, ObjectCounting, Prediction, StackInfo, StackKey

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "isl_condition_b"
PIXEL_UM = 0.5


def prediction(mean: Any, spread: Any = 0.1, *, border_px: int = 0) -> Prediction:
    """Nuclei as given, dendrites dark."""
    nuclei = np.asarray(mean, np.float32)
    planes = np.stack([nuclei, np.zeros_like(nuclei)])
    info = StackInfo(StackKey(0, "A1_000", "Phase"), (0.0, 1.0, 2.0), nuclei.shape, PIXEL_UM)
    doubt = np.full(planes.shape, spread, np.float32)
    return Prediction(info, ("nuclei", "dendrites"), planes, doubt, "ab" * 32, "m", "e", border_px=border_px)


def discs(places: list[tuple[int, int]], radius: int = 8, side: int = 128, level: float = 1.0) -> Any:
    y, x = np.mgrid[:side, :side]
    image = np.zeros((side, side), np.float32)
    for row, column in places:
        image[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = level
    return image


@pytest.mark.parametrize(
    "raw, wanted",
    [
        ({"kind": "area_fraction", "label": "nuclei"}, AreaFraction(label="nuclei", above=0.5)),
        ({"kind": "object_count", "label": "nuclei", "above": 0.2}, ObjectCount(label="nuclei", above=0.2)),
        ({"kind": "mean_intensity", "label": "axons"}, MeanIntensity(label="axons")),
    ],
)
def test_a_measurement_is_written_as_its_kind(raw: dict[str, Any], wanted: Measurement) -> None:
    assert TypeAdapter(Measurement).validate_python(raw) == wanted


@pytest.mark.parametrize(
    "raw",
    [
        {"kind": "perimeter", "label": "nuclei"},
        {"kind": "mean_intensity", "label": "nuclei", "above": 1},
        {"kind": "area_fraction"},
        {"kind": "object_count", "label": "nuclei", "min_area_um2": -1},
        {"kind": "area_fraction", "label": "nuclei", "above": float("nan")},
    ],
)
def test_a_measurement_that_makes_no_sense_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Measurement).validate_python(raw)


def test_area_fraction_is_the_share_of_bright_pixels() -> None:
    image = np.zeros((100, 100))
    image[:25] = 0.9
    measured = measure(prediction(image), AreaFraction(label="nuclei"))
    assert measured.value == 0.25
    assert measured.unit == "fraction"
    assert measured.name == "area of nuclei (predicted) above 0.5"


def test_mean_intensity_is_the_mean() -> None:
    assert measure(prediction(np.full((10, 10), 0.25)), MeanIntensity(label="nuclei")).value == 0.25


@pytest.mark.parametrize(
    "places, count",
    [
        ([], 0),
        ([(64, 64)], 1),
        ([(30, 30), (30, 90), (90, 60)], 3),
        ([(60, 50), (60, 64)], 2),  # touching: split at the waist
        ([(60, 50), (60, 64), (60, 78)], 3),
        ([(60, 62), (60, 64)], 1),  # nearly the same place: one
    ],
)
def test_objects_are_counted_and_touching_ones_split(places: list[tuple[int, int]], count: int) -> None:
    assert measure(prediction(discs(places)), ObjectCount(label="nuclei")).value == count


def test_debris_is_not_counted() -> None:
    image = discs([(30, 30)]) + discs([(90, 90)], radius=3)  # 7 um^2
    assert measure(prediction(image), ObjectCount(label="nuclei")).value == 1
    assert measure(prediction(image), ObjectCount(label="nuclei", min_area_um2=5)).value == 2


def test_the_uncertain_margin_is_left_out() -> None:
    image = np.zeros((100, 100))
    image[:20] = 1
    assert measure(prediction(image, border_px=20), AreaFraction(label="nuclei")).value == 0
    assert measure(prediction(image, border_px=20), MeanIntensity(label="nuclei")).value == 0


def test_an_object_counts_where_its_centroid_lies() -> None:
    """One in the middle, one across the margin's edge but centred inside, one centred in the margin."""
    image = discs([(64, 64), (26, 64), (100, 16)])
    assert measure(prediction(image, border_px=20), ObjectCount(label="nuclei")).value == 2


def test_a_field_that_is_all_margin_is_measured_in_its_middle() -> None:
    image = discs([(64, 64)])
    assert measure(prediction(image, border_px=500), ObjectCount(label="nuclei")).value == 1
    wanted = float((image[32:96, 32:96] > 0.5).mean())
    assert measure(prediction(image, border_px=500), AreaFraction(label="nuclei")).value == wanted


def test_an_unknown_label_names_those_there_are() -> None:
    with pytest.raises(ExperimentError, match="nuclei, dendrites"):
        measure(prediction(np.zeros((8, 8))), MeanIntensity(label="mitochondria"))


@pytest.mark.parametrize("measurement", [AreaFraction(label="nuclei"), MeanIntensity(label="nuclei")])
def test_doubt_grows_with_the_spread_and_vanishes_without(measurement: Measurement) -> None:
    image = discs([(30, 30), (90, 90)], level=0.7)
    doubts = [measure(prediction(image, spread), measurement).doubt for spread in (0.0, 0.05, 0.2)]
    assert doubts[0] == 0.0
    assert 0 < doubts[1] < doubts[2]


def test_doubt_of_the_mean_follows_its_formula() -> None:
    """128x128 pixels of .25 um^2 are 4096 um^2: 27.3 patches of 150 um^2 that err independently."""
    measured = measure(prediction(discs([]), 0.2), MeanIntensity(label="nuclei"))
    assert measured.doubt == pytest.approx(0.2 / np.sqrt(4096 / 150))


def test_doubt_of_a_count_is_unknown_without_a_calibration() -> None:
    measured = measure(prediction(discs([(30, 30), (90, 90)])), ObjectCount(label="nuclei"))
    assert measured.value == 2 and np.isnan(measured.doubt)
    assert measured.text == "2 objects, doubt unknown"


CALIBRATED = ObjectCounting(
    "nuclei", smooth_um=0.5, above=0.2, apart_um=2.0, per_mm2=100.0, per_maximum=0.5, per_intensity_um2=0.01,
    variance_per_object=0.25, variance_per_mm2=50.0, fields=20, bias=0.0, correlation=0.98, within_1_sd=0.68,
    within_2_sd=0.95, judged_on="drawings",
)  # fmt: skip


def test_a_calibrated_count_is_what_the_model_file_says_of_area_maxima_and_intensity() -> None:
    image = ndimage.gaussian_filter(discs([(30, 30), (90, 90)]), 4)  # domes: one maximum each
    calibrated = replace(prediction(image), counting=(CALIBRATED,))
    measured = measure(calibrated, ObjectCount(label="nuclei", above=0.9))
    wanted = 100 * (64e-3) ** 2 + 0.5 * 2 + 0.01 * image.sum() * PIXEL_UM**2
    assert measured.value == pytest.approx(wanted, rel=1e-5)
    assert measured.doubt == pytest.approx(np.sqrt(0.25 * wanted + 50 * (64e-3) ** 2), rel=1e-5)
    # A segmenter of one's own says what an object is; what the calibration found is not true of that.
    own = measure(calibrated, ObjectCount(label="nuclei", segmenter=Watershed()))
    assert own.value == 2 and np.isnan(own.doubt)


def test_objects_of_a_network_are_an_error_that_names_what_can_be_measured() -> None:
    network = replace(prediction(discs([(64, 64)])), counting=(NetworkLabel("nuclei"),))
    with pytest.raises(ExperimentError, match="length, area_fraction or mean_intensity"):
        measure(network, ObjectCount(label="nuclei"))


def test_length_is_that_of_the_middle_lines() -> None:
    image = np.zeros((128, 128))
    image[40:43, 10:110] = 0.8
    image[np.arange(60, 110), np.arange(60, 110)] = 0.8
    measured = measure(prediction(image), NetworkLength(label="nuclei"))
    assert measured.value == pytest.approx((100 + 50 * np.sqrt(2)) * PIXEL_UM, rel=0.05)
    assert measured.text.endswith("mm, doubt unknown")


@pytest.mark.parametrize(
    "measurement",
    [AreaFraction(label="nuclei"), ObjectCount(label="nuclei"), MeanIntensity(label="nuclei")],
)
def test_a_broken_prediction_gives_no_number(measurement: Measurement) -> None:
    image = discs([(64, 64)])
    image[5, 5] = np.nan
    assert np.isnan(measure(prediction(image), measurement).value)


@pytest.mark.parametrize(
    "measured, text",
    [
        (Measured("", 0.1234, "fraction", 0.004), "12.3 ± 0.4 % of the area"),
        (Measured("", 41.0, "objects", 2.96), "41 ± 3.0 objects"),
        (Measured("", 1.0, "objects", float("nan")), "1 object"),
        (Measured("", 0.25, "relative intensity", 0.01), "0.250 ± 0.010 relative intensity"),
        (Measured("", float("nan"), "objects", 0.0), "no number"),
    ],
)
def test_measurements_are_written_for_people(measured: Measured, text: str) -> None:
    assert readable(measured) == text


def test_every_title_says_predicted() -> None:
    for measurement in (AreaFraction(label="n"), ObjectCount(label="n"), MeanIntensity(label="n")):
        assert "n (predicted)" in measurement.title


def test_objects_are_numbered_without_gaps_also_when_they_fill_the_field() -> None:
    objects = segment(discs([(20, 20), (20, 100), (100, 60)]), 0.5, 20.0, PIXEL_UM)
    assert np.array_equal(np.unique(objects), [0, 1, 2, 3])
    assert segment(np.ones((16, 16), np.float32), 0.5, 1.0, PIXEL_UM).min() == 1


def test_what_a_ring_encloses_is_not_part_of_it() -> None:
    ring = discs([(64, 64)], radius=40) - discs([(64, 64)], radius=32)
    assert segment(ring, 0.5, 20.0, PIXEL_UM)[64, 64] == 0


def test_object_scores() -> None:
    true = segment(discs([(20, 20), (20, 100), (100, 60)]), 0.5, 20.0, PIXEL_UM)
    found = segment(discs([(20, 20), (22, 100), (60, 20), (60, 100)]), 0.5, 20.0, PIXEL_UM)
    score = object_score(found, true)
    assert (score.found, score.true, score.matched) == (4, 3, 2)
    assert score.f1 == pytest.approx(4 / 7)
    assert object_score(true, true).f1 == 1
    assert object_score(true, np.zeros_like(true)).f1 == 0
    assert np.isnan(object_score(np.zeros_like(true), np.zeros_like(true)).f1)


@pytest.mark.skipif(not DATA.is_dir(), reason="the recorded field is not there (shared/data)")
def test_nuclei_of_the_real_field() -> None:
    """The stain stands in for a perfect prediction; by eye the 1024x704 field has 50 to 60 nuclei."""
    import tifffile

    dapi = tifffile.imread(DATA / "dapi.ome.tif").astype(np.float32)
    low, high = np.percentile(dapi, (1, 99.8))
    measured = measure(prediction((dapi - low) / (high - low)), ObjectCount(label="nuclei", above=0.3))
    assert 40 <= measured.value <= 65
