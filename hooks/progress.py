"""What the hook threads tell the thread that waits: which slices came, and what went wrong first."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping

from acq_isl.errors import AcqIslError

logger = logging.getLogger(__name__)

AxesKey = frozenset[tuple[str, int | str]]


def axes_key(axes: Mapping[str, int | str]) -> AxesKey:
    """Axes as a key, regardless of their order."""
    return frozenset(axes.items())


def axes_text(key: AxesKey) -> str:
    """Axes for people, in the order time, position, channel, anything else, z."""
    order = {"time": 0, "position": 1, "channel": 2, "z": 9}
    items = sorted(key, key=lambda item: (order.get(item[0], 5), item[0]))
    return " ".join(f"{name}={value}" for name, value in items)


def axes_list(keys: Iterable[AxesKey], most: int = 5) -> str:
    """Several axes for people, the first few of them."""
    ordered = sorted(keys, key=lambda key: sorted((name, str(value).zfill(9)) for name, value in key))
    rest = len(ordered) - most if most > 1 else 0
    return ", ".join(axes_text(key) for key in ordered[:most]) + (f" and {rest} more" if rest > 0 else "")


class Progress:
    """Shared by Pycro-Manager's threads (which report) and the acquiring thread (which waits).

    A slice goes awaited -> captured -> saved; a hook, which gets ``hook_s`` at most, may cancel it. The first
    failure stays, others are logged.
    """

    def __init__(self, hook_s: float = 0.0) -> None:
        self._hook_s = hook_s
        self._changed = threading.Condition()
        self._awaited: set[AxesKey] = set()
        self._unsaved: set[AxesKey] = set()
        self._triggered: set[AxesKey] = set()
        self._withdrawn: set[AxesKey] = set()
        self._failure: AcqIslError | None = None
        self.images = 0
        self.saved = 0
        self.cancelled = 0
        self.longest_ms = 0.0
        """The longest exposure of the slices awaited."""
        self.life_s = time.monotonic()
        """When the microscope, or a user's hook, last gave a sign of life."""

    def expect(self, keys: Iterable[AxesKey], longest_ms: float = 0.0) -> None:
        """Await these slices, which take so long to expose at most."""
        with self._changed:
            self._awaited.update(keys)
            self._triggered.clear()
            self._withdrawn.clear()
            self.longest_ms, self.life_s = longest_ms, time.monotonic()

    def allow_exposure(self, exposure_ms: float) -> None:
        """A hook has had its say: from now on a slice may take this long to expose."""
        with self._changed:
            self.longest_ms = max(self.longest_ms, exposure_ms)
            self.life_s = time.monotonic()

    def note_hook(self) -> None:
        """A user's hook is called: nothing can come before it has returned or was given up."""
        self.life_s = time.monotonic() + self._hook_s

    def note_sequence(self, keys: Iterable[AxesKey]) -> None:
        """These slices are taken as one hardware-triggered sequence."""
        with self._changed:
            self._triggered.update(keys)

    def note_captured(self, key: AxesKey, stored_as: Iterable[AxesKey] | None = None) -> None:
        """The hook has had this slice; from now on it must reach storage.

        ``stored_as`` differs from ``key`` where a user's function changed its axes or added images.
        """
        with self._changed:
            self.images += 1
            self.life_s = time.monotonic()
            self._awaited.discard(key)
            self._unsaved.update([key] if stored_as is None else stored_as)
            self._changed.notify_all()

    def note_stored(self, key: AxesKey) -> None:
        """This slice is in the dataset."""
        with self._changed:
            self.saved += 1
            self._unsaved.discard(key)
            self._changed.notify_all()

    def cancel(self, key: AxesKey) -> None:
        """A user's hook dropped the event of this slice on purpose."""
        with self._changed:
            if key in self._awaited:
                self._awaited.discard(key)
                self.cancelled += 1
                logger.info("the event of %s was cancelled by a hook", axes_text(key))
                self._changed.notify_all()

    def withdraw(self, keys: Iterable[AxesKey]) -> None:
        """The guard dropped the events of these slices, as their list was interrupted."""
        with self._changed:
            found = frozenset(keys) & self._awaited
            self._withdrawn |= found
            self._awaited -= found
            self._changed.notify_all()

    @property
    def withdrawn(self) -> frozenset[AxesKey]:
        """Slices of the present list that were not taken, because it was interrupted."""
        with self._changed:
            return frozenset(self._withdrawn)

    def rename(self, old: AxesKey, new: AxesKey) -> None:
        """A user's hook changed the axes of an event."""
        with self._changed:
            if old in self._awaited:
                self._awaited.discard(old)
                self._awaited.add(new)

    def give_up(self) -> None:
        """Await nothing any more."""
        with self._changed:
            self._awaited.clear()

    def fail(self, error: AcqIslError) -> None:
        """Report a failure; from any thread."""
        with self._changed:
            if self._failure is None:
                self._failure = error
            else:
                logger.warning("a further failure after the first one: %s", error)
            self._changed.notify_all()

    @property
    def failure(self) -> AcqIslError | None:
        return self._failure

    @property
    def awaited(self) -> frozenset[AxesKey]:
        with self._changed:
            return frozenset(self._awaited)

    @property
    def triggered(self) -> frozenset[AxesKey]:
        """Slices that hardware triggers, of those awaited last."""
        with self._changed:
            return frozenset(self._triggered)

    @property
    def unsaved(self) -> frozenset[AxesKey]:
        """Captured, and not in the dataset (yet)."""
        with self._changed:
            return frozenset(self._unsaved)

    def wait(self, images: int, timeout_s: float) -> None:
        """Return when there are more than ``images``, nothing is awaited, something failed, or time is up."""
        with self._changed:
            self._changed.wait_for(
                lambda: self.images > images or not self._awaited or self._failure is not None, timeout_s
            )

    def wait_stored(self, keys: frozenset[AxesKey], timeout_s: float) -> bool:
        """Return when none of these is on its way to storage, or time is up; whether none is."""
        with self._changed:
            return self._changed.wait_for(lambda: not keys & self._unsaved, timeout_s)
