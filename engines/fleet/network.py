"""A `Network` that is computed by a pool of servers: each in turn, without those that are down."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from acq_isl.engines.fleet.protocol import Server, ServerBusy, ServerGone
from acq_isl.errors import EngineError
from acq_isl.stack import Float32Image

_LOOK_S = 1.0
_LONGEST_S = 60.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How urgent the work is, and how long it waits."""

    priority: int
    """At the server: 1 comes before 2."""
    request_s: float
    """For an answer; a server lets what waited so long in its queue go."""
    total_s: float
    """Until some server answers, all tries together."""


LIVE = Patience(priority=1, request_s=2.0, total_s=2.0)
"""Somebody looks on: what is late is predicted on this computer instead."""
BULK = Patience(priority=2, request_s=300.0, total_s=600.0)
"""Nothing is dropped: a pool that is gone or busy is waited for."""


class FleetNetwork:
    """Runs tiles on the servers in turn. One that fails is left out until a thread that asks it each second
    hears that it is ready; one that fails again and again, for twice as long each time, up to a minute.
    Threads may share it.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        outputs: tuple[str, ...],
        patience: Patience,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.outputs, self._servers, self._patience, self._sleep = outputs, tuple(servers), patience, sleep
        self._lock = threading.Lock()
        self._down: dict[str, float] = {}  # not before then
        self._fails: Counter[str] = Counter()  # in a row
        self._turn = 0
        self._last = servers[0].address
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._ask, name="fleet", daemon=True)
        self._watch.start()

    @property
    def name(self) -> str:
        """With the server that answered last; held to the tolerance of fp16, whatever it computes in."""
        return f"fleet {self._last} fp16"

    def run(self, tiles: NDArray[np.uint8], inv_sd: Float32Image) -> tuple[Float32Image, ...]:
        """Infer a batch of tiles; EngineError if no server does within the patience."""
        until = time.monotonic() + self._patience.total_s
        wait_s, last = 0.05, EngineError("no server of the fleet is up", fix="start one, or wait")
        while not self._closed.is_set():
            for server in self._in_turn():
                left_s = until - time.monotonic()
                if left_s <= 0:
                    break
                try:
                    found = server.infer(
                        {"stack": tiles, "inv_sd": inv_sd},
                        self.outputs,
                        priority=self._patience.priority,
                        timeout_s=min(self._patience.request_s, left_s),
                    )
                except ServerGone as error:
                    last = error
                    self._leave_out(server.address)
                    _log.warning("%s is left out until it answers: %s", server.address, error.what)
                except ServerBusy as error:
                    last = error
                else:
                    self._fails[server.address] = 0
                    self._last = server.address
                    return found
            if self._patience is LIVE or time.monotonic() + wait_s > until:
                raise last
            self._sleep(wait_s)
            wait_s = min(2 * wait_s, 2.0)
        raise EngineError("the engine is closed", fix="load the engine again")

    def _leave_out(self, address: str) -> None:
        with self._lock:
            self._down[address] = time.monotonic() + min(2.0 ** self._fails[address] - 1, _LONGEST_S)
            self._fails[address] += 1

    def _in_turn(self) -> list[Server]:
        """Servers that are up, another one first each time."""
        with self._lock:
            self._turn += 1
            up = [server for server in self._servers if server.address not in self._down]
        first = self._turn % len(up) if up else 0
        return up[first:] + up[:first]

    def _ask(self) -> None:
        while not self._closed.wait(_LOOK_S):
            for server in self._servers:
                not_before = self._down.get(server.address)
                if not_before is not None and time.monotonic() >= not_before and server.is_ready():
                    with self._lock:
                        del self._down[server.address]
                    _log.warning("%s is back", server.address)

    def close(self) -> None:
        self._closed.set()
        self._watch.join(2 * _LOOK_S)
        for server in self._servers:
            server.close()
