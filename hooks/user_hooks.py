"""A user's own hooks, wrapped so that Pycro-Manager never meets an exception or a wrong answer from them."""

from __future__ import annotations

import copy
import inspect
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from acq_isl.errors import AcqIslError, AcquisitionFailed, ExperimentError
from acq_isl.hooks.events import Event, EventRules, to_plain
from acq_isl.hooks.progress import AxesKey, Progress, axes_key, axes_text
from acq_isl.stream.callback import Callback

logger = logging.getLogger(__name__)

EventOrList = Event | list[Event]
EventHook = Callable[[EventOrList], EventOrList | None]
_CARRIED = ("x", "y", "config_group", "exposure")


@dataclass(frozen=True, slots=True)
class UserHooks:
    """A user's own functions inside a guarded acquisition; the arguments are Pycro-Manager's.

    Raises
    ------
    ExperimentError
        A function does not take these arguments. (For a hook with an event queue there is
        `GuardedAcquisition.run_events` between two stacks.)
    """

    # ``f(event)``, with a list of events where they run as one hardware sequence. Must return the event,
    # changed or not; None drops it (Python backend only)
    event_generation: EventHook | None = None
    pre_hardware: EventHook | None = None
    post_hardware: EventHook | None = None
    post_camera: EventHook | None = None
    image_process: Callable[[Any, Any], Any] | None = None
    """``f(image, metadata)``, after the capture. Must return ``(image, metadata)`` or a list of them."""
    image_saved: Callable[[Any, Any], object] | None = None  # ``f(axes, dataset)``
    notification: Callable[[Any], object] | None = None  # ``f(notification)``

    def __post_init__(self) -> None:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, function in ((name, function) for name, function in given.items() if function is not None):
            count = 2 if name in ("image_process", "image_saved") else 1
            try:
                inspect.signature(function).bind(*[None] * count)
            except TypeError as error:
                raise ExperimentError(
                    f"the {name} hook cannot be called with {count} argument{'s' * (count > 1)}",
                    got=f"{function!r}: {error}",
                    fix="events are submitted between two stacks with run_events(), not through a queue",
                ) from error

    def within(self, limit_s: float) -> UserHooks:
        """The same functions, of which each may take so long, and none can end a thread."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        calls = {k: Callback(f, f"the {k} hook", limit_s) for k, f in given.items() if f is not None}
        return replace(self, **calls)

    def close(self) -> None:
        """End the threads of `within`; they begin again when they are needed."""
        for function in (getattr(self, field.name) for field in fields(self)):
            if isinstance(function, Callback):
                function.close()


class EventHooks:
    """The wrapped event hooks of an acquisition; changed events are checked against the rules.

    After a failure every further event is dropped, so that nothing moves any more. ``none_drops``: whether
    the backend drops an event for which a hook returns None; the Java one images it instead.
    """

    def __init__(self, user: UserHooks, rules: EventRules, progress: Progress, none_drops: bool) -> None:
        self._user = user
        self._rules = rules
        self._progress = progress
        self._none_drops = none_drops
        self._dropped_early: set[AxesKey] = set()
        self._carry: Event = {}
        self._interrupted = threading.Event()

    def functions(self) -> dict[str, EventHook]:
        """Keyword arguments for ``pycromanager.Acquisition``; always a pre-hardware hook, as it can stop."""
        user = self._user
        functions: dict[str, EventHook] = {"pre_hardware_hook_fn": self._before}
        if user.event_generation is not None:
            functions["event_generation_hook_fn"] = self._generated
        if user.post_hardware is not None:
            functions["post_hardware_hook_fn"] = self._after
        if user.post_camera is not None:
            functions["post_camera_hook_fn"] = self._exposing
        return functions

    def _generated(self, event: EventOrList) -> EventOrList | None:
        """None would drop the rest of the list, too: remember it, and drop the event before it moves."""
        answer = self._ask("event_generation", self._user.event_generation, event)
        if answer is None:
            self._dropped_early.update(_keys(event))
            return event
        return answer

    def interrupt(self) -> None:
        """No further event of the present list is carried out; the one that is being exposed ends in peace.

        Only where the backend drops events.
        """
        if self._none_drops:
            self._interrupted.set()

    def withdraws(self, read: Callable[[], Event]) -> bool:
        """Whether an event does not even reach the engine, as its list was interrupted; ``read`` gives it."""
        if not self._interrupted.is_set():
            return False
        self._progress.withdraw(_keys(read()))
        return True

    def _before(self, event: EventOrList) -> EventOrList | None:
        if self._interrupted.is_set():
            self._progress.withdraw(_keys(event))
            return None
        changed: EventOrList | None = event
        if self._dropped_early:
            events = [part for part in _listed(event) if axes_key(part["axes"]) not in self._dropped_early]
            changed = events if len(events) > 1 else (events[0] if events else None)
        if changed is not None:
            changed = self._ask("pre_hardware", self._user.pre_hardware, changed)
        # Only the first event of a stack says where and how: hand that on when it is dropped.
        if changed is None:
            self._carry.update((k, v) for part in _listed(event) for k, v in part.items() if k in _CARRIED)
            self._drop(event)
            return None
        if self._carry:
            first = _listed(changed)[0]
            first.update({key: value for key, value in self._carry.items() if key not in first})
            self._carry.clear()
        if isinstance(changed, list):
            self._progress.note_sequence(_keys(changed))
        return changed

    def _after(self, event: EventOrList) -> EventOrList | None:
        answer = self._ask("post_hardware", self._user.post_hardware, event)
        if answer is None:
            self._drop(event)
        return answer

    def _exposing(self, event: EventOrList) -> EventOrList | None:
        self._ask("post_camera", self._user.post_camera, event)
        return event

    def _drop(self, event: EventOrList) -> None:
        for key in _keys(event):
            self._dropped_early.discard(key)
            self._progress.cancel(key)

    def start_list(self) -> None:
        """A new list of events begins: nothing of the last one is handed on."""
        self._carry.clear()
        self._dropped_early.clear()
        self._interrupted.clear()

    def _ask(self, name: str, function: EventHook | None, event: EventOrList) -> EventOrList | None:
        """The user's answer to an event, checked; None drops it."""
        if self._progress.failure is not None:
            return None if self._none_drops else event
        if function is None:
            return event
        with report_failure(name, self._progress):
            self._progress.note_hook()
            answer = function(copy.deepcopy(event))
            if answer is None and not self._none_drops:
                raise AcquisitionFailed(
                    f"the {name} hook returned None, which the Java backend images as an empty event",
                    fix="return the event; leave out of the list what is not wanted",
                )
            checked = None if answer is None else self._checked(name, event, answer)
            # It may have changed the exposure, in the event or at the camera.
            exposures = [part["exposure"] for part in _listed(checked or {}) if "exposure" in part]
            self._progress.allow_exposure(max([*exposures, self._rules.exposure_ms()]))
            return checked
        return None if self._none_drops else event

    def _checked(self, name: str, event: EventOrList, answer: Any) -> EventOrList:
        before, after = _listed(event), _listed(answer)
        if type(answer) is not type(event) or len(before) != len(after):
            raise AcquisitionFailed(
                f"the {name} hook returned something that is not an event",
                wanted="the event it was given" if isinstance(event, dict) else f"the {len(before)} events",
                got=repr(answer)[:200],
                fix="return the event at the end of the hook",
            )
        clean = [
            old if new == old else self._rules.check_event(new)
            for old, new in zip(before, after, strict=True)
        ]
        for old, new in zip(before, clean, strict=True):
            if new["axes"] != old["axes"]:
                self._progress.rename(axes_key(old["axes"]), axes_key(new["axes"]))
        return clean if isinstance(event, list) else clean[0]


