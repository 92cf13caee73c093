"""The client's own thread: carries slices to the engine, outcomes back, and stacks to and from disk."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from acq_isl.errors import StorageError, WireError
from acq_isl.stack import Slice, StageTimes
from acq_isl.stream.codec import encode, prediction_of, slice_frames
from acq_isl.stream.connection import Connection
from acq_isl.stream.messages import (
    Cancel,
    Done,
    Expired,
    Failed,
    Message,
    Refused,
    Result,
    Welcome,
    Withdraw,
    Withdrawn,
)
from acq_isl.stream.pending_queue import PendingQueue
from acq_isl.stream.pending_stack import PendingStack, engine_lost, in_turn, to_withdraw
from acq_isl.stream.spool import Spool, SpoolReason, SpoolWorker

log = logging.getLogger(__name__)

_LOOP_S = 0.1
_GIVE_WAY_S = 0.002
_DISK_RETRY_S = 5.0
_OUTCOMES_AHEAD = 16


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait before giving up, in seconds.

    Parameters
    ----------
    stack_timeout_s : float
        A stack whose next slice does not come for this long ends as incomplete.
    absent_s : float
        Without an engine for this long, complete stacks leave the memory for the spool.
    """

    stack_timeout_s: float = 120.0
    absent_s: float = 5.0


