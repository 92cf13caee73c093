"""The acquiring end of the wire: takes slices off the camera thread, brings back predictions.

`EngineClient.put` copies a slice into memory shared with the engine and returns. One thread owns the
connection, another the spool; neither can make the acquisition wait. A stack is kept until its outcome
is here, so an engine may die, restart or never come: every stack ends up predicted, refused, or on disk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from acq_isl.errors import AcqIslError, SliceLost
from acq_isl.manifest import Manifest
from acq_isl.stack import Outcome, Slice, StackInfo, StackKey
from acq_isl.stream.accounts import SliceAccounts
from acq_isl.stream.callback import Callback
from acq_isl.stream.client_thread import ClientThread, Patience
from acq_isl.stream.connection import Connection, ConnectionSettings
from acq_isl.stream.messages import Wanted, Welcome
from acq_isl.stream.overflow import OverflowMemory
from acq_isl.stream.pending_queue import PendingQueue
from acq_isl.stream.pending_stack import ClientCounts
from acq_isl.stream.shared_memory import SharedMemory
from acq_isl.stream.sockets import is_local
from acq_isl.stream.spool import Spool, SpoolReason

log = logging.getLogger(__name__)

_WANTED_S = 1.0


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What a client may use and how patient it is."""

    memory_bytes: int = 512 << 20  # upper limit for stacks that wait or travel; the rest waits in the spool
    share_memory: bool = True  # offer the memory to a server on the same host
    patience: Patience = field(default_factory=Patience)  # when to give a stack up, or to put it on disk
    spool_timeout_s: float = 60.0  # longest time that `drain` and closing give the disk
    link: ConnectionSettings = field(default_factory=ConnectionSettings)
    wanted: Wanted | Callable[[StackInfo], Wanted] = field(default_factory=Wanted)
    """Models, class of work and deadline, of all stacks or given the `StackInfo` of each."""


