"""How fast, how close and how large: what the kit measures of every engine that a machine has."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from PIL import Image

from acq_isl.bulk.run import predict_stored
from acq_isl.bulk.work import Chunk, Done, Job, Settings
from acq_isl.cli.bench import bench
from acq_isl.cli.gpu_kit.card import Card, NeedsCard
from acq_isl.cli.gpu_kit.reference import random_reference, reference_side
from acq_isl.cli.gpu_kit.steps import NotApplicable, Note, Wrong
from acq_isl.cli.gpu_kit.traps import build_plan, need, open_engine
from acq_isl.engines.agreement import as_bytes, compare, inverse_contrasts, sample_tiles
from acq_isl.engines.backend import Candidate
from acq_isl.engines.backends import find_engines
from acq_isl.engines.onnx_network import OnnxNetwork
from acq_isl.engines.parity import LIMITS
from acq_isl.engines.roofline import Gpu, estimate_ms, find_gpu, work
from acq_isl.engines.selection import sample_stack
from acq_isl.engines.tensorrt.api import FlavourName
from acq_isl.engines.tensorrt.cuda import Device
from acq_isl.engines.tensorrt.plan_cache import Precision
from acq_isl.session.summary import versions
from acq_isl.stack import Uint16Image

_MIB = 2**20
_COPIES = 20
_STACKS = 8
_WAIT_S = 30.0


def list_versions(card: Card, note: Note) -> str:
    """Everything that a number may depend on."""
    from importlib import metadata

    for name, version in versions().items():
        note(name, version)
    for name in ("openvino", "tensorrt", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "cuda-bindings", "torch"):
        try:
            note(name, metadata.version(name))
        except metadata.PackageNotFoundError:
            note(name, "not installed")
    note("processor", platform.processor() or platform.machine())
    note("cores", float(psutil.cpu_count(logical=False) or 1))
    manifest = card.file().info.manifest
    note("model", f"{manifest.name} {manifest.version}, sha256 {card.file().info.sha256}")
    return f"{manifest.name} {manifest.version} on {platform.platform()}"


def look_at_card(card: Card, note: Note) -> str:
    """Name, capability, memory and driver."""
    with card.device() as device:
        info = device.info
        free, total = device.memory_bytes()
        note("GPUs", float(device.count))
    note("capability", info.capability)
    note("driver, newest CUDA", f"{info.driver // 1000}.{info.driver % 1000 // 10}")
    note("memory, MiB", round(total / _MIB))
    note("free, MiB", round(free / _MIB))
    return f"{info.name} ({info.capability})"


def make_plan(card: Card, note: Note, name: FlavourName, precision: Precision) -> str:
    """Build the model's plan; RTX does so without a card."""
    flavour = need(card, name)
    if precision == "int8":
        from acq_isl.engines.tensorrt.int8 import stored_form

        if stored_form(card.file()) is None:
            raise NotApplicable("no int8 form was judged: acq-isl build MODEL --precision int8 --stack FILE")
    gpu = None
    try:
        with card.device() as device:
            gpu = device.info
    except NeedsCard:
        if not flavour.portable:
            raise
    built = build_plan(card, flavour, precision, gpu)
    note("built in, s", built.note.built_s)
    note("plan, MiB", round(built.note.plan_bytes / _MIB, 2))
    for what, value in built.note.agreement.items():
        note(f"rehearsed against fp32: {what}", f"{value:.3g}")
    return f"{flavour.name} {flavour.version}: {built.note.plan_bytes / _MIB:.2f} MiB"


def compare_with_reference(card: Card, note: Note, engine: str) -> str:
    """Tiles of several shapes against ONNX Runtime fp32, with NaN in every output before the first run."""
    file, manifest = card.file(), card.file().info.manifest
    candidate = _candidate(card, engine)
    least, step = manifest.least_side_px, manifest.size_step_px
    limit, worst = LIMITS.get(engine.rpartition(" ")[2], LIMITS["bf16"]), 0.0
    with candidate.load() as loaded, closing(OnnxNetwork(file)) as reference:
        for count, side in ((1, least), (1, least + 4 * step), (1, least)):
            counts = sample_tiles(manifest, count, side)
            tiles = as_bytes(counts), inverse_contrasts(counts)
            found = compare(reference.run(*tiles), loaded.network.run(*tiles), manifest)
            note(f"{side} px: RMS of the difference / SD", f"{found.rms:.2g}")
            note(f"{side} px: least Pearson", round(found.least_pearson, 6))
            if manifest.gate is not None:
                note(f"{side} px: gate's distance / limit", f"{found.distance:.2g}")
            worst = max(worst, found.rms)
    if not worst <= limit:
        raise Wrong(f"{worst:.2g} RMS off ONNX Runtime fp32, of at most {limit:g}")
    return f"{worst:.2g} RMS off ONNX Runtime fp32, of at most {limit:g}"


