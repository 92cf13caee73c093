"""Triggers are told apart by their names."""

from __future__ import annotations

import pytest

from acq_isl.errors import ExperimentError
from acq_isl.experiment.experiment import Experiment

TEXT = """
name: two
overview:
  z_plan: {range: 2, step: 1}
  channels: [{config: Phase, exposure: 10}]
triggers:
  - {name: bright, when: {measurement: {kind: mean_intensity, label: nuclei}, above: 0.5}, do: DO}
  - {name: OTHER, when: {measurement: {kind: mean_intensity, label: nuclei}, above: 0.7}, do: DO}
""".replace("DO", "{kind: set_preset, group: Lamp, preset: Dim}")


def test_two_triggers_of_one_name_are_refused_by_it() -> None:
    assert len(Experiment.from_text(TEXT.replace("OTHER", "brighter")).triggers) == 2
    with pytest.raises(ExperimentError, match="two triggers are called bright: give each a name"):
        Experiment.from_text(TEXT.replace("OTHER", "bright"))
