"""Where pixels lie on the stage is measured by going there."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from acq_isl.errors import ActionRefused, ExperimentError
from acq_isl.experiment.experiment import Experiment
from acq_isl.hooks import OpenMicroscope
from acq_isl.session.affine import measure_affine
from acq_isl.sim import CameraSettings, ScopeSettings, SimulatedScope, View
from acq_isl.stack import Float32Image

SIDE = 96
OVERVIEW = """
name: test
overview: {z_plan: {range: 2, step: 1}, channels: [{config: Phase, exposure: 5}]}
engine: {kind: none}
microscope: {kind: simulated}
"""


class Texture:
    """Structure everywhere, the camera turned by a quarter against the stage."""

    channels = ("Phase",)

    def __init__(self) -> None:
        noise = np.random.default_rng(0).normal(size=(4 * SIDE, 4 * SIDE))
        texture = ndimage.gaussian_filter(noise, 2)
        self._picture = (0.5 + 0.1 * texture / texture.std()).astype(np.float32)

    def render(self, view: View) -> Float32Image:
        row, column = (round(um / view.pixel_size_um) + 2 * SIDE for um in (view.x_um, -view.y_um))
        half = SIDE // 2
        return self._picture[row - half : row + half, column - half : column + half].copy()

    def truth(self, view: View) -> dict[str, Float32Image]:
        return {}


def test_where_pixels_lie_is_measured_by_going_there() -> None:
    settings = ScopeSettings(shape=(SIDE, SIDE), camera=CameraSettings().noiseless(), buffer_size_mb=16)
    with SimulatedScope(Texture(), settings=settings) as scope:
        opened = OpenMicroscope(scope.core, "a turned camera", simulated=scope)
        found = measure_affine(Experiment.from_text(OVERVIEW), opened)
        with pytest.raises(ActionRefused, match="0 to 6"):  # the field lies within, a step beside it does not
            measure_affine(Experiment.from_text(OVERVIEW + "limits: {x_um: [0, 6]}\n"), opened)
        with pytest.raises(ExperimentError, match="-1 to 1"):  # not even the field: told before it moves
            measure_affine(Experiment.from_text(OVERVIEW + "limits: {x_um: [-1, 1]}\n"), opened)
    assert np.asarray(found.matrix) == pytest.approx(np.array([[0.0, 0.3], [-0.3, 0.0]]), abs=0.01)
    assert found.residual_um < 0.2, "the stage goes by whole pixels here"
