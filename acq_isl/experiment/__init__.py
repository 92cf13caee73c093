"""The experiment file: what is written in it, what it plans, and what goes wrong on purpose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acq_isl.experiment.experiment import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # On first use: a simulator that needs the names of faults only must not load useq-schema.
    import acq_isl.experiment.experiment as home

    if name in home.__all__:
        return getattr(home, name)
    raise AttributeError(f"module 'acq_isl.experiment' has no attribute {name!r}")
