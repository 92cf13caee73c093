"""The one place that knows the insides of a pycromanager Acquisition, on either backend."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

from acq_isl.errors import AcqIslError, AcquisitionFailed, ScopeError, StorageError
from acq_isl.hooks.events import Event
from acq_isl.hooks.hardware import Hardware
from acq_isl.hooks.measured_data import GuardedStorage
from acq_isl.hooks.progress import Progress

logger = logging.getLogger(__name__)

_IN_VAIN = " unsuccessful"  # how the engine ends the text of a command that failed six times


def find_hardware() -> Hardware:
    """The running core; ScopeError if there is none, it has no camera, or the engine holds a stopped one."""
    from mmpycorex import Core, is_pymmcore_active

    if not is_pymmcore_active():
        try:
            return Hardware(Core())
        except Exception as error:
            raise ScopeError(
                "no Micro-Manager core is running",
                got=str(error) or type(error).__name__,
                fix="start one with pycromanager.start_headless(...), or Micro-Manager with its server on",
            ) from error
    from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

    core = Core()
    engine = Engine.get_instance()
    if engine is None or engine.core is not core:
        raise ScopeError(
            "Pycro-Manager's engine does not belong to the running core",
            fix="after stop_headless() run `del Engine.singleton` before the next start_headless()",
        )
    hardware = Hardware(core)
    hardware.require_camera()
    return hardware


def uses_python_backend() -> bool:
    """Whether the core runs in this process."""
    from mmpycorex import is_pymmcore_active

    return bool(is_pymmcore_active())


Withdraws = Callable[[Callable[[], Event]], bool]
"""Whether an event is not to be carried out after all; what it is given reads the event."""


def forget_places(timeout_s: float) -> bool:
    """Wait until the engine's threads are free, and let it move everything anew; False if one never is.

    After a failure it thinks that stage and wheels are where it last was, and leaves out a move to there. The
    Java backend cannot be asked.
    """
    if not uses_python_backend():
        return True
    from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

    engine = Engine.get_instance()
    if engine is None:
        return False
    ends_s = time.monotonic() + timeout_s
    for executor in (engine.acq_executor, engine.event_generator_executor):
        try:
            executor.submit(engine.sequenced_events.clear).result(max(ends_s - time.monotonic(), 0.1))
        except FutureTimeout:
            return False
    engine.last_event = None
    return True


def open_run(
    directory: Path | None, name: str, functions: dict[str, Any], progress: Progress, withdraws: Withdraws
) -> Run:
    """Open an acquisition with hooks as Pycro-Manager's keyword arguments.

    Without a directory the images stay in memory; ``progress`` gets storage failures; ``withdraws`` is asked
    about each event just before the Python engine takes it. StorageError if the directory cannot be made,
    ScopeError if Pycro-Manager refuses to start.
    """
    from pycromanager import Acquisition

    if directory is not None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"the folder {directory} cannot be made", got=str(error)) from error
    where = None if directory is None else str(directory)
    python = uses_python_backend()
    try:
        acquisition = Acquisition(where, name, **functions, **({} if python else {"show_display": False}))
    except OSError as error:
        raise StorageError(f"no dataset can be made in {directory}", got=str(error)) from error
    except RuntimeError as error:
        raise ScopeError("Pycro-Manager could not start the acquisition", got=str(error)) from error
    path = None if directory is None else Path(acquisition.get_dataset().path)
    return PythonRun(acquisition, path, progress, withdraws) if python else Run(acquisition, path)


class Run:
    """An open ``pycromanager.Acquisition`` on the Java backend, and what both backends share.

    ``path`` is the folder of its data, None in memory.
    """

    def __init__(self, acquisition: Any, path: Path | None = None) -> None:
        self._acquisition, self.path = acquisition, path
        self._ending: threading.Thread | None = None
        self._ended_with: BaseException | None = None

    @property
    def dataset(self) -> Any:
        return self._acquisition.get_dataset()

    def submit(self, events: list[Event]) -> None:
        """Hand a list of events to the engine; AcquisitionFailed if it takes no more."""
        try:
            self._acquisition.acquire(events)
        except Exception as error:
            raise AcquisitionFailed("the acquisition takes no more events", got=str(error)) from error

    def find_trouble(self, at: str) -> AcqIslError | None:
        """What has gone wrong inside Pycro-Manager (it keeps quiet about most of it) ``at`` some slice."""
        try:
            self._acquisition._check_for_exceptions()
        except Exception as error:
            logger.info("the acquisition reports an exception", exc_info=True)
            return to_typed_error(error, at)
        if not self._acquisition._event_thread.is_alive():
            return AcquisitionFailed("Pycro-Manager's event thread has ended; events are no longer acquired")
        return None

    def is_settled(self, images: int) -> bool:
        """Whether nothing more can come of what was submitted; not known on the Java backend."""
        return False

    def make_answer(self, images: list[tuple[Any, dict[str, Any]]]) -> Any:
        """What ``image_process_fn`` has to return for its images to be stored."""
        return images if len(images) > 1 else images[0]

    def abort(self) -> None:
        """Stop after the current exposure."""
        self._acquisition.abort()

    def begin_end(self) -> None:
        """Let the acquisition end, in a thread of its own, as it may hang."""
        self._acquisition.mark_finished()
        self._ending = threading.Thread(target=self._await, name="acq-isl await_completion", daemon=True)
        self._ending.start()

    def wait_ended(self, timeout_s: float) -> bool:
        """Wait for the end that `begin_end` began."""
        if self._ending is None:
            return True
        self._ending.join(timeout_s)
        return not self._ending.is_alive()

    @property
    def ended_with(self) -> AcqIslError | None:
        """The exception with which the acquisition ended."""
        return None if self._ended_with is None else to_typed_error(self._ended_with, "the end")

    def force_end(self) -> bool:
        """Get as much as possible to end although the engine does not answer; whether that is supported."""
        return False

    def _await(self) -> None:
        try:
            self._acquisition.await_completion()
        except Exception as error:
            logger.info("the acquisition ended with an exception", exc_info=True)
            self._ended_with = error


class PythonRun(Run):
    """An open acquisition on the Python backend.

    Pycro-Manager throws away the futures that hold hardware errors; they are kept here. Its saving thread
    gets a storage that does not raise.
    """

    def __init__(self, acquisition: Any, path: Path | None, progress: Progress, withdraws: Withdraws) -> None:
        from pycromanager.acquisition.acq_eng_py.internal.engine import Engine

        super().__init__(acquisition, path)
        self._engine = acquisition._acq
        self._engine.data_sink_ = GuardedStorage(acquisition._dataset, progress.fail)
        self._output = acquisition._image_processor.output_queue
        self._submitted = 0
        self._running: list[Future[Any]] = []
        self._done = 0
        self._log = _LogListener(Engine.get_core())
        submit: Callable[[Any], Future[Any]] = self._engine.submit_event_iterator

        def submit_and_keep(events: Any) -> Future[Any]:
            # Left out here, many events end at once; each that reaches a hook costs about a millisecond.
            future = submit(event for event in events if not withdraws(event.to_json))
            self._running.append(future)
            return future

        self._engine.submit_event_iterator = submit_and_keep

    def submit(self, events: list[Event]) -> None:
        self._submitted += 1
        super().submit(events)

    def find_trouble(self, at: str) -> AcqIslError | None:
        for future in [future for future in self._running if future.done()]:
            self._running.remove(future)
            self._done += 1
            error = future.exception()
            if error is not None:
                return to_typed_error(error, at, self._log.cause)
        return super().find_trouble(at)

    def is_settled(self, images: int) -> bool:
        # Every image the camera delivered was put into this queue; `unfinished_tasks` counts the puts.
        return self._done == self._submitted and images >= self._engine.first_dequeue_.unfinished_tasks

    def make_answer(self, images: list[tuple[Any, dict[str, Any]]]) -> Any:
        # This backend takes one image only; the others go straight into the queue of the saving thread.
        for image, metadata in images[:-1]:
            self._output.put(self._engine.core_.TaggedImage(metadata, image))
        return images[-1]

    def force_end(self) -> bool:
        """Do what the stuck engine would do at the end: storage and all threads but the engine's finish."""
        from pycromanager.acquisition.acq_eng_py.main.acq_notification import AcqNotification

        if not self._engine.are_events_finished():
            logger.warning("the engine does not answer; ending the acquisition without it")
            self._engine.add_to_output(self._engine.core_.TaggedImage(None, None))
            self._engine.post_notification(AcqNotification.create_acq_events_finished_notification())
        self._log.close()
        return True

    def _await(self) -> None:
        try:
            super()._await()
        finally:
            self._log.close()


