"""What to build a plan for: precision, profile, field, GPUs; and which plan built before is to be used."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from datetime import datetime

from acq_isl.engines.model_file import ModelFile
from acq_isl.engines.tensorrt.api import PACKAGES, Flavour, FlavourName, is_before_ampere
from acq_isl.engines.tensorrt.cuda import GpuInfo
from acq_isl.engines.tensorrt.plan_cache import PlanKey, PlanNote, PlanStore, Precision, ProfileName, Shapes
from acq_isl.manifest import Manifest
from acq_isl.processing.tiling import TileRule, plan_tiles

_log = logging.getLogger(__name__)

FIELD_PX = (1024, 1024)
_LIVE_MOST_PX = 4096
_BORDERS = 2  # how many times the usual reflected border fits inside of the profile, on each side
_BULK_TILE_PX = 1024
_BULK_TILES = 8
_FLAVOURS: dict[str, FlavourName] = {package: flavour for flavour, package in PACKAGES.items()}


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What to build.

    ``int8`` needs a form of the model judged on the user's stacks (`acq_isl.engines.tensorrt.int8`).
    ``live``: one tile at a time, fastest at the camera's field, any field up to 4096 pixels in one piece.
    ``bulk``: batches of tiles, no larger than the field's longer side, nor than 1024 pixels.
    """

    flavour: FlavourName = "auto"
    precision: Precision = "fp16"
    profile: ProfileName = "live"
    targets: tuple[str, ...] = ()
    """GPUs such as ``"sm86"``; none named: all that RTX can, or the one in the machine."""
    field_px: tuple[int, int] = FIELD_PX
    """Rows and columns of the camera's field."""


@dataclass(frozen=True, slots=True)
class LastBuilt:
    """As the plan was that was built last for the model: what ``acq-isl build`` made is what is served."""

    precision: Precision = "fp16"
    field_px: tuple[int, int] | None = None
    """The camera's field, where known: plans for it go first, and without any plan one is built for it."""
    flavour: FlavourName = "auto"
    """Whose plans to look at; ``auto``: of whatever is installed."""


def profile_shapes(manifest: Manifest, options: BuildOptions) -> Shapes:
    """Smallest, optimal and largest shape of every input under a profile."""
    step = manifest.size_step_px
    least = manifest.least_side_px
    border_px = max(step, manifest.blank_px)  # as `acq_isl.engines.predictor.Predictor` puts around a field
    limit_px = _up(max(manifest.max_tile_px or _LIVE_MOST_PX, least), step)
    if options.profile == "live":
        most = _up(max(_LIVE_MOST_PX, *options.field_px), step) + 2 * _up(_BORDERS * border_px, step)
        if manifest.max_tile_px is not None:
            most = min(most, limit_px)
        rule = TileRule(manifest.min_tile_px, manifest.halo_px, step)
        usual = plan_tiles(options.field_px, rule, tile_px=most, border_px=border_px).tile_shape
        # Square, since a predictor knows one limit for both sides.
        most = max(most, *usual)
        tiles, sides = (1, 1, 1), ((least, least), usual, (most, most))
    else:
        most = min(max(_up(min(_BULK_TILE_PX, max(options.field_px)), step), least), limit_px)
        tiles, sides = (1, _BULK_TILES, _BULK_TILES), ((least, least), (most, most), (most, most))
    stacks = tuple((n, manifest.planes, *shape, 2) for n, shape in zip(tiles, sides, strict=True))
    return {"stack": (stacks[0], stacks[1], stacks[2]), "inv_sd": ((tiles[0],), (tiles[1],), (tiles[2],))}


def gpu_key(gpu: GpuInfo) -> str:
    """A GPU as plans that run on no other are keyed by it."""
    return f"{gpu.name} {gpu.capability}"


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def resolved(
    wish: BuildOptions | LastBuilt,
    file: ModelFile,
    store: PlanStore,
    gpu: GpuInfo,
    flavour: Flavour | None = None,
) -> BuildOptions:
    """The options to serve with: those given, or of a plan built before, or the usual ones.

    Of plans for this model, precision and GPU one for the very field goes first, then the latest.
    """
    if isinstance(wish, BuildOptions):
        return wish
    notes = [plan.note for plan in store.list() if plan.note is not None]
    fitting = [note for note in notes if _fits(note, wish, file, gpu, flavour)]
    if not fitting:
        return BuildOptions(wish.flavour, wish.precision, field_px=wish.field_px or FIELD_PX)
    last = max(fitting, key=lambda n: (n.field_px == wish.field_px, datetime.fromisoformat(n.built_at)))
    _log.info("as built at %s for %d x %d pixels: %s", last.built_at, *last.field_px, store.path(last.key))
    return BuildOptions(
        flavour=_FLAVOURS[last.key.flavour],
        precision=last.key.precision,
        profile=last.key.profile,
        targets=last.key.targets,
        field_px=last.field_px,
    )


def _fits(note: PlanNote, wish: LastBuilt, file: ModelFile, gpu: GpuInfo, flavour: Flavour | None) -> bool:
    key = note.key
    package = flavour.name if flavour else PACKAGES.get(wish.flavour)
    return (
        key.flavour in _FLAVOURS
        and (key.flavour == package if package else importlib.util.find_spec(key.flavour) is not None)
        and key.onnx_sha256 == file.info.sha256
        and key.precision == wish.precision
        and _runs_on(key, gpu)
    )


def _runs_on(key: PlanKey, gpu: GpuInfo) -> bool:
    if key.gpu:
        return key.gpu == gpu_key(gpu)
    return gpu.capability in key.targets if key.targets else not is_before_ampere(gpu.capability)
