"""A place of a simulated culture in each kind of light: ``python benchmarks/modalities.py OUT.png``.

Below a recorded phase-contrast stack, if there is one. All planes are flattened and scaled alike, as
`benchmarks/believable.py` does; light of the simulated ones has passed the simulated camera.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from acq_isl.sim.optics.illumination import DIC, LIVE_PHASE_CONTRAST, Brightfield, Oblique, Transmitted
from acq_isl.sim.scope.camera import Camera, CameraSettings
from acq_isl.sim.specimen.synthetic import SyntheticSpecimen
from acq_isl.sim.view import View

Z_UM = (-10.0, -5.0, 0.0, 5.0, 10.0)
SIDE, GAP, LEFT = 230, 4, 118
OPTICS: dict[str, Transmitted] = {
    "phase contrast": LIVE_PHASE_CONTRAST,
    "oblique": Oblique(coarse_points=60),
    "DIC": DIC(),
    "bright field": Brightfield(),
}
_DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "isl_condition_b" / "phase_contrast.ome.tif"


def shown(plane: NDArray[np.floating], sigma_px: float = 33.0) -> NDArray[np.uint8]:
    """A flattened plane as grey levels, mean 127, three SD to either end."""
    light = plane.astype(np.float32)
    light = light - ndimage.gaussian_filter(light, sigma_px)
    return np.clip(127 + 42 * light / light.std(), 0, 255).astype(np.uint8)


def cut(image: NDArray[np.uint8], top: int, left: int) -> NDArray[np.uint8]:
    return image[top : top + SIDE, left : left + SIDE]


def rows(seed: int, place_um: tuple[float, float]) -> dict[str, list[NDArray[np.uint8]]]:
    """Planes by the name of the light."""
    pad = 60
    side = SIDE + 2 * pad
    camera = Camera(CameraSettings(), seed=1)
    found = {}
    for name, optics in OPTICS.items():
        specimen = SyntheticSpecimen(seed, optics)
        views = [View(*place_um, z_um, "Phase", 0.3, (side, side)) for z_um in Z_UM]
        found[name] = [
            cut(shown(camera.read(specimen.render(view), flux=1.0, bit_depth=16, frame=(1, n))), pad, pad)
            for n, view in enumerate(views)
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--recorded", type=Path, default=_DATA)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--place-um", type=float, nargs=2, default=(170.0, 230.0))
    options = parser.parse_args()
    found = {}
    if options.recorded.exists():
        stack = tifffile.imread(options.recorded)
        planes = np.linspace(0, len(stack) - 1, len(Z_UM)).round().astype(int)
        found["recorded"] = [cut(shown(stack[z]), 61, 470) for z in planes]
    found |= rows(options.seed, tuple(options.place_um))
    step = SIDE + GAP
    sheet = Image.new("L", (LEFT + step * len(Z_UM), 24 + step * len(found)), 255)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for column, z_um in enumerate(Z_UM):
        pen.text((LEFT + column * step + 6, 4), f"{z_um:+g} um", 0, font)
    for row, (name, tiles) in enumerate(found.items()):
        pen.text((6, 24 + row * step + SIDE // 2), name, 0, font)
        for column, tile in enumerate(tiles):
            sheet.paste(Image.fromarray(tile), (LEFT + column * step, 24 + row * step))
    sheet.save(options.picture)


if __name__ == "__main__":
    main()
