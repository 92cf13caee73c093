"""Actions between two events: calls that may hang or fail, each with its time limit."""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from acq_isl.errors import AcqIslError, AcquisitionFailed, ActionRefused
from acq_isl.hooks.hardware import nearest

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
_IMPORT_S = 60.0  # of a user's module, which may import what is large


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
    if errors and isinstance(errors[0], Exception):
        raise errors[0]
    if errors:
        raise AcquisitionFailed(f"{what} raised {type(errors[0]).__name__}", got=str(errors[0]))
    if not results:
        raise AcquisitionFailed(
            f"{what} did not end",
            wanted=f"within {limit_s:g} s",
            fix="check the device or function it waits for",
        )
    return results[0]


def find_function(name: str, folder: Path | None = None) -> Callable[..., Any]:
    """A user's ``"package.module:function"``; ActionRefused names the nearest where there is none.

    It is looked for in ``folder`` first (by default the present one), as Python does beside a script.
    """
    module_name, _, function_name = name.partition(":")
    beside = (folder or Path.cwd()).resolve()
    try:
        module = call_within(
            _IMPORT_S, f"importing {module_name}", lambda: _import_beside(module_name, beside)
        )
    except Exception as error:  # a user's module may fail in any way
        raise ActionRefused(
            f"the module of {name} cannot be imported",
            got=f"{type(error).__name__}: {error}",
            fix="put it beside the experiment file, or install it; if it is there, correct the error in it",
        ) from error
    function: Callable[..., Any] | None = getattr(module, function_name, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
        raise ActionRefused(
            f"{module_name} has no function {function_name!r}",
            fix=f"did you mean {nearest(function_name, names)}?",
        )
    return function


def _import_beside(name: str, folder: Path) -> ModuleType:
    """A module, from ``folder`` if it is there, whatever was imported by that name from elsewhere."""
    top = name.partition(".")[0]
    if (folder / f"{top}.py").is_file() or (folder / top).is_dir():
        if sys.path[0] != str(folder):
            sys.path.insert(0, str(folder))
        known = sys.modules.get(top)
        file = None if known is None else known.__spec__ and known.__spec__.origin
        if known is not None and folder not in Path(file or "/").resolve().parents:
            for old in [old for old in sys.modules if old.partition(".")[0] == top]:
                del sys.modules[old]
        importlib.invalidate_caches()
    return importlib.import_module(name)


def check_function(name: str, arguments: Sequence[str], folder: Path | None = None) -> None:
    """ActionRefused unless there is such a function, and it can be called with these arguments."""
    function = find_function(name, folder)
    wanted = f"def {name.partition(':')[2]}({', '.join(arguments)})"
    try:
        signature = inspect.signature(function)
    except ValueError:  # some written in C do not say
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        what, got = f"{name} takes other arguments", f"{signature}: {error}"
        raise ActionRefused(what, wanted=wanted, got=got, fix="change it") from error
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
        what = f"{name} would do nothing when it is called"
        raise ActionRefused(what, wanted=wanted, got="async def, or a function with yield", fix="change it")


def call_user_function(name: str, *arguments: Any, limit_s: float = 30.0, folder: Path | None = None) -> str:
    """Run a user's ``"package.module:function"`` between two events, for ``limit_s`` seconds at most.

    Returns ``"done"``, or ``"done: "`` and what the function returned. ActionRefused if there is no such
    function, AcquisitionFailed if it raised, or did not return in time.
    """
    function = find_function(name, folder)
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
