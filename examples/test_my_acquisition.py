"""How a lab tests its own acquisition script without a microscope: pytest examples/test_my_acquisition.py

The fixture `simulated_scope` comes with acq-isl. While a test runs, `Core()` and `Acquisition` of
pycromanager talk to Micro-Manager's real core with a simulated specimen in front of its camera.
"""

import numpy as np
import pytest
from pycromanager import Acquisition, Core

from acq_isl.experiment.faults import FocusDrift, PresetFails, StuckShutter


def focus_and_image(folder, z_um, channel="DAPI"):
    """The script under test: find the sharpest plane in phase contrast, take one image there."""
    events = [
        {"axes": {"z": index}, "z": z, "config_group": ["Channel", "Phase"], "exposure": 10}
        for index, z in enumerate(z_um)
    ]
    with Acquisition(str(folder), "focus", show_display=False) as acquisition:
        acquisition.acquire(events)
    dataset = acquisition.get_dataset()
    planes = [dataset.read_image(z=index) for index in range(len(z_um))]
    dataset.close()
    if max(plane.mean() for plane in planes) < 1000:  # a dark frame has 109 counts
        raise RuntimeError("nothing to focus on: is the shutter open?")
    best_um = z_um[int(np.argmax([np.diff(plane.astype(float), axis=0).std() for plane in planes]))]

    core = Core()
    core.set_position(best_um)
    core.set_config("Channel", channel)
    core.set_exposure(50)
    core.snap_image()
    return best_um, core.get_image()


Z_UM = [-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0]


def test_the_script_images_the_nuclei(simulated_scope, tmp_path):
    _, image = focus_and_image(tmp_path, Z_UM)
    nuclei = simulated_scope.truth()["nuclei"]  # what really lies there
    assert nuclei.shape == image.shape
    assert np.corrcoef(image.ravel(), nuclei.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("faults", [[StuckShutter()]])
def test_the_script_notices_that_there_is_no_light(simulated_scope, faults, tmp_path):
    with pytest.raises(RuntimeError, match="is the shutter open"):
        focus_and_image(tmp_path, Z_UM)


@pytest.mark.parametrize("faults", [[PresetFails("DAPI")]])
def test_a_filter_wheel_that_is_stuck_is_an_error(simulated_scope, faults, tmp_path):
    with pytest.raises(RuntimeError, match="DAPI"):
        focus_and_image(tmp_path, Z_UM)


@pytest.mark.parametrize("faults", [[], [FocusDrift(um_per_min=60)]])
def test_the_script_goes_back_to_the_plane_it_found(simulated_scope, faults, tmp_path):
    best_um, _ = focus_and_image(tmp_path, Z_UM)
    there_um = simulated_scope.last_exposure.view.z_um  # where the focus truly was
    # With a drift of 1 um a second it cannot be there any more, which the script does not know.
    assert (abs(there_um - best_um) < 0.1) == (not faults)
