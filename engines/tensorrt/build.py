"""The plan of a model: found in the cache, or built and kept there."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from acq_isl.engines.int8.agreement import agreement
from acq_isl.engines.int8.store import TENSORRT_FILES, Int8Judgement
from acq_isl.engines.model_file import ModelFile, answers, read_model
from acq_isl.engines.tensorrt import fp16 as precisions
from acq_isl.engines.tensorrt.api import Flavour, Messages, Progress, ProgressForwarder, load_flavour
from acq_isl.engines.tensorrt.cuda import GpuInfo
from acq_isl.engines.tensorrt.int8 import MOST_DISTANCE, stored_form
from acq_isl.engines.tensorrt.options import BuildOptions, Precision, gpu_key, profile_shapes
from acq_isl.engines.tensorrt.plan_cache import KeptFile, PlanKey, PlanNote, PlanStore
from acq_isl.errors import EngineError, ModelError
from acq_isl.manifest import Manifest

_log = logging.getLogger(__name__)


def compile_plan(
    flavour: Flavour,
    content: bytes,
    key: PlanKey,
    manifest: Manifest,
    progress: Progress | None = None,
    timings: KeptFile | None = None,
) -> bytes:
    """Parse and build; nothing is kept.

    Parameters
    ----------
    flavour : Flavour
    content : bytes
        ONNX in the types the plan is to have, from `acq_isl.engines.tensorrt.fp16`.
    key : PlanKey
        Shapes, targets and precision.
    manifest : Manifest
    progress : callable, optional
    timings : KeptFile, optional
        Where measured times of kernels are kept, if the flavour measures any.

    Returns
    -------
    bytes
        The plan.

    Raises
    ------
    ModelError, EngineError
    """
    messages = Messages(flavour)
    builder, network = parse(flavour, content, messages)
    check_network(network, flavour, manifest)
    config = _configured(flavour, builder, key)
    timed = timings if flavour.times_kernels else None
    if timed is not None:
        _lend_timings(config, timed)
    forwarder = ProgressForwarder(flavour, progress) if progress else None
    if forwarder is not None:
        config.progress_monitor = forwarder.monitor
    serialized = builder.build_serialized_network(network, config)
    if forwarder is not None and forwarder.failure is not None:
        raise forwarder.failure
    if serialized is None:
        raise EngineError(
            f"{flavour.name} {flavour.version} could not build the plan",
            got=messages.take() or "no reason given",
            fix="close programs that use the GPU and try again; if it stays, predict with onnxruntime "
            "and report the model with this message",
        )
    if timed is not None:
        cache = config.get_timing_cache()
        timed.save(bytes(cache.serialize()))
    return bytes(serialized)


def _lend_timings(config: Any, timings: KeptFile) -> None:
    """Kernels that were timed for another plan on this GPU need not be timed again."""
    kept = timings.load()
    cache = config.create_timing_cache(kept or b"")
    if cache is None or not config.set_timing_cache(cache, False):
        _log.warning("kept timings in %s do not fit any more, kernels are timed again", timings.path)
        config.set_timing_cache(config.create_timing_cache(b""), False)


def parse(flavour: Flavour, content: bytes, messages: Messages) -> tuple[Any, Any]:
    """Builder and network definition of an ONNX model, strongly typed.

    Raises
    ------
    EngineError
        TensorRT cannot start on this machine.
    ModelError
        TensorRT lacks an operator, or the file is no ONNX model.
    """
    trt = flavour.trt
    try:
        builder = trt.Builder(messages.logger)
    except TypeError as error:  # how pybind11 says that the C++ side made no object
        raise EngineError(
            f"{flavour.name} {flavour.version} cannot start: {messages.take() or error}",
            wanted="an NVIDIA GPU with a driver for its CUDA version",
            fix="update the NVIDIA driver, or build with --flavour rtx, which needs no GPU",
        ) from error
    # TensorRT 11 and RTX are always strongly typed and ignore the flag; TensorRT 10 needs it.
    strongly = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly)
    parser = trt.OnnxParser(network, messages.logger)
    if not parser.parse(content):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise ModelError(
            f"{flavour.name} {flavour.version} cannot use this model",
            wanted="operators that TensorRT has",
            got="; ".join(_parser_words(error) for error in errors[:3]) or messages.take(),
            fix="export the model again with this version of acq-isl, or predict with onnxruntime",
        )
    return builder, network


def _parser_words(error: Any) -> str:
    where = f"{error.node_operator()} {error.node_name()}".strip()
    return f"{where}: {error.desc()}" if where else str(error.desc())


def check_network(network: Any, flavour: Flavour, manifest: Manifest) -> None:
    """Hold what was parsed against the contract of acq-isl models; ModelError names the first difference."""
    trt = flavour.trt
    kinds = trt.DataType
    labels = (-1, len(manifest.labels), -1, -1)
    outputs = {
        "mean": ((kinds.HALF, kinds.FLOAT), labels),
        "spread": ((kinds.HALF, kinds.FLOAT), labels),
        "distance": ((kinds.FLOAT,), (-1, len(manifest.gate.names) if manifest.gate else 0, -1, -1)),
    }
    wanted = {
        "stack": ((kinds.UINT8,), (-1, manifest.planes, -1, -1, 2)),
        "inv_sd": ((kinds.FLOAT,), (-1,)),
    } | {name: outputs[name] for name in answers(manifest)}
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    found = {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in tensors}
    for name in sorted(wanted.keys() | found.keys()):
        dtype, shape = found.get(name, (None, ()))
        kinds_wanted, shape_wanted = wanted.get(name, ((), ()))
        # TensorRT cannot always tell a side before it knows those of the input; it says -1 then.
        fits = len(shape) == len(shape_wanted) and all(
            a in (b, -1) for a, b in zip(shape, shape_wanted, strict=True)
        )
        if dtype not in kinds_wanted or not fits:
            raise ModelError(
                f"{flavour.name} understands the model's {name!r} in another way than its manifest says",
                wanted=f"{shape_wanted} of {kinds_wanted}" if kinds_wanted else "nothing of that name",
                got=f"{shape} of {dtype}" if shape else "nothing of that name",
                fix="export the model again with this version of acq-isl",
            )


def _configured(flavour: Flavour, builder: Any, key: PlanKey) -> Any:
    trt = flavour.trt
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if key.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default; it keeps 10 bits of what fp32 says it is
    profile = builder.create_optimization_profile()
    for name, (least, usual, most) in key.shapes.items():
        profile.set_shape(name, least, usual, most)
    if config.add_optimization_profile(profile) < 0:
        raise ModelError(
            f"{flavour.name} refuses the shapes of profile {key.profile!r}",
            got=f"stack from {key.shapes['stack'][0]} to {key.shapes['stack'][2]}",
            fix="check the tile rule in the model's manifest; export the model again",
        )
    if hasattr(config, "num_compute_capabilities") and key.targets:
        config.num_compute_capabilities = len(key.targets)
        for index, target in enumerate(key.targets):
            config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index)
    return config


_LEAST_PEARSON = 0.995


@dataclass(frozen=True, slots=True, eq=False)
class BuiltPlan:
    """A plan and where it is.

    Parameters
    ----------
    content : bytes
        What was checked against the note's hash.
    note : PlanNote
    path : pathlib.Path
    fresh : bool
        Built now, not found.
    """

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
    """The plan of a model: found, or built now.

    Parameters
    ----------
    model : ModelFile, pathlib.Path or str
    options : BuildOptions, optional
    store : PlanStore, optional
        Where plans are kept; the user's cache if not given.
    gpu : GpuInfo, optional
        The GPU in the machine. TensorRT for RTX does not need one.
    flavour : Flavour, optional
        Instead of ``options.flavour``, one that is loaded already.
    progress : callable, optional
        Given a `BuildStep` now and then, on TensorRT's threads; raising in it cancels the build.

    Returns
    -------
    BuiltPlan

    Raises
    ------
    ModelError
        The model cannot be read, uses operators TensorRT lacks, or is too far from fp32.
    EngineError
        TensorRT is not there, cannot build for the target, or failed.
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
        content, note = _build(file, key, options, flavour, _timings(store, key), progress)
        return BuiltPlan(content, note, store.save(content, note), fresh=True)


