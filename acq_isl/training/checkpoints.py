"""Checkpoints of a training run: whole or not there, checked when read, the last ones kept.

safetensors holds plain tensors and text: reading a file runs no code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from acq_isl.errors import ModelError, TrainingFailed

logger = logging.getLogger(__name__)

_KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{8})\.safetensors")


@dataclass(frozen=True, slots=True, eq=False)
class Tensors:
    """What a file holds.

    Parameters
    ----------
    tensors : mapping of name to Tensor
    about : mapping of str to str
    """

    tensors: Mapping[str, Tensor]
    about: Mapping[str, str]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Those whose name begins like this, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def write_tensors(path: Path, content: Tensors) -> None:
    """Write a file in one move, with a digest of what is in it."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in content.tensors.items()}
    about = {**content.about, "sha256": _digest(tensors, content.about)}
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(save(tensors, metadata=about))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_tensors(path: Path) -> Tensors:
    """Read a file back; `ModelError` if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path} cannot be read", got=str(error)[:200], fix="copy it anew") from error
    if about.pop("sha256", None) != _digest(tensors, about):
        raise ModelError(f"{path} is damaged: its content has changed since it was written")
    return Tensors(tensors, about)


def _digest(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    content = hashlib.sha256(json.dumps(dict(about), sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        content.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        content.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return content.hexdigest()


@dataclass(frozen=True, slots=True)
class Savepoints:
    """The checkpoints in a folder, which belongs to one run."""

    folder: Path

    def save(self, step: int, content: Tensors) -> None:
        """Keep a checkpoint and the one before; older ones go."""
        write_tensors(self.folder / f"checkpoint-{step:08d}.safetensors", content)
        for _, path in self._found()[:-_KEPT]:
            path.unlink(missing_ok=True)

    def newest(self) -> tuple[int, Tensors] | None:
        """The last checkpoint that is whole, with its step; None if there never was one.

        Raises
        ------
        TrainingFailed
            All are damaged.
        """
        found = self._found()
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

    def _found(self) -> list[tuple[int, Path]]:
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("checkpoint-*"))
        return sorted((int(match[1]), path) for match, path in matches if match)
