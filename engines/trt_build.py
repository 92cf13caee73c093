"""A model becomes a plan: parse, check what was parsed, build, keep."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from acq_isl.engines import precision as precisions
from acq_isl.engines.agreement import Agreement, agreement
from acq_isl.engines.cuda import GpuInfo
from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.engines.plans import PlanKey, PlanNote, PlanStore
from acq_isl.engines.trt_api import (
    Flavour,
    FlavourName,
    Messages,
    Progress,
    ProgressForwarder,
    load_flavour,
)
from acq_isl.errors import EngineError, ModelError
from acq_isl.manifest import Manifest

_log = logging.getLogger(__name__)

Precision = Literal["fp16", "fp32"]
ProfileName = Literal["live", "bulk"]
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]

_LEAST_PEARSON = 0.995
_LIVE_MOST_PX = 2048
_BULK_TILE_PX = 1024
_BULK_TILES = 8


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What to build.

    Parameters
    ----------
    flavour : "auto", "tensorrt" or "rtx"
    precision : "fp16" or "fp32"
    profile : "live" or "bulk"
        ``live``: one tile at a time, fastest at the camera's field. ``bulk``: batches of tiles.
    targets : tuple of str
        GPUs to build for, such as ``("sm86", "sm89")``; none named: all that the flavour can (RTX), or
        the one in the machine (tensorrt).
    field_px : int
        Longer side of the camera's field in pixels; what ``live`` is fastest at.
    """

    flavour: FlavourName = "auto"
    precision: Precision = "fp16"
    profile: ProfileName = "live"
    targets: tuple[str, ...] = ()
    field_px: int = 1024


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


def profile_shapes(manifest: Manifest, options: BuildOptions) -> Shapes:
    """Smallest, optimal and largest shape of every input under a profile."""
    step = manifest.size_step_px
    least = _up(manifest.min_tile_px, step)
    if options.profile == "live":
        tiles, usual = (1, 1, 1), max(_up(options.field_px, step), least)
        sides = least, usual, max(_up(_LIVE_MOST_PX, step), usual)
    else:
        most = max(_up(_BULK_TILE_PX, step), least)
        tiles, sides = (1, _BULK_TILES, _BULK_TILES), (least, most, most)
    stacks = tuple((n, manifest.planes, side, side, 2) for n, side in zip(tiles, sides, strict=True))
    return {"stack": (stacks[0], stacks[1], stacks[2]), "inv_sd": ((tiles[0],), (tiles[1],), (tiles[2],))}


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


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
        content, note = _build(file, key, flavour, progress)
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
        targets=tuple(sorted(options.targets)) if flavour.portable else (),
        gpu="" if flavour.portable or gpu is None else f"{gpu.name} {gpu.capability}",
        flags=("strongly typed", *(("no tf32",) if options.precision == "fp32" else ())),
    )


def _build(
    file: ModelFile, key: PlanKey, flavour: Flavour, progress: Progress | None
) -> tuple[bytes, PlanNote]:
    content = precisions.mixed(file.content) if key.precision == "fp16" else precisions.full(file.content)
    measured = _measured(file) if key.precision == "fp16" else None
    started_s = time.perf_counter()
    plan = compile_plan(flavour, content, key, file.info.manifest, progress)
    built_s = time.perf_counter() - started_s
    manifest = file.info.manifest
    _log.info("built %s for %s in %.1f s, %.1f MiB", key.profile, manifest.name, built_s, len(plan) / 2**20)
    return plan, PlanNote(
        key=key,
        model=f"{manifest.name} {manifest.version}",
        plan_sha256=_sha256(plan),
        plan_bytes=len(plan),
        built_s=round(built_s, 3),
        built_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        agreement=measured.flat() if measured else {},
    )


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()


def _measured(file: ModelFile) -> Agreement:
    """fp16 against fp32 on this processor; ModelError if it is not the same network any more."""
    manifest = file.info.manifest
    measured = agreement(file.content, precisions.rehearsal(file.content), manifest)
    if not measured.least_pearson >= _LEAST_PEARSON:  # NaN must not pass
        raise ModelError(
            f"model {file.info.where} does not survive fp16",
            wanted=f"a correlation with fp32 of at least {_LEAST_PEARSON} for every label",
            got=", ".join(f"{name} {value:.4f}" for name, value in measured.pearson.items()),
            fix="use --precision fp32",
        )
    return measured


def compile_plan(
    flavour: Flavour, content: bytes, key: PlanKey, manifest: Manifest, progress: Progress | None = None
) -> bytes:
    """Parse and build; nothing is kept.

    Parameters
    ----------
    flavour : Flavour
    content : bytes
        ONNX in the types the plan is to have, from `acq_isl.engines.precision`.
    key : PlanKey
        Shapes, targets and precision.
    manifest : Manifest
    progress : callable, optional

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
            fix="close programs that use the GPU and try again; if it stays, predict with --engine onnx "
            "and report the model with this message",
        )
    return bytes(serialized)


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
            fix="export the model again with this version of acq-isl, or predict with --engine onnx",
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
    wanted = {
        "stack": ((kinds.UINT8,), (-1, manifest.planes, -1, -1, 2)),
        "inv_sd": ((kinds.FLOAT,), (-1,)),
        "mean": ((kinds.HALF, kinds.FLOAT), labels),
        "spread": ((kinds.HALF, kinds.FLOAT), labels),
    }
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    tensors += [network.get_output(i) for i in range(network.num_outputs)]
    found = {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in tensors}
    for name in wanted.keys() | found.keys():
        dtype, shape = found.get(name, (None, None))
        if name not in wanted or dtype not in wanted[name][0] or shape != wanted[name][1]:
            raise ModelError(
                f"{flavour.name} understands the model's {name!r} in another way than its manifest says",
                wanted=f"{wanted[name][1]} of {wanted[name][0]}" if name in wanted else "nothing of that name",
                got=f"{shape} of {dtype}" if name in found else "nothing of that name",
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
