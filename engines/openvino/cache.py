"""Compiled networks of OpenVINO on disk: sealed, and compiled again when in doubt."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from acq_isl.engines.sealed_file import SealedFile
from acq_isl.files import default_folder

_log = logging.getLogger(__name__)

_FORMAT = 7  # of the files, and of how graphs are rewritten before they are compiled
_MOST_FILES = 32
_HASH_DIGITS = 24


@dataclass(frozen=True, slots=True)
class CompiledKey:
    """Everything a compiled network depends on."""

    model_sha256: str
    trunk_sha256: str
    """Of the quantised part, if any."""
    part: str
    """Which graph of the model."""
    precision: str
    threads: int
    shape: tuple[int, ...]
    """Of the tiles."""
    runtime: str
    """Version of OpenVINO and name of the processor."""


class CompiledCache:
    """A folder of compiled networks that several processes may share, by default in the user's cache.

    The least recently written ones beyond `_MOST_FILES` are deleted.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() / "openvino" if folder is None else folder

    def get(self, key: CompiledKey, load: Callable[[bytes], Any], compile_part: Callable[[], Any]) -> Any:
        """The openvino.CompiledModel of a key; ``load`` makes it from bytes and may raise RuntimeError."""
        digest = hashlib.sha256(json.dumps([_FORMAT, *astuple(key)]).encode()).hexdigest()[:_HASH_DIGITS]
        file = SealedFile(self.folder / f"{digest}.blob")
        content = file.load()
        if content is not None:
            try:
                return load(content)
            except RuntimeError as error:
                _log.warning("OpenVINO does not take %s, it will be made again: %s", file.path, error)
        network = compile_part()
        try:
            stream = io.BytesIO()
            network.export_model(stream)
            if file.save(stream.getvalue()):
                files = sorted(self.folder.glob("*.blob"), key=lambda path: path.stat().st_mtime)
                for old in files[:-_MOST_FILES]:
                    old.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:
            _log.warning("the compiled network cannot be kept in %s: %s", self.folder, error)
        return network
