"""What `acq-isl info` says of a model's origin: all that the manifest knows, and nothing more."""

from __future__ import annotations

import pytest

from acq_isl.engines.model_file import ModelInfo, provenance
from acq_isl.manifest import Evaluation, Gate, Instrument, Label, Manifest, Training

PLAIN = Manifest(
    name="plain", version="1", licence="none", description="None.", modality="phase contrast",
    polarity="dark", pixel_size_um=0.3, z_offsets_um=(-1.0, 0.0, 1.0), high_pass_um=3.0,
    labels=(Label(name="nuclei", marker="DAPI"),), min_tile_px=32, halo_px=4, size_step_px=8,
    trained_on="nothing",
)  # fmt: skip
FULL = PLAIN.model_copy(
    update={
        "max_tile_px": 96,
        "statistic": "median",
        "instrument": Instrument(magnification=20, numerical_aperture=0.45, illumination="halogen",
                                 bit_depth=12, focus_reference="cell bodies", z_sign="into the specimen"),
        "training": Training(cell_type="motor neurons", plates=("P1",),
                             wells=tuple(f"A{n}" for n in range(1, 10)),
                             split_unit="well", data_licence="CC BY 4.0"),
        "gate": Gate(names=("features", "focus"), limits=(1.0276, 1.855), false_alarms=0.03),
        "evaluations": (Evaluation(label="nuclei", dataset="held-out wells", split_unit="well", n=4,
                                   metrics={"pearson": 0.912, "mae": 0.05}),),
    }
)  # fmt: skip


def rows(manifest):
    return dict(ModelInfo("x.onnx", "0" * 64, 1, manifest, 20, (), ()).lines())


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("instrument", "20x, NA 0.45, halogen, 12 bit, in focus in the middle: cell bodies, "
         "z rises into the specimen"),
        ("cells", "motor neurons"),
        ("plates seen", "P1"),
        ("wells seen", "A1, A2, A3, A4, A5, A6 and 3 more"),
        ("held out by", "well"),
        ("data licence", "CC BY 4.0"),
        ("gate", "refuses stacks that look unlike its training set, and says in what and what to do; of "
         "stacks like it, 3 % were refused, too"),
        ("gate's limits", "features 1.03, focus 1.85"),
        ("evaluated nuclei", "correlation r with the truth 0.912, mean error 0.05 of full scale "
         "(held-out wells; n = 4, split by well)"),
        ("tiles", "from 32 px to 96 px in steps of 8 px, 4 px around each"),
        ("shown", "the median of what each pixel's brightness may be; its SD is the doubt"),
    ],
)  # fmt: skip
def test_all_that_is_known_is_told(row, told):
    assert rows(FULL)[row] == told


def test_what_is_not_known_is_not_told():
    assert [name for name, _ in provenance(PLAIN)] == ["gate"]
    assert rows(PLAIN)["gate"].startswith("none:")
    assert rows(PLAIN)["tiles"] == "from 32 px in steps of 8 px, 4 px around each"


def test_an_instrument_of_which_nothing_is_known():
    assert rows(PLAIN.model_copy(update={"instrument": Instrument()}))["instrument"] == "not known"
    assert rows(PLAIN.model_copy(update={"training": Training()}))["held out by"] == "nothing was held out"


def test_several_data_sets_of_a_label_are_all_told():
    """Rows of one name are not lost, though a dictionary would lose them."""
    second = FULL.evaluations[0].model_copy(update={"dataset": "another", "n": 2})
    both = FULL.model_copy(update={"evaluations": (*FULL.evaluations, second)})
    assert sum(name == "evaluated nuclei" for name, _ in provenance(both)) == 2


def test_a_number_is_told_once():
    metrics = {"held out pearson nuclei": 0.912, "another": 0.3}
    told = rows(FULL.model_copy(update={"metrics": metrics}))
    assert [name for name in told if name.startswith("metric")] == ["metric another"]
