"""A view: a table of what happens in a run, one line an event."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import TextIO

from acq_isl.events import Event


class EventTable:
    """Has the members of `acq_isl.protocols.RunView`: ``acq_isl.run(..., views=[EventTable(path)])``."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None

    def setup(self) -> None:
        self._file = self.path.open("w", newline="", encoding="utf-8")
        csv.writer(self._file).writerow(("seconds", "event"))

    def handle(self, event: Event) -> None:
        if self._file is not None:
            csv.writer(self._file).writerow((f"{time.monotonic():.3f}", type(event).__name__))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
