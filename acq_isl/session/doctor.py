"""Is everything there that a run needs? One line per part, each with its fix."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from acq_isl.engines import load_engine, not_used
from acq_isl.engines.model_file import read_model
from acq_isl.engines.selection import sample_stack
from acq_isl.errors import AcqIslError
from acq_isl.experiment.experiment import MicroscopeSettings
from acq_isl.hooks import open_microscope
from acq_isl.rules.plugins import broken_plugins
from acq_isl.session.summary import versions

# Enough for an hour of 13-plane stacks at one field in ten seconds and 2048 x 2048 pixels.
_DISK_GIB = 40.0
_MEMORY_GIB = 4.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report, with what to do, if anything."""

    part: str
    state: Literal["ok", "warning", "missing"]  # A run is possible with warnings, not with anything missing
    found: str
    fix: str = ""


def examine(settings: MicroscopeSettings, model: str, folder: Path) -> Iterator[Finding]:
    """Look at every part in turn; never raises for what it finds, never moves anything.

    A simulated microscope is started and stopped; ``folder`` is where runs are to be written.
    """
    yield Finding("versions", "ok", ", ".join(f"{name} {version}" for name, version in versions().items()))
    yield from _guarded("microscope", lambda: _microscope(settings))
    yield from _room(folder)
    yield from _guarded("engine", lambda: _engine(model))
    yield _gpu()
    for plugin in broken_plugins():
        fix = f"update or uninstall {plugin.package}"
        yield Finding(f"plug-in {plugin.name}", "warning", f"not used: {plugin.why}", fix)


def _guarded(part: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except AcqIslError as error:
        found = error.what if error.got is None else f"{error.what}: {error.got}"
        yield Finding(part, "missing", found, error.fix or "")


def _microscope(settings: MicroscopeSettings) -> Iterator[Finding]:
    with open_microscope(settings) as scope:
        core = scope.core
        yield Finding("microscope", "ok", f"{scope.description}, {core.get_version_info()}")
        devices = [str(name) for name in core.get_loaded_devices()]
        yield Finding("devices", "ok", f"{len(devices)}: {', '.join(devices)}")
        for role, name, fix in (
            ("camera", core.get_camera_device(), "set a default camera in Micro-Manager's configuration"),
            ("focus", core.get_focus_device(), "set a default focus stage in Micro-Manager's configuration"),
            ("stage", core.get_xy_stage_device(), "set a default XY stage in Micro-Manager's configuration"),
        ):
            yield Finding(role, "ok", str(name)) if name else Finding(role, "missing", "none", fix)
        yield _pixel_size(float(core.get_pixel_size_um()))


def _pixel_size(size_um: float) -> Finding:
    if size_um > 0:
        return Finding("pixel size", "ok", f"{size_um:g} um")
    return Finding(
        "pixel size",
        "missing",
        "not calibrated for this objective and binning",
        "Micro-Manager: Devices > Pixel Size Calibration; models refuse stacks of unknown pixel size",
    )


def _room(folder: Path) -> Iterator[Finding]:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(existing).free
    hour = f"free some space or give another --output; {_DISK_GIB:g} GiB hold about an hour of stacks"
    for part, free, least, where, fix in (
        ("memory", memory / 2**30, _MEMORY_GIB, "", f"close programs; {_MEMORY_GIB:g} GiB are comfortable"),
        ("disk", disk / 2**30, _DISK_GIB, f" at {existing}", hour),
    ):
        found = f"{free:.1f} GiB free{where}"
        yield Finding(part, "ok", found) if free >= least else Finding(part, "warning", found, fix)


def _engine(model: str) -> Iterator[Finding]:
    file = read_model(model)
    manifest = file.info.manifest
    began = time.perf_counter()
    engine = load_engine(model, gate="warn")  # its test stack is made up
    try:
        prediction = engine.predict(sample_stack(file, 256))
        why = engine.why
    finally:
        engine.close()
    took = f"loaded and predicted a 256x256 stack in {time.perf_counter() - began:.1f} s"
    named = f"model {manifest.name} {manifest.version}"
    yield Finding("engine", "ok", f"{prediction.engine}; {named}; {took}")
    yield Finding("why this one", "ok", why or "it is the only one")
    for other in not_used(model):
        yield Finding(other.name, "warning" if other.broken else "ok", f"not used: {other.why}", other.fix)


def _gpu() -> Finding:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("GPU", "ok", "no NVIDIA driver found; predictions run on the processor")
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("GPU", "warning", f"nvidia-smi failed: {error}", "reinstall the NVIDIA driver")
    return Finding("GPU", "ok", answer.stdout.strip() or "none listed")
