"""Where a model comes from, how well it did and what it refuses, in rows for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from acq_isl.manifest import Evaluation, Gate, Instrument, Manifest, Training

Row = tuple[str, str]
_SHOWN = 6  # names; the manifest holds all of them


def provenance(manifest: Manifest) -> tuple[Row, ...]:
    """Rows of name and value: instrument, training set, gate and evaluations, as far as they are known."""
    return (*_instrument(manifest.instrument), *_training(manifest.training), *_gate(manifest.gate),
            *_evaluations(manifest.evaluations))  # fmt: skip


def _instrument(one: Instrument | None) -> Iterator[Row]:
    if one is None:
        return
    parts = (
        f"{one.magnification:g}x" if one.magnification else "",
        f"NA {one.numerical_aperture:g}" if one.numerical_aperture else "",
        one.illumination,
        f"{one.bit_depth} bit" if one.bit_depth else "",
        f"in focus in the middle: {one.focus_reference}" if one.focus_reference else "",
        f"z rises {one.z_sign}" if one.z_sign != "unknown" else "",
    )
    yield "instrument", ", ".join(part for part in parts if part) or "not known"


def _training(one: Training | None) -> Iterator[Row]:
    if one is None:
        return
    if one.cell_type:
        yield "cells", one.cell_type
    for name, values in (("plates", one.plates), ("wells", one.wells), ("fields", one.fields)):
        if values:
            yield f"{name} seen", _some(values)
    yield "held out by", "nothing was held out" if one.split_unit == "none" else one.split_unit
    if one.data_licence:
        yield "data licence", one.data_licence


def _gate(gate: Gate | None) -> Iterator[Row]:
    if gate is None:
        yield "gate", "none: it cannot tell from a stack's looks whether it was trained for the like"
        return
    limits = ", ".join(
        f"{name} above {limit:.3g}" for name, limit in zip(gate.names, gate.limits, strict=True)
    )
    yield "gate", f"refuses {limits}; {100 * gate.false_alarms:.2g} % false alarms when fitted"


def _evaluations(found: Sequence[Evaluation]) -> Iterator[Row]:
    for one in found:
        values = ", ".join(f"{name} {value:.3g}" for name, value in one.metrics.items())
        yield f"evaluated {one.label}", f"{values} ({one.dataset}; n = {one.n}, split by {one.split_unit})"


def _some(values: Sequence[str]) -> str:
    more = len(values) - _SHOWN
    return ", ".join(values[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
