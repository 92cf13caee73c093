"""What does the reference network cost per pixel: patch by patch, exactly dense, and in a single phase?

    nice python benchmarks/dense.py [--side 256] [--base-depth 400] [--rounds 2]
    nice python benchmarks/dense.py --side 1024 --rounds 1        # memory and time of a whole field
    nice python benchmarks/dense.py --side 96 --base-depth 48 --patches 16 --rounds 1      # quick, for tests

All run the same weights on the same field of 13 planes, each in a process of its own so that peak memory is
its own, in turn within each round, so that a busy machine is busy for all of them. Three run in ONNX Runtime;
the dense forms run in OpenVINO too where that is installed, in bf16 where the processor has it. The dense
forms cut the field into tiles as an engine does, and decode median, mean, spread and entropy. Patches lie 8
pixels apart, as published; as they all cost the same, only some of the field's are run, and the dense forms
are held against these.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import psutil
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from acq_isl.engines.model_file import read_model
from acq_isl.manifest import MANIFEST_KEY, Label, Manifest
from acq_isl.processing.tiling import TilePlan, TileRule, blend, cut, plan_tiles
from acq_isl.stack import Float32Image

if TYPE_CHECKING:
    from acq_isl.training.reference.dense import DenseSpec, Form
    from doubles.reference_network import ReferenceNetwork

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # the network in torch is a double

STRIDE_PX = 16  # of the network's coarsest tower
PLANES = 13
HEADS = ("MAXPROJECT/DAPI_CONFOCAL", "MAXPROJECT/MAP2_CONFOCAL", "MAXPROJECT/NFH_CONFOCAL")
PATCHES_PER_BATCH = 4
FORMS: dict[str, Form] = {"exact dense": "exact", "single phase": "single phase"}
PATCHES = "patch by patch"
Infer = Callable[[NDArray[np.uint16]], Float32Image]
"""Predicted means, (tile, label, h, w), of (tile, z, h, w) counts."""


@dataclass(frozen=True, slots=True)
class Job:
    """One way to predict a field: a tile answers from ``first_px`` inside its corner; all patches or some."""

    model: Path
    first_px: int
    side: int
    threads: int
    patches: int | None = None
    runtime: str = "onnxruntime"

    @property
    def rules(self) -> Manifest:
        return read_model(self.model).info.manifest


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


def onnx_runtime(job: Job) -> Infer:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    # The default arena grows in powers of two, and planning ahead allocates all once more beside what the
    # first run left there: twice the memory for the same work.
    options.enable_mem_pattern = False
    provider = ("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})
    session = onnxruntime.InferenceSession(str(job.model), options, providers=[provider])

    def infer(tiles: NDArray[np.uint16]) -> Float32Image:
        (mean, *_) = session.run(None, {"stack": as_bytes(tiles), "inv_sd": np.ones(len(tiles), np.float32)})
        return np.asarray(mean)

    return infer


def openvino(job: Job) -> Infer:
    from acq_isl.engines.openvino.engine import OpenVinoNetwork

    network = OpenVinoNetwork(read_model(job.model), threads=job.threads)
    return lambda tiles: network.run(as_bytes(tiles), np.ones(len(tiles), np.float32))[0]


def as_bytes(tiles: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return tiles.astype("<u2", copy=False).view(np.uint8).reshape(*tiles.shape, 2)


def work(job: Job) -> Result:
    """Predict the field; runs in a process of its own."""
    pixels = field(job.side)
    infer = {"onnxruntime": onnx_runtime, "openvino": openvino}[job.runtime](job)
    # Compiling for a shape is no part of what a pixel costs.
    shape = plan(job, pixels).tile_shape if job.patches is None else (job.rules.min_tile_px,) * 2
    infer(np.zeros((1 if job.patches is None else PATCHES_PER_BATCH, PLANES, *shape), np.uint16))
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    if job.patches is None:
        mean, places, count = dense(job, infer, pixels), (), job.side**2
    else:
        mean, places = patchwise(job, infer, pixels)
        count = len(mean) * 64
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    return Result(cpu_s, wall_s, count, peak_bytes(), mean, places)


def plan(job: Job, pixels: NDArray[np.uint16]) -> TilePlan:
    """Tiles whose patches' grid starts at the field's corner."""
    rules = job.rules
    border = rules.halo_px + (job.first_px - rules.halo_px) % rules.size_step_px
    rule = TileRule(rules.min_tile_px, rules.halo_px, rules.size_step_px)
    return plan_tiles(pixels.shape[1:], rule, tile_px=rules.max_tile_px, border_px=border)


def dense(job: Job, infer: Infer, pixels: NDArray[np.uint16]) -> Float32Image:
    """Mean of every label, (label, y, x), tile by tile."""
    tiles = plan(job, pixels)
    out = np.zeros((len(HEADS), *pixels.shape[1:]), np.float32)
    for (tile,) in tiles.batches(1):
        blend(out, infer(cut(pixels, tiles, (tile,)))[0], tiles, tile)
    return out


def patchwise(
    job: Job, infer: Infer, pixels: NDArray[np.uint16]
) -> tuple[Float32Image, tuple[tuple[int, int], ...]]:
    """Mean of every label in some patches, (patch, label, 8, 8), and the corners of these."""
    margin = job.first_px
    corners = range(0, job.side - 7, 8)
    places = tuple((row, column) for row in corners for column in corners)
    chosen = np.random.default_rng(1).choice(len(places), min(job.patches or 0, len(places)), replace=False)
    places = tuple(places[index] for index in sorted(chosen))
    padded = np.pad(pixels, ((0, 0), (margin, 2 * margin), (margin, 2 * margin)), mode="reflect")
    side, found = job.rules.min_tile_px, []
    for first in range(0, len(places), PATCHES_PER_BATCH):
        some = places[first : first + PATCHES_PER_BATCH]
        batch = np.stack([padded[:, row : row + side, column : column + side] for row, column in some])
        found.append(infer(batch)[..., margin : margin + 8, margin : margin + 8])
    return np.concatenate(found), places


def peak_bytes() -> int:
    """Largest memory this process ever had."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def jobs(folder: Path, base_depth: int, side: int, threads: int, patches: int) -> dict[str, Job]:
    # Here and not above: the processes that are measured have no need of torch.
    import torch

    from acq_isl.training.reference.dense import DenseSpec, build_dense
    from acq_isl.training.reference.network import BORDER_PX, ReferenceConfig
    from doubles.reference_network import ReferenceNetwork

    torch.manual_seed(0)
    network = ReferenceNetwork(ReferenceConfig(base_depth, 26, HEADS))
    settle(network)
    variables = {name: value.numpy() for name, value in network.variables()}
    specs = {name: DenseSpec(HEADS, PLANES, form) for name, form in FORMS.items()}
    paths = {name: folder / f"{spec.form}.onnx" for name, spec in specs.items()}
    for name, spec in specs.items():
        model = build_dense(variables, base_depth, spec, {MANIFEST_KEY: manifest(spec).model_dump_json()})
        paths[name].write_bytes(model.SerializeToString())
    # On a single patch the single-phase graph is the published network and nothing else.
    first = {name: spec.crop_px + BORDER_PX for name, spec in specs.items()}
    found = {PATCHES: Job(paths["single phase"], first["single phase"], side, threads, patches)}
    found |= {name: Job(paths[name], first[name], side, threads) for name in specs}
    if importlib.util.find_spec("openvino") is not None:
        from acq_isl.engines.openvino.engine import has_bf16

        precision = "bf16" if has_bf16() else "fp32"
        for name in specs:
            way = f"{name}, openvino {precision}"
            found[way] = Job(paths[name], first[name], side, threads, runtime="openvino")
    return found