class EngineClient:
    """A `SliceSink` and `PredictionSource` in front of an engine in another process or on another host.

    Parameters
    ----------
    endpoint : str
        Address of the server, such as ``tcp://127.0.0.1:5555``. It need not be there yet.
    spool : Spool
        Where stacks wait on disk.

    Raises
    ------
    StorageError
        On entering: no memory.
    EngineError
        On entering: the address cannot be used.
    SliceLost
        From `drain` and on leaving: a captured slice is neither predicted nor on disk.
    """

    copies = True
    """`put` takes its own copy of the pixels, so the capture hook need not."""

    def __init__(self, endpoint: str, *, spool: Spool, settings: ClientSettings | None = None) -> None:
        self._endpoint, self._spool, self._settings = endpoint, spool, settings or ClientSettings()
        self._lost_reported = 0
        wanted = self._settings.wanted
        self._wanted = Callback(wanted, "the function 'wanted'", _WANTED_S) if callable(wanted) else wanted
        self.accounts = SliceAccounts()
        """Where slices are counted, also those that whoever puts them did not hand on."""

    def __enter__(self) -> EngineClient:
        settings = self._settings
        shared = settings.share_memory and is_local(self._endpoint)
        self._memory = SharedMemory(settings.memory_bytes, shared=shared)
        self._overflow = OverflowMemory(self._spool.folder)
        self._queue = PendingQueue(self._memory, self.accounts, self._wanted_of, overflow=self._overflow)
        self._connection = Connection(self._endpoint, settings.link, self._memory.offer, self._memory.nonce)
        self._thread = ClientThread(self._queue, self._connection, self._spool, settings.patience)
        try:
            self._thread.start()
        except AcqIslError:
            self._memory.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._queue.close_all("closed", "the client was closed first")
        self._thread.wake()
        outcomes: list[Outcome] = []
        try:
            self._collect(self._settings.spool_timeout_s, outcomes)
        finally:  # a second Ctrl-C ends the waiting, not the book-keeping
            self._queue.put_back(outcomes)
            self._thread.stop()
            self._queue.abandon()
            self._memory.close()
            self._overflow.close()
        try:
            self._require_nothing_lost(stuck=False)
        except SliceLost as lost:
            if kind is None:
                raise
            log.error("%s", lost)  # another error is on its way and says more

    def _wanted_of(self, info: StackInfo) -> Wanted:
        """What is wanted of a stack; the default if the user's function fails, for a slice cannot wait."""
        wanted: object = self._wanted
        try:
            if isinstance(wanted, Callback):
                wanted = wanted(info)
            if not isinstance(wanted, Wanted):
                raise TypeError(f"a Wanted was expected, got {wanted!r}")
        except Exception:
            log.exception("what is wanted of %s is not known; the engine's first model is asked", info.key)
            return Wanted()
        return wanted

    @property
    def counts(self) -> ClientCounts:
        """What became of everything put so far."""
        return self._queue.counts

    @property
    def connected(self) -> bool:
        """Whether an engine answers right now."""
        return self._connection.welcome is not None

    @property
    def engine(self) -> Welcome | None:
        """What the engine that answers right now says of itself and its models, or None."""
        return self._connection.welcome

    @property
    def manifest(self) -> Manifest | None:
        """What the connected engine's first model expects; ModelError if its manifest cannot be read."""
        welcome = self._connection.welcome
        return None if welcome is None else Manifest.from_json(welcome.manifest)

    @property
    def transport(self) -> str:
        """How pixels travel right now, for people."""
        if not self.connected:
            return f"no engine: {self._connection.trouble}"
        return "shared memory" if self._connection.shares_memory else self._endpoint.partition(":")[0]

    def put(self, slice_: Slice) -> None:
        """Take a slice: one copy of its pixels. Never blocks, never raises; see `counts` and `drain`."""
        self._queue.put(slice_)
        self._thread.wake()

    def poll(self) -> list[Outcome]:
        """Outcomes that have arrived since the last call; returns at once."""
        outcomes = self._queue.poll()
        if outcomes:
            self._thread.wake()  # there may be room for more predictions now
        return outcomes

    def wait_connected(self, timeout_s: float) -> bool:
        """Wait until an engine answers; whether one does."""
        return self._queue.wait_for(lambda: self.connected, timeout_s)

    def cancel(self, key: StackKey) -> bool:
        """No prediction of a stack is wanted any more; False if it is not there or was predicted.

        It is kept on disk like every stack without a prediction, and its outcome says so.
        """
        found = self._queue.cancel(key)
        self._thread.wake()
        return found

    def discard(self, key: StackKey, again: bool = True) -> None:
        """A stack that misses slices is imaged again, or left out: what came of it is not wanted any more.

        It has no outcome; its slices, which are in the measured data, are counted as not wanted.
        """
        self._queue.discard(key, again)
        self._thread.wake()

    def wait(self, timeout_s: float) -> bool:
        """Wait until an outcome is here, none is to come, or time is up; whether one is, or is to come."""
        return self._queue.wait_outcome(timeout_s)

    def drain(self, timeout_s: float) -> list[Outcome]:
        """Wait until every stack put so far has an outcome; after ``timeout_s`` the rest are `Unpredicted`.

        Incomplete stacks are given up at once: call this when nothing is being captured.

        Raises
        ------
        SliceLost
            A captured slice is neither predicted nor on disk. The outcomes are left for `poll`.
        """
        self._queue.close_incomplete()
        self._thread.wake()
        outcomes: list[Outcome] = []
        stuck = False
        if not self._collect(timeout_s, outcomes):
            state = "the engine is too slow" if self.connected else f"no engine: {self._connection.trouble}"
            reason: SpoolReason = "timed out" if self.connected else "no engine"
            self._queue.close_all(reason, f"no prediction within {timeout_s:g} s, {state}")
            self._thread.wake()
            stuck = not self._collect(self._settings.spool_timeout_s, outcomes)
        try:
            self._require_nothing_lost(stuck)
        except SliceLost:
            self._queue.put_back(outcomes)
            raise
        return outcomes

    def _collect(self, timeout_s: float, outcomes: list[Outcome]) -> bool:
        """Take outcomes until every stack has one; False after the time limit."""
        deadline_s = time.monotonic() + timeout_s
        while not self._queue.collect(outcomes, min(max(deadline_s - time.monotonic(), 0.0), 1.0)):
            if time.monotonic() >= deadline_s or not self._thread.running:
                return False
            self._thread.wake()  # there may be room for more predictions now
        return True

    def _require_nothing_lost(self, stuck: bool) -> None:
        lost = self.counts.lost + self._queue.slices_held * stuck
        new, self._lost_reported = lost - self._lost_reported, lost
        if new > 0:
            raise SliceLost(
                f"{new} captured slice{'s' * (new != 1)} could be neither predicted nor kept on disk",
                wanted=f"room in {self._spool.folder}",
                fix="free disk space or give the client more memory_bytes; the measured data is not touched",
            )
