"""The plan as it is now: what actions have changed of it since the run began. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from acq_isl.experiment.planning import Cycle
from acq_isl.rules.actions import PlanChange
from acq_isl.stack import StackRequest


class ChangedPlan:
    """Stacks and starting times of a plan, with all changes so far; ``at`` is the last cycle that began."""

    def __init__(self, cycles: Sequence[Cycle]) -> None:
        self._cycles = cycles
        self._change = PlanChange()
        self._changed_at = 0
        self._changed_start_s = 0.0
        self._focus_um: dict[str, float] = {}
        self.at = 0

    def change(self, change: PlanChange) -> str:
        """Change what is not imaged yet; what that means, in words."""
        left = len(self._cycles) - self.at - 1
        if change.interval_s is not None:
            self._changed_start_s, self._changed_at = self.start_s(self.at), self.at
        before = self._change
        self._change = PlanChange(
            before.interval_s if change.interval_s is None else change.interval_s,
            before.exposure_ms if change.exposure_ms is None else change.exposure_ms,
            before.channels if change.channels is None else change.channels,
        )
        return f"done: {left} time point{'s' * (left != 1)} to come"

    def refocus(self, position: str, moved_um: float) -> None:
        """The focus of a position lies so much higher than it was thought to."""
        self._focus_um[position] = self._focus_um.get(position, 0.0) + moved_um

    def start_s(self, number: int) -> float:
        """When a cycle starts, on the clock of its ``start_s``."""
        cycle, interval_s = self._cycles[number], self._change.interval_s
        if interval_s is None or cycle.restarts or number < self._changed_at:
            return cycle.start_s
        return self._changed_start_s + (number - self._changed_at) * interval_s

    def request(self, planned: StackRequest) -> StackRequest | None:
        """A stack of the plan as it is to be imaged now; None if its channel is not wanted any more."""
        change = self._change
        if change.channels is not None and planned.key.channel not in change.channels:
            return None
        exposure_ms = planned.exposure_ms if change.exposure_ms is None else change.exposure_ms
        moved_um = self._focus_um.get(planned.key.position, 0.0)
        z_um = tuple(round(z + moved_um, 4) for z in planned.z_um) if moved_um else planned.z_um
        return replace(planned, exposure_ms=exposure_ms, z_um=z_um)
