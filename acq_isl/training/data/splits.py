"""What is trained on and what is held out: whole wells or fields, never patches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from acq_isl.base import StrictModel
from acq_isl.errors import PairRefused
from acq_isl.training.data.pairs import Item, Recording

Unit = Literal["well", "field", "block of a field", "none"]


class _ByName(StrictModel):
    held_out: tuple[str, ...] = ()
    """Names; or give ``share``, or a list of sources at ``held_out`` beside ``data``."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """Drawn at random, at least one."""
    seed: int = 0

    @model_validator(mode="after")
    def _one_way(self) -> _ByName:
        if self.held_out and self.share is not None:
            raise ValueError("say held_out or share, not both")
        return self


class ByWell(_ByName):
    """Whole wells are held out."""

    by: Literal["well"]


class ByField(_ByName):
    """Whole fields are held out; other fields of their wells are trained on, so scores are optimistic."""

    by: Literal["field"]


class ByColumns(StrictModel):
    """Blocks of columns of the same field are held out: for a single field, and called what it is."""

    by: Literal["columns"]
    cuts_px: tuple[int, ...] = Field(min_length=1)
    """Columns at whose sides the blocks lie, rising; in pixels of the file."""
    held_out: tuple[int, ...] = Field(min_length=1)
    """Numbers of the blocks, from 0."""
    gap_px: int = Field(gt=0)
    """Columns around each cut that are not used at all."""
    margin_px: int = Field(default=32, gt=0)
    """How far the network sees: columns nearer than this to a cut share structures across it."""

    @model_validator(mode="after")
    def _apart(self) -> ByColumns:
        if self.gap_px < self.margin_px:
            raise ValueError(
                f"this split leaks: the gap of {self.gap_px} px is less than the {self.margin_px} px that "
                "the network sees beyond a cut; make gap_px larger"
            )
        if any(b - a <= self.gap_px for a, b in zip((0, *self.cuts_px), self.cuts_px, strict=False)):
            raise ValueError("cuts_px must rise by more than gap_px")
        wrong = [block for block in self.held_out if not 0 <= block <= len(self.cuts_px)]
        if wrong or len(set(self.held_out)) > len(self.cuts_px):
            raise ValueError(f"held_out must name some, not all, of the blocks 0 to {len(self.cuts_px)}")
        return self


Split = Annotated[ByWell | ByField | ByColumns, Field(discriminator="by")]


@dataclass(frozen=True, slots=True)
class Division:
    """The two sides, what was held out as a whole, and the same for tables, such as ``held-out wells``."""

    train: tuple[Item, ...]
    held_out: tuple[Item, ...]
    unit: Unit
    title: str

    def check_contents(self, digests: Mapping[str, str]) -> None:
        """Refuse the same pixels on both sides, whatever their names; ``digests`` by item name."""
        trained = {digests[item.name]: item.name for item in self.train}
        for item in self.held_out:
            if digests[item.name] in trained:
                other = trained[digests[item.name]]
                raise _leak(f"{item.name} has the same pixels as {other}, on the other side")


def divide(items: Sequence[Item], held_out: Sequence[Item], split: Split | None) -> Division:
    """Part fields from ``data``, and from sources that are held out explicitly, into the two sides. Raises
    `PairRefused` if nobody said how, a side is empty, a name does not exist, or the split leaks."""
    _check_names([*items, *held_out] if isinstance(split, ByColumns) else items)
    recorded = [item for item in items if not item.simulated]
    simulated = [item for item in items if item.simulated]
    if split is None:
        if recorded or held_out:
            raise PairRefused(
                "nobody said which fields are held out",
                wanted="split: {by: well, ...} or {by: field, ...}",
                fix="for a single field use split: {by: columns, ...}",
            )
        raise PairRefused("there is no recorded field to split", fix="name sources under data")
    if isinstance(split, ByColumns):
        return _columns(simulated, [*recorded, *held_out], split)
    names = {item.name: _unit_name(item, split.by) for item in [*recorded, *held_out]}
    if held_out:
        out = {names[item.name] for item in held_out}
        held = list(held_out)
        train = recorded
        both = sorted(out & {names[item.name] for item in train})
        if both:
            raise _leak(f"the {split.by} {both[0]} is on both sides")
    else:
        out = _chosen(sorted(set(names.values())), split)
        held = [item for item in recorded if names[item.name] in out]
        train = [item for item in recorded if names[item.name] not in out]
    return _checked(Division((*simulated, *train), tuple(held), split.by, f"held-out {split.by}s"))


def simulated_only(items: Sequence[Item], held_out: Sequence[Item]) -> Division:
    """Simulated fields, each of another specimen."""
    return _checked(Division(tuple(items), tuple(held_out), "field", "simulated"))


def _columns(simulated: Sequence[Item], items: Sequence[Item], split: ByColumns) -> Division:
    blocks = range(len(split.cuts_px) + 1)
    train = [_block(item, split, at) for item in items for at in blocks if at not in split.held_out]
    held = [_block(item, split, at) for item in items for at in blocks if at in split.held_out]
    title = "one field, columns" if len(items) == 1 else f"{len(items)} fields, columns"
    return _checked(Division((*simulated, *train), tuple(held), "block of a field", title))


def _block(item: Item, split: ByColumns, at: int) -> Item:
    half, rest = split.gap_px // 2, split.gap_px - split.gap_px // 2
    first = split.cuts_px[at - 1] + half if at else 0
    stop = split.cuts_px[at] - rest if at < len(split.cuts_px) else None

    def load() -> Recording:
        whole = item.load()
        width = whole.stack.shape[2]
        if first >= width or (stop or 0) > width:
            raise PairRefused(
                f"{item.name}: a block ends outside of the field",
                wanted=f"cuts_px within {width} columns",
                got=str(split.cuts_px),
                fix="choose other cuts",
            )
        return whole.columns(first, width if stop is None else stop)

    name = f"{item.name} block {at}"
    return replace(item, name=name, field=name, stamp=f"{item.stamp} {first} {stop}", load=load)


def _unit_name(item: Item, by: Literal["well", "field"]) -> str:
    if by == "field":
        return item.place
    if item.well is None:
        raise PairRefused(
            f"the well of {item.name} is not known, so the data cannot be split by well",
            fix="say well in its source, use {well} in the pattern of its names, or split by field",
        )
    return item.well


def _chosen(names: list[str], split: ByWell | ByField) -> set[str]:
    if split.share is not None:
        if len(names) < 2:
            raise PairRefused(
                f"one {split.by} cannot be split by {split.by}",
                fix="add data, or split: {by: columns, ...} for a single field",
            )
        order = np.random.default_rng(split.seed).permutation(len(names))
        count = min(max(round(split.share * len(names)), 1), len(names) - 1)
        return {names[at] for at in order[:count]}
    chosen = set()
    for wanted in split.held_out:
        found = [name for name in names if wanted in (name, name.rpartition("/")[2])]
        if len(found) != 1:
            raise PairRefused(
                f"there is no {split.by} {wanted}" if not found else f"{wanted} is not one {split.by}",
                wanted=" or ".join((found or names)[:20]),
                fix="correct held_out in the split",
            )
        chosen.update(found)
    return chosen


def _checked(division: Division) -> Division:
    for side, items in (("trained on", division.train), ("held out", division.held_out)):
        if not items:
            raise PairRefused(f"no field is {side}", fix="correct the split, or add data")
    return division


def _check_names(items: Sequence[Item]) -> None:
    names = Counter(item.name for item in items)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice is not None:
        raise PairRefused(
            f"two fields are called {twice}",
            fix="give their sources different plates, or use {plate} and {field} in the pattern",
        )


def _leak(what: str) -> PairRefused:
    return PairRefused(f"this split leaks: {what}", fix="hold out whole wells or fields, each once")
