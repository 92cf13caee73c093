"""One stack on its way from the camera to its outcome, and the counts of all of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from acq_isl.assemble import OpenStack
from acq_isl.stack import Outcome
from acq_isl.stream.ring import Block
from acq_isl.stream.spool import SpooledStack, SpoolReason

Place = Literal["memory", "writing", "disk", "reading"]


@dataclass(frozen=True, slots=True)
class ClientCounts:
    """What became of everything that was put, so far.

    Slices: ``captured`` taken over, ``duplicates`` seen twice or too late and ignored, ``sent`` (also
    again after a restart), ``lost`` neither held nor on disk. Stacks: ``stacks`` begun, ``spooled``
    written to disk, ``replayed`` read back from there, ``predicted``, ``refused``, ``failed``,
    ``unpredicted`` left on disk. ``reconnects`` counts engines that came back, ``bytes_copied`` the
    pixels copied in this process.
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
    unpredicted: int = 0
    reconnects: int = 0
    bytes_copied: int = 0
    spooled_for: tuple[tuple[SpoolReason, int], ...] = ()


@dataclass(slots=True, eq=False)
class Held:
    """One stack without an outcome yet.

    Parameters
    ----------
    id : int
        Number of the stack in this client, also on the wire and on disk.
    stack : OpenStack
    block : Block or None
        Its memory; None while it is on disk only.
    place : Place
    credited : bool
        Whether it may be sent to, or is at, the server.
    sent : set of int
        Slices handed to the socket since the server last asked.
    copying : int
        Slices that are being copied in right now.
    path : Path or None
        Its file in the spool.
    ending : (SpoolReason, str) or None
        Once set it goes to disk and becomes `Unpredicted`, for the reason in words.
    waits_since_s : float
        When its last slice came, on the client's monotonic clock.
    outcome : Outcome or None
        Came while the disk was busy with the stack; it counts as soon as the disk is done.
    """

    id: int
    stack: OpenStack
    block: Block | None
    place: Place = "memory"
    credited: bool = False
    sent: set[int] = field(default_factory=set)
    copying: int = 0
    path: Path | None = None
    ending: tuple[SpoolReason, str] | None = None
    waits_since_s: float = 0.0
    outcome: Outcome | None = None

    @property
    def with_disk(self) -> bool:
        """Whether the spool's thread is using its memory."""
        return self.place in ("writing", "reading")

    @property
    def incomplete(self) -> str:
        """What is missing, in words."""
        return f"only {len(self.stack.present)} of {self.stack.info.planes} slices were captured"

    @property
    def unsent(self) -> tuple[int, ...]:
        """Slices to send now."""
        if not self.credited or self.place != "memory" or self.ending is not None:
            return ()
        return tuple(z for z in self.stack.present if z not in self.sent)

    def spooled(self, reason: SpoolReason) -> SpooledStack:
        """What goes to disk; shares the memory of the block."""
        present = self.stack.present
        # A complete stack is written without gathering its planes, that is, without a copy.
        pixels = self.stack.pixels if self.stack.complete else self.stack.pixels[list(present)]
        return SpooledStack(self.id, self.stack.info, present, self.stack.captured_s, pixels, reason)
