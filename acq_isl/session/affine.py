"""Where pixels lie on the stage, measured: the stage goes a little way, and what the camera sees follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from acq_isl.errors import ExperimentError
from acq_isl.experiment.experiment import Experiment
from acq_isl.hooks import GuardedAcquisition, OpenMicroscope
from acq_isl.processing.drift import find_drift
from acq_isl.rules.pixels import PixelToStage, fit_pixel_to_stage
from acq_isl.session.preflight import camera_of, prepare
from acq_isl.session.runner import safety_of
from acq_isl.stack import StackKey, StackRequest, Uint16Image

_PART = 6  # of a field: so far the stage goes
_WAYS = ((1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, 1), (-1, -1), (1, -1))


def measure_affine(experiment: Experiment, scope: OpenMicroscope) -> PixelToStage:
    """Take one plane at the first field of the overview and around it; nothing is stored.

    ExperimentError if the pictures do not follow the stage, ActionRefused beyond the limits.
    """
    plan, _ = prepare(experiment.model_copy(update={"triggers": ()}), scope)
    field = plan[0].requests[0]
    way_um = min(camera_of(scope).fov_um) / _PART
    middle = (field.z_um[len(field.z_um) // 2],)
    start = replace(field, z_um=middle, predict=False, autofocus=None, keep_shutter_open=False)
    safety = safety_of(experiment)
    with GuardedAcquisition(None, "affine", limits=experiment.limits, safety=safety) as microscope:

        def look(number: int, x_um: float, y_um: float) -> Uint16Image:
            key = StackKey(0, f"affine_{number}", start.key.channel)
            request: StackRequest = replace(start, key=key, x_um=x_um, y_um=y_um)
            microscope.acquire(request)
            return np.asarray(microscope.images(request)[0])

        still = look(0, start.x_um, start.y_um)
        moves, shifts = [], []
        for number, (right, up) in enumerate(_WAYS, start=1):
            move = right * way_um, up * way_um
            seen = find_drift(still, look(number, start.x_um + move[0], start.y_um + move[1]))
            if seen is not None:
                moves.append(move)
                shifts.append((seen[1], seen[0]))
    if len(moves) < len(_WAYS) // 2:
        raise ExperimentError(
            "too little was recognised after the stage had moved",
            wanted=f"{len(_WAYS)} pictures of the same place",
            got=f"{len(moves)}",
            fix="go to a place with structure, in focus",
        )
    return fit_pixel_to_stage(np.array(moves), np.array(shifts))
