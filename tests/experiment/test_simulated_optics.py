"""The light of a simulated specimen, as an experiment file asks for it."""

from __future__ import annotations

import numpy as np
import pytest

from acq_isl.errors import ExperimentError
from acq_isl.experiment.experiment import Experiment, SimulatedMicroscope
from acq_isl.experiment.simulated import SimulatedOptics
from acq_isl.hooks import open_microscope
from acq_isl.hooks.connect import transmitted_light
from acq_isl.sim.optics.illumination import DIC, LIVE_PHASE_CONTRAST, Brightfield, Oblique, Transmitted
from acq_isl.sim.optics.source import LIVE_GRID_UM_NA, Spectrum

LIVE_OBLIQUE = Oblique(coarse_points=60, grid_um_na=LIVE_GRID_UM_NA)
SEEN: dict[str, Transmitted] = {
    "{kind: phase_contrast}": LIVE_PHASE_CONTRAST,
    "{kind: oblique}": LIVE_OBLIQUE,
    "{kind: brightfield}": Brightfield(),
    "{kind: dic}": DIC(),
    "{kind: dic, shear_um: 0.2, bias_rad: 1.5}": DIC(shear_um=0.2, bias_rad=1.5),
    "{kind: brightfield, condenser_na: 0.1, lamp_width_um: 0.06}": Brightfield(
        condenser_na=0.1, lamp=Spectrum.band(0.55, 0.06)
    ),
}
REFUSED = {
    "{kind: phase}": "phase_contrast",
    "{shear_um: 0.2}": "kind",
    "{kind: dic, sheer_um: 0.2}": "did you mean 'shear_um'",
    "{kind: oblique, annulus_na: [0.1, 0.2]}": "unknown key 'annulus_na'",
    "{kind: dic, bias_rad: 0}": "greater than or equal to 0.1",
    "{kind: phase_contrast, annulus_na: [0.3, 0.2]}": "annulus_na must grow",
    "{kind: brightfield, condenser_na: 0.6}": "condenser_na must not exceed",
    "{kind: brightfield, numerical_aperture: 1.4}": "below medium_index",
    "{kind: oblique, reach: [0.5, 1.2]}": "reach must grow",
}


def experiment(optics: str) -> Experiment:
    return Experiment.from_text(f"""
name: practice
microscope: {{kind: simulated, camera_px: [64, 64], specimen: {{kind: synthetic, optics: {optics}}}}}
overview: {{channels: [Phase], stage_positions: [{{x: 0, y: 0, z: 0}}]}}
""")


def asked(optics: str) -> SimulatedOptics:
    microscope = experiment(optics).microscope
    assert isinstance(microscope, SimulatedMicroscope) and microscope.specimen.kind == "synthetic"
    return microscope.specimen.optics


@pytest.mark.parametrize("text, optics", SEEN.items(), ids=SEEN)
def test_the_experiment_file_chooses_the_light(text: str, optics: Transmitted) -> None:
    assert transmitted_light(asked(text)) == optics
    again = Experiment.from_text(experiment(text).to_yaml())
    assert again.microscope == experiment(text).microscope


@pytest.mark.parametrize("text, said", REFUSED.items(), ids=REFUSED)
def test_what_no_microscope_has_is_refused(text: str, said: str) -> None:
    with pytest.raises(ExperimentError) as caught:
        experiment(text)
    assert said in str(caught.value)


def test_the_microscope_looks_through_what_was_chosen() -> None:
    images = {}
    for kind in ("phase_contrast", "dic"):
        with open_microscope(experiment(f"{{kind: {kind}}}").microscope) as scope:
            scope.core.snap_image()
            images[kind] = scope.core.get_image().astype(np.float64)
            assert scope.simulated.specimen.optics == SEEN[f"{{kind: {kind}}}"]
    assert np.corrcoef(images["phase_contrast"].ravel(), images["dic"].ravel())[0, 1] < 0.9
