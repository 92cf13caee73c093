"""The engine's process of a run is started for its camera, and keeps the faults that were planted."""

from __future__ import annotations

import pytest

from acq_isl.cli.build import field_size
from acq_isl.errors import ExperimentError
from acq_isl.experiment.experiment import Experiment, SimulatedMicroscope
from acq_isl.experiment.faults import EngineSlow
from acq_isl.experiment.planning import Optics, Place, cycles
from acq_isl.session.engine import _serve_command, ask_server
from acq_isl.session.sense import Camera
from acq_isl.stream.model_registry import ServedModel
from acq_isl.stream.server import EngineServer
from doubles import serving, tiny_model


@pytest.mark.parametrize("faults", [(), (EngineSlow(200.0),)])
def test_the_engine_is_told_the_camera_and_its_faults(faults):
    experiment = Experiment.model_construct(microscope=SimulatedMicroscope.model_construct(faults=faults))
    words = _serve_command(experiment, (1024, 704))
    assert field_size(words[words.index("--field") + 1]) == (1024, 704)
    assert words.count("--fault") == len(faults)


REMOTE = """
name: remote
microscope: {kind: simulated}
overview:
  stage_positions: [{x: 0, y: 0, z: 0}]
  z_plan: {range: RANGE, step: 1.5}
  channels: [{config: Phase, exposure: 5}]
engine: {kind: remote, address: ADDRESS}
"""


def test_a_dry_run_asks_a_running_server_what_it_would_refuse() -> None:
    camera, place = Camera((64, 64), 0.3), Place(0.0, 0.0, 0.0, (20.0, 20.0))
    engine = serving.MeanEngine(manifest=tiny_model.MANIFEST)

    def ask(range_um: float) -> tuple[str, ...]:
        text = REMOTE.replace("RANGE", str(range_um)).replace("ADDRESS", server.endpoint)
        experiment = Experiment.from_text(text)
        return ask_server(experiment, cycles(experiment.overview, place, Optics()), camera)

    with EngineServer([ServedModel(engine)], serving.ANY_PORT) as server:
        assert any("was not stated" in doubt for doubt in ask(6.0))
        with pytest.raises(ExperimentError, match="would refuse p00 t0 Phase: the stack has 2 planes"):
            ask(1.5)
    assert any("no engine answered" in doubt for doubt in ask(6.0))
    local = Experiment.from_text(
        REMOTE.replace("RANGE", "6").replace("{kind: remote, address: ADDRESS}", "{kind: local}")
    )
    assert ask_server(local, (), camera) == (), "its models are read without a process"
