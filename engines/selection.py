"""Which back end runs a model: measured once on this machine, remembered, and said."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import platform
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
from pydantic import Field, ValidationError

from acq_isl.base import StrictModel
from acq_isl.engines.backends import Backend, gpu
from acq_isl.engines.model_file import ModelFile
from acq_isl.engines.onnx import default_threads
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import EngineError, ModelError
from acq_isl.files import default_folder, write_whole
from acq_isl.stack import StackInfo, StackKey, ZStack

_log = logging.getLogger(__name__)

_FIELD_PX = 512
_ROUNDS = 6
_ENOUGH_S = 6.0  # a slow network is not run often on a slow machine to learn what is clear
_HASH_DIGITS = 24
_RETRY = timedelta(hours=1)  # after this, a back end that could not be used is tried again
_PACKAGES = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda-bindings")


class Choice(StrictModel):
    """What was measured, and so chosen."""

    format: str = Field(default="acq-isl-choice/1", pattern=r"^acq-isl-choice/1$")
    machine: tuple[str, ...]
    """All that the choice depends on: model, versions, processor, GPU, threads."""
    took_ms: dict[str, float]
    """Shortest time for a field of 512x512 pixels, by back end."""
    failed: dict[str, str]
    """Why a back end could not be used."""
    chosen_at: str
    """ISO 8601 local time with offset."""

    @property
    def order(self) -> tuple[str, ...]:
        """Back ends that worked, fastest first."""
        return tuple(sorted(self.took_ms, key=lambda name: self.took_ms[name]))

    def reason(self, name: str) -> str:
        """Why this back end, in a sentence."""
        others = [f"{other} {self.took_ms[other]:.0f} ms" for other in self.order if other != name]
        said = f"{name}: {self.took_ms[name]:.0f} ms for {_FIELD_PX}x{_FIELD_PX} pixels"
        said += f"; {', '.join(others)}" if others else "; nothing else is installed"
        said += "".join(f"; {other} cannot be used: {why}" for other, why in self.failed.items())
        return f"{said}; measured on this machine on {self.chosen_at[:10]}"


def choose(
    model: ModelFile, found: Sequence[Backend], *, threads: int | None = None, folder: Path | None = None
) -> Choice:
    """The remembered choice, or a new one by running every back end on a field of 512x512 pixels.

    Parameters
    ----------
    model : ModelFile
    found : sequence of Backend
        Those to choose from.
    threads : int, optional
    folder : pathlib.Path, optional
        Where choices are remembered.

    Returns
    -------
    Choice

    Raises
    ------
    EngineError
        No back end runs the model.
    """
    machine = _machine(model, found, threads)
    digest = hashlib.sha256(json.dumps(machine).encode()).hexdigest()[:_HASH_DIGITS]
    path = (default_folder() / "choices" if folder is None else folder) / f"{digest}.json"
    remembered = _remembered(path, machine)
    if remembered is not None:
        return remembered
    _log.info("measuring %s for model %s, once", ", ".join(b.name for b in found), model.info.where)
    choice = _measured(model, found, machine)
    _remember(path, choice)
    return choice


def _machine(model: ModelFile, found: Sequence[Backend], threads: int | None) -> tuple[str, ...]:
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    processor = f"{platform.machine()} {platform.processor()}, {threads or default_threads()} threads"
    names = tuple(backend.name for backend in found)
    return model.info.sha256, processor, gpu(), *versions, *names


def _remembered(path: Path, machine: tuple[str, ...]) -> Choice | None:
    try:
        choice = Choice.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        _log.warning(
            "the choice in %s cannot be used, it is made again: %s", path, str(error).partition("\n")[0]
        )
        return None
    age = datetime.now().astimezone() - datetime.fromisoformat(choice.chosen_at)
    if choice.failed and age > _RETRY:  # a driver may have been installed, or another program have ended
        return None
    return choice if choice.machine == machine and choice.took_ms else None


def _remember(path: Path, choice: Choice) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, choice.model_dump_json(indent=1).encode())
    except OSError as error:
        _log.warning("the choice of the engine cannot be remembered in %s: %s", path.parent, error)


def _measured(model: ModelFile, found: Sequence[Backend], machine: tuple[str, ...]) -> Choice:
    failed: dict[str, str] = {}
    with ExitStack() as opened:
        engines: dict[str, Predictor] = {}
        for backend in found:
            try:
                engines[backend.name] = opened.enter_context(backend.open())
            except (EngineError, ModelError) as error:
                failed[backend.name] = str(error)
        took_ms = _shortest_ms(engines, sample_stack(model, _FIELD_PX), failed)
    for name, why in failed.items():
        _log.warning("engine %s cannot be used: %s", name, why)
    if not took_ms:
        raise EngineError(
            f"no engine runs model {model.info.where}",
            got="; ".join(f"{name}: {why}" for name, why in failed.items()),
            fix="export the model again with this version of acq-isl",
        )
    return Choice(
        machine=machine,
        took_ms=took_ms,
        failed=failed,
        chosen_at=datetime.now().astimezone().isoformat(timespec="seconds"),
    )


def _shortest_ms(engines: dict[str, Predictor], stack: ZStack, failed: dict[str, str]) -> dict[str, float]:
    """Time of the fastest prediction after a first one, by engine.

    They take turns, so that whatever else the machine does meets all of them; and the fastest prediction is
    the one that others disturbed least.
    """
    took_ms: dict[str, list[float]] = {}
    began_s = time.perf_counter()
    for turn in range(_ROUNDS + 1):
        if turn > 1 and time.perf_counter() - began_s > _ENOUGH_S:
            break
        for name in [name for name in engines if name not in failed]:
            try:
                times = engines[name].rehearse(stack)[0].times
            except EngineError as error:
                failed[name] = str(error)
                took_ms.pop(name, None)
                continue
            if turn:
                took_ms.setdefault(name, []).append(times.infer_ms + times.decode_ms)
    return {name: min(values) for name, values in took_ms.items()}


def sample_stack(model: ModelFile, side_px: int) -> ZStack:
    """A stack of blobs that go in and out of focus, as the model wants it; always the same."""
    from scipy import ndimage

    manifest = model.info.manifest
    rng = np.random.default_rng(0)
    grain = rng.normal(size=(side_px, side_px)).astype(np.float32)
    pixels = np.empty((manifest.planes, side_px, side_px), np.uint16)
    for index, plane in enumerate(pixels):
        blobs = ndimage.gaussian_filter(grain, 1.5 + abs(index - manifest.planes // 2) / 2, mode="wrap")
        noise = rng.normal(scale=60, size=grain.shape)
        plane[:] = np.clip(24000 + 3000 * blobs / blobs.std() + noise, 0, 65535)
    info = StackInfo(
        StackKey(0, "sample", "sample"), manifest.z_offsets_um, (side_px, side_px), manifest.pixel_size_um,
        modality=manifest.modality, polarity=manifest.polarity,
    )  # fmt: skip
    return ZStack(info, pixels, (0.0,) * manifest.planes)
