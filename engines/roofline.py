"""How fast a model could be on a GPU: estimated from arithmetic and memory traffic, beside what was measured.

time = max(2 MAC / (e_c P), f B / (e_m BW)) + K t_launch; copies (2 planes + 4 labels) H W / PCIe beside it.
P: dense fp16 with fp32 sums, BW: memory, both from NVIDIA's data sheets. The range is from everything going
well (e_c .5, e_m .8, f 1.0, t_launch 1 us) to not so well (.25, .6, 1.5, 2.5 us); take it as +- 2x.
`PUBLISHED` is what others measured, and `error_of_published` how far the range is from it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from acq_isl.engines.model_file import ModelFile, read_model

_HALF_BYTES = 2
_RANGE = ((0.5, 0.8, 1.0, 1.0), (0.25, 0.6, 1.5, 2.5))  # e_c, e_m, f, t_launch in us: well, not so well
_HEAVY = ("Conv", "ConvTranspose")
# Operators TensorRT does not merge into the convolution before them.
_KERNELS = (*_HEAVY, "AveragePool", "MaxPool", "Resize", "Concat", "Softmax", "CumSum", "Exp", "DepthToSpace")


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card: fp16 TFLOP/s, memory TB/s, PCIe GB/s, and how its driver calls it (a pattern)."""

    name: str
    tflops: float
    tbytes: float
    pcie: float
    called: str


GPUS = (
    Gpu("RTX 3090", 71, 0.94, 25, "RTX 3090(?! Ti)"),
    Gpu("RTX 4090", 165, 1.01, 25, "RTX 4090(?! (D|Laptop))"),
    Gpu("RTX A6000", 155, 0.77, 25, "RTX A6000"),
    Gpu("RTX 6000 Ada", 364, 0.96, 25, "RTX 6000 Ada"),
    Gpu("A100 80G", 312, 2.0, 25, "A100.*80GB"),
    Gpu("H100 PCIe", 756, 2.0, 50, "H100 PCIe"),
    Gpu("H100 SXM", 989, 3.35, 50, "H100 80GB HBM3"),
)


