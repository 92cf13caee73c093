"""Simulated epithelial-like fields to train on: reproducible, of any planes, brought to the model's."""

from __future__ import annotations

import numpy as np
import pytest

from acq_isl.errors import PairRefused
from acq_isl.manifest import AnyPlanes
from acq_isl.training.config import TrainConfig
from acq_isl.training.data.augment import Augmentation, augment
from acq_isl.training.data.geometry import fit
from acq_isl.training.data.pairs import Nominal, Recording
from acq_isl.training.data.source_epithelium import LABELS, EpitheliumConfig, simulate_epithelium
from acq_isl.training.data.sources import EpithelialSource

SMALL = EpitheliumConfig(seed=1, fields=3, held_out=1, side_px=64, confluency=(1.0, 1.0))
ANY = Nominal(7, 0.45, 1.5, any_planes=AnyPlanes(most_step_um=9.0))


def test_fields_are_reproducible_and_differ_in_cells_light_and_planes():
    first, again, other = (simulate_epithelium(SMALL, index) for index in (0, 0, 1))
    np.testing.assert_array_equal(first.stack, again.stack)
    assert first.z_um == again.z_um != other.z_um
    for pair in (first, other):
        planes = len(pair.z_um)
        assert pair.stack.shape == (planes, 64, 64) and 1 <= planes <= 7
        assert (np.diff(pair.z_um) > 0).all() and pair.labels.shape == (len(LABELS), 64, 64)
        assert pair.labels[1].mean() > 60  # cells


def test_a_training_set_of_them_has_the_planes_of_the_model():
    items = list(EpithelialSource(kind="simulated_epithelium", simulation=SMALL).items(ANY))
    assert len(items) == 3 and len({item.stamp for item in items}) == 3
    recording = items[0].load()
    assert fit(recording, "field", ANY).stack.shape == (7, 64, 64)
    uneven = Recording(recording.stack[:1].repeat(3, 0), {}, 0.45, (0.0, 1.0, 5.0))
    with pytest.raises(PairRefused, match="missing"):
        fit(uneven, "field", Nominal(7, 0.45, 1.5))
    config = TrainConfig.model_validate(
        {
            "name": "n", "version": "1", "description": "d", "planes": 7, "pixel_size_um": 0.45,
            "any_planes": {"most_step_um": 9.0}, "labels": [{"name": n, "marker": ""} for n in LABELS],
            "data": [{"kind": "simulated_epithelium", "simulation": {"fields": 3, "held_out": 2}}],
        }
    )  # fmt: skip
    division = config.divide()
    assert (len(division.train), len(division.held_out)) == (3, 2)
    assert config.nominal.any_planes == AnyPlanes(most_step_um=9.0)


@pytest.mark.parametrize("seed", range(6))
def test_planes_that_were_not_taken_leave_contrast_and_truth_as_they_are(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(7, 32, 32)).astype(np.float32)
    x += np.linspace(-3, 3, 7, dtype=np.float32)[:, None, None]
    still = Augmentation(flips=False, gamma=(1, 1), gain=(1, 1), noise=(0, 0), blur=0, fewer_planes=1.0)
    changed, truth = augment(x, x[:1], 32, still, rng)
    assert changed.shape == x.shape and changed.std() == pytest.approx(x.std(), rel=1e-3)
    np.testing.assert_array_equal(truth, x[:1])
    assert np.abs(changed - x).max() > 0.1
    rising = changed.mean(axis=(1, 2))
    assert (np.diff(rising) >= -1e-3).all()  # their order is kept
