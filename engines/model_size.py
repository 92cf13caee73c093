"""Which of several sizes of a model keeps a deadline on this machine: measured once, as engines are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from acq_isl.engines.backend import LoadOptions
from acq_isl.engines.backends import AUTO, find_engines
from acq_isl.engines.model_file import read_model
from acq_isl.engines.selection import FIELD_PX, sample_stack, select, shortest_ms
from acq_isl.errors import EngineError

SHARE = 0.8  # of a deadline that may be computing; the rest is for the way there and back


@dataclass(frozen=True, slots=True)
class Size:
    """A model, as it was given, and what it is expected to take for a field."""

    model: str
    expected_ms: float


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be predicted, and with what."""

    field_px: tuple[int, int]
    views: int = 1
    threads: int | None = None
    backend: str = AUTO
    skip: int = 0  # so many of the best engines are left out


def measure_size(model: str, work: Work, enough_ms: float = math.inf) -> Size:
    """How long the engine takes that would be used; ModelError or EngineError if none can be.

    What was measured once is measured again where it is above ``enough_ms``: the machine may have been busy.
    """
    file = read_model(model)
    found = find_engines(file, LoadOptions(work.threads, work.field_px))
    automatic = [candidate for candidate in found.candidates if candidate.automatic]
    candidates = automatic if work.backend == AUTO else [found.named(work.backend)]
    selected = select(file, candidates, threads=work.threads)
    name = (selected.order[work.skip :] or selected.order[-1:])[0]
    rows, columns = work.field_px
    times = rows * columns / FIELD_PX**2 * work.views
    took_ms = selected.took_ms[name]
    if took_ms * times > enough_ms:
        with found.named(name).load() as engine:
            again = shortest_ms({name: engine}, sample_stack(file, FIELD_PX), {})
        took_ms = min(took_ms, again.get(name, took_ms))
    return Size(model, took_ms * times)


def choose_size(sizes: Sequence[Size], deadline_ms: float) -> tuple[Size, str]:
    """The first, best one that keeps the deadline, else the fastest; and why, for people."""
    if not sizes:
        raise EngineError("no model was given", fix="name at least one")
    most_ms = SHARE * deadline_ms
    told = ", ".join(f"{size.model} {size.expected_ms:.0f} ms" for size in sizes)
    for size in sizes:
        if size.expected_ms <= most_ms:
            return size, f"{size.model} keeps the deadline of {deadline_ms:g} ms ({told} expected)"
    fastest = min(sizes, key=lambda size: size.expected_ms)
    why = (
        f"no model keeps the deadline of {deadline_ms:g} ms, {fastest.model} is the fastest ({told} expected)"
    )
    return fastest, why
