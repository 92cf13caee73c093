"""A measurement of your own is one function: it gets a prediction, and returns a number (and its doubt).

It is named in my_rules.yaml. Try it: acq-isl run examples/my_rules.yaml --sim
"""

from __future__ import annotations

import math

from skimage.measure import label, regionprops

from acq_isl.stack import Prediction


def round_cells(prediction: Prediction) -> tuple[float, float]:
    """Number of nuclei that are about round, as dying cells are, and one SD of it by Poisson's law."""
    nuclei = prediction.label("nuclei")  # (y, x) float32, 0 is background, 1 the bright end of training
    least_px = 10.0 / prediction.info.pixel_size_um**2  # 10 um2
    found = [region for region in regionprops(label(nuclei > 0.15)) if region.area >= least_px]
    count = sum(region.eccentricity < 0.8 for region in found)
    return float(count), math.sqrt(count)
