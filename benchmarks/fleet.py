"""Microscopes on a pool of servers beside one with its own engine.

    python benchmarks/fleet.py KSERVE_PYTHON

The servers are KServe's on the processor (`benchmarks/kserve_server.py`, in an environment of their own), one
thread each, so that numbers compare ways and not machines. A microscope hands over a stack, waits for its
prediction, and goes on. In one run: the engine here; one microscope on the pool; four; four with one server
killed, with both killed, and with one back.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from acq_isl.engines.backend import Candidate, LoadOptions
from acq_isl.engines.fallback import FallbackEngine
from acq_isl.engines.fleet.backend import VARIABLE, FleetBackend
from acq_isl.engines.fleet.repository import write_repository
from acq_isl.engines.model_file import read_model
from acq_isl.engines.onnx import OnnxEngine
from acq_isl.engines.selection import sample_stack
from acq_isl.stack import ZStack

SERVER = Path(__file__).with_name("kserve_server.py")
MICROSCOPES = 4


@dataclass(slots=True)
class Microscope:
    """What it waited for each prediction, in ms, and who made it."""

    engine: FallbackEngine
    waits_ms: list[float] = field(default_factory=list)
    by: list[str] = field(default_factory=list)

    def acquire(self, stack: ZStack, until: float) -> None:
        while time.monotonic() < until:
            began = time.perf_counter()
            prediction = self.engine.predict(stack)
            self.waits_ms.append((time.perf_counter() - began) * 1e3)
            self.by.append("fleet" if prediction.engine.startswith("fleet") else "here")


@contextmanager
def served(python: str, repository: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [python, str(SERVER), str(repository), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(there: Callable[[], bool], most_s: float = 400) -> None:
    until = time.monotonic() + most_s
    while not there():
        if time.monotonic() > until:
            raise SystemExit("no server answered")
        time.sleep(0.2)


def at_once(scopes: Sequence[Microscope], stack: ZStack, seconds: float) -> None:
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=scope.acquire, args=(stack, until)) for scope in scopes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def tell(title: str, scopes: Sequence[Microscope], seconds: float) -> None:
    waits = sorted(wait for scope in scopes for wait in scope.waits_ms)
    counts = [len(scope.waits_ms) for scope in scopes]
    by = [name for scope in scopes for name in scope.by]
    p95 = waits[min(int(0.95 * len(waits)), len(waits) - 1)]
    sys.stdout.write(
        f"| {title} | {statistics.median(waits):.0f} / {p95:.0f} | {sum(counts) / seconds:.2f} "
        f"| {'-'.join(map(str, (min(counts), max(counts))))} | {by.count('fleet')} | {by.count('here')} |\n"
    )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", help="with kserve and onnxruntime installed")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    model = read_model("demo")
    stack = sample_stack(model, options.side)
    local = Candidate("onnxruntime fp32", lambda: OnnxEngine(model, threads=1, gate="warn"))
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        write_repository("demo", Path(name))
        ports = [free_port(), free_port()]
        servers = [opened.enter_context(served(options.python, Path(name), port)) for port in ports]
        os.environ[VARIABLE] = ",".join(f"127.0.0.1:{port}" for port in ports)
        (remote,) = FleetBackend().candidates(model, LoadOptions(1, gate="warn"))
        back = remote.back or (lambda: False)
        wait_until(back)
        time.sleep(5)  # the second one, too

        def microscopes(count: int, *candidates: Candidate) -> list[Microscope]:
            return [Microscope(opened.enter_context(FallbackEngine(candidates))) for _ in range(count)]

        sys.stdout.write(
            "| way | ms, p50 / p95 | stacks/s | stacks of each | by the pool | by the engine here |\n"
            + "|---" * 6 + "|\n"
        )  # fmt: skip
        for title, scopes in (
            ("engine here, one microscope", microscopes(1, local)),
            ("pool of two, one microscope", microscopes(1, remote, local)),
            (f"pool of two, {MICROSCOPES} microscopes", microscopes(MICROSCOPES, remote, local)),
        ):
            at_once(scopes, stack, 2)
            for scope in scopes:
                scope.waits_ms.clear()
                scope.by.clear()
            at_once(scopes, stack, options.seconds)
            tell(title, scopes, options.seconds)
        scopes = microscopes(MICROSCOPES, remote, local)
        servers[0].kill()
        at_once(scopes, stack, options.seconds)
        tell("one of two killed", scopes, options.seconds)
        servers[1].kill()
        for scope in scopes:
            scope.waits_ms.clear()
            scope.by.clear()
        at_once(scopes, stack, options.seconds)
        tell("both killed", scopes, options.seconds)
        opened.enter_context(served(options.python, Path(name), ports[0]))
        wait_until(lambda: all(scope.engine.name.startswith("fleet") for scope in scopes))
        for scope in scopes:
            scope.waits_ms.clear()
            scope.by.clear()
        at_once(scopes, stack, options.seconds)
        tell("one is back", scopes, options.seconds)


if __name__ == "__main__":
    main()