def _candidate(card: Card, engine: str) -> Candidate:
    """An engine of this machine; NotApplicable without its package, NeedsCard without a GPU."""
    backend = engine.partition(" ")[0]
    found = find_engines(card.file())
    if not any(each.name == engine for each in found.candidates):
        reason = next((each for each in found.unavailable if each.name == backend), None)
        if reason is not None and reason.broken:  # installed, but nothing to run it on
            card.device().close()
        raise NotApplicable(f"{reason.why}: {reason.fix}" if reason else f"{engine} is not for this machine")
    return found.named(engine)


def time_engine(card: Card, note: Note, engine: str) -> str:
    """A whole prediction, p50 and p95, at several sizes, and the share of each part of it."""
    _candidate(card, engine)
    texts = []
    for row in bench([card.model], card.sides_px, rounds=card.rounds, engines=(engine,)):
        if not row.shares_ms:
            raise Wrong(row.note)
        at = f"{row.side_px} px"
        note(f"{at}: p50, ms", round(row.p50_ms, 2))
        note(f"{at}: p95, ms", round(row.p95_ms, 2))
        note(f"{at}: megapixels a second", round(row.megapixels_per_s, 2))
        note(f"{at}: process, peak MiB", round(row.peak_mib))
        for part, took_ms in row.shares_ms.items():
            note(f"{at}: {part}, ms", round(took_ms, 3))
        texts.append(f"{row.p50_ms:.3g} ms at {at}")
    return ", ".join(texts)


def time_graphs(card: Card, note: Note, name: FlavourName) -> str:
    """The same plan with CUDA graphs and with kernels launched one by one."""
    flavour = need(card, name)
    card.device().close()
    texts = []
    for side in card.sides_px:
        stack, p50_ms = sample_stack(card.file(), side), {}
        for graphs in (False, True):
            with open_engine(card, flavour, card.device(), graphs=graphs) as engine:
                engine.rehearse(stack)
                took = [engine.rehearse(stack)[1].network_ms for _ in range(card.rounds)]
            p50_ms[graphs] = float(np.median(took))
            note(f"{side} px, {'with' if graphs else 'without'} graphs, ms", round(p50_ms[graphs], 3))
        texts.append(f"{p50_ms[False] / p50_ms[True]:.2f}x at {side} px")
    return f"with CUDA graphs {', '.join(texts)}"


def measure_memory(card: Card, note: Note, name: FlavourName) -> str:
    """The GPU's memory before an engine is loaded, with it, and after each size."""
    flavour = need(card, name)
    with card.device() as device:
        before, total = device.memory_bytes()
        with open_engine(card, flavour, card.device()) as engine:
            for side in card.sides_px:
                engine.rehearse(sample_stack(card.file(), side))
                device.make_current()
                free, _ = device.memory_bytes()
                note(f"in use after {side} px, MiB", round((before - free) / _MIB))
    return f"{(before - free) / _MIB:.0f} of {total / _MIB:.0f} MiB with buffers for every size"


def measure_bandwidth(card: Card, note: Note) -> tuple[float, float, str]:
    """TB/s within the GPU (read and written), GB/s to and from it out of page-locked memory, and its name."""
    size = card.copied_bytes
    with card.device() as device, ExitStack() as freeing:
        stream = device.stream()
        host = device.pinned(size)
        freeing.callback(device.free_pinned, host)
        addresses = [device.allocate(size) for _ in range(2)]
        for address in addresses:
            freeing.callback(device.free, address)
        copies: dict[str, Callable[[], None]] = {
            "up": lambda: device.copy_up(addresses[0], host, stream),
            "within": lambda: device.copy_within(addresses[1], addresses[0], size, stream),
            "down": lambda: device.copy_down(host, addresses[1], stream),
        }
        gbytes = {way: size / 1e9 / _copy_s(device, stream, copy) for way, copy in copies.items()}
        called = device.info.name
    note("to the GPU, GB/s", round(gbytes["up"], 2))
    note("from the GPU, GB/s", round(gbytes["down"], 2))
    note("within the GPU, read and written, GB/s", round(2 * gbytes["within"], 1))
    return 2 * gbytes["within"] / 1e3, min(gbytes["up"], gbytes["down"]), called


