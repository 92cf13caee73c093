"""Traps that others fell into, each looked for by itself: runtimes that answer wrongly and say nothing."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from acq_isl.cli.gpu_kit.card import Card
from acq_isl.cli.gpu_kit.steps import NotApplicable, Note, Wrong
from acq_isl.engines.agreement import as_bytes, compare, inverse_contrasts, sample_tiles
from acq_isl.engines.onnx_network import OnnxNetwork
from acq_isl.engines.parity import LIMITS
from acq_isl.engines.tensorrt.api import PACKAGES, Flavour, FlavourName, default_targets, is_before_ampere
from acq_isl.engines.tensorrt.build import BuiltPlan, build
from acq_isl.engines.tensorrt.cuda import Device, GpuInfo
from acq_isl.engines.tensorrt.engine import TensorRTEngine, kernels_name
from acq_isl.engines.tensorrt.options import BuildOptions
from acq_isl.engines.tensorrt.plan_cache import Precision
from acq_isl.engines.tensorrt.program import Program
from acq_isl.engines.tensorrt.raw import build_raw, run_raw
from acq_isl.stack import Float32Image

_MIB = 2**20
_LEAST_WEIGHTS = _MIB  # below, what else is in a plan hides what its weights take
_LEAST_SAVED = 0.25  # of the weights in fp32; half of them is what fp16 saves
_CLOSE = 1e-3
_SKUS = ("NVIDIA GeForce RTX 4060", "NVIDIA GeForce RTX 4090")  # both sm89


def need(card: Card, name: FlavourName) -> Flavour:
    """TensorRT in this flavour; NotApplicable where it is not installed."""
    flavour = card.flavour(name)
    if flavour is None:
        raise NotApplicable(f'{PACKAGES[name]} is not installed: pip install "acq-isl[{name}]"')
    return flavour


def build_plan(
    card: Card, flavour: Flavour, precision: Precision, gpu: GpuInfo | None, targets: tuple[str, ...] = ()
) -> BuiltPlan:
    """The plan of the card's model; without a GPU only portable ones can be built, else NeedsCard."""
    if not flavour.portable and gpu is None:
        with card.device() as device:
            gpu = device.info
    options = BuildOptions(_name(flavour), precision, targets=targets, field_px=card.field_px)
    return build(card.file(), options, store=card.store, gpu=gpu, flavour=flavour)


def _name(flavour: Flavour) -> FlavourName:
    return "rtx" if flavour.portable else "tensorrt"


def open_engine(
    card: Card, flavour: Flavour, device: Device, precision: Precision = "fp16", *, graphs: bool = True
) -> TensorRTEngine:
    """The card's model on a GPU, which the engine owns from then on."""
    options = BuildOptions(_name(flavour), precision, field_px=card.field_px)
    flavour = replace(flavour, graphs=graphs)
    return TensorRTEngine(card.file(), options, store=card.store, device=device, flavour=flavour, gate="warn")


def check_fp16_is_fp16(card: Card, note: Note, name: FlavourName) -> str:
    """TensorRT 11 has no fp16 flag: code that sets it where it is there leaves an fp32 engine, silently."""
    flavour = need(card, name)
    halves, full = (build_plan(card, flavour, precision, None) for precision in ("fp16", "fp32"))
    weights = _weight_bytes(card.file().content)
    saved = len(full.content) - len(halves.content)
    for title, value in (("fp16", len(halves.content)), ("fp32", len(full.content)), ("weights", weights)):
        note(f"{title}, MiB", round(value / _MIB, 3))
    if weights >= _LEAST_WEIGHTS and saved < _LEAST_SAVED * weights:
        raise Wrong(
            f"the fp16 plan is only {saved / _MIB:.2f} MiB smaller than the fp32 plan, "
            f"of weights of {weights / _MIB:.2f} MiB: its weights are not fp16"
        )
    with card.device():
        program = Program(flavour, halves.content, card.file().info.manifest)
        with closing(program):
            kinds = {port.name: str(port.dtype) for port in program.ports if not port.is_input}
            counts = _types_of_convolutions(program.layers())
    note("outputs", ", ".join(f"{port} {kind}" for port, kind in kinds.items()))
    note("convolutions by type", ", ".join(f"{n} {kind}" for kind, n in counts.items()) or "not told")
    if kinds["mean"] != "float16":
        raise Wrong(f"the plan gives its images as {kinds['mean']}, so it was not built as fp16")
    if counts and not counts.get("fp16"):
        raise Wrong("no convolution of the engine computes in fp16")
    return f"images come as float16, the plan is {saved / _MIB:.2f} MiB smaller than in fp32"


