"""Files of the cache that are executed: sealed, so that only what this user's acq-isl wrote is used again.

The key lies outside of the cache, where only the user may read it. Whoever can write to the cache, or copies
a file from another one, cannot make a seal; such a file is made again, which costs time only.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from acq_isl.files import settings_folder, write_whole

_log = logging.getLogger(__name__)
_BYTES = 32  # of the key, and of SHA-256


@dataclass(frozen=True, slots=True)
class SealedFile:
    """A file with its seal in front, which holds for its name too: it is named after all it depends on."""

    path: Path

    def load(self) -> bytes | None:
        """What was kept; None if there is nothing whole, or nothing of ours."""
        try:
            stored, key = self.path.read_bytes(), _user_key()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("%s cannot be read, it will be made again: %s", self.path, error)
            return None
        content = stored[_BYTES:]
        if not hmac.compare_digest(self._seal(key, content), stored[:_BYTES]):
            _log.warning("%s is damaged or another user's, it will be made again", self.path)
            return None
        return content

    def save(self, content: bytes) -> bool:
        """Keep it; not being able to costs only time."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, self._seal(_user_key(), content) + content)
        except OSError as error:
            _log.warning("%s cannot be kept: %s", self.path, error)
            return False
        return True

    def _seal(self, key: bytes, content: bytes) -> bytes:
        return hmac.digest(key, self.path.name.encode() + b"\0" + content, "sha256")


def _user_key() -> bytes:
    """The key, made when it is first asked for; OSError if there is none that only this user can read."""
    path = settings_folder() / "cache.key"
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        suppress(FileExistsError),
        os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new,
    ):
        new.write(secrets.token_bytes(_BYTES))
    key = path.read_bytes()
    if len(key) != _BYTES or (os.name == "posix" and path.stat().st_mode & 0o077):
        raise OSError(f"the key {path} is cut short or others can read it: delete it, and a new one is made")
    return key
