"""A living culture over ten hours, with and without a drug: draws docs/images/specimen.png.

python examples/living_culture.py specimen.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from acq_isl.experiment.simulated import Life
from acq_isl.sim import Drug, History, SyntheticSpecimen, View

HUES = {"nuclei": (0, 110, 255), "dendrites": (0, 190, 60), "axons": (190, 0, 150), "dead": (255, 90, 0)}
HOURS = (0, 2, 5, 10)
SIDE = 240


def shown(specimen: SyntheticSpecimen, view: View) -> np.ndarray:
    """Transmitted light above the truth, (2 y, x, 3) uint8."""
    light = np.clip((specimen.render(view) - 0.28) / 0.5, 0, 1)[..., None] * np.full(3, 255)
    truth = np.zeros((*view.shape, 3))
    for label, plane in specimen.truth(view).items():
        # Each over those before, so that the dead keep their colour.
        truth = truth * (1 - plane[..., None]) + plane[..., None] * np.array(HUES[label])
    return np.vstack([light, np.clip(truth * 1.4, 0, 255)]).astype(np.uint8)


def main(path: Path) -> None:
    life = Life(death_rate_per_h=0.02, drift_um_h=4, growth_um_h=15, drug_per_h=0.6)
    specimen = SyntheticSpecimen(3, life=life)
    drugged = History(drugs=(Drug(2 * 3600, 1.0),))
    cases = [(hour, History()) for hour in HOURS] + [(HOURS[-1], drugged)]
    pictures = []
    for hour, history in cases:
        view = View(134.0, 168.0, 0.0, "Phase", 0.3, (SIDE, SIDE), time_s=hour * 3600, history=history)
        picture = Image.fromarray(shown(specimen, view))
        words = f"{hour} h" + (", drug since 2 h" if history.drugs else "")
        pen = ImageDraw.Draw(picture)
        pen.text((6, 4), words, fill="white", stroke_width=2, stroke_fill="black", font_size=16)
        pictures.append(np.asarray(picture))
    gap = np.full((2 * SIDE, 4, 3), 255, np.uint8)
    row = np.hstack([part for picture in pictures for part in (picture, gap)][:-1])
    Image.fromarray(row).quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
