"""From a pixel of an image to the stage, with how sure that is. Pure."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from acq_isl.base import StrictModel
from acq_isl.errors import ExperimentError

_MOST_RESIDUAL = 0.2  # of a move that was measured: beyond it, what was seen is not the move


class PixelToStage(StrictModel):
    """How far the stage has to go for a pixel to come to the middle of the image.

    ``matrix`` holds um of stage per pixel: x = m00 column + m01 row, y = m10 column + m11 row, column and row
    counted from the middle of the image. ``acq-isl affine`` measures it.
    """

    matrix: tuple[tuple[float, float], tuple[float, float]]
    residual_um: float = Field(ge=0, allow_inf_nan=False)
    """Root of the mean square by which the measured moves missed it, in um."""

    @model_validator(mode="after")
    def _invertible(self) -> PixelToStage:
        if not abs(float(np.linalg.det(self.matrix))) > 0:
            raise ValueError("pixel_to_stage.matrix has no inverse: a direction is missing")
        return self

    @property
    def pixel_size_um(self) -> float:
        return math.sqrt(abs(float(np.linalg.det(self.matrix))))

    def offset_um(self, row: float, column: float, shape: tuple[int, int]) -> tuple[float, float]:
        """Where a pixel lies from the middle of the image, in stage x and y, um."""
        away = np.array([column - (shape[1] - 1) / 2, row - (shape[0] - 1) / 2])
        x_um, y_um = np.asarray(self.matrix) @ away
        return float(x_um), float(y_um)

    @classmethod
    def nominal(cls, pixel_size_um: float) -> PixelToStage:
        """Camera and stage with the same axes, and nothing measured."""
        return cls(matrix=((pixel_size_um, 0.0), (0.0, pixel_size_um)), residual_um=0.0)


def fit_pixel_to_stage(moves_um: NDArray[np.float64], shifts_px: NDArray[np.float64]) -> PixelToStage:
    """Least squares over moves of the stage, (n, 2) x and y in um, and the shifts of what was seen, (n, 2)
    columns and rows in pixels; ExperimentError if they do not belong together.

    What lies at +p of the middle comes there when the stage moves by M p, that is, when it shifts by -p.
    """
    if len(moves_um) < 3 or np.linalg.matrix_rank(shifts_px) < 2:
        raise ExperimentError("too little was seen to move", wanted="three moves or more, not all on a line")
    solution, *_ = np.linalg.lstsq(-shifts_px, moves_um, rcond=None)
    missed = -shifts_px @ solution - moves_um
    residual_um = float(np.sqrt(np.mean(np.sum(missed**2, axis=1))))
    moved_um = float(np.sqrt(np.mean(np.sum(moves_um**2, axis=1))))
    if not residual_um <= _MOST_RESIDUAL * moved_um:
        raise ExperimentError(
            "the pictures did not move as the stage did",
            wanted=f"a residual of at most {_MOST_RESIDUAL * moved_um:.2g} um",
            got=f"{residual_um:.2g} um",
            fix="look at a place with structure, in focus, and check that the stage moves",
        )
    (a, b), (c, d) = solution.T.round(6).tolist()
    return PixelToStage(matrix=((a, b), (c, d)), residual_um=round(residual_um, 4))
