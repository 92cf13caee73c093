"""Predicts a made-up field with the demo model, in a process of its own, so that its memory can be told.

Usage: python large_field.py ROWS COLUMNS

Prints as JSON the largest differences to what the network says of windows and their surroundings alone, and
the most memory that predicting took beyond the stack and the prediction.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
from types import TracebackType
from typing import Self

import numpy as np
import psutil
from numpy.typing import NDArray

from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxNetwork
from acq_isl.engines.predictor import TILE_PX, Predictor
from acq_isl.manifest import Manifest
from acq_isl.processing.normalize import inverse_contrast
from acq_isl.processing.tiling import TileRule, plan_tiles
from acq_isl.sim.specimen.sensor import Sensor
from acq_isl.sim.specimen.synthetic import SyntheticSpecimen
from acq_isl.sim.view import View
from acq_isl.stack import Prediction, StackInfo, StackKey, ZStack

MOTIF_PX, WINDOW_PX = 512, 128


def culture(shape: tuple[int, int]) -> NDArray[np.uint16]:
    """Neurons that repeat, mirrored, under light that falls off towards a corner: no two places are alike."""
    specimen = SyntheticSpecimen(seed=3, sensor=Sensor(5))
    views = [View(160.0, 0.0, 1.5 * (k - 6), "Phase", 0.3, (MOTIF_PX, MOTIF_PX)) for k in range(13)]
    light = np.stack([specimen.render(view) for view in views])
    noisy = light + np.random.default_rng(0).normal(0, 0.012, light.shape)
    motif = np.clip(noisy * 40000 + 100, 0, 65535).astype(np.float32)
    rows, columns = (np.pad(np.arange(MOTIF_PX), (0, side), mode="reflect")[:side] for side in shape)
    fall = 1 - 0.2 * np.add.outer(np.linspace(0, 1, shape[0]), np.linspace(0, 1, shape[1])).astype(np.float32)
    pixels = np.empty((13, *shape), np.uint16)
    for plane, one in zip(pixels, motif, strict=True):
        plane[:] = one[rows][:, columns] * fall
    return pixels


class Watch:
    """The most memory, in bytes, that this process holds meanwhile, looked up a hundred times a second."""

    def __init__(self) -> None:
        self._process, self._over = psutil.Process(), threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.before = self.most = self._process.memory_info().rss

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.01):
            self.most = max(self.most, self._process.memory_info().rss)


def alone(
    network: OnnxNetwork, pixels: NDArray[np.uint16], inv_sd: np.float32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and spread of all labels, straight from the network: no tiles, no border."""
    tile = np.ascontiguousarray(pixels[np.newaxis].astype("<u2", copy=False))
    bytes_ = tile.view(np.uint8).reshape(*tile.shape, 2)
    mean, spread, *_ = network.run(bytes_, np.array([inv_sd], np.float32))
    return mean[0], spread[0]


def windows(rules: Manifest, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """First pixels of windows where tiles meet, on the network's grid, and inside of a tile."""
    rule = TileRule(rules.min_tile_px, rules.halo_px, rules.size_step_px)
    plan = plan_tiles(shape, rule, tile_px=TILE_PX, border_px=rules.size_step_px)
    places = []
    for axis in (plan.rows, plan.columns):
        meet = [(a + axis.side + b) // 2 for a, b in itertools.pairwise(axis.starts)]
        middles = [*meet, axis.starts[-1] + axis.side // 2]
        least, most = rules.halo_px, axis.size - rules.halo_px - WINDOW_PX
        places.append([min(max(one - WINDOW_PX // 2, least), most) for one in middles])
    step = rules.size_step_px
    found = zip(*(itertools.islice(itertools.cycle(one), 6) for one in places), strict=True)
    return list(dict.fromkeys((y // step * step, x // step * step) for y, x in found))


def compared(
    network: OnnxNetwork, rules: Manifest, stack: ZStack, found: Prediction
) -> list[tuple[float, float]]:
    """Largest difference, and contrast, of windows of a prediction; of all of a small field."""
    inv_sd = inverse_contrast(stack.pixels, rules.high_pass_um / rules.pixel_size_um)
    answers = []
    if min(stack.info.shape) < 2 * rules.halo_px + WINDOW_PX:
        border, rows = rules.size_step_px, stack.info.shape[0]
        around = np.pad(stack.pixels, ((0, 0), (border, border), (border, border)), mode="reflect")
        answers.append((slice(0, rows), slice(0, rows), around, slice(border, border + rows)))
    else:
        halo = rules.halo_px
        for y, x in windows(rules, stack.info.shape):
            end = y + WINDOW_PX, x + WINDOW_PX
            around = stack.pixels[:, y - halo : end[0] + halo, x - halo : end[1] + halo]
            answers.append((slice(y, end[0]), slice(x, end[1]), around, slice(halo, halo + WINDOW_PX)))
    differences = []
    for rows_, columns, around, inside in answers:
        for whole, part in zip((found.mean, found.spread), alone(network, around, inv_sd), strict=True):
            there = whole[:, rows_, columns]
            difference = np.abs(there - part[:, inside, inside]).max()
            differences.append((float(difference), float(np.ptp(there))))
    return differences


def main(rows: int, columns: int) -> dict[str, object]:
    file = read_model("demo")
    network = OnnxNetwork(file, threads=1)
    engine, rules = Predictor(file.info, network, gate="warn"), file.info.manifest
    z_um = tuple(1.5 * z for z in range(13))
    info = StackInfo(
        StackKey(0, "A1", "Phase"), z_um, (rows, columns), 0.3, modality="phase contrast", polarity="dark"
    )
    stack = ZStack(info, culture((rows, columns)), (0.0,) * 13)
    with Watch() as watch:
        found = engine.predict(stack)
    beyond = watch.most - watch.before - found.mean.nbytes - found.spread.nbytes
    return {
        "compared": compared(network, rules, stack, found),
        "beyond_mib": beyond / 2**20,
        "border_px": found.border_px,
        "finite": bool(np.isfinite(found.mean).all() and np.isfinite(found.spread).all()),
        "shape": found.mean.shape,
        "infer_s": found.times.infer_ms / 1e3,
        "other_s": found.times.decode_ms / 1e3,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]), int(sys.argv[2]))))