def _weight_bytes(content: bytes) -> int:
    weights = onnx.load_from_string(content).graph.initializer
    return sum(numpy_helper.to_array(w).nbytes for w in weights if w.data_type == TensorProto.FLOAT)


def _types_of_convolutions(layers: str) -> dict[str, int]:
    """How many convolutions give which type, as far as TensorRT tells; names of types differ by version."""
    counts: dict[str, int] = {}
    try:
        listed = json.loads(layers)["Layers"]
    except (ValueError, KeyError, TypeError):
        return counts
    for layer in listed:
        if not isinstance(layer, dict) or "conv" not in str(layer.get("LayerType", "")).lower():
            continue  # names only, where the plan tells no more
        words = str([output.get("Format/Datatype", output.get("Datatype")) for output in layer["Outputs"]])
        words = words.lower()
        half = any(word in words for word in ("half", "fp16", "float16"))
        kind = "fp16" if half else "fp32" if "fp32" in words or "float" in words else words
        counts[kind] = counts.get(kind, 0) + 1
    return counts


def check_reductions(card: Card, note: Note, name: FlavourName) -> str:
    """TensorRT 11.2 miscompiles reductions that it fuses all the way from a graph's input to its output."""
    flavour = need(card, name)
    for scalars in (False, True):
        plan = build_raw(flavour, _reduction(scalars))
        note(f"plan {'with' if scalars else 'without'} the scalars as outputs, KiB", round(len(plan) / 1024))
    values = np.random.default_rng(0).normal(3, 2, _REDUCED).astype(np.float32)
    wanted = _reduced(values)
    with card.device() as device:
        for scalars in (False, True):
            shapes = {k: v.shape for k, v in wanted.items() if scalars or k == "normal"}
            plan = build_raw(flavour, _reduction(scalars))
            found = run_raw(flavour, plan, device, {"x": values}, shapes)
            for output, got in found.items():
                off = _relative(got, wanted[output])
                note(f"{output}{', scalars out' if scalars else ''}: off by", f"{off:.2g}")
                if not off <= _CLOSE:
                    raise Wrong(
                        f"{output} is off by {off:.2g} {'with' if scalars else 'without'} the scalars as "
                        f"outputs: {flavour.name} {flavour.version} computes this reduction wrongly"
                    )
    return "mean, variance and what is divided by them are right"


_REDUCED = (2, 8, 64, 64)


