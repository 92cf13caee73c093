"""The experiment file: what is written in it, what it plans, and what goes wrong on purpose."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acq_isl.experiment.experiment import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # On first use: a simulator that needs the names of faults only must not load useq-schema.
    module = import_module("acq_isl.experiment.experiment")
    if name in module.__all__:
        return getattr(module, name)
    raise AttributeError(f"module 'acq_isl.experiment' has no attribute {name!r}")
