"""How fast each engine is on this machine, how far from fp32, and where the time goes."""

from __future__ import annotations

import math
import multiprocessing
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
from PIL import Image, ImageDraw, ImageFont
from pydantic_core import to_json

from acq_isl.engines.agreement import LEAST_SD
from acq_isl.engines.backend import Candidate, LoadOptions
from acq_isl.engines.backends import find_engines
from acq_isl.engines.model_file import read_model
from acq_isl.engines.predictor import Predictor, Shares
from acq_isl.engines.selection import sample_stack
from acq_isl.errors import AcqIslError, EngineError
from acq_isl.processing.statistics import pearson
from acq_isl.stack import Prediction, ZStack

REFERENCE = "onnxruntime fp32"
SIDES_PX = (512, 1024, 2048)
_MIB = 2**20
_MEMORY_TIMEOUT_S = 300.0
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe and Ito


@dataclass(frozen=True, slots=True)
class Row:
    """One engine on one model and field size."""

    # the model, runtime and precision, and what the engine calls itself
    model: str
    backend: str
    device: str
    side_px: int  # the field is square
    # latency of a whole prediction
    p50_ms: float
    p95_ms: float
    megapixels_per_s: float  # pixels of the field (not times planes), one stack after the other
    peak_mib: float
    """Most memory of a process that loads the engine and predicts one field; NaN if not measured."""
    ratio: float
    # of the mean of any label, against `REFERENCE`
    """How many times as fast as `REFERENCE`, median over the rounds, so that a busy machine hardly
    matters."""
    least_pearson: float
    largest_difference: float
    shares_ms: dict[str, float]
    """Where the median prediction's time went: prepare, tiling, upload, compute, download, decode."""
    note: str = ""  # why it failed, or is not used by itself


@dataclass(slots=True)
class _Runs:
    """What was measured of one engine so far."""

    shares: list[Shares] = field(default_factory=list)
    last: Prediction | None = None
    error: str = ""


