"""Each image says what it was simulated with; a microscope that prepares ahead shows the same."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycromanager import Acquisition, multi_d_acquisition_events

from acq_isl.sim import ScopeSettings, SimulatedScope
from acq_isl.sim.optics.illumination import (
    DIC,
    LIVE_PHASE_CONTRAST,
    Brightfield,
    Oblique,
    PhaseContrast,
    describe_optics,
)
from acq_isl.sim.optics.source import Spectrum
from acq_isl.sim.specimen.cells import Culture
from acq_isl.sim.specimen.synthetic import SyntheticSpecimen


@pytest.mark.parametrize("optics", [LIVE_PHASE_CONTRAST, PhaseContrast(), Oblique(), Brightfield(), DIC()])
def test_the_text_tells_optics_apart_and_makes_them_again(optics):
    told = json.loads(describe_optics(optics))
    assert told.pop("kind") == type(optics).__name__
    told = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
    assert type(optics)(**told) == optics


def test_a_lamp_is_told_by_its_colours():
    told = json.loads(describe_optics(Brightfield(lamp=Spectrum((0.5, 0.6), (1.0, 2.0)))))
    assert told["lamp"] == {"wavelengths_um": [0.5, 0.6], "weights": [1.0, 2.0]}


@pytest.mark.parametrize("z_um", [None, (-1.0, 0.0)], ids=["snapped", "stack"])
def test_each_image_of_an_acquisition_names_its_optics(tmp_path, z_um):
    specimen, received = SyntheticSpecimen(5, DIC()), []
    with SimulatedScope(specimen, settings=ScopeSettings(shape=(48, 64))):
        stack = {} if z_um is None else {"z_start": z_um[0], "z_end": z_um[1], "z_step": 1.0}
        with Acquisition(
            directory=str(tmp_path),
            name="run",
            show_display=False,
            image_process_fn=lambda image, metadata: (received.append(metadata), (image, metadata))[1],
        ) as acquisition:
            acquisition.acquire(multi_d_acquisition_events(num_time_points=1, **stack))
    assert len(received) == (1 if z_um is None else 2)
    for metadata in received:
        assert json.loads(metadata["SimulatedOptics"])["kind"] == "DIC"
        assert metadata["SimulatedSeed"] == "5"


def test_a_scan_that_is_prepared_ahead_shows_the_same():
    def scan(ahead):
        images, sparse = [], Culture(density=0.1, debris=0.1)
        settings = ScopeSettings(shape=(48, 64), prepare_ahead=ahead)
        with SimulatedScope(SyntheticSpecimen(5, culture=sparse), settings=settings) as scope:
            for x_um in (0.0, 18.0, 36.0):
                scope.core.set_xy_position(x_um, 0.0)
                scope.core.wait_for_system()
                scope.core.snap_image()
                images.append(scope.core.get_image())
        return np.stack(images)

    np.testing.assert_array_equal(scan(0), scan(2))
