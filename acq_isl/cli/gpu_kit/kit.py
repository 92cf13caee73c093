"""All steps of the kit in order, and the file they leave, written anew after each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from acq_isl.cli.gpu_kit import measure, traps
from acq_isl.cli.gpu_kit.card import FLAVOURS, Card
from acq_isl.cli.gpu_kit.page import write_page
from acq_isl.cli.gpu_kit.steps import Row, Step, take_all, unreached
from acq_isl.engines.tensorrt.api import PACKAGES, FlavourName
from acq_isl.engines.tensorrt.plan_cache import Precision

_REFERENCE_WIDTH = 400  # as published
_LONG_S = 150.0
PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32", "int8")
_TRAPS: tuple[tuple[str, Callable[..., str], str], ...] = (
    (
        "fp16 really is fp16",
        traps.check_fp16_is_fp16,
        "TensorRT 11 took the fp16 flag away: whoever set it where it is there gets an fp32 engine, silently",
    ),
    (
        "reductions from input to output",
        traps.check_reductions,
        "TensorRT 11.2 computes them wrongly; a contrast measured in the graph would be wrong with them",
    ),
    (
        "a graph captured on the wrong GPU",
        traps.check_graph,
        "it is empty and silent: the prediction of the stack before would be shown again",
    ),
    (
        "compiled kernels by GPU and driver",
        traps.check_kernels,
        "kernels of another card or driver are refused or wrong; without kept ones each start takes seconds",
    ),
    (
        "shapes specialised late",
        traps.check_shapes,
        "a kernel that is swapped later leaves the captured graph with the old one",
    ),
    (
        "Turing needs its own target",
        traps.check_turing,
        "an RTX 20, GTX 16 or T4 refuses portable plans that were built for no named target",
    ),
)


def all_steps() -> tuple[Step, ...]:
    """Every step; those that mean nothing on a machine say so."""
    steps = [
        Step("machine", "versions", "what every number depends on", measure.list_versions),
        Step("machine", "card", "the GPU that predictions would run on", measure.look_at_card),
    ]
    for flavour in FLAVOURS:
        steps += [_plan(flavour, precision) for precision in PRECISIONS]
    for title, check, meaning in _TRAPS:
        steps += [
            Step("traps", f"{title}, {PACKAGES[name]}", meaning, partial(check, name=name), _LONG_S)
            for name in FLAVOURS
        ]
    for engine in _engines():
        steps += _of_engine(engine)
    for name in FLAVOURS:
        steps += _of_flavour(name)
    return tuple(steps)


def _plan(name: FlavourName, precision: Precision) -> Step:
    what = "whether this TensorRT can build the model, how long that takes, and how large it is"
    do = partial(measure.make_plan, name=name, precision=precision)
    return Step("plans", f"{PACKAGES[name]} {precision}", what, do, _LONG_S)


def _engines() -> tuple[str, ...]:
    """On a card first; the reference last."""
    packages = (PACKAGES[name] for name in FLAVOURS)
    on_card = (f"{package} {precision}" for package in packages for precision in PRECISIONS)
    return (*on_card, "torch fp16", "torch fp32", "openvino bf16", "onnxruntime fp32")


def _of_engine(engine: str) -> list[Step]:
    steps = [
        Step(
            "parity",
            engine,
            "answers as ONNX Runtime fp32 does; outputs hold NaN before the first run, so nothing old passes",
            partial(measure.compare_with_reference, engine=engine),
            _LONG_S,
        ),
        Step(
            "latency",
            engine,
            "a whole prediction, and its parts: prepare, tiles, upload, computation, download, rest",
            partial(measure.time_engine, engine=engine),
            _LONG_S,
        ),
    ]
    if engine.endswith("fp16"):
        bound = "how far computation is from what arithmetic and this card's measured bandwidth allow"
        steps.append(
            Step("roofline", engine, bound, partial(measure.hold_against_roofline, engine=engine), _LONG_S)
        )
    if engine.endswith("fp16") or engine.startswith("onnxruntime"):
        bulk = "stored stacks a second, as `acq-isl predict` does them"
        steps.append(Step("bulk", engine, bulk, partial(measure.time_bulk, engine=engine), _LONG_S))
    return steps


def _of_flavour(name: FlavourName) -> list[Step]:
    package = PACKAGES[name]
    reference = partial(measure.run_reference, name=name, width=_REFERENCE_WIDTH)
    return [
        Step(
            "CUDA graphs",
            package,
            "what launching all kernels at once brings",
            partial(measure.time_graphs, name=name),
            _LONG_S,
        ),
        Step(
            "memory",
            package,
            "what an engine holds on the GPU",
            partial(measure.measure_memory, name=name),
            _LONG_S,
        ),
        Step(
            "reference network",
            package,
            "the published network, fifty times the work of the live one",
            reference,
            _LONG_S,
        ),
    ]


@dataclass(frozen=True, slots=True)
class Wish:
    """What the kit is to do."""

    report: Path
    minutes: float = 10.0
    steps: Sequence[Step] = ()  # all of them if none are given


def run_kit(card: Card, wish: Wish, tell: Callable[[Row], None]) -> tuple[Row, ...]:
    """Do every step and leave the report; Ctrl-C ends it with what there is.

    StorageError: the report cannot be written, which is tried before the first step.
    """
    steps = tuple(wish.steps or all_steps())
    rows: list[Row] = []
    why = "it is still running, or was ended"
    _write(wish.report, rows, steps, why)
    try:
        for row in take_all(steps, card, time.monotonic() + 60 * wish.minutes):
            rows.append(row)
            _write(wish.report, rows, steps, why)
            tell(row)
    except KeyboardInterrupt:
        why = "stopped by Ctrl-C"
    return _write(wish.report, rows, steps, why)


def _write(path: Path, rows: Sequence[Row], steps: Sequence[Step], why: str) -> tuple[Row, ...]:
    whole = (*rows, *(unreached(step, why) for step in steps[len(rows) :]))
    write_page(path, whole)
    return whole
