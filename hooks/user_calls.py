"""Actions between two events: calls that may hang or fail, each with its time limit."""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from acq_isl.errors import AcqIslError, AcquisitionFailed, ActionRefused
from acq_isl.hooks.hardware import nearest

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


def call_within(limit_s: float, what: str, function: Callable[[], Result]) -> Result:
    """Call a function that may never return; after ``limit_s`` it is abandoned in its (daemon) thread.

    ``what`` is for messages, such as ``"closing the shutter"``. AcquisitionFailed if it did not return in
    time, else whatever it raises.
    """
    results: list[Result] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            errors.append(error)

    thread = threading.Thread(target=call, name=f"acq-isl {what}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if errors:
        raise errors[0]
    if not results:
        raise AcquisitionFailed(
            f"{what} did not end",
            wanted=f"within {limit_s:g} s",
            fix="check the device or function it waits for",
        )
    return results[0]


def find_function(name: str) -> Callable[..., Any]:
    """A user's ``"package.module:function"``; ActionRefused names the nearest where there is none."""
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ActionRefused(
            f"the module of {name} cannot be imported",
            got=str(error),
            fix="install it, or run acq-isl in the folder that holds it",
        ) from error
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
        raise ActionRefused(
            f"{module_name} has no function {function_name!r}",
            fix=f"did you mean {nearest(function_name, names)}?",
        )
    return function


def call_user_function(name: str, *arguments: Any, limit_s: float = 30.0) -> str:
    """Run a user's ``"package.module:function"`` between two events, for ``limit_s`` seconds at most.

    Returns ``"done"``, or ``"done: "`` and what the function returned. ActionRefused if there is no such
    function, AcquisitionFailed if it raised, or did not return in time.
    """
    function = find_function(name)
    try:
        result = call_within(limit_s, f"the function {name}", lambda: function(*arguments))
    except AcqIslError:
        raise
    except Exception as error:
        logger.warning("the function %s failed", name, exc_info=True)
        raise AcquisitionFailed(
            f"the function {name} raised {type(error).__name__}", got=str(error)
        ) from error
    return "done" if result is None else f"done: {result}"
