"""The plan of a model: found in the cache, or built and kept there."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np

from acq_isl.engines import precision as precisions
from acq_isl.engines.agreement import Agreement, agreement
from acq_isl.engines.cuda import GpuInfo
from acq_isl.engines.model_file import ModelFile, read_model
from acq_isl.engines.plans import PlanKey, PlanNote, PlanStore
from acq_isl.engines.trt_api import Flavour, FlavourName, Progress, load_flavour
from acq_isl.engines.trt_compile import compile_plan
from acq_isl.errors import EngineError, ModelError
from acq_isl.manifest import Manifest
from acq_isl.stack import Uint16Image

_log = logging.getLogger(__name__)

Precision = Literal["fp16", "fp32", "int8"]
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
    precision : "fp16", "fp32" or "int8"
    profile : "live" or "bulk"
        ``live``: one tile at a time, fastest at the camera's field. ``bulk``: batches of tiles.
    targets : tuple of str
        GPUs to build for, such as ``("sm86", "sm89")``; none named: all that the flavour can (RTX), or
        the one in the machine (tensorrt).
    field_px : int
        Longer side of the camera's field in pixels; what ``live`` is fastest at. ``bulk`` makes tiles no
        larger than this, nor than 1024 pixels.
    calibration : (n, z, h, w) uint16, optional
        Pieces of the user's own stacks, planes and sides as the manifest asks; needed for ``int8``. Half of
        them set the ranges, the other half decide whether int8 is good enough.
    """

    flavour: FlavourName = "auto"
    precision: Precision = "fp16"
    profile: ProfileName = "live"
    targets: tuple[str, ...] = ()
    field_px: int = 1024
    calibration: Uint16Image | None = field(default=None, compare=False, repr=False)


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
        most = max(_up(min(_BULK_TILE_PX, options.field_px), step), least)
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
        content, note = _build(file, key, options, flavour, progress)
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
        flags=_flags(options),
    )


def _flags(options: BuildOptions) -> tuple[str, ...]:
    flags = ["strongly typed"]
    if options.precision == "fp32":
        flags.append("no tf32")
    if options.precision == "int8" and options.calibration is not None:
        digest = hashlib.sha256(np.ascontiguousarray(options.calibration).tobytes()).hexdigest()
        flags.append(f"calibrated on {digest[:16]}")
    return tuple(flags)


def _build(
    file: ModelFile, key: PlanKey, options: BuildOptions, flavour: Flavour, progress: Progress | None
) -> tuple[bytes, PlanNote]:
    content, measured = _in_precision(file, options)
    started_s = time.perf_counter()
    manifest = file.info.manifest
    plan = compile_plan(flavour, content, key, manifest, progress)
    built_s = time.perf_counter() - started_s
    _log.info("built %s for %s in %.1f s, %.1f MiB", key.profile, manifest.name, built_s, len(plan) / 2**20)
    return plan, PlanNote(
        key=key,
        model=f"{manifest.name} {manifest.version}",
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=len(plan),
        built_s=round(built_s, 3),
        built_at=datetime.now().astimezone().isoformat(timespec="seconds"),
        agreement=measured.flat() if measured else {},
    )


def _in_precision(file: ModelFile, options: BuildOptions) -> tuple[bytes, Agreement | None]:
    """The model in the types the plan is to have, and how far that is from fp32 on this processor.

    Raises
    ------
    ModelError
        It is not the same network any more, or there is nothing to calibrate int8 on.
    """
    master, manifest = file.content, file.info.manifest
    if options.precision == "fp32":
        return precisions.full(master), None
    if options.precision == "fp16":
        content = precisions.mixed(master)
        measured = agreement(master, precisions.rehearsal(master), manifest)
    else:
        from acq_isl.engines.int8 import quantised

        tiles = np.empty((0,), np.uint16) if options.calibration is None else options.calibration
        content = quantised(master, tiles[::2])
        measured = agreement(master, content, manifest, stacks=tiles[1::2])
    if not measured.least_pearson >= _LEAST_PEARSON:  # NaN must not pass
        raise ModelError(
            f"model {file.info.where} does not survive {options.precision}",
            wanted=f"a correlation with fp32 of at least {_LEAST_PEARSON} for every label",
            got=", ".join(f"{name} {value:.4f}" for name, value in measured.pearson.items()),
            fix="use --precision fp32" if options.precision == "fp16" else "use --precision fp16",
        )
    return content, measured
