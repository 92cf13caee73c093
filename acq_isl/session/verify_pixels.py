"""Predict the stacks of a run again from what was measured, and hold that against what was stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from acq_isl.engines.parity import LIMITS
from acq_isl.errors import AcqIslError
from acq_isl.session.findings import Finding
from acq_isl.session.measured import MeasuredRun
from acq_isl.session.predict_spool import Models
from acq_isl.session.rerun import Logged, StoredOutcomes, key_of
from acq_isl.stack import Outcome, Prediction, Refusal, StackKey, StackRequest, ZStack

_LEAST_SD = 0.02  # of a prediction, from 0 to 1; less is as good as flat
_SAME_ENGINE = 1e-4  # another number of threads may add in another order


def check_pixels(
    folder: Path, logged: Logged, requests: Mapping[StackKey, StackRequest], models: Models
) -> list[Finding]:
    """Predict every stack again from what was measured, and hold it against what was stored."""
    outcomes, measured = StoredOutcomes(folder, logged, requests), MeasuredRun(folder)
    found, offs = list[Finding](), dict[StackKey, float]()
    lines = (line for line in logged.of("outcome") if line["state"] == "refused")
    refused = {(key_of(line), str(line["model"])): line for line in lines}
    for key, model in dict.fromkeys((*outcomes.names, *refused)):
        line = refused.get((key, model))
        try:
            before = outcomes.prediction(key, model) if line is None else outcomes.get(line)
            off = _predict_again(before, measured, requests, models)
        except AcqIslError as error:
            found.append(Finding("measured pixels", "not verified", f"{key}: {error.what}"))
            continue
        if isinstance(off, str):
            found.append(Finding("measured pixels", "differs", f"{key}: {off}"))
        else:
            offs[key] = max(off, offs.get(key, 0.0))
    return [*found, *weigh(offs)]


def weigh(offs: Mapping[StackKey, float]) -> list[Finding]:
    """What shares of the limit say: where an engine gives some stacks bit for bit, it would give all."""
    exact = sum(off == 0.0 for off in offs.values())
    odd = {key: off for key, off in offs.items() if exact and off > 0.0}
    found = [
        Finding(
            "measured pixels",
            "differs",
            f"{key}: predicted again it is {off:.2g} of the limit off, and {exact} others are bit for bit",
        )
        for key, off in odd.items()
    ]
    good, worst = len(offs) - len(odd), 0.0 if exact else max(offs.values(), default=0.0)
    how = "bit for bit" if exact else f"at most {worst:.2g} of the limit off"
    text = (
        f"{good} stacks predicted again as they were stored, {how}" if good else "nothing was predicted again"
    )
    return [*found, Finding("measured pixels", "holds" if good else "not verified", text)]


def _predict_again(
    before: Outcome,
    measured: MeasuredRun,
    requests: Mapping[StackKey, StackRequest],
    models: Models,
) -> float | str:
    """How far off it is as a share of the limit, or in words what is wrong."""
    key = before.info.key
    request = requests[key] if key in requests else _request(before)
    if isinstance(before, Prediction):
        stack = ZStack(before.info, measured.images(request), (0.0,) * before.info.planes)
    else:
        stack = measured.stack(request)
    (now,) = models.predict(stack, (before.model,))
    if isinstance(before, Refusal):
        return 0.0 if isinstance(now, Refusal) else "was refused, and is not refused now"
    if not isinstance(before, Prediction) or not isinstance(now, Prediction):
        return f"was predicted, and is not now: {getattr(now, 'reason', '')}"
    if now.model_sha256 != before.model_sha256:
        return f"was predicted by another model ({before.model_sha256[:12]}, now {now.model_sha256[:12]})"
    off, limit = distance(before, now), limit_of(before.engine, now.engine)
    if off <= limit:
        return off / limit
    who = f"{now.engine} is {off:.2g} RMS off what {before.engine} predicted"
    return f"{who}; the limit is {limit:g}"


def _request(outcome: Outcome) -> StackRequest:
    info = outcome.info
    return StackRequest(info.key, info.x_um, info.y_um, info.z_um, "", info.key.channel, info.exposure_ms)


def distance(before: Prediction, now: Prediction) -> float:
    """RMS of the difference of two predictions as a share of the SD of the first; the worst label's."""
    if before.mean.shape != now.mean.shape:
        return math.inf
    pairs: Iterable[Any] = zip(before.mean, now.mean, strict=True)
    return max(
        float(np.sqrt(np.square(a - b, dtype=np.float64).mean()) / max(a.std(), _LEAST_SD)) for a, b in pairs
    )


def limit_of(before: str, now: str) -> float:
    """How far predictions of two engines may be apart, by the coarser precision."""
    if before == now and before.endswith("fp32"):
        return _SAME_ENGINE
    return max(LIMITS.get(engine.rpartition(" ")[2], LIMITS["bf16"]) for engine in (before, now))
