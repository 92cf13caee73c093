"""Files that are whole or not there, and where the program keeps its own."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A place beside ``path`` to write to; it takes the place of ``path`` at once, unless the block raises.

    Parameters
    ----------
    durable : bool
        Whether the content is on the disk, not in a cache of it, before the old file goes.

    Raises
    ------
    OSError
        The place cannot be written or replaced; nothing is left beside ``path``.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        yield partial
        if durable:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str, *, durable: bool = False) -> None:
    """Replace a file at once, by way of one beside it; text is UTF-8. As `whole_file`."""
    with whole_file(path, durable=durable) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def settings_folder() -> Path:
    """Where the system keeps a user's settings for this program."""
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming") / "acq-isl"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "acq-isl"
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "acq-isl"


def default_folder() -> Path:
    """Where plans and compiled networks are kept: ``ACQ_ISL_CACHE``, or the system's folder for caches."""
    named = os.environ.get("ACQ_ISL_CACHE")
    if named:
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "acq-isl" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "acq-isl"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "acq-isl"
