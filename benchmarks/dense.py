"""What does the reference network cost per pixel: patch by patch, exactly dense, and in a single phase?

    nice python benchmarks/dense.py [--side 256] [--base-depth 400] [--rounds 2]
    nice python benchmarks/dense.py --side 1024 --rounds 1        # memory and time of a whole field

All three run the same weights on the same field of 13 planes with ONNX Runtime, each in a process of its own
so that peak memory is its own, in turn within each round, so that a busy machine is busy for all of them. The
dense forms cut the field into tiles as an engine does. Patches lie 8 pixels apart, as published; as they all
cost the same, only some of the field's are run, and the dense forms are held against these.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnxruntime
import psutil
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from acq_isl.stack import Float32Image
from acq_isl.tiling import TileRule, blend, cut, plan_tiles
from acq_isl.training.dense import DenseSpec, Form, build_dense
from acq_isl.training.reference import BORDER_PX, PATCH_PX, STRIDE_PX, ReferenceConfig, ReferenceNetwork

PLANES = 13
HEADS = ("MAXPROJECT/DAPI_CONFOCAL", "MAXPROJECT/MAP2_CONFOCAL", "MAXPROJECT/NFH_CONFOCAL")
PATCHES_PER_BATCH = 4
FORMS: dict[str, Form] = {"exact dense": "exact", "single phase": "single phase"}
# The largest that stay well below 2 GB: the exact form holds four phases at a time.
TILES_PX: dict[Form, int] = {"exact": 528, "single phase": 640}


@dataclass(frozen=True, slots=True)
class Job:
    """One way to predict one field. ``patches`` is None for the dense forms."""

    model: bytes
    spec: DenseSpec
    side: int
    tile_px: int
    threads: int
    patches: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """CPU and wall seconds, pixels they bought, peak memory, and the predicted means with their places."""

    cpu_s: float
    wall_s: float
    pixels: int
    peak_bytes: int
    mean: Float32Image
    places: tuple[tuple[int, int], ...] = ()


def field(side: int) -> NDArray[np.uint16]:
    """Smooth texture with the mean and SD of the published data."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(PLANES, side, side)).astype(np.float32)
    smooth = (noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2) + np.roll(noise, (1, 1), (1, 2))) / 2
    return (65535 * np.clip(0.5 + 0.125 * smooth, 0, 1)).astype(np.uint16)