class ClientThread:
    """Moves what the outbox holds.

    Parameters
    ----------
    box : PendingQueue
        Only touched while ``changed`` is held, where it does not say otherwise.
    changed : Condition
        Notified when an outcome was added.
    link : Connection
        Opened and used by the courier's thread only.
    spool : Spool
    patience : Patience
    """

    def __init__(
        self,
        box: PendingQueue,
        changed: threading.Condition,
        link: Connection,
        spool: Spool,
        patience: Patience,
    ) -> None:
        self._box, self._changed, self._link = box, changed, link
        self._spool, self._patience = spool, patience
        self._worker = SpoolWorker()
        self._thread = threading.Thread(target=self._run, name="acq-isl client", daemon=True)
        self._stopping = threading.Event()
        self._absent_since_s: float | None = time.monotonic()
        self._disk_retry_s = 0.0
        self._greeted = False

    def start(self) -> None:
        """Begin; EngineError if the engine's address cannot be used."""
        self._link.open()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._worker.__enter__()
        self._thread.start()

    def stop(self) -> None:
        """End both threads and the connection."""
        self._stopping.set()
        self.wake()
        self._thread.join(timeout=10)
        self._worker.__exit__(None, None, None)
        self._wake_in.close()
        self._wake_out.close()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wake(self) -> None:
        """There is something new in the outbox. Any thread may call it."""
        # It has been woken more than often enough, or has ended.
        with suppress(OSError):
            self._wake_in.send(b"\0")

    # Everything below runs on the courier's thread, but for `_write`, `_read` and `_remove`.

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                backlog = self._step()
                self._link.wait(self._wake_out, _LOOP_S, until_sendable=backlog)
                with suppress(BlockingIOError):
                    self._wake_out.recv(4096)
                    # Right after a slice Pycro-Manager prepares the next exposure: whoever computes now
                    # delays it (by 5 % of a stack on two cores), whoever waits computes during it.
                    self._stopping.wait(_GIVE_WAY_S)
        except Exception:
            log.exception("the client's thread failed; no stack is sent any more")
        finally:
            self._link.close()
            with self._changed:
                self._changed.notify_all()

    def _step(self) -> bool:
        """One round; True if slices are left that ZMQ did not take yet."""
        connected = self._link.welcome is not None
        self._link.tick()
        for message, buffers in self._link.receive():
            self._handle(message, buffers)
        if connected and self._link.welcome is None:
            self._absent_since_s = time.monotonic()
            with self._changed:
                engine_lost(self._box.held.values())
        self._box.reserve_ahead()
        backlog = self._send()
        self._keep()
        return backlog

    def _handle(self, message: Message, buffers: Sequence[memoryview]) -> None:
        if isinstance(message, Welcome):
            self._absent_since_s = None
            with self._changed:
                self._box.count["reconnects"] += self._greeted
                server_has = frozenset(message.held)
                self._box.unwanted = engine_lost(self._box.held.values(), server_has)
            self._greeted = True
        elif isinstance(message, Result | Refused | Failed | Expired):
            self._settle(message, buffers)
            self._link.send(encode(Done(stack=message.stack, model=message.model)))
        elif isinstance(message, Withdrawn):
            with self._changed:
                self._box.withdrawn(message.stack)
        else:
            log.warning("ignored a %s message of the engine", message.type)

    def _settle(self, message: Result | Refused | Failed | Expired, buffers: Sequence[memoryview]) -> None:
        with self._changed:
            held = self._box.held.get(message.stack)
            if held is None:
                return  # it has all its outcomes already
            if isinstance(message, Refused):
                self._box.settle(held, held.refusal(message))
            elif isinstance(message, Failed):
                self._box.fail(held, message.model, "failed", f"the engine failed: {message.reason}")
            elif isinstance(message, Expired):
                self._box.fail(held, message.model, "deadline", held.too_late)
            else:
                try:
                    prediction = prediction_of(message, buffers, held.stack.info)
                except WireError as error:
                    self._box.fail(held, message.model, "failed", str(error))
                else:
                    self._box.settle(held, replace(prediction, times=self._times(held, message)))
            self._changed.notify_all()

    def _times(self, held: PendingStack, message: Result) -> StageTimes:
        first, last = min(held.stack.captured_s), max(held.stack.captured_s)
        complete_s = message.complete_s - self._link.clock_offset_s
        return replace(
            message.times,
            expose_ms=(last - first) * 1e3,
            transfer_ms=max(complete_s - last, 0.0) * 1e3,
        )

    def _send(self) -> bool:
        welcome = self._link.welcome
        if welcome is None:
            return False
        with self._changed:
            # Predictions that nobody takes must not pile up: their stacks wait instead.
            credit = welcome.credit if len(self._box.outcomes) < _OUTCOMES_AHEAD else 0
            for held in self._box.grant(credit):
                if not self._worker.submit(partial(self._read, held)):
                    self._box.not_read(held)
            # What is free now was granted just above, so the server must hear of it first.
            unwanted, self._box.unwanted = self._box.unwanted, []
            ready = [(held, held.unsent) for held in in_turn(self._box.held.values())]
            give_way = to_withdraw(self._box.held.values(), credit) if credit else []
        while unwanted:
            if not self._link.send(encode(Cancel(stack=unwanted[0]))):
                with self._changed:
                    self._box.unwanted[:0] = unwanted
                return True
            unwanted.pop(0)
        for held in give_way:
            self._link.send(encode(Withdraw(stack=held.id)))
        for held, wanted in ready:
            for z in wanted:
                try:
                    frames = self._frames(held, z)
                except WireError as error:
                    with self._changed:
                        self._box.end(held, "failed", str(error))
                    break
                if not self._link.send(frames):
                    return True
                held.sent.add(z)
                with self._changed:
                    self._box.count["sent"] += 1
        return False

    def _frames(self, held: PendingStack, z: int) -> list[bytes | memoryview]:
        slice_ = Slice(held.stack.info, z, held.stack.pixels[z], held.stack.captured_at(z))
        # ZMQ may still read a block that was released, for a stack that was cancelled: the server
        # forgets such a stack, so it does not matter whose pixels it got.
        in_ring = self._link.ring_seen and held.block is not None
        ref = held.block.ref if in_ring and held.block else None
        return slice_frames(held.id, slice_, ref, held.still_wanted, held.left_ms(time.monotonic()))

    def _keep(self) -> None:
        """See to what has to go to disk."""
        now_s = time.monotonic()
        with self._changed:
            self._box.expire(now_s, self._patience.stack_timeout_s)
            jobs = [(held, held.ending[0]) for held in self._box.to_end() if held.ending]
            reason = self._box.to_spill(self._absent_since_s, now_s, self._patience.absent_s)
            if reason is not None and now_s >= self._disk_retry_s:
                spilled = self._box.spill(reason)
                if spilled is not None:
                    jobs.append((spilled, reason))
            for held, why in jobs:
                if not self._worker.submit(partial(self._write, held, why)):
                    held.place = "memory"  # the next round tries again
            spare, self._box.spare = self._box.spare, []
            self._changed.notify_all()
        for path in spare:
            if not self._worker.submit(partial(self._remove, path)):
                log.warning(
                    "the spooled stack %s was predicted, but stays on disk: the disk is too busy", path
                )

    # Jobs of the spool's thread.

    def _write(self, held: PendingStack, reason: SpoolReason) -> None:
        try:
            path = self._spool.write(held.spooled(reason))
        except StorageError as error:
            log.warning("%s", error)
            with self._changed:
                self._disk_retry_s = time.monotonic() + _DISK_RETRY_S
                self._box.not_written(held, str(error))
                self._changed.notify_all()
        else:
            with self._changed:
                self._box.written(held, path, reason)
                self._changed.notify_all()
        self.wake()

    def _read(self, held: PendingStack) -> None:
        try:
            if held.path is None or held.block is None:
                raise StorageError(f"stack {held.stack.info.key} has no file to be read from")
            spooled = self._spool.read(held.path)
            np.copyto(held.block.pixels, spooled.pixels)
        except (StorageError, ValueError) as error:
            with self._changed:
                self._box.unreadable(held, str(error))
                self._changed.notify_all()
        else:
            with self._changed:
                self._box.read(held)
        self.wake()

    def _remove(self, path: Path) -> None:
        try:
            self._spool.remove(path)
        except StorageError as error:
            log.warning("%s", error)
