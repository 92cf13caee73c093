"""Faults named on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from acq_isl.errors import ExperimentError
from acq_isl.experiment.experiment import Experiment, SimulatedMicroscope
from acq_isl.experiment.faults import of_engine
from acq_isl.fault_text import parse_fault
from acq_isl.protocols import Engine

Faults = Annotated[
    list[str] | None,
    typer.Option("--fault", metavar="FAULT", help="Let something go wrong, such as focus-drift:2."),
]


def planted(experiment: Experiment, faults: Sequence[str] | None, *, sim: bool = True) -> Experiment:
    """The experiment with further faults; ExperimentError on a real microscope, or if one is misspelt."""
    if not faults:
        return experiment
    from acq_isl.session.preflight import simulated

    microscope = simulated(experiment).microscope if sim else experiment.microscope
    if not isinstance(microscope, SimulatedMicroscope):
        raise ExperimentError(
            "faults can be planted in a simulated microscope only", got=microscope.kind, fix="add --sim"
        )
    all_faults = (*microscope.faults, *map(parse_fault, faults))
    return experiment.model_copy(update={"microscope": microscope.model_copy(update={"faults": all_faults})})


def faulty(engine: Engine, faults: Sequence[str] | None) -> Engine:
    """The engine, with its faults where some are named."""
    if not faults:
        return engine
    from acq_isl.sim.faulty_engine import FaultyEngine

    return FaultyEngine(engine, of_engine([parse_fault(text) for text in faults]))
