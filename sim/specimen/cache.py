"""A cache of the results used last, for any number of threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class ResultCache(Generic[T]):
    """Remembers at most ``size`` results by key; the one not used for longest is forgotten.

    Two threads that want the same make it once; threads that want different results do not wait for each
    other.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Future[T]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result for a key, made now unless it is kept. An error of ``make`` is not kept."""
        with self._lock:
            future, mine = self._kept.get(key), False
            if future is None:
                future, mine = Future(), True
                self._kept[key] = future
                while len(self._kept) > self._size:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
        if mine:
            try:
                future.set_result(make())
            except BaseException as error:
                future.set_exception(error)
                with self._lock:
                    if self._kept.get(key) is future:
                        del self._kept[key]
                raise
        return future.result()

    def __contains__(self, key: Hashable) -> bool:
        """Whether it is there, or being made."""
        with self._lock:
            return key in self._kept
