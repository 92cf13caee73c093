"""Files that are whole or not there, text that people write, and where the program keeps its own."""

from __future__ import annotations

import errno
import os
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

PARTIAL = ".partial"
MOST_BYTES = 1 << 30
_LARGEST_TEXT = 4 << 20
_MOST_VALUES = 200_000


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


def flush(path: Path) -> None:
    """See to it that a file, or all files below a folder, are on the disk and not in a cache of it."""
    for file in [path] if path.is_file() else filter(Path.is_file, path.rglob("*")):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())


def write_whole(path: Path, content: bytes | str, *, durable: bool = False) -> None:
    """Replace a file at once, by way of one beside it; text is UTF-8. As `whole_file`."""
    with whole_file(path, durable=durable) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def read_regular(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """A file's bytes; OSError if it is no ordinary file, such as a pipe or device, or is too large.

    Waits for nobody, and no size is believed that a file announces.
    """
    if not path.is_file() and path.exists():  # opening a device may do things
        raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
    with open(path, "rb", opener=None if sys.platform == "win32" else _open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no ordinary file", str(path))
        content = file.read(most_bytes + 1) if status.st_size <= most_bytes else b""
    if max(len(content), status.st_size) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {most_bytes / 2**20:g} MiB", str(path))
    return content


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_text(path: Path) -> str:
    """Text of a file that a person wrote, as `read_regular`; UnicodeDecodeError if it is not UTF-8."""
    return read_regular(path, _LARGEST_TEXT).decode()


def load_yaml(text: str) -> Any:
    """What YAML text holds.

    Raises
    ------
    yaml.YAMLError
        It is no YAML, gives a key twice (YAML takes the last in silence), or is larger, more deeply nested or
        more often repeated by aliases than anybody writes: a few lines of aliases may stand for a billion
        values, which whoever checks them would go through.
    """
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_values(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"it stands for more than {_MOST_VALUES} values")
        if twice := _find_repeated_key(node, set()):
            raise yaml.YAMLError(twice)
        return loader.construct_document(node)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply, or contains itself") from error
    except ValueError as error:  # such as a number of five thousand digits, or the 31st of February
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def _find_repeated_key(node: yaml.Node, seen: set[int]) -> str:
    """The first key that a mapping gives twice, and where; empty if there is none."""
    if id(node) in seen or not isinstance(node.value, list):
        return ""
    seen.add(id(node))
    keys: set[tuple[str, str]] = set()
    for part in node.value:
        key, value = part if isinstance(part, tuple) else (None, part)
        if key is not None and isinstance(key.value, str):
            if (key.tag, key.value) in keys:
                return f"line {key.start_mark.line + 1}: {key.value!r} is given twice; keep one of them"
            keys.add((key.tag, key.value))
        if found := _find_repeated_key(value, seen):
            return found
    return ""


def _count_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Values that a node stands for, those of its aliases each time."""
    if id(node) not in known:
        inner = node.value if isinstance(node.value, list) else []
        parts = [part for one in inner for part in (one if isinstance(one, tuple) else (one,))]
        known[id(node)] = 1 + sum(_count_values(part, known) for part in parts)
    return known[id(node)]


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
