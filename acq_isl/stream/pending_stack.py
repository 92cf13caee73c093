"""One stack on its way from the camera to its outcome: its states, and what may follow what. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from acq_isl.record import Counts
from acq_isl.stack import Prediction, Refusal, Slice, StackInfo, Unpredicted
from acq_isl.stream.accounts import CUT_OFF, INTERRUPTED, Fate
from acq_isl.stream.assembler import OpenStack
from acq_isl.stream.messages import Wanted
from acq_isl.stream.schedule import priority
from acq_isl.stream.shared_memory import Block
from acq_isl.stream.spool import SpooledStack, SpoolReason


@dataclass(frozen=True, slots=True)
class ClientCounts:
    """What became of everything that was put, so far.

    Slices: ``slices`` all of them once, of these ``captured``, ``duplicates`` second images, and ``lost``
    neither held nor on disk; ``sent`` (also again after a restart). Stacks: ``stacks`` begun,
    ``spooled`` written to disk, ``replayed`` read back from there, ``withdrawn`` from the engine for a newer
    one. Outcomes, one of each stack and model: ``predicted``, ``refused``, ``unpredicted`` left on disk, of
    these ``failed``, ``expired`` after their deadline, ``cancelled``. ``reconnects`` counts engines that
    came back, ``bytes_copied`` the pixels copied in this process.
    """

    captured: int = 0
    duplicates: int = 0
    sent: int = 0
    lost: int = 0
    stacks: int = 0
    spooled: int = 0
    replayed: int = 0
    predicted: int = 0
    refused: int = 0
    failed: int = 0
    expired: int = 0
    cancelled: int = 0
    withdrawn: int = 0
    unpredicted: int = 0
    reconnects: int = 0
    bytes_copied: int = 0
    spooled_for: tuple[tuple[SpoolReason, int], ...] = ()
    slices: Counts = field(default_factory=Counts)


class State(Enum):
    """What a stack is waiting for.

    ::

        begun ─► WAITING ◄──take_back── AT_SERVER, RECALLED
                  │ ▲ │ └──grant, claim──► AT_SERVER ──recall──► RECALLED
             spill│ │ └─spill, if it has a file─► ON_DISK
                  ▼ │not_stored                    ▲ │
                SPILLING ──────────stored──────────┘ │load
                    WAITING ◄─────loaded───── READING◄┘ ──not_loaded──► ON_DISK

    Nobody waits for an answer any more (where the disk is busy, once it has finished)::

        all models predicted or refused it ──────────────────────────────────────────► DONE
        it is imaged again, and misses slices (discard) ─────────────────────────────► DONE
        some did not, slices are missing ──► FINISHING ──last slice, close──► ENDING
        some did not, complete or closed ──► ENDING ──store──► STORING ──stored, lose──► DONE
                                             ENDING ──store, if it has a file──────────► DONE
    """

    WAITING = "for its turn, in memory"
    AT_SERVER = "for answers; its slices are sent as they come"
    RECALLED = "for the server to give it back, or for answers"
    SPILLING = "for the disk to write it, so that it can leave the memory"
    ON_DISK = "for its turn, on disk"
    READING = "for the disk to read it back"
    FINISHING = "for its last slices, to be kept on disk; no model is asked any more"
    ENDING = "for its turn to be kept on disk"
    STORING = "for the disk to keep it"
    DONE = "for nothing: all its models have outcomes"


_FILLING = (State.WAITING, State.AT_SERVER, State.FINISHING)
_AT_SERVER = (State.AT_SERVER, State.RECALLED)
_HERE = (State.WAITING, State.SPILLING, State.ON_DISK)


class _Failure(NamedTuple):
    """Why a model does not predict a stack, for the spool and in words."""

    reason: SpoolReason
    why: str


class PendingStack:
    """One stack that some model has not answered for yet.

    A method that is called in a state that does not allow it raises RuntimeError and changes nothing.
    ``id_`` is its number in this client, also on the wire and on disk; times are the client's monotonic ones.
    """

    def __init__(
        self, id_: int, info: StackInfo, block: Block, wanted: Wanted, now_s: float, acquisition: int = 0
    ) -> None:
        self.id, self.info, self.identity = id_, info, (acquisition, info.key)
        self.slices = OpenStack(info, block.pixels, now_s)
        self.priority = priority(wanted.work, id_)
        """What to sort stacks by, first come first."""
        self._block: Block | None = block
        self._path: Path | None = None
        self._state = State.WAITING
        self._wanted = wanted
        self._waits_for = list(wanted.names)
        self._failures: dict[str, _Failure] = {}
        self._sent: set[int] = set()
        self._copying: set[int] = set()
        self._refused = self._lost = False
        self._discarded = ""

    # ---- what can be asked of it

    @property
    def state(self) -> State:
        return self._state

    @property
    def block(self) -> Block | None:
        """Its memory, if it is not on disk only."""
        return self._block

    @property
    def path(self) -> Path | None:
        """Its file in the spool."""
        return self._path

    @property
    def waits_for(self) -> tuple[str, ...]:
        """Names of the models without an answer, as they stand in messages."""
        return tuple(self._waits_for)

    @property
    def live(self) -> bool:
        return self._wanted.work == "live"

    @property
    def takes_slices(self) -> bool:
        return self._state in _FILLING and not self.slices.complete

    @property
    def uses_credit(self) -> bool:
        return self._state in (*_AT_SERVER, State.READING)

    @property
    def unsent(self) -> tuple[int, ...]:
        """Slices to send now."""
        if self._state is not State.AT_SERVER:
            return ()
        return tuple(z for z in self.slices.present if z not in self._sent)

    @property
    def still_wanted(self) -> Wanted:
        """What to ask the server for: models that have answered are not asked again."""
        if len(self._waits_for) == len(self._wanted.names):
            return self._wanted
        return self._wanted.model_copy(update={"models": self.waits_for})

    @property
    def fate(self) -> tuple[Fate, str]:
        """What became of its slices, now that it is done, and why."""
        if self._discarded:
            return "not wanted", self._discarded
        if self._lost:
            return "lost", "the disk did not take or keep them"
        if self._failures:
            return "spooled", next(reversed(self._failures.values())).reason
        return ("refused", "by a model") if self._refused else ("predicted", "")

    def left_ms(self, now_s: float) -> float | None:
        """What is left of its deadline; all of it until the last slice is here."""
        deadline_ms = self._wanted.deadline_ms
        if deadline_ms is None or not self.slices.complete:
            return deadline_ms
        return max(deadline_ms - (now_s - self.slices.touched_s) * 1e3, 0.0)

    def is_overdue(self, now_s: float) -> bool:
        """Whether it waits here beyond its deadline; of what is at the server, only that knows."""
        here = self._state in _HERE and bool(self._waits_for)
        return here and self.slices.complete and self.left_ms(now_s) == 0.0

    @property
    def overdue_text(self) -> str:
        return f"no prediction was begun within {self._wanted.deadline_ms or 0:g} ms of its last slice"

    def spooled(self, reason: SpoolReason) -> SpooledStack:
        """What goes to disk; shares the memory of the block."""
        present = self.slices.present
        # A complete stack is written without gathering its planes, that is, without a copy.
        pixels = self.slices.pixels if self.slices.complete else self.slices.pixels[list(present)]
        models = tuple(n for n in self._wanted.models if n in self._waits_for or n in self._failures)
        return SpooledStack(self.id, self.info, present, self.slices.captured_s, pixels, reason, models)

    def unpredicted(self) -> list[tuple[SpoolReason, Unpredicted]]:
        """Outcomes of the models that will not predict it, with the reason for the counts."""
        where = str(self._path or "")
        return [
            (failure.reason, Unpredicted(self.info, failure.why, where, model))
            for model, failure in self._failures.items()
        ]

    # ---- the camera

    def expect(self, slice_: Slice) -> bool:
        """A slice is going to be copied in; False if it is not of the kind that was announced."""
        same = slice_.pixels.shape == self.info.shape and slice_.pixels.dtype == np.uint16
        if not (same and 0 <= slice_.z_index < self.info.planes):
            return False
        self._copying.add(slice_.z_index)
        return True

    def has(self, z_index: int) -> bool:
        """Whether a slice is there, or being copied."""
        return self.slices.has(z_index) or z_index in self._copying

    @property
    def copying(self) -> bool:
        """Whether somebody writes a slice into its memory just now."""
        return bool(self._copying)

    def drop_expected(self, z_index: int) -> None:
        """An expected slice could not be copied."""
        self._copying.discard(z_index)

    def add(self, slice_: Slice, now_s: float) -> None:
        """The pixels of an expected slice are in their place."""
        self._copying.discard(slice_.z_index)
        self.slices.mark(slice_.z_index, slice_.captured_s, now_s)
        if self._state is State.FINISHING and self.slices.complete:
            self._state = State.ENDING

    # ---- the engine

    def grant(self) -> None:
        """It may be sent."""
        self._become(State.AT_SERVER, only_from=(State.WAITING,))

    def claim(self) -> None:
        """The server says that it has all of it, from an earlier connection."""
        self._become(State.AT_SERVER, only_from=(State.WAITING,))
        self._sent.update(self.slices.present)

    def note_sent(self, z_index: int) -> bool:
        """A slice was handed to the socket; False if the server is to forget it again."""
        if self._state not in _AT_SERVER:
            return False
        self._sent.add(z_index)
        return True

    def recall(self) -> bool:
        """Ask for it back, once; False if it is not all at the server."""
        if self._state is not State.AT_SERVER or not self.slices.complete or self.unsent:
            return False
        self._state = State.RECALLED
        return True

    def take_back(self) -> bool:
        """The server does not have it any more; False if it was not there."""
        if self._state not in _AT_SERVER:
            return False
        self._sent.clear()
        self._state = State.WAITING
        return True

    def answer(self, outcome: Prediction | Refusal) -> bool:
        """A model has answered; False if that does not count as its answer.

        One that had answered before is not heard again, and nobody can know a stack before its last slice.
        """
        if outcome.model not in self._waits_for:
            return False
        if not self.slices.complete:
            said = f": {outcome.reason}" if isinstance(outcome, Refusal) else ""
            self.fail(outcome.model, "failed", f"the engine answered before it had the whole stack{said}")
            return False
        self._waits_for.remove(outcome.model)
        self._refused |= isinstance(outcome, Refusal)
        self._proceed()
        return True

    def fail(self, model: str, reason: SpoolReason, why: str) -> None:
        """A model will not predict it; the others may."""
        if model in self._waits_for:
            self._waits_for.remove(model)
            self._failures[model] = _Failure(reason, why)
            self._proceed()

    def give_up(self, reason: SpoolReason, why: str) -> bool:
        """Ask no model any more; missing slices may still come. Whether the server has to forget it."""
        at_server = bool(self._sent and self._waits_for)
        for model in self._waits_for:
            self._failures[model] = _Failure(reason, why)
        self._waits_for.clear()
        self._proceed()
        return at_server

    def close(self, reason: SpoolReason, why: str) -> bool:
        """Ask no model and take no slice any more; as `give_up`, but a stack with gaps ends as incomplete."""
        if self.slices.complete or self._state not in _FILLING:
            return self.give_up(reason, why)
        gaps = f"only {len(self.slices.present)} of {self.info.planes} slices were captured"
        for model, failure in self._failures.items():
            self._failures[model] = _Failure("incomplete", f"{failure.why}; {gaps}")
        at_server = self.give_up("incomplete", gaps)
        self._become(State.ENDING, only_from=(State.FINISHING,))
        return at_server

    def discard(self, again: bool = True) -> bool:
        """It misses slices, and is imaged again or left out. Whether the server has to forget it."""
        if self.slices.complete:
            raise RuntimeError(f"stack {self.info.key} is complete, and is not imaged again")
        at_server = bool(self._sent)
        self._become(State.DONE, only_from=_FILLING)
        self._waits_for.clear()
        self._failures.clear()
        self._discarded = INTERRUPTED if again else CUT_OFF
        return at_server

    # ---- the disk

    def spill(self) -> bool:
        """Leave the memory; True if it has to be written first."""
        if not self.slices.complete:
            raise RuntimeError(f"stack {self.info.key} cannot leave the memory: it is still being captured")
        self._become(State.SPILLING if self._path is None else State.ON_DISK, only_from=(State.WAITING,))
        return self._path is None

    def load(self, block: Block) -> None:
        """It is going to be read back into memory."""
        self._become(State.READING, only_from=(State.ON_DISK,))
        self._block, self.slices.pixels = block, block.pixels

    def loaded(self) -> None:
        self._become(State.WAITING, only_from=(State.READING,))
        self._proceed()

    def not_loaded(self) -> None:
        """The disk had no time to read it."""
        self._become(State.ON_DISK, only_from=(State.READING,))
        self._proceed()

    def store(self) -> SpoolReason | None:
        """Begin to keep it on disk, for the reason given; None if that has to wait or is not needed."""
        if self._state is not State.ENDING or self._copying:
            return None
        if self._path is not None or not self.slices.present:
            self._state = State.DONE
            return None
        self._state = State.STORING
        return next(reversed(self._failures.values())).reason

    def stored(self, path: Path) -> None:
        """It is on disk."""
        after = State.ON_DISK if self._state is State.SPILLING else State.DONE
        self._become(after, only_from=(State.SPILLING, State.STORING))
        self._path = path
        self._proceed()

    def not_stored(self) -> None:
        """The disk has not taken it, and may be asked again."""
        after = State.WAITING if self._state is State.SPILLING else State.ENDING
        self._become(after, only_from=(State.SPILLING, State.STORING))
        self._proceed()

    def lose(self, why: str) -> None:
        """The disk does not have it, for a reason in words: unless all models have answered, it is lost."""
        self._become(State.DONE, only_from=(State.READING, State.STORING))
        if self._waits_for or self._failures:
            self.give_up("failed", why)
            self._failures = {
                model: f if f.why == why else _Failure(f.reason, f"{f.why}; {why}")
                for model, f in self._failures.items()
            }
            self._lost = True

    def leave_memory(self) -> Block | None:
        """The memory that it does not need any more."""
        if self._state not in (State.ON_DISK, State.DONE):
            return None
        block, self._block = self._block, None
        return block

    def _proceed(self) -> None:
        """Go where the answers say, once all are here and the disk does not use its memory."""
        if self._waits_for or self._state not in (State.WAITING, State.ON_DISK, *_AT_SERVER):
            return
        if not self._failures:
            self._state = State.DONE
        else:
            self._state = State.ENDING if self.slices.complete else State.FINISHING

    def _become(self, state: State, *, only_from: tuple[State, ...]) -> None:
        if self._state not in only_from:
            raise RuntimeError(f"stack {self.info.key} cannot become {state.name}: it is {self._state.name}")
        self._state = state