def _reduction(scalars: bool) -> bytes:
    """(x - mean) / SD over all of each image, and mean and variance as outputs, too."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        node("Sub", ["x", "mean"], ["centred"]),
        node("Mul", ["centred", "centred"], ["squares"]),
        node("ReduceMean", ["squares", "axes"], ["variance"], keepdims=1),
        node("Sqrt", ["variance"], ["sd"]),
        node("Div", ["centred", "sd"], ["normal"]),
    ]
    small = (_REDUCED[0], 1, 1, 1)
    shapes = {"normal": _REDUCED, **({"mean": small, "variance": small} if scalars else {})}
    outputs = [value(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    axes = numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes")
    graph = helper.make_graph(nodes, "reduction", [value("x", TensorProto.FLOAT, _REDUCED)], outputs, [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def _reduced(x: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
    exact = x.astype(np.float64)
    mean = exact.mean(axis=(1, 2, 3), keepdims=True)
    variance = exact.var(axis=(1, 2, 3), keepdims=True)
    return {"normal": (exact - mean) / np.sqrt(variance), "mean": mean, "variance": variance}


def _relative(got: NDArray[np.float32], wanted: NDArray[np.float64]) -> float:
    """Largest difference as a share of the largest value; infinite where nothing was written."""
    off = np.nan_to_num(np.abs(got - wanted), nan=np.inf).max()
    return float(off / np.abs(wanted).max())


def check_graph(card: Card, note: Note, name: FlavourName) -> str:
    """A graph captured while another GPU is selected is empty: it runs, and writes nothing."""
    flavour = need(card, name)
    with card.device() as first:
        count = first.count
        note("GPUs", float(count))
        tiles, wanted = _asked(card)
        engine = open_engine(card, flavour, card.device(count - 1))
        with engine:
            first.make_current()  # as somebody else's code does between loading and predicting
            off = _off(card, wanted, engine.network.run(*tiles))
            note("off from ONNX Runtime, RMS", f"{off:.2g}")
    if not off <= LIMITS["fp16"]:
        raise Wrong(f"with another GPU selected the answer is off by {off:.2g} RMS")
    if count == 1:
        return "the captured graph writes every output; a wrong GPU cannot be selected with one card"
    return f"loaded on GPU {count - 1}, run with GPU 0 selected: the answer is right"


def check_kernels(card: Card, note: Note, name: FlavourName) -> str:
    """Kernels that RTX compiled fit one model of GPU and one driver; others must not be given them."""
    flavour = need(card, name)
    if not flavour.has_runtime_cache:
        raise NotApplicable(f"{flavour.name} compiles all kernels into the plan, which names its GPU")
    machines = [GpuInfo(sku, "sm89", 1, driver) for sku in _SKUS for driver in (12080, 13000)]
    names = {kernels_name("0" * 64, gpu) for gpu in machines}
    note("two models of GPU with two drivers", f"{len(names)} files")
    if len(names) < len(machines):
        raise Wrong("GPUs or drivers that need kernels of their own share a file")
    for times in ("first", "second"):
        with open_engine(card, flavour, card.device()) as engine:
            kept = engine.network.kept_kernels
            note(f"kernels kept, {times} start", "used" if kept else "none")
    if not kept:
        raise Wrong("kernels compiled by the first start were not taken by the second one")
    return "kept by model of GPU and driver, and taken again"


def check_shapes(card: Card, note: Note, name: FlavourName) -> str:
    """Lazy specialisation swaps kernels while stacks run, and graphs captured before then compute wrongly."""
    flavour = need(card, name)
    if not flavour.native_graphs:
        raise NotApplicable(f"{flavour.name} compiles nothing for single shapes after the plan is built")
    step, least = card.file().info.manifest.size_step_px, card.file().info.manifest.least_side_px
    sides = (least, least + step, least)
    with open_engine(card, flavour, card.device()) as engine:
        if not engine.network.specialises_early:
            raise Wrong("kernels are specialised lazily although graphs are captured")
        for turn in range(2):
            for side in sides:
                tiles, wanted = _asked(card, side)
                off = _off(card, wanted, engine.network.run(*tiles))
                note(f"{side} px, turn {turn + 1}: off, RMS", f"{off:.2g}")
                if not off <= LIMITS["fp16"]:
                    raise Wrong(f"after other shapes the answer at {side} px is off by {off:.2g} RMS")
    return "specialised before capture; shapes in turn give what ONNX Runtime gives"


def check_turing(card: Card, note: Note, name: FlavourName) -> str:
    """Portable plans leave Turing out: without a target of its own such a card refuses every plan."""
    flavour = need(card, name)
    if not flavour.portable:
        raise NotApplicable(f"{flavour.name} builds for the GPU in the machine")
    if default_targets(flavour, "sm75") != ("sm75",) or default_targets(flavour, "sm89"):
        raise Wrong("a Turing card would be given a plan that leaves Turing out")
    plan = build_plan(card, flavour, "fp16", None, ("sm75",))
    note("plan for sm75, MiB", round(len(plan.content) / _MIB, 2))
    with card.device() as device:
        capability = device.info.capability
    if not is_before_ampere(capability):
        return f"a plan for sm75 builds; this card is {capability} and needs none"
    with open_engine(card, flavour, card.device()):
        return f"this {capability} takes the plan built for it"


_Asked = tuple[tuple[NDArray[np.uint8], Float32Image], tuple[Float32Image, ...]]


def _asked(card: Card, side: int | None = None) -> _Asked:
    """A tile of the model's, and what ONNX Runtime says to it."""
    file = card.file()
    counts = sample_tiles(file.info.manifest, 1, side)
    tiles = as_bytes(counts), inverse_contrasts(counts)
    with closing(OnnxNetwork(file)) as network:
        return tiles, network.run(*tiles)


def _off(card: Card, wanted: tuple[Float32Image, ...], got: tuple[Float32Image, ...]) -> float:
    return compare(wanted, got, card.file().info.manifest).rms
