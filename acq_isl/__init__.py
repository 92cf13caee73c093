"""acq-isl: see fluorescence labels that were never stained, while acquiring.

In a notebook::

    import acq_isl
    experiment = acq_isl.Experiment.from_yaml("experiment.yaml")
    result = acq_isl.run(experiment, sim=True)
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from acq_isl.moved import MOVED, follow_old_names

if TYPE_CHECKING:
    from acq_isl.engines import load_engine
    from acq_isl.experiment.experiment import Experiment
    from acq_isl.hooks import CaptureHook, GuardedAcquisition
    from acq_isl.live_capture import live
    from acq_isl.session.runner import RunResult, run

# Resolved on first use: a model server must not load a microscope, nor the other way round.
_HOME = {
    "CaptureHook": "acq_isl.hooks",
    "Experiment": "acq_isl.experiment.experiment",
    "GuardedAcquisition": "acq_isl.hooks",
    "RunResult": "acq_isl.session.runner",
    "live": "acq_isl.live_capture",
    "load_engine": "acq_isl.engines",
    "run": "acq_isl.session.runner",
}

__all__ = ["CaptureHook", "Experiment", "GuardedAcquisition", "RunResult", "live", "load_engine", "run"]


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext acq_isl``: notebooks show stacks, predictions, sessions and runs as pictures and tables."""
    from acq_isl.view.notebook import register

    register(shell)


def _load_into_notebook() -> None:
    """As ``%load_ext acq_isl``, where this package is imported by a notebook."""
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()) is not None:
        load_ipython_extension(shell)


follow_old_names()
_load_into_notebook()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if f"acq_isl.{name}" in MOVED:
        return import_module(f"acq_isl.{name}")
    raise AttributeError(f"module 'acq_isl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]
