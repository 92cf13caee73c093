"""Compiled networks of OpenVINO on disk: checked before use, compiled again when in doubt."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acq_isl.files import default_folder, write_whole

_log = logging.getLogger(__name__)

_FORMAT = 6  # of the files, and of how graphs are rewritten before they are compiled
_MOST_FILES = 32
_HASH_DIGITS = 24


@dataclass(frozen=True, slots=True)
class CompiledKey:
    """Everything a compiled network depends on."""

    model_sha256: str
    trunk: bytes
    """The quantised part, if any."""
    part: str
    """Which graph of the model."""
    precision: str
    threads: int
    shape: tuple[int, ...]
    """Of the tiles."""
    runtime: str
    """Version of OpenVINO and name of the processor."""

    @property
    def digest(self) -> str:
        """Name of the file."""
        parts = (_FORMAT, self.model_sha256, hashlib.sha256(self.trunk).hexdigest(), self.part)
        text = json.dumps([*parts, self.precision, self.threads, self.shape, self.runtime])
        return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]


class CompiledCache:
    """A folder of compiled networks that several processes may share.

    Each file is one line with the hash of what follows, so a file is whole or not used. The least recently
    written ones beyond `_MOST_FILES` are deleted.

    Parameters
    ----------
    folder : pathlib.Path, optional
        Under `acq_isl.files.default_folder` if not given.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() / "openvino" if folder is None else folder

    def get(self, key: CompiledKey, load: Callable[[bytes], Any], compile_part: Callable[[], Any]) -> Any:
        """The openvino.CompiledModel of a key; ``load`` makes it from bytes and may raise RuntimeError."""
        path = self.folder / f"{key.digest}.blob"
        content = self._read(path)
        if content is not None:
            try:
                return load(content)
            except RuntimeError as error:
                _log.warning("OpenVINO does not take %s, which is compiled again: %s", path, error)
        network = compile_part()
        self._keep(path, network)
        return network

    def _read(self, path: Path) -> bytes | None:
        try:
            head, _, content = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("%s cannot be read; the network is compiled again: %s", path, error)
            return None
        if hashlib.sha256(content).hexdigest().encode() != head:
            _log.warning("%s is damaged; the network is compiled again", path)
            return None
        return content

    def _keep(self, path: Path, network: Any) -> None:
        """Without a cache everything works, only slower, so what goes wrong here is told and no more."""
        try:
            stream = io.BytesIO()
            network.export_model(stream)
            content = stream.getvalue()
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
            files = sorted(self.folder.glob("*.blob"), key=lambda file: file.stat().st_mtime)
            for old in files[:-_MOST_FILES]:
                old.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:
            _log.warning("the compiled network cannot be kept in %s: %s", self.folder, error)
