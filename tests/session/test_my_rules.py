"""The example of a measurement of one's own, as it is documented."""

from __future__ import annotations

from pathlib import Path

import pytest

import acq_isl
from acq_isl.experiment import Experiment

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "my_rules.yaml"


@pytest.mark.slow
def test_the_example_chooses_by_its_function(tmp_path: Path) -> None:
    experiment = Experiment.from_yaml(EXAMPLE).model_copy(update={"output": tmp_path})
    record = acq_isl.run(experiment, sim=True).record
    counts = {field.measured.value for field in record.fields if field.measured is not None}
    (best,) = (field for field in record.fields if field.chosen)
    assert best.measured is not None and best.measured.value == max(counts) > min(counts)
    assert best.reason.startswith("Chosen: my_rules:round_cells (predicted): ")
    assert not [warning for warning in record.warnings if "my_rules" in warning]
