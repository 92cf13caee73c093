"""Units of what is measured, how numbers in them are written, and what they are in other units. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from acq_isl.errors import suggest


@dataclass(frozen=True, slots=True)
class Unit:
    """Unit of a measurement, and how numbers in it are written: times ``scale``, with ``text`` behind."""

    name: str
    text: str = ""
    scale: float = 1.0
    digits: int = 3
    low: float = -np.inf
    """Least and largest value that can be measured, where that is known."""
    high: float = np.inf

    def write(self, value: float, uncertainty: float = np.nan) -> str:
        """A number as a person writes it, such as ``12.3 ± 0.4 % of the area`` or ``41 objects``."""
        if not np.isfinite(value):
            return "no number"
        number, text = self.write_plain(value), self.text or self.name
        if np.isfinite(uncertainty):
            number += f" ± {uncertainty * self.scale:.{max(self.digits, 1)}f}"
        return f"{number} {text[:-1] if number == '1' and text in _PLURALS else text}"

    @property
    def range(self) -> str:
        """From where to where it goes, such as ``fraction from 0 to 1``."""
        low = f" from {self.low:g}" if np.isfinite(self.low) else ""
        high = f" to {self.high:g}" if np.isfinite(self.high) else " on" if low else ""
        return f"{self.name}{low}{high}"

    def write_limit(self, value: float) -> str:
        """A threshold as `write` does, but with all its digits: above .5 objects is not above 0."""
        exact = value * self.scale
        if abs(float(self.write_plain(value)) - exact) <= 1e-9 * max(abs(exact), 1.0):
            return self.write(value)
        return f"{exact:g} {self.text or self.name}"

    def write_plain(self, value: float) -> str:
        """The number alone, in the unit that `write` puts behind it."""
        return f"{value * self.scale:.{self.digits}f}"


_PLURALS = frozenset({"objects", "branch points"})

FRACTION = Unit("fraction", "% of the area", 100.0, 1, low=0.0, high=1.0)
SHARE = Unit("fraction", "% of the objects", 100.0, 1, low=0.0, high=1.0)
OBJECTS = Unit("objects", digits=0, low=0.0)
DENSITY = Unit("1/mm2", "objects per mm2", digits=1, low=0.0)
BRANCHES = Unit("branch points", digits=0, low=0.0)
INTENSITY = Unit("relative intensity", low=0.0, high=1.0)
INTEGRAL = Unit("relative intensity um2", digits=1, low=0.0)
LENGTH = Unit("um", "mm", 1e-3, 2, low=0.0)
OFFSET = Unit("um", digits=2)
AREA = Unit("um2", digits=1, low=0.0)
DIAMETER = Unit("um", digits=2, low=0.0)
RATIO = Unit("ratio", low=0.0, high=1.0)
RATE = Unit("1/h", "per hour", digits=3)
# Beyond the limit of the gate a stack is refused, or only proposed.
NOVELTY = Unit("of the gate's limit", digits=2, low=0.0, high=1.0)
MARGIN = Unit("of the gate's limit", digits=2, low=0.0, high=1.0)
SPREAD = Unit("relative intensity", low=0.0)

_NAMED = {unit.name: unit for unit in (OBJECTS, DENSITY, LENGTH, AREA, RATE, BRANCHES)}


def unit_named(name: str) -> Unit:
    """A unit by its name, written as what is built in is."""
    return _NAMED.get(name, Unit(name))


# How many of the second one of the first is; both ways, and along chains, by `convert`.
_FACTORS = {
    ("%", "fraction"): 0.01,
    ("percent", "fraction"): 0.01,
    ("%", "ratio"): 0.01,
    ("mm", "um"): 1e3,
    ("nm", "um"): 1e-3,
    ("mm2", "um2"): 1e6,
    ("1/cm2", "1/mm2"): 1e-2,
    ("1/um2", "1/mm2"): 1e6,
    ("1/day", "1/h"): 1 / 24,
    ("1/min", "1/h"): 60.0,
}
_SPELLINGS = {
    "µm": "um", "μm": "um", "µm2": "um2", "um^2": "um2", "µm^2": "um2", "µm²": "um2", "um²": "um2",
    "mm^2": "mm2", "mm²": "mm2", "per_h": "1/h", "per hour": "1/h", "/h": "1/h", "per mm2": "1/mm2",
    "1/mm^2": "1/mm2", "1/mm²": "1/mm2", "/mm2": "1/mm2", "object": "objects", "count": "objects",
    "1": "fraction", "per cent": "%", "share": "fraction",
}  # fmt: skip


def convert(value: float, unit: str, to: Unit) -> float:
    """A number in a unit by its name, in the unit of a measurement; ValueError if that is odd."""
    name = _SPELLINGS.get(unit.strip(), unit.strip())
    if name == to.name:
        return value
    if name == to.text:
        return value / to.scale
    factor = _FACTORS.get((name, to.name))
    if factor is None:
        raise ValueError(
            f"{unit!r} is no unit of what is measured in {to.name}; {suggest(name, units_of(to))}"
        )
    return value * factor


def units_of(unit: Unit) -> tuple[str, ...]:
    """All units in which a number for a measurement in this unit may be written."""
    return (unit.name, *(other for other, own in _FACTORS if own == unit.name))
