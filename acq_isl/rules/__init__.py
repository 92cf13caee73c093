"""Numbers in, decisions out: measurements, conditions, rankings, schedules, triggers and actions."""

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
from acq_isl.rules.conditions import AllOf, AnyOf, Condition, Evaluation, Memory, NotThis, Threshold, evaluate
from acq_isl.rules.measurements import (
    Area,
    AreaFraction,
    Confluency,
    IntegratedIntensity,
    MeanIntensity,
    Measured,
    Measurement,
    NetworkLength,
    ObjectCount,
    Uncertainty,
    inner_planes,
)
from acq_isl.rules.objects import BranchPoints, Density, FoundObject, ObjectShape, Share
from acq_isl.rules.over_time import Change, GrowthRate, Visit
from acq_isl.rules.rankings import Best, Choice, Diverse, Pareto, Quota, Ranking, Weighted, rank
from acq_isl.rules.rules import Trigger, decide
from acq_isl.rules.schedules import Queue, Rate, RevisitWhen, Schedule, TimeBudget
from acq_isl.rules.segmenters import Segmenter, Watershed
from acq_isl.rules.similarity import FocusOffset, Novelty, Quality
from acq_isl.rules.units import Unit
from acq_isl.rules.user import PythonFunction

__all__ = [
    "Action",
    "ActionTools",
    "AllOf",
    "AnyOf",
    "Area",
    "AreaFraction",
    "Best",
    "BranchPoints",
    "Call",
    "Change",
    "Choice",
    "Condition",
    "Confluency",
    "Decision",
    "Density",
    "Diverse",
    "Evaluation",
    "FocusOffset",
    "FoundObject",
    "GrowthRate",
    "ImageField",
    "IntegratedIntensity",
    "Limits",
    "MeanIntensity",
    "Measured",
    "Measurement",
    "Memory",
    "NetworkLength",
    "NotThis",
    "Novelty",
    "ObjectCount",
    "ObjectShape",
    "Occasion",
    "Pareto",
    "PythonFunction",
    "Quality",
    "Queue",
    "Quota",
    "Ranking",
    "Rate",
    "RevisitWhen",
    "Schedule",
    "Segmenter",
    "SetPreset",
    "Share",
    "Threshold",
    "TimeBudget",
    "Trigger",
    "Uncertainty",
    "Unit",
    "Visit",
    "Watershed",
    "Weighted",
    "check_request",
    "decide",
    "evaluate",
    "inner_planes",
    "rank",
]