class _LogListener:
    """What Pycro-Manager writes into the core's log: the only place where it says why a command failed."""

    def __init__(self, core: Any) -> None:
        self._core, self._write = core, core.log_message
        self.cause = ""
        core.log_message = self._listen

    def close(self) -> None:
        """Let the core log by itself again."""
        if self._core.__dict__.get("log_message") == self._listen:
            del self._core.log_message

    def _listen(self, *message: Any) -> None:
        error = sys.exc_info()[1]
        while error is not None and (error.__cause__ or error.__context__) is not None:
            error = error.__cause__ or error.__context__
        if error is not None:
            self.cause = str(error) or type(error).__name__
        self._write(*message)


def to_typed_error(error: BaseException, at: str, logged: str = "") -> AcqIslError:
    """The typed form of an exception out of Pycro-Manager, with the whole chain in its message.

    ``logged`` is the last cause in the core's log; the engine gives none when it has tried a command in vain.
    """
    if isinstance(error, AcqIslError):
        return error
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(texts) < 4:
        text = str(cause) or type(cause).__name__
        if text not in texts:
            texts.append(text)
        cause = cause.__cause__ or cause.__context__
    if logged and texts[-1].endswith(_IN_VAIN):
        texts.append(logged)
    failed = AcquisitionFailed(
        f"the microscope stopped the acquisition at {at}",
        got=" <- ".join(texts),
        fix="check the device that is named, and the limits of the experiment",
    )
    failed.__cause__ = error
    return failed
