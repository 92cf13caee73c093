"""Which fields are drawn at random, and whether a label is acted upon after its spot checks. Pure."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from acq_isl.rules.rankings import Choice
from acq_isl.stack import StackKey


def is_drawn(what: str, seed: int, share: float, key: StackKey) -> bool:
    """Whether a field is drawn, with probability ``share``, independently of all others; always the same."""
    text = f"{what}|{seed}|{key.time}|{key.position}|{key.channel}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) < share * 2.0**64


@dataclass(frozen=True, slots=True)
class SpotScore:
    """A predicted label of one field against its stain."""

    label: str
    r: float
    """Correlation of all pixels; NaN where one of the images is the same everywhere."""
    found: int
    true: int
    matched: int
    """Objects predicted, in the stain, and in both; all 0 for a network."""

    @property
    def text(self) -> str:
        f1 = object_f1([self])
        objects = f", objects F1 = {f1:.2f} ({self.found} predicted, {self.true} in the stain)"
        return f"r = {self.r:.2f}" + (objects if math.isfinite(f1) else "")


def object_f1(scores: Sequence[SpotScore]) -> float:
    """2 matched / (found + true), of all together; NaN without any object."""
    objects = sum(score.found + score.true for score in scores)
    return 2 * sum(score.matched for score in scores) / objects if objects else math.nan


def score_of(line: Mapping[str, Any]) -> SpotScore:
    """The score that a line ``spot_check`` of a ledger holds."""
    r = math.nan if line["r"] is None else float(line["r"])
    return SpotScore(line["label"], r, line["found"], line["true"], line["matched"])


class SpotJudge:
    """Says when a label falls below its bar; which it then stays, until somebody says otherwise."""

    def __init__(self, r: float | None, f1: float | None, least: int, over: int) -> None:
        self._r, self._f1, self._least, self._over = r, f1, least, over
        self._scores: dict[str, deque[SpotScore]] = {}
        self.propose_only: dict[str, str] = {}
        """Why labels are not acted upon any more."""

    def add(self, score: SpotScore) -> str:
        """Why the label is only to be proposed from now on; empty if it stays as it was."""
        scores = self._scores.setdefault(score.label, deque(maxlen=self._over))
        scores.append(score)
        if score.label in self.propose_only or len(scores) < self._least:
            return ""
        # A prediction without any contrast does not resemble a stain that has objects.
        known = [one.r if math.isfinite(one.r) else 0.0 for one in scores if math.isfinite(one.r) or one.true]
        found = {"r": statistics.fmean(known) if known else math.nan, "F1": object_f1(list(scores))}
        bars = {"r": self._r, "F1": self._f1}
        low = [
            f"{name} = {found[name]:.2f}, below {bar:g}"
            for name, bar in bars.items()
            if bar is not None and found[name] < bar
        ]
        if low:
            checks = f"of the last {len(scores)} spot checks of {score.label}"
            self.propose_only[score.label] = f"{' and '.join(low)} {checks}"
        return self.propose_only.get(score.label, "")


def propose(choice: Choice, why: str) -> Choice:
    """The same place in a ranking, but not chosen: proposed."""
    if not choice.chosen:
        return choice
    reason = f"Proposed only ({why}): {choice.reason.partition(': ')[2]}"
    return replace(choice, chosen=False, reason=reason)
