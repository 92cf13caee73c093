"""Checkpoints of a training run: whole or not there, checked when read, the last ones kept.

safetensors holds plain tensors and text: reading a file runs no code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from acq_isl.errors import ModelError, TrainingFailed
from acq_isl.files import write_whole

logger = logging.getLogger(__name__)

_KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{8})\.safetensors")


@dataclass(frozen=True, slots=True, eq=False)
class Tensors:
    """What a file holds: tensors by name, and text by key."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Those whose name begins like this, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def write_tensors(path: Path, content: Tensors) -> None:
    """Write a file at once, with a digest of what is in it."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in content.tensors.items()}
    metadata = {**content.metadata, "sha256": _digest(tensors, content.metadata)}
    write_whole(path, save(tensors, metadata=metadata), durable=True)


def read_tensors(path: Path) -> Tensors:
    """Read a file back; `ModelError` if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} cannot be read", got=str(error)[:200], fix="copy it anew") from error
    if metadata.pop("sha256", None) != _digest(tensors, metadata):
        raise ModelError(f"{path} is damaged: its content has changed since it was written")
    return Tensors(tensors, metadata)


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    content = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        content.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return content.hexdigest()


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints in a folder, which belongs to one run."""

    folder: Path

    def save(self, step: int, content: Tensors) -> None:
        """Keep a checkpoint and the one before; older ones go."""
        write_tensors(self.folder / f"checkpoint-{step:08d}.safetensors", content)
        killed = self.folder.glob("checkpoint-*.partial")
        for path in (*killed, *(path for _, path in self._list()[:-_KEPT])):
            path.unlink(missing_ok=True)

    def newest(self) -> tuple[int, Tensors] | None:
        """The last checkpoint that is whole, with its step; None if there never was one. `TrainingFailed` if
        all are damaged."""
        found = self._list()
        for step, path in reversed(found):
            try:
                return step, read_tensors(path)
            except ModelError as error:
                logger.warning("%s; going back to the checkpoint before", error)
        if found:
            raise TrainingFailed(
                f"every checkpoint in {self.folder} is damaged",
                got=", ".join(path.name for _, path in found),
                fix="bring back a copy, or delete them to begin anew",
            )
        return None

    def _list(self) -> list[tuple[int, Path]]:
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("checkpoint-*"))
        return sorted((int(match[1]), path) for match, path in matches if match)
