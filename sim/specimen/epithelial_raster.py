"""An epithelial-like culture becomes optical path and label images on the specimen's own pixel grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

from acq_isl.sim.specimen.cells import LAYER_HEIGHTS_UM, Singles
from acq_isl.sim.specimen.epithelium import HARMONICS, AdherentCell, Monolayer, Patch
from acq_isl.sim.specimen.raster import (
    PAD_PX,
    Raster,
    Window,
    blur_noise,
    brighten,
    clip_patch,
    draw_beads,
    draw_noise,
    place_patch,
    resolve,
)
from acq_isl.stack import Float32Image

_LAYERS = len(LAYER_HEIGHTS_UM)
_LAYER_UM = LAYER_HEIGHTS_UM[1] - LAYER_HEIGHTS_UM[0]
_FAR = np.float32(9.0)
_INSIDE = np.float32(1.0)
_AROUND = np.float32(1.12)  # of a nucleus is its cell's
_WIDEST = 1.5  # outline relative to the ellipse
_LABELS = ("nuclei", "cells", "dead")


@dataclass(frozen=True, slots=True, eq=False)
class _Ground:
    """Who covers which pixel, all (y, x).

    ``own`` is the distance from the owner's middle in units of its radius, beyond 1 where nobody is,
    ``other`` that from the next cell's; ``nucleus`` is in units of the owner's nucleus.
    """

    own: Float32Image
    other: Float32Image
    nucleus: Float32Image
    owner: NDArray[np.int32]

    @classmethod
    def divide(cls, cells: Sequence[AdherentCell], window: Window) -> _Ground:
        shape = (window.rows, window.columns)
        own, other, nucleus = (np.full(shape, _FAR, np.float32) for _ in range(3))
        ground = cls(own, other, nucleus, np.zeros(shape, np.int32))
        for number, cell in enumerate(cells):
            ground._claim(number, cell, window)
        return ground

    def _claim(self, number: int, cell: AdherentCell, window: Window) -> None:
        """A pixel is its nearest cell's, in units of their radii; nobody else's where its nucleus lies."""
        top, left, dy, dx = place_patch(cell.x, cell.y, _WIDEST * max(cell.long, cell.short), window)
        there = clip_patch(top, left, len(dy), len(dx), self.own.shape)
        if there is None:
            return
        target, source = there
        y, x = dy[source[0], None].astype(np.float32), dx[None, source[1]].astype(np.float32)
        cosine, sine = np.float32(np.cos(cell.angle)), np.float32(np.sin(cell.angle))
        along, across = cosine * x + sine * y, cosine * y - sine * x
        turn = np.arctan2(across / np.float32(cell.short), along / np.float32(cell.long))
        half = len(HARMONICS)
        outline = 1 + sum(
            np.float32(cell.wobble[k]) * np.cos(n * turn + np.float32(cell.wobble[half + k]))
            for k, n in enumerate(HARMONICS)
        )
        away = np.hypot(along / np.float32(cell.long), across / np.float32(cell.short)) / outline
        inner = np.hypot(along / np.float32(cell.nucleus_long), across / np.float32(cell.nucleus_short))
        if cell.is_round:
            away -= _INSIDE * (away < 1)
        else:
            away = np.where(inner < _AROUND, inner - 2 * _INSIDE, away)
        before = self.own[target].copy()
        nearer = away < before
        self.other[target] = np.where(nearer, before, np.minimum(self.other[target], away))
        for image, values in ((self.own, away), (self.nucleus, inner)):
            np.copyto(image[target], values, where=nearer)
        self.owner[target][nearer] = number


def draw_epithelium(patches: Sequence[Patch], window: Window, seed: int, culture: Monolayer) -> Raster:
    """Draw all patches that reach into a window. Neighbouring windows agree where they overlap."""
    big = window.grown(PAD_PX)
    cells = [cell for patch in patches for cell in patch.cells]
    path = np.zeros((_LAYERS, big.rows, big.columns), np.float32)
    nuclei, area, dead = (np.zeros(path.shape[1:], np.float32) for _ in range(3))
    if cells:
        ground = _Ground.divide(cells, big)
        _draw_bodies(cells, ground, (big, seed, culture), path, (nuclei, area))
        for cell in cells:
            if cell.divides:
                _draw_chromatin(cell, big, path, nuclei)
    bodies = np.zeros_like(dead)  # of the dead, which cover no glass
    for patch in patches:
        draw_beads(patch.beads, big, path, (nuclei, bodies, dead))
    carpet = draw_noise(big, (seed, 4))
    path[0] += 0.0012 * culture.debris * blur_noise(carpet, 2.5)
    cut = (slice(PAD_PX, -PAD_PX), slice(PAD_PX, -PAD_PX))
    labels = {name: resolve(image, cut) for name, image in zip(_LABELS, (nuclei, area, dead), strict=True)}
    # No edge of a cell is sharper than the light that shows it.
    soft = ndimage.gaussian_filter(path, (0, 0.7, 0.7))[(slice(None), *cut)]
    return Raster(np.ascontiguousarray(soft), labels)


def _draw_bodies(
    cells: Sequence[AdherentCell],
    ground: _Ground,
    plane: tuple[Window, int, Monolayer],
    path: Float32Image,
    labels: tuple[Float32Image, Float32Image],
) -> None:
    """Spread cells: highest over the nucleus, thin towards the edge; round ones: balls."""
    window, seed, culture = plane

    def of(name: str) -> Float32Image:
        values: Singles = np.array([getattr(cell, name) for cell in cells], np.float32)
        image: Float32Image = values[ground.owner]
        return image

    covered = ground.own < 1
    rounds, divides, radius = of("is_round") > 0, of("divides") > 0, (of("long") + of("short")) / 2
    free, shared = 1 - ground.own, ground.other - ground.own
    edge_um = np.where(covered, radius * np.minimum(free, shared / 2), 0).clip(0)
    noise = draw_noise(window, (seed, 3))
    rise = 1 - np.exp(-edge_um / np.float32(0.9))
    dome = np.exp(-((ground.nucleus / np.float32(1.7)) ** 2))
    lamella = of("lamella") * (1 + 0.25 * blur_noise(noise, 8.0))
    spread = rise * (lamella + (of("thickness") - lamella).clip(0) * dome)
    ball = of("thickness") * np.sqrt((1 - (ground.own + _INSIDE) ** 2).clip(0))
    height = np.where(covered, np.where(rounds, ball, spread), 0).clip(0)
    nucleus = covered & (ground.nucleus < 1) & ~divides
    chord = np.where(nucleus, 0.6 * height * np.sqrt((1 - ground.nucleus**2).clip(0)), 0)
    grain = 0.10 * blur_noise(noise, 1.3) + 0.10 * blur_noise(noise, 2.6)
    lumps = (blur_noise(draw_noise(window, (seed, 5)), 1.6) - 1.5).clip(0) * np.exp(
        -((ground.nucleus - 1.7) ** 2)
    )
    grain = culture.granules * np.where(nucleus, 0.3 * grain, grain + 0.4 * lumps)
    total = of("index") * height * (1 + grain) + of("nucleus_index") * chord
    rim = np.exp(-(((ground.nucleus - 1) * of("nucleus_short") / np.float32(0.45)) ** 2))
    total += np.where(covered & ~rounds, of("rim") * rim, 0)
    ruffle = np.exp(-((radius * free / np.float32(1.3)) ** 2)) * (free < shared)
    total += np.where(covered, 0.03 * culture.index * ruffle * blur_noise(noise, 6.0).clip(0), 0)
    share = _slices(height, culture.height)
    for layer in range(_LAYERS):
        path[layer] += total * share[layer]
    nuclei, area = labels
    np.copyto(area, special.expit((radius * free).clip(-20, 20) / np.float32(0.25)))
    inside = special.expit(((1 - ground.nucleus) * of("nucleus_short")).clip(-20, 20) / np.float32(0.25))
    np.copyto(nuclei, np.where(nucleus, of("dna") * (1 + 0.5 * grain) * inside, 0))


def _slices(height: Float32Image, scale: float) -> list[Float32Image]:
    """Which share of the matter above a pixel lies in each layer, for matter that begins on the glass."""
    thick = np.float32(_LAYER_UM * scale)
    below = [np.minimum(height, thick * (layer + 1)) for layer in range(_LAYERS - 1)]
    tops = [np.zeros_like(height), *below, height]
    some = np.maximum(height, np.float32(1e-6))
    return [(high - low) / some for low, high in itertools.pairwise(tops)]


def _draw_chromatin(cell: AdherentCell, window: Window, path: Float32Image, nuclei: Float32Image) -> None:
    """The plate of a metaphase, or the two of an anaphase, seen from the side."""
    long, thick = 0.75 * cell.long, 0.2 * cell.long
    apart = 0.45 * cell.long if cell.state == "anaphase" else 0.0
    top, left, dy, dx = place_patch(cell.x, cell.y, cell.long, window)
    there = clip_patch(top, left, len(dy), len(dx), nuclei.shape)
    if there is None:
        return
    target, source = there
    y, x = dy[source[0], None], dx[None, source[1]]
    along = np.cos(cell.angle) * x + np.sin(cell.angle) * y
    across = np.cos(cell.angle) * y - np.sin(cell.angle) * x
    for shift in {apart, -apart}:
        away = np.hypot(along / long, (across - shift) / thick)
        chord = 2 * 0.5 * long * np.sqrt((1 - away**2).clip(0))
        path[(1, *target)] += (0.9 * cell.index * chord).astype(np.float32)
        brighten(nuclei, target, cell.dna * special.expit((1 - away) * thick / 0.25))
