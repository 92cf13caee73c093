"""A process of its own for one function of the user's that measures: whatever it does, the run goes on.

``python -m acq_isl.hooks.user_process FOLDER FUNCTION`` reads predictions from its standard input: each is
its stack's description and the frames of a result on the wire, all with their lengths (8 bytes) before them.
It answers each with a line of JSON. What the function prints is not shown.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter

from acq_isl.errors import AcqIslError, AcquisitionFailed, ExperimentError
from acq_isl.hooks.user_calls import call_within, check_function, find_function
from acq_isl.rules.user import PythonFunction
from acq_isl.stack import Prediction, StackInfo
from acq_isl.stream.codec import decode, prediction_of, result_of
from acq_isl.stream.messages import Result

_START_S = 60.0  # its module may import what is large
_LENGTH = 8
_STARTS = 3
_FRAMES = 4  # the stack; header, mean and spread of a result
_INFO = TypeAdapter(StackInfo)


class UserProcess:
    """Asks one function, for a limited time each; closed by whoever opened it.

    AcqIslError if the function raised, ended its process, took too long or returned nonsense. After it took
    too long, or ended its process three times, it is not asked again.
    """

    def __init__(self, function: str, folder: Path) -> None:
        self._function, self._folder = function, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._given_up = ""

    def start(self) -> None:
        """Import the function; ExperimentError if it is not there, or cannot be called with a prediction."""
        self._starts += 1
        self._process = subprocess.Popen(
            [sys.executable, "-m", "acq_isl.hooks.user_process", str(self._folder), self._function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=sys.platform != "win32",  # Ctrl-C is for the run
        )
        self._exchange(b"", _START_S)

    def ask(self, prediction: Prediction, limit_s: float) -> tuple[float, float]:
        """What it measures, and its doubt; NaN for what it does not say."""
        if self._given_up:
            raise AcquisitionFailed(f"{self._function} is not called again: {self._given_up}")
        if self._process is None:
            self.start()
        value, doubt = self._exchange(_pack(prediction), limit_s)["measured"]
        return math.nan if value is None else value, math.nan if doubt is None else doubt

    def close(self) -> None:
        """End the process, whatever it does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe and pipe.close()

    def _exchange(self, data: bytes, limit_s: float) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        to, answers = process.stdin, process.stdout

        def talk() -> bytes:
            if data:
                to.write(data)
                to.flush()
            return answers.readline()

        try:
            line = call_within(limit_s, self._function, talk)
        except AcquisitionFailed:
            self._given_up = f"it did not end within {limit_s:g} s"
            self.close()
            raise
        except OSError:
            line = b""
        if not line:
            self.close()
            if self._starts >= _STARTS:
                self._given_up = f"it ended its process {_STARTS} times"
            raise AcquisitionFailed(f"{self._function} ended its process", fix="let it return instead")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            # Whatever a function raises must be fit for a report: no halves of characters.
            what = str(answer["error"]).encode("utf-8", "replace").decode()
            raise ExperimentError(what, wanted=answer.get("wanted"), fix=answer.get("fix"))
        return answer


class UserMeasurements:
    """All functions of the user's that measure in a run; starts their processes when they are first asked."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: dict[str, UserProcess] = {}

    def __enter__(self) -> UserMeasurements:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes.values():
            process.close()

    def check(self, measurement: PythonFunction) -> None:
        """ExperimentError if there is no such function."""
        self._of(measurement).start()

    def __call__(self, measurement: PythonFunction, prediction: Prediction) -> tuple[float, float]:
        """As `UserProcess.ask`."""
        return self._of(measurement).ask(prediction, measurement.limit_s)

    def _of(self, measurement: PythonFunction) -> UserProcess:
        return self._processes.setdefault(
            measurement.function, UserProcess(measurement.function, self._folder)
        )


def _pack(prediction: Prediction) -> bytes:
    frames = [_INFO.dump_json(prediction.info), *map(bytes, result_of(0, prediction, 0.0))]
    return b"".join(len(frame).to_bytes(_LENGTH, "big") + frame for frame in frames)


def _unpack(stream: BinaryIO) -> Prediction | None:
    """The next prediction; None where there is none any more."""
    frames = [stream.read(int.from_bytes(stream.read(_LENGTH), "big")) for _ in range(_FRAMES)]
    if not frames[0]:
        return None
    message, buffers = decode(frames[1:])
    if not isinstance(message, Result):
        raise AcquisitionFailed("what came is no prediction", got=message.type)
    return prediction_of(message, buffers, _INFO.validate_json(frames[0]))


def read_answer(result: Any) -> tuple[float | None, float | None]:
    """What a function returned: a number, or a number and its doubt; ValueError if it is neither."""
    values = result if isinstance(result, tuple) and len(result) == 2 else (result, math.nan)
    numbers = []
    for value in values:
        if isinstance(value, str | bytes | bool) or value is None:
            raise ValueError(f"returned {value!r}")
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"returned {type(value).__name__}") from error
        if math.isinf(number):
            raise ValueError("returned what is not finite")
        numbers.append(None if math.isnan(number) else number)
    return numbers[0], numbers[1]


def _answer(function: Callable[[Any], Any], name: str, prediction: Prediction) -> dict[str, Any]:
    try:
        result = function(prediction)
    except Exception as error:  # noqa: BLE001 - told by the run
        return {"error": f"{name} raised {type(error).__name__}: {error}"}
    try:
        return {"measured": read_answer(result)}
    except ValueError as error:
        return {"error": f"{name} {error}", "wanted": "a number, or a number and its doubt"}


def _serve(folder: Path, name: str, tell: Callable[[dict[str, Any]], None], predictions: BinaryIO) -> None:
    try:
        check_function(name, ("prediction",), folder)
        function = find_function(name, folder)
    except AcqIslError as error:
        tell({"error": error.what if error.got is None else f"{error.what}: {error.got}", "fix": error.fix})
        return
    tell({"ready": True})
    process = os.getpid()
    while (prediction := _unpack(predictions)) is not None:
        answer = _answer(function, name, prediction)
        if os.getpid() != process:  # the function forked: one answer is enough
            os._exit(0)
        tell(answer)


def main() -> None:
    """Serve the process that started this one, until it closes standard input."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what is printed must not be taken for an answer
    predictions, sys.stdin = sys.stdin.buffer, Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115

    def tell(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer).encode() + b"\n")

    _serve(Path(sys.argv[1]), sys.argv[2], tell, predictions)


if __name__ == "__main__":
    main()
