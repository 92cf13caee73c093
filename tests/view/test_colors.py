"""Colours on the page for every kind of colour vision."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import resources
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import rgb2lab

from acq_isl.engines import describe
from acq_isl.engines.model_file import SHIPPED
from acq_isl.processing.display import PALETTE

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
VISIONS = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def seen(colors: list[tuple[int, ...]], vision: str) -> NDArray[np.float64]:
    """CIE Lab of colours as somebody sees them."""
    rgb = np.array(colors) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    turned = np.clip(linear @ VISIONS[vision].T, 0, 1)
    back = np.where(turned <= 0.0031308, turned * 12.92, 1.055 * turned ** (1 / 2.4) - 0.055)
    lab: NDArray[np.float64] = rgb2lab(back[None])[0]
    return lab


@pytest.mark.parametrize("vision", VISIONS)
def test_ranks_become_darker_from_best_to_last(vision: str) -> None:
    script = (resources.files("acq_isl.view") / "static" / "map.js").read_text(encoding="utf-8")
    found = re.search(r"const RANKS = (\[\[.*?\]\]);", script)
    assert found is not None
    ranks = [tuple(map(int, one)) for one in re.findall(r"\[(\d+), (\d+), (\d+)\]", found[1])]
    lightness = seen(ranks, vision)[:, 0]
    assert all(a - b > 4 for a, b in pairwise(lightness)), lightness


def hues(labels: Iterable[str]) -> list[tuple[int, ...]]:
    return [tuple(int(one[i : i + 2], 16) for i in (1, 3, 5)) for one in labels]


def least_apart(lab: NDArray[np.float64]) -> float:
    return min(float(np.linalg.norm(a - b)) for n, a in enumerate(lab) for b in lab[n + 1 :])


@pytest.mark.parametrize("vision", VISIONS)
def test_labels_are_told_apart(vision: str) -> None:
    """At least four times the difference of 2.3 that is just noticeable."""
    assert least_apart(seen(hues(PALETTE[:3]), vision)) > 4 * 2.3


@pytest.mark.parametrize("model", SHIPPED)
@pytest.mark.parametrize("vision", VISIONS)
def test_labels_of_a_shipped_model_are_told_apart_and_from_light(vision: str, model: str) -> None:
    """Laid over dim light, which they cover by half: six times the difference that is just noticeable. With
    the reddish purple and vermilion of Okabe and Ito, axons were gray as light, and dead cells dendrites."""
    light = (77, 77, 77)
    labels = hues(label.color for label in describe(model).manifest.labels)
    shown = [tuple((a + b) // 2 for a, b in zip(label, light, strict=True)) for label in labels]
    lab = seen([*shown, light], vision)
    assert least_apart(lab) > 6 * 2.3, lab
