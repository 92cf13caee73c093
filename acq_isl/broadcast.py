"""News of one run go to the preview feed and to whoever else watches; neither can harm the run."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from acq_isl.commands import Order
from acq_isl.errors import StorageError
from acq_isl.events import Bound, News, Tell
from acq_isl.experiment.experiment import Experiment
from acq_isl.experiment.planning import Cycle
from acq_isl.rules.actions import Limits
from acq_isl.rules.measurements import title
from acq_isl.view.feed.feed import Feed

log = logging.getLogger(__name__)


class Broadcast:
    """The feed of a run, and one watcher in this process.

    A feed that cannot be opened becomes one of `warnings`, and a watcher that raises is not told again:
    the run goes on.

    Parameters
    ----------
    folder : Path
        Run folder.
    watch : callable
        Told of every news as well, on the thread on which it happens.
    """

    def __init__(self, folder: Path, watch: Tell) -> None:
        self._folder = folder
        self._watch: Tell | None = watch
        self._feed: Feed | None = None
        self._stack = ExitStack()
        self.warnings: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._feed = self._stack.enter_context(Feed(self._folder))
        except StorageError as error:
            self.warnings.append(f"nobody can watch this run: {error}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def tell(self, news: News) -> None:
        """Hand on; returns at once, never raises. Any thread may call it."""
        if self._feed is not None:
            self._feed.tell(news)
        if self._watch is None:
            return
        try:
            self._watch(news)
        except Exception:
            self._watch = None
            log.warning("the watcher of the run failed and is not told again", exc_info=True)

    def orders(self) -> tuple[Order, ...]:
        """What viewers ordered since the last call."""
        return () if self._feed is None else self._feed.orders()


def expected_slices(experiment: Experiment, plan: tuple[Cycle, ...]) -> tuple[int, int]:
    """Slices a run will take, as far as can be known: of the overview, and of revisits of chosen fields."""
    overview = revisit = 0
    for cycle in plan:
        overview += sum(len(request.z_um) for request in cycle.requests)
        if experiment.choose is not None and experiment.revisit is not None:
            fields = min(experiment.choose.k, len(cycle.requests))
            revisit += fields * len(list(experiment.revisit))
    return overview, revisit


def bounds(limits: Limits) -> tuple[Bound, ...]:
    """The limits of an experiment, for people."""
    places = (("x um", limits.x_um), ("y um", limits.y_um), ("z um", limits.z_um))
    found = [Bound(what, *values) for what, values in places if values is not None]
    if limits.exposure_ms is not None:
        found.append(Bound("exposure ms", None, limits.exposure_ms))
    return tuple(found)


def choice(experiment: Experiment) -> str:
    """What fields are chosen by, for people."""
    rule = experiment.choose
    if rule is None:
        return ""
    return f"the {rule.k} {'highest' if rule.descending else 'lowest'}: {title(rule.measurement)}"
