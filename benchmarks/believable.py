"""Recorded beside simulated stacks, in numbers and in a picture: ``python benchmarks/believable.py``.

The simulated stacks are those that networks are trained on (`acq_isl.training.data.source_simulated`, its
random optics and random specimens). All stacks are flattened in the same way before they are measured: a
Gaussian of 10 um is subtracted and each plane is scaled to standard deviation 1. Rows:

* power f..f   radial power spectrum of the middle plane between two frequencies (cycles per um), per pixel
* skew, kurtosis, clipped   of all pixels; clipped is the share at either end of the range, in %
* r lag n      correlation of planes n apart
* drift        shift of the picture from plane to plane, in pixels (phase correlation), median of lengths
* noise        SD of white noise (a 3 x 3 operator blind to smooth structure; Immerkaer 1996), share of the SD
* static       variance of the median over planes, share of the variance, in the quiet half of the field
* relief       power along the strongest direction over that across it, .1 to .4 cycles per um
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage

from acq_isl.training.data.source_simulated import SimulationConfig, simulate

Stack = NDArray[np.float32]
BANDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
RECORDED_PIXEL_UM = 0.3
FLATTEN_UM = 10.0
_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "isl_condition_b" / "phase_contrast.ome.tif"


def flattened(stack: NDArray[np.uint16], pixel_um: float) -> Stack:
    """Planes without their slow shading, each of mean 0 and SD 1."""
    light = stack.astype(np.float32)
    sigma = FLATTEN_UM / pixel_um
    light -= ndimage.gaussian_filter(light, (0, sigma, sigma), truncate=2.5)
    light -= light.mean(axis=(1, 2), keepdims=True)
    light /= light.std(axis=(1, 2), keepdims=True)
    return light


def statistics(stack: NDArray[np.uint16], pixel_um: float) -> dict[str, float]:
    """The table's numbers for one stack (z, y, x)."""
    flat = flattened(stack, pixel_um)
    z = len(flat)
    found = {f"power {low:g}-{high:g}": p for low, high, p in _bands(flat[z // 2], pixel_um)}
    values = flat.ravel()
    found["skew"] = float(np.mean(values**3))
    found["kurtosis"] = float(np.mean(values**4) - 3)
    found["clipped %"] = float(100 * np.mean((stack == 0) | (stack == 65535)))
    rows = flat.reshape(z, -1)
    r = rows @ rows.T / rows.shape[1]
    for lag in (1, 6, 12):
        found[f"r lag {lag}"] = float(np.mean(np.diagonal(r, lag)))
    found["drift px"] = float(np.median([_shift(a, b) for a, b in pairwise(flat)]))
    found["noise"] = float(np.mean([_noise(plane) for plane in flat]))
    found["static"] = _static(flat)
    found["relief"] = _relief(flat[z // 2], pixel_um)
    return found


def _spectrum(plane: Stack, pixel_um: float) -> tuple[Stack, Stack, Stack]:
    window = np.hanning(plane.shape[0])[:, None] * np.hanning(plane.shape[1])[None]
    power = np.abs(fft.fft2(plane * window)) ** 2 / np.sum(window**2)
    fy, fx = (fft.fftfreq(n, pixel_um) for n in plane.shape)
    return power, *np.broadcast_arrays(fy[:, None], fx[None])


def _bands(plane: Stack, pixel_um: float) -> list[tuple[float, float, float]]:
    power, fy, fx = _spectrum(plane, pixel_um)
    f = np.hypot(fy, fx)
    return [(low, high, float(power[(f >= low) & (f < high)].mean())) for low, high in pairwise(BANDS)]


def _shift(a: Stack, b: Stack) -> float:
    cross = fft.fft2(a) * np.conj(fft.fft2(b))
    peak = fft.ifft2(cross / np.maximum(np.abs(cross), 1e-9)).real
    peak = ndimage.gaussian_filter(peak, 1.0, mode="wrap")
    near = fft.fftshift(peak)[tuple(slice(n // 2 - 4, n // 2 + 5) for n in peak.shape)]
    weight = np.clip(near - 0.3 * near.max(), 0, None)
    at = np.arange(-4, 5)
    return float(np.hypot(weight.sum(1) @ at, weight.sum(0) @ at) / weight.sum())


def _noise(plane: Stack) -> float:
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    return float(np.median(np.abs(ndimage.convolve(plane, kernel))) / 0.6745 / 6)


def _static(flat: Stack) -> float:
    local = ndimage.uniform_filter(np.mean(flat**2, axis=0), 32)
    quiet = local < np.median(local)
    return float(np.median(flat, axis=0)[quiet].var() / flat[:, quiet].var())


def _relief(plane: Stack, pixel_um: float) -> float:
    power, fy, fx = _spectrum(plane, pixel_um)
    f, turn = np.hypot(fy, fx), np.degrees(np.arctan2(fy, fx)) % 180
    inside = (f > 0.1) & (f < 0.4)
    sums = np.array([power[inside & (turn // 15 == k)].mean() for k in range(12)])
    wide = ndimage.uniform_filter1d(sums, 4, mode="wrap")
    return float((wide / np.roll(wide, 6)).max())


def side_by_side(stacks: list[Stack], planes: tuple[int, ...], side: int = 224) -> Image.Image:
    """A row for each stack, a column for each plane; the first stack is the recorded one."""
    rows = []
    for stack in stacks:
        top, left = ((n - side) // 2 for n in stack.shape[1:])
        cut = [stack[z, top : top + side, left : left + side] for z in planes]
        rows.append(np.concatenate([np.pad(tile, 2, constant_values=9) for tile in cut], axis=1))
    picture = np.clip(127 + 42 * np.concatenate(rows, axis=0), 0, 255).astype(np.uint8)
    return Image.fromarray(picture)


def _row(name: str, recorded: float, simulated: list[float]) -> str:
    low, middle, high = np.quantile(simulated, (0, 0.5, 1))
    return f"{name:16} {recorded:10.3f} {middle:10.3f} {low:10.3f} {high:10.3f}"


def arguments() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--recorded", type=Path, default=_DATA)
    parser.add_argument("--fields", type=int, default=8)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--picture", type=Path)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if not options.recorded.exists():
        sys.exit(f"there is no recorded stack at {options.recorded}; name one with --recorded")
    recorded = tifffile.imread(options.recorded)
    config = SimulationConfig(side_px=options.side, planes=len(recorded))
    # Held-out indices: fields that no network was trained on.
    stacks = [simulate(config, config.fields + at).stack for at in range(options.fields)]
    pixel = float(np.mean(config.pixel_um))
    truth = statistics(recorded, RECORDED_PIXEL_UM)
    found = [statistics(stack, pixel) for stack in stacks]
    sys.stdout.write(f"{'':16} {'recorded':>10} {'simulated':>10} {'lowest':>10} {'highest':>10}\n")
    for name, value in truth.items():
        sys.stdout.write(_row(name, value, [one[name] for one in found]) + "\n")
    if options.picture:
        shown = [flattened(recorded, RECORDED_PIXEL_UM)]
        shown += [flattened(stack, pixel) for stack in stacks[:3]]
        last = len(recorded) - 1
        side_by_side(shown, (0, last // 3, 2 * last // 3, last)).save(options.picture)


if __name__ == "__main__":
    main()
