"""Log records that repeat are counted instead of written: no peer makes this process write without end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable


class LimitRepeats(logging.Filter):
    """Of records from one place in the code ``most`` pass in ``every_s`` s; the next one counts the rest.

    Add it to a logger whose messages other processes cause.
    """

    def __init__(
        self, most: int = 20, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._most, self._every_s, self._clock = most, every_s, clock
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now_s, place = self._clock(), (record.pathname, record.lineno)
        with self._lock:
            since_s, count = self._seen.get(place, (now_s, 0))
            if now_s - since_s < self._every_s:
                self._seen[place] = since_s, count + 1
                return count < self._most
            self._seen[place] = now_s, 1
        if count > self._most:
            record.msg, record.args = f"{record.getMessage()} (and {count - self._most} more like it)", ()
        return True
