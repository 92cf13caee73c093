"""The client's own thread: carries slices to the engine, outcomes back, and stacks to and from disk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import assert_never

import numpy as np

from acq_isl.errors import StorageError, WireError
from acq_isl.stack import Refusal, Slice, StageTimes
from acq_isl.stream import messages as wire
from acq_isl.stream.codec import Frame, encode, prediction_of, slice_frames
from acq_isl.stream.connection import Connection
from acq_isl.stream.pending_queue import PendingQueue
from acq_isl.stream.pending_stack import PendingStack, State
from acq_isl.stream.sockets import Waker
from acq_isl.stream.spool import Spool, SpoolReason, SpoolThread

log = logging.getLogger(__name__)

_LOOP_S = 0.1
_GIVE_WAY_S = 0.002
_DISK_RETRY_S = 5.0
_Answer = wire.Result | wire.Refused | wire.Failed | wire.Expired


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait before giving up, in seconds."""

    stack_timeout_s: float = 120.0  # a stack whose next slice does not come for this long ends as incomplete
    absent_s: float = 5.0  # without an engine for this long, complete stacks leave the memory for the spool


class ClientThread:
    """Moves what is in the queue. The connection is opened and used by this thread only."""

    def __init__(self, queue: PendingQueue, connection: Connection, spool: Spool, patience: Patience) -> None:
        self._queue, self._connection = queue, connection
        self._spool, self._patience = spool, patience
        self._disk = SpoolThread()
        self._thread = threading.Thread(target=self._run, name="acq-isl client", daemon=True)
        self._stopping = threading.Event()
        self._absent_since_s: float | None = time.monotonic()
        self._disk_retry_s = 0.0
        self._greeted = False

    def start(self) -> None:
        """Begin; EngineError if the engine's address cannot be used."""
        self._connection.open()
        self._waker = Waker()
        self._open = ExitStack()
        self._open.callback(self._waker.close)
        self._open.enter_context(self._disk)
        self._thread.start()

    def stop(self) -> None:
        """End both threads and the connection."""
        self._stopping.set()
        self.wake()
        self._thread.join(timeout=10)
        self._open.close()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wake(self) -> None:
        """There is something new in the queue. Any thread may call it."""
        self._waker.wake()

    # ---- on the client's thread

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                backlog = self._step()
                self._connection.wait(self._waker.socket, _LOOP_S, until_sendable=backlog)
                if self._waker.clear():
                    # Right after a slice Pycro-Manager prepares the next exposure: whoever computes now
                    # delays it (by 5 % of a stack on two cores), whoever waits computes during it.
                    self._stopping.wait(_GIVE_WAY_S)
        except Exception:
            log.exception("the client's thread failed; no stack is sent any more")
        finally:
            self._connection.close()
            self._queue.notify()

    def _step(self) -> bool:
        """One round; True if slices are left that ZMQ did not take yet."""
        connected = self._connection.welcome is not None
        self._connection.tick()
        for message, buffers in self._connection.receive():
            self._handle(message, buffers)
        if connected and self._connection.welcome is None:
            self._absent_since_s = time.monotonic()
            self._queue.lose_engine()
        self._queue.reserve_ahead()
        backlog = self._send()
        self._use_disk()
        return backlog

    def _handle(self, message: wire.Message, buffers: Sequence[memoryview]) -> None:
        match message:
            case wire.Welcome():
                self._absent_since_s = None
                self._queue.find_engine(frozenset(message.held), again=self._greeted)
                self._greeted = True
            case wire.Result() | wire.Refused() | wire.Failed() | wire.Expired():
                stack = self._queue.find(message.stack)
                if stack is not None:  # else it has all its outcomes already
                    self._take_answer(stack, message, buffers)
                self._connection.send(encode(wire.Done(stack=message.stack, model=message.model)))
            case wire.Withdrawn():
                self._queue.give_back(message.stack)
            case _:
                log.warning("ignored a %s message of the engine", message.type)

    def _take_answer(self, stack: PendingStack, answer: _Answer, buffers: Sequence[memoryview]) -> None:
        match answer:
            case wire.Refused(reason=reason, fix=fix, model=model):
                self._queue.answer(stack, Refusal(stack.info, reason, fix, model))
            case wire.Failed(reason=reason, model=model):
                self._queue.fail(stack, model, "failed", f"the engine failed: {reason}")
            case wire.Expired(model=model):
                self._queue.fail(stack, model, "deadline", stack.overdue_text)
            case wire.Result(model=model):
                try:
                    self._connection.require_promised(answer)
                    prediction = prediction_of(answer, buffers, stack.info)
                except WireError as error:
                    self._queue.fail(stack, model, "failed", str(error))
                else:
                    self._queue.answer(stack, replace(prediction, times=self._times(stack, answer)))
            case _:
                assert_never(answer)

    def _times(self, stack: PendingStack, message: wire.Result) -> StageTimes:
        captured_s = stack.slices.captured_s or (0.0,)
        complete_s = message.complete_s - self._connection.clock_offset_s
        return replace(
            message.times,
            expose_ms=(max(captured_s) - min(captured_s)) * 1e3,
            transfer_ms=max(complete_s - max(captured_s), 0.0) * 1e3,
        )

    def _send(self) -> bool:
        if self._connection.welcome is None:
            return False
        plan = self._queue.plan(self._connection.welcome.credit)
        for stack in plan.read:
            if not self._disk.submit(partial(self._read, stack)):
                self._queue.not_loaded(stack, None)
        for at, id_ in enumerate(plan.forget):
            if not self._connection.send(encode(wire.Cancel(stack=id_))):
                self._queue.not_forgotten(plan.forget[at:])
                return True
        for stack in plan.recall:
            self._connection.send(encode(wire.Withdraw(stack=stack.id)))
        for stack, z in plan.slices:
            if stack.state is not State.AT_SERVER:
                continue  # it was given up meanwhile
            try:
                frames = self._frames(stack, z)
            except WireError as error:
                self._queue.unsendable(stack, str(error))
                continue
            if not self._connection.send(frames):
                return True
            self._queue.sent(stack, z)
        return False

    def _frames(self, stack: PendingStack, z: int) -> list[Frame]:
        slices, block = stack.slices, stack.block
        slice_ = Slice(stack.info, z, slices.pixels[z], slices.captured_at(z))
        # ZMQ may still read a block that was released, for a stack that was cancelled: the server
        # forgets such a stack, so it does not matter whose pixels it got.
        ref = block.ref if block is not None and self._connection.shares(block) else None
        return slice_frames(stack.id, slice_, ref, stack.still_wanted, stack.left_ms(time.monotonic()))

    def _use_disk(self) -> None:
        """See to what has to go to disk."""
        now_s = time.monotonic()
        self._queue.expire(self._patience.stack_timeout_s)
        absent_s = 0.0 if self._absent_since_s is None else now_s - self._absent_since_s
        may_spill = now_s >= self._disk_retry_s
        for stack, why in self._queue.to_write(
            no_engine=absent_s > self._patience.absent_s, may_spill=may_spill
        ):
            if not self._disk.submit(partial(self._write, stack, why)):
                self._queue.not_stored(stack, None)  # the next round tries again
        for path in self._queue.unneeded_files():
            if not self._disk.submit(partial(self._remove, path)):
                log.warning("%s was predicted, but stays on disk: the disk is too busy", path)

    # ---- on the spool's thread

    def _write(self, stack: PendingStack, reason: SpoolReason) -> None:
        try:
            path = self._spool.write(stack.spooled(reason))
        except StorageError as error:
            log.warning("%s", error)
            self._disk_retry_s = time.monotonic() + _DISK_RETRY_S
            self._queue.not_stored(stack, str(error))
        else:
            self._queue.stored(stack, path, reason)
        self.wake()

    def _read(self, stack: PendingStack) -> None:
        try:
            if stack.path is None or stack.block is None:
                raise StorageError(f"stack {stack.info.key} has no file to be read from")
            np.copyto(stack.block.pixels, self._spool.read(stack.path).pixels)
        except (StorageError, ValueError) as error:
            self._queue.not_loaded(stack, str(error))
        else:
            self._queue.loaded(stack)
        self.wake()

    def _remove(self, path: Path) -> None:
        try:
            self._spool.remove(path)
        except StorageError as error:
            log.warning("%s", error)
