"""What TensorRT found out on this machine and need not find out again: compiled kernels, times of kernels."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from acq_isl.engines.tensorrt.plan_cache import write_whole

_log = logging.getLogger(__name__)
_HASH_BYTES = 32


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A file of TensorRT's with its hash in front. Losing it costs time, never a result.

    Parameters
    ----------
    path : pathlib.Path
        Named after all it depends on: a file of another GPU, driver or version is never looked at.
    """

    path: Path

    def load(self) -> bytes | None:
        """What was kept; None if there is nothing whole."""
        try:
            stored = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("%s cannot be read, it will be made again: %s", self.path, error)
            return None
        content = stored[_HASH_BYTES:]
        if hashlib.sha256(content).digest() != stored[:_HASH_BYTES]:
            _log.warning("%s is damaged, it will be made again", self.path)
            return None
        return content

    def save(self, content: bytes) -> None:
        """Keep it; not being able to costs only time."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, hashlib.sha256(content).digest() + content)
        except OSError as error:
            _log.warning("%s cannot be kept: %s", self.path, error)
