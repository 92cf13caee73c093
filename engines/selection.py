"""Which engine runs a model: measured once on this machine, remembered, and said."""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import Field, ValidationError

from acq_isl.base import StrictModel
from acq_isl.engines.agreement import sample_tiles
from acq_isl.engines.backend import Candidate, default_threads
from acq_isl.engines.model_file import ModelFile
from acq_isl.engines.predictor import Predictor
from acq_isl.errors import EngineError, ModelError
from acq_isl.files import default_folder, write_whole
from acq_isl.stack import StackInfo, StackKey, ZStack

_log = logging.getLogger(__name__)

FIELD_PX = 512
_ROUNDS = 6
_ENOUGH_S = 6.0  # a slow network is not run often on a slow machine to learn what is clear
_HASH_DIGITS = 24
_RETRY = timedelta(hours=1)  # after this, an engine that could not be used is tried again


class Selection(StrictModel):
    """What was measured, and so selected."""

    format: str = Field(default="acq-isl-choice/1", pattern=r"^acq-isl-choice/1$")
    machine: tuple[str, ...]
    """All it depends on: model, processor, threads, and each engine with its version and device."""
    took_ms: dict[str, float]
    """Shortest time for a field of 512x512 pixels, by engine."""
    failed: dict[str, str]
    """Why an engine could not be used."""
    chosen_at: str
    """ISO 8601 local time with offset."""

    @property
    def order(self) -> tuple[str, ...]:
        """Engines that worked, fastest first."""
        return tuple(sorted(self.took_ms, key=lambda name: self.took_ms[name]))

    def reason(self, name: str) -> str:
        """Why this engine, in a sentence."""
        others = [f"{other} {self.took_ms[other]:.0f} ms" for other in self.order if other != name]
        text = f"{name}: {self.took_ms[name]:.0f} ms for {FIELD_PX}x{FIELD_PX} pixels"
        text += f"; {', '.join(others)}" if others else "; nothing else is installed"
        text += "".join(f"; {other} cannot be used: {why}" for other, why in self.failed.items())
        return f"{text}; measured on this machine on {self.chosen_at[:10]}"


def select(
    model: ModelFile,
    candidates: Sequence[Candidate],
    *,
    threads: int | None = None,
    folder: Path | None = None,
) -> Selection:
    """The selection remembered in ``folder`` (the cache), or a new one; EngineError if nothing runs it."""
    processor = f"{platform.machine()} {platform.processor()}, {threads or default_threads()} threads"
    engines = (f"{candidate.name}: {candidate.runs_on}" for candidate in candidates)
    machine = model.info.sha256, processor, *engines
    digest = hashlib.sha256(json.dumps(machine).encode()).hexdigest()[:_HASH_DIGITS]
    path = (default_folder() / "choices" if folder is None else folder) / f"{digest}.json"
    remembered = _remembered(path, machine)
    if remembered is not None:
        return remembered
    names = ", ".join(candidate.name for candidate in candidates)
    _log.info("measuring %s for model %s, once", names, model.info.where)
    selection = _measured(model, candidates, machine)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, selection.model_dump_json(indent=1).encode())
    except OSError as error:
        _log.warning("the choice of the engine cannot be remembered in %s: %s", path.parent, error)
    return selection


def _remembered(path: Path, machine: tuple[str, ...]) -> Selection | None:
    try:
        selection = Selection.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = str(error).partition("\n")[0]
        _log.warning("the choice in %s cannot be used, it is made again: %s", path, reason)
        return None
    age = datetime.now().astimezone() - datetime.fromisoformat(selection.chosen_at)
    if selection.failed and age > _RETRY:  # a driver may have been installed, or another program have ended
        return None
    return selection if selection.machine == machine and selection.took_ms else None


def _measured(model: ModelFile, candidates: Sequence[Candidate], machine: tuple[str, ...]) -> Selection:
    failed: dict[str, str] = {}
    with ExitStack() as opened:
        engines: dict[str, Predictor] = {}
        for candidate in candidates:
            try:
                engines[candidate.name] = opened.enter_context(candidate.load())
            except (EngineError, ModelError) as error:
                failed[candidate.name] = str(error)
        took_ms = shortest_ms(engines, sample_stack(model, FIELD_PX), failed)
    for name, why in failed.items():
        _log.warning("engine %s cannot be used: %s", name, why)
    if not took_ms:
        raise EngineError(
            f"no engine runs model {model.info.where}",
            got="; ".join(f"{name}: {why}" for name, why in failed.items()),
            fix="export the model again with this version of acq-isl",
        )
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return Selection(machine=machine, took_ms=took_ms, failed=failed, chosen_at=now)


def shortest_ms(engines: dict[str, Predictor], stack: ZStack, failed: dict[str, str]) -> dict[str, float]:
    """Time of the fastest prediction after a first one; they take turns, so that all are disturbed alike."""
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
    """A made-up stack of blobs, as the model wants it; always the same."""
    manifest = model.info.manifest
    info = StackInfo(
        StackKey(0, "sample", "sample"), manifest.z_offsets_um, (side_px, side_px), manifest.pixel_size_um,
        modality=manifest.modality, polarity=manifest.polarity,
    )  # fmt: skip
    return ZStack(info, sample_tiles(manifest, 1, side_px)[0], (0.0,) * manifest.planes)