def _timings(store: PlanStore, key: PlanKey) -> KeptFile:
    digest = hashlib.sha256(f"{key.flavour} {key.version} {key.gpu}".encode()).hexdigest()
    return KeptFile(store.folder / f"{digest[:16]}.timings")


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
        targets=tuple(sorted(options.targets)) if flavour.portable else (),
        gpu="" if flavour.portable or gpu is None else gpu_key(gpu),
        flags=_flags(file, options),
    )


def _flags(file: ModelFile, options: BuildOptions) -> tuple[str, ...]:
    flags = ["strongly typed"]
    if options.precision == "fp32":
        flags.append("no tf32")
    if options.precision == "int8":
        flags.append(f"int8 form {_int8_form(file)[0].files[TENSORRT_FILES[0]][:16]}")
    return tuple(flags)


def _build(
    file: ModelFile,
    key: PlanKey,
    options: BuildOptions,
    flavour: Flavour,
    timings: KeptFile,
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

    Raises
    ------
    ModelError
        It is not the same network any more, or has no int8 form that was accepted.
    """
    master, manifest, outputs = file.content, file.info.manifest, file.info.answers
    if precision == "fp32":
        return precisions.full(master, outputs), {}
    if precision == "int8":
        form, content = _int8_form(file)
        return content, {f"pearson {name}": value for name, value in form.pearson.items()}
    content = precisions.mixed(master, outputs)
    measured = agreement(master, precisions.rehearsal(master, outputs), manifest)
    if not (
        measured.least_pearson >= _LEAST_PEARSON and measured.distance <= MOST_DISTANCE
    ):  # NaN must not pass
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