def bench(
    models: Sequence[Path | str],
    sides_px: Sequence[int] = SIDES_PX,
    *,
    rounds: int = 7,
    threads: int | None = None,
    engines: Sequence[str] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Measure every engine that is installed on square fields; ModelError if a model cannot be read.

    ``rounds`` are measured predictions of each engine and size, after one to warm up. Engines take turns
    within each, so that whatever else the machine does meets all of them. ``engines`` are names of those to
    measure; all if none are given.
    """
    rows: list[Row] = []
    for model in models:
        file = read_model(model)
        found = [
            candidate
            for candidate in find_engines(file, LoadOptions(threads)).candidates
            if not engines or candidate.name in engines
        ]
        with ExitStack() as opened:
            ready, failed = _open(found, opened)
            for side in sides_px:
                tell(f"{file.info.manifest.name}, {side}x{side}: {', '.join(ready)}")
                stack = sample_stack(file, side)
                runs = _take_turns(ready, stack, rounds)
                for name, run in runs.items():
                    memory = _peak_mib(model, name, side, threads) if not run.error else float("nan")
                    row = _row(str(model), name, ready[name].name, side, runs, memory)
                    refused = next(candidate.refused for candidate in found if candidate.name == name)
                    rows.append(replace(row, note=f"not accepted: {refused}") if refused else row)
            rows += [_failure(str(model), name, why) for name, why in failed.items()]
    return rows


def _open(found: Sequence[Candidate], opened: ExitStack) -> tuple[dict[str, Predictor], dict[str, str]]:
    engines: dict[str, Predictor] = {}
    failed: dict[str, str] = {}
    for candidate in found:
        try:
            engines[candidate.name] = opened.enter_context(candidate.load())
        except AcqIslError as error:
            failed[candidate.name] = str(error)
    return engines, failed


def _take_turns(engines: dict[str, Predictor], stack: ZStack, rounds: int) -> dict[str, _Runs]:
    runs = {name: _Runs() for name in engines}
    for turn in range(rounds + 1):
        for name, engine in engines.items():
            run = runs[name]
            if run.error:
                continue
            try:
                run.last, shares = engine.rehearse(stack)
            except EngineError as error:
                run.error = str(error)
                continue
            if turn:
                run.shares.append(shares)
    return runs


def _row(model: str, name: str, device: str, side: int, runs: dict[str, _Runs], peak_mib: float) -> Row:
    run, reference = runs[name], runs.get(REFERENCE)
    if run.error or run.last is None:
        return _failure(model, name, run.error, side)
    totals = np.array([shares.total_ms for shares in run.shares])
    ratio = alike = difference = float("nan")
    if reference is not None and reference.last is not None and not reference.error:
        ratio = float(np.median(np.array([s.total_ms for s in reference.shares]) / totals))
        pairs = list(zip(run.last.mean, reference.last.mean, strict=True))
        # A label that is nowhere in the picture is noise about zero, which correlates with nothing.
        alike = min(
            (pearson(got, wanted) for got, wanted in pairs if wanted.std() >= LEAST_SD), default=float("nan")
        )
        difference = max(float(np.abs(got - wanted).max()) for got, wanted in pairs)
    middle = run.shares[int(np.argsort(totals)[len(totals) // 2])]
    p50, p95 = (float(np.percentile(totals, percent)) for percent in (50, 95))
    return Row(
        model=model,
        backend=name,
        device=device,
        side_px=side,
        p50_ms=p50,
        p95_ms=p95,
        megapixels_per_s=side**2 / 1e6 / (p50 / 1e3),
        peak_mib=peak_mib,
        ratio=ratio,
        least_pearson=alike,
        largest_difference=difference,
        shares_ms={
            "prepare": middle.prepare_ms,
            "tiling": middle.tile_ms,
            "upload": middle.upload_ms,
            "compute": middle.network_ms - middle.upload_ms - middle.download_ms,
            "download": middle.download_ms,
            "decode": middle.finish_ms,
        },
    )


def _failure(model: str, name: str, why: str, side: int = 0) -> Row:
    nothing = float("nan")
    return Row(model, name, "", side, *(nothing,) * 7, shares_ms={}, note=f"failed: {why}")


def _peak_mib(model: Path | str, name: str, side: int, threads: int | None) -> float:
    """Peak memory of a fresh process, since what this one holds says nothing."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(predict_alone, model, name, side, threads).result(_MEMORY_TIMEOUT_S)
        except (BrokenProcessPool, TimeoutError, AcqIslError):
            return float("nan")


def predict_alone(model: Path | str, name: str, side: int, threads: int | None) -> float:
    """Load an engine, predict one field, and return this process's peak memory in MiB."""
    file = read_model(model)
    found = find_engines(file, LoadOptions(threads)).candidates
    candidate = next(item for item in found if item.name == name)
    stack = sample_stack(file, side)
    with candidate.load() as engine:
        engine.rehearse(stack)
    return _own_peak_bytes() / _MIB


def _own_peak_bytes() -> float:
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return float(info.peak_wset)
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage counts what the parent held when it started this process
        words = status.read_text(encoding="utf-8").split()
        return float(words[words.index("VmHWM:") + 1]) * 1024
    import resource

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def as_json(rows: Sequence[Row]) -> str:
    """The rows and the machine as JSON; what is not a number is null."""
    machine = {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(logical=False),
        "python": platform.python_version(),
    }
    table = {"format": "acq-isl-bench/1", "machine": machine, "rows": rows}
    return to_json(table, indent=1, inf_nan_mode="null").decode()


def plot(rows: Sequence[Row], path: Path) -> None:
    """Median latency as horizontal bars, one group for each model and field size, written as PNG."""
    shown = [row for row in rows if not math.isnan(row.p50_ms)]
    if not shown:
        raise EngineError("there is nothing to plot", fix="see why every engine failed")
    font = ImageFont.load_default(15)
    line, left, width = 26, 300, 1000
    groups = list(dict.fromkeys((row.model, row.side_px) for row in shown))
    picture = Image.new("RGB", (width, line * (len(shown) + 2 * len(groups) + 1)), "white")
    draw = ImageDraw.Draw(picture)
    names = list(dict.fromkeys(row.backend for row in shown))
    top = line // 2
    for model, side in groups:
        group = [row for row in shown if (row.model, row.side_px) == (model, side)]
        longest = max(row.p50_ms for row in group)
        draw.text(
            (10, top), f"{Path(model).name}, {side} x {side} pixels: ms, shorter is better", "black", font
        )
        top += line
        for row in group:
            end = left + max(round((width - left - 170) * row.p50_ms / longest), 1)
            draw.text((30, top + 3), row.backend, "black", font)
            draw.rectangle(
                (left, top + 3, end, top + line - 5), _COLORS[names.index(row.backend) % len(_COLORS)]
            )
            draw.text((end + 8, top + 3), f"{row.p50_ms:.0f} ms, {row.ratio:.1f}x", "black", font)
            top += line
        top += line
    picture.save(path, "PNG")
