"""What a model file may say of its training: optional, strict, and kept through JSON."""

from __future__ import annotations

import json

import pytest

from acq_isl.errors import ModelError
from acq_isl.manifest import Evaluation, Instrument, Label, Manifest, Training

OLD = {
    "name": "old",
    "version": "1",
    "licence": "BSD-3-Clause",
    "description": "Written before these fields were there.",
    "modality": "phase contrast",
    "polarity": "dark",
    "pixel_size_um": 0.3,
    "z_offsets_um": [-1.0, 0.0, 1.0],
    "high_pass_um": 6.0,
    "labels": [{"name": "nuclei", "marker": "DAPI"}],
    "min_tile_px": 128,
    "halo_px": 96,
    "size_step_px": 16,
    "trained_on": "nothing",
}
RESULT = {"label": "nuclei", "dataset": "B", "split_unit": "well", "n": 4, "metrics": {"pearson": 0.9}}
FULL = {
    "statistic": "median",
    "labels": [
        {
            "name": "nuclei",
            "marker": "DAPI",
            "structure": "cell nuclei",
            "specimen": "fixed",
            "projection": "maximum of a confocal stack",
            "truth_range": [1200.0, 48000.0],
        }
    ],
    "instrument": {
        "magnification": 20,
        "numerical_aperture": 0.45,
        "illumination": "halogen, green filter",
        "bit_depth": 12,
        "focus_reference": "cell bodies",
        "z_sign": "into the specimen",
    },
    "training": {
        "cell_type": "human iPSC motor neurons",
        "plates": ["KEVAN_0_8"],
        "wells": ["A1", "A2"],
        "fields": [],
        "split_unit": "well",
        "data_licence": "CC BY 4.0",
    },
    "evaluations": [RESULT],
}


def test_a_model_without_them_is_read_as_before() -> None:
    manifest = Manifest.from_json(json.dumps(OLD))
    assert (manifest.instrument, manifest.training, manifest.evaluations) == (None, None, ())
    assert manifest.statistic == "mean"
    assert manifest.labels == (Label(name="nuclei", marker="DAPI"),)


def test_all_of_it_survives_the_file() -> None:
    manifest = Manifest.from_json(json.dumps(OLD | FULL))
    assert Manifest.from_json(manifest.model_dump_json()) == manifest
    assert manifest.instrument is not None and manifest.instrument.bit_depth == 12
    assert manifest.training is not None and manifest.training.wells == ("A1", "A2")
    assert manifest.labels[0].truth_range == (1200.0, 48000.0)
    assert manifest.evaluations[0].metrics == {"pearson": 0.9}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"instrument": {"numerical_aperture": 0}}, "numerical_aperture"),
        ({"instrument": {"bit_depth": 17}}, "bit_depth"),
        ({"instrument": {"z_sign": "up"}}, "z_sign"),
        ({"instrument": {"lens": "good"}}, "lens"),
        ({"training": {"split_unit": "patch"}}, "split_unit"),
        ({"statistic": "mode"}, "statistic"),
        ({"labels": [{"name": "nuclei", "marker": "DAPI", "truth_range": [5, 5]}]}, "must rise"),
        (
            {
                "evaluations": [
                    {"label": "actin", "dataset": "B", "split_unit": "well", "n": 1, "metrics": {}}
                ]
            },
            "has not: actin",
        ),
        (
            {
                "evaluations": [
                    {"label": "nuclei", "dataset": "B", "split_unit": "well", "n": 0, "metrics": {}}
                ]
            },
            "evaluations.0.n",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Manifest.from_json(json.dumps(OLD | change))


def test_they_are_frozen() -> None:
    for thing, name in (
        (Instrument(), "bit_depth"),
        (Training(), "wells"),
        (Evaluation(label="nuclei", dataset="B", split_unit="well", n=1, metrics={}), "n"),
    ):
        with pytest.raises(ValueError, match="frozen"):
            setattr(thing, name, 1)
