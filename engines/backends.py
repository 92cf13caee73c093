"""Which back ends are installed here, and which engines they have for a model."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from acq_isl.engines.backend import Backend, Candidate, LoadOptions, Unavailable
from acq_isl.engines.model_file import ModelFile
from acq_isl.engines.onnx import OnnxBackend
from acq_isl.engines.parity import Reference
from acq_isl.errors import AcqIslError, EngineError

_log = logging.getLogger(__name__)

AUTO = "auto"
GROUP = "acq_isl.backends"
_REFERENCE = "onnxruntime"


@dataclass(frozen=True, slots=True)
class Found:
    """What there is for a model on this machine."""

    candidates: tuple[Candidate, ...]
    """By back end, the reference last."""
    unavailable: tuple[Unavailable, ...]
    """What could be faster but cannot be used."""

    def named(self, name: str) -> Candidate:
        """The engine a user's word stands for: a full name, or a back end alone, whose best is taken.

        ``tensorrt`` stands for ``tensorrt_rtx`` too, where it alone is there.

        Raises
        ------
        EngineError
            There is no such engine here.
        """
        for candidate in self.candidates:
            if name == candidate.name and candidate.refused:
                raise EngineError(
                    f"{name} was not accepted for this model: {candidate.refused}",
                    fix="use another engine, or judge it again on more stacks: acq-isl accept-int8 "
                    "(OpenVINO), acq-isl build --precision int8 (TensorRT)",
                )
        usable = [candidate for candidate in self.candidates if not candidate.refused]
        for stands_for in (_is_or_begins, _is_flavour):
            for candidate in usable:
                if stands_for(name, candidate.name):
                    return candidate
        raise self._unknown(name)

    def _unknown(self, name: str) -> EngineError:
        runtime = name.partition(" ")[0]
        missing = [u for u in self.unavailable if u.name == runtime or _is_flavour(runtime, u.name)]
        missing.sort(key=lambda reason: not reason.broken)
        return EngineError(
            f"there is no engine {name!r} for this model on this machine"
            + (f": {missing[0].why}" if missing else ""),
            wanted=", ".join((AUTO, *(candidate.name for candidate in self.candidates))),
            got=name,
            fix=missing[0].fix
            if missing
            else 'choose one of these; pip install "acq-isl[openvino]" or "acq-isl[rtx]" adds more',
        )


def _is_or_begins(name: str, full: str) -> bool:
    return name in (full, full.partition(" ")[0])


def _is_flavour(name: str, full: str) -> bool:
    """Whether ``full`` is an engine ``RUNTIME_FLAVOUR PRECISION`` of ``RUNTIME`` or ``RUNTIME PRECISION``."""
    runtime, _, precision = name.partition(" ")
    other, _, its_precision = full.partition(" ")
    return other.startswith(f"{runtime}_") and precision in ("", its_precision)


def find_engines(model: ModelFile, options: LoadOptions | None = None) -> Found:
    """Ask every installed back end for its engines; one that is broken is reported and left out."""
    reference = Reference(model)
    candidates: list[Candidate] = []
    unavailable: list[Unavailable] = []
    for name, make in _installed_backends():
        try:
            backend = make()
            reason = backend.unavailable()
            if reason is None:
                found = backend.candidates(model, options or LoadOptions())
                candidates.extend(reference.guarding(candidate) for candidate in found)
            else:
                unavailable.append(reason)
        except Exception as error:  # noqa: BLE001  whatever another package raises
            unavailable.append(_broken(name, error))
    fix = "judge it again on more of your stacks, or go on without"
    refused = (
        Unavailable(candidate.name, f"not accepted: {candidate.refused}", fix)
        for candidate in candidates
        if candidate.refused
    )
    return Found(tuple(candidates), (*unavailable, *refused))


def _installed_backends() -> Iterator[tuple[str, Callable[[], Backend]]]:
    """Name of each back end of all packages installed here, and what makes it; the reference last."""
    entries = importlib.metadata.entry_points(group=GROUP)
    for entry in sorted(entries, key=lambda entry: (entry.name == _REFERENCE, entry.name)):
        yield entry.name, partial(_made, entry)
    if _REFERENCE not in entries.names:  # metadata older than the code, such as after `git pull`
        yield _REFERENCE, OnnxBackend


def _made(entry: importlib.metadata.EntryPoint) -> Backend:
    backend: Backend = entry.load()()
    return backend


def _broken(name: str, error: Exception) -> Unavailable:
    if isinstance(error, AcqIslError):
        _log.info("%s is installed but not used: %s", name, error.what)
        return Unavailable(
            name, f"{error.what}{f': {error.got}' if error.got else ''}", error.fix or "", True
        )
    _log.warning("back end %s is left out", name, exc_info=error)
    why = f"its package is broken: {type(error).__name__}: {error}"
    return Unavailable(name, why, "update or uninstall the package that adds it", broken=True)
