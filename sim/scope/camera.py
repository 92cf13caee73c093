"""From light to counts: exposure, binning, shot and read noise, offset, bit depth. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from acq_isl.sim.view import CameraSettings, View
from acq_isl.stack import Float32Image

CountsImage = NDArray[np.uint8 | np.uint16]

_SMALLEST_BANK = 1 << 20
_HOT_PERIOD_PX = 2048


class Camera:
    """Turns noise-free light into counts, reproducibly.

    Shot and read noise are one Gaussian of variance ``electrons + read_noise_e**2``, for which ten electrons
    are enough. Its deviates come from a bank drawn once, for frames of ``pixels``; each reads another place.
    """

    def __init__(self, settings: CameraSettings, *, seed: int = 0, pixels: int = _SMALLEST_BANK) -> None:
        self.settings = settings
        self._seed = seed
        self._bank_size = max(_SMALLEST_BANK, 2 * pixels)
        self._bank: NDArray[np.float32] | None = None

    def glow(self, view: View, exposure_ms: float) -> Float32Image | None:
        """Electrons that hot pixels gain in an exposure, (y, x) float32; None without hot pixels."""
        camera = self.settings
        if not camera.hot_pixels:
            return None
        glow = np.zeros(view.shape, np.float32)
        count = int(camera.hot_pixels * _HOT_PERIOD_PX**2)
        rng = np.random.default_rng((self._seed, 3))
        places = rng.integers(0, _HOT_PERIOD_PX, (2, count))
        gained = rng.exponential(camera.hot_e_per_s * exposure_ms / 1000, count)
        # The pattern repeats every so many pixels of the sensor; each period is looked through.
        starts = [range(0, origin + side * view.binning, _HOT_PERIOD_PX)
                  for origin, side in zip(view.sensor_origin_px, view.shape, strict=True)]  # fmt: skip
        for top in starts[0]:
            for left in starts[1]:
                rows = (places[0] + top - view.sensor_origin_px[0]) // view.binning
                columns = (places[1] + left - view.sensor_origin_px[1]) // view.binning
                inside = (rows >= 0) & (rows < view.shape[0]) & (columns >= 0) & (columns < view.shape[1])
                np.add.at(glow, (rows[inside], columns[inside]), gained[inside].astype(np.float32))
        return glow

    def read(
        self,
        light: Float32Image,
        *,
        flux: float,
        bit_depth: int,
        frame: tuple[int, int],
        glow: Float32Image | None = None,
    ) -> CountsImage:
        """Expose once and read out, (y, x) uint8 up to 8 bit, else uint16.

        ``light`` (y, x) float32, 1.0 fills the well at the nominal exposure, unbinned; ``flux`` is how much
        more a pixel collects (`compute_flux`), 0 in the dark; ``frame`` (sequence, number in it) picks the
        noise; ``glow`` is electrons without light, as from `glow`.
        """
        camera, top = self.settings, float(2**bit_depth - 1)
        per_electron = top / camera.full_well_e
        # +0.5 so that the cut to integers below rounds.
        counts = np.multiply(light, np.float32(flux * top), dtype=np.float32)
        if glow is not None:
            counts += glow * np.float32(per_electron)
        if camera.shot_noise:
            spread = np.multiply(counts, np.float32(per_electron), dtype=np.float32)
            spread += np.float32((camera.read_noise_e * per_electron) ** 2)
            np.maximum(spread, 0.0, out=spread)
            np.sqrt(spread, out=spread)
            spread *= self._deviates(counts.size, frame).reshape(counts.shape)
            counts += spread
        elif camera.read_noise_e > 0:
            deviates = self._deviates(counts.size, frame).reshape(counts.shape)
            counts += deviates * np.float32(camera.read_noise_e * per_electron)
        counts += np.float32(camera.offset_e * per_electron + 0.5)
        np.clip(counts, 0.0, top, out=counts)
        pixels: CountsImage = counts.astype(np.uint8 if bit_depth <= 8 else np.uint16)
        return pixels

    def _deviates(self, count: int, frame: tuple[int, int]) -> NDArray[np.float32]:
        if self._bank is None or self._bank.size < 2 * count:
            self._bank_size = max(self._bank_size, 2 * count)
            self._bank = np.random.default_rng(self._seed).standard_normal(self._bank_size, dtype=np.float32)
        start = int(np.random.default_rng((self._seed, *frame)).integers(self._bank.size - count + 1))
        return self._bank[start : start + count]


def compute_flux(exposure_ms: float, nominal_ms: float, brightness: float = 1.0, binning: int = 1) -> float:
    """How much more light than nominal one (binned) pixel collects, as `Camera.read` takes it."""
    return exposure_ms / nominal_ms * brightness * binning * binning