def session(job: Job) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    # The default arena grows in powers of two and keeps what it has: twice the memory for the same work.
    provider = ("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})
    return onnxruntime.InferenceSession(job.model, options, providers=[provider])


def infer(running: onnxruntime.InferenceSession, tiles: NDArray[np.uint16]) -> Float32Image:
    stack = tiles.astype("<u2", copy=False).view(np.uint8).reshape(*tiles.shape, 2)
    (mean, *_) = running.run(None, {"stack": stack, "inv_sd": np.ones(len(tiles), np.float32)})
    return np.asarray(mean)


def work(job: Job) -> Result:
    """Predict the field; runs in a process of its own."""
    pixels, running = field(job.side), session(job)
    infer(running, np.zeros((1, PLANES, job.spec.min_tile_px, job.spec.min_tile_px), np.uint16))
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    if job.patches is None:
        mean, places, count = dense(job, running, pixels), (), job.side**2
    else:
        mean, places = patchwise(job, running, pixels)
        count = len(mean) * 64
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    return Result(cpu_s, wall_s, count, peak_bytes(), mean, places)


def dense(job: Job, running: onnxruntime.InferenceSession, pixels: NDArray[np.uint16]) -> Float32Image:
    """Mean of every label, (label, y, x), tile by tile."""
    halo = job.spec.halo_px
    first = job.spec.crop_px + BORDER_PX
    border = halo + (first - halo) % STRIDE_PX  # so that the patches' grid starts at the field's corner
    plan = plan_tiles(
        pixels.shape[1:],
        TileRule(job.spec.min_tile_px, halo, STRIDE_PX),
        tile_px=job.tile_px,
        border_px=border,
    )
    out = np.zeros((len(HEADS), *pixels.shape[1:]), np.float32)
    for (tile,) in plan.batches(1):
        blend(out, infer(running, cut(pixels, plan, (tile,)))[0], plan, tile)
    return out


def patchwise(
    job: Job, running: onnxruntime.InferenceSession, pixels: NDArray[np.uint16]
) -> tuple[Float32Image, tuple[tuple[int, int], ...]]:
    """Mean of every label in some patches, (patch, label, 8, 8), and the corners of these."""
    margin = job.spec.crop_px + BORDER_PX
    corners = range(0, job.side - 7, 8)
    places = tuple((row, column) for row in corners for column in corners)
    chosen = np.random.default_rng(1).choice(len(places), min(job.patches or 0, len(places)), replace=False)
    places = tuple(places[index] for index in sorted(chosen))
    padded = np.pad(pixels, ((0, 0), (margin, 2 * margin), (margin, 2 * margin)), mode="reflect")
    side, found = job.spec.min_tile_px, []
    for first in range(0, len(places), PATCHES_PER_BATCH):
        some = places[first : first + PATCHES_PER_BATCH]
        batch = np.stack([padded[:, row : row + side, column : column + side] for row, column in some])
        found.append(infer(running, batch)[..., margin : margin + 8, margin : margin + 8])
    return np.concatenate(found), places


def peak_bytes() -> int:
    """Largest memory this process ever had."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def jobs(base_depth: int, side: int, threads: int, patches: int) -> dict[str, Job]:
    torch.manual_seed(0)
    network = ReferenceNetwork(ReferenceConfig(base_depth, 26, HEADS))
    settle(network)
    variables = {name: value.numpy() for name, value in network.variables()}

    def job(form: Form, count: int | None) -> Job:
        spec = DenseSpec(HEADS, PLANES, form)
        model = build_dense(variables, base_depth, spec).SerializeToString()
        return Job(model, spec, side, TILES_PX[form], threads, count)

    # On a single patch the single-phase graph is the published network and nothing else.
    return {"patch by patch": job("single phase", patches)} | {n: job(f, None) for n, f in FORMS.items()}


def settle(network: ReferenceNetwork) -> None:
    """Give batch normalisation the statistics of a patch, so that random weights keep signals in range."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    planes = field(PATCH_PX)[np.arange(26) // 2].astype(np.float32) / 65535
    x = np.stack([planes, np.ones_like(planes)], 1).reshape(1, -1, PATCH_PX, PATCH_PX)
    with torch.no_grad():
        network.train()(torch.from_numpy(x))


def main(
    side: int = 256,
    base_depth: int = 400,
    threads: int = 1,
    patches: int = 64,
    rounds: int = 2,
) -> None:
    results: dict[str, list[Result]] = {}
    for _ in range(rounds):
        for name, job in jobs(base_depth, side, threads, patches).items():
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as process:
                results.setdefault(name, []).append(process.submit(work, job).result())
    show(
        results,
        f"base_depth {base_depth}, {PLANES} x {side} x {side}, {len(HEADS)} labels, {threads} threads",
    )


def show(results: dict[str, list[Result]], title: str) -> None:
    table = Table(title=title)
    for column in ("form", "CPU us/pixel", "fewer than patches", "CPU s/field", "peak MB", "differs by"):
        table.add_column(column, justify="left" if column == "form" else "right")
    patches = results["patch by patch"]
    cost = [one.cpu_s / one.pixels for one in patches]
    side = results["single phase"][0].mean.shape[-1]
    for name, runs in results.items():
        own = [one.cpu_s / one.pixels for one in runs]
        fewer = statistics.median(other / one for one, other in zip(own, cost, strict=True))
        middle = statistics.median(own)
        table.add_row(
            name,
            f"{1e6 * middle:.1f}",
            f"{fewer:.1f} x",
            f"{middle * side**2:.1f}",
            f"{max(one.peak_bytes for one in runs) / 1e6:.0f}",
            f"{difference(patches[0], runs[0], 16 if name == 'single phase' else 8):.1e}",
        )
    Console(width=110).print(table)


def difference(patches: Result, other: Result, stride: int) -> float:
    """Largest difference of the means in patches whose corners are at multiples of ``stride``."""
    if other.places:
        return 0.0
    return max(
        (
            float(np.abs(other.mean[:, row : row + 8, column : column + 8] - wanted).max())
            for (row, column), wanted in zip(patches.places, patches.mean, strict=True)
            if row % stride == column % stride == 0
        ),
        default=0.0,
    )


if __name__ == "__main__":
    typer.run(main)
