"""The linear model of weak phase objects: the analytic limit that the wave model is held against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from acq_isl.sim.optics.illumination import DIC
from acq_isl.sim.optics.wave_optics import Beam, Complex, Imaging

_Grid = NDArray[np.float64]


def weak_phase_transfer(imaging: Imaging, z_um: float) -> Complex:
    """Transfer H of the linear weak-object model for a pure phase: I = 1 + F^-1[H F[phi]], (y, x) complex64.

    H(f) = i sum_s w_s [c* P(f + f_s) - c P*(f_s - f)] / sum_s w_s |c|^2 with c = P(f_s) and the pupil P
    including defocus (Streibl 1985, JOSA A 2:121; the form used by waveorder), and for DIC the shear's
    factor of f. ``phi`` is the phase at the optics' wavelength. Right below about half a radian only.
    """
    fine = _transfer(imaging, imaging.beams, z_um)
    if not imaging.many_beams:
        return fine
    within = [
        np.abs(fft.fftfreq(side, 1 / side)) < coarse // 2
        for side, coarse in zip(imaging.shape, imaging.coarse_shape, strict=True)
    ]
    many = _transfer(imaging, imaging.many_beams, z_um)
    return np.where(within[0][:, None] & within[1][None], many, fine)


def _transfer(imaging: Imaging, beams: tuple[Beam, ...], z_um: float) -> Complex:
    fy, fx = (fft.fftfreq(n, imaging.grid_um) for n in imaging.shape)
    transfer = np.zeros(imaging.shape, np.complex128)
    for beam in beams:
        colour = beam.wavelength_um
        sy, sx = (at / (n * imaging.grid_um) for at, n in zip(beam.sample, imaging.shape, strict=True))

        def seen(
            y: _Grid, x: _Grid, sy: float = sy, sx: float = sx, colour: float = colour
        ) -> NDArray[np.complex128]:
            """Pupil with defocus, and shear, at the specimen's frequency."""
            square = (sy + y) ** 2 + (sx + x) ** 2
            phase = np.exp(2j * np.pi * z_um * imaging.fall(square, colour))
            field: NDArray[np.complex128] = imaging.pupil(square, colour) * phase
            if isinstance(imaging.optics, DIC):
                field = field * imaging.optics.shear(y, x, colour)
            return field

        c = seen(np.zeros((1, 1)), np.zeros((1, 1)))
        ahead, behind = seen(fy[:, None], fx[None]), seen(-fy[:, None], -fx[None])
        strength = beam.weight * imaging.optics.wavelength_um / colour
        transfer += strength * 1j * (np.conj(c) * ahead - c * np.conj(behind))
    return transfer.astype(np.complex64)
