"""The demo on somebody's own recording: what it images is what was recorded."""

from __future__ import annotations

from typing import Any

import useq

from acq_isl.experiment.experiment import Experiment, OpticsSettings, RecordedSpecimen, SimulatedMicroscope
from acq_isl.hooks.connect import recorded_specimen
from acq_isl.rules.actions import ImageField
from acq_isl.sim.specimen.recorded import is_published

_LARGEST_PX = 512
_EXPOSURE_MS = 50.0


def on_recording(experiment: Experiment, settings: RecordedSpecimen) -> tuple[Experiment, str]:
    """The demo's experiment with the planes, channels and camera of a recording, and what that is in words.

    Parameters
    ----------
    experiment : Experiment
    settings : RecordedSpecimen

    Raises
    ------
    StorageError
        The recording cannot be read, or something about it is not known.
    """
    specimen = recorded_specimen(settings)
    planes, rows, columns = specimen.transmitted.shape
    fluorescent = specimen.channels[1:]
    changes: dict[str, Any] = {
        "microscope": SimulatedMicroscope(
            specimen=settings, camera_px=(min(rows, _LARGEST_PX), min(columns, _LARGEST_PX))
        ),
        "overview": _with_planes(experiment.overview, planes, specimen.z_step_um),
        "truth": {label: one.channel for label, one in specimen.labels.items() if label in experiment.truth},
        "triggers": tuple(
            trigger
            for trigger in experiment.triggers
            if not isinstance(trigger.do, ImageField) or set(trigger.do.channels) <= set(fluorescent)
        ),
        "revisit": None,
    }
    if fluorescent:
        channels = tuple(useq.Channel(config=name, exposure=_EXPOSURE_MS) for name in fluorescent)
        changes["revisit"] = useq.MDASequence(channels=channels)
    if not is_published(settings.folder):
        # How the light was made is not in the files.
        changes["optics"] = OpticsSettings()
    told = (
        f"{planes} planes of {columns} x {rows} pixels, {specimen.pixel_size_um:g} um each, "
        f"{specimen.z_step_um:g} um apart; fluorescence: {', '.join(fluorescent) or 'none'}"
    )
    return experiment.model_copy(update=changes), told


def _with_planes(overview: useq.MDASequence, planes: int, step_um: float) -> useq.MDASequence:
    if planes == 1:
        return overview.replace(z_plan=None)
    return overview.replace(z_plan=useq.ZRangeAround(range=(planes - 1) * step_um, step=step_um))
