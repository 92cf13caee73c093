"""In which ways the engine of a run may be started, from the best down. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from acq_isl.experiment.experiment import LocalEngine
from acq_isl.stream.process import Rung

_SURE = "onnxruntime"


def rungs(engines: Sequence[str], settings: LocalEngine) -> list[Rung]:
    """The ladder: each of a model's ``engines``, best first, then the smaller model; never empty."""
    best = engines[0] if engines else "the engine"
    if not settings.degrade:
        return [Rung(best, ("--alone",))]
    found = [Rung(best)]
    for number, name in enumerate(engines[1:], start=1):
        remark = f"{best} ended the engine's process; predicted with {name}"
        found.append(Rung(name, ("--skip", str(number), "--remark", remark)))
    if settings.smaller_model is not None:
        remark = (
            f"no engine ran the model of this run; predicted with the smaller one, {settings.smaller_model}"
        )
        options = ("--backend", _SURE, "--remark", remark)
        found.append(Rung(f"the smaller model {settings.smaller_model}", options, settings.smaller_model))
    return found
