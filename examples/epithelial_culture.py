"""An epithelial-like culture, sparse to confluent, in three kinds of light: draws docs/images/epithelial.png.

python examples/epithelial_culture.py epithelial.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from acq_isl.sim import EpithelialSpecimen, Monolayer, View
from acq_isl.sim.optics.illumination import DIC, Brightfield, PhaseContrast

HUES = {"cells": (0, 110, 60), "nuclei": (0, 110, 255), "dead": (255, 90, 0)}
LIGHTS = (("bright field, z -6 um", Brightfield(condenser_na=0.15), -6.0),
          ("bright field, z +8 um", Brightfield(condenser_na=0.15), 8.0),
          ("phase contrast", PhaseContrast(decentre_na=(0.0, 0.0)), 0.0), ("DIC", DIC(), 0.0))  # fmt: skip
SIDE = 240


def draw(culture: Monolayer) -> list[tuple[str, np.ndarray]]:
    """One place in each light, and its truth, (y, x, 3) uint8 each, with its caption."""
    pictures = []
    for caption, optics, z_um in LIGHTS:
        specimen = EpithelialSpecimen(4, optics, culture)
        view = View(60.0, 40.0, z_um, "Phase", 0.45, (SIDE, SIDE))
        light = specimen.render(view)
        low, high = np.percentile(light, (0.3, 99.7))
        gray = np.clip((light - low) / (high - low), 0, 1)[..., None] * np.full(3, 255)
        pictures.append((caption, gray.astype(np.uint8)))
    truth = np.zeros((SIDE, SIDE, 3))
    for label, hue in HUES.items():
        plane = specimen.truth(view)[label][..., None]
        truth = truth * (1 - plane) + plane * np.array(hue)
    return [*pictures, ("truth", np.clip(truth * 1.4, 0, 255).astype(np.uint8))]


def main(path: Path) -> None:
    rows = []
    for confluency in (0.2, 0.6, 1.0):
        parts = []
        for caption, pixels in draw(Monolayer(confluency=confluency, mitotic=0.08, dead=0.08)):
            picture = Image.fromarray(pixels)
            words = f"{caption}, {confluency:.0%}" if caption == "truth" else caption
            pen = ImageDraw.Draw(picture)
            pen.text((6, 4), words, fill="white", stroke_width=2, stroke_fill="black", font_size=15)
            parts.append(np.asarray(picture))
        rows.append(np.hstack(parts))
    Image.fromarray(np.vstack(rows)).quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
