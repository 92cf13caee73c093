"""The plug-in points: one protocol each, at most three methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from acq_isl.events import Event
from acq_isl.manifest import Manifest
from acq_isl.stack import Outcome, Prediction, Slice, StackInfo, StackRequest, Uint16Image, ZStack


class SliceSink(Protocol):
    """Where captured slices go. Called on the acquisition's image thread, so it must be quick."""

    def put(self, slice_: Slice) -> None:
        """Take a slice. Never blocks, never raises; whatever cannot be handled now is spooled."""


@runtime_checkable
class CopyingSink(Protocol):
    """A `SliceSink` that may copy the pixels itself."""

    @property
    def copies(self) -> bool:
        """Whether `SliceSink.put` has copied the pixels when it returns; else the caller copies them."""


@runtime_checkable
class MeasuredSink(Protocol):
    """A `SliceSink` that also takes slices that are not to be predicted, such as fluorescence."""

    def put_measured(self, slice_: Slice) -> None:
        """Take a slice that is only measured. Never blocks, never raises."""


class Engine(Protocol):
    """Anything that turns a stack into a prediction."""

    @property
    def manifest(self) -> Manifest:
        """What the engine's model expects and gives."""

    def predict(self, stack: ZStack) -> Prediction:
        """Predict all labels of a stack.

        Raises
        ------
        StackRefused
            The stack does not fit the model.
        EngineError
            The computation failed.
        """

    def close(self) -> None:
        """Free what the engine holds."""


class RunningStatistics(Protocol):
    """What an engine measures of a stack plane by plane; what it measures, the engine knows."""

    def add(self, z: int, plane: Uint16Image) -> None:
        """Measure plane number ``z``, (y, x) uint16, once its pixels will not change any more."""


@runtime_checkable
class IncrementalEngine(Protocol):
    """An `Engine` that can measure planes as they arrive, so that it has less to do after the last one."""

    def begin_statistics(self, info: StackInfo) -> RunningStatistics:
        """Empty statistics of a stack, to be filled by another thread than the one that predicts."""

    def predict(self, stack: ZStack, statistics: Any = None) -> Prediction:
        """As `Engine.predict`, with the same result however many planes were measured before."""


@runtime_checkable
class ConcurrentEngine(Protocol):
    """An `Engine` that may be called from several threads at once."""

    @property
    def at_once(self) -> int:
        """How many stacks it may be given at the same time."""


@runtime_checkable
class SelectedEngine(Protocol):
    """An `Engine` that was selected among several."""

    @property
    def why(self) -> str:
        """Why this one, for people; empty if there was no choice."""


class PredictionSource(Protocol):
    """The acquiring side's view of predictions that arrive while it acquires."""

    def poll(self) -> list[Outcome]:
        """Outcomes that have arrived since the last call; returns at once."""

    def drain(self, timeout_s: float) -> list[Outcome]:
        """Wait until all stacks put so far have outcomes; after ``timeout_s`` the rest are `Unpredicted`."""


@runtime_checkable
class WaitingSource(Protocol):
    """A `PredictionSource` that wakes whoever waits for its next outcome."""

    def wait(self, timeout_s: float) -> bool:
        """Wait until an outcome is here, none is to come, or time is up; whether one is, or is to come."""


class Microscope(Protocol):
    """What a session needs of a microscope. Implemented by ``acq_isl.hooks``."""

    def acquire(self, request: StackRequest) -> None:
        """Acquire one stack and return when its last slice was captured and handed to storage.

        Raises
        ------
        AcquisitionFailed
            Hardware error, hook error, time-out.
        SliceLost
            A slice that was asked for did not arrive.
        """

    def set_preset(self, group: str, preset: str) -> None:
        """Select a configuration preset between two events; AcquisitionFailed if the core refuses."""

    def set_property(self, device: str, name: str, value: str) -> None:
        """Set a device property between two events; AcquisitionFailed if the core refuses."""

    def move(self, x_um: float, y_um: float, z_um: float | None) -> None:
        """Move the stage between two events; z stays if not given. AcquisitionFailed if it does not."""

    def images(self, request: StackRequest) -> Uint16Image:
        """The measured slices of an acquired request, (z, y, x) uint16; SliceLost if any is not there."""


@runtime_checkable
class InterruptibleMicroscope(Protocol):
    """A `Microscope` whose stacks can be interrupted between two slices."""

    def acquire_until(self, request: StackRequest, stop: Callable[[], bool] | None, first: int = 0) -> int:
        """As `Microscope.acquire`, from slice ``first`` on, until ``stop`` wants it interrupted.

        Returns how many slices of the stack are captured now.
        """


@runtime_checkable
class FocusingMicroscope(Protocol):
    """A `Microscope` that can focus by itself."""

    def focus(self, request: StackRequest) -> float:
        """Find the focus of a stack through the autofocus device; where it is on the stage, in um.

        FocusFailed if there is none, or if the stack about it would leave the limits.
        """


@runtime_checkable
class RecoverableMicroscope(Protocol):
    """A `Microscope` that can go on after a stack failed."""

    @property
    def captured(self) -> int:
        """Number of images so far."""

    def recover(self) -> None:
        """Make ready for the next stack after one failed; AcqIslError if that cannot be done."""


class RunView(Protocol):
    """What watches a run; handed to ``acq_isl.run(..., views=[...])`` and called on one thread of its own.

    It never slows the run: events wait in a bounded queue, and where a view is slow, it gets the newest
    picture first and the oldest are dropped. An error in it is logged once, and it gets no more events.
    """

    def setup(self) -> None:
        """The run begins: open what is needed."""

    def handle(self, event: Event) -> None:
        """Show an event, which is not to be changed."""

    def close(self) -> None:
        """The run is over, or an event could not be shown: close what is open."""


__all__ = [
    "ConcurrentEngine",
    "CopyingSink",
    "Engine",
    "FocusingMicroscope",
    "IncrementalEngine",
    "InterruptibleMicroscope",
    "MeasuredSink",
    "Microscope",
    "PredictionSource",
    "RecoverableMicroscope",
    "RunView",
    "RunningStatistics",
    "SelectedEngine",
    "SliceSink",
    "WaitingSource",
]
