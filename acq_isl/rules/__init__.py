"""Numbers in, decisions out: measurements, rankings, triggers and actions."""

from acq_isl.rules.actions import (
    Action,
    ActionTools,
    Call,
    Decision,
    ImageField,
    Limits,
    Occasion,
    SetPreset,
    check_request,
)
from acq_isl.rules.measurements import (
    AreaFraction,
    MeanIntensity,
    Measured,
    Measurement,
    NetworkLength,
    ObjectCount,
    Unit,
    inner_planes,
)
from acq_isl.rules.rules import Best, Choice, Threshold, Trigger, decide, rank
from acq_isl.rules.segmenters import Segmenter, Watershed

__all__ = [
    "Action",
    "ActionTools",
    "AreaFraction",
    "Best",
    "Call",
    "Choice",
    "Decision",
    "ImageField",
    "Limits",
    "MeanIntensity",
    "Measured",
    "Measurement",
    "NetworkLength",
    "ObjectCount",
    "Occasion",
    "Segmenter",
    "SetPreset",
    "Threshold",
    "Trigger",
    "Unit",
    "Watershed",
    "check_request",
    "decide",
    "inner_planes",
    "rank",
]