def find_gpu(device: str) -> Gpu | None:
    """The card of this name in the list, if it is there."""
    return next((gpu for gpu in GPUS if re.search(gpu.called, device)), None)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one card took for one field in fp16."""

    device: str  # as the engine calls itself; holds the card's name
    side_px: int
    compute_ms: float
    copies_ms: float


@dataclass(frozen=True, slots=True)
class Work:
    """What one field costs."""

    macs: int  # multiplications with addition, of convolutions
    traffic_bytes: int  # activations that convolutions read and write, in fp16
    kernels: int  # launches
    copied_bytes: int  # up and down


def work(model: ModelFile, side: int) -> Work:
    """Count what a model does with one field of ``side`` x ``side`` pixels."""
    graph = _at_size(model.content, side).graph
    sides = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    weights = {weight.name: tuple(weight.dims) for weight in graph.initializer}
    macs = traffic = 0
    for node in graph.node:
        if node.op_type in _HEAVY:
            read, written = prod(sides[node.input[0]]), prod(sides[node.output[0]])
            places = read if node.op_type == "ConvTranspose" else written
            macs += places * prod(weights[node.input[1]][1:])
            traffic += _HALF_BYTES * (read + written)
    manifest = model.info.manifest
    per_px = 2 * manifest.planes + 2 * _HALF_BYTES * len(manifest.labels)
    return Work(macs, traffic, sum(node.op_type in _KERNELS for node in graph.node), per_px * side * side)


def _at_size(content: bytes, side: int) -> onnx.ModelProto:
    """The graph with every size known: ONNX Runtime folds all arithmetic on shapes."""
    model = onnx.load_from_string(content)
    for port in (*model.graph.input, *model.graph.output):
        for place, dim in enumerate(port.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                dim.dim_value = 1 if place == 0 else side
    del model.graph.value_info[:]
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = onnx.load(options.optimized_model_filepath)
    return onnx.shape_inference.infer_shapes(folded, data_prop=True)


def estimate_ms(cost: Work, gpu: Gpu) -> tuple[float, float, float]:
    """Shortest and longest time on the GPU, and the copies, in milliseconds."""
    times = []
    for compute, memory, extra, launch_us in _RANGE:
        arithmetic_s = 2 * cost.macs / (compute * gpu.tflops * 1e12)
        traffic_s = extra * cost.traffic_bytes / (memory * gpu.tbytes * 1e12)
        times.append(max(arithmetic_s, traffic_s) * 1e3 + cost.kernels * launch_us * 1e-3)
    return times[0], times[1], cost.copied_bytes / (gpu.pcie * 1e9) * 1e3


def from_bench(rows: Sequence[Mapping[str, Any]], model: str) -> list[Measured]:
    """What TensorRT took for a model in fp16, of rows as ``acq-isl bench --json`` prints them."""
    return [
        Measured(
            device=row["device"],
            side_px=row["side_px"],
            compute_ms=row["shares_ms"]["compute"],
            copies_ms=row["shares_ms"]["upload"] + row["shares_ms"]["download"],
        )
        for row in rows
        if row["model"] == model and row["backend"] == "tensorrt fp16" and row["shares_ms"]
    ]


@dataclass(frozen=True, slots=True)
class Published:
    """Arithmetic that somebody measured of a U-Net in fp16, and the peak of the card, in TFLOP/s."""

    what: str
    peak: float
    reached: float

    @property
    def efficiency(self) -> float:
        """Share of the peak: what e_c stands for."""
        return self.reached / self.peak


PUBLISHED = (
    # 44 and 46 % of the peak, as published with the numbers; arithmetic bounds 64 channels and more.
    Published("U-Net of 64 channels, RTX 2080 Ti", 47.8 / 0.44, 47.8),
    Published("U-Net of 64 channels, RTX 3060 Laptop", 23.7 / 0.46, 23.7),
)


def error_of_published(published: Published) -> tuple[float, float]:
    """By what factor the shortest and the longest estimate differ from what was measured; 1 is right."""
    return published.efficiency / _RANGE[0][0], published.efficiency / _RANGE[1][0]


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown tables of estimates for all GPUs, with what was measured on this one; empty without a GPU."""
    tables = []
    for model in dict.fromkeys(row["model"] for row in rows):
        measured = from_bench(rows, model)
        if measured:
            tables += [*table(read_model(model), [one.side_px for one in measured], measured), ""]
    return "\n".join(tables)


def table(model: ModelFile, sides: Sequence[int], measured: Sequence[Measured] = ()) -> list[str]:
    """Lines of Markdown: every card's estimate, and a column that is empty where nothing was measured."""
    costs = {side: work(model, side) for side in sides}
    lines = [
        f"{model.info.manifest.name} {model.info.manifest.version}: "
        + "; ".join(
            f"{side} px: {c.macs / side**2 / 1e3:.1f} kMAC per pixel, {c.traffic_bytes / 1e9:.2f} GB, "
            f"{c.kernels} kernels"
            for side, c in costs.items()
        ),
        "",
        "| GPU | " + " | ".join(f"{s} px, ESTIMATE, ms | {s} px, measured, ms" for s in sides) + " |",
        "|---" * (1 + 2 * len(sides)) + "|",
    ]
    for gpu in GPUS:
        own = {one.side_px: one for one in measured if re.search(gpu.called, one.device)}
        lines.append(_row(gpu.name, [(_estimate(cost, gpu), own.get(side)) for side, cost in costs.items()]))
    for device in dict.fromkeys(one.device for one in measured):
        if not any(re.search(gpu.called, device) for gpu in GPUS):
            own = {one.side_px: one for one in measured if one.device == device}
            lines.append(_row(device, [("none: not in the list", own.get(side)) for side in costs]))
    return lines


def _row(name: str, cells: list[tuple[str, Measured | None]]) -> str:
    texts = (f"{estimate} | {_measured(found)}" for estimate, found in cells)
    return f"| {name} | {' | '.join(texts)} |"


def _estimate(cost: Work, gpu: Gpu) -> str:
    low, high, copies = estimate_ms(cost, gpu)
    return f"{_figures(low)} to {_figures(high)} (+ {_figures(copies)} copies)"


def _measured(found: Measured | None) -> str:
    return f"{_figures(found.compute_ms)} (+ {_figures(found.copies_ms)} copies)" if found else ""


def _figures(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
