"""Everything that watches a run: the feed for viewers in other processes, and views in this one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from acq_isl.commands import Command
from acq_isl.errors import StorageError
from acq_isl.events import Event, EventHandler, ignore_event
from acq_isl.protocols import RunView
from acq_isl.stream.callback import Callback
from acq_isl.view.feed.feed import Feed
from acq_isl.view.feed.queues import EventQueue

log = logging.getLogger(__name__)

CLOSE_S = 5.0
"""How long the end of a run waits for a view."""
WATCH_S = 2.0
_LOOK_S = 0.1


class ViewThread:
    """Calls a view on its own thread, from a bounded queue; an error in it is logged once, and ends it."""

    def __init__(self, view: RunView, queue: EventQueue | None = None) -> None:
        self._view, self._name = view, type(view).__name__
        self._queue = queue or EventQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"acq-isl-view-{self._name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.warning("the view %s did not end within %g s; the run goes on", self._name, CLOSE_S)
        if self.dropped:
            log.warning("the view %s was too slow for %d events of the run", self._name, self.dropped)

    @property
    def dropped(self) -> int:
        """Events that had to go before the view took them."""
        return self._queue.dropped

    def handle(self, event: Event) -> None:
        """Leave an event for the view; returns at once. Any thread."""
        if self._thread.is_alive():
            self._queue.put(event)

    def _run(self) -> None:
        with ExitStack() as stack:
            try:
                self._view.setup()
                stack.callback(self._close)
                while (taken := self._queue.take(_LOOK_S)) is not None or not self._stopping.is_set():
                    if taken is not None:
                        self._view.handle(taken[1])
            except (Exception, SystemExit):
                log.warning("the view %s failed; it gets no more events", self._name, exc_info=True)

    def _close(self) -> None:
        try:
            self._view.close()
        except (Exception, SystemExit):
            log.warning("the view %s failed at its end", self._name, exc_info=True)


class Views:
    """All views of a run.

    A feed that cannot be opened in the run's ``folder`` becomes one of `warnings`; a handler that raises is
    not called again: the run goes on. ``watch`` gets every event as well, on a thread of its own; whoever
    tells of the event waits until it returns, for `WATCH_S` at most, and then calls it no more.
    """

    def __init__(self, folder: Path, watch: EventHandler, views: Sequence[RunView] = ()) -> None:
        self._folder, self._views = folder, views
        self._handlers: list[EventHandler] = []
        if watch is not ignore_event:
            self._handlers.append(Callback(watch, "the function that watches the run", WATCH_S))
        self._feed: Feed | None = None
        self._stack = ExitStack()
        self.warnings: list[str] = []

    def __enter__(self) -> Self:
        try:
            self._feed = self._stack.enter_context(Feed(self._folder))
            self._handlers.append(self._feed.handle)
        except StorageError as error:
            self.warnings.append(f"nobody can watch this run: {error}")
        self._handlers += [self._stack.enter_context(ViewThread(view)).handle for view in self._views]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def handle(self, event: Event) -> None:
        """Hand on; never raises, and returns at once but for ``watch``. Any thread may call it."""
        for handler in self._handlers:
            try:
                handler(event)
            except (Exception, SystemExit):
                self._handlers = [other for other in self._handlers if other is not handler]
                log.warning("a watcher of the run failed; it gets no more events", exc_info=True)

    def commands(self) -> tuple[Command, ...]:
        """What operators asked for since the last call."""
        return () if self._feed is None else self._feed.commands()
