"""What camera and specimen agree on: a view, what was done to a specimen, and what a specimen can do."""

from acq_isl.sim.view.camera_settings import CameraSettings
from acq_isl.sim.view.specimen import HasCamera, HasMetadata, Preparable, Specimen
from acq_isl.sim.view.view import UNTOUCHED, Drug, History, Light, View

__all__ = [
    "UNTOUCHED",
    "CameraSettings",
    "Drug",
    "HasCamera",
    "HasMetadata",
    "History",
    "Light",
    "Preparable",
    "Specimen",
    "View",
]
