"""The engine's process of a run is started for its camera, and keeps the faults that were planted."""

from __future__ import annotations

import pytest

from acq_isl.cli.build import field_size
from acq_isl.experiment.experiment import Experiment, SimulatedMicroscope
from acq_isl.experiment.faults import EngineSlow
from acq_isl.session.engine import _serve_command


@pytest.mark.parametrize("faults", [(), (EngineSlow(200.0),)])
def test_the_engine_is_told_the_camera_and_its_faults(faults):
    experiment = Experiment.model_construct(microscope=SimulatedMicroscope.model_construct(faults=faults))
    words = _serve_command(experiment, (1024, 704))
    assert field_size(words[words.index("--field") + 1]) == (1024, 704)
    assert words.count("--fault") == len(faults)