def _copy_s(device: Device, stream: object, copy: Callable[[], None]) -> float:
    """Seconds of one copy, by the GPU's own clock."""
    with ExitStack() as freeing:
        events = [device.event() for _ in range(2)]
        for event in events:
            freeing.callback(device.free_event, event)
        copy()
        device.record(events[0], stream)
        for _ in range(_COPIES):
            copy()
        device.record(events[1], stream)
        device.wait(events[1], _WAIT_S)
        return max(device.elapsed_ms(*events), 1e-6) / 1e3 / _COPIES


def hold_against_roofline(card: Card, note: Note, engine: str) -> str:
    """What arithmetic and the bandwidth measured here allow, beside what the engine took."""
    costs = {side: work(card.file(), side) for side in card.sides_px}
    for side, cost in costs.items():
        note(f"{side} px: GMAC", round(cost.macs / 1e9, 2))
        note(f"{side} px: activations, GB", round(cost.traffic_bytes / 1e9, 3))
    tbytes, pcie, called = measure_bandwidth(card, note)
    known = find_gpu(called)
    if known is None:
        note("fp16 peak, TFLOP/s", "not in the list of data sheets: memory alone bounds the estimate")
    gpu = Gpu(called, known.tflops if known else float("inf"), tbytes, pcie, "")
    _candidate(card, engine)
    texts = []
    for row in bench([card.model], card.sides_px, rounds=card.rounds, engines=(engine,)):
        if not row.shares_ms:
            raise Wrong(row.note)
        low, high, copies = estimate_ms(costs[row.side_px], gpu)
        took_ms = row.shares_ms["compute"]
        note(f"{row.side_px} px: estimated, ms", f"{low:.3g} to {high:.3g} (+ {copies:.2g} copies)")
        note(f"{row.side_px} px: computed, ms", round(took_ms, 3))
        texts.append(f"{took_ms / low:.1f} times the bound at {row.side_px} px")
    return f"{engine}: {', '.join(texts)}"


def time_bulk(card: Card, note: Note, engine: str) -> str:
    """Stacks from disk to predictions on disk, as `acq-isl predict` does them."""
    _candidate(card, engine)
    file, side = card.file(), card.sides_px[len(card.sides_px) // 2]
    manifest = file.info.manifest
    done_s: list[float] = []

    def watch(chunk: Chunk, done: Done) -> None:
        done_s.append(time.perf_counter())

    with TemporaryDirectory(dir=card.folder, prefix="bulk") as name:
        stacks = Path(name) / "stacks"
        stacks.mkdir()
        for number in range(_STACKS):
            _write_tiff(stacks / f"field{number}.tif", sample_stack(file, side).pixels)
        settings = Settings(
            model=f"{manifest.name} {manifest.version}", model_sha256=file.info.sha256, engine=engine,
            gate="warn", light=manifest.modality, pixel_size_um=manifest.pixel_size_um,
            z_step_um=manifest.z_step_um,
        )  # fmt: skip
        job = Job(card.model, settings, Path(name) / "out")
        summary = predict_stored(sorted(stacks.iterdir()), job, watch=watch)
    if summary.predicted != _STACKS:
        raise Wrong(
            f"{summary.predicted} of {_STACKS} stacks were predicted: {summary.refused or summary.failed}"
        )
    each_s = (done_s[-1] - done_s[0]) / (_STACKS - 1)  # the first one waits for the engine
    note("stacks", float(_STACKS))
    note(f"a stack of {side} px, ms", round(each_s * 1e3, 1))
    note("megapixels a second", round(side**2 / 1e6 / each_s, 2))
    return f"{1 / each_s:.3g} stacks of {side} px a second, reading and writing included"


def _write_tiff(path: Path, pixels: Uint16Image) -> None:
    planes = [Image.fromarray(plane) for plane in pixels]
    planes[0].save(path, save_all=True, append_images=planes[1:])


def run_reference(card: Card, note: Note, name: FlavourName, width: int) -> str:
    """The published network with random weights: the heaviest one there is, single phase, one tile."""
    flavour = need(card, name)
    path = card.folder / f"reference-{width}.onnx"
    if not path.exists():
        path.write_bytes(random_reference(width))
    reference = replace(card, model=str(path), sides_px=(reference_side(card, path),) * 3)
    note("tile, px", float(reference.sides_px[0]))
    note("ONNX, MiB", round(path.stat().st_size / _MIB, 1))
    card.device().close()
    with open_engine(reference, flavour, card.device()) as engine:
        stack = sample_stack(reference.file(), reference.sides_px[0])
        engine.rehearse(stack)
        took = [engine.rehearse(stack)[1] for _ in range(card.rounds)]
    compute_ms = float(np.median([each.network_ms for each in took]))
    note("network, p50 ms", round(compute_ms, 2))
    return f"{compute_ms:.3g} ms for a tile of {reference.sides_px[0]} px"