def manifest(spec: DenseSpec) -> Manifest:
    """Enough for an engine to run the file."""
    labels = tuple(Label(name=head.rpartition("/")[2], marker="none") for head in spec.heads)
    return Manifest(
        name="benchmark", version="1", licence="none", description="random weights",
        modality="phase contrast", polarity="unknown", pixel_size_um=0.3,
        z_offsets_um=tuple(float(plane - PLANES // 2) for plane in range(PLANES)), high_pass_um=0.0,
        labels=labels, min_tile_px=spec.min_tile_px, halo_px=spec.halo_px, size_step_px=STRIDE_PX,
        max_tile_px=spec.max_tile_px, blank_px=spec.halo_px, trained_on="nothing",
    )  # fmt: skip


def settle(network: ReferenceNetwork) -> None:
    """Give batch normalisation the statistics of a patch, so that random weights keep signals in range."""
    import torch

    from acq_isl.training.reference.network import PATCH_PX

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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["ACQ_ISL_CACHE"] = str(
            folder / "cache"
        )  # compiled networks of random weights serve nobody
        made = jobs(folder, base_depth, side, threads, patches)
        for _ in range(rounds):
            for way, job in made.items():
                context = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, mp_context=context) as process:
                    results.setdefault(way, []).append(process.submit(work, job).result())
    show(
        results,
        f"base_depth {base_depth}, {PLANES} x {side} x {side}, {len(HEADS)} labels, {threads} threads",
    )


def show(results: dict[str, list[Result]], title: str) -> None:
    table = Table(title=title)
    for column in ("form", "CPU us/pixel", "fewer than patches", "CPU s/field", "peak MB", "differs by"):
        table.add_column(column, justify="left" if column == "form" else "right")
    patches = results[PATCHES]
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
            f"{difference(patches[0], runs[0], 16 if 'single phase' in name else 8):.1e}",
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
