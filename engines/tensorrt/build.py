"""The plan of a model: found in the cache, or built and kept there."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import assert_never

from acq_isl.engines import fp16
from acq_isl.engines.agreement import agreement
from acq_isl.engines.int8.store import TENSORRT_FILES, Int8Judgement
from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.engines.sealed_file import SealedFile
from acq_isl.engines.tensorrt.api import Flavour, Progress, default_targets, load_flavour
from acq_isl.engines.tensorrt.compile import compile_plan
from acq_isl.engines.tensorrt.cuda import GpuInfo
from acq_isl.engines.tensorrt.int8 import MOST_DISTANCE, stored_form
from acq_isl.engines.tensorrt.options import BuildOptions, gpu_key, profile_shapes
from acq_isl.engines.tensorrt.plan_cache import PlanKey, PlanNote, PlanStore, Precision
from acq_isl.errors import EngineError, ModelError

_log = logging.getLogger(__name__)

_LEAST_PEARSON = 0.995


@dataclass(frozen=True, slots=True, eq=False)
class BuiltPlan:
    """A plan and where it is; ``fresh`` if it was built now, not found."""

    content: bytes
    note: PlanNote
    path: Path
    fresh: bool


def build(
    model: ModelFile | Path | str,
    options: BuildOptions | None = None,
    *,
    store: PlanStore | None = None,
    gpu: GpuInfo | None = None,
    flavour: Flavour | None = None,
    progress: Progress | None = None,
) -> BuiltPlan:
    """The plan of a model, found in ``store`` or built now; ``flavour`` is one that is loaded already.

    ``progress`` is called now and then, on TensorRT's threads; an exception it raises cancels the build.
    ModelError if the model cannot be read, is beyond TensorRT or too far from fp32, EngineError without
    TensorRT or what it needs to build for the target.
    """
    options = options or BuildOptions()
    file = model if isinstance(model, ModelFile) else read_model(model)
    flavour = flavour or load_flavour(options.flavour, capability=gpu.capability if gpu else None)
    store = store or PlanStore()
    key = plan_key(file, options, flavour, gpu)
    found = store.load(key)
    if found is not None:
        return BuiltPlan(*found, store.path(key), fresh=False)
    with store.locked(key):
        found = store.load(key)  # another process may have built it meanwhile
        if found is not None:
            return BuiltPlan(*found, store.path(key), fresh=False)
        digest = hashlib.sha256(f"{key.flavour} {key.version} {key.gpu}".encode()).hexdigest()
        timings = SealedFile(store.folder / f"{digest[:16]}.timings")
        content, note = _build(file, key, options, flavour, timings, progress)
        return BuiltPlan(content, note, store.save(content, note), fresh=True)


def plan_key(file: ModelFile, options: BuildOptions, flavour: Flavour, gpu: GpuInfo | None) -> PlanKey:
    """What the plan depends on; EngineError if this flavour cannot build for the targets."""
    if flavour.portable:
        unknown = sorted(set(options.targets) - set(flavour.targets))
        if unknown:
            raise EngineError(
                f"{flavour.name} builds no plans for {', '.join(unknown)}",
                wanted=f"some of {', '.join(flavour.targets)}",
                fix="leave --target out for a plan for all of them; H100 and B200 need --flavour tensorrt",
            )
    elif options.targets and (gpu is None or options.targets != (gpu.capability,)):
        raise EngineError(
            f"{flavour.name} builds for the GPU in the machine only",
            wanted=f"no --target, or {gpu.capability}" if gpu else "no --target, and a GPU",
            got=", ".join(options.targets),
            fix="build on the machine that will run it, or use --flavour rtx",
        )
    elif gpu is None:
        raise EngineError(
            f"{flavour.name} cannot build without a GPU",
            wanted="an NVIDIA GPU with its driver",
            fix="build on the machine that will run the plan, or use --flavour rtx, which needs no GPU",
        )
    return PlanKey(
        onnx_sha256=file.info.sha256,
        flavour=flavour.name,
        version=flavour.version,
        precision=options.precision,
        profile=options.profile,
        shapes=profile_shapes(file.info.manifest, options),
        targets=_targets(options, flavour, gpu),
        gpu="" if flavour.portable or gpu is None else gpu_key(gpu),
        flags=_flags(file, options),
    )


def _targets(options: BuildOptions, flavour: Flavour, gpu: GpuInfo | None) -> tuple[str, ...]:
    if options.targets or gpu is None:
        return tuple(sorted(options.targets)) if flavour.portable else ()
    return default_targets(flavour, gpu.capability)


def _flags(file: ModelFile, options: BuildOptions) -> tuple[str, ...]:
    match options.precision:
        case "fp32":
            return "strongly typed", "no tf32"
        case "int8":
            return "strongly typed", f"int8 form {_int8_form(file)[0].files[TENSORRT_FILES[0]][:16]}"
        case "fp16":
            return ("strongly typed",)
        case _:
            assert_never(options.precision)


def _build(
    file: ModelFile,
    key: PlanKey,
    options: BuildOptions,
    flavour: Flavour,
    timings: SealedFile,
    progress: Progress | None,
) -> tuple[bytes, PlanNote]:
    content, measured = _in_precision(file, options.precision)
    manifest = file.info.manifest
    if progress is None:
        _log.warning(
            "building a plan for %s, which takes seconds to minutes; kept for next time", manifest.name
        )
    started_s = time.perf_counter()
    plan = compile_plan(flavour, content, key, manifest, progress, timings)
    built_s = time.perf_counter() - started_s
    _log.info("built %s for %s in %.1f s, %.1f MiB", key.profile, manifest.name, built_s, len(plan) / 2**20)
    return plan, PlanNote(
        key=key,
        model=f"{manifest.name} {manifest.version}",
        field_px=options.field_px,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        built_s=round(built_s, 3),
        built_at=datetime.now().astimezone().isoformat(timespec="microseconds"),
        agreement=measured,
    )


def _in_precision(file: ModelFile, precision: Precision) -> tuple[bytes, dict[str, float]]:
    """The model in the types the plan is to have, and how far that is from fp32 on this processor.

    ModelError if it is not the same network any more, or has no int8 form that was accepted.
    """
    master, manifest, outputs = file.content, file.info.manifest, file.info.output_names
    if precision == "fp32":
        return fp16.full(master, outputs), {}
    if precision == "int8":
        form, content = _int8_form(file)
        return content, {f"pearson {name}": value for name, value in form.pearson.items()}
    content = fp16.mixed(master, outputs)
    measured = agreement(master, fp16.rehearsal(master, outputs), manifest)
    passes = measured.least_pearson >= _LEAST_PEARSON and measured.distance <= MOST_DISTANCE
    if not passes:  # nor does NaN
        raise ModelError(
            f"model {file.info.where} does not survive fp16",
            wanted=f"a correlation with fp32 of at least {_LEAST_PEARSON} for every label, and the gate's "
            f"distance within {MOST_DISTANCE:.0%} of its limit",
            got=", ".join(f"{name} {value:.4g}" for name, value in measured.flat().items()),
            fix="use --precision fp32",
        )
    return content, measured.flat()


def _int8_form(file: ModelFile) -> tuple[Int8Judgement, bytes]:
    """The int8 form that was accepted for this model; ModelError with the way to one."""
    stored = stored_form(file)
    if stored is None or not stored[0].accepted:
        reason = "it has never been made" if stored is None else stored[0].reason
        raise ModelError(
            f"there is no int8 form of model {file.info.where} that may be used: {reason}",
            wanted="one that was calibrated and judged on stacks of your own",
            fix="acq-isl build MODEL --precision int8 --stack FILE.tif [--stack ...], or --precision fp16",
        )
    return stored
