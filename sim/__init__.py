"""A microscope without hardware: a specimen to look at, and the real Micro-Manager core to look with.

`SimulatedScope` starts the core headless; a specimen (`Specimen`) says what its camera
sees: `RecordedSpecimen` from TIFF files, neurons (`SyntheticSpecimen`) or epithelial-like cells
(`EpithelialSpecimen`) from a seed.
"""

from acq_isl.sim.faulty_engine import FaultyEngine
from acq_isl.sim.scope.config import ChannelLight, ScopeSettings
from acq_isl.sim.scope.scope import SimulatedScope
from acq_isl.sim.scope.timeline import Taken, Timeline
from acq_isl.sim.specimen.epithelial import EpithelialSpecimen
from acq_isl.sim.specimen.epithelium import Monolayer
from acq_isl.sim.specimen.recorded import RecordedSpecimen
from acq_isl.sim.specimen.synthetic import SyntheticSpecimen
from acq_isl.sim.specimen.truth import CellTruth, KnowsCells, Rectangle
from acq_isl.sim.view import CameraSettings, Drug, History, Light, Specimen, View

__all__ = [
    "CameraSettings",
    "CellTruth",
    "ChannelLight",
    "Drug",
    "EpithelialSpecimen",
    "FaultyEngine",
    "History",
    "KnowsCells",
    "Light",
    "Monolayer",
    "RecordedSpecimen",
    "Rectangle",
    "ScopeSettings",
    "SimulatedScope",
    "Specimen",
    "SyntheticSpecimen",
    "Taken",
    "Timeline",
    "View",
]