@contextmanager
def report_failure(name: str, progress: Progress) -> Iterator[None]:
    """Around a user's hook, which must not raise in Pycro-Manager's threads: report what it raises."""
    try:
        yield
    except AcqIslError as error:
        progress.fail(error)
    except Exception as error:
        logger.warning("the %s hook failed", name, exc_info=True)
        failed = AcquisitionFailed(
            f"the {name} hook raised {type(error).__name__}",
            got=str(error),
            fix="correct the hook; what was captured before is kept",
        )
        failed.__cause__ = error
        progress.fail(failed)


def check_images(key: AxesKey, answer: Any) -> list[tuple[Any, dict[str, Any]]]:
    """What a user's image_process returned, as images that storage can take.

    AcquisitionFailed if it would kill Pycro-Manager's image or saving thread.
    """
    name = f"the image_process hook, for {axes_text(key)},"
    pairs = answer if isinstance(answer, list) else [answer]
    images = []
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], dict):
            raise AcquisitionFailed(
                f"{name} returned something else than an image",
                wanted="(image, metadata), or a list of them",
                got="None" if answer is None else repr(type(answer)),
                fix="return (image, metadata) at the end of the hook; the measured image was saved unchanged",
            )
        image, metadata = pair[0], to_plain(pair[1])
        if not isinstance(image, np.ndarray) or image.ndim != 2 or image.dtype not in (np.uint8, np.uint16):
            raise AcquisitionFailed(
                f"{name} returned an image that cannot be stored",
                wanted="a (y, x) array of uint8 or uint16",
                got=f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else repr(type(image)),
                fix="scale to uint16 and keep scale and offset in the metadata",
            )
        images.append((image, metadata))
    keys = [axes_key(metadata.get("Axes", {})) for _, metadata in images]
    if not keys or not all(keys) or len(set(keys)) != len(keys):
        raise AcquisitionFailed(
            f"{name} returned {len(keys)} images that would replace each other",
            fix="give each image its own metadata['Axes'], for instance another channel",
        )
    return images


def _listed(event: Any) -> list[Any]:
    return event if isinstance(event, list) else [event]


def _keys(event: EventOrList) -> list[AxesKey]:
    return [axes_key(part["axes"]) for part in _listed(event) if "axes" in part]
